//! The Xen releases the testbed can boot: one row of data each.
//!
//! A row states which Debian suite carries the release and under which names its parts are packaged
//! there. Adding a release means adding a row.

use anyhow::{Result, bail};
use clap::ValueEnum;

/// A processor architecture of hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86-64: PV, PVH and HVM guests.
    #[default]
    Amd64,
    /// 64-bit Arm: one kind of guest, and no stubdomains.
    Arm64,
}

impl Arch {
    /// Returns the name of Debian's packages.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Returns the name of the folders with this architecture's libraries.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// Returns the end of the names of folders for each architecture: nothing for the first.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Amd64 => "",
            Self::Arm64 => "-arm64",
        }
    }

    /// Returns the program that emulates a machine of this architecture.
    pub(crate) fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }
}

/// One Xen release as Debian packages it.
#[derive(Debug)]
pub(crate) struct Release {
    /// The release's number, as given to `--release`.
    pub(crate) name: &'static str,
    /// The architecture of its packages.
    pub(crate) arch: Arch,
    /// The Debian suite that carries it.
    pub(crate) suite: &'static str,
    /// Packages taken with everything they depend on.
    pub(crate) whole: &'static [&'static str],
    /// Packages taken with only the libraries they depend on: their scripts and daemons are not
    /// used.
    pub(crate) bare: &'static [&'static str],
    /// The meta-package whose first dependency is the kernel.
    pub(crate) kernel: &'static str,
    /// The hypervisor inside its package, gzip-compressed or plain.
    pub(crate) hypervisor: &'static str,
    /// The toolstack's private program directory.
    pub(crate) xen_bin: &'static str,
}

impl Release {
    /// Returns the name of the folder for everything made of this row.
    pub(crate) fn folder(&self) -> String {
        format!("{}{}", self.name, self.arch.suffix())
    }
}

/// Programs that this machine may lack: one version for every release.
#[derive(Debug)]
pub(crate) struct Programs {
    /// The Debian suite they are taken from.
    pub(crate) suite: &'static str,
    /// Packages taken with everything they depend on.
    pub(crate) whole: &'static [&'static str],
}

/// Every release for x86 there is a row for; the first is the default.
pub(crate) const RELEASES: &[Release] = &[
    Release {
        name: "4.17",
        arch: Arch::Amd64,
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
        arch: Arch::Amd64,
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

/// The release for 64-bit Arm. Its C programs are compiled with the headers of its own packages.
pub(crate) const ARM64: Release = Release {
    name: "4.17",
    arch: Arch::Arm64,
    suite: "bookworm",
    whole: &["busybox-static", "libc6", "libgcc-s1"],
    bare: &[
        "xen-hypervisor-4.17-arm64",
        "xen-utils-4.17",
        "xenstore-utils",
        "libxen-dev",
        "libc6-dev",
        "libgcc-12-dev",
        "linux-libc-dev",
    ],
    kernel: "linux-image-arm64",
    hypervisor: "boot/xen-4.17-arm64",
    xen_bin: "usr/lib/xen-4.17/bin",
};

/// The emulator used when the machine has none. Not a later one: QEMU 10 reports every read of a
/// control register to the hypervisor as one of CR0, and a Linux guest that reads CR2 by itself,
/// early in its boot, does not get over that.
pub(crate) const EMULATOR: Programs = Programs {
    suite: "bookworm",
    whole: &["qemu-system-x86", "seabios"],
};

/// The emulator of 64-bit Arm used when the machine has none.
pub(crate) const EMULATOR_ARM64: Programs = Programs {
    suite: "bookworm",
    whole: &["qemu-system-arm"],
};

/// The parts of a cross compiler for 64-bit Arm, and a busybox of the same version that runs here:
/// it lists its names.
pub(crate) const CROSS_ARM64: Programs = Programs {
    suite: "bookworm",
    whole: &[
        "binutils-aarch64-linux-gnu",
        "busybox-static",
        "cpp-aarch64-linux-gnu",
    ],
};

/// The programs that build a root of Debian, each in the package of its name.
pub(crate) const BUILDER: Programs = Programs {
    suite: "bookworm",
    whole: &["mmdebstrap", "genext2fs", "perl"],
};

/// Returns the row for a release's number, or the default one, on an architecture.
pub(crate) fn on(arch: Arch, name: Option<&str>) -> Result<&'static Release> {
    match (arch, name) {
        (Arch::Amd64, Some(name)) => find(name),
        (Arch::Amd64, None) => Ok(&RELEASES[0]),
        (Arch::Arm64, Some(name)) if name != ARM64.name => {
            bail!(
                "no Xen release {name:?} for arm64 here; known: {}",
                ARM64.name
            )
        }
        (Arch::Arm64, _) => Ok(&ARM64),
    }
}

/// The row for a release's number.
fn find(name: &str) -> Result<&'static Release> {
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

    #[test]
    fn each_architecture_has_its_own_rows_and_folders() {
        let default = on(Arch::Amd64, None).unwrap();
        let arm = on(Arch::Arm64, None).unwrap();
        assert_eq!(
            (default.name, default.folder()),
            ("4.17", "4.17".to_owned())
        );
        assert_eq!((arm.name, arm.folder()), ("4.17", "4.17-arm64".to_owned()));
        assert_eq!(on(Arch::Arm64, Some("4.17")).unwrap().arch, Arch::Arm64);
        assert!(on(Arch::Arm64, Some("4.20")).is_err());
    }
}
