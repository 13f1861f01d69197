//! `stubdm-run dmargs` against a store that holds what libxl writes, and what it should not.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use stubdm_image::cpio::{Archive, Content};
use tempfile::TempDir;
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

const GUEST: DomId = DomId::new(7);
const STUB: DomId = DomId::new(8);
const ARGV: &str = "/vm/u/image/dm-argv";

/// A host with a guest and its stubdomain in the store.
struct Host {
    _dir: TempDir,
    _server: Server,
    socket: PathBuf,
    store: Store,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("xenstored");
        let server = Server::start(Config::new()).unwrap();
        server.add_domain(GUEST);
        server.add_domain(STUB);
        server.listen(&socket).unwrap();
        let store = Store::connect(&socket).unwrap();
        for (node, value) in [
            ("/local/domain/7/vm", "/vm/u"),
            ("/local/domain/7/image/device-model-domid", "8"),
            ("/local/domain/8/target", "7"),
            ("/local/domain/8/device/vbd/768/state", "4"),
            ("/local/domain/8/device/vbd/51744/state", "4"),
        ] {
            store.write(node, value).unwrap();
        }
        store.mkdir(ARGV).unwrap();
        let perms = Permissions::owner_none(DomId::DOM0).grant_read(STUB);
        store.set_permissions(ARGV, &perms).unwrap();
        Self {
            _dir: dir,
            _server: server,
            socket,
            store,
        }
    }

    fn argv(self, args: &[&[u8]]) -> Self {
        for (at, arg) in args.iter().enumerate() {
            let node = format!("{ARGV}/{:03}", at + 1);
            self.store.write(&node, arg).unwrap();
        }
        self
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command
            .arg("dmargs")
            .args(args)
            .arg("--store")
            .arg(&self.socket);
        command.output().unwrap()
    }

    /// Runs it and returns output and status.
    fn stdout(&self, args: &[&str]) -> (String, i32) {
        let output = self.run(args);
        assert!(output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        (text, output.status.code().unwrap())
    }

    fn json(&self, args: &[&str]) -> Value {
        let (text, _) = self.stdout(args);
        serde_json::from_str(&text).unwrap()
    }
}

const GOOD: &[&[u8]] = &[
    b"-xen-domid",
    b"7",
    b"-name",
    b"it's me",
    b"-drive",
    b"file=/dev/xvda,if=ide,index=0,format=host_device",
    b"-drive",
    b"if=none,id=ide-5632,file=/dev/xvdc,format=host_device",
    b"-serial",
    b"/dev/hvc3",
];

#[test]
fn what_libxl_wrote_is_shown_raw_and_in_order() {
    let host = Host::new().argv(GOOD);
    for domid in ["7", "8"] {
        let (text, status) = host.stdout(&["show", domid]);
        assert_eq!(status, 0);
        let mut lines = text.lines();
        let heading = "guest 7, stubdomain 8: dm-argv (Linux), 10 arguments";
        assert_eq!(lines.next(), Some(heading), "asked by {domid}");
        assert_eq!(lines.next(), Some("001  -xen-domid"));
        assert_eq!(lines.nth(2), Some(r"004  'it'\''s me'"));
    }
    let value = host.json(&["show", "7", "--json"]);
    assert_eq!(value["arguments"][3], json!("it's me"));
    assert_eq!(value["protocol"], "linux");
    assert_eq!(value["usable"], true);
}

#[test]
fn bytes_that_are_no_text_survive_in_json() {
    let host = Host::new().argv(&[b"-name", b"\xff\x00a"[..1].as_ref()]);
    let value = host.json(&["show", "7", "--json"]);
    assert_eq!(value["arguments"][1], json!({"hex": "ff"}));
}

#[test]
fn a_good_line_passes_the_check() {
    let host = Host::new().argv(GOOD);
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 0, "{text}");
    assert!(
        text.ends_with("a stubdomain can start with these\n"),
        "{text}"
    );
    assert!(!text.contains("note:"), "{text}");
}

#[test]
fn what_cannot_work_is_a_problem_and_what_can_be_mended_a_note() {
    let host = Host::new().argv(&[
        b"-xen-domid",
        b"9",
        b"-kernel",
        b"/boot/vmlinuz",
        b"-vnc",
        b"127.0.0.1:0",
        b"-drive",
        b"file=/dev/xvdb",
        b"-netdev",
        b"tap,id=n,ifname=t",
    ]);
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 1, "{text}");
    for part in [
        "problem: argument 3: -kernel /boot/vmlinuz",
        "problem: -xen-domid says 9, but the guest is domain 7",
        "problem: /dev/xvdb is not among the stubdomain's block devices",
        "note: argument 5: -vnc 127.0.0.1:0: left out",
        "problem: argument 9: -netdev tap,id=n,ifname=t: impossible in a stubdomain: the stubdomain has no card",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(host.json(&["check", "7", "--json"])["usable"], false);
}

#[test]
fn what_xls_defaults_make_of_a_guest_is_named_with_the_mend() {
    let host = Host::new().argv(&GOOD[..8]);
    for (node, value) in [
        ("/local/domain/8/device/vfb/0/state", "1"),
        ("/local/domain/8/memory/target", "106496"),
        (
            "/local/domain/8/device/vbd/51744/backend",
            "/local/domain/0/backend/qdisk/8/51744",
        ),
    ] {
        host.store.write(node, value).unwrap();
    }
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 0, "{text}");
    for part in [
        "set vnc=0",
        "/dev/xvdc is a qdisk",
        "has 104 MiB",
        "set stubdomain_memory",
        "set serial=\"pty\"",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn an_image_is_looked_into_for_a_cards_rom() {
    let card: &[&[u8]] = &[
        b"-netdev",
        b"hubport,id=n0,hubid=0",
        b"-device",
        b"vmxnet3,id=nic0,netdev=n0",
    ];
    let host = Host::new().argv(&[GOOD, card].concat());
    let (text, _) = host.stdout(&["check", "7"]);
    assert!(
        !text.contains("vmxnet3.rom"),
        "image build puts it in: {text}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stub.img");
    let path = file.to_str().unwrap();
    for (rom, part) in [
        (
            "efi-e1000.rom",
            "note: the image has no efi-vmxnet3.rom: the network card vmxnet3 works",
        ),
        ("efi-vmxnet3.rom", "a stubdomain can start"),
    ] {
        let mut archive = Archive::root();
        archive.file(&format!("usr/share/qemu/{rom}"), Content::Bytes(Vec::new()));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        fs::write(&file, bytes).unwrap();
        let (text, status) = host.stdout(&["check", "7", "--image", path]);
        assert_eq!(status, 0, "{text}");
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(
        !host
            .stdout(&["check", "7", "--image", path])
            .0
            .contains("vmxnet3.rom")
    );
    let output = host.run(&["check", "7", "--image", "/nonexistent/image"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn explain_prints_what_each_option_is_for() {
    let host = Host::new().argv(&[
        b"-xen-domid",
        b"7",
        b"-display",
        b"gtk",
        b"-odd",
        b"x\x1b[2J",
    ]);
    let (text, status) = host.stdout(&["explain", "7"]);
    assert_eq!(status, 0);
    for part in [
        "001  -xen-domid 7\n       the guest's domain id\n",
        "003  -display gtk\n",
        "changed to none",
        "005  -odd x [2J\n       not known here: passed on\n",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn the_mini_os_protocol_is_shown_and_its_mismatch_explained() {
    let host = Host::new();
    host.store.rm(ARGV).unwrap();
    host.store
        .write("/vm/u/image/dmargs", " -d 7 -domain-name guest")
        .unwrap();
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 1);
    assert!(text.contains("device_model_version=\"qemu-xen\""), "{text}");
    let (text, status) = host.stdout(&["show", "7"]);
    assert_eq!(status, 0);
    assert!(
        text.contains("dmargs (Mini-OS") && text.contains("\n003  -domain-name\n"),
        "{text}"
    );
    assert_eq!(host.json(&["show", "7", "--json"])["protocol"], "mini-os");
}

#[test]
fn both_protocols_at_once_are_pointed_out() {
    let host = Host::new().argv(GOOD);
    host.store.write("/vm/u/image/dmargs", " -d 7").unwrap();
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 0);
    assert!(
        text.contains("note: Mini-OS's `dmargs` string is there as well"),
        "{text}"
    );
}

#[test]
fn arguments_the_stubdomain_may_not_read_are_a_problem() {
    let host = Host::new().argv(GOOD);
    let nobody = Permissions::owner_none(DomId::DOM0);
    host.store.set_permissions(ARGV, &nobody).unwrap();
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 1);
    assert!(text.contains("may not read its dm-argv"), "{text}");
}

#[test]
fn an_empty_directory_a_gap_and_no_stubdomain_are_distinguished() {
    let host = Host::new();
    let (text, status) = host.stdout(&["check", "7"]);
    assert_eq!(status, 1);
    assert!(text.contains("dm-argv directory is empty"), "{text}");
    host.store.write(&format!("{ARGV}/001"), "-S").unwrap();
    host.store.write(&format!("{ARGV}/003"), "-S").unwrap();
    assert!(host.stdout(&["check", "7"]).0.contains("lacks argument 2"));
    host.store.rm(ARGV).unwrap();
    host.store.rm("/local/domain/7/image").unwrap();
    assert!(
        host.stdout(&["check", "7"])
            .0
            .contains("domain 7 has no stubdomain")
    );
}

#[test]
fn wrong_numbers_are_one_line() {
    let host = Host::new();
    for (args, status, part) in [
        (&["show", "99"][..], 1, "there is no domain 99"),
        (&["show", "x"], 2, "'x'"),
        (&["show", "32752"], 2, "no domain can have this number"),
        (&["show"], 2, "DOMID"),
        (&["tell", "7"], 2, "tell"),
    ] {
        let output = host.run(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.starts_with("stubdm-run: ") && text.contains(part),
            "{text}"
        );
        assert!(output.stdout.is_empty());
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command.args(["dmargs", "show", "7", "--store", "/nonexistent/socket"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("/nonexistent/socket") && text.lines().count() == 1,
        "{text}"
    );
}
