//! Watches: which events come, in which order, with which path.

use xen_store::wire::MsgType;
use xen_store::{Access, Permissions};
use xen_store_server::Config;

use crate::raw::{Raw, clients, dom, start, start_with};

const OK: &str = r#" "OK\x00""#;

/// A raw client of domain 0 with a watch, its first event taken.
fn watching(server: &xen_store_server::Server, id: u16, path: &str) -> Raw {
    let mut raw = Raw::connect(server, dom(id));
    add(&mut raw, path, "t");
    raw
}

fn add(raw: &mut Raw, path: &str, token: &str) {
    let payload = format!("{path}\0{token}\0");
    assert_eq!(
        raw.ask(MsgType::WATCH, payload.as_bytes()),
        format!("WATCH{OK}")
    );
    assert_eq!(raw.next(), format!("EVENT {path} {token}"));
}

/// "When a watch is first set up it is triggered once straight away", after the reply.
#[test]
fn the_first_event_comes_at_once_and_by_the_given_name() {
    let server = start();
    let mut raw = watching(&server, 5, "/not/there");
    add(&mut raw, "relative/path", "u");
    add(&mut raw, "@releaseDomain", "v");
}

#[test]
fn changes_at_and_below_fire_and_before_the_reply() {
    let server = start();
    let (dom0, _) = clients(&server);
    let mut raw = watching(&server, 0, "/w");
    dom0.write("/w", "").unwrap();
    dom0.write("/w/a/b", "").unwrap();
    dom0.mkdir("/w/a/b").unwrap();
    dom0.write("/wx", "").unwrap();
    dom0.set_permissions("/w/a", &Permissions::owner_none(dom(0)))
        .unwrap();
    assert_eq!(
        raw.drain(),
        ["EVENT /w t", "EVENT /w/a/b t", "EVENT /w/a t"]
    );
    raw.send(MsgType::WRITE, 0, b"/w/own\0");
    assert_eq!(raw.next(), "EVENT /w/own t");
    assert_eq!(raw.next(), format!("WRITE{OK}"));
}

/// "if the event was the recursive removal of an parent of <wpath>, <epath> is just <wpath>"
#[test]
fn removal_fires_above_by_the_root_and_below_by_the_watched_path() {
    let server = start();
    let (dom0, _) = clients(&server);
    for path in ["/w/a/b/c", "/w/a/b/d"] {
        dom0.write(path, "").unwrap();
    }
    let mut raw = watching(&server, 0, "/w");
    add(&mut raw, "/w/a/b", "on");
    add(&mut raw, "/w/a/b/c", "below");
    add(&mut raw, "/w/a/b/none", "never");
    dom0.rm("/w/a").unwrap();
    assert_eq!(
        raw.drain(),
        ["EVENT /w/a/b/c below", "EVENT /w/a/b on", "EVENT /w/a t"]
    );
    dom0.rm("/w/a").unwrap();
    assert_eq!(raw.drain(), [""; 0], "nothing was removed");
}

/// "Iff <wpath> for the watch was specified as a relative pathname, the <epath> path will also
/// be relative"
#[test]
fn relative_watches_get_relative_paths() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let mut raw = watching(&server, 5, "data");
    add(&mut raw, "/local/domain/5/data", "abs");
    dom5.write("data/x", "").unwrap();
    assert_eq!(
        raw.drain(),
        ["EVENT data/x t", "EVENT /local/domain/5/data/x abs"]
    );
    dom0.rm("/local/domain/5").unwrap();
    assert_eq!(
        raw.drain(),
        ["EVENT data t", "EVENT /local/domain/5/data abs"]
    );
}

/// "Changes made in transactions cause an event only if and when committed."
#[test]
fn a_transaction_fires_at_its_commit_and_once_per_node() {
    let server = start();
    let (dom0, _) = clients(&server);
    dom0.write("/w/old/x", "").unwrap();
    let mut raw = watching(&server, 0, "/w");
    let t = dom0.transaction().unwrap();
    t.write("/w/a", "1").unwrap();
    t.write("/w/a", "2").unwrap();
    t.rm("/w/old").unwrap();
    t.write("/w/b", "").unwrap();
    assert_eq!(raw.drain(), [""; 0]);
    assert!(t.commit().unwrap());
    assert_eq!(
        raw.drain(),
        ["EVENT /w/a t", "EVENT /w/old t", "EVENT /w/b t"]
    );
    let t = dom0.transaction().unwrap();
    t.write("/w/a", "3").unwrap();
    t.abort().unwrap();
    assert_eq!(raw.drain(), [""; 0]);
}

#[test]
fn only_who_may_read_the_node_or_its_parent_gets_an_event() {
    let server = start();
    let (dom0, _) = clients(&server);
    dom0.write("/w/shut/deep", "").unwrap();
    dom0.set_permissions("/w", &Permissions::new(dom(0), Access::Read))
        .unwrap();
    let mut raw = watching(&server, 5, "/w");
    dom0.write("/w/shut", "").unwrap();
    dom0.write("/w/shut/deep", "").unwrap();
    assert_eq!(raw.drain(), ["EVENT /w/shut t"], "its parent is readable");
    let readable = Permissions::owner_none(dom(0)).grant_read(dom(5));
    dom0.set_permissions("/w/shut/deep", &readable).unwrap();
    assert_eq!(
        raw.drain(),
        ["EVENT /w/shut/deep t"],
        "who gains the right is told"
    );
    dom0.set_permissions("/w/shut/deep", &Permissions::owner_none(dom(0)))
        .unwrap();
    assert_eq!(
        raw.drain(),
        ["EVENT /w/shut/deep t"],
        "who loses it is told"
    );
    dom0.write("/w/shut/deep", "").unwrap();
    assert_eq!(raw.drain(), [""; 0]);
}

#[test]
fn watches_are_known_by_path_and_token() {
    let server = start();
    let (dom0, _) = clients(&server);
    let mut raw = watching(&server, 0, "/w");
    assert_eq!(raw.ask(MsgType::WATCH, b"/w\0t\0"), "ERROR EEXIST");
    add(&mut raw, "/w", "u");
    assert_eq!(raw.ask(MsgType::UNWATCH, b"/w\0x\0"), "ERROR ENOENT");
    assert_eq!(raw.ask(MsgType::UNWATCH, b"t\0/w\0"), "ERROR ENOENT");
    assert_eq!(
        raw.ask(MsgType::UNWATCH, b"/w\0t\0"),
        format!("UNWATCH{OK}")
    );
    dom0.write("/w", "").unwrap();
    assert_eq!(raw.drain(), ["EVENT /w u"]);
    for payload in [&b""[..], b"/w\0", b"/w\0t", b"/w\0t\x001\0", b"/w/\0t\0"] {
        let reply = raw.ask(MsgType::WATCH, payload);
        assert_eq!(reply, "ERROR EINVAL", "{}", payload.escape_ascii());
    }
}

#[test]
fn tokens_are_any_bytes() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(0));
    assert_eq!(
        raw.ask(MsgType::WATCH, b"/w\0\xff \x01\0"),
        format!("WATCH{OK}")
    );
    assert_eq!(raw.next(), r"EVENT /w \xff \x01");
}

#[test]
fn domains_coming_and_going_are_announced_to_domain_0() {
    let server = start();
    let mut raw = watching(&server, 0, "@introduceDomain");
    add(&mut raw, "@releaseDomain", "gone");
    let mut guest = watching(&server, 5, "@introduceDomain");
    add(&mut guest, "@releaseDomain", "gone");
    server.introduce(dom(9));
    assert_eq!(raw.drain(), ["EVENT @introduceDomain t"]);
    server.shutdown(dom(9));
    server.shutdown(dom(9));
    assert_eq!(
        raw.drain(),
        ["EVENT @releaseDomain gone"],
        "once per shutdown"
    );
    server.release(dom(9));
    assert_eq!(raw.drain(), ["EVENT @releaseDomain gone"]);
    assert_eq!(guest.drain(), [""; 0]);
}

/// "It is possible to set permissions for the special watch paths"
#[test]
fn special_watches_can_be_opened_to_a_guest() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let mut guest = watching(&server, 5, "@releaseDomain");
    let perms = Permissions::owner_none(dom(0)).grant_read(dom(5));
    assert!(
        dom5.set_permissions("@releaseDomain", &perms)
            .unwrap_err()
            .is_denied()
    );
    dom0.set_permissions("@releaseDomain", &perms).unwrap();
    server.release(dom(6));
    assert_eq!(guest.drain(), ["EVENT @releaseDomain t"]);
    server.introduce(dom(6));
    assert_eq!(guest.drain(), [""; 0], "the other one is still closed");
    let mut raw = Raw::connect(&server, dom(0));
    assert_eq!(raw.ask(MsgType::SET_PERMS, b"@other\0n0\0"), "ERROR EINVAL");
    assert_eq!(
        raw.ask(MsgType::GET_PERMS, b"@releaseDomain\0"),
        "ERROR EINVAL"
    );
}

/// "Reset all watches and transactions of the caller."
#[test]
fn reset_forgets_watches_and_transactions() {
    let server = start();
    let (dom0, _) = clients(&server);
    let mut raw = watching(&server, 5, "data");
    raw.ask(MsgType::TRANSACTION_START, b"\0");
    assert_eq!(
        raw.ask(MsgType::RESET_WATCHES, b"\0"),
        format!("RESET_WATCHES{OK}")
    );
    dom0.write("/local/domain/5/data", "").unwrap();
    assert_eq!(raw.drain(), [""; 0]);
    assert_eq!(raw.ask_in(1, MsgType::READ, b"data\0"), "ERROR ENOENT");
    let stats = server.stats();
    assert_eq!((stats.watches, stats.transactions), (0, 0));
    add(&mut raw, "data", "t");
}

#[test]
fn depth_is_a_later_extension() {
    let server = start_with(Config::new().extensions(true));
    let (dom0, _) = clients(&server);
    let mut raw = Raw::connect(&server, dom(0));
    assert_eq!(
        raw.ask(MsgType::WATCH, b"/w\0t\x001\0"),
        format!("WATCH{OK}")
    );
    raw.drain();
    for path in ["/w/a/b", "/w/a", "/w"] {
        dom0.write(path, "").unwrap();
    }
    assert_eq!(raw.drain(), ["EVENT /w/a t", "EVENT /w t"]);
    let watch = dom0.watch_depth("/w", 0).unwrap();
    dom0.write("/w/a", "").unwrap();
    assert_eq!(
        &*watch.try_next().unwrap().unwrap().path,
        "/w",
        "the first event"
    );
    assert_eq!(watch.try_next().unwrap(), None);
}

#[test]
fn a_watch_of_our_client_fires_for_changes_by_others() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    let watch = dom0.watch("/local/domain/5/data").unwrap();
    assert_eq!(
        &*watch.next(None).unwrap().unwrap().path,
        "/local/domain/5/data"
    );
    dom5.write("data/answer", "42").unwrap();
    assert_eq!(
        &*watch.next(None).unwrap().unwrap().path,
        "/local/domain/5/data/answer"
    );
    drop(watch);
    dom0.mkdir("/after").unwrap();
    assert_eq!(server.stats().watches, 0, "withdrawn on drop");
}
