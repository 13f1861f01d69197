//! `stubdm-run install` and `uninstall` below a made-up root: there, twice, and back to what it
//! was, byte for byte.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const PROXY: &str = "usr/bin/vchan-socket-proxy";
const WRAPPER: &str = "../lib/xen-common/bin/xen-utils-wrapper";
const RECORD: &str = "var/lib/stubdm/installed.json";

/// Every path below a folder but `except`, with what is there.
fn files(dir: &Path, except: &[&str]) -> BTreeMap<String, String> {
    fn walk(dir: &Path, root: &Path, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                walk(&path, root, all);
                "folder".to_owned()
            } else {
                format!(
                    "{:o} {:?}",
                    kind.permissions().mode(),
                    fs::read(&path).unwrap()
                )
            };
            all.insert(name, what);
        }
    }
    let mut all = BTreeMap::new();
    walk(dir, dir, &mut all);
    all.retain(|name, _| !except.contains(&name.as_str()));
    all
}

/// A host as Debian lays it out.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        host.put(
            "usr/lib/x86_64-linux-gnu/libxenlight.so.4.17.0",
            b"\0/usr/lib/xen-4.17/boot\0/usr/bin/vchan-socket-proxy\0/usr/libexec/xen-qemu-system-i386\0",
        );
        host.put("usr/lib/xen-4.17/boot/hvmloader", b"x");
        host.put("boot/vmlinuz-6.1", b"kernel");
        host.put("lib/modules/6.1/kernel/x.ko", b"");
        host.put("boot/stub.img", b"ramdisk");
        host.put("usr/bin/stubdm-run", b"#!/bin/sh\n");
        host.put("var/lib/other", b"");
        host.put("etc/other", b"");
        fs::set_permissions(
            host.path("usr/bin/stubdm-run"),
            PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        for file in ["boot/vmlinuz-6.1", "boot/stub.img"] {
            fs::set_permissions(host.path(file), PermissionsExt::from_mode(0o644)).unwrap();
        }
        symlink(WRAPPER, host.path(PROXY)).unwrap();
        host
    }

    /// As dpkg would have it, with a database of no packages.
    fn with_dpkg() -> Self {
        let host = Self::new();
        for file in ["diversions", "status", "info/format"] {
            host.put(&format!("var/lib/dpkg/{file}"), b"");
        }
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn files(&self) -> BTreeMap<String, String> {
        files(self.dir.path(), &[])
    }

    fn link(&self, path: &str) -> String {
        fs::read_link(self.path(path))
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command.args(args).arg("--root").arg(self.dir.path());
        command
            .env_remove("DPKG_MAINTSCRIPT_PACKAGE")
            .output()
            .unwrap()
    }

    /// Runs it, which has to succeed, and returns its output.
    fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && complaint.is_empty(),
            "{args:?}: {complaint}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line it complains with; nothing may have changed.
    fn refuses(&self, args: &[&str], part: &str) {
        let before = self.files();
        let output = self.run(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            output.stdout.is_empty() && text.lines().count() == 1,
            "{text}"
        );
        assert!(
            text.starts_with("stubdm-run: ") && text.contains(part),
            "no {part:?} in {text}"
        );
        assert_eq!(self.files(), before, "{args:?}");
    }
}

#[test]
fn without_dpkg_everything_goes_in_twice_and_comes_out_as_it_was() {
    let host = Host::new();
    let before = host.files();
    let all = [
        "install",
        "proxy",
        "image",
        "policy",
        "--image",
        "/boot/stub.img",
    ];

    let dry = host.stdout(&[&all[..], &["--dry-run"]].concat());
    assert!(dry.ends_with("dry run: nothing was changed\n"), "{dry}");
    assert_eq!(host.files(), before);

    let done = host.stdout(&all);
    assert_eq!(dry.lines().count(), done.lines().count(), "{dry}{done}");
    assert_eq!(dry.replace("dry run: nothing was changed", "done"), done);
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    assert_eq!(host.link("usr/bin/vchan-socket-proxy.distrib"), WRAPPER);
    assert_eq!(
        host.link("usr/lib/xen-4.17/boot/qemu-stubdom-linux-rootfs"),
        "/boot/stub.img"
    );
    assert_eq!(
        host.link("usr/lib/xen-4.17/boot/qemu-stubdom-linux-kernel"),
        "/boot/vmlinuz-6.1"
    );
    let policy = fs::read_to_string(host.path("etc/stubdm/qmp-policy.toml")).unwrap();
    assert!(policy.contains("base = \"built-in\""), "{policy}");

    let after = host.files();
    assert!(host.stdout(&all).ends_with("nothing to do\n"));
    assert_eq!(host.files(), after);

    // One part alone, then the rest.
    assert!(host.stdout(&["uninstall", "image"]).ends_with("done\n"));
    assert!(
        !host
            .path("usr/lib/xen-4.17/boot/qemu-stubdom-linux-rootfs")
            .exists()
    );
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    let dry = host.stdout(&["uninstall", "-n"]);
    assert!(
        dry.contains("vchan-socket-proxy.distrib") && dry.contains("dry run"),
        "{dry}"
    );
    assert!(host.stdout(&["uninstall"]).ends_with("done\n"));
    assert_eq!(host.files(), before);
    assert_eq!(host.stdout(&["uninstall"]), "nothing to do\n");
    assert_eq!(host.files(), before);
}

#[test]
fn with_dpkg_it_is_a_diversion() {
    if Command::new("dpkg-divert")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: this machine has no dpkg-divert");
        return;
    }
    let host = Host::with_dpkg();
    let without_record = |host: &Host| files(host.dir.path(), &["var/lib/dpkg/diversions-old"]);
    let before = without_record(&host);
    let done = host.stdout(&["install"]);
    assert!(done.contains("proxy    dpkg-divert --root "), "{done}");
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    assert_eq!(host.link("usr/bin/vchan-socket-proxy.distrib"), WRAPPER);
    let list = fs::read_to_string(host.path("var/lib/dpkg/diversions")).unwrap();
    assert_eq!(
        list,
        "/usr/bin/vchan-socket-proxy\n/usr/bin/vchan-socket-proxy.distrib\n:\n"
    );
    assert!(host.stdout(&["install"]).ends_with("nothing to do\n"));
    assert!(host.stdout(&["uninstall"]).ends_with("done\n"));
    assert_eq!(without_record(&host), before);

    // A diversion of somebody else's is not touched.
    host.put(
        "var/lib/dpkg/diversions",
        b"/usr/bin/vchan-socket-proxy\n/usr/bin/vchan-socket-proxy.real\nothers\n",
    );
    host.refuses(
        &["install"],
        "is diverted to /usr/bin/vchan-socket-proxy.real already, by others",
    );
    // With `--rename` it works without dpkg, where nothing is diverted.
    host.put("var/lib/dpkg/diversions", b"");
    let done = host.stdout(&["install", "--rename"]);
    assert!(
        done.contains(" mv ") && !done.contains("dpkg-divert"),
        "{done}"
    );
    host.stdout(&["uninstall"]);
    assert_eq!(without_record(&host), before);
}

#[test]
fn what_is_missing_or_in_the_way_is_one_line_and_changes_nothing() {
    let host = Host::new();
    host.refuses(&["install", "image"], "there is no");
    host.refuses(&["install", "image"], "image build");
    host.refuses(
        &[
            "install",
            "image",
            "--image",
            "/boot/stub.img",
            "--kernel",
            "/boot/none",
        ],
        "/boot/none",
    );
    host.refuses(&["install", "--program", "/usr/bin/none"], "/usr/bin/none");
    host.put("usr/bin/data", b"");
    fs::set_permissions(host.path("usr/bin/data"), PermissionsExt::from_mode(0o644)).unwrap();
    host.refuses(&["install", "--program", "/usr/bin/data"], "is no program");
    fs::set_permissions(host.path("usr/bin/data"), PermissionsExt::from_mode(0o757)).unwrap();
    host.refuses(&["install", "--program", "/usr/bin/data"], "mode 757");

    host.put("usr/bin/vchan-socket-proxy.distrib", b"");
    host.refuses(&["install"], "vchan-socket-proxy.distrib is there already");
    fs::remove_file(host.path("usr/bin/vchan-socket-proxy.distrib")).unwrap();
    fs::remove_file(host.path(PROXY)).unwrap();
    fs::create_dir(host.path(PROXY)).unwrap();
    host.refuses(&["install"], "is no file");
    fs::remove_dir(host.path(PROXY)).unwrap();

    // Nothing lay there: the file is installed and removed.
    let before = host.files();
    host.stdout(&["install"]);
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    host.stdout(&["uninstall"]);
    assert_eq!(host.files(), before);

    // A file that a person put in our place is not ours to remove.
    symlink(WRAPPER, host.path(PROXY)).unwrap();
    host.stdout(&["install"]);
    fs::remove_file(host.path(PROXY)).unwrap();
    host.put(PROXY, b"another");
    host.refuses(&["uninstall"], "is no longer what install put there");
    host.refuses(&["install"], "is no longer what install put there");
    fs::remove_file(host.path(PROXY)).unwrap();
    host.stdout(&["uninstall"]);

    host.put(RECORD, b"{\"version\": 1, \"entries\": [{}]}");
    host.refuses(&["uninstall"], "installed.json: missing field");
    host.put(RECORD, b"{\"version\": 2, \"entries\": []}");
    host.refuses(&["install"], "another version");
    fs::remove_dir_all(host.path("var/lib/stubdm")).unwrap();

    fs::remove_dir_all(host.path("usr/lib/x86_64-linux-gnu")).unwrap();
    host.refuses(&["install"], "no libxl was found");
    assert_eq!(host.stdout(&["install", "--if-xen"]), "nothing to do\n");
    let output = host.run(&["install", "bogus"]);
    assert_eq!(output.status.code(), Some(2));
    let output = host.run(&["install", "--root", "/nonexistent/root"]);
    assert_eq!(output.status.code(), Some(2), "--root twice");
}

#[test]
fn a_link_made_by_hand_and_a_changed_policy_are_left() {
    let host = Host::new();
    fs::remove_file(host.path(PROXY)).unwrap();
    symlink("/usr/bin/stubdm-run", host.path(PROXY)).unwrap();
    let before = host.files();
    let said = host.stdout(&["install"]);
    assert!(
        said.contains("not by install") && said.ends_with("nothing to do\n"),
        "{said}"
    );
    host.stdout(&["uninstall"]);
    assert_eq!(host.files(), before);

    host.stdout(&["install", "policy"]);
    host.put("etc/stubdm/qmp-policy.toml", b"version = 1\n");
    let said = host.stdout(&["install", "policy"]);
    assert!(said.contains("was changed since and is left"), "{said}");
    let said = host.stdout(&["uninstall"]);
    assert!(said.contains("was changed since and is left"), "{said}");
    assert!(host.path("etc/stubdm/qmp-policy.toml").exists() && !host.path(RECORD).exists());
    let said = host.stdout(&["install", "policy"]);
    assert!(said.contains("is there already and is left"), "{said}");
}

#[test]
fn an_installation_that_was_cut_short_is_taken_back_or_finished() {
    let host = Host::new();
    let before = host.files();
    host.stdout(&["install"]);
    let record = fs::read(host.path(RECORD)).unwrap();
    host.stdout(&["uninstall"]);
    // The record was written, and nothing else was done.
    host.put(RECORD, &record);
    let said = host.stdout(&["uninstall"]);
    assert!(said.contains("is as it was"), "{said}");
    assert_eq!(host.files(), before);
    host.put(RECORD, &record);
    host.stdout(&["install"]);
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    // The file was put aside, and the link is not there yet.
    fs::remove_file(host.path(PROXY)).unwrap();
    host.stdout(&["install"]);
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    fs::remove_file(host.path(PROXY)).unwrap();
    host.stdout(&["uninstall"]);
    assert_eq!(host.files(), before);
    // A file that was put aside is missing: this is reported.
    host.stdout(&["install"]);
    fs::remove_file(host.path("usr/bin/vchan-socket-proxy.distrib")).unwrap();
    host.refuses(&["uninstall"], "vchan-socket-proxy.distrib is gone");
}

#[test]
fn another_program_and_json() {
    let host = Host::new();
    host.stdout(&["install"]);
    host.put("opt/stubdm-run", b"#!/bin/sh\n");
    fs::set_permissions(
        host.path("opt/stubdm-run"),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let said = host.stdout(&["install", "--json", "--program", "/opt/stubdm-run"]);
    let value: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(value["dry_run"], false);
    assert_eq!(value["places"][0]["place"], "/usr/bin/vchan-socket-proxy");
    assert_eq!(
        value["places"][0]["steps"].as_array().unwrap().len(),
        2,
        "{said}"
    );
    assert_eq!(host.link(PROXY), "/opt/stubdm-run");
    host.stdout(&["uninstall"]);
    assert_eq!(host.link(PROXY), WRAPPER);
}

/// A folder in which everybody may put links, on the way to a program that nobody may replace.
#[test]
fn what_is_linked_to_is_what_was_checked_and_no_link_of_others_is_on_the_way() {
    let host = Host::new();
    let mode = |path: &str, mode| {
        fs::set_permissions(host.path(path), PermissionsExt::from_mode(mode)).unwrap();
    };
    fs::create_dir(host.path("srv")).unwrap();
    for file in ["usr/bin/stubdm-run", "boot/stub.img", "boot/vmlinuz-6.1"] {
        let name = file.rsplit('/').next().unwrap();
        symlink(format!("/{file}"), host.path(&format!("srv/{name}"))).unwrap();
    }
    let args = [
        ["install", "proxy", "--program", "/srv/stubdm-run"],
        ["install", "image", "--image", "/srv/stub.img"],
    ];
    mode("srv", 0o777);
    for args in args {
        host.refuses(&args, "/srv can be written by others");
    }
    let kernel = [&args[1][..], &["--kernel", "/srv/vmlinuz-6.1"]].concat();
    host.refuses(&kernel, "/srv can be written by others");
    // Where nobody else can, the link names the file that was found, not the path that led to it.
    mode("srv", 0o755);
    host.stdout(&args[0]);
    assert_eq!(host.link(PROXY), "/usr/bin/stubdm-run");
    host.stdout(&kernel);
    let boot = "usr/lib/xen-4.17/boot";
    let linked = |name: &str| host.link(&format!("{boot}/qemu-stubdom-linux-{name}"));
    assert_eq!(linked("rootfs"), "/boot/stub.img");
    assert_eq!(linked("kernel"), "/boot/vmlinuz-6.1");
    host.stdout(&["uninstall"]);
    mode("boot/stub.img", 0o666);
    let plain = ["install", "image", "--image", "/boot/stub.img"];
    host.refuses(&plain, "/boot/stub.img can be written by others");
    mode("boot/stub.img", 0o644);
    mode("boot/vmlinuz-6.1", 0o664);
    host.refuses(&plain, "/boot/vmlinuz-6.1 can be written by others");
}

/// The record's own file, and the folder of a place, as links to the outside.
#[test]
fn nothing_is_written_outside_of_the_root() {
    let host = Host::new();
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::create_dir_all(host.path("var/lib/stubdm")).unwrap();
    symlink(&victim, host.path(&format!("{RECORD}.part"))).unwrap();
    host.stdout(&["install"]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    host.stdout(&["uninstall"]);
    fs::remove_dir_all(host.path("etc")).unwrap();
    symlink(outside.path(), host.path("etc")).unwrap();
    // Below the root there is no such folder; outside there is.
    host.refuses(&["install", "policy"], "/etc is no folder");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}
