//! Changes of a folder, as an event.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

use crate::rt::error::{Context, Result};

/// Readable after a file in the folder was made, written or removed.
#[derive(Debug)]
pub struct FolderWatch(OwnedFd);

impl FolderWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// There is no such folder; the user has no watch left.
    pub fn of(folder: &Path) -> Result<Self> {
        let what = format!("watching {}", folder.display());
        let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context(&what)?;
        let events = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::DELETE;
        add_watch(&fd, folder, events | WatchFlags::MOVED_TO).context(&what)?;
        Ok(Self(fd))
    }

    /// Takes the events there are.
    pub fn drain(&self) {
        let mut buffer = [0; 4096];
        while matches!(rustix::io::read(&self.0, &mut buffer), Ok(count) if count > 0) {}
    }
}

impl AsFd for FolderWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
