//! `stubdm-run status`: the guests with stubdomains, as the store, the host's processes and the
//! proxies show them, once or as it changes.

mod rows;
mod screen;
mod show;
mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

pub use rows::{Process, Row, rows};
pub use screen::{Screen, Screens};
use stubdm_qmp::text;

use crate::libxl::domains::Domains;
use crate::libxl::store::StoreOptions;
use crate::proxy::counters;
use crate::rt::error::{Context, Result};

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct StatusOptions {
    /// Print JSON; with --watch one line each time
    #[arg(long)]
    pub json: bool,
    /// Show it again each time a guest starts or ends, and after this many seconds, until q or
    /// Ctrl-C
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = seconds
    )]
    pub watch: Option<Duration>,
    /// The folder of the processes' records and counters, instead of /run/stubdm
    #[arg(long, value_name = "DIR", default_value = counters::FOLDER, hide_short_help = true)]
    folder: PathBuf,
    #[command(flatten)]
    store: StoreOptions,
}

/// A time between two looks.
fn seconds(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("from 0.1 to 86400 seconds".to_owned()),
    }
}

/// Reads and prints, once or until stopped.
///
/// # Errors
/// The store's, or the result cannot be printed.
pub fn run(options: &StatusOptions) -> Result<()> {
    let (xen, store) = options.store.open_with_xen()?;
    let mut domains = Domains::of(xen.as_ref(), &store);
    let folder = &options.folder;
    if let Some(pace) = options.watch {
        return watch::run(&mut domains, folder, pace, options.json);
    }
    let rows = rows(&mut domains, folder, &mut Screens::default())?;
    let shown = match options.json {
        true => text::json(&show::json(&rows)) + "\n",
        false => show::table(&rows),
    };
    io::stdout().write_all(shown.as_bytes()).context("printing")
}
