//! Deadlines that pass, and deadlines that have passed when the call begins.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::daemon::{Daemon, Kind};
use crate::rounds::{Calls, rounds};
use crate::{with_each_daemon, with_each_process};

fn wait_for_ends_at_its_deadline(kind: Kind) {
    rounds(format_args!("{kind:?}, wait_for, silent"), || {
        let mut daemon = Daemon::start(kind);
        let store = daemon.store();
        store.write("/value", "v").unwrap();
        daemon.stop();
        let mut calls = Calls::new();
        calls.spawn(move || {
            let deadline = Instant::now() + Duration::from_millis(200);
            let never = |_: Option<&[u8]>| None::<()>;
            let waited = store.wait_for("/value", Some(deadline), never);
            (
                waited.is_ok_and(|value| value.is_some()),
                Instant::now() - deadline,
            )
        });
        let outcome = calls.join();
        daemon.kill();
        match outcome?.as_slice() {
            [(false, late)] if *late < Duration::from_secs(10) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn a_watch_with_no_time_left_still_reads_what_is_there(kind: Kind) {
    rounds(format_args!("{kind:?}, next(now)"), || {
        let daemon = Daemon::start(kind);
        let (store, other) = (daemon.store(), daemon.store());
        let watch = store.watch("/value").unwrap();
        while watch.try_next().unwrap().is_some() {}
        for n in 0..100 {
            other.write("/value", n.to_string()).unwrap();
            let mut fds = [PollFd::new(store.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(30_000_u16)).unwrap() == 0 {
                return Err(format!("no event for write {n}"));
            }
            if watch.next(Some(Instant::now())).unwrap().is_none() {
                return Err(format!("next(now) did not see event {n}"));
            }
        }
        Ok(())
    });
}

fn wait_for_with_no_time_left_sees_what_holds(kind: Kind) {
    rounds(format_args!("{kind:?}, wait_for(now)"), || {
        let daemon = Daemon::start(kind);
        let store = daemon.store();
        store.write("/value", "v").unwrap();
        let mut missed = 0;
        for _ in 0..200 {
            let holds = |value: Option<&[u8]>| value.map(drop);
            let waited = store.wait_for("/value", Some(Instant::now()), holds);
            missed += u32::from(waited.unwrap().is_none());
        }
        if missed == 0 {
            Ok(())
        } else {
            Err(format!("{missed} of 200 said None"))
        }
    });
}

with_each_daemon!(
    a_watch_with_no_time_left_still_reads_what_is_there,
    wait_for_with_no_time_left_sees_what_holds,
);
with_each_process!(wait_for_ends_at_its_deadline);
