//! Permissions: who sees what, who owns what, who may change it.

use xen_store::wire::MsgType;
use xen_store::{Access, Permissions};

use crate::raw::{Raw, clients, dom, name, start};

#[test]
fn the_first_entry_owns_and_is_the_default_of_all_others() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let dom6 = server.connect(dom(6)).unwrap();
    dom0.write("/n", "v").unwrap();
    dom0.set_permissions("/n", &Permissions::new(dom(5), Access::Read))
        .unwrap();
    dom5.write("/n", "by its owner").unwrap();
    assert_eq!(dom6.read("/n").unwrap(), b"by its owner");
    assert_eq!(name(dom6.write("/n", "x")), "EACCES");
    let perms = Permissions::owner_none(dom(5)).grant_write(dom(6));
    dom5.set_permissions("/n", &perms).unwrap();
    dom6.write("/n", "blind").unwrap();
    assert_eq!(name(dom6.read("/n")), "EACCES");
    assert_eq!(dom5.permissions("/n").unwrap(), perms);
    assert_eq!(dom0.read("/n").unwrap(), b"blind");
}

/// The right to write above is enough to be informed, although SET_PERMS needs ownership.
#[test]
fn set_perms_on_a_missing_node_below_a_writable_one_fails_with_enoent() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    dom0.write("/shared", "").unwrap();
    let perms = Permissions::owner_none(dom(5));
    assert_eq!(name(dom5.set_permissions("/shared/none", &perms)), "EACCES");
    dom0.set_permissions(
        "/shared",
        &Permissions::owner_none(dom(0)).grant_write(dom(5)),
    )
    .unwrap();
    assert_eq!(name(dom5.set_permissions("/shared/none", &perms)), "ENOENT");
    assert_eq!(name(dom5.set_permissions("/shared", &perms)), "EACCES");
}

/// Only a domain that may see the nearest node above is informed whether a node exists.
#[test]
fn absence_is_reported_only_to_who_may_look() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    dom0.write("/secret/there", "").unwrap();
    dom0.write("/open/closed", "").unwrap();
    dom0.set_permissions("/open", &Permissions::new(dom(0), Access::Read))
        .unwrap();
    assert_eq!(name(dom5.read("/secret/there")), "EACCES");
    assert_eq!(name(dom5.read("/secret/not/there")), "EACCES");
    assert_eq!(name(dom5.read("/open/closed")), "EACCES");
    assert_eq!(name(dom5.read("/open/not/there")), "ENOENT");
    assert_eq!(name(dom5.write("/open/not/there", "")), "EACCES");
    assert_eq!(name(dom5.rm("/open/not")), "EACCES");
    assert_eq!(name(dom5.directory("/open/closed")), "EACCES");
}

/// "You can allow someone into a specific node without allowing it in the parents."
#[test]
fn a_node_is_open_by_its_own_list_alone() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    dom0.write("/shut/open", "v").unwrap();
    dom0.set_permissions(
        "/shut/open",
        &Permissions::owner_none(dom(0)).grant_read(dom(5)),
    )
    .unwrap();
    assert_eq!(dom5.read("/shut/open").unwrap(), b"v");
    assert_eq!(name(dom5.read("/shut")), "EACCES");
}

#[test]
fn new_nodes_inherit_and_guests_own_what_they_create() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let perms = Permissions::owner_none(dom(5)).grant(dom(6), Access::ReadWrite);
    dom0.mkdir("/i").unwrap();
    dom0.set_permissions("/i", &perms).unwrap();
    dom5.write("/i/by5/deep", "").unwrap();
    server.connect(dom(6)).unwrap().write("/i/by6", "").unwrap();
    dom0.write("/i/by0", "").unwrap();
    assert_eq!(
        dom0.permissions("/i/by5/deep").unwrap().to_string(),
        "n5 b6"
    );
    assert_eq!(dom0.permissions("/i/by6").unwrap().to_string(), "n6 b6");
    assert_eq!(
        dom0.permissions("/i/by0").unwrap().to_string(),
        "n5 b6",
        "domain 0 inherits all"
    );
}

/// "the owner can only be modified by the control domain"
#[test]
fn only_the_owner_sets_permissions_and_only_domain_0_the_owner() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    dom5.write("data/n", "").unwrap();
    let path = "/local/domain/5/data/n";
    assert_eq!(
        name(dom5.set_permissions(path, &Permissions::owner_none(dom(6)))),
        "EPERM"
    );
    let shared = Permissions::new(dom(5), Access::ReadWrite);
    dom5.set_permissions(path, &shared).unwrap();
    let dom6 = server.connect(dom(6)).unwrap();
    dom6.write(path, "may write").unwrap();
    assert_eq!(name(dom6.set_permissions(path, &shared)), "EACCES");
    dom0.set_permissions(path, &Permissions::owner_none(dom(6)))
        .unwrap();
    assert_eq!(name(dom5.read(path)), "EACCES");
}

#[test]
fn malformed_permissions_are_refused() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(0));
    raw.ask(MsgType::MKDIR, b"/n\0");
    for payload in [
        &b"/n\0"[..],
        b"/n",
        b"",
        b"/n\0x5\0",
        b"/n\0r\0",
        b"/n\0r5x\0",
        b"/n\x005\0",
        b"/n\0\0",
    ] {
        let reply = raw.ask(MsgType::SET_PERMS, payload);
        assert_eq!(reply, "ERROR EINVAL", "{}", payload.escape_ascii());
    }
    assert_eq!(raw.ask(MsgType::SET_PERMS, b"/none\0n0\0"), "ERROR ENOENT");
    assert_eq!(
        raw.ask(MsgType::SET_PERMS, b"/n\0n32752\0"),
        "ERROR ENOENT",
        "no such owner"
    );
    assert_eq!(
        raw.ask(MsgType::SET_PERMS, b"/n\0n0\0r32752\0"),
        r#"SET_PERMS "OK\x00""#
    );
}

#[test]
fn domains_that_the_oracle_denies_cannot_own() {
    let config = xen_store_server::Config::new().domain_exists(|id| id.as_u16() < 10);
    let server = crate::raw::start_with(config);
    let (dom0, _) = clients(&server);
    dom0.mkdir("/n").unwrap();
    dom0.set_permissions("/n", &Permissions::owner_none(dom(9)))
        .unwrap();
    assert_eq!(
        name(dom0.set_permissions("/n", &Permissions::owner_none(dom(10)))),
        "ENOENT"
    );
    assert!(!server.introduce(dom(10)));
}

/// "This grants domain <domid> full access to paths owned by <tdomid>. Domain <domid> also
/// inherits all permissions granted to <tdomid> on all other paths."
#[test]
fn a_target_lends_its_rights() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let dom6 = server.connect(dom(6)).unwrap();
    dom5.write("data/own", "5").unwrap();
    dom0.write("/granted", "v").unwrap();
    dom0.set_permissions(
        "/granted",
        &Permissions::owner_none(dom(0)).grant_read(dom(5)),
    )
    .unwrap();
    assert_eq!(name(dom6.read("/local/domain/5/data/own")), "EACCES");
    dom0.set_target(dom(6), dom(5)).unwrap();
    dom6.write("/local/domain/5/data/own", "6").unwrap();
    dom6.set_permissions(
        "/local/domain/5/data/own",
        &Permissions::new(dom(5), Access::Read),
    )
    .unwrap();
    assert_eq!(dom6.read("/granted").unwrap(), b"v");
    assert_eq!(
        name(dom5.read("/local/domain/6/data")),
        "EACCES",
        "not the other way round"
    );
    let later = server.connect(dom(6)).unwrap();
    assert_eq!(
        later.read("/granted").unwrap(),
        b"v",
        "a later connection has it too"
    );
    dom0.release(dom(5)).unwrap();
    server.add_domain(dom(5));
    dom0.write("/local/domain/5/data/new", "").unwrap();
    assert_eq!(
        name(later.read("/local/domain/5/data/new")),
        "EACCES",
        "a new domain is no target"
    );
}

/// Domain ids are used again: the new domain must not inherit what the old one was given.
#[test]
fn rights_end_with_the_domain_they_were_given_to() {
    let server = start();
    let (dom0, _) = clients(&server);
    dom0.write("/n", "v").unwrap();
    let perms = Permissions::owner_none(dom(0)).grant_read(dom(5));
    dom0.set_permissions("/n", &perms).unwrap();
    dom0.release(dom(5)).unwrap();
    server.add_domain(dom(5));
    let new = server.connect(dom(5)).unwrap();
    assert_eq!(name(new.read("/n")), "EACCES");
    dom0.write("/n/below", "").unwrap();
    dom0.write("/n", "touched").unwrap();
    assert_eq!(
        name(new.read("/n")),
        "EACCES",
        "a change of the node does not revive them"
    );
    assert_eq!(name(new.read("/n/below")), "EACCES", "nor does inheritance");
    dom0.set_permissions("/n", &perms).unwrap();
    assert_eq!(new.read("/n").unwrap(), b"touched");
}
