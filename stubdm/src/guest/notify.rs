//! System calls of a process that this one answers (seccomp's user notification).
//!
//! A filter stops the chosen calls of a thread, and of all that it starts, until the [`Listener`]
//! has answered: with a result, with a descriptor that becomes the caller's, or by leaving the call
//! to the kernel. A call that is left to the kernel is checked as if there were no filter.
//!
//! The caller's memory is read through `/proc/PID/mem`, once, into memory of this process. The file
//! is opened first and the call looked at afterwards: if it still waits, the file is its caller's.
//!
//! # Safety
//! `seccomp(2)` and `ioctl(2)` are not safe code because both take addresses. The addresses here
//! are those of whole structs of the sizes that the kernel's header gives, which live until the
//! calls have returned.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong, sock_filter};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Answers the calls that a filter has stopped.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A stopped call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    thread: u32,
    /// The call's number.
    pub number: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// Puts the calling thread, and all that it starts, behind a filter for good; the calls for which
/// it returns `SECCOMP_RET_USER_NOTIF` wait for the listener.
///
/// # Errors
/// The kernel refuses the filter, or has no such notification.
pub fn install(program: &[sock_filter]) -> io::Result<Listener> {
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // A signal then interrupts no call that is being answered. Linux 5.19.
    let uninterrupted = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let fd = match set(program, listener | uninterrupted) {
        Err(Errno::EINVAL) => set(program, listener)?,
        fd => fd?,
    };
    // SAFETY: the kernel has just made the descriptor, and nothing else has its number.
    Ok(Listener(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn set(program: &[sock_filter], flags: c_ulong) -> Result<c_int, Errno> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads the struct, and as many instructions as it names, all of which
    // `program` borrows until the call has returned. It writes neither.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    Errno::result(fd).map(|fd| fd as c_int)
}

impl Listener {
    /// Waits for a call. `None` once no process is left behind the filter.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self) -> io::Result<Option<Call>> {
        loop {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            let events = fds[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                    return Ok(None);
                }
                continue;
            }
            let mut notice = libc::seccomp_notif {
                id: 0,
                pid: 0,
                flags: 0,
                data: libc::seccomp_data {
                    nr: 0,
                    arch: 0,
                    instruction_pointer: 0,
                    args: [0; 6],
                },
            };
            // SAFETY: the kernel writes one `struct seccomp_notif`.
            match unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut notice) } {
                // The caller was killed, or a signal arrived.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => {
                    return Ok(Some(Call {
                        id: notice.id,
                        thread: notice.pid,
                        number: notice.data.nr.into(),
                        args: notice.data.args,
                    }));
                }
            }
        }
    }

    /// Opens the memory of a call's caller.
    ///
    /// # Errors
    /// The caller has ended.
    pub fn memory(&self, call: &Call) -> io::Result<File> {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", call.thread))?;
        // Another process may have got the number before the file was open, but not if the call
        // still waits.
        self.waits(call)?;
        Ok(memory)
    }

    /// Fails unless the call still waits.
    ///
    /// # Errors
    /// The caller has ended.
    pub fn waits(&self, call: &Call) -> io::Result<()> {
        let mut id = call.id;
        // SAFETY: the kernel reads one number of 64 bits.
        unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw mut id) }?;
        Ok(())
    }

    /// Leaves a call to the kernel.
    ///
    /// # Errors
    /// The caller has ended.
    pub fn pass(&self, call: &Call) -> io::Result<()> {
        self.send(call, 0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)
    }

    /// Ends a call with a result or an error.
    ///
    /// # Errors
    /// The caller has ended.
    pub fn answer(&self, call: &Call, result: Result<i64, Errno>) -> io::Result<()> {
        match result {
            Ok(value) => self.send(call, value, 0, 0),
            Err(errno) => self.send(call, 0, -(errno as i32), 0),
        }
    }

    fn send(&self, call: &Call, val: i64, error: i32, flags: u32) -> io::Result<()> {
        let mut answer = libc::seccomp_notif_resp {
            id: call.id,
            val,
            error,
            flags,
        };
        // SAFETY: the kernel reads one `struct seccomp_notif_resp`.
        unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut answer) }?;
        Ok(())
    }

    /// Ends a call with a new descriptor of the caller's, for an open file of this process.
    ///
    /// # Errors
    /// The caller has ended, or has no room for a descriptor.
    pub fn give(&self, call: &Call, file: &OwnedFd, close_on_exec: bool) -> io::Result<()> {
        let mut added = libc::seccomp_notif_addfd {
            id: call.id,
            flags: 0,
            srcfd: file.as_raw_fd().unsigned_abs(),
            newfd: 0,
            newfd_flags: if close_on_exec {
                libc::O_CLOEXEC.unsigned_abs()
            } else {
                0
            },
        };
        // SAFETY: the kernel reads one `struct seccomp_notif_addfd`.
        let number = unsafe { self.request(libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw mut added) }?;
        self.answer(call, Ok(number.into()))
    }

    /// Makes a request of the listener.
    ///
    /// # Safety
    /// `argument` points to the struct that the kernel's header gives the request.
    unsafe fn request<T>(&self, request: c_ulong, argument: *mut T) -> Result<c_int, Errno> {
        // SAFETY: the descriptor is a listener's, which `install` alone makes; the caller promises
        // the rest.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, argument) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Stops the calls of one number.
    fn stops(number: i64) -> [sock_filter; 4] {
        let statement = |code: u32, jf, k| sock_filter {
            code: code as u16,
            jt: 0,
            jf,
            k,
        };
        [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                1,
                number as u32,
            ),
            statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF),
            statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ]
    }

    /// Runs `body` in a thread whose calls of one number are answered by `answer`.
    fn answered<T: Send + 'static>(
        number: i64,
        body: impl FnOnce() -> T + Send + 'static,
        answer: impl Fn(&Listener, &Call) -> io::Result<()>,
    ) -> T {
        let (sender, listeners) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            sender.send(install(&stops(number)).unwrap()).unwrap();
            body()
        });
        let listener = listeners.recv().unwrap();
        while let Some(call) = listener.next().unwrap() {
            assert_eq!(call.number, number);
            answer(&listener, &call).unwrap();
        }
        thread.join().unwrap()
    }

    #[test]
    fn a_call_gets_the_result_the_error_or_the_kernels_answer() {
        let alarm = || nix::unistd::alarm::cancel();
        let number = libc::SYS_getppid;
        let parent = || nix::unistd::getppid().as_raw();
        let result = answered(number, parent, |all, call| all.answer(call, Ok(7)));
        assert_eq!(result, 7);
        let own = parent();
        let result = answered(number, parent, |all, call| all.pass(call));
        assert_eq!(result, own);
        let open = || File::open("/dev/null").map_err(|error| error.raw_os_error());
        let refuse = |all: &Listener, call: &Call| all.answer(call, Err(Errno::EXDEV));
        let refused = answered(libc::SYS_openat, open, refuse);
        assert_eq!(refused.unwrap_err(), Some(libc::EXDEV));
        let _ = alarm();
    }

    #[test]
    fn a_caller_gets_a_descriptor_of_this_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "given").unwrap();
        let given: OwnedFd = File::open(file.path()).unwrap().into();
        let read = || io::read_to_string(File::open("/no/such/file").unwrap()).unwrap();
        let text = answered(libc::SYS_openat, read, move |all, call| {
            let mut path = [0; 14];
            all.memory(call)?.read_exact_at(&mut path, call.args[1])?;
            assert_eq!(&path, b"/no/such/file\0");
            all.give(call, &given, true)
        });
        assert_eq!(text, "given");
    }

    #[test]
    fn a_call_that_was_answered_waits_no_more() {
        let parent = || nix::unistd::getppid().as_raw();
        answered(libc::SYS_getppid, parent, |all, call| {
            all.waits(call)?;
            all.answer(call, Ok(1))?;
            assert!(all.waits(call).is_err() && all.memory(call).is_err());
            Ok(())
        });
    }
}
