//! privcmd: what it answers, and who opens it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use xen_sys::Xen;
use xen_sys::privcmd::Privcmd;

/// Prints `version M.N` or, when the kernel refuses, `refused ERRNO`.
pub(crate) fn version() -> Result<()> {
    let privcmd = Privcmd::open(&Xen::open()?)?;
    match privcmd.xen_version() {
        Ok(version) => println!("version {}.{}", version.major, version.minor),
        Err(error) => match error.errno() {
            Some(errno) => println!("refused {}", nix::errno::Errno::from_raw(errno)),
            None => return Err(error.into()),
        },
    }
    Ok(())
}

/// Prints `watching` and from then on `opened PATH` each time. Ends only by a signal.
pub(crate) fn watch() -> Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mut watched = Vec::new();
    for path in [
        "/dev/xen/privcmd",
        "/dev/xen/hypercall",
        "/proc/xen/privcmd",
    ] {
        if Path::new(path).exists() {
            let watch = inotify
                .add_watch(path, AddWatchFlags::IN_OPEN)
                .with_context(|| format!("watching {path}"))?;
            watched.push((watch, path));
        }
    }
    ensure!(
        watched.iter().any(|&(_, path)| path == "/dev/xen/privcmd"),
        "there is no /dev/xen/privcmd: the module is not loaded"
    );
    println!("watching");
    loop {
        for event in inotify.read_events()? {
            if let Some((_, path)) = watched.iter().find(|(watch, _)| *watch == event.wd) {
                println!("opened {path}");
            }
        }
    }
}
