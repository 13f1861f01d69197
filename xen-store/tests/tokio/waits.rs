//! Waiting for many nodes and for conditions over them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use xen_sys::DomId;

use crate::runtimes::on_each;
use crate::{client, server};

/// Nothing here takes that long unless a task was not woken.
const STUCK: Duration = Duration::from_secs(20);

#[test]
fn the_watches_of_a_set_share_a_queue() {
    on_each(|| async {
        let (server, store) = server();
        let other = client(&server, DomId::DOM0);
        let set = store.watch_set().unwrap();
        for path in ["/a", "/b", "/a"] {
            set.add(path).await.unwrap();
        }
        assert_eq!(set.paths(), ["/a", "/b"]);
        assert_eq!(server.stats().watches, 2);
        let next = || async {
            let (watched, event) = timeout(STUCK, set.next()).await.unwrap().unwrap();
            (watched.to_string(), event.path.to_string())
        };
        for path in ["/a", "/b"] {
            assert_eq!(next().await, (path.to_owned(), path.to_owned()));
        }
        other.write("/b/1", "").await.unwrap();
        assert_eq!(next().await, ("/b".to_owned(), "/b/1".to_owned()));
        // A wait that is dropped loses no event.
        drop(timeout(Duration::from_millis(1), set.next()).await);
        assert!(set.remove("/b"));
        other.write("/b/2", "").await.unwrap();
        other.write("/a/1", "").await.unwrap();
        assert_eq!(next().await, ("/a".to_owned(), "/a/1".to_owned()));
        assert_eq!(set.try_next().unwrap(), None);
        drop(set);
        store.exists("/a").await.unwrap();
        assert_eq!(server.stats().watches, 0);
    });
}

#[test]
fn a_condition_is_run_again_when_a_node_that_it_read_has_changed() {
    on_each(|| async {
        let (server, store) = server();
        let other = client(&server, DomId::DOM0);
        let writer = tokio::spawn(async move {
            for (path, value) in [("/l/x", "1"), ("/l/y", "4"), ("/b", ""), ("/l/x", "4")] {
                other.write(path, value).await.unwrap();
            }
        });
        let looks = AtomicU32::new(0);
        let condition = store.wait_condition(|reads| {
            looks.fetch_add(1, Ordering::Relaxed);
            async move {
                let list = reads.directory("/l").await.unwrap_or_default();
                let paths: Vec<String> = list.iter().map(|n| format!("/l/{n}")).collect();
                let values = reads.read_many(&paths).await;
                let all = values
                    .iter()
                    .all(|value| matches!(value, Ok(v) if v == b"4"));
                let is_there = reads.exists("/b").await?;
                Ok((is_there && all && list.len() == 2).then_some(list))
            }
        });
        let list = timeout(STUCK, condition).await.unwrap().unwrap();
        assert_eq!(list.unwrap(), ["x", "y"]);
        assert!(looks.load(Ordering::Relaxed) <= 12, "it is run for nothing");
        writer.await.unwrap();
        store.exists("/b").await.unwrap();
        assert_eq!(server.stats().watches, 0, "a watch stays behind");
        let nothing = store.wait_condition(|_| async { Ok(None::<()>) }).await;
        assert_eq!(nothing.unwrap(), None);
    });
}
