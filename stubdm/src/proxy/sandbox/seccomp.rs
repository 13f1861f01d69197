//! The system calls that are left to the worker.
//!
//! Everything else fails with EPERM. No call on the list opens, creates or names anything: no file,
//! socket, process or address. Memory can be had, but none that can be executed.

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::rt::error::{Context, Result};

/// Whatever the arguments are.
const PLAIN: &[c_long] = &[
    // Bytes. Not sendmsg and recvmsg, which could carry descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Clients.
    libc::SYS_accept4,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    // The end.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The allowed commands of `fcntl`: no owner to signal, no lease, no pipe size, no lock.
const FCNTL: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];

/// Leaves only the calls of the list to this thread, for good.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn restrict() -> Result<()> {
    restrict_but(&[], &[])
}

/// As [`restrict`], but leaves these requests of `ioctl` and these other calls too.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn restrict_but(requests: &[u32], calls: &[c_long]) -> Result<()> {
    let program = program(requests, calls).context("the filter")?;
    seccompiler::apply_filter(&program).context("seccomp")
}

fn program(
    requests: &[u32],
    calls: &[c_long],
) -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    let condition = |index, operator, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
    };
    let plain = PLAIN.iter().chain(calls);
    let mut rules: Vec<(c_long, Vec<SeccompRule>)> =
        plain.map(|call| (*call, Vec::new())).collect();
    let mut some = Vec::new();
    for command in FCNTL {
        let command = u64::from(command.unsigned_abs());
        let is = condition(1, SeccompCmpOp::Eq, command)?;
        some.push(SeccompRule::new(vec![is])?);
    }
    rules.push((libc::SYS_fcntl, some));
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let not = condition(2, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.push((call, vec![SeccompRule::new(vec![not])?]));
    }
    let mut some = Vec::new();
    for request in requests {
        let is = condition(1, SeccompCmpOp::Eq, u64::from(*request))?;
        some.push(SeccompRule::new(vec![is])?);
    }
    if !some.is_empty() {
        rules.push((libc::SYS_ioctl, some));
    }
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let here = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(
        rules.into_iter().collect(),
        refused,
        SeccompAction::Allow,
        here,
    )?
    .try_into()
}
