//! dom0's root: the Xen tools, busybox, our binaries, and what the guests are started from.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use stubdm_image::cpio::{Archive, Content};
use stubdm_image::firmware::{self, Firmware};

use super::Parts;

/// Programs from the toolstack's private folder, which stay there and are linked from `/usr/bin`.
const XEN_PROGRAMS: &[&str] = &[
    "libxl-save-helper",
    "lsevtchn",
    "oxenstored",
    "readnotes",
    "test-resource",
    "test-xenstore",
    "xen-diag",
    "xen-hvmctx",
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

/// Files of the packages, under their own names.
const FILES: &[&str] = &[
    "usr/bin/xenstore-chmod",
    "usr/bin/xenstore-exists",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-watch",
    "usr/bin/xenstore-write",
    // The device model of a guest without a stubdomain, and of a stubdomain where ours hands over
    // to it.
    "usr/libexec/xen-qemu-system-i386",
    // xl cancels threads, for which the C library loads this by name.
    "lib/x86_64-linux-gnu/libgcc_s.so.1",
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

/// Modules that dom0 has and does not load: a test does.
const MODULES_AT_HAND: &[&str] = &["xen-pciback"];

/// Text files of the testbed's own.
const TEXTS: &[(&str, &str)] = &[
    ("etc/xen/xl.conf", include_str!("../../assets/xl.conf")),
    (
        "etc/xen/hvm-plain.cfg",
        include_str!("../../assets/hvm-plain.cfg"),
    ),
    ("etc/xen/pv.cfg", include_str!("../../assets/pv.cfg")),
    // dpkg's database, of no package: ours depends on none.
    ("var/lib/dpkg/status", ""),
    ("var/lib/dpkg/available", ""),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/profile", include_str!("../../assets/profile")),
];

/// The HVM guest with a stubdomain, and the line that gives the stubdomain its memory.
const GUEST: &str = include_str!("../../assets/hvm.cfg");
const MEMORY: &str = "stubdomain_memory=";

/// Scripts of the testbed's own.
const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("../../assets/dom0-init")),
    (
        "etc/xen/scripts/block-testbed",
        include_str!("../../assets/block-testbed"),
    ),
    // dpkg wants one to be there.
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

/// Builds dom0's image.
pub(crate) fn build(parts: &Parts, guests: &Guests<'_>) -> Result<PathBuf> {
    let mut archive = Archive::root();
    let bin = parts.release.xen_bin;
    let programs: Vec<String> = XEN_PROGRAMS.iter().map(|p| format!("{bin}/{p}")).collect();
    let paths: Vec<&str> = programs
        .iter()
        .map(String::as_str)
        .chain(FILES.iter().copied())
        .collect();
    parts.add(&mut archive, &paths)?;
    for program in XEN_PROGRAMS {
        archive.link(&format!("usr/bin/{program}"), &format!("/{bin}/{program}"));
    }
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
    parts.add_busybox(&mut archive)?;
    parts.add_modules(&mut archive, MODULES)?;
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
    archive.text("etc/xen/release", &format!("{}\n", parts.release.name));

    // libxl starts its proxy under this name: upstream's, until our package is installed.
    archive.link("usr/bin/vchan-socket-proxy", &format!("/{proxy}"));
    for folder in ["info", "updates", "triggers"] {
        archive.dir(&format!("var/lib/dpkg/{folder}"));
    }
    if let Some(file) = &parts.package {
        archive.file(PACKAGE, Content::File(file.clone()));
    }
    if let Some(file) = &parts.agent {
        archive.program("usr/bin/xen-testbed-agent", Content::File(file.clone()));
    }
    for file in &parts.c_programs {
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        parts.add_own(&mut archive, &format!("usr/bin/{name}"), file)?;
    }
    archive.file("boot/vmlinuz", Content::File(parts.plain_kernel()?));
    archive.file("boot/stub.img", Content::File(guests.stub.to_owned()));
    archive.file("boot/domu.img", Content::File(guests.domu.to_owned()));
    archive.file("boot/guest.img", Content::File(parts.guest_disk.clone()));
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
