//! `stubdm-run image`: builds a stubdomain's ramdisk from what a distribution's packages brought, and lists what is in one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use flate2::{Compression, GzBuilder};
use nix::sys::utsname::uname;
use serde_json::json;

use crate::error::{Context, Failure, Result, one_line};
use crate::image::cpio::{Archive, Node};
use crate::image::modules::Modules;
use crate::image::{Recipe, kernel_file, memory, pick_kernel, read, stubdomain};
use crate::init::qemu;

/// Which of the two.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Build a stubdomain's ramdisk: this program, QEMU with its libraries and firmware, kernel modules
    Build(BuildOptions),
    /// List what is in a ramdisk
    Inspect(InspectOptions),
}

/// What the person typed.
#[derive(Args, Clone, Debug)]
pub struct BuildOptions {
    /// Where to write it
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Take the packages' files from here; they may be unpacked rather than installed
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// The kernel whose modules to take, by its version [default: the only one, or the running one]
    #[arg(long, value_name = "VERSION")]
    pub kernel: Option<String>,
    /// QEMU, below the root
    #[arg(long, value_name = "PATH", default_value = qemu::DEFAULT)]
    pub qemu: String,
    /// The program that becomes the ramdisk's init [default: this one]
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// One more kernel module, with what it depends on
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// One more file below the root, with the libraries it needs
    #[arg(long = "file", value_name = "PATH")]
    pub files: Vec<String>,
    /// How to compress it
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    pub compress: Compress,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What can be done about the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// As small as gzip gets it; every kernel takes that
    Gzip,
    /// Nothing: it starts soonest
    None,
}

/// What the person typed.
#[derive(Args, Clone, Debug)]
pub struct InspectOptions {
    /// The ramdisk
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs one of the two.
///
/// # Errors
/// What is missing, cannot be read or cannot be written, by name.
pub fn run(command: &ImageCommand) -> Result<()> {
    let text = match command {
        ImageCommand::Build(options) => build(options)?,
        ImageCommand::Inspect(options) => inspect(options)?,
    };
    io::stdout().write_all(text.as_bytes()).context("printing")
}

/// Builds a ramdisk, and gives what is printed for it.
///
/// # Errors
/// What is missing, cannot be read or cannot be written, by name.
pub fn build(options: &BuildOptions) -> Result<String> {
    let failed = |error: anyhow::Error| Failure::new(format_args!("{error:#}"));
    let own = match &options.init {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("finding this program")?,
    };
    let running = uname().ok().filter(|_| options.root == Path::new("/"));
    let running = running.and_then(|names| names.release().to_str().map(str::to_owned));
    let version = pick_kernel(&options.root, options.kernel.as_deref(), running.as_deref());
    let version = version.map_err(failed)?;
    let kernel = Modules::find(&options.root, &version).map_err(failed)?;
    let recipe = Recipe {
        root: &options.root,
        qemu: options.qemu.trim_start_matches('/'),
        init: Some(&own),
        modules: &options.modules,
        files: &options.files,
    };
    let archive = stubdomain(&recipe, &kernel).map_err(failed)?;
    let unpacked = write(&archive, &options.output, options.compress)?;
    let size = fs::metadata(&options.output)
        .context(options.output.display())?
        .len();
    let boot = kernel_file(&options.root, &version);
    let boot = boot.unwrap_or_else(|| format!("/boot/vmlinuz-{version}").into());
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let built = Built {
        output: absolute(&options.output),
        kernel: absolute(&boot),
        version,
        unpacked,
        size,
        files: archive
            .nodes()
            .filter(|(_, node)| matches!(node, Node::File { .. }))
            .count(),
    };
    Ok(built.told(options.json))
}

/// Writes an archive whole or not at all; gives its length before compression.
fn write(archive: &Archive, output: &Path, compress: Compress) -> Result<u64> {
    let mut part = output.as_os_str().as_bytes().to_vec();
    part.extend_from_slice(format!(".{}.part", std::process::id()).as_bytes());
    let part = PathBuf::from(<std::ffi::OsStr as OsStrExt>::from_bytes(&part));
    let written = write_part(archive, &part, compress).and_then(|count| {
        fs::rename(&part, output).context(output.display())?;
        Ok(count)
    });
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

fn write_part(archive: &Archive, part: &Path, compress: Compress) -> Result<u64> {
    let file = File::create_new(part).context(format_args!("creating {}", part.display()))?;
    let failed = |error: anyhow::Error| Failure::new(format_args!("{error:#}"));
    let mut out = Counted {
        out: BufWriter::new(file),
        count: 0,
    };
    let count = match compress {
        Compress::None => {
            archive.write(&mut out).map_err(failed)?;
            out.count
        }
        Compress::Gzip => {
            // No name and no time: the same files make the same bytes.
            let packed = GzBuilder::new().write(&mut out, Compression::best());
            let mut plain = Counted {
                out: packed,
                count: 0,
            };
            archive.write(&mut plain).map_err(failed)?;
            let count = plain.count;
            plain.out.finish().context(part.display())?;
            count
        }
    };
    let file = out.out.into_inner().map_err(io::IntoInnerError::into_error);
    file.and_then(|file| file.sync_all())
        .context(part.display())?;
    Ok(count)
}

/// Counts what passes.
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

/// What was built.
struct Built {
    output: PathBuf,
    kernel: PathBuf,
    version: String,
    unpacked: u64,
    size: u64,
    files: usize,
}

impl Built {
    fn memory(&self) -> u64 {
        memory(self.unpacked, self.size)
    }

    /// Lines for the guest's configuration.
    fn config(&self) -> String {
        format!(
            "type=\"hvm\"\n\
             device_model_version=\"qemu-xen\"\n\
             device_model_stubdomain_override=1\n\
             stubdomain_kernel=\"{}\"\n\
             stubdomain_ramdisk=\"{}\"\n\
             stubdomain_cmdline=\"console=hvc0 rdinit=/init quiet\"\n\
             stubdomain_memory={}\n\
             vnc=0\n",
            self.kernel.display(),
            self.output.display(),
            self.memory()
        )
    }

    fn told(&self, as_json: bool) -> String {
        if as_json {
            let value = json!({
                "output": self.output.display().to_string(),
                "kernel": self.kernel.display().to_string(),
                "version": self.version,
                "files": self.files,
                "size": self.size,
                "unpacked": self.unpacked,
                "memory": self.memory(),
                "config": self.config(),
            });
            return crate::text::json(&value)
                + "
";
        }
        format!(
            "# {}: {} files, {}, unpacked {}, for Linux {}\n\
             # for the guest's configuration; its screen stays black, serial=\"pty\" gives it a console:\n{}",
            self.output.display(),
            self.files,
            mebibytes(self.size),
            mebibytes(self.unpacked),
            self.version,
            self.config()
        )
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

fn inspect(options: &InspectOptions) -> Result<String> {
    let what = options.file.display();
    let file = read::contents(&options.file).context(&what)?;
    let listing = read::listing(&file).map_err(|error| {
        Failure::new(format_args!(
            "{what} is no ramdisk that can be read: {error:#}"
        ))
    })?;
    if options.json {
        let entries = listing.entries.iter().map(|entry| {
            json!({
                "path": entry.path,
                "mode": format!("{:o}", entry.mode),
                "size": entry.size,
                "link": entry.link,
            })
        });
        let value = json!({
            "size": file.len(),
            "unpacked": listing.unpacked,
            "compressed": listing.compressed,
            "entries": entries.collect::<Vec<_>>(),
        });
        return Ok(crate::text::json(&value)
            + "
");
    }
    let mut text = String::new();
    for entry in &listing.entries {
        let link = entry
            .link
            .as_deref()
            .map(|to| format!(" -> {}", one_line(to)));
        let (mode, path) = (entry.mode, one_line(&entry.path));
        text += &format!(
            "{mode:06o} {:>10}  {path}{}\n",
            entry.size,
            link.unwrap_or_default()
        );
    }
    text += &format!(
        "{} entries, {}, unpacked {}\n",
        listing.entries.len(),
        mebibytes(file.len() as u64),
        mebibytes(listing.unpacked)
    );
    Ok(text)
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
