//! A disk's contents in a file of dom0, on a loop device: libxl requires a block device for an
//! emulated drive.

use std::fs;

use anyhow::{Context, Result};

use crate::host::command;

/// A loop device, with the file behind it.
#[derive(Debug)]
pub(crate) struct Medium {
    /// The file's path.
    pub(crate) file: String,
    /// The device's path.
    pub(crate) device: String,
}

impl Medium {
    /// Makes a medium that begins with `medium NAME`.
    pub(crate) fn make(name: &str, writable: bool) -> Result<Self> {
        let file = format!("/tmp/{name}.medium");
        let mut contents = format!("medium {name}").into_bytes();
        contents.resize(64 * 1024, 0);
        fs::write(&file, contents)?;
        let free = command(&["losetup", "-f"])?;
        let device = free.first().context("no loop device")?.trim().to_owned();
        let access: &[&str] = if writable { &[] } else { &["-r"] };
        command(&[&["losetup"], access, &[&device, &file]].concat())?;
        Ok(Self { file, device })
    }

    /// Takes both away.
    pub(crate) fn remove(self) -> Result<()> {
        command(&["losetup", "-d", &self.device])?;
        Ok(fs::remove_file(&self.file)?)
    }
}
