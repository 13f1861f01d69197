//! `stubdm-run image`: builds a stubdomain's ramdisk from what a distribution's packages brought,
//! and lists what is in one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use stubdm_image::build::{self, Build, mebibytes};
use stubdm_image::elf::resolve;
use stubdm_image::{Qemu, Recipe, read};
use stubdm_qmp::text::one_line;

use crate::guest::qemu;
use crate::libxl::places::Libxl;
use crate::rt::error::{Context, Failure, Result};

/// Distributions' places of the QEMU for Xen, the special ones first.
const QEMUS: &[&str] = &[
    qemu::DEFAULT,
    "/usr/libexec/xen/bin/qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
    "/usr/lib64/xen/bin/qemu-system-i386",
    "/usr/local/lib/xen/bin/qemu-system-i386",
    "/usr/local/libexec/xen/bin/qemu-system-i386",
    "/usr/bin/qemu-system-i386",
    "/usr/bin/qemu-system-x86_64",
    "/usr/local/bin/qemu-system-i386",
    "/usr/local/bin/qemu-system-x86_64",
    "/run/current-system/sw/bin/qemu-system-i386",
    "/run/current-system/sw/bin/qemu-system-x86_64",
];

/// The folders among them whose QEMU may have been built without Xen.
const GENERAL: [&str; 3] = ["/usr/bin/", "/usr/local/bin/", "/run/current-system/"];

/// Which of the two.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Build a stubdomain's ramdisk: this program, QEMU with its libraries and firmware, kernel
    /// modules
    Build(BuildOptions),
    /// List what is in a ramdisk
    Inspect(InspectOptions),
}

/// The command line.
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
    /// QEMU, below the root [default: libxl's, or where distributions keep it]
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<String>,
    /// The program that becomes the ramdisk's init [default: this one]
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// One more kernel module, with what it depends on
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// One more file below the root, with the libraries it needs
    #[arg(long = "file", value_name = "PATH")]
    pub files: Vec<String>,
    /// One more folder below the root to look for libraries in, before the dynamic linker's own
    #[arg(long = "library-dir", value_name = "DIR")]
    pub libraries: Vec<String>,
    /// One more folder below the root to look for QEMU's firmware in, before QEMU's own
    #[arg(long = "firmware-dir", value_name = "DIR")]
    pub firmware: Vec<String>,
    /// Leave QEMU uncompressed in the ramdisk, for an init that mounts no compressed file system:
    /// the stubdomain needs more memory
    #[arg(long)]
    pub no_pack: bool,
    /// How to compress it
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    pub compress: Compress,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The compression of the ramdisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// As small as gzip gets it; every kernel takes that
    Gzip,
    /// Nothing: it starts soonest
    None,
}

/// The command line.
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
/// Names the file that is missing, cannot be read or cannot be written.
pub fn run(command: &ImageCommand) -> Result<()> {
    let text = match command {
        ImageCommand::Build(options) => build(options)?,
        ImageCommand::Inspect(options) => inspect(options)?,
    };
    io::stdout().write_all(text.as_bytes()).context("printing")
}

/// Builds a ramdisk; returns the text to print.
fn build(options: &BuildOptions) -> Result<String> {
    let own = match &options.init {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("finding this program")?,
    };
    let qemu = match &options.qemu {
        Some(path) => path.clone(),
        None => find_qemu(&options.root)?,
    };
    let build = Build {
        output: &options.output,
        kernel: options.kernel.as_deref(),
        recipe: Recipe {
            root: &options.root,
            qemu: qemu.trim_start_matches('/'),
            init: Some(&own),
            modules: &options.modules,
            files: &options.files,
            libraries: &options.libraries,
            firmware: &options.firmware,
            pack: !options.no_pack,
        },
        compress: match options.compress {
            Compress::Gzip => build::Compress::Gzip,
            Compress::None => build::Compress::None,
        },
    };
    let built = build
        .run()
        .map_err(|error| Failure::new(format_args!("{error:#}")))?;
    if !options.json {
        return Ok(built.to_string());
    }
    let value = json!({
        "output": built.output.display().to_string(),
        "kernel": built.kernel.display().to_string(),
        "version": built.version,
        "files": built.files,
        "size": built.size,
        "unpacked": built.unpacked,
        "packed": built.packed,
        "memory": built.memory(),
        "config": built.config(),
        "lacks": built.lacks,
    });
    Ok(stubdm_qmp::text::json(&value) + "\n")
}

/// Looks for the QEMU for Xen below a root: libxl's own, and in the places of distributions. In a
/// general place, only a QEMU that needs Xen's libraries is taken, and nowhere the launcher, which
/// is this program.
fn find_qemu(root: &Path) -> Result<String> {
    let libxl = Libxl::all(root).into_iter().filter_map(|libxl| libxl.qemu);
    let usual = QEMUS.iter().map(|path| (*path).to_owned());
    let mut searched: Vec<String> = Vec::new();
    for path in libxl.chain(usual) {
        if searched.contains(&path) {
            continue;
        }
        let general = GENERAL.iter().any(|dir| path.starts_with(dir));
        let is_launcher = |qemu: &Qemu| {
            let file = resolve(root, &qemu.file);
            file.is_ok_and(|file| file.file_name().is_some_and(|name| name == "stubdm-run"))
        };
        let suits = |qemu: Qemu| !is_launcher(&qemu) && (!general || qemu.is_for_xen(root));
        if Qemu::at(root, &path).is_ok_and(suits) {
            return Ok(path);
        }
        searched.push(path);
    }
    Err(Failure::new(format_args!(
        "no QEMU for Xen was found below {}: none that needs Xen's libraries is at {}; --qemu names one",
        root.display(),
        searched.join(", ")
    )))
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
            "packed": listing.packed,
            "entries": entries.collect::<Vec<_>>(),
        });
        return Ok(stubdm_qmp::text::json(&value) + "\n");
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
