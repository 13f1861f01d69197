//! Quotas: where each one bites, and that what was used comes back.

use xen_store::wire::MsgType;
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Quota};

use crate::raw::{Raw, clients, dom, name, start, start_with};

fn limited(change: impl FnOnce(&mut Quota)) -> xen_store_server::Server {
    let mut quota = Quota::default();
    change(&mut quota);
    start_with(Config::new().quota(quota))
}

/// `data`, made with the domain, is the first of its nodes.
#[test]
fn nodes_are_counted_by_owner() {
    let server = limited(|quota| quota.nodes = 5);
    let (dom0, dom5) = clients(&server);
    for n in 0..4 {
        dom5.write(&format!("data/{n}"), "").unwrap();
    }
    assert_eq!(name(dom5.write("data/4", "")), "ENOSPC");
    dom5.write("data/3", "existing ones can change").unwrap();
    dom5.rm("data/0").unwrap();
    assert_eq!(name(dom5.write("data/x/y", "")), "ENOSPC", "both or none");
    assert!(!dom5.exists("data/x").unwrap());
    dom5.write("data/4", "").unwrap();
    dom0.write("/local/domain/5/data/5", "").unwrap();
    dom0.set_permissions("/local/domain/5/data/4", &Permissions::owner_none(dom(0)))
        .unwrap();
    dom0.rm("/local/domain/5/data/5").unwrap();
    dom5.write("data/5", "").unwrap();
    for n in 0..50 {
        dom0.write(&format!("/by0/{n}"), "").unwrap();
    }
}

#[test]
fn a_transaction_that_creates_too_many_cannot_be_committed() {
    let server = limited(|quota| quota.nodes = 5);
    let (_, dom5) = clients(&server);
    let t = dom5.transaction().unwrap();
    for n in 0..4 {
        t.write(&format!("data/{n}"), "").unwrap();
    }
    assert_eq!(name(t.write("data/4", "")), "ENOSPC");
    assert_eq!(name(t.commit()), "ENOSPC");
    assert_eq!(dom5.directory("data").unwrap(), [""; 0]);
    let t = dom5.transaction().unwrap();
    for n in 0..3 {
        t.write(&format!("data/{n}"), "").unwrap();
    }
    assert!(t.commit().unwrap());
}

/// xenstored writes the nodes of one request from the lowest up: one that cannot be written leaves
/// others behind, which a transaction cannot undo.
#[test]
fn a_transaction_in_which_a_create_fails_half_way_cannot_be_committed() {
    let server = limited(|quota| quota.nodes = 5);
    let (_, dom5) = clients(&server);
    let t = dom5.transaction().unwrap();
    for n in 0..3 {
        t.write(&format!("data/{n}"), "").unwrap();
    }
    assert_eq!(name(t.write("data/x/y", "")), "ENOSPC");
    assert_eq!(name(t.commit()), "ENOMEM");

    let t = dom5.transaction().unwrap();
    assert_eq!(name(t.write("data/big", vec![b'v'; 2048])), "ENOSPC");
    assert_eq!(name(t.commit()), "ENOMEM");
    assert_eq!(dom5.directory("data").unwrap(), [""; 0]);
    assert_eq!(server.stats().transactions, 0);
}

/// One more than the number is admitted.
#[test]
fn watches_are_limited_and_come_back() {
    let server = limited(|quota| quota.watches = 3);
    let (dom0, dom5) = clients(&server);
    let mut watches: Vec<_> = (0..4)
        .map(|n| dom5.watch(&format!("data/{n}")).unwrap())
        .collect();
    assert_eq!(name(dom5.watch("data/x")), "E2BIG");
    let other = server.connect(dom(5)).unwrap();
    assert_eq!(
        name(other.watch("data/x")),
        "E2BIG",
        "counted for the whole domain"
    );
    watches.pop();
    dom5.mkdir("data").unwrap();
    watches.push(other.watch("data/x").unwrap());
    let many: Vec<_> = (0..50)
        .map(|n| dom0.watch(&format!("/{n}")).unwrap())
        .collect();
    assert_eq!(server.stats().watches, many.len() + watches.len());
}

#[test]
fn transactions_are_limited_and_come_back() {
    let server = limited(|quota| quota.transactions = 3);
    let (_, dom5) = clients(&server);
    let open = |store: &Store| -> Vec<_> {
        std::iter::from_fn(|| store.transaction().ok())
            .take(100)
            .collect()
    };
    let started = open(&dom5);
    assert_eq!(started.len(), 4);
    assert_eq!(name(dom5.transaction()), "ENOSPC");
    drop(started);
    assert_eq!(open(&dom5).len(), 4);
}

/// 24 bytes and 8 for each permission entry count too; the limit itself is too much.
#[test]
fn node_size_counts_value_children_and_permissions() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let most = 2048 - 24 - 8 - 1;
    dom5.write("data/n", vec![b'v'; most]).unwrap();
    assert_eq!(name(dom5.write("data/n", vec![b'v'; most + 1])), "ENOSPC");
    assert_eq!(
        name(dom5.mkdir("data/n/x")),
        "ENOSPC",
        "a child's name is part of its parent"
    );
    let shared = Permissions::owner_none(dom(5)).grant_read(dom(6));
    assert_eq!(name(dom5.set_permissions("data/n", &shared)), "ENOSPC");
    dom5.write("data/n", vec![b'v'; most - 2]).unwrap();
    dom5.mkdir("data/n/x").unwrap();
    dom0.write("/n", vec![b'v'; 4000]).unwrap();
}

#[test]
fn permission_entries_are_limited() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let five = (10..14).fold(Permissions::owner_none(dom(5)), |p, id| {
        p.grant_read(dom(id))
    });
    dom5.set_permissions("/local/domain/5/data", &five).unwrap();
    let six = five.grant_read(dom(14));
    assert_eq!(
        name(dom5.set_permissions("/local/domain/5/data", &six)),
        "ENOSPC"
    );
    dom0.set_permissions("/local/domain/5/data", &six).unwrap();
}

#[test]
fn nodes_touched_in_a_transaction_are_limited() {
    let server = limited(|quota| quota.transaction_nodes = 3);
    let (_, dom5) = clients(&server);
    for n in 0..3 {
        dom5.write(&format!("data/{n}"), "").unwrap();
    }
    let t = dom5.transaction().unwrap();
    for n in [0, 1, 2, 0] {
        t.read(&format!("data/{n}")).unwrap();
    }
    assert_eq!(name(t.read("data")), "ENOSPC");
    assert_eq!(name(t.commit()), "ENOMEM", "it failed half way");
}

#[test]
fn memory_is_limited_and_comes_back() {
    let server = limited(|quota| quota.memory = 4000);
    let (_, dom5) = clients(&server);
    let value = vec![b'v'; 1500];
    dom5.write("data/a", &value).unwrap();
    dom5.write("data/b", &value).unwrap();
    assert_eq!(name(dom5.write("data/c", &value)), "ENOMEM");
    dom5.rm("data/a").unwrap();
    dom5.write("data/c", &value).unwrap();
    for _ in 0..20 {
        dom5.write("data/d", "x").unwrap();
        dom5.rm("data/d").unwrap();
    }
}

/// The whole account of a domain is balanced again after any amount of use.
#[test]
fn nothing_is_left_in_the_account() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let account = || dom0.control("quota", &["5"]).unwrap();
    let before = account();
    for n in 0..3 {
        dom5.write(&format!("data/{n}/x/y"), "value").unwrap();
        dom5.write(&format!("data/{n}/x"), "longer").unwrap();
        let t = dom5.transaction().unwrap();
        t.write("data/t/u", "v").unwrap();
        t.rm(&format!("data/{n}/x")).unwrap();
        t.set_permissions(
            "/local/domain/5/data/t",
            &Permissions::owner_none(dom(5)).grant_read(dom(6)),
        )
        .unwrap();
        assert!(t.commit().unwrap());
        let watch = dom5.watch("data/t").unwrap();
        drop(dom5.transaction().unwrap());
        drop(watch);
        dom5.rm(&format!("data/{n}")).unwrap();
        dom5.rm("data/t").unwrap();
    }
    assert_eq!(account(), before);
}

#[test]
fn a_domain_can_have_quotas_of_its_own() {
    let server = start();
    let (_, dom5) = clients(&server);
    server.set_quota(
        dom(5),
        Some(Quota {
            nodes: 1,
            ..Quota::default()
        }),
    );
    assert_eq!(name(dom5.mkdir("data/x")), "ENOSPC");
    server.connect(dom(6)).unwrap().mkdir("data/x").unwrap();
    server.set_quota(dom(5), None);
    dom5.mkdir("data/x").unwrap();
    let mut raw = Raw::connect(&server, dom(0));
    assert_eq!(raw.ask(MsgType::CONTROL, b"check\0"), r#"CONTROL "OK\x00""#);
}
