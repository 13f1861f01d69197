//! The three initramfs images: dom0, the stubdomain, a small PV guest.
//!
//! Each image is a list of files (one place per image) turned into an archive. An image is written
//! only when its fingerprint has changed, so a warm run finds all three as they are.

pub(crate) mod dom0;
pub(crate) mod domu;
mod kernel;
pub(crate) mod linux;
pub(crate) mod stub;

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};
use stubdm_image::cpio::{Archive, Content, Node};
use stubdm_image::elf;
use stubdm_image::modules::Modules;

use crate::progress::Step;
use crate::release::{Arch, Release};
use crate::store::{Tree, hash_file, hex, write_atomically};

/// The parts of every image.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The release's row.
    pub(crate) release: &'static Release,
    /// The unpacked packages.
    pub(crate) tree: Tree,
    /// The kernel's version, as its package is called.
    pub(crate) linux: String,
    /// The kernel's modules.
    pub(crate) modules: Modules,
    /// The folder the images go to.
    pub(crate) out: PathBuf,
    /// Our static `stubdm-run`, if it was built.
    pub(crate) stubdm_run: Option<PathBuf>,
    /// The same as a Debian package.
    pub(crate) package: Option<PathBuf>,
    /// Our static test agent, if it was built.
    pub(crate) agent: Option<PathBuf>,
    /// The C programs to test against.
    pub(crate) c_programs: Vec<PathBuf>,
    /// The HVM guest's disk, on x86.
    pub(crate) guest_disk: Option<PathBuf>,
    /// A tree with a busybox that runs here, where the host's own does not: it lists its names.
    pub(crate) busybox: Option<PathBuf>,
}

/// Returns the kernel of a release's packages.
pub(crate) fn packed_kernel(tree: &Tree) -> Result<PathBuf> {
    find_by_prefix(&tree.root.join("boot"), "vmlinuz-")
}

/// Makes a release's kernel a plain ELF file (on Arm, a plain image) in `out`, which Xen and libxl
/// load as well. Unpacking it here takes a second; in an emulated machine it would take many, for
/// every guest.
pub(crate) fn plain_kernel(tree: &Tree, arch: Arch, out: &Path) -> Result<PathBuf> {
    let plain = out.join("vmlinux");
    let mark = out.join("vmlinux.stamp");
    if plain.exists() && fs::read_to_string(&mark).is_ok_and(|s| s == tree.stamp) {
        return Ok(plain);
    }
    let step = Step::begin("unpacking the kernel");
    let packed = packed_kernel(tree)?;
    let bytes = match arch {
        Arch::Amd64 => kernel::unpack(&packed, out)?,
        Arch::Arm64 => gunzipped(&packed)?,
    };
    write_atomically(&plain, &bytes)?;
    write_atomically(&mark, tree.stamp.as_bytes())?;
    step.done();
    Ok(plain)
}

impl Parts {
    /// The kernel used for dom0, the stubdomain and the PV guest.
    pub(crate) fn kernel(&self) -> Result<PathBuf> {
        packed_kernel(&self.tree)
    }

    /// The same kernel as [`plain_kernel`] makes it.
    pub(crate) fn plain_kernel(&self) -> Result<PathBuf> {
        plain_kernel(&self.tree, self.release.arch, &self.out)
    }

    /// The hypervisor, uncompressed: QEMU loads it as a multiboot ELF file, or on Arm as it loads a
    /// kernel.
    pub(crate) fn hypervisor(&self) -> Result<PathBuf> {
        let plain = self.out.join("xen");
        let mark = self.out.join("xen.stamp");
        if plain.exists() && fs::read_to_string(&mark).is_ok_and(|s| s == self.tree.stamp) {
            return Ok(plain);
        }
        let bytes = gunzipped(&self.tree.root.join(self.release.hypervisor))?;
        write_atomically(&plain, &bytes)?;
        write_atomically(&mark, self.tree.stamp.as_bytes())?;
        Ok(plain)
    }

    fn add(&self, archive: &mut Archive, paths: &[&str]) -> Result<()> {
        stubdm_image::add(archive, &self.tree.root, paths)
    }

    fn add_own(&self, archive: &mut Archive, path: &str, file: &Path) -> Result<()> {
        stubdm_image::add_own(archive, &self.tree.root, path, file)
    }

    pub(crate) fn add_modules(&self, archive: &mut Archive, names: &[&str]) -> Result<()> {
        stubdm_image::add_modules(archive, &self.modules, names)
    }

    /// Puts busybox with all its names into an archive.
    pub(crate) fn add_busybox(&self, archive: &mut Archive) -> Result<()> {
        let within = |root: &Path| {
            ["bin/busybox", "usr/bin/busybox"]
                .iter()
                .find_map(|p| elf::resolve(root, p).ok())
                .context("no busybox in its package")
        };
        let file = within(&self.tree.root)?;
        let runs_here = self.busybox.as_deref().map_or(Ok(file.clone()), within)?;
        let out = Command::new(&runs_here)
            .arg("--list")
            .output()
            .context("starting busybox")?;
        for name in String::from_utf8(out.stdout)?.lines() {
            if !archive.has(&format!("usr/bin/{name}")) {
                archive.link(&format!("usr/bin/{name}"), "busybox");
            }
        }
        archive.program("usr/bin/busybox", Content::File(file));
        Ok(())
    }

    /// Writes an image, uncompressed (an emulated machine is slow to unpack anything), unless the
    /// one there has the same contents; gives its path.
    pub(crate) fn write(&self, name: &str, archive: &Archive) -> Result<PathBuf> {
        let path = self.out.join(name);
        let mark = self.out.join(format!("{name}.stamp"));
        let stamp = fingerprint(archive, &self.tree.root, &self.tree.stamp)?;
        if path.exists() && fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
            return Ok(path);
        }
        let step = Step::begin(format!("image {name}"));
        let part = self.out.join(format!("{name}.part"));
        let file = File::create(&part).with_context(|| format!("creating {}", part.display()))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        archive.write(&mut file)?;
        file.flush()?;
        drop(file);
        fs::rename(&part, &path)?;
        write_atomically(&mark, stamp.as_bytes())?;
        step.done();
        Ok(path)
    }
}

/// A hash that changes whenever an archive would, without reading the unpacked packages: a file
/// below `immutable` is known by its name and the tree's stamp, any other by what it holds.
fn fingerprint(archive: &Archive, immutable: &Path, stamp: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(stamp);
    for (path, node) in archive.nodes() {
        hash.update(format!("\n{path} "));
        match node {
            Node::File {
                mode,
                content: Content::Bytes(bytes),
            } => {
                hash.update(format!("{mode:o} "));
                hash.update(Sha256::digest(bytes));
            }
            Node::File {
                mode,
                content: Content::File(file),
            } => {
                hash.update(format!("{mode:o} {} ", file.display()));
                if !file.starts_with(immutable) {
                    hash.update(hash_file(file)?);
                }
            }
            other => hash.update(format!("{other:?}")),
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Returns a file's contents, unpacked if they are gzip-compressed.
fn gunzipped(path: &Path) -> Result<Vec<u8>> {
    let whole = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if !whole.starts_with(b"\x1f\x8b") {
        return Ok(whole);
    }
    let mut bytes = Vec::new();
    GzDecoder::new(&whole[..])
        .read_to_end(&mut bytes)
        .with_context(|| format!("unpacking {}", path.display()))?;
    Ok(bytes)
}

/// The one file of a folder whose name begins so.
fn find_by_prefix(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(prefix))
        {
            found.push(path);
        }
    }
    found.sort();
    found
        .pop()
        .with_context(|| format!("no {prefix}* in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_follows_the_contents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "1").unwrap();
        let mut archive = Archive::bare();
        archive.file("x", Content::File(path.clone()));
        let nowhere = Path::new("/nonexistent");
        let before = fingerprint(&archive, nowhere, "s").unwrap();
        assert_eq!(before, fingerprint(&archive, nowhere, "s").unwrap());
        assert_ne!(before, fingerprint(&archive, nowhere, "t").unwrap());
        fs::write(&path, "2").unwrap();
        assert_ne!(before, fingerprint(&archive, nowhere, "s").unwrap());
    }
}
