//! Transactions: invisible to other clients until committed, refused when built on what has
//! changed.

use std::thread;

use xen_store::wire::MsgType;
use xen_store::{Error, Store, Transaction};

use crate::raw::{Raw, clients, dom, name, start};

#[test]
fn changes_are_seen_inside_at_once_and_outside_after_the_commit() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/a", "old").unwrap();
    let t = store.transaction().unwrap();
    t.write("/a", "new").unwrap();
    t.write("/b/c", "made").unwrap();
    assert_eq!(t.read("/a").unwrap(), b"new");
    assert_eq!(t.directory("/b").unwrap(), ["c"]);
    assert_eq!(store.read("/a").unwrap(), b"old");
    assert!(!store.exists("/b").unwrap());
    assert!(t.commit().unwrap());
    assert_eq!(store.read("/a").unwrap(), b"new");
    assert_eq!(store.read("/b/c").unwrap(), b"made");
    assert_eq!(store.control("check", &[]).unwrap(), "OK");
}

#[test]
fn an_aborted_or_lost_transaction_leaves_nothing() {
    let server = start();
    let (store, _) = clients(&server);
    let t = store.transaction().unwrap();
    t.write("/a", "x").unwrap();
    t.abort().unwrap();
    let other = server.connect(dom(0)).unwrap();
    let t = other.transaction().unwrap();
    t.write("/a", "x").unwrap();
    assert_eq!(server.stats().transactions, 1);
    std::mem::forget(t);
    drop(other);
    server.drop_connections(dom(0));
    let store = server.connect(dom(0)).unwrap();
    assert!(!store.exists("/a").unwrap());
    assert_eq!(server.stats().transactions, 0);
}

/// As in xenstored, whose transaction sees each node as it was at its first use.
#[test]
fn a_removal_that_meets_a_list_of_another_time_stops_there() {
    let server = start();
    let (store, _) = clients(&server);
    for path in ["/t/a", "/t/b", "/t/c"] {
        store.write(path, "").unwrap();
    }
    // The list names a child that was removed since.
    let t = store.transaction().unwrap();
    assert_eq!(t.directory("/t").unwrap(), ["a", "b", "c"]);
    store.rm("/t/b").unwrap();
    assert_eq!(name(t.rm("/t")), "EIO");
    let left = ["/t", "/t/a", "/t/c"].map(|path| t.exists(path).unwrap());
    assert_eq!(left, [true, false, true]);
    assert!(!t.commit().unwrap());

    // The list lacks a child that was made since.
    let t = store.transaction().unwrap();
    assert_eq!(t.directory("/t").unwrap(), ["a", "c"]);
    store.write("/t/new/x", "").unwrap();
    assert_eq!(name(t.rm("/t/new")), "EIO");
    let left = ["/t/new", "/t/new/x"].map(|path| t.exists(path).unwrap());
    assert_eq!(left, [false, false]);
    assert!(!t.commit().unwrap());
    assert_eq!(store.directory("/t").unwrap(), ["a", "c", "new"]);
    assert_eq!(store.control("check", &[]).unwrap(), "OK");
}

/// One transaction does `inside`, another client does `outside` before it commits.
#[track_caller]
fn check(inside: &str, outside: &str, commits: bool) {
    let server = start();
    let (store, _) = clients(&server);
    for path in ["/a", "/a/b", "/c"] {
        store.write(path, "old").unwrap();
    }
    let t = store.transaction().unwrap();
    let split = |text: &str| {
        text.split_once(' ')
            .map(|(o, p)| (o.to_owned(), p.to_owned()))
            .unwrap()
    };
    let (op, path) = split(inside);
    // A node that is not there is a result too.
    let _ = match op.as_str() {
        "read" => t.read(&path).map(drop),
        "write" => t.write(&path, "in"),
        "rm" => t.rm(&path),
        _ => t.directory(&path).map(drop),
    };
    let (op, path) = split(outside);
    match op.as_str() {
        "write" => store.write(&path, "out").unwrap(),
        "rm" => store.rm(&path).unwrap(),
        _ => {
            let perms = store.permissions(&path).unwrap();
            store.set_permissions(&path, &perms).unwrap();
        }
    }
    let before = store.read("/a/b").ok();
    assert_eq!(t.commit().unwrap(), commits, "{inside} against {outside}");
    if !commits {
        assert_eq!(store.read("/a/b").ok(), before, "nothing was carried out");
    }
}

#[test]
fn conflicts_are_about_what_the_transaction_used() {
    check("read /a/b", "write /a/b", false);
    check("read /a/b", "perms /a/b", false);
    check("read /a/b", "rm /a/b", false);
    check("read /a/b", "rm /a", false);
    check("write /a/b", "write /a/b", false);
    check("rm /a/b", "write /a/b", false);
    check("read /none", "write /none", false);
    check("dir /a", "write /a/new", false);
    check("write /a/one", "write /a/two", false);
    check("read /a/b", "write /c", true);
    check("write /a/b", "write /c", true);
    check("read /a/b", "write /a/c", true);
    check("write /a/b", "write /a", true);
    check("dir /a", "write /a/b", true);
}

#[test]
fn of_two_conflicting_transactions_the_first_commits() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/count", "0").unwrap();
    let (first, second) = (store.transaction().unwrap(), store.transaction().unwrap());
    for t in [&first, &second] {
        let count: u32 = t.read_str("/count").unwrap().parse().unwrap();
        t.write("/count", (count + 1).to_string()).unwrap();
    }
    assert!(second.commit().unwrap());
    assert!(!first.commit().unwrap());
    assert_eq!(store.read("/count").unwrap(), b"1");
}

#[test]
fn created_and_removed_inside_is_as_if_it_never_was() {
    let server = start();
    let (store, _) = clients(&server);
    let before = server.stats().nodes;
    let t = store.transaction().unwrap();
    t.write("/x/y", "").unwrap();
    t.rm("/x").unwrap();
    assert!(!t.exists("/x/y").unwrap());
    assert!(t.commit().unwrap());
    assert_eq!(server.stats().nodes, before);
    assert_eq!(store.control("check", &[]).unwrap(), "OK");
}

#[test]
fn with_transaction_counts_right_under_contention() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/count", "0").unwrap();
    let add = |store: Store| {
        for _ in 0..25 {
            // The bounded number of attempts may run out; the caller continues.
            while let Err(error) = store.with_transaction(|t| {
                let count: u32 = t.read_str("/count")?.parse().unwrap();
                t.write("/count", (count + 1).to_string())
            }) {
                assert!(error.is_again(), "{error}");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            let store = server.connect(dom(0)).unwrap();
            scope.spawn(move || add(store));
        }
        add(store.clone());
    });
    assert_eq!(store.read("/count").unwrap(), b"100");
}

/// Far more clients in each other's way than a host has; the back-off spreads them out.
#[test]
fn many_clients_that_count_all_get_their_turn() {
    const CLIENTS: usize = 32;
    const EACH: usize = 20;
    let server = start();
    let (store, _) = clients(&server);
    store.write("/count", "0").unwrap();
    let conflicts: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let store = server.connect(dom(0)).unwrap();
                scope.spawn(move || {
                    let increment = |t: &Transaction| {
                        let count: usize = t.read_str("/count")?.parse().unwrap();
                        t.write("/count", (count + 1).to_string())
                    };
                    (0..EACH)
                        .filter(|_| match store.with_transaction(increment) {
                            Ok(()) => false,
                            Err(Error::Conflict { .. }) => true,
                            Err(error) => panic!("{error:?}"),
                        })
                        .count()
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    let count: usize = store.read_str("/count").unwrap().parse().unwrap();
    assert_eq!((conflicts, count), (0, CLIENTS * EACH));
    assert_eq!(server.stats().transactions, 0);
}

/// The list of children and the nodes that exist do not agree.
#[test]
fn a_node_created_outside_meanwhile_cannot_be_removed_inside() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/a/b", "").unwrap();
    let t = store.transaction().unwrap();
    assert_eq!(t.directory("/a").unwrap(), ["b"]);
    store.write("/a/new", "").unwrap();
    assert_eq!(name(t.rm("/a/new")), "EIO");
    assert!(!t.commit().unwrap());
    assert!(store.exists("/a/new").unwrap());
    store.rm("/a/new").unwrap();
    assert_eq!(store.control("check", &[]).unwrap(), "OK");
}

#[test]
fn ids_are_checked_and_belong_to_their_connection() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(5));
    let mut other = Raw::connect(&server, dom(5));
    assert_eq!(raw.ask_in(1, MsgType::READ, b"data\0"), "ERROR ENOENT");
    assert_eq!(raw.ask(MsgType::TRANSACTION_END, b"T\0"), "ERROR ENOENT");
    assert_eq!(
        raw.ask(MsgType::TRANSACTION_START, b"\0"),
        r#"TRANSACTION_START "1\x00""#
    );
    assert_eq!(other.ask_in(1, MsgType::READ, b"data\0"), "ERROR ENOENT");
    assert_eq!(
        raw.ask_in(1, MsgType::TRANSACTION_START, b"\0"),
        "ERROR EBUSY"
    );
    assert_eq!(
        raw.ask_in(1, MsgType::TRANSACTION_END, b"X\0"),
        "ERROR EINVAL"
    );
    assert_eq!(raw.ask_in(1, MsgType::READ, b"data\0"), r#"READ """#);
    assert_eq!(
        raw.ask_in(1, MsgType::TRANSACTION_END, b"T\0"),
        r#"TRANSACTION_END "OK\x00""#
    );
    assert_eq!(
        raw.ask_in(1, MsgType::TRANSACTION_END, b"T\0"),
        "ERROR ENOENT"
    );
    // "The tx_id in a WATCH request is ignored."
    assert_eq!(
        raw.ask_in(99, MsgType::WATCH, b"data\0t\0"),
        r#"WATCH "OK\x00""#
    );
}

#[test]
fn permissions_hold_inside_too() {
    let server = start();
    let (_, dom5) = clients(&server);
    let t = dom5.transaction().unwrap();
    assert_eq!(name(t.write("/x", "")), "EACCES");
    t.write("data/x", "").unwrap();
    assert!(t.commit().unwrap());
}
