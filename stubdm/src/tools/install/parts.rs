//! The parts that can be put into libxl's places: one row each.

use crate::libxl::places::Libxl;
use crate::proxy::policy::PATH;

/// The content of a part's places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A link to this program, which looks at the name it is called by.
    Program,
    /// A link to the stubdomain's ramdisk.
    Ramdisk,
    /// A link to the stubdomain's kernel.
    Kernel,
    /// A file with this text; never in place of one that is there.
    Text(&'static str),
}

/// A row.
#[derive(Debug)]
pub(super) struct Part {
    /// Its name for people; rows may share a name.
    pub(super) name: &'static str,
    /// `true` if it is included when no part is named.
    pub(super) usual: bool,
    /// Where one libxl looks for it.
    pub(super) place: fn(&Libxl) -> Option<String>,
    pub(super) what: What,
}

/// All of them, in the order in which they are installed.
pub(super) const PARTS: &[Part] = &[
    Part {
        name: "proxy",
        usual: true,
        place: |libxl| libxl.proxy.clone(),
        what: What::Program,
    },
    Part {
        name: "device-model",
        usual: false,
        place: |libxl| libxl.qemu.clone(),
        what: What::Program,
    },
    Part {
        name: "image",
        usual: false,
        place: |libxl| {
            Some(format!(
                "{}/qemu-stubdom-linux-rootfs",
                libxl.boot.as_ref()?
            ))
        },
        what: What::Ramdisk,
    },
    Part {
        name: "image",
        usual: false,
        place: |libxl| {
            Some(format!(
                "{}/qemu-stubdom-linux-kernel",
                libxl.boot.as_ref()?
            ))
        },
        what: What::Kernel,
    },
    Part {
        name: "policy",
        usual: false,
        place: |_| Some(PATH.to_owned()),
        what: What::Text(POLICY),
    },
];

/// The policy a host begins with: the built-in one, ready to be added to.
const POLICY: &str = "\
# Which QMP commands pass from libxl to the QEMU in a stubdomain.
# What may stand here: 'stubdm-run policy --help'; whether it is right: 'stubdm-run policy check FILE'.
version = 1
base = \"built-in\"
";

/// The names a person can give.
pub(super) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::policy::HostPolicy;
    use stubdm_qmp::policy::Policy;

    #[test]
    fn the_policy_that_is_written_is_a_policy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, POLICY).unwrap();
        let read = HostPolicy::find(Some(&path)).and_then(HostPolicy::into_policy);
        assert_eq!(read.unwrap(), Policy::built_in().unwrap());
        assert_eq!(names(), ["proxy", "device-model", "image", "policy"]);
    }
}
