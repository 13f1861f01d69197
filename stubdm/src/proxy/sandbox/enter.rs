//! Enters the sandbox before the first foreign byte is read, one restriction after the other.
//!
//! | restriction | what it keeps from what is inside |
//! |---|---|
//! | descriptors | all that were inherited, but those it was given |
//! | limits | memory, descriptors, processes, core files, bytes in files |
//! | root directory | an empty one that is deleted already: no file is there and none can be made |
//! | user | one that owns nothing and that no other process has; no capabilities, for good |
//! | system calls | all but those that move bytes between open descriptors and manage its own memory |
//!
//! Only root can put up the third and fourth. Another user has no powers that they would take away.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use libc::c_long;
use nix::sys::prctl;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, chroot, fchdir, mkdtemp, setgroups, setresgid, setresuid};
use tracing::warn;

use crate::proxy::sandbox::seccomp;
use crate::rt::error::{Context, Failure, Result};

/// Bytes of memory of its own. The policy's limits allow a tenth of it to be in use at once.
pub const MEMORY: rlim_t = 32 << 20;
/// Bytes of address space beyond that, the program's own text included.
const SPACE: rlim_t = 160 << 20;
/// Descriptors open at once.
const DESCRIPTORS: rlim_t = 64;
/// Bytes of a file that stdout may be. The log is a pipe of the broker's.
pub const OUTPUT: rlim_t = 64 << 20;
/// Where an empty directory can be made for a moment.
const NURSERIES: [&str; 2] = ["/run", "/tmp"];

/// Limits, and calls beside the list of the filter.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// Bytes of a file that is one of the descriptors.
    pub output: rlim_t,
    /// Bytes of memory of its own.
    pub memory: rlim_t,
    /// Requests of `ioctl`.
    pub requests: &'a [u32],
    /// Other calls, whatever their arguments are.
    pub calls: &'a [c_long],
}

/// Puts all restrictions up, for good. `keep` are the descriptors that stay open besides the
/// standard ones; `output` is how many bytes a file that is one of them may have.
///
/// # Errors
/// A restriction could not be put up; those before it stand.
pub fn enter(keep: &[BorrowedFd<'_>], user: u32, output: rlim_t) -> Result<()> {
    let allowed = Allowed {
        output,
        memory: MEMORY,
        requests: &[],
        calls: &[],
    };
    enter_with(keep, user, allowed)
}

/// As [`enter`], with what is `allowed`.
///
/// # Errors
/// As for [`enter`].
pub fn enter_with(keep: &[BorrowedFd<'_>], user: u32, allowed: Allowed<'_>) -> Result<()> {
    close_others(keep)?;
    limit_to(allowed.memory, allowed.output)?;
    if Uid::effective().is_root() {
        leave_the_files().context("an empty root directory")?;
        become_nobody(user).context(format_args!("becoming user {user}"))?;
    } else {
        warn!("not started as root: the worker keeps this user and sees this file system's names");
    }
    alone().context("confinement")?;
    seccomp::restrict_but(allowed.requests, allowed.calls).context("restricting system calls")
}

/// Closes all descriptors but these and the standard ones.
///
/// # Errors
/// The system's.
pub fn close_others(keep: &[BorrowedFd<'_>]) -> Result<()> {
    const LIST: &str = "/proc/self/fd";
    let mut open = BTreeSet::new();
    for entry in fs::read_dir(LIST).context(LIST)? {
        let name = entry.context(LIST)?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in open {
        if number > 2 && !keep.iter().any(|fd| fd.as_raw_fd() == number) {
            // The one the list was read through is closed already.
            let _ = nix::unistd::close(number);
        }
    }
    Ok(())
}

/// Limits what it can use up.
///
/// # Errors
/// The system's.
pub fn limit(output: rlim_t) -> Result<()> {
    limit_to(MEMORY, output)
}

fn limit_to(memory: rlim_t, output: rlim_t) -> Result<()> {
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_DATA, memory),
        (Resource::RLIMIT_AS, memory + SPACE),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_FSIZE, output),
        (Resource::RLIMIT_NPROC, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, most, most).context(format_args!("{resource:?}"))?;
    }
    Ok(())
}

/// Makes an empty directory the root, and deletes it.
///
/// # Errors
/// None could be made, or the system's.
pub fn leave_the_files() -> Result<()> {
    let mut why = String::new();
    for nursery in NURSERIES {
        match mkdtemp(&Path::new(nursery).join("stubdm-sandbox-XXXXXX")) {
            Ok(path) => {
                let directory = fs::File::open(&path);
                fs::remove_dir(&path).context(path.display())?;
                fchdir(directory.context(path.display())?).context("entering it")?;
                return chroot(".").context("chroot");
            }
            Err(errno) => why = format!("in {nursery}: {}", errno.desc()),
        }
    }
    Err(Failure::new(why))
}

/// Becomes a user without powers, for good.
///
/// # Errors
/// The system's; also if some power is left.
pub fn become_nobody(user: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[]).context("setgroups")?;
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")?;
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(Failure::new("root could be had back"));
    }
    Ok(())
}

/// Nobody traces it, nothing it executes has more powers, no signal but SIGKILL ends it, and the
/// end of its parent does.
fn alone() -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    // Becoming another user would have undone this.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // SIGXFSZ too: a full file is no reason to stop.
    SigSet::all().thread_block()
}
