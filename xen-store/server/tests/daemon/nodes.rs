//! Nodes: read, write, mkdir, rm, directory.

use xen_store::wire::{MsgType, PAYLOAD_MAX, encode};

use crate::raw::{Raw, clients, dom, name, start};

#[test]
fn a_new_store_has_the_nodes_xenstored_begins_with() {
    let server = xen_store_server::Server::start(Default::default()).unwrap();
    let store = server.connect(dom(0)).unwrap();
    assert_eq!(store.directory("/").unwrap(), ["tool"]);
    assert_eq!(store.directory("/tool").unwrap(), ["xenstored"]);
    assert_eq!(store.read("/tool/xenstored").unwrap(), b"");
    assert_eq!(store.permissions("/").unwrap().to_string(), "n0");
    assert_eq!(store.control("check", &[]).unwrap(), "OK");
}

/// "WRITE creates any missing parent paths, with empty values."
#[test]
fn write_creates_parents() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/a/b/c", b"v\0\xff").unwrap();
    assert_eq!(store.read("/a/b/c").unwrap(), b"v\0\xff");
    assert_eq!(store.read("/a/b").unwrap(), b"");
    store.write("/a/b", "now").unwrap();
    assert_eq!(store.read("/a/b/c").unwrap(), b"v\0\xff", "children stay");
}

/// "If <path> or any parent already exists, its value is left unchanged."
#[test]
fn mkdir_changes_nothing_that_exists() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/a", "v").unwrap();
    store.mkdir("/a").unwrap();
    store.mkdir("/a/b/c").unwrap();
    assert_eq!(store.read("/a").unwrap(), b"v");
    assert_eq!(store.read("/a/b/c").unwrap(), b"");
}

/// "It is not an error if <path> does not exist, but it _is_ an error if <path>'s immediate
/// parent does not exist either."
#[test]
fn rm_removes_all_below_and_forgives_only_the_last_component() {
    let server = start();
    let (store, _) = clients(&server);
    store.write("/a/b/c", "1").unwrap();
    store.write("/a/d", "1").unwrap();
    store.write("/ab", "stays").unwrap();
    let before = server.stats().nodes;
    store.rm("/a/x").unwrap();
    assert_eq!(name(store.rm("/a/x/y")), "ENOENT");
    assert_eq!(name(store.rm("/")), "EINVAL");
    store.rm("/a/b").unwrap();
    assert_eq!(store.directory("/a").unwrap(), ["d"]);
    store.rm("/a").unwrap();
    assert!(!store.exists("/a").unwrap() && !store.exists("/a/b/c").unwrap());
    assert_eq!(store.read("/ab").unwrap(), b"stays");
    assert_eq!(before - server.stats().nodes, 4);
    assert_eq!(store.control("check", &[]).unwrap(), "OK");
}

#[test]
fn directory_lists_in_order_of_creation() {
    let server = start();
    let (store, _) = clients(&server);
    for child in ["z", "a", "m"] {
        store.write(&format!("/d/{child}/x"), "").unwrap();
    }
    store.write("/d/a", "again").unwrap();
    assert_eq!(store.directory("/d").unwrap(), ["z", "a", "m"]);
    store.rm("/d/z").unwrap();
    store.mkdir("/d/z").unwrap();
    assert_eq!(store.directory("/d").unwrap(), ["a", "m", "z"]);
    assert_eq!(name(store.directory("/none")), "ENOENT");
}

#[test]
fn a_list_longer_than_a_message_comes_in_parts() {
    let server = start();
    let (store, _) = clients(&server);
    let names: Vec<String> = (0..3000).map(|n| format!("child-{n}")).collect();
    for child in &names {
        store.mkdir(&format!("/long/{child}")).unwrap();
    }
    assert_eq!(store.directory("/long").unwrap(), names);
    let mut raw = Raw::connect(&server, dom(0));
    assert_eq!(raw.ask(MsgType::DIRECTORY, b"/long\0"), "ERROR E2BIG");
}

/// "<gencnt> being the same for multiple reads guarantees the node hasn't changed"
#[test]
fn directory_part_has_the_generation_and_an_empty_name_at_the_end() {
    let server = start();
    let (store, _) = clients(&server);
    let mut raw = Raw::connect(&server, dom(0));
    store.mkdir("/d/one").unwrap();
    store.mkdir("/d/two").unwrap();
    let part = |raw: &mut Raw, offset: &str| {
        let payload = format!("/d\0{offset}\0");
        let reply = raw.ask(MsgType::DIRECTORY_PART, payload.as_bytes());
        let fields = reply
            .strip_prefix("DIRECTORY_PART \"")
            .unwrap()
            .trim_end_matches('"');
        let (generation, names) = fields.split_once("\\x00").unwrap();
        (generation.parse::<u64>().unwrap(), names.to_owned())
    };
    let (first, names) = part(&mut raw, "0");
    assert_eq!(names, r"one\x00two\x00\x00");
    assert_eq!(part(&mut raw, "4"), (first, r"two\x00\x00".to_owned()));
    assert_eq!(part(&mut raw, "8"), (first, r"\x00".to_owned()));
    assert_eq!(part(&mut raw, "4000000000"), (first, r"\x00".to_owned()));
    store.write("/d/one/below", "").unwrap();
    assert_eq!(
        part(&mut raw, "0").0,
        first,
        "a grandchild does not change the list"
    );
    store.mkdir("/d/three").unwrap();
    assert!(part(&mut raw, "0").0 > first);
    assert_eq!(raw.ask(MsgType::DIRECTORY_PART, b"/d\0"), "ERROR EINVAL");
}

/// "it is taken to be relative to /local/domain/<domid>"
#[test]
fn relative_paths_start_at_the_callers_home() {
    let server = start();
    let (dom0, dom5) = clients(&server);
    dom5.write("data/x", "5").unwrap();
    assert_eq!(dom0.read("/local/domain/5/data/x").unwrap(), b"5");
    dom0.write("x", "0").unwrap();
    assert_eq!(dom0.read("/local/domain/0/x").unwrap(), b"0");
    assert_eq!(dom5.domain_path(dom(77)).unwrap(), "/local/domain/77");
}

#[test]
fn malformed_requests_are_einval_and_harm_nothing() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(0));
    for payload in [
        &b""[..],
        b"/a",
        b"\0",
        b"/a\0b\0",
        b"/a/\0",
        b"//\0",
        b"/a b\0",
        b"/\xff\0",
        b"@x\0",
    ] {
        for kind in [
            MsgType::READ,
            MsgType::MKDIR,
            MsgType::RM,
            MsgType::GET_PERMS,
        ] {
            let reply = raw.ask(kind, payload);
            assert_eq!(reply, "ERROR EINVAL", "{kind} {}", payload.escape_ascii());
        }
    }
    for payload in [&b""[..], b"/a", b"/a/\0x"] {
        assert_eq!(raw.ask(MsgType::WRITE, payload), "ERROR EINVAL");
    }
    assert_eq!(
        raw.ask(MsgType::WRITE, b"/ok\0"),
        r#"WRITE "OK\x00""#,
        "an empty value"
    );
    assert_eq!(raw.ask(MsgType::CONTROL, b"check\0"), r#"CONTROL "OK\x00""#);
}

/// "Any not supported type sent to Xenstore will result in an error response with the "ENOSYS"
/// error."
#[test]
fn unknown_types_are_enosys() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(5));
    for kind in [15, 16, 20, 23, 24, 25, 26, 27, 0xffff, u32::MAX] {
        assert_eq!(raw.ask(MsgType(kind), b"\0"), "ERROR ENOSYS", "{kind}");
        assert_eq!(
            raw.ask_in(99, MsgType(kind), b"\0"),
            "ERROR ENOSYS",
            "{kind}"
        );
    }
}

/// "If a client exceeds the limit, its xenstored connection will be immediately killed"
#[test]
fn an_overlong_payload_ends_the_connection() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(5));
    let mut value = b"data/x\0".to_vec();
    value.resize(PAYLOAD_MAX, b'v');
    assert_eq!(
        raw.ask(MsgType::WRITE, &value),
        "ERROR ENOSPC",
        "the most a message holds"
    );
    let mut bytes = encode(MsgType::WRITE, 9, 0, &[b"data/x\0v"]).unwrap();
    bytes[12..16].copy_from_slice(&(PAYLOAD_MAX as u32 + 1).to_ne_bytes());
    raw.send_bytes(&bytes);
    assert_eq!(raw.recv(), None);
    let (_, other) = clients(&server);
    other.write("data/x", "v").unwrap();
}

#[test]
fn requests_cut_anywhere_are_put_together() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(0));
    for byte in encode(MsgType::WRITE, 7, 0, &[b"/cut\0value"]).unwrap() {
        raw.send_bytes(&[byte]);
    }
    assert_eq!(raw.next(), r#"WRITE "OK\x00""#);
    let two = [
        encode(MsgType::READ, 8, 0, &[b"/cut\0"]).unwrap(),
        encode(MsgType::READ, 9, 0, &[b"/cut\0"]).unwrap(),
    ];
    raw.send_bytes(&two.concat());
    assert_eq!(raw.recv().unwrap().req_id, 8);
    assert_eq!(raw.recv().unwrap().req_id, 9);
}

#[test]
fn path_limits_are_those_of_xenstored() {
    let server = start();
    let mut raw = Raw::connect(&server, dom(0));
    let path = |len: usize| format!("/{}\0", "p".repeat(len - 1));
    assert_eq!(
        raw.ask(MsgType::MKDIR, path(2048).as_bytes()),
        r#"MKDIR "OK\x00""#
    );
    assert_eq!(
        raw.ask(MsgType::MKDIR, path(2049).as_bytes()),
        "ERROR EINVAL"
    );
    let relative = format!("{}\0", "r".repeat(2048));
    assert_eq!(
        raw.ask(MsgType::MKDIR, relative.as_bytes()),
        r#"MKDIR "OK\x00""#
    );
    let relative = format!("{}\0", "r".repeat(2049));
    assert_eq!(raw.ask(MsgType::MKDIR, relative.as_bytes()), "ERROR EINVAL");
}
