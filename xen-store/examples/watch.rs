//! Prints changes at or below some paths, from one thread with one `poll`: `watch PATH...`.
//!
//! With `XENSTORED_PATH` set it connects there, otherwise to the daemon of this Xen host.

use std::error::Error;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::{Store, Watch};
use xen_sys::Xen;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let store = match std::env::var_os("XENSTORED_PATH") {
        Some(socket) => Store::connect(socket)?,
        None => Store::open(&Xen::open()?)?,
    };
    let paths = std::env::args().skip(1);
    let watches = paths
        .map(|path| store.watch(&path))
        .collect::<Result<Vec<Watch>, _>>()?;
    if watches.is_empty() {
        return Err("usage: watch PATH...".into());
    }
    loop {
        // Look before each sleep: setting the watches may have read events into memory already.
        for watch in &watches {
            while let Some(event) = watch.try_next()? {
                let below = if event.rescan { " and below" } else { "" };
                println!("{}{below}", event.path);
            }
        }
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(store.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
    }
}
