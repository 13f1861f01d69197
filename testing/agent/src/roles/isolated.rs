//! Running a program where something it needs is missing.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

#[derive(Args, Debug)]
pub(crate) struct WithoutDevXen {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<String>,
}

impl WithoutDevXen {
    /// Becomes the program, in a mount namespace of its own in which `/dev/xen` and `/proc/xen` are
    /// empty.
    pub(crate) fn run(&self) -> Result<()> {
        cover(&["/dev/xen", "/proc/xen"])?;
        let (program, arguments) = self.argv.split_first().context("no program is named")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("starting {program}"))
    }
}

/// Makes hypercalls with `/dev/xen/privcmd` and without `/dev/xen/hypercall`.
pub(crate) fn without_hypercall_device() -> Result<()> {
    const PRIVCMD: &str = "/dev/xen/privcmd";
    let device = std::fs::metadata(PRIVCMD)?.rdev();
    cover(&["/dev/xen"])?;
    mknod(
        PRIVCMD,
        SFlag::S_IFCHR,
        Mode::S_IRUSR | Mode::S_IWUSR,
        device,
    )?;
    let locked = || -> Result<u64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmLck:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(size.context("no VmLck")?.parse()?)
    };
    let privcmd = Privcmd::open(&Xen::open()?)?;
    for _ in 0..100 {
        let version = privcmd.xen_version()?;
        let dom0 = privcmd.domain_info(DomId::DOM0)?;
        ensure!(version.major >= 4 && dom0.id == DomId::DOM0);
    }
    ensure!(locked()? > 0, "no buffer is locked");
    drop(privcmd);
    ensure!(locked()? == 0, "{} kB are locked", locked()?);
    println!("ok");
    Ok(())
}

/// Goes to a mount namespace of its own, in which these folders are empty.
fn cover(folders: &[&str]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for &folder in folders {
        mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("covering {folder}"))?;
    }
    Ok(())
}
