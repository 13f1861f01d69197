//! Builds a ramdisk and writes it whole or not at all.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use nix::sys::utsname::uname;

use crate::cpio::{Archive, Node};
use crate::modules::{Driver, Modules};
use crate::{Qemu, Recipe, kernel, memory, pick_kernel, stubdomain};

/// How a ramdisk is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compress {
    /// As small as gzip makes it; every kernel unpacks that.
    Gzip,
    /// Not at all: it starts soonest.
    None,
}

/// A ramdisk to build, and its place.
#[derive(Clone, Debug)]
pub struct Build<'a> {
    /// The ramdisk's file.
    pub output: &'a Path,
    /// The version of the kernel whose modules are taken: the only one, or the running one, if
    /// `None`.
    pub kernel: Option<&'a str>,
    /// Its contents.
    pub recipe: Recipe<'a>,
    /// Its compression.
    pub compress: Compress,
}

/// A ramdisk that was built. Displayed, it is lines for the guest's configuration.
#[derive(Clone, Debug)]
pub struct Built {
    /// The ramdisk, an absolute path.
    pub output: PathBuf,
    /// The kernel that belongs to it, an absolute path.
    pub kernel: PathBuf,
    /// The kernel's version.
    pub version: String,
    /// Bytes before compression.
    pub unpacked: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Files in it.
    pub files: usize,
    /// All but the init is in a compressed file system ([`crate::packed`]).
    pub packed: bool,
    /// The kernel's command line has to lift the restriction of a built-in xen-privcmd.
    pub unrestrict: bool,
    /// Dom0's QEMU is known to serve the guest's screen. If it does not, a guest with one does not
    /// start.
    pub screen: bool,
    /// Optional parts that were not found, one line each with the feature that needs it.
    pub lacks: Vec<String>,
}

impl Build<'_> {
    /// Builds it.
    ///
    /// # Errors
    /// Something is missing, cannot be read or cannot be written; the error names it.
    pub fn run(&self) -> Result<Built> {
        let root = self.recipe.root;
        let running = uname().ok().filter(|_| root == Path::new("/"));
        let running = running.and_then(|names| names.release().to_str().map(str::to_owned));
        let version = pick_kernel(root, self.kernel, running.as_deref())?;
        let modules = Modules::find(root, &version)?;
        let made = stubdomain(&self.recipe, &modules)?;
        let (archive, packed, mut lacks) = (made.archive, made.packed, made.lacks);
        let unpacked = write(&archive, self.output, self.compress)?;
        let size = fs::metadata(self.output).with_context(|| named(self.output))?;
        let boot = kernel::file(root, &version).unwrap_or_else(|| {
            lacks.push(format!(
                "the file of Linux {version} was not found; looked for below {}: {}",
                root.display(),
                kernel::places(&version)
            ));
            format!("/boot/vmlinuz-{version}").into()
        });
        // A kernel without this parameter ignores it.
        let privcmd = modules.parameters("xen-privcmd").ok();
        let restricts = privcmd.is_none_or(|names| names.iter().any(|own| own == "unrestricted"));
        let unrestrict = modules.driver("xen-privcmd") == Driver::BuiltIn && restricts;
        let qemu = Qemu::at(root, self.recipe.qemu)?;
        let screen = qemu.serves_screens(root).unwrap_or(false);
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let is_file = |(_, node): &(_, &Node)| matches!(node, Node::File { .. });
        Ok(Built {
            output: absolute(self.output),
            kernel: absolute(&boot),
            version,
            unpacked,
            size: size.len(),
            files: archive.nodes().filter(is_file).count(),
            packed,
            unrestrict,
            screen,
            lacks,
        })
    }
}

impl Built {
    /// The stubdomain's memory, in MiB.
    pub fn memory(&self) -> u64 {
        memory(self.unpacked, self.size, self.packed)
    }

    /// Lines for the guest's configuration.
    pub fn config(&self) -> String {
        format!(
            "type=\"hvm\"\n\
             device_model_version=\"qemu-xen\"\n\
             device_model_stubdomain_override=1\n\
             stubdomain_kernel=\"{}\"\n\
             stubdomain_ramdisk=\"{}\"\n\
             stubdomain_cmdline=\"console=hvc0 rdinit=/init quiet{}\"\n\
             stubdomain_memory={}\n{}",
            self.kernel.display(),
            self.output.display(),
            if self.unrestrict {
                " xen_privcmd.unrestricted=1"
            } else {
                ""
            },
            self.memory(),
            if self.screen { "" } else { "vnc=0\n" }
        )
    }
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "# {}: {} files, {}, unpacked {}, for Linux {}\n\
             # for the guest's configuration; serial=\"pty\" gives it a console, \
             and vnc=0 no screen:\n{}",
            self.output.display(),
            self.files,
            mebibytes(self.size),
            mebibytes(self.unpacked),
            self.version,
            self.config()
        )?;
        if !self.screen {
            f.write_str(
                "# vnc=0, because with QEMU 9.1 or later a guest with a screen does not start \
                 before:\n\
                 # stubdm-run install device-model\n",
            )?;
        }
        for line in &self.lacks {
            writeln!(f, "# {line}")?;
        }
        Ok(())
    }
}

/// A number of bytes for a person.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

/// Writes an archive whole or not at all; returns its length before compression.
fn write(archive: &Archive, output: &Path, compress: Compress) -> Result<u64> {
    let mut part = output.as_os_str().as_bytes().to_vec();
    part.extend_from_slice(format!(".{}.part", std::process::id()).as_bytes());
    let part = PathBuf::from(<std::ffi::OsStr as OsStrExt>::from_bytes(&part));
    let written = write_part(archive, &part, compress).and_then(|count| {
        fs::rename(&part, output).with_context(|| named(output))?;
        Ok(count)
    });
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

fn write_part(archive: &Archive, part: &Path, compress: Compress) -> Result<u64> {
    let file = File::create_new(part).with_context(|| format!("creating {}", part.display()))?;
    let mut out = Counted {
        out: BufWriter::new(file),
        count: 0,
    };
    let count = match compress {
        Compress::None => {
            archive.write(&mut out)?;
            out.count
        }
        Compress::Gzip => {
            // No name and no time: the same files make the same bytes.
            let packed = GzBuilder::new().write(&mut out, Compression::best());
            let mut plain = Counted {
                out: packed,
                count: 0,
            };
            archive.write(&mut plain)?;
            let count = plain.count;
            plain.out.finish().with_context(|| named(part))?;
            count
        }
    };
    let file = out.out.into_inner().map_err(io::IntoInnerError::into_error);
    file.and_then(|file| file.sync_all())
        .with_context(|| named(part))?;
    Ok(count)
}

/// Counts the bytes that pass.
struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a folder that others can write to as well, such as /tmp.
    #[test]
    fn what_somebody_put_in_the_way_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, part) = (dir.path().join("precious"), dir.path().join("x.1.part"));
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &part).unwrap();
        let error = write_part(&Archive::root(), &part, Compress::None).unwrap_err();
        assert!(error.to_string().contains("x.1.part"), "{error}");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
    }
}
