//! `stubdm-run dmargs`: what the toolstack asked of a guest's QEMU, and what becomes of it in a
//! stubdomain.
//!
//! ```text
//!   store ──▶ gather: both protocols' nodes ──▶ dmargv: fit ──▶ show | check | explain
//! ```

mod gather;
mod print;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use xen_sys::DomId;

pub use gather::{Gathered, gather};
pub(in crate::tools) use print::quoted;
use stubdm_image::firmware::in_image;
use stubdm_image::read;

use crate::libxl::store::{StoreOptions, domid};
use crate::rt::error::{Context, Failure, Result};

/// Which of the three.
#[derive(Clone, Debug, Subcommand)]
pub enum DmargsCommand {
    /// Print the arguments, one a line
    Show(DmargsOptions),
    /// Say what cannot work in a stubdomain; status 1 if the guest cannot start so
    Check(DmargsOptions),
    /// Say of every option what it is for and what becomes of it
    Explain(DmargsOptions),
}

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct DmargsOptions {
    /// The guest, or its stubdomain
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domid: DomId,
    /// The stubdomain's ramdisk, to look into [default: what image build puts into one]
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    store: StoreOptions,
}

/// Runs one of the three. `check` exits with status 1 for a guest that cannot start so.
///
/// # Errors
/// No such domain, or a store that cannot be read.
pub fn run(command: &DmargsCommand) -> Result<ExitCode> {
    let (DmargsCommand::Show(options)
    | DmargsCommand::Check(options)
    | DmargsCommand::Explain(options)) = command;
    let store = options.store.open()?;
    let gathered = gather(&store, options.domid)?;
    // The host does not see into the stubdomain, and images are made with no more of the host's
    // files than these.
    let listed = options.image.as_deref().map(paths_in).transpose()?;
    let there = |path: &str| match &listed {
        Some(paths) => paths.contains(path.trim_start_matches('/')),
        None => in_image(path),
    };
    let report = print::Report::of(&gathered, &there);
    let text = match (command, options.json) {
        (_, true) => report.json(),
        (DmargsCommand::Show(_), false) => report.show(),
        (DmargsCommand::Check(_), false) => report.check(),
        (DmargsCommand::Explain(_), false) => report.explain(),
    };
    io::stdout()
        .write_all(text.as_bytes())
        .context("printing")?;
    let checking = matches!(command, DmargsCommand::Check(_));
    Ok(match checking && !report.usable() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Reads the paths in a ramdisk.
fn paths_in(file: &Path) -> Result<BTreeSet<String>> {
    let shown = file.display();
    let data = read::contents(file).context(&shown)?;
    let listing = read::listing(&data)
        .map_err(|error| Failure::new(format_args!("{shown} is no ramdisk: {error:#}")))?;
    Ok(listing
        .entries
        .into_iter()
        .map(|entry| entry.path)
        .collect())
}
