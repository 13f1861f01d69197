//! A connection that is made again, on a daemon that is gone and started again.

use std::time::Duration;

use tokio::time::timeout;
use xen_store::tokio::Store;
use xen_store::{Error, Reconnect, Repeat};

use crate::restarts::{Restarts, quick};
use crate::runtimes::on_each;

/// Nothing here takes that long unless a task was not woken.
const STUCK: Duration = Duration::from_secs(20);

impl Restarts {
    async fn store(&self, policy: Reconnect) -> Store {
        let store = Store::connect(self.socket()).await.unwrap();
        store.reconnecting(policy).unwrap()
    }
}

#[test]
fn a_watch_outlives_its_daemon_and_reports_that_changes_may_have_been_missed() {
    on_each(|| async {
        let mut daemon = Restarts::start();
        let store = daemon.store(quick()).await;
        let watch = store.watch("/w").await.unwrap();
        let next = || async { timeout(STUCK, watch.next()).await.unwrap().unwrap() };
        assert!(!next().await.reconnected);
        for _ in 0..3 {
            daemon.restart();
            // The daemon's first events may come between.
            let event = loop {
                let event = next().await;
                if event.reconnected {
                    break event;
                }
            };
            assert!(event.rescan, "{event:?}");
            assert_eq!(&*event.path, "/w");
            daemon.other().write("/w/a", "1").unwrap();
            // A connection to the daemon that is about to end may be lost in between.
            while !matches!(store.read("/w/a").await, Ok(value) if value == b"1") {
                next().await;
            }
        }
    });
}

#[test]
fn requests_wait_for_the_next_connection() {
    on_each(|| async {
        let mut daemon = Restarts::start();
        let store = daemon.store(quick().repeat(Repeat::Idempotent)).await;
        store.write("/a", "1").await.unwrap();
        daemon.end();
        let mut waiting = Box::pin(store.write("/a", "2"));
        let early = timeout(Duration::from_millis(50), &mut waiting).await;
        assert!(early.is_err(), "there is no daemon");
        daemon.begin();
        timeout(STUCK, waiting).await.unwrap().unwrap();
        assert_eq!(store.read("/a").await.unwrap(), b"2");
    });
}

/// The task of the connection connects, not the one that waits longest.
#[test]
fn a_request_that_is_dropped_while_the_store_is_lost_leaves_the_others_theirs() {
    on_each(|| async {
        let mut daemon = Restarts::start();
        let store = daemon.store(quick().repeat(Repeat::Reads)).await;
        daemon.end();
        let mut dropped = Box::pin(store.exists("/a"));
        let other = tokio::spawn({
            let store = store.clone();
            async move { store.exists("/a").await }
        });
        let early = timeout(Duration::from_millis(50), &mut dropped).await;
        assert!(early.is_err(), "there is no daemon");
        drop(dropped);
        daemon.begin();
        let answer = timeout(STUCK, other).await.unwrap().unwrap();
        assert!(!answer.unwrap());
    });
}

#[test]
fn a_lost_transaction_is_named_or_begun_again() {
    on_each(|| async {
        let mut daemon = Restarts::start();
        let store = daemon.store(quick().repeat(Repeat::Reads)).await;
        let lost = store.transaction().await.unwrap();
        daemon.restart();
        timeout(STUCK, store.exists("/a")).await.unwrap().unwrap();
        let own = store.transaction().await.unwrap();
        own.write("/t", "own").await.unwrap();
        let error = lost.write("/t", "lost").await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Lost {
                    transaction: Some(_),
                    may_be_done: false,
                    ..
                }
            ),
            "{error:?}"
        );
        drop(lost);
        assert!(own.commit().await.unwrap());
        assert_eq!(store.read("/t").await.unwrap(), b"own");

        let mut runs = 0;
        let value = store.with_transaction(|t| {
            runs += 1;
            if runs == 1 {
                daemon.restart();
            }
            let runs = runs;
            async move {
                t.write("/u", "1").await?;
                Ok(runs)
            }
        });
        assert_eq!(timeout(STUCK, value).await.unwrap().unwrap(), 2);
    });
}

#[test]
fn attempts_that_are_used_up_end_the_connection() {
    on_each(|| async {
        let mut daemon = Restarts::start();
        let store = daemon.store(quick().attempts(Some(3))).await;
        let watch = store.watch("/w").await.unwrap();
        watch.next().await.unwrap();
        daemon.end();
        // The daemon that is about to end may accept once more.
        let end = loop {
            match timeout(STUCK, watch.next()).await.unwrap() {
                Ok(event) => assert_eq!(&*event.path, "/w"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(
                end,
                Error::Os {
                    op: "connect to the store again",
                    ..
                }
            ),
            "{end:?}"
        );
        assert!(store.read("/a").await.unwrap_err().is_fatal());
    });
}

/// While it pauses, too: the task of the connection ends with the last handle.
#[test]
fn a_store_that_is_dropped_while_it_is_lost_leaves_no_task() {
    on_each(|| async {
        let mut daemon = Restarts::start();
        let hour = Duration::from_secs(3600);
        let policy = Reconnect::new().first_pause(hour).longest_pause(hour);
        let store = daemon.store(policy).await;
        let runtime = tokio::runtime::Handle::current();
        let with_it = runtime.metrics().num_alive_tasks();
        daemon.end();
        // The loss is seen and the first attempt fails.
        let read = timeout(Duration::from_millis(50), store.read("/a")).await;
        assert!(!matches!(read, Ok(Ok(_))));
        drop(store);
        let gone = async {
            while runtime.metrics().num_alive_tasks() >= with_it {
                tokio::task::yield_now().await;
            }
        };
        timeout(STUCK, gone).await.unwrap();
    });
}
