//! `stubdm-run image`: from a made-up root to a ramdisk, twice the same, and what is missing by
//! name.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A root with a "QEMU" that is this machine's own `true`, its libraries, firmware and modules.
struct Root {
    dir: TempDir,
}

impl Root {
    fn new() -> Self {
        let root = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        // The test program needs the same libraries as a dynamic stubdm-run, and so does `true`
        // some of them.
        root.copy(Path::new("/bin/true"), "usr/libexec/xen-qemu-system-i386");
        for library in libraries() {
            let name = library.file_name().unwrap().to_str().unwrap().to_owned();
            let place = match name.starts_with("ld-") {
                true => format!("lib64/{name}"),
                false => format!("lib/x86_64-linux-gnu/{name}"),
            };
            root.copy(&library, &place);
        }
        // As Debian's packages have them.
        for name in stubdm_image::firmware::names() {
            let folder = match name.starts_with("vgabios") {
                true => "usr/share/seabios",
                false if name.ends_with(".rom") => "usr/lib/ipxe/qemu",
                false => "usr/share/qemu",
            };
            root.put(&format!("{folder}/{name}"), b"firmware");
        }
        for module in stubdm_image::MODULES {
            root.put(
                &format!("lib/modules/6.1.0/kernel/{module}.ko"),
                &module_with(""),
            );
        }
        root.put("lib/modules/6.1.0/kernel/macvtap.ko", &module_with("tap"));
        root.put("lib/modules/6.1.0/kernel/net/tap.ko", &module_with(""));
        root
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn copy(&self, from: &Path, to: &str) {
        self.put(to, &fs::read(from).unwrap());
    }

    fn build(&self, output: &Path, more: &[&str]) -> Output {
        let mut command = image();
        command.args(["build", "--root"]).arg(self.dir.path());
        command
            .arg("--output")
            .arg(output)
            .args(more)
            .output()
            .unwrap()
    }

    /// The one line about what is wrong.
    fn complaint(&self, more: &[&str]) -> String {
        let output = self.dir.path().join("never.img");
        let said = self.build(&output, more);
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!output.exists() && said.stdout.is_empty());
        text
    }
}

fn image() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command.arg("image");
    command
}

/// The shared libraries this very program runs with, and libm, which a dynamic stubdm-run needs.
fn libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut all: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.contains(".so"))
        .map(PathBuf::from)
        .collect();
    let libc = all.iter().find(|path| path.ends_with("libc.so.6"));
    let libm = libc.map(|path| path.with_file_name("libm.so.6"));
    all.extend(libm);
    all.sort();
    all.dedup();
    assert!(all.len() > 1);
    all
}

/// The least ELF file with a `.modinfo` section.
fn module_with(depends: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let (info_at, names_at) = (64, 64 + info.len());
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for (value, width) in [
        (1, 2),
        (62, 2),
        (1, 4),
        (0, 8),
        (0, 8),
        (sections_at, 8),
        (0, 4),
        (64, 2),
        (0, 2),
        (0, 2),
        (64, 2),
        (3, 2),
        (2, 2),
    ] {
        file.extend(&(value as u64).to_le_bytes()[..width]);
    }
    file.extend(info.as_bytes());
    file.extend(names);
    file.resize(sections_at + 64, 0);
    for (name, kind, at, size) in [(1, 1, info_at, info.len()), (10, 3, names_at, names.len())] {
        for (value, width) in [
            (name, 4),
            (kind, 4),
            (0, 8),
            (0, 8),
            (at, 8),
            (size, 8),
            (0, 8),
            (1, 8),
            (0, 8),
        ] {
            file.extend(&(value as u64).to_le_bytes()[..width]);
        }
    }
    file
}

fn inspect(file: &Path) -> Value {
    let output = image()
        .arg("inspect")
        .arg(file)
        .arg("--json")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_ramdisk_is_built_listed_and_built_again_the_same() {
    let root = Root::new();
    let (one, two) = (root.dir.path().join("1.img"), root.dir.path().join("2.img"));
    let said = root.build(&one, &[]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    for line in [
        "device_model_version=\"qemu-xen\"",
        "stubdomain_kernel=\"/boot/vmlinuz-6.1.0\"",
        &format!("stubdomain_ramdisk=\"{}\"", one.display()),
        "stubdomain_memory=",
    ] {
        assert!(
            text.lines().any(|l| l.starts_with(line)),
            "no {line} in {text}"
        );
    }
    // Another time, another place for the process: the same bytes.
    for file in walk(root.dir.path()) {
        let file = fs::File::options().append(true).open(file).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
    }
    root.build(&two, &[]);
    assert!(
        fs::read(&one).unwrap() == fs::read(&two).unwrap(),
        "two builds differ"
    );

    let listing = inspect(&one);
    let entries = listing["entries"].as_array().unwrap();
    let find = |path: &str| {
        let mut found = entries.iter().filter(|e| e["path"] == path);
        found
            .next()
            .unwrap_or_else(|| panic!("no {path} in {listing}"))
    };
    assert_eq!(find("init")["link"], "usr/bin/stubdm-run");
    assert_eq!(find("dev/null")["mode"], "20600");
    assert_eq!(find("usr/libexec/xen-qemu-system-i386")["mode"], "100755");
    find("usr/lib/x86_64-linux-gnu/libc.so.6");
    find("usr/lib/modules/tap.ko");
    find("usr/share/qemu/vgabios-stdvga.bin");
    assert_eq!(listing["compressed"], true);
    assert!(listing["unpacked"].as_u64() > listing["size"].as_u64());

    let plain = root.dir.path().join("plain.img");
    root.build(&plain, &["--compress", "none"]);
    let other = inspect(&plain);
    assert_eq!(other["entries"], listing["entries"]);
    assert_eq!(other["size"], listing["unpacked"]);
    let left = walk(root.dir.path());
    assert!(!left.iter().any(|f| f.to_str().unwrap().ends_with(".part")));
}

/// Returns the paths and lengths of a ramdisk's files that are in none of these folders.
fn files(listing: &Value, without: &[&str]) -> Vec<(String, u64)> {
    let entries = listing["entries"].as_array().unwrap().iter();
    let own = entries.filter_map(|entry| {
        let path = entry["path"].as_str().unwrap();
        let is_file = entry["mode"].as_str().unwrap().starts_with("100");
        let left_out = without.iter().any(|folder| path.starts_with(folder));
        (is_file && !left_out).then(|| (path.to_owned(), entry["size"].as_u64().unwrap()))
    });
    let mut all: Vec<_> = own.collect();
    all.sort();
    // The init may need libraries that QEMU needs as well.
    all.dedup();
    all
}

#[test]
fn all_that_qemu_needs_is_packed_where_the_kernel_can_mount_it() {
    let root = Root::new();
    let file = root.dir.path().join("x.img");
    root.put("boot/vmlinuz-6.1.0", b"kernel");
    let built = |more: &[&str]| -> Value {
        // A small init, as one that is built to be shipped.
        let first = ["--json", "--compress", "none", "--init", "/bin/true"];
        let said = root.build(&file, &[&first[..], more].concat());
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        serde_json::from_slice(&said.stdout).unwrap()
    };
    // A kernel without the two modules: as large as before, with a line that states why.
    let plain = built(&[]);
    let plain_list = inspect(&file);
    assert_eq!(plain["packed"], false);
    assert_eq!(plain_list["packed"], false);
    let lacks = plain["lacks"].to_string();
    assert!(
        lacks.contains("no module loop") && lacks.contains("needs more"),
        "{lacks}"
    );
    assert!(plain["memory"].as_u64().unwrap() > 288);

    for name in ["loop", "squashfs"] {
        root.put(
            &format!("lib/modules/6.1.0/kernel/{name}.ko"),
            &module_with(""),
        );
    }
    let packed = built(&[]);
    let packed_list = inspect(&file);
    assert_eq!(packed["packed"], true);
    assert_eq!(packed["lacks"].as_array().unwrap().len(), 0, "{packed}");
    // This QEMU's version is not known.
    let config = packed["config"].as_str().unwrap();
    assert!(config.ends_with("\nvnc=0\n"), "{config}");
    assert_eq!(packed["memory"], 128);
    let own = ["packed/", "usr/bin/stubdm-run"];
    assert_eq!(files(&packed_list, &own), files(&plain_list, &own));
    // In the ramdisk itself: what mounts it.
    let names: Vec<_> = files(&packed_list, &["usr/"])
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    let mounts = ["loop.ko", "order", "root.squashfs", "squashfs.ko"];
    assert_eq!(names, mounts.map(|name| format!("packed/{name}")));
    let first = packed_list["entries"].as_array().unwrap().iter();
    let first = first.take_while(|entry| entry["path"] != "packed/root.squashfs");
    assert!(
        !first
            .into_iter()
            .any(|entry| entry["path"].to_string().contains("qemu"))
    );

    let left = built(&["--no-pack"]);
    assert_eq!(left["packed"], false);
    assert_eq!(left["lacks"].as_array().unwrap().len(), 0, "{left}");
    assert_eq!(inspect(&file)["entries"], plain_list["entries"]);
}

#[test]
fn where_the_launcher_has_qemus_place_the_real_one_goes_in() {
    let root = Root::new();
    let qemu = "usr/libexec/xen-qemu-system-i386";
    let (one, two) = (root.dir.path().join("1.img"), root.dir.path().join("2.img"));
    let printed = |built: Output| String::from_utf8(built.stdout).unwrap();
    let text = printed(root.build(&one, &[]));
    assert!(text.contains("\nvnc=0\n"), "{text}");
    assert!(
        text.contains("# stubdm-run install device-model\n"),
        "{text}"
    );
    let place = root.dir.path().join(qemu);
    fs::rename(&place, root.dir.path().join(format!("{qemu}.distrib"))).unwrap();
    root.put(qemu, b"our launcher");
    // The launcher makes QEMU serve the screen.
    let text = printed(root.build(&two, &[]));
    assert!(!text.contains("vnc=0\n"), "{text}");
    assert!(!text.contains("device-model\n"), "{text}");
    assert!(fs::read(one).unwrap() == fs::read(two).unwrap());
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(walk(&path)),
            false => all.push(path),
        }
    }
    all
}

#[test]
fn what_is_missing_is_named() {
    let root = Root::new();
    let text = root.complaint(&["--module", "xen-nonsense"]);
    assert!(text.contains("no module xen-nonsense"), "{text}");
    let text = root.complaint(&["--file", "/usr/share/qemu/keymaps/de"]);
    assert!(text.contains("usr/share/qemu/keymaps/de"), "{text}");
    let text = root.complaint(&["--kernel", "5.0"]);
    assert!(text.contains("lib/modules/5.0"), "{text}");
    let text = root.complaint(&["--init", "/nonexistent/init"]);
    assert!(text.contains("/nonexistent/init"), "{text}");
    root.put("lib/modules/6.12.0/kernel/x.ko", b"");
    let text = root.complaint(&[]);
    assert!(
        text.contains("6.1.0, 6.12.0") && text.contains("--kernel"),
        "{text}"
    );
    let text = root.complaint(&["--kernel", "6.12.0"]);
    assert!(text.contains("no module xen-privcmd"), "{text}");
    fs::remove_file(root.dir.path().join("lib/x86_64-linux-gnu/libc.so.6")).unwrap();
    let text = root.complaint(&["--kernel", "6.1.0"]);
    assert!(
        text.contains("needs libc.so.6") && text.contains("xen-qemu"),
        "{text}"
    );
    fs::remove_file(root.dir.path().join("usr/libexec/xen-qemu-system-i386")).unwrap();
    let text = root.complaint(&["--kernel", "6.1.0"]);
    assert!(text.contains("xen-qemu-system-i386"), "{text}");
}

#[test]
fn what_is_no_ramdisk_and_where_nothing_can_be_written_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    fs::write(&file, "no ramdisk").unwrap();
    let root = Root::new();
    for (output, part) in [
        (
            image().arg("inspect").arg(&file).output().unwrap(),
            "ramdisk",
        ),
        (
            image().args(["inspect", "/nonexistent"]).output().unwrap(),
            "/nonexistent",
        ),
        (
            // It has no end.
            image().args(["inspect", "/dev/zero"]).output().unwrap(),
            "/dev/zero: it is no file",
        ),
        (
            image().arg("inspect").arg(dir.path()).output().unwrap(),
            "it is a folder",
        ),
        (
            root.build(Path::new("/nonexistent/a/b"), &[]),
            "/nonexistent/a/b",
        ),
    ] {
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(part) && text.lines().count() == 1, "{text}");
    }
    let output = image().arg("build").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
