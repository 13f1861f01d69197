//! dom0's root: the Xen tools, busybox, our binaries, and what the guests are started from.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use stubdm_image::cpio::{Archive, Content};
use stubdm_image::firmware::{self, Firmware};

use super::Parts;

/// Programs from the toolstack's private folder, which stay there and are linked from `/usr/bin`.
const XEN_PROGRAMS: &[&str] = &[
    "libxl-save-helper",
    "oxenstored",
    "test-resource",
    "test-xenstore",
    "xen-diag",
    "xen-init-dom0",
    "xenconsole",
    "xenconsoled",
    "xenctx",
    "xenpm",
    "xenstore-control",
    "xenstored",
    "xentop",
    "xl",
];

/// The same, of what Arm does not have.
const XEN_PROGRAMS_OF_X86: &[&str] = &["lsevtchn", "readnotes", "xen-hvmctx"];

/// The store's clients.
const STORE_CLIENTS: &[&str] = &[
    "usr/bin/xenstore-chmod",
    "usr/bin/xenstore-exists",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-watch",
    "usr/bin/xenstore-write",
];

/// A library that the C library loads by name: xl cancels threads.
const LIBGCC: &str = "libgcc_s.so.1";

/// Files of the packages, under their own names.
const FILES: &[&str] = &[
    // The device model of a guest without a stubdomain, and of a stubdomain where ours hands over
    // to it.
    "usr/libexec/xen-qemu-system-i386",
    // The device model in dom0 reads it even where there is no VNC.
    "usr/share/qemu/keymaps/en-us",
    // Our package is installed with these.
    "bin/tar",
    "usr/bin/dpkg",
    "usr/bin/dpkg-deb",
    "usr/bin/dpkg-divert",
    "usr/bin/dpkg-query",
    "usr/bin/dpkg-split",
    // The guest's BIOS, which libxl hands to hvmloader.
    "usr/share/seabios/bios-256k.bin",
];

/// Modules of the kernel package that dom0 needs.
const MODULES: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkback",
    "xen-netback",
    "bridge",
    "tun",
    "loop",
];

/// The same on Arm, where no guest has a disk or a network.
const MODULES_ARM64: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
];

/// Modules that dom0 has and does not load: a test does.
const MODULES_AT_HAND: &[&str] = &["xen-pciback"];

/// Text files of the testbed's own.
const TEXTS: &[(&str, &str)] = &[
    (
        "etc/xen/hvm-plain.cfg",
        include_str!("../../assets/hvm-plain.cfg"),
    ),
    ("etc/xen/pv.cfg", include_str!("../../assets/pv.cfg")),
    // dpkg's database, of no package: ours depends on none.
    ("var/lib/dpkg/status", ""),
    ("var/lib/dpkg/available", ""),
];

/// Text files of the testbed's own for every architecture.
const COMMON_TEXTS: &[(&str, &str)] = &[
    ("etc/xen/xl.conf", include_str!("../../assets/xl.conf")),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/profile", include_str!("../../assets/profile")),
];

/// dom0's process 1.
const INIT: &str = include_str!("../../assets/dom0-init");

/// The HVM guest with a stubdomain, and the line that gives the stubdomain its memory.
const GUEST: &str = include_str!("../../assets/hvm.cfg");
const MEMORY: &str = "stubdomain_memory=";

/// Scripts of the testbed's own.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "etc/xen/scripts/block-testbed",
        include_str!("../../assets/block-testbed"),
    ),
    // dpkg requires one to exist.
    ("usr/sbin/ldconfig", "#!/bin/sh\n"),
    (
        "etc/xen/scripts/vif-testbed",
        include_str!("../../assets/vif-testbed"),
    ),
];

/// Our package, which dom0's init installs.
const PACKAGE: &str = "root/stubdm.deb";

/// The guests' ramdisks, to be found below `/boot` in dom0.
#[derive(Debug)]
pub(crate) struct Guests<'a> {
    /// The stubdomain's.
    pub(crate) stub: &'a Path,
    /// The lines that `stubdm-run image build` prints for it.
    pub(crate) printed: &'a str,
    /// The PV guest's.
    pub(crate) domu: &'a Path,
    /// The Linux guest's disk, without its kernel.
    pub(crate) linux: Option<&'a Path>,
}

/// Returns the guest's configuration, with as much memory for the stubdomain as the printed lines
/// give it.
fn guest(printed: &str) -> String {
    let memory = |text: &str| {
        let line = text.lines().find(|line| line.starts_with(MEMORY));
        line.map(str::to_owned)
    };
    match (memory(GUEST), memory(printed)) {
        (Some(own), Some(printed)) => GUEST.replace(&own, &printed),
        _ => GUEST.to_owned(),
    }
}

/// Adds the toolstack, with `programs` of its private folder, `files`, modules, settings, the test
/// agent, the C programs, and busybox with those of its names that are not there yet.
fn add_common(
    parts: &Parts,
    archive: &mut Archive,
    (programs, files, modules): (&[&str], &[&str], &[&str]),
) -> Result<()> {
    let (bin, triple) = (parts.release.xen_bin, parts.release.arch.triple());
    let programs = || XEN_PROGRAMS.iter().chain(programs);
    let own: Vec<String> = programs()
        .map(|program| format!("{bin}/{program}"))
        .collect();
    let libgcc = format!("lib/{triple}/{LIBGCC}");
    let paths: Vec<&str> = own
        .iter()
        .map(String::as_str)
        .chain(STORE_CLIENTS.iter().chain(files).copied())
        .chain([libgcc.as_str()])
        .collect();
    parts.add(archive, &paths)?;
    for program in programs() {
        archive.link(&format!("usr/bin/{program}"), &format!("/{bin}/{program}"));
    }
    parts.add_busybox(archive)?;
    parts.add_modules(archive, modules)?;
    for (path, text) in COMMON_TEXTS {
        archive.text(path, text);
    }
    archive.program("init", Content::Bytes(INIT.as_bytes().to_vec()));
    archive.text("etc/xen/release", &format!("{}\n", parts.release.name));
    if let Some(file) = &parts.agent {
        archive.program("usr/bin/xen-testbed-agent", Content::File(file.clone()));
    }
    for file in &parts.c_programs {
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        parts.add_own(archive, &format!("usr/bin/{name}"), file)?;
    }
    archive.file("boot/vmlinuz", Content::File(parts.plain_kernel()?));
    Ok(())
}

/// Builds the image of a dom0 on 64-bit Arm, whose guest has the ramdisk `domu`.
pub(crate) fn build_for_arm64(parts: &Parts, domu: &Path) -> Result<PathBuf> {
    let mut archive = Archive::root();
    add_common(parts, &mut archive, (&[], &[], MODULES_ARM64))?;
    archive.text("etc/xen/pvh.cfg", include_str!("../../assets/pvh.cfg"));
    archive.file("boot/domu.img", Content::File(domu.to_owned()));
    parts.write("dom0.img", &archive)
}

/// Builds dom0's image.
pub(crate) fn build(parts: &Parts, guests: &Guests<'_>) -> Result<PathBuf> {
    let mut archive = Archive::root();
    let bin = parts.release.xen_bin;
    add_common(parts, &mut archive, (XEN_PROGRAMS_OF_X86, FILES, MODULES))?;
    let proxy = format!("{bin}/vchan-socket-proxy");
    parts.add(&mut archive, &[&proxy])?;
    let boot = format!("{}/boot/hvmloader", bin.trim_end_matches("/bin"));
    parts.add(&mut archive, &[&boot])?;
    let firmware = Firmware::of(&parts.tree.root, stubdm_image::QEMU, &[]);
    for name in firmware::names() {
        let path = firmware.find(name);
        let path = path.with_context(|| format!("no {name} in its package"))?;
        parts.add(&mut archive, &[&path])?;
    }
    for (name, content) in parts.modules.closure(MODULES_AT_HAND)? {
        archive.file(&format!("lib/modules/{name}"), content);
    }
    for (path, text) in TEXTS {
        archive.text(path, text);
    }
    archive.text("etc/xen/hvm.cfg", &guest(guests.printed));
    archive.text("etc/xen/printed-lines", guests.printed);
    for (path, text) in SCRIPTS {
        archive.program(path, Content::Bytes(text.as_bytes().to_vec()));
    }
    // The name libxl uses where a disk names no script.
    archive.link("etc/xen/scripts/block", "block-testbed");

    // libxl starts its proxy under this name: upstream's, until our package is installed.
    archive.link("usr/bin/vchan-socket-proxy", &format!("/{proxy}"));
    for folder in ["info", "updates", "triggers"] {
        archive.dir(&format!("var/lib/dpkg/{folder}"));
    }
    if let Some(file) = &parts.package {
        archive.file(PACKAGE, Content::File(file.clone()));
    }
    archive.file("boot/stub.img", Content::File(guests.stub.to_owned()));
    archive.file("boot/domu.img", Content::File(guests.domu.to_owned()));
    if let Some(disk) = &parts.guest_disk {
        archive.file("boot/guest.img", Content::File(disk.clone()));
    }
    if let Some(linux) = guests.linux {
        archive.file("boot/linux.img", Content::File(linux.to_owned()));
    }
    parts.write("dom0.img", &archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stubdomain_has_the_memory_that_is_printed() {
        let said = |printed| {
            let text = guest(printed);
            let lines = text.lines().filter(|line| line.starts_with(MEMORY));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let printed = "# a comment\nstubdomain_memory=128\nvnc=0\n";
        assert_eq!(said(printed), ["stubdomain_memory=128"]);
        assert_eq!(said(""), ["stubdomain_memory=400"]);
    }
}
