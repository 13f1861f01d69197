//! A connection that is made again, on a daemon that is gone and started again.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::wire::MsgType;
use xen_store::{Error, Invalid, Reconnect, Repeat, Store, Watch};

use crate::restarts::{Restarts, quick};

/// Nothing here takes that long unless it hangs.
const STUCK: Duration = Duration::from_secs(20);

impl Restarts {
    pub(crate) fn store(&self, policy: Reconnect) -> Store {
        let store = Store::connect(self.socket()).unwrap();
        store
            .with_timeout(Some(STUCK))
            .reconnecting(policy)
            .expect_err("a clone exists");
        store
            .reconnecting(policy)
            .unwrap()
            .with_timeout(Some(STUCK))
    }
}

#[track_caller]
fn next(watch: &Watch) -> xen_store::WatchEvent {
    let event = watch.next(Some(Instant::now() + STUCK)).unwrap();
    event.expect("an event before the deadline")
}

#[test]
fn a_watch_outlives_its_daemon_and_reports_that_changes_may_have_been_missed() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick());
    let watch = store.watch("/w").unwrap();
    assert!(!next(&watch).reconnected);
    for _ in 0..3 {
        daemon.restart();
        // The daemon's first events may come between.
        let event = loop {
            let event = next(&watch);
            if event.reconnected {
                break event;
            }
        };
        assert!(event.rescan, "{event:?}");
        assert_eq!(&*event.path, "/w");
        daemon.other().write("/w/a", "1").unwrap();
        // A connection to the daemon that is about to end may be lost in between.
        while !matches!(store.read("/w/a"), Ok(value) if value == b"1") {
            next(&watch);
        }
    }
}

#[test]
fn a_thread_that_waits_connects_when_the_daemon_is_back() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick());
    let watch = store.watch("/w").unwrap();
    next(&watch);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| while !next(&watch).reconnected {});
        let requests: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        match store.exists("/w") {
                            Err(Error::Lost { .. }) => {}
                            other => break other,
                        }
                    }
                })
            })
            .collect();
        daemon.end();
        // Those who find the daemon gone wait for the next one.
        let waiting = store.with_timeout(Some(Duration::from_millis(50)));
        let error = loop {
            match waiting.read("/w") {
                Err(Error::Lost { .. }) => {}
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        daemon.begin();
        for request in requests {
            request.join().unwrap().unwrap();
        }
        watcher.join().unwrap();
    });
}

/// One thread sleeps until it is time to connect, the other beside it. At whatever moment the first
/// is cancelled, the other one connects.
#[test]
fn a_thread_that_is_cancelled_while_it_waits_to_connect_hands_that_over() {
    for moment in 0..15 {
        let mut daemon = Restarts::start();
        let store = daemon.store(quick().repeat(Repeat::Reads));
        daemon.end();
        let (cancelled, canceller) = store.cancellable();
        thread::scope(|scope| {
            let cancelled = scope.spawn(move || cancelled.exists("/a"));
            thread::sleep(Duration::from_millis(moment));
            let other = scope.spawn(|| store.exists("/a"));
            thread::sleep(Duration::from_millis(moment));
            canceller.cancel();
            let error = cancelled.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error:?}");
            daemon.begin();
            assert!(!other.join().unwrap().unwrap());
        });
    }
}

#[test]
fn repeated_requests_do_not_fail_for_a_restart() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick().repeat(Repeat::Idempotent));
    for n in 0..5 {
        store.write("/a", n.to_string()).unwrap();
        assert_eq!(store.read_str("/a").unwrap(), n.to_string());
        daemon.restart();
        assert!(store.read("/a").unwrap_err().is_not_found());
    }
}

#[test]
fn a_lost_transaction_ends_with_an_error_that_names_it() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick().repeat(Repeat::Idempotent));
    let lost = store.transaction().unwrap();
    lost.write("/t", "lost").unwrap();
    daemon.restart();
    store.mkdir("/ready").unwrap();
    // The daemon counts from the start: without a record of the loss this would be the same
    // transaction.
    let own = store.transaction().unwrap();
    own.write("/t", "own").unwrap();
    let error = lost.write("/t", "lost").unwrap_err();
    assert!(
        matches!(
            error,
            Error::Lost {
                op: MsgType::WRITE,
                transaction: Some(_),
                may_be_done: false
            }
        ),
        "{error:?}"
    );
    assert!(error.is_lost_transaction());
    assert!(error.to_string().contains("in transaction"), "{error}");
    let many = lost.read_many(&["/t", "/u"]);
    assert!(
        many.into_iter()
            .all(|read| read.unwrap_err().is_lost_transaction())
    );
    let committed = lost.commit();
    assert!(committed.unwrap_err().is_lost_transaction());
    drop(store.transaction().unwrap());
    assert!(own.commit().unwrap());
    assert_eq!(store.read("/t").unwrap(), b"own");
}

#[test]
fn with_transaction_begins_again_after_a_loss() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick());
    let mut runs = 0;
    let value = store.with_transaction(|t| {
        t.write("/t", "1")?;
        runs += 1;
        if runs == 1 {
            daemon.restart();
        }
        t.write("/u", "1")?;
        Ok(runs)
    });
    assert_eq!(value.unwrap(), 2);
    assert_eq!(store.read_many(&["/t", "/u"]).len(), 2);
    assert!(store.exists("/t").unwrap() && store.exists("/u").unwrap());
}

#[test]
fn attempts_that_are_used_up_end_the_connection() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick().attempts(Some(3)).repeat(Repeat::Reads));
    let watch = store.watch("/w").unwrap();
    next(&watch);
    daemon.end();
    let error = store.read("/a").unwrap_err();
    assert!(
        matches!(
            error,
            Error::Os {
                op: "connect to the store again",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.errno(), Some(libc::ENOENT), "the socket is removed");
    assert!(error.is_fatal());
    // The daemon that is about to end may accept once more.
    let end = loop {
        if let Err(error) = watch.next(Some(Instant::now() + STUCK)) {
            break error;
        }
    };
    assert!(end.is_fatal());
    daemon.begin();
    assert!(store.read("/a").unwrap_err().is_fatal());
}

/// Nobody waits in the store: the descriptor is readable when it is time to look or to connect.
#[test]
fn a_poll_loop_reconnects() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick());
    let watch = store.watch("/w").unwrap();
    for own_fd in [true, false] {
        while watch.try_next().unwrap().is_some() {}
        daemon.restart();
        let fd = if own_fd {
            watch.poll_fd().unwrap()
        } else {
            store.as_fd()
        };
        let end = Instant::now() + STUCK;
        let event = loop {
            assert!(Instant::now() < end, "no event");
            match watch.try_next().unwrap() {
                Some(event) if event.reconnected => break event,
                Some(_) => continue,
                None => {}
            }
            let limit = PollTimeout::try_from(STUCK).unwrap();
            let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], limit);
            assert_eq!(ready, Ok(1), "the descriptor stays silent");
        };
        assert!(event.rescan);
    }
}

#[test]
fn a_connection_that_cannot_be_made_again_is_refused() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let store = Store::from_fd(ours.into()).unwrap();
    let error = store.reconnecting(quick()).unwrap_err();
    assert!(
        matches!(error, Error::Invalid(Invalid::NoPlace)),
        "{error:?}"
    );
    let daemon = Restarts::start();
    let store = Store::connect(daemon.socket()).unwrap();
    let _watch = store.watch("/w").unwrap();
    let error = store.reconnecting(quick()).unwrap_err();
    assert!(
        matches!(error, Error::Invalid(Invalid::Shared)),
        "{error:?}"
    );
}

/// A process of its own reads the variable: setting it in this one would reach other tests.
#[test]
fn the_environment_names_the_socket() {
    const NAME: &str = "reconnect::the_environment_names_the_socket";
    const CHILD: &str = "XEN_STORE_TEST_CHILD";
    let store = Store::connect_from_environment().unwrap();
    if std::env::var_os(CHILD).is_some() {
        store.unwrap().write("/from/child", "1").unwrap();
        return;
    }
    assert!(store.is_none(), "the variable is not set");
    let daemon = Restarts::start();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, "1")
        .env("XENSTORED_PATH", daemon.socket())
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    assert_eq!(daemon.other().read("/from/child").unwrap(), b"1");
}
