//! The package as dpkg sees it: the same bytes twice, installed below a root of its own, and gone
//! again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use super::*;

/// In `stubdm-run`'s place: writes down its arguments.
const PROGRAM: &str =
    "#!/bin/sh\necho \"$DPKG_MAINTSCRIPT_PACKAGE: $*\" >> \"$DPKG_ROOT/called\"\n";

/// The package of a folder with `program`, `man` and `completions`.
fn package(folder: &Path) -> Vec<u8> {
    let workspace = Workspace::find().unwrap();
    let data = data(&workspace, &folder.join("program"), folder).unwrap();
    let mut bytes = Vec::new();
    pack::write(
        &mut bytes,
        &control(&data, env!("CARGO_PKG_VERSION")).unwrap(),
        &data,
        TIME,
    )
    .unwrap();
    bytes
}

pub(super) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}

#[test]
fn it_is_the_same_twice_and_dpkg_installs_and_removes_it() {
    run(Command::new("dpkg").arg("--version"));
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::write(&program, PROGRAM).unwrap();
    for page in ["man/stubdm-run-install.1", "completions/_stubdm-run"] {
        let page = dir.path().join(page);
        fs::create_dir_all(page.parent().unwrap()).unwrap();
        fs::write(page, "text\n").unwrap();
    }
    let bytes = package(dir.path());
    // Later, and with other permissions: neither is in the package.
    fs::write(&program, PROGRAM).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(
        bytes == package(dir.path()),
        "two packages of the same files differ"
    );

    let file = dir.path().join("x.deb");
    fs::write(&file, &bytes).unwrap();
    let listing = run(Command::new("dpkg-deb").arg("-c").arg(&file)).stdout;
    let listing = String::from_utf8(listing).unwrap();
    for part in [
        "-rwxr-xr-x root/root",
        "usr/bin/stubdm-run\n",
        "usr/share/man/man1/stubdm-run-install.1.gz\n",
        "usr/share/zsh/vendor-completions/_stubdm-run\n",
        "usr/lib/systemd/system/stubdm-doctor.service\n",
        "usr/lib/systemd/system/stubdm-supervise.service\n",
        "etc/init.d/stubdm-supervise\n",
        "usr/share/doc/stubdm/copyright\n",
        "usr/share/lintian/overrides/stubdm\n",
    ] {
        assert!(listing.contains(part), "no {part:?} in\n{listing}");
    }

    let root = dir.path().join("root");
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(folder)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    fs::write(root.join("var/lib/dpkg/available"), "").unwrap();
    let dpkg = |args: &[&str]| {
        let mut command = Command::new("dpkg");
        command
            .arg("--root")
            .arg(&root)
            .args(["--force-not-root", "--force-script-chrootless"]);
        command.arg("--log=/dev/null");
        run(command.args(args)).stdout
    };
    let shown = root.display().to_string();
    dpkg(&["-i", file.to_str().unwrap()]);
    let called = fs::read_to_string(root.join("called")).unwrap();
    assert_eq!(
        called,
        format!("stubdm: install --if-xen --root {shown} --program /usr/bin/stubdm-run\n")
    );
    // As an upgrade: nothing is taken out meanwhile.
    dpkg(&["-i", file.to_str().unwrap()]);
    let called = fs::read_to_string(root.join("called")).unwrap();
    assert_eq!(called.matches("install --if-xen").count(), 2, "{called}");
    assert!(!called.contains("uninstall"), "{called}");
    assert!(dpkg(&["--verify", NAME]).is_empty());
    dpkg(&["-r", NAME]);
    let called = fs::read_to_string(root.join("called")).unwrap();
    assert!(
        called.ends_with(&format!("stubdm: uninstall --root {shown}\n")),
        "{called}"
    );
    assert!(!root.join("usr").exists(), "a file or a folder stayed");
    let script = root.join(INIT_SCRIPT);
    assert!(script.exists(), "an administrator's, until the purge");
    dpkg(&["-P", NAME]);
    assert!(!script.exists());
}

#[test]
fn the_scripts_are_sound_and_the_changelog_is_of_this_version() {
    let script = include_str!("../../assets/deb/stubdm-supervise.init");
    for (name, text) in CONTROL.iter().chain([&("init.d", script)]) {
        let mut child = Command::new("sh")
            .args(["-n", "-s"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), text.as_bytes()).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "{name}");
    }
    let changelog = include_str!("../../assets/deb/changelog");
    let version = format!("{NAME} ({})", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&version), "{changelog}");
}

#[test]
fn the_version_before_is_another_program() {
    let program = [
        b"stubdm-run ",
        VERSION.as_bytes(),
        b"\0",
        VERSION.as_bytes(),
    ]
    .concat();
    let before = [b"stubdm-run ", BEFORE.as_bytes(), b"\0", BEFORE.as_bytes()].concat();
    assert_eq!(older(program).unwrap(), before);
    assert!(older(before).is_err(), "a program without its version");
}
