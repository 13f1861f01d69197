//! Doing something before any ordinary thread of the kernel or ours gets the processor.
//!
//! # Safety
//!
//! This file is not safe code because no safe wrapper of `sched_setscheduler(2)` is at hand. It is
//! called once, with a number and a struct that it only reads.

#![allow(unsafe_code)]

use std::panic::resume_unwind;
use std::{io, thread};

/// Runs `work` on a thread of its own that has the processor until it is done or sleeps. Returns
/// what `work` gave, and whether the thread could be made that realtime, which takes
/// `CAP_SYS_NICE`.
///
/// # Errors
/// No thread could be started.
pub fn realtime<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<(T, io::Result<()>)> {
    thread::scope(|scope| {
        let realtime = thread::Builder::new().name("realtime".into());
        let thread = realtime.spawn_scoped(scope, || {
            let realtime = become_realtime();
            (work(), realtime)
        })?;
        // A panic there is this program's own fault, and ends it as one here does.
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Gives the calling thread the highest real-time priority.
#[doc(alias = "sched_setscheduler")]
fn become_realtime() -> io::Result<()> {
    let first = libc::sched_param { sched_priority: 99 };
    // SAFETY: 0 names the calling thread, and the kernel reads one `sched_param` at the address,
    // which is that of a live local variable, and writes none (sched_setscheduler(2)).
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the calling thread's scheduling policy and real-time priority, as the kernel reports
    /// them.
    fn scheduling() -> (String, String) {
        let status = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = status
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        // proc(5): fields 40 and 41, the first after the name being field 3.
        (fields[38].to_owned(), fields[37].to_owned())
    }

    #[test]
    fn the_work_is_done_and_the_caller_stays_ordinary() {
        let before = scheduling();
        let (seen, realtime) = realtime(scheduling).unwrap();
        if realtime.is_ok() {
            assert_eq!(seen, (libc::SCHED_FIFO.to_string(), "99".to_owned()));
        } else {
            assert_eq!(seen, before);
        }
        assert_eq!(scheduling(), before);
    }
}
