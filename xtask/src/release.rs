//! The Xen releases the testbed can boot: one row of data each.
//!
//! A row says which Debian suite carries the release and under which names its parts are packaged
//! there. Adding a release means adding a row.

use anyhow::{Result, bail};

/// One Xen release as Debian packages it.
#[derive(Debug)]
pub(crate) struct Release {
    /// The release's number, as given to `--release`.
    pub(crate) name: &'static str,
    /// The Debian suite that carries it.
    pub(crate) suite: &'static str,
    /// Packages taken with everything they depend on.
    pub(crate) whole: &'static [&'static str],
    /// Packages taken with only the libraries they depend on: their scripts and daemons are not
    /// wanted.
    pub(crate) bare: &'static [&'static str],
    /// The meta-package whose first dependency is the kernel.
    pub(crate) kernel: &'static str,
    /// The hypervisor, gzip-compressed, inside its package.
    pub(crate) hypervisor: &'static str,
    /// The toolstack's private program directory.
    pub(crate) xen_bin: &'static str,
}

/// Programs that this machine may lack: one version for every release.
#[derive(Debug)]
pub(crate) struct Programs {
    /// The Debian suite they are taken from.
    pub(crate) suite: &'static str,
    /// Packages taken with everything they depend on.
    pub(crate) whole: &'static [&'static str],
}

/// Every release there is a row for; the first is the default.
pub(crate) const RELEASES: &[Release] = &[
    Release {
        name: "4.17",
        suite: "bookworm",
        whole: &[
            "qemu-system-xen",
            "seabios",
            "busybox-static",
            "dpkg",
            "libc6",
            "libgcc-s1",
        ],
        bare: &[
            "xen-hypervisor-4.17-amd64",
            "xen-utils-4.17",
            "xenstore-utils",
            "libxen-dev",
        ],
        kernel: "linux-image-amd64",
        hypervisor: "boot/xen-4.17-amd64.gz",
        xen_bin: "usr/lib/xen-4.17/bin",
    },
    Release {
        name: "4.20",
        suite: "trixie",
        whole: &[
            "qemu-system-xen",
            "seabios",
            "busybox-static",
            "dpkg",
            "libc6",
            "libgcc-s1",
        ],
        bare: &[
            "xen-hypervisor-4.20-amd64",
            "xen-utils-4.20",
            "xenstore-utils",
            "libxen-dev",
        ],
        kernel: "linux-image-amd64",
        hypervisor: "boot/xen-4.20-amd64.gz",
        xen_bin: "usr/lib/xen-4.20/bin",
    },
];

/// The emulator used when the machine has none. Not a later one: QEMU 10 reports every read of a
/// control register to the hypervisor as one of CR0, and a Linux guest that reads CR2 by itself,
/// early in its boot, does not get over that.
pub(crate) const EMULATOR: Programs = Programs {
    suite: "bookworm",
    whole: &["qemu-system-x86", "seabios"],
};

/// The programs that build a root of Debian, each in the package of its name.
pub(crate) const BUILDER: Programs = Programs {
    suite: "bookworm",
    whole: &["mmdebstrap", "genext2fs", "perl"],
};

/// The row for a release's number.
pub(crate) fn find(name: &str) -> Result<&'static Release> {
    if let Some(release) = RELEASES.iter().find(|r| r.name == name) {
        return Ok(release);
    }
    let known: Vec<_> = RELEASES.iter().map(|r| r.name).collect();
    bail!("no Xen release {name:?} here; known: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_name_and_no_other_is() {
        for release in RELEASES {
            assert_eq!(find(release.name).unwrap().suite, release.suite);
        }
        let error = find("3.14").unwrap_err().to_string();
        assert!(error.contains("4.17"), "{error}");
    }
}
