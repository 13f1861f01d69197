//! QEMU as the stubdomain's init starts it, with a companion that kills it when dom0 says so.
//!
//! A test puts this program into the stubdomain's ramdisk under the name `mortal-qemu` and names it to the init.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen_store::Store;
use xen_sys::Xen;

const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";

/// The name this program is called by.
pub(crate) const NAME: &str = "mortal-qemu";

/// Becomes QEMU, with the arguments this process was given.
pub(crate) fn run() -> Result<()> {
    let pid = std::process::id().to_string();
    // Without QEMU's output: the init takes that to be open as long as QEMU lives.
    Command::new("/proc/self/exe")
        .args(["role", "killer", &pid])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("the companion")?;
    let error = Command::new(QEMU).args(std::env::args_os().skip(1)).exec();
    Err(error).context(QEMU)
}

#[derive(Args, Debug)]
pub(crate) struct Killer {
    pid: i32,
}

impl Killer {
    /// Waits for the node `data/kill-qemu` of this domain.
    pub(crate) fn run(&self) -> Result<()> {
        let store = Store::open(&Xen::open()?)?;
        let watch = store.watch("data/kill-qemu")?;
        while !store.exists("data/kill-qemu")? {
            watch.next(None)?;
        }
        Ok(kill(Pid::from_raw(self.pid), Signal::SIGKILL)?)
    }
}
