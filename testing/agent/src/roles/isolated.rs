//! Running a program where something it needs is missing.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

#[derive(Args, Debug)]
pub(crate) struct WithoutDevXen {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<String>,
}

impl WithoutDevXen {
    /// Becomes the program, in a mount namespace of its own in which `/dev/xen` and `/proc/xen` are
    /// empty.
    pub(crate) fn run(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        for path in ["/dev/xen", "/proc/xen"] {
            mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), none)
                .with_context(|| format!("covering {path}"))?;
        }
        let (program, arguments) = self.argv.split_first().context("no program is named")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("starting {program}"))
    }
}
