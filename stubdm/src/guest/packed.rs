//! Makes the compressed file system of a packed ramdisk the root.
//!
//! The image is the host's own and is trusted as the kernel beside it is. It is checked for being
//! whole, so that a cut copy is named instead of failing in the middle of QEMU.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use stubdm_image::packed::{self, EXTRA, EXTRA_PLACE, FILE, FOLDER, HEAD, MOUNT};

use crate::guest::loop_device::{self, DEVICE};
use crate::guest::{modules, mounts};
use crate::rt::error::{Context, Failure, Result};

/// Mounts the compressed file system, if the ramdisk has one, and makes it the root. The ramdisk
/// cannot be reached afterwards. To be called first, with nothing mounted. Returns whether there is
/// such a file system.
///
/// # Errors
/// The file is damaged, or the kernel does not mount it. The root is the ramdisk's as before.
pub fn enter() -> Result<bool> {
    let file = Path::new("/").join(FILE);
    let image = match File::open(&file) {
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).context(file.display()),
    };
    check(&image).context(file.display())?;
    mounts::devices().map_err(Failure::new)?;
    modules::load_and_remove(&Path::new("/").join(FOLDER))?;
    loop_device::attach(&image).context(format_args!("attaching {FILE}"))?;
    let target = Path::new("/").join(MOUNT);
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(DEVICE), &target, Some("squashfs"), flags, None::<&str>)
        .map_err(Errno::desc)
        .context(format_args!("mounting {FILE}"))?;
    let extra = Path::new("/").join(EXTRA);
    if extra.is_dir() {
        show(&extra, &target.join(EXTRA_PLACE))
            .map_err(Errno::desc)
            .context(format_args!("mounting {EXTRA}"))?;
    }
    become_root(&target)
        .map_err(Errno::desc)
        .context(format_args!("making {FILE} the root"))?;
    Ok(true)
}

/// Checks that the image is a whole SquashFS file.
fn check(image: &File) -> Result<()> {
    let length = image.metadata().context("its length")?.len();
    let mut head = Vec::new();
    image
        .take(HEAD as u64)
        .read_to_end(&mut head)
        .context("reading it")?;
    packed::check(&head, length).map_err(Failure::new)
}

/// Makes a folder's files visible in another, which is read-only.
fn show(folder: &Path, place: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    let bind = MsFlags::MS_BIND;
    mount(Some(folder), place, none, bind, none)?;
    let flags =
        bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, place, none, flags, none)
}

/// Moves a mounted file system over the root, which cannot be unmounted, and enters it.
fn become_root(mounted: &Path) -> nix::Result<()> {
    nix::unistd::chdir(mounted)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}
