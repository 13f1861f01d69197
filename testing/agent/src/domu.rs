//! The init of a testbed domU: mounts, modules, then programs for dom0.
//!
//! The kernel's command line chooses how privcmd comes up: `agent.privcmd=refusing` (the default:
//! what today's kernels do in a domain that is no stubdomain) or `agent.privcmd=unrestricted`.
//! Nothing under test needs it either way, and the tests show that.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use xen_store::Store;
use xen_sys::Xen;

use crate::serve::serve;

/// In the order they are loaded: each needs at most the ones before it.
const MODULES: [&str; 5] = [
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
];

/// Runs as process 1. Never returns: powers the domain off when it can no longer serve.
pub(crate) fn run() -> ! {
    if let Err(error) = serve_dom0() {
        println!("agent: {error:#}");
    }
    println!("agent: powering off");
    // The console's ring is emptied by another domain: what is in it when the power goes is lost.
    thread::sleep(Duration::from_millis(200));
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
    println!("agent: power off: {errno}");
    loop {
        thread::park();
    }
}

fn serve_dom0() -> Result<()> {
    mounts()?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let unrestricted = command_line
        .split_whitespace()
        .any(|word| word == "agent.privcmd=unrestricted");
    for name in MODULES {
        let parameters = match name {
            "xen-privcmd" if unrestricted => c"unrestricted=1",
            _ => c"",
        };
        load(name, parameters)?;
        println!("agent: module {name} {}", parameters.to_string_lossy());
    }
    // Where it is mounted when it is: some programs look here for the files of /dev/xen.
    mount_on("xenfs", "/proc/xen")?;

    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let privcmd = if unrestricted {
        "unrestricted"
    } else {
        "refusing"
    };
    let report = format!("kernel={} privcmd={privcmd}", release.trim());
    println!("agent: {report}");
    let store = Store::open(&Xen::open()?)?;
    serve(&store, &report).context("serving dom0")
}

fn mounts() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        mount_on(kind, target)?;
    }
    Ok(())
}

/// Mounts a file system of the kernel's own; one that is mounted already is fine.
pub(crate) fn mount_on(kind: &str, target: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
    let flags = MsFlags::MS_NOSUID;
    match mount(Some(kind), target, Some(kind), flags, None::<&str>) {
        // The kernel may have mounted devtmpfs already.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("mounting {kind} on {target}")),
    }
}

/// Loads a module of the ramdisk; one that is built into the kernel or loaded already is fine.
pub(crate) fn load(name: &str, parameters: &std::ffi::CStr) -> Result<()> {
    let sysfs_name = name.replace('-', "_");
    if Path::new("/sys/module").join(&sysfs_name).exists() {
        return Ok(());
    }
    let path = find(Path::new("/lib/modules"), &format!("{name}.ko"))
        .with_context(|| format!("no {name}.ko below /lib/modules"))?;
    let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    match finit_module(file, parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("loading {}", path.display())),
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|file| file == name) {
            return Some(path);
        }
    }
    None
}
