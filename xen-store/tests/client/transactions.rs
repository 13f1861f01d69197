//! Transactions: ids in the header, commit, abort on drop, bounded retry.

use std::thread;
use std::time::Duration;

use xen_store::wire::MsgType;
use xen_store::{Error, MAX_ATTEMPTS, XsError};

use crate::fake_daemon::{FakeDaemon, pair};

#[track_caller]
fn grant(peer: &mut FakeDaemon, id: u32) {
    let request = peer.expect(MsgType::TRANSACTION_START, b"\0");
    assert_eq!(request.tx_id, 0, "a start has no transaction id");
    peer.reply(&request, format!("{id}\0").as_bytes());
}

#[test]
fn operations_carry_the_id_and_commit_ends_it() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        grant(&mut peer, 77);
        for (kind, payload) in [
            (MsgType::WRITE, &b"/a\0x"[..]),
            (MsgType::READ, b"/a\0"),
            (MsgType::TRANSACTION_END, b"T\0"),
        ] {
            let request = peer.expect(kind, payload);
            assert_eq!(request.tx_id, 77);
            peer.ok(&request);
        }
        assert_eq!(peer.try_recv(), None, "no abort after a commit");
    });
    let transaction = store.transaction().unwrap();
    transaction.write("/a", "x").unwrap();
    transaction.read("/a").unwrap();
    assert!(transaction.commit().unwrap());
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn drop_and_panic_abort() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        for id in [1, 2] {
            grant(&mut peer, id);
            let end = peer.expect(MsgType::TRANSACTION_END, b"F\0");
            assert_eq!(end.tx_id, id);
            peer.ok(&end);
        }
        peer.serve_ok();
    });
    drop(store.transaction().unwrap());
    let panicking = store.clone();
    thread::spawn(move || {
        let _transaction = panicking.transaction().unwrap();
        std::panic::resume_unwind(Box::new(()));
    })
    .join()
    .unwrap_err();
    store.mkdir("/a").unwrap();
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn a_conflict_is_not_an_error_of_commit() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        grant(&mut peer, 5);
        let end = peer.recv();
        peer.refuse(&end, "EAGAIN");
    });
    assert!(!store.transaction().unwrap().commit().unwrap());
    daemon.join().unwrap();
}

#[test]
fn with_transaction_repeats_on_conflict_only() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        for id in 1..=3 {
            grant(&mut peer, id);
            let end = peer.expect(MsgType::TRANSACTION_END, b"T\0");
            if id < 3 {
                peer.refuse(&end, "EAGAIN")
            } else {
                peer.ok(&end)
            }
        }
        grant(&mut peer, 4);
        let end = peer.expect(MsgType::TRANSACTION_END, b"F\0");
        peer.ok(&end);
        peer.serve_ok();
    });
    let mut runs = 0;
    let value = store.with_transaction(|_| {
        runs += 1;
        Ok(runs)
    });
    assert_eq!(value.unwrap(), 3);
    let error = store
        .with_transaction(|_| -> xen_store::Result<()> {
            Err(Error::Daemon {
                op: MsgType::READ,
                code: XsError::ENOENT,
            })
        })
        .unwrap_err();
    assert!(error.is_not_found());
    store.mkdir("/a").unwrap();
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn with_transaction_gives_up_after_its_attempts() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let mut starts = 0;
        while let Some(request) = peer.try_recv() {
            match request.kind {
                MsgType::TRANSACTION_START => {
                    starts += 1;
                    peer.reply(&request, b"9\0");
                }
                _ => peer.refuse(&request, "EAGAIN"),
            }
        }
        starts
    });
    let error = store.with_transaction(|_| Ok(())).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Conflict {
                attempts: MAX_ATTEMPTS
            }
        ),
        "{error:?}"
    );
    assert!(error.is_again());
    drop(store);
    assert_eq!(daemon.join().unwrap(), MAX_ATTEMPTS);
}

/// Started after its requester gave up, a transaction would use up the domain's few forever.
#[test]
fn a_transaction_granted_too_late_is_aborted() {
    let (store, mut peer) = pair();
    store
        .with_timeout(Some(Duration::from_millis(1)))
        .transaction()
        .unwrap_err();
    let daemon = thread::spawn(move || {
        let start = peer.recv();
        let read = peer.expect(MsgType::READ, b"/a\0");
        peer.reply(&start, b"31\0");
        let end = peer.expect(MsgType::TRANSACTION_END, b"F\0");
        assert_eq!(end.tx_id, 31);
        peer.ok(&end);
        peer.reply(&read, b"x");
        peer.serve_ok();
    });
    assert_eq!(store.read("/a").unwrap(), b"x");
    drop(store);
    daemon.join().unwrap();
}
