//! `stubdm-run image build`, `install` and `doctor` on roots as different distributions lay them
//! out: small trees of made-up ELF files.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use stubdm_image::{firmware, packed};
use tempfile::TempDir;

const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";
/// The drivers without which no stubdomain starts.
const DRIVERS: [&str; 5] = [
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkfront",
];
/// An ELF file with the parts that a dynamic linker reads.
#[derive(Clone, Default)]
struct Elf {
    interpreter: Option<&'static str>,
    needed: Vec<&'static str>,
    rpath: Option<&'static str>,
    runpath: Option<&'static str>,
    /// Strings in it, as of compiled-in paths.
    strings: &'static [u8],
}

impl Elf {
    fn library(needed: &[&'static str]) -> Self {
        Self {
            needed: needed.to_vec(),
            ..Self::default()
        }
    }

    fn program(interpreter: &'static str, needed: &[&'static str]) -> Self {
        Self {
            interpreter: Some(interpreter),
            ..Self::library(needed)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut strings = vec![0_u8];
        let mut text = |word: &str| {
            let at = strings.len() as u64;
            strings.extend(word.as_bytes());
            strings.push(0);
            at
        };
        let mut entries: Vec<(u64, u64)> = Vec::new();
        for name in &self.needed {
            entries.push((1, text(name)));
        }
        entries.extend(self.rpath.map(|path| (15, text(path))));
        entries.extend(self.runpath.map(|path| (29, text(path))));
        let interpreter = self
            .interpreter
            .map(|path| (text(path), path.len() as u64 + 1));
        strings.extend(self.strings);
        let count = 2 + u64::from(interpreter.is_some());
        let strings_at = 64 + count * 56;
        let dynamic_at = (strings_at + strings.len() as u64).next_multiple_of(8);
        entries.extend([(5, strings_at), (10, strings.len() as u64), (0, 0)]);
        let dynamic_size = entries.len() as u64 * 16;
        let size = dynamic_at + dynamic_size;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let mut put = |value: u64, width: usize| file.extend(&value.to_le_bytes()[..width]);
        // ET_DYN, for x86-64.
        let header = [(3, 2), (62, 2), (1, 4), (0, 8), (64, 8), (0, 8), (0, 4)];
        let sizes = [(64, 2), (56, 2), (count, 2), (64, 2), (0, 2), (0, 2)];
        for (value, width) in header.into_iter().chain(sizes) {
            put(value, width);
        }
        let mut segments = vec![(1, 0, size), (2, dynamic_at, dynamic_size)];
        segments.extend(interpreter.map(|(at, length)| (3, strings_at + at, length)));
        for (kind, at, length) in segments {
            for (value, width) in [(kind, 4), (4, 4), (at, 8), (at, 8), (at, 8)] {
                put(value, width);
            }
            for value in [length, length, 8] {
                put(value, 8);
            }
        }
        file.extend(strings);
        file.resize(usize::try_from(dynamic_at).unwrap(), 0);
        for (tag, value) in entries {
            file.extend(u64::to_le_bytes(tag));
            file.extend(value.to_le_bytes());
        }
        file
    }
}

/// A kernel's module, as far as it is read.
fn module(version: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends=\0vermagic={version} SMP\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let at = 64 + info.len() + names.len();
    let at = at.next_multiple_of(8);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let header = [(1, 2), (62, 2), (1, 4), (0, 8), (0, 8), (at, 8), (0, 4)];
    let sizes = [(64, 2), (0, 2), (0, 2), (64, 2), (3, 2), (2, 2)];
    for (value, width) in header.into_iter().chain(sizes) {
        file.extend(&(value as u64).to_le_bytes()[..width]);
    }
    file.extend(info.as_bytes());
    file.extend(names);
    file.resize(at + 64, 0);
    let sections = [
        (1, 1, 64, info.len()),
        (10, 3, 64 + info.len(), names.len()),
    ];
    for (name, kind, from, length) in sections {
        let fields = [(name, 4), (kind, 4), (0, 8), (0, 8), (from, 8), (length, 8)];
        for (value, width) in fields.into_iter().chain([(0, 8), (1, 8), (0, 8)]) {
            file.extend(&(value as u64).to_le_bytes()[..width]);
        }
    }
    file
}

/// A kernel with its version in the header, as in a bzImage.
fn kernel(version: &str) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
    file.extend(format!("{version} (someone@somewhere) #1 SMP\0").as_bytes());
    file
}

struct Tree {
    dir: TempDir,
}

impl Tree {
    /// Makes a root with a folder for each of `links` below `/usr`, and a link to it.
    fn new(links: &[&str]) -> Self {
        let tree = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for link in links {
            fs::create_dir_all(tree.path(&format!("usr/{link}"))).unwrap();
            symlink(format!("usr/{link}"), tree.path(link)).unwrap();
        }
        tree.elf("opt/init", &Elf::default());
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn elf(&self, path: &str, elf: &Elf) {
        self.put(path, &elf.bytes());
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    /// Adds a C library with its linker, which searches `folders`.
    fn libc(&self, folder: &str, interpreter: &str, folders: &'static [u8]) {
        let linker = Elf {
            strings: folders,
            ..Elf::default()
        };
        self.elf(interpreter, &linker);
        self.elf(&format!("{folder}/libc.so.6"), &Elf::default());
    }

    fn firmware(&self, folder: &str) {
        for name in firmware::names() {
            self.put(&format!("{folder}/{name}"), name.as_bytes());
        }
    }

    /// Adds modules of a kernel; those in `built_in` are only in its list.
    fn modules(&self, folder: &str, version: &str, built_in: &[&str]) {
        let mut list = String::new();
        for name in stubdm_image::MODULES.iter().chain(packed::DRIVERS) {
            match built_in.contains(name) {
                true => list += &format!("kernel/drivers/xen/{name}.ko\n"),
                false => self.put(
                    &format!("{folder}/{version}/kernel/{name}.ko"),
                    &module(version),
                ),
            }
        }
        self.put(
            &format!("{folder}/{version}/modules.builtin"),
            list.as_bytes(),
        );
    }

    fn run(&self, args: &[&str]) -> Output {
        // A read that waits forever ends with status 124.
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_stubdm-run")]);
        command.args(args).arg("--root").arg(self.dir.path());
        command.output().unwrap()
    }

    fn try_build(&self, more: &[&str]) -> (Output, PathBuf) {
        let (output, init) = (self.path("out.img"), self.path("opt/init"));
        let words = ["image", "build", "--json", "--compress", "none", "-o"];
        let paths = [output.to_str().unwrap(), "--init", init.to_str().unwrap()];
        let all: Vec<&str> = words.into_iter().chain(paths).collect();
        (self.run(&[&all[..], more].concat()), output)
    }

    /// Builds a ramdisk, which has to succeed.
    fn build(&self, more: &[&str]) -> (Value, BTreeMap<String, Option<String>>) {
        let (output, file) = self.try_build(more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let built = serde_json::from_slice(&output.stdout).unwrap();
        let listing = stubdm_image::read::listing(&fs::read(file).unwrap()).unwrap();
        let entries = listing.entries.into_iter();
        (
            built,
            entries.map(|entry| (entry.path, entry.link)).collect(),
        )
    }

    /// Returns the error of a build, which has to fail with one line.
    fn complaint(&self, more: &[&str]) -> String {
        let (output, file) = self.try_build(more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.lines().count() == 1 && !file.exists(), "{said}");
        said
    }
}

/// Fails unless each path is there and no link, and the firmware is where the init looks.
fn has(files: &BTreeMap<String, Option<String>>, paths: &[&str]) {
    let firmware = firmware::names().map(|name| format!("usr/share/qemu/{name}"));
    let firmware: Vec<_> = firmware.collect();
    let paths = paths
        .iter()
        .copied()
        .chain(firmware.iter().map(String::as_str));
    for path in paths {
        assert_eq!(files.get(path), Some(&None), "{path} in {files:#?}");
    }
    assert!(files.contains_key("usr/libexec/xen-qemu-system-i386"));
    // No path leads out of a folder.
    assert!(!files.keys().any(|path| path.contains("..")), "{files:#?}");
}

fn qemu_links_to(files: &BTreeMap<String, Option<String>>) -> Option<&str> {
    files["usr/libexec/xen-qemu-system-i386"].as_deref()
}

#[test]
fn debian_12_has_unmerged_folders_and_debian_13_merged_ones() {
    for links in [&[][..], &["bin", "lib", "lib64", "sbin"][..]] {
        let tree = Tree::new(links);
        let folders = b"\0/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0";
        tree.libc("lib/x86_64-linux-gnu", GLIBC, folders);
        tree.elf(
            "usr/lib/x86_64-linux-gnu/libxenctrl.so.4.17",
            &Elf::library(&["libc.so.6"]),
        );
        tree.put("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n");
        tree.put(
            "etc/ld.so.conf.d/x86_64-linux-gnu.conf",
            b"/lib/x86_64-linux-gnu\n",
        );
        let qemu = Elf::program(GLIBC, &["libxenctrl.so.4.17"]);
        tree.elf("usr/libexec/xen-qemu-system-i386", &qemu);
        tree.firmware("usr/share/seabios");
        tree.modules("lib/modules", "6.1.0", &[]);
        tree.put("boot/vmlinuz-6.1.0", b"");
        let (built, files) = tree.build(&[]);
        assert_eq!(built["lacks"], serde_json::json!([]));
        assert!(!built["config"].as_str().unwrap().contains("unrestricted"));
        has(
            &files,
            &[
                "usr/libexec/xen-qemu-system-i386",
                "usr/lib/x86_64-linux-gnu/libxenctrl.so.4.17",
                "usr/lib/x86_64-linux-gnu/libc.so.6",
                "usr/lib64/ld-linux-x86-64.so.2",
                "usr/lib/modules/xen-privcmd.ko",
            ],
        );
        // Its linker looks there by itself.
        assert!(
            !files.contains_key("usr/lib/libxenctrl.so.4.17"),
            "{files:#?}"
        );
    }
}

#[test]
fn ubuntu_has_drivers_in_the_kernel_and_a_library_that_only_the_cache_leads_to() {
    let tree = Tree::new(&["bin", "lib", "lib64", "sbin"]);
    let folders = b"\0/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0";
    tree.libc("usr/lib/x86_64-linux-gnu", GLIBC, folders);
    tree.put("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n");
    tree.put(
        "etc/ld.so.conf.d/xen.conf",
        b"# built by hand\n/opt/xen/lib\n",
    );
    let with_own = Elf {
        runpath: Some("$ORIGIN/private"),
        ..Elf::library(&["libxentoolcore.so.1", "libc.so.6"])
    };
    tree.elf("opt/xen/lib/libxenctrl.so.4.17", &with_own);
    tree.elf("opt/xen/lib/private/libxentoolcore.so.1", &Elf::default());
    let qemu = Elf::program(GLIBC, &["libxenctrl.so.4.17"]);
    tree.elf("usr/libexec/xen-qemu-system-i386", &qemu);
    tree.firmware("usr/share/seabios");
    tree.modules("lib/modules", "6.8.0-31-generic", &DRIVERS);
    let modinfo = b"xen_privcmd.license=GPL\0xen_privcmd.parmtype=unrestricted:bool\0";
    tree.put(
        "lib/modules/6.8.0-31-generic/modules.builtin.modinfo",
        modinfo,
    );
    tree.put("boot/vmlinuz-6.8.0-31-generic", b"");
    let (built, files) = tree.build(&[]);
    let config = built["config"].as_str().unwrap();
    assert!(config.contains(" xen_privcmd.unrestricted=1\""), "{config}");
    assert!(!files.contains_key("usr/lib/modules/xen-privcmd.ko"));
    has(
        &files,
        &[
            "opt/xen/lib/libxenctrl.so.4.17",
            "opt/xen/lib/private/libxentoolcore.so.1",
            "usr/lib/modules/xen-netfront.ko",
        ],
    );
    // The ramdisk has no cache: the links are where every linker looks.
    for (folder, name, to) in [
        (
            "usr/lib",
            "libxenctrl.so.4.17",
            "/opt/xen/lib/libxenctrl.so.4.17",
        ),
        (
            "usr/lib64",
            "libxenctrl.so.4.17",
            "/opt/xen/lib/libxenctrl.so.4.17",
        ),
        (
            "usr/lib",
            "libxentoolcore.so.1",
            "/opt/xen/lib/private/libxentoolcore.so.1",
        ),
    ] {
        assert_eq!(files[&format!("{folder}/{name}")].as_deref(), Some(to));
    }
}

#[test]
fn the_kernels_configuration_names_what_is_built_in_where_no_list_does() {
    let tree = small(&DRIVERS);
    fs::remove_file(tree.path("boot/vmlinuz-6.6.1")).unwrap();
    fs::remove_file(tree.path("lib/modules/6.6.1/modules.builtin")).unwrap();
    let said = tree.complaint(&[]);
    assert!(
        said.contains("whether it is built in is not known"),
        "{said}"
    );
    tree.put(
        "boot/config-6.6.1",
        b"CONFIG_XEN_PRIVCMD=y\n# CONFIG_XEN_GNTDEV is not set\n",
    );
    let said = tree.complaint(&[]);
    assert!(
        said.contains("xen-evtchn") && said.contains("not built in"),
        "{said}"
    );
    let config = "CONFIG_XEN_PRIVCMD=y\nCONFIG_XEN_DEV_EVTCHN=y\nCONFIG_XEN_GNTDEV=y\n\
        CONFIG_XEN_GRANT_DEV_ALLOC=y\nCONFIG_XEN_BLKDEV_FRONTEND=y\n";
    tree.put("boot/config-6.6.1", config.as_bytes());
    let (built, _) = tree.build(&[]);
    // No list names the driver's parameters, and a kernel without this one ignores it.
    assert!(built["config"].as_str().unwrap().contains("unrestricted=1"));
    let lacks = built["lacks"].to_string();
    assert!(lacks.contains("Linux 6.6.1 was not found"), "{lacks}");
}

#[test]
fn fedora_has_usr_lib64_beside_32_bit_libraries() {
    let tree = Tree::new(&["bin", "lib", "lib64", "sbin"]);
    tree.libc("usr/lib64", GLIBC, b"\0/lib64/\0/usr/lib64/\0");
    // The folder of the 32-bit libraries is searched first.
    tree.put("etc/ld.so.conf", b"/usr/lib\n");
    for name in ["libc.so.6", "libxenctrl.so.4.18", "libz.so.1"] {
        tree.put(
            &format!("usr/lib/{name}"),
            b"\x7fELF\x01\x01\x01 32 bits, and too much for the header",
        );
    }
    tree.elf(
        "usr/lib64/libxenctrl.so.4.18",
        &Elf::library(&["libc.so.6"]),
    );
    // A linker script in the first of the file's own folders, and the library in the second.
    tree.put(
        "usr/lib64/xen/lib64/libz.so.1",
        b"GROUP ( /usr/lib64/x )  and more of it",
    );
    tree.elf("usr/lib64/xen/lib/libz.so.1", &Elf::default());
    let qemu = Elf {
        rpath: Some("$ORIGIN/../$LIB:${ORIGIN}/../lib"),
        strings: b"\0/usr/share/qemu\0/usr/share/seavgabios\0",
        ..Elf::program(GLIBC, &["libxenctrl.so.4.18", "libz.so.1"])
    };
    tree.elf("usr/lib64/xen/bin/qemu-system-i386", &qemu);
    tree.firmware("usr/share/seavgabios");
    tree.modules(
        "usr/lib/modules",
        "6.9.4-200.fc40.x86_64",
        &["xen-blkfront"],
    );
    tree.put("usr/lib/modules/6.9.4-200.fc40.x86_64/vmlinuz", b"");
    let (built, files) = tree.build(&[]);
    let kernel = built["kernel"].as_str().unwrap();
    assert!(
        kernel.ends_with("lib/modules/6.9.4-200.fc40.x86_64/vmlinuz"),
        "{kernel}"
    );
    has(
        &files,
        &[
            "usr/lib64/xen/bin/qemu-system-i386",
            "usr/lib64/libxenctrl.so.4.18",
            "usr/lib64/xen/lib/libz.so.1",
        ],
    );
    assert_eq!(
        qemu_links_to(&files),
        Some("/usr/lib64/xen/bin/qemu-system-i386")
    );
    assert!(
        !files.contains_key("usr/lib/libxenctrl.so.4.18"),
        "{files:#?}"
    );
}

#[test]
fn alpine_has_musl_and_a_kernel_named_by_its_flavour() {
    let tree = Tree::new(&[]);
    let linker = Elf {
        strings: b"\0/lib:/usr/local/lib:/usr/lib\0/etc/ld-musl-\0",
        ..Elf::default()
    };
    tree.elf(MUSL, &linker);
    tree.elf(
        "usr/lib/libxenctrl.so.4.18",
        &Elf::library(&["libc.musl-x86_64.so.1"]),
    );
    let qemu = Elf::program(MUSL, &["libxenctrl.so.4.18", "libc.musl-x86_64.so.1"]);
    tree.elf("usr/lib/xen/bin/qemu-system-i386", &qemu);
    tree.firmware("usr/share/qemu-xen/qemu");
    tree.modules("lib/modules", "6.6.32-0-lts", &[]);
    tree.put("boot/config-6.6.32-0-lts", b"");
    tree.put("boot/a-file", b"no kernel");
    tree.put("boot/vmlinuz-lts", &kernel("6.6.32-0-lts"));
    tree.put("boot/vmlinuz-virt", &kernel("6.6.32-0-virt"));
    let (built, files) = tree.build(&[]);
    assert!(
        built["kernel"]
            .as_str()
            .unwrap()
            .ends_with("/boot/vmlinuz-lts")
    );
    has(
        &files,
        &[
            "usr/lib/ld-musl-x86_64.so.1",
            "usr/lib/libxenctrl.so.4.18",
            "usr/lib/xen/bin/qemu-system-i386",
        ],
    );
    // Where musl has a path file, only a link leads there in the ramdisk.
    fs::remove_file(tree.path("usr/lib/libxenctrl.so.4.18")).unwrap();
    tree.put("etc/ld-musl-x86_64.path", b"/lib:/opt/xen\n");
    tree.elf("opt/xen/libxenctrl.so.4.18", &Elf::default());
    let (_, files) = tree.build(&[]);
    let to = files["usr/lib/libxenctrl.so.4.18"].as_deref();
    assert_eq!(to, Some("/opt/xen/libxenctrl.so.4.18"));
}

/// NixOS: nothing but the store, reached by links below `/run/current-system`.
fn nixos() -> Tree {
    let tree = Tree::new(&[]);
    let linker = "/nix/store/aaa-glibc-2.40/lib/ld-linux-x86-64.so.2";
    tree.libc(
        "nix/store/aaa-glibc-2.40/lib",
        linker,
        b"\0/nix/store/aaa-glibc-2.40/lib/\0",
    );
    let qemu = Elf {
        runpath: Some("/nix/store/bbb-xen-4.19/lib:/nix/store/aaa-glibc-2.40/lib"),
        strings: b"\0/nix/store/ddd-seabios/share/seabios\0",
        ..Elf::program(linker, &["libxenctrl.so.4.19", "libc.so.6"])
    };
    tree.elf("nix/store/ccc-qemu/bin/.qemu-system-i386-wrapped", &qemu);
    tree.put(
        "nix/store/ccc-qemu/bin/qemu-system-i386",
        b"#!/bin/sh\nexec x\n",
    );
    let library = Elf {
        runpath: Some("/nix/store/aaa-glibc-2.40/lib"),
        ..Elf::library(&["libc.so.6"])
    };
    tree.elf("nix/store/bbb-xen-4.19/lib/libxenctrl.so.4.19", &library);
    let libxl = Elf {
        strings: b"\0qemu-system-i386\0/nix/store/bbb-xen-4.19/bin/vchan-socket-proxy\0",
        ..library
    };
    tree.elf("nix/store/bbb-xen-4.19/lib/libxenlight.so.4.19", &libxl);
    let xl = Elf {
        runpath: Some("/nix/store/bbb-xen-4.19/lib"),
        ..Elf::program(linker, &["libxenlight.so.4.19"])
    };
    tree.elf("nix/store/bbb-xen-4.19/bin/xl", &xl);
    tree.link("run/current-system", "/nix/store/sys");
    tree.link("nix/store/sys/sw/bin/xl", "/nix/store/bbb-xen-4.19/bin/xl");
    tree.link("run/booted-system", "/nix/store/sys");
    tree.firmware("nix/store/ddd-seabios/share/seabios");
    let modules = "nix/store/sys/kernel-modules/lib/modules";
    tree.modules(modules, "6.12.9", &DRIVERS);
    tree.put("nix/store/sys/kernel", &kernel("6.12.9"));
    tree
}

#[test]
fn nixos_has_everything_in_its_store() {
    let tree = nixos();
    let in_path = "nix/store/sys/sw/bin/qemu-system-i386";
    tree.link(in_path, "/nix/store/ccc-qemu/bin/qemu-system-i386");
    let (built, files) = tree.build(&[]);
    let kernel = built["kernel"].as_str().unwrap();
    assert!(kernel.ends_with("/run/booted-system/kernel"), "{kernel}");
    has(
        &files,
        &[
            "nix/store/ccc-qemu/bin/.qemu-system-i386-wrapped",
            "nix/store/bbb-xen-4.19/lib/libxenctrl.so.4.19",
            "nix/store/aaa-glibc-2.40/lib/libc.so.6",
            "nix/store/aaa-glibc-2.40/lib/ld-linux-x86-64.so.2",
        ],
    );
    assert_eq!(
        qemu_links_to(&files),
        Some("/nix/store/ccc-qemu/bin/.qemu-system-i386-wrapped")
    );
}

#[test]
fn a_qemu_that_was_built_without_xen_is_passed_over() {
    let tree = Tree::new(&["bin", "lib", "lib64", "sbin"]);
    tree.libc("usr/lib64", GLIBC, b"\0/lib64/\0/usr/lib64/\0");
    tree.elf("usr/lib64/libxenctrl.so.4.18", &Elf::default());
    tree.firmware("usr/share/qemu");
    tree.modules("lib/modules", "6.6.1", &[]);
    let without = Elf::program(GLIBC, &["libc.so.6"]);
    tree.elf("usr/bin/qemu-system-i386", &without);
    tree.put("usr/bin/qemu-system-x86_64", b"#!/bin/sh\n");
    let error = tree.complaint(&[]);
    assert!(error.contains("no QEMU for Xen was found"), "{error}");
    // The program that the script starts is looked at.
    tree.elf("usr/bin/.qemu-system-x86_64-wrapped", &without);
    let error = tree.complaint(&[]);
    assert!(error.contains("no QEMU for Xen was found"), "{error}");
    let with = Elf::program(GLIBC, &["libxenctrl.so.4.18"]);
    tree.elf("usr/local/bin/qemu-system-i386", &with);
    let (_, files) = tree.build(&[]);
    let to = qemu_links_to(&files);
    assert_eq!(to, Some("/usr/local/bin/qemu-system-i386"));
}

/// A tree whose packages are whole, with a QEMU that needs the C library.
fn small(built_in: &[&str]) -> Tree {
    let tree = Tree::new(&[]);
    tree.libc("lib/x86_64-linux-gnu", GLIBC, b"\0/lib/x86_64-linux-gnu/\0");
    let qemu = Elf::program(GLIBC, &["libc.so.6"]);
    tree.elf("usr/libexec/xen-qemu-system-i386", &qemu);
    tree.firmware("usr/share/qemu");
    tree.modules("lib/modules", "6.6.1", built_in);
    tree.put("boot/vmlinuz-6.6.1", &kernel("6.6.1"));
    tree
}

#[test]
fn a_broken_elf_file_is_one_line_and_no_panic() {
    let tree = small(&[]);
    let path = "usr/libexec/xen-qemu-system-i386";
    let good = fs::read(tree.path(path)).unwrap();
    // The offset of the first segment, which has the string table.
    let mut bytes = good.clone();
    bytes[72..80].copy_from_slice(&u64::MAX.to_le_bytes());
    tree.put(path, &bytes);
    let error = tree.complaint(&[]);
    assert!(error.contains("string table"), "{error}");
    // The second segment's type, so that there are two dynamic sections.
    let mut bytes = good;
    bytes[64] = 2;
    tree.put(path, &bytes);
    let error = tree.complaint(&[]);
    assert!(error.contains("two dynamic sections"), "{error}");
    let name = "a-library-whose-name-has-sixty-four-bytes-so-that-many-are-long-";
    tree.elf(path, &Elf::program(GLIBC, &[name; 2000]));
    let error = tree.complaint(&[]);
    assert!(error.contains("64 KiB of libraries"), "{error}");
    let folders: Vec<_> = (0..1100).map(|n| format!("/{n}")).collect();
    let qemu = Elf {
        rpath: Some(folders.join(":").leak()),
        ..Elf::program(GLIBC, &["libc.so.6"])
    };
    tree.elf(path, &qemu);
    let error = tree.complaint(&[]);
    assert!(error.contains("more than 1024 folders"), "{error}");
}

#[test]
fn the_launcher_without_a_qemu_behind_it_is_not_put_into_a_ramdisk() {
    let tree = small(&[]);
    let place = "usr/libexec/xen-qemu-system-i386";
    let real = tree.path(&format!("{place}.distrib"));
    tree.elf("usr/bin/stubdm-run", &Elf::default());
    fs::rename(tree.path(place), &real).unwrap();
    tree.link(place, "/usr/bin/stubdm-run");
    let (_, files) = tree.build(&[]);
    has(&files, &[place, "usr/lib/x86_64-linux-gnu/libc.so.6"]);
    fs::remove_file(real).unwrap();
    fs::remove_file(tree.path("out.img")).unwrap();
    let error = tree.complaint(&[]);
    assert!(error.contains("no QEMU for Xen was found"), "{error}");
}

#[test]
fn a_fifo_in_the_place_of_a_file_is_not_waited_for() {
    let tree = small(&[]);
    let mode = nix::sys::stat::Mode::S_IRUSR;
    for path in [
        "etc/ld.so.conf",
        "usr/lib/libc.so.6",
        "lib/modules/6.6.1/kernel/xenfs.ko",
        "boot/config-6.6.1",
    ] {
        let path = tree.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, mode).unwrap();
    }
    // The linker's configuration leads to the FIFO before the library.
    tree.put("etc/ld.so.conf.d/x.conf", b"/usr/lib\n");
    let error = tree.complaint(&[]);
    assert!(error.contains("xenfs.ko: it is no file"), "{error}");
    tree.put(
        "lib/modules/6.6.1/kernel/drivers/xenfs.ko",
        &module("6.6.1"),
    );
    fs::remove_file(tree.path("lib/modules/6.6.1/kernel/xenfs.ko")).unwrap();
    let (_, files) = tree.build(&[]);
    has(&files, &["usr/lib/x86_64-linux-gnu/libc.so.6"]);
}

#[test]
fn modules_behind_links_are_taken_from_inside_the_tree() {
    let tree = small(&[]);
    // As NixOS joins a kernel's modules and those of other packages.
    let store = "nix/store/aaa-modules";
    let top = tree.path("lib/modules/6.6.1");
    fs::create_dir_all(tree.path(store)).unwrap();
    fs::rename(top.join("kernel"), tree.path(store).join("kernel")).unwrap();
    symlink("/nix/store/aaa-modules/kernel", top.join("kernel")).unwrap();
    symlink("..", tree.path(store).join("kernel/loop")).unwrap();
    // The sources have modules too, which are not the installed ones.
    let sources = "usr/src/linux/drivers";
    tree.put(&format!("{sources}/xenfs.ko"), b"not one");
    symlink("/usr/src/linux", top.join("build")).unwrap();
    tree.link("lib/modules/6.6.1/extra", "/srv/extra");
    tree.put("srv/extra/more.ko", &module("6.6.1"));
    let (_, files) = tree.build(&["--module", "more"]);
    has(
        &files,
        &["usr/lib/modules/xenfs.ko", "usr/lib/modules/more.ko"],
    );
    // One that exists on this machine only.
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("other.ko");
    fs::write(&file, module("6.6.1")).unwrap();
    let path = tree.path(store).join("kernel/other.ko");
    symlink(&file, path).unwrap();
    fs::remove_file(tree.path("out.img")).unwrap();
    let error = tree.complaint(&["--module", "other"]);
    assert!(error.contains("no module other"), "{error}");
    let error = tree.complaint(&["--kernel", "../../usr"]);
    assert!(error.contains("no version of a kernel"), "{error}");
}

#[test]
fn what_was_not_found_is_reported_with_every_place_looked_in() {
    let tree = nixos();
    let said = tree.complaint(&[]);
    for part in [
        "was found below",
        "/usr/libexec/xen-qemu-system-i386",
        "--qemu",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    let named = [
        "--qemu",
        "/nix/store/ccc-qemu/bin/.qemu-system-i386-wrapped",
    ];
    fs::remove_file(tree.path("nix/store/bbb-xen-4.19/lib/libxenctrl.so.4.19")).unwrap();
    let said = tree.complaint(&named);
    for part in [
        "needs libxenctrl.so.4.19",
        "nix/store/bbb-xen-4.19/lib",
        "usr/local/lib",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    tree.elf("srv/lib/libxenctrl.so.4.19", &Elf::default());
    let named = [&named[..], &["--library-dir", "/srv/lib"]].concat();
    tree.build(&named);
    fs::rename(tree.path("nix/store/ddd-seabios"), tree.path("srv/seabios")).unwrap();
    fs::remove_file(tree.path("out.img")).unwrap();
    let said = tree.complaint(&named);
    for part in ["vgabios-cirrus.bin", "/usr/share/seabios", "--firmware-dir"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    tree.build(
        &[
            &named[..],
            &["--firmware-dir", "/srv/seabios/share/seabios"],
        ]
        .concat(),
    );
}

/// Checks that `install` fails with one line that has these parts.
fn refused(tree: &Tree, part: &str, parts: &[&str]) {
    let output = tree.run(&["install", part]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && said.lines().count() == 1,
        "{said}"
    );
    for part in parts {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(!said.contains("there is no libxl"), "{said}");
}

#[test]
fn install_prints_where_it_looked_for_libxl_and_for_a_qemu_on_path() {
    let tree = Tree::new(&[]);
    refused(
        &tree,
        "proxy",
        &[
            "no libxl was found",
            "/usr/lib64",
            "/usr/local/lib",
            "/usr/sbin/xl",
            "ld.so.conf",
        ],
    );
    tree.put("opt/xen/lib/libxenlight.so.4.19.0", b"\0qemu-system-i386\0");
    tree.put("etc/ld.so.conf", b"/opt/xen/lib\n");
    refused(
        &tree,
        "device-model",
        &[
            "libxl 4.19 (/opt/xen/lib/libxenlight.so.4.19.0)",
            "on PATH",
            "/usr/local/bin",
        ],
    );
    refused(&tree, "proxy", &["names no place for it", "libxl 4.19"]);
    // The store is found by way of xl, and is Nix's.
    refused(
        &nixos(),
        "proxy",
        &["/nix/store/bbb-xen-4.19/bin/vchan-socket-proxy", "override"],
    );
}

#[test]
fn a_qemu_on_path_gets_the_launcher_in_its_place() {
    let tree = Tree::new(&[]);
    tree.put("usr/lib64/libxenlight.so.4.19.0", b"\0qemu-system-i386\0");
    tree.put("usr/bin/qemu-system-i386", b"QEMU");
    tree.put("usr/bin/stubdm-run", b"#!/bin/sh\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(tree.path("usr/bin/stubdm-run"), mode).unwrap();
    tree.put("var/lib/x", b"");
    let output = tree.run(&["install", "device-model"]);
    assert!(output.status.success(), "{output:?}");
    let place = tree.path("usr/bin/qemu-system-i386");
    assert_eq!(
        fs::read_link(place).unwrap(),
        Path::new("/usr/bin/stubdm-run")
    );
    let real = tree.path("usr/bin/qemu-system-i386.distrib");
    assert_eq!(fs::read(real).unwrap(), b"QEMU");
}

/// Returns the state and finding of the doctor's check of the only image.
fn image(tree: &Tree) -> (String, String) {
    let all = images(tree);
    let [one] = &all[..] else { panic!("{all:?}") };
    one.clone()
}

fn images(tree: &Tree) -> Vec<(String, String)> {
    let output = tree.run(&["doctor", "--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = value["checks"].as_array().unwrap();
    let all = all.iter().filter(|check| check["name"] == "image");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|check| (text(&check["state"]), text(&check["found"])))
        .collect()
}

#[test]
fn a_ramdisk_is_judged_by_its_kernel() {
    let tree = small(&DRIVERS);
    tree.link("boot/vmlinuz", "vmlinuz-6.6.1");
    tree.build(&[]);
    let config = |kernel: &str| {
        let text = format!("type=\"hvm\"\nstubdomain_ramdisk=\"/out.img\"\n{kernel}\n");
        tree.put("etc/xen/g.cfg", text.as_bytes());
    };
    config("stubdomain_kernel=\"/boot/vmlinuz\"");
    let (state, found) = image(&tree);
    assert_eq!(state, "ok", "{found}");
    config("");
    let (state, found) = image(&tree);
    assert!(
        state == "note" && found.contains("was not found out"),
        "{found}"
    );
    // The next kernel has them as modules.
    tree.modules("lib/modules", "6.7.0", &[]);
    tree.put("boot/vmlinuz-6.7.0", &kernel("6.7.0"));
    config("stubdomain_kernel=\"/boot/vmlinuz-6.7.0\"");
    let (state, found) = image(&tree);
    assert!(
        state == "wrong" && found.contains("lacks the module"),
        "{found}"
    );
    tree.build(&["--kernel", "6.7.0"]);
    assert_eq!(image(&tree).0, "ok");
    config("stubdomain_kernel=\"/boot/vmlinuz\"");
    let (state, found) = image(&tree);
    let both = found.contains("for Linux 6.7.0") && found.contains("is Linux 6.6.1");
    assert!(state == "wrong" && both, "{found}");
    // Another guest has the right kernel.
    let other = "type=\"hvm\"\nstubdomain_ramdisk=\"/out.img\"\nstubdomain_kernel=\"/boot/vmlinuz-6.7.0\"\n";
    tree.put("etc/xen/h.cfg", other.as_bytes());
    let states: Vec<_> = images(&tree).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["wrong", "ok"]);
}

#[test]
fn a_boot_rom_that_was_not_found_is_named_by_the_build_and_the_doctor() {
    let tree = small(&[]);
    let text = "type=\"hvm\"\nstubdomain_ramdisk=\"/out.img\"\nstubdomain_kernel=\"/boot/vmlinuz-6.6.1\"\n";
    tree.put("etc/xen/g.cfg", text.as_bytes());
    let (built, files) = tree.build(&[]);
    assert_eq!(built["lacks"], serde_json::json!([]));
    assert!(files.contains_key("usr/share/qemu/efi-vmxnet3.rom"));
    assert_eq!(image(&tree).0, "ok");
    for rom in ["efi-vmxnet3.rom", "pxe-eepro100.rom"] {
        fs::remove_file(tree.path(&format!("usr/share/qemu/{rom}"))).unwrap();
    }
    let (built, _) = tree.build(&[]);
    let lacks = built["lacks"].to_string();
    let (state, found) = image(&tree);
    assert_eq!(state, "note");
    for said in [lacks, found] {
        assert!(said.contains("pxe-eepro100.rom, efi-vmxnet3.rom"), "{said}");
    }
}
