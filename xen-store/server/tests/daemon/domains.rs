//! Domains: introduced, released, shut down; and the requests about the daemon itself.

use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use xen_store::wire::MsgType;
use xen_store::{Error, Invalid, Permissions};
use xen_store_server::{Config, Server};
use xen_sys::{DomId, Port};

use crate::raw::{Raw, clients, dom, name, start, start_with};

#[test]
fn introduced_domains_are_known_until_released() {
    let server = start();
    let (dom0, _) = clients(&server);
    assert!(!dom0.is_introduced(dom(9)).unwrap());
    dom0.introduce(dom(9), 1, Port::new(3)).unwrap();
    assert!(dom0.is_introduced(dom(9)).unwrap() && server.is_introduced(dom(9)));
    assert!(dom0.is_introduced(dom(0)).unwrap());
    assert!(dom0.is_introduced(DomId::SELF).unwrap());
    dom0.release(dom(9)).unwrap();
    assert!(!dom0.is_introduced(dom(9)).unwrap());
    assert_eq!(name(dom0.release(dom(9))), "ENOENT");
    assert_eq!(name(dom0.release(dom(0))), "EINVAL");
    assert_eq!(name(dom0.resume(dom(9))), "ENOENT");
    assert_eq!(name(dom0.set_target(dom(9), dom(5))), "ENOENT");
    assert_eq!(name(dom0.introduce(dom(9), 1, Port::new(0))), "EINVAL");
}

#[test]
fn a_guest_finds_its_number_and_cannot_change_it() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    assert_eq!(dom5.own_domain().unwrap(), dom(5));
    assert_eq!(name(dom5.write("domid", "0")), "EACCES");
    assert_eq!(dom0.read_str("/local/domain/5/domid").unwrap(), "5");
    dom0.write("/local/domain/5/domid", "7").unwrap();
    server.add_domain(dom(5));
    assert_eq!(
        dom5.own_domain().unwrap(),
        dom(7),
        "what the toolstack wrote stays"
    );
}

#[test]
fn requests_about_domains_are_for_domain_0() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(5));
    for kind in [
        MsgType::INTRODUCE,
        MsgType::RELEASE,
        MsgType::RESUME,
        MsgType::SET_TARGET,
        MsgType::IS_DOMAIN_INTRODUCED,
        MsgType::CONTROL,
    ] {
        assert_eq!(raw.ask(kind, b"5\x006\x001\0"), "ERROR EACCES", "{kind}");
    }
}

/// Connections of domain 0 are sockets, not the ring that INTRODUCE is about.
#[test]
fn introducing_domain_0_again_leaves_its_transactions_and_watches() {
    let server = start();
    let (dom0, _) = clients(&server);
    let watch = dom0.watch("/a").unwrap();
    watch.next(None).unwrap();
    let t = dom0.transaction().unwrap();
    t.write("/a", "").unwrap();
    dom0.introduce(dom(0), 1, Port::new(1)).unwrap();
    assert!(t.commit().unwrap());
    assert_eq!(&*watch.next(None).unwrap().unwrap().path, "/a");
}

/// xenstored walks the tree, whose lists are in the order in which nodes were made.
#[test]
fn nodes_of_a_released_domain_are_removed_in_the_order_of_the_lists_but_for_the_root() {
    let server = start();
    let (dom0, _) = clients(&server);
    let owned = Permissions::owner_none(dom(5));
    for path in ["/t/b", "/t/a", "/"] {
        dom0.mkdir(path).unwrap();
        dom0.set_permissions(path, &owned).unwrap();
    }
    let watch = dom0.watch("/t").unwrap();
    watch.next(None).unwrap();
    dom0.release(dom(5)).unwrap();
    let next = || {
        watch
            .try_next()
            .unwrap()
            .map(|event| event.path.to_string())
    };
    assert_eq!([next(), next()].map(Option::unwrap), ["/t/b", "/t/a"]);
    assert!(dom0.exists("/t").unwrap());
}

/// "When a domain is being removed from Xenstore nodes owned by that domain will be removed
/// together with all of those nodes' children."
#[test]
fn release_removes_what_the_domain_owned_and_ends_its_connections() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    dom5.write("data/a/b", "").unwrap();
    dom0.write("/local/domain/5/data/a/by0", "").unwrap();
    dom0.write("/elsewhere/of5", "").unwrap();
    let perms = Permissions::owner_none(dom(5));
    dom0.set_permissions("/elsewhere/of5", &perms).unwrap();
    let watch = dom0.watch("/elsewhere/of5").unwrap();
    watch.next(None).unwrap();
    dom0.release(dom(5)).unwrap();
    assert!(!dom0.exists("/local/domain/5/data").unwrap());
    assert!(
        dom0.exists("/local/domain/5").unwrap(),
        "that one is domain 0's"
    );
    assert!(!dom0.exists("/elsewhere/of5").unwrap());
    assert_eq!(&*watch.next(None).unwrap().unwrap().path, "/elsewhere/of5");
    assert!(matches!(dom5.read("data"), Err(Error::Closed)));
    assert_eq!(dom0.control("check", &[]).unwrap(), "OK");
    assert_eq!(server.stats().domains, 2);
}

#[test]
fn introducing_again_resets_the_domains_connections() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(5));
    raw.ask(MsgType::WATCH, b"data\0t\0");
    raw.next();
    raw.ask(MsgType::TRANSACTION_START, b"\0");
    let (dom0, _) = clients(&server);
    let told = dom0.watch("@introduceDomain").unwrap();
    told.next(None).unwrap();
    dom0.introduce(dom(5), 1, Port::new(3)).unwrap();
    let stats = server.stats();
    assert_eq!((stats.watches, stats.transactions), (1, 0));
    assert_eq!(told.try_next().unwrap(), None, "it is no new domain");
}

#[test]
fn resume_lets_a_shutdown_be_announced_again() {
    let server = start();
    let (dom0, _) = clients(&server);
    let told = dom0.watch("@releaseDomain").unwrap();
    told.next(None).unwrap();
    server.shutdown(dom(5));
    dom0.mkdir("/sync").unwrap();
    assert!(told.try_next().unwrap().is_some());
    server.shutdown(dom(5));
    dom0.resume(dom(5)).unwrap();
    assert_eq!(told.try_next().unwrap(), None);
    server.shutdown(dom(5));
    dom0.mkdir("/sync").unwrap();
    assert!(told.try_next().unwrap().is_some());
}

#[test]
fn control_has_some_commands() {
    let server = start();
    let (dom0, _) = clients(&server);
    assert_eq!(dom0.control("print", &["hello"]).unwrap(), "OK");
    assert!(dom0.control("help", &[]).unwrap().contains("quota"));
    assert!(
        dom0.control("quota", &[])
            .unwrap()
            .contains("nodes            :     1000")
    );
    assert!(
        dom0.control("quota", &["5"])
            .unwrap()
            .starts_with("Domain 5:\nnodes           : ")
    );
    assert_eq!(dom0.control("quota", &["set", "nodes", "7"]).unwrap(), "OK");
    assert!(
        dom0.control("quota", &[])
            .unwrap()
            .contains("nodes            :        7")
    );
    for (command, arguments) in [
        ("quota", &["set", "what", "7"][..]),
        ("live-update", &[]),
        ("", &[]),
        ("check", &["x"]),
    ] {
        assert_eq!(
            name(dom0.control(command, arguments)),
            "EINVAL",
            "{command}"
        );
    }
    assert_eq!(name(dom0.control("quota", &["77"])), "ENOENT");
}

#[test]
fn features_and_quotas_are_later_extensions() {
    let server = start();
    let (dom0, _) = clients(&server);
    assert_eq!(name(dom0.features()), "ENOSYS");
    let server = start_with(Config::new().extensions(true));
    let (dom0, dom5) = clients(&server);
    assert_eq!(dom0.features().unwrap(), 12);
    assert_eq!(dom5.features().unwrap(), 12);
    let mut raw = Raw::connect(&server, dom(0));
    assert_eq!(
        raw.ask(MsgType::SET_FEATURE, b"5\x000\0"),
        "ERROR EBUSY",
        "introduced"
    );
    assert_eq!(
        raw.ask(MsgType::SET_FEATURE, b"9\x0016\0"),
        "ERROR EINVAL",
        "no such feature"
    );
    assert_eq!(
        raw.ask(MsgType::SET_FEATURE, b"9\x000\0"),
        r#"SET_FEATURE "OK\x00""#
    );
    assert_eq!(
        raw.ask(MsgType::GET_FEATURE, b"9\0"),
        r#"GET_FEATURE "0\x00""#
    );
    assert_eq!(
        raw.ask(MsgType::GET_QUOTA, b"nodes\0"),
        r#"GET_QUOTA "1000\x00""#
    );
    assert_eq!(
        raw.ask(MsgType::SET_QUOTA, b"5\0nodes\x007\0"),
        r#"SET_QUOTA "OK\x00""#
    );
    assert_eq!(
        raw.ask(MsgType::GET_QUOTA, b"5\0nodes\0"),
        r#"GET_QUOTA "7\x00""#
    );
    assert_eq!(
        raw.ask(MsgType::GET_QUOTA, b"6\0nodes\0"),
        r#"GET_QUOTA "1000\x00""#
    );
    assert!(
        raw.ask(MsgType::GET_QUOTA, b"")
            .contains("watches transactions node-size")
    );
    assert_eq!(raw.ask(MsgType::GET_QUOTA, b"what\0"), "ERROR EINVAL");
    let mut guest = Raw::connect(&server, dom(5));
    for kind in [MsgType::SET_FEATURE, MsgType::GET_QUOTA, MsgType::SET_QUOTA] {
        assert_eq!(guest.ask(kind, b"5\0nodes\x007\0"), "ERROR EACCES");
    }
    assert_eq!(guest.ask(MsgType::GET_FEATURE, b"5\0"), "ERROR EACCES");
}

#[test]
fn a_socket_is_its_owners_from_the_first_moment_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let changes = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB;
    changes.add_watch(dir.path(), kinds).unwrap();
    let server = Server::start(Config::new()).unwrap();
    server.listen(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // It was made so: between making and changing it others could have connected, as domain 0.
    let seen = changes.read_events().unwrap();
    let seen: Vec<AddWatchFlags> = seen.iter().map(|event| event.mask).collect();
    assert_eq!(seen, [AddWatchFlags::IN_CREATE]);
}

#[test]
fn a_server_listens_cleans_up_and_takes_over_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // Left over: bound once, and no process listens any more.
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::start(Config::new()).unwrap();
    server.listen(&path).unwrap();
    let store = xen_store::Store::connect(&path).unwrap();
    store.write("/x", "by socket").unwrap();
    let taken = Server::start(Config::new())
        .unwrap()
        .listen(&path)
        .unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(
        store.read("/x").unwrap(),
        b"by socket",
        "the first one is undisturbed"
    );
    drop(server);
    assert!(!path.exists());
    assert!(matches!(store.read("/x"), Err(Error::Closed)));
    let gone = xen_store::Store::connect(&path).unwrap_err();
    assert!(matches!(gone, Error::Connect { .. }));
    assert!(gone.to_string().contains("socket"), "{gone}");
}

#[test]
fn quotas_and_features_are_read_and_set_by_typed_requests() {
    let server = start();
    let (dom0, _) = clients(&server);
    let limit = NonZeroU32::new(7);
    assert_eq!(name(dom0.quota_names()), "ENOSYS");
    assert_eq!(name(dom0.quota(None, "nodes")), "ENOSYS");
    assert_eq!(name(dom0.set_quota(None, "nodes", limit)), "ENOSYS");
    assert_eq!(name(dom0.features_of(dom(9))), "ENOSYS");
    assert_eq!(name(dom0.set_features(dom(9), 0)), "ENOSYS");

    let server = start_with(Config::new().extensions(true));
    let (dom0, dom5) = clients(&server);
    assert!(dom0.quota_names().unwrap().contains(&"nodes".to_owned()));
    assert_eq!(dom0.quota(None, "nodes").unwrap(), NonZeroU32::new(1000));
    dom0.set_quota(Some(dom(5)), "nodes", limit).unwrap();
    assert_eq!(dom0.quota(Some(dom(5)), "nodes").unwrap(), limit);
    assert_eq!(
        dom0.quota(Some(dom(6)), "nodes").unwrap(),
        NonZeroU32::new(1000)
    );
    // No limit is no number.
    dom0.set_quota(None, "watches", None).unwrap();
    assert_eq!(dom0.quota(None, "watches").unwrap(), None);
    assert_eq!(name(dom0.quota(None, "what")), "EINVAL");
    let nul = dom0.quota(None, "nodes\x00x");
    assert!(matches!(nul, Err(Error::Invalid(Invalid::Nul { at: 5 }))));
    assert_eq!(name(dom5.quota_names()), "EACCES");
    assert_eq!(name(dom5.quota(None, "nodes")), "EACCES");
    assert_eq!(name(dom5.quota(Some(dom(5)), "nodes")), "EACCES");
    assert_eq!(name(dom5.set_quota(Some(dom(5)), "nodes", None)), "EACCES");
    assert_eq!(name(dom5.set_features(dom(9), 12)), "EACCES");
    dom0.set_features(dom(9), 4).unwrap();
    assert_eq!(dom0.features_of(dom(9)).unwrap(), 4);
    assert_eq!(name(dom0.set_features(dom(5), 4)), "EBUSY");
    assert_eq!(name(dom5.features_of(dom(5))), "EACCES");
}

#[test]
fn an_entry_for_all_domains_counts_if_its_writer_is_offered_it() {
    for offered in [false, true] {
        let server = start_with(Config::new().extensions(offered));
        let (dom0, dom5) = clients(&server);
        dom0.write("/public", "v").unwrap();
        let readable = Permissions::owner_none(dom(0)).grant_read(DomId::ANY);
        dom0.set_permissions("/public", &readable).unwrap();
        match dom5.read("/public") {
            Ok(value) => assert!(offered && value == b"v"),
            Err(error) => assert!(!offered && error.is_denied(), "{error}"),
        }
        assert!(dom5.write("/public", "w").is_err());
        assert_eq!(dom0.permissions("/public").unwrap(), readable);
        let owner = Permissions::owner_none(DomId::ANY);
        assert_eq!(name(dom0.set_permissions("/public", &owner)), "ENOENT");
    }

    // A domain may be offered less than the daemon has.
    let server = start_with(Config::new().extensions(true));
    let (dom0, dom5) = clients(&server);
    for (number, features) in [(8, 12), (9, 4)] {
        dom0.set_features(dom(number), features).unwrap();
        dom0.write("/of", "v").unwrap();
        let owned = Permissions::owner_none(dom(number));
        dom0.set_permissions("/of", &owned).unwrap();
        let writer = server.connect(dom(number)).unwrap();
        let readable = owned.grant_read(DomId::ANY);
        writer.set_permissions("/of", &readable).unwrap();
        assert_eq!(dom5.read("/of").is_ok(), features & 8 != 0, "{number}");
    }
}
