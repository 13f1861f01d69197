#![allow(unsafe_code)]
//! System calls that no safe function makes, tried with arguments that can do no harm.
//!
//! # Safety
//! A test that nothing leads out of the sandbox has to make calls no crate offers. Each is made with
//! null pointers and zeros (or for `clone` with no more than a signal, the child ending at once),
//! so that it changes nothing if it is allowed after all. Only test programs contain this file.

use std::io;

use crate::attempts::Reach;

/// The calls, by what they would be good for; with powers only if being nobody forbids them too.
const CALLS: &[(&str, libc::c_long)] = &[
    ("load a kernel program", libc::SYS_bpf),
    ("watch the kernel", libc::SYS_perf_event_open),
    ("queue input and output", libc::SYS_io_uring_setup),
    ("handle page faults", libc::SYS_userfaultfd),
    ("hold a process", libc::SYS_pidfd_open),
    ("trace a process", libc::SYS_ptrace),
    ("read a process", libc::SYS_process_vm_readv),
    ("write a process", libc::SYS_process_vm_writev),
    ("send a descriptor", libc::SYS_sendmsg),
    ("receive a descriptor", libc::SYS_recvmsg),
    ("another namespace", libc::SYS_unshare),
    ("join a namespace", libc::SYS_setns),
    ("another root file system", libc::SYS_pivot_root),
    ("hold keys", libc::SYS_keyctl),
    ("control the process", libc::SYS_prctl),
    ("drive a device", libc::SYS_ioctl),
    ("share memory", libc::SYS_shmget),
    ("make a memory file", libc::SYS_memfd_create),
    ("a personality", libc::SYS_personality),
    ("start a thread or process", libc::SYS_clone3),
    ("execute a file", libc::SYS_execveat),
    ("open by handle", libc::SYS_open_by_handle_at),
    ("open in the new way", libc::SYS_openat2),
    ("load a module", libc::SYS_finit_module),
    ("another kernel", libc::SYS_reboot),
];

/// Makes the call with zeros.
fn bare(number: libc::c_long) -> io::Result<()> {
    // SAFETY:
    // - every call of the list takes at most six arguments, all given;
    // - with zeros no call of the list reads or writes this process's memory: null pointers and
    //   sizes of 0 are refused, and what succeeds makes or changes nothing that is used here.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    outcome(result, &[libc::EPERM])
}

/// Only a wall's own error is a refusal; any other is the call's, and shows that it was let in.
fn outcome(result: libc::c_long, walls: &[i32]) -> io::Result<()> {
    let error = io::Error::last_os_error();
    if result == -1 && error.raw_os_error().is_some_and(|e| walls.contains(&e)) {
        return Err(error);
    }
    Ok(())
}

/// Memory that can be executed.
fn executable() -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping where the kernel likes; nothing refers to it, and it is never used.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    let failed = address == libc::MAP_FAILED;
    outcome(-libc::c_long::from(failed), &[libc::EPERM])
}

/// A process of its own, which would end at once.
fn fork() -> io::Result<()> {
    let flags = libc::c_long::from(libc::SIGCHLD);
    // SAFETY:
    // - no shared memory is asked for, so the child has a copy of this process's;
    // - the child does nothing but end.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: ends the calling process without running any of its code.
        unsafe { libc::_exit(0) };
    }
    outcome(pid, &[libc::EPERM, libc::EAGAIN])
}

pub(crate) fn names(reach: Reach) -> impl Iterator<Item = &'static str> {
    let all = CALLS.iter().map(|call| call.0);
    let all = all.chain(["have code", "fork"]);
    all.filter(move |name| reach == Reach::Everything || *name == "fork")
}

pub(crate) fn attempt(reach: Reach) -> Vec<(&'static str, io::Result<()>)> {
    let mut results = vec![("fork", fork())];
    if reach == Reach::Everything {
        results.push(("have code", executable()));
        results.extend(CALLS.iter().map(|(name, call)| (*name, bare(*call))));
    }
    results
}
