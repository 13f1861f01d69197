//! The directory with Xen's device nodes.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The directory with Xen's device nodes, from which [`ioctl`](crate::ioctl) opens them.
#[derive(Debug)]
pub struct DevRoot {
    dir: PathBuf,
}

impl DevRoot {
    pub(crate) fn open(dir: &str) -> Result<Self> {
        let dir = PathBuf::from(dir);
        if dir.is_dir() {
            Ok(Self { dir })
        } else {
            Err(Error::NoXen { path: dir })
        }
    }

    /// Takes the directory `dir` unchecked, for tests.
    #[cfg(test)]
    pub(crate) fn at(dir: &str) -> Self {
        Self { dir: dir.into() }
    }

    /// Opens one node for reading and writing, close-on-exec. `name` is a plain file name such
    /// as `evtchn`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] with the error of `open(2)`.
    pub fn open_device(&self, name: &str) -> Result<OwnedFd> {
        let path = self.path(name);
        // std opens everything with O_CLOEXEC.
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(file.into()),
            Err(source) => Err(Error::Device {
                path,
                source: source.into(),
            }),
        }
    }

    /// Returns a node's path, for messages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        debug_assert!(
            Path::new(name).components().count() == 1,
            "{name}: not a plain name"
        );
        self.dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_xen_is_named_as_such() {
        let e = DevRoot::open("/nonexistent/xen").unwrap_err();
        assert!(matches!(e, Error::NoXen { .. }));
        assert!(
            e.to_string().starts_with("/nonexistent/xen is missing"),
            "{e}"
        );
        assert_eq!(e.errno(), Some(libc::ENOENT));
    }

    #[test]
    fn a_missing_node_is_named_by_its_path() {
        let e = DevRoot::open("/dev")
            .unwrap()
            .open_device("no-such-node")
            .unwrap_err();
        assert!(e.to_string().starts_with("/dev/no-such-node: "), "{e}");
    }

    #[test]
    fn nodes_are_opened_close_on_exec() {
        use std::os::fd::AsRawFd;
        let fd = DevRoot::open("/dev").unwrap().open_device("null").unwrap();
        let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        let flags = info
            .lines()
            .find_map(|l| l.strip_prefix("flags:"))
            .unwrap()
            .trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
    }
}
