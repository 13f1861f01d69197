//! The system calls that QEMU has no use for, and that a QEMU which the guest has taken over would
//! use to reach the kernel.
//!
//! A list of what is refused, not of what is allowed: QEMU is the distribution's, and so are its
//! thirty libraries. The listed calls lead to namespaces, mounts, other processes, the kernel's
//! image and modules, or to parts of the kernel with a history of faults that are reached without
//! any capability (`io_uring`, `bpf`, `perf`, `userfaultfd`, the families of sockets that nobody
//! asked for).
//!
//! | fails with | calls |
//! |---|---|
//! | `EPERM` | `REFUSED`, `clone` with a flag for a new namespace, sockets of other families than `FAMILIES`, `TIOCSTI` |
//! | `ENOSYS` | `MISSING`: their callers have another way; every call of the x32 ABI |
//! | the process is killed | calls of another architecture (`int 0x80`) |
//!
//! `clone3` has its flags in memory, where a filter cannot look; the C library continues with
//! `clone`.
//!
//! A filter is its thread's, and that of all threads and processes made by it: [`apply`] is called
//! by a thread that does nothing else than start QEMU.

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use crate::rt::error::{Context, Result};

/// Fail with `EPERM`, whatever their arguments.
const REFUSED: &[c_long] = &[
    // Namespaces and file systems.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_lookup_dcookie,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The clock and the host's name.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Fail with `ENOSYS`, as on a kernel that does not have them.
const MISSING: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_memfd_secret,
];

/// The flags of `clone` that make a namespace, but for `CLONE_NEWTIME`: that bit is the signal's
/// there.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The families of sockets that QEMU may make: its monitors, its networks, and how the C library
/// looks up addresses.
const FAMILIES: &[i32] = &[
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// Set in the number of every call of the x32 ABI, whose calls are otherwise those of x86-64.
const X32: u32 = 0x4000_0000;

/// Refuses these calls to the calling thread and all that it starts, for good. Sets
/// no-new-privileges.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn apply() -> Result<()> {
    for program in programs().context("QEMU's seccomp filters")? {
        seccompiler::apply_filter(&program).context("seccomp")?;
    }
    Ok(())
}

/// In the order in which they are applied.
fn programs() -> std::result::Result<[BpfProgram; 3], seccompiler::BackendError> {
    let condition = |index, operator, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
    };
    let plain = |calls: &[c_long]| -> Vec<(c_long, Vec<SeccompRule>)> {
        calls.iter().map(|call| (*call, Vec::new())).collect()
    };
    let mut refused = plain(REFUSED);
    let mut namespaces = Vec::new();
    for flag in NAMESPACES {
        let flag = u64::from(flag.unsigned_abs());
        let set = condition(0, SeccompCmpOp::MaskedEq(flag), flag)?;
        namespaces.push(SeccompRule::new(vec![set])?);
    }
    refused.push((libc::SYS_clone, namespaces));
    let mut none_of_them = Vec::new();
    for family in FAMILIES {
        let family = u64::from(family.unsigned_abs());
        none_of_them.push(condition(0, SeccompCmpOp::Ne, family)?);
    }
    let none_of_them = vec![SeccompRule::new(none_of_them)?];
    refused.push((libc::SYS_socket, none_of_them.clone()));
    refused.push((libc::SYS_socketpair, none_of_them));
    let inject = condition(1, SeccompCmpOp::Eq, libc::TIOCSTI)?;
    refused.push((libc::SYS_ioctl, vec![SeccompRule::new(vec![inject])?]));
    let filter = |rules: Vec<(c_long, Vec<SeccompRule>)>,
                  errno: i32|
     -> std::result::Result<BpfProgram, seccompiler::BackendError> {
        let refusal = SeccompAction::Errno(errno.unsigned_abs());
        let here = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(
            rules.into_iter().collect(),
            SeccompAction::Allow,
            refusal,
            here,
        )?
        .try_into()
    };
    Ok([
        x32(),
        filter(plain(MISSING), libc::ENOSYS)?,
        filter(refused, libc::EPERM)?,
    ])
}

/// By hand, since a list of numbers cannot express "all from here on".
fn x32() -> BpfProgram {
    let statement = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let compare = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        // The call's number is the first word of what a filter sees.
        statement(load, 0, 0, 0),
        statement(compare, 0, 1, X32),
        statement(end, 0, 0, missing),
        statement(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

    /// Returns the result of the kernel's filter interpreter for a call.
    fn result(program: &[sock_filter], number: c_long, args: [u64; 2]) -> u32 {
        let arch = match std::env::consts::ARCH {
            "x86_64" => 0xc000_003e,
            "aarch64" => 0xc000_00b7,
            other => panic!("{other}"),
        };
        // `struct seccomp_data`: the number, the architecture, the instruction's address, the
        // arguments.
        let words = [number as u32, arch, 0, 0];
        let args = args
            .iter()
            .flat_map(|arg| [*arg as u32, (*arg >> 32) as u32]);
        let words: Vec<u32> = words.into_iter().chain(args).collect();
        let (mut at, mut value) = (0, 0);
        loop {
            let step = &program[at];
            let jump = |is: bool| usize::from(if is { step.jt } else { step.jf });
            at += 1 + match step.code {
                0x20 => {
                    value = words[step.k as usize / 4];
                    0
                }
                0x54 => {
                    value &= step.k;
                    0
                }
                0x05 => step.k as usize,
                0x15 => jump(value == step.k),
                0x25 => jump(value > step.k),
                0x35 => jump(value >= step.k),
                0x06 => return step.k,
                other => panic!("an instruction {other:#x}"),
            };
        }
    }

    /// The error number that a call gets from the filters, `None` if it reaches the kernel.
    fn errno_of(number: c_long, args: [u64; 2]) -> Option<i32> {
        let programs = programs().unwrap();
        let mut results = programs
            .iter()
            .map(|program| result(program, number, args))
            .filter(|result| *result != libc::SECCOMP_RET_ALLOW);
        // Of several the lowest action counts, and of the same action the filter applied last.
        let refusal = results.next_back()?;
        assert_eq!(
            refusal & libc::SECCOMP_RET_ACTION_FULL,
            libc::SECCOMP_RET_ERRNO
        );
        Some((refusal & libc::SECCOMP_RET_DATA) as i32)
    }

    #[test]
    fn each_call_is_refused_as_the_table_states() {
        for call in REFUSED {
            assert_eq!(errno_of(*call, [0; 2]), Some(libc::EPERM), "call {call}");
        }
        for call in MISSING {
            assert_eq!(errno_of(*call, [0; 2]), Some(libc::ENOSYS), "call {call}");
        }
        for call in [
            libc::SYS_read,
            libc::SYS_mmap,
            libc::SYS_futex,
            libc::SYS_execve,
        ] {
            assert_eq!(errno_of(call, [0; 2]), None, "call {call}");
            let x32 = call | c_long::from(X32);
            assert_eq!(
                errno_of(x32, [0; 2]),
                Some(libc::ENOSYS),
                "call {call} of x32"
            );
        }
        // A thread's and a process's flags, then each namespace beside them.
        for plain in [0x3d_0f00, libc::SIGCHLD.unsigned_abs().into()] {
            assert_eq!(errno_of(libc::SYS_clone, [plain, 0]), None, "{plain:#x}");
            for flag in NAMESPACES {
                let flags = plain | u64::from(flag.unsigned_abs());
                let errno = errno_of(libc::SYS_clone, [flags, 0]);
                assert_eq!(errno, Some(libc::EPERM), "{flags:#x}");
            }
        }
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            for family in 0..64 {
                let errno = errno_of(call, [family, 0]);
                let needed = FAMILIES
                    .iter()
                    .any(|one| u64::from(one.unsigned_abs()) == family);
                assert_eq!(errno, (!needed).then_some(libc::EPERM), "family {family}");
            }
        }
        let refused = |request| errno_of(libc::SYS_ioctl, [0, request]);
        // The kernel looks at the lower half only.
        for request in [libc::TIOCSTI, libc::TIOCSTI | 1 << 32] {
            assert_eq!(refused(request), Some(libc::EPERM), "{request:#x}");
        }
        assert_eq!(refused(libc::TCGETS), None);
    }

    /// Runs `body` in a thread of its own, behind the filter.
    fn behind<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            apply().unwrap();
            body()
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_program_started_behind_the_filter_makes_no_namespace() {
        let output = behind(|| {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "true"]);
            command.output().unwrap()
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "it has a namespace");
        assert!(said.contains("Operation not permitted"), "{said}");
    }

    #[test]
    fn the_filters_stay_with_the_thread_and_let_programs_threads_and_processes_live() {
        behind(|| {
            std::thread::spawn(|| ()).join().unwrap();
            // A shell's own process and pipe.
            let mut command = Command::new("sh");
            command.args(["-c", "echo a | cat; kill -TERM $$"]);
            let output = command.output().unwrap();
            assert_eq!(output.stdout, b"a\n");
            assert_eq!(output.status.signal(), Some(libc::SIGTERM));
        });
        // This thread is free: EINVAL or EPERM of the kernel's own, or success, but a socket for
        // certain.
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(own.contains("Seccomp_filters:\t0"), "{own}");
    }

    #[test]
    fn sockets_are_of_the_families_that_are_needed() {
        let make =
            |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map(drop);
        behind(move || {
            for family in [AddressFamily::Unix, AddressFamily::Inet] {
                assert_eq!(make(family), Ok(()), "{family:?}");
            }
            for family in [
                AddressFamily::Packet,
                AddressFamily::Alg,
                AddressFamily::Vsock,
            ] {
                assert_eq!(make(family), Err(Errno::EPERM), "{family:?}");
            }
            let flags = SockFlag::SOCK_CLOEXEC;
            socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
        });
    }
}
