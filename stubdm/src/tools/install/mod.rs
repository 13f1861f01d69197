//! `stubdm-run install` and `uninstall`: our parts in libxl's places, and back again.
//!
//! ```text
//!   parts (a table) × libxl's own paths ──plan──▶ steps ──▶ record, then the host's files
//!                                          │
//!                                          └─ what is in the way: one line, and nothing is changed
//! ```
//!
//! A file in a place is put aside under the same name with `.distrib`: by `dpkg-divert`, so that
//! upgrades of the package are installed there too, or by a plain rename where there is no dpkg.
//! Everything is decided before the first change, the record is written before the files, and both
//! commands can be repeated.

mod dpkg;
mod parts;
mod plan;
mod record;
mod root;
mod source;
mod step;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use self::parts::{PARTS, Part};
use self::plan::{Facts, Method, Placement, Work};
use self::record::{Lock, Put, Record};
use self::root::{Root, There};
use self::source::what_to_put;
use crate::libxl::places::{self, Libxl, Search};
use crate::rt::error::{Context, Failure, Result};

/// Where a ramdisk is looked for when none is named.
const RAMDISK: &str = "/var/lib/stubdm/stubdom.img";

/// Options of both commands.
#[derive(Args, Clone, Debug)]
struct Common {
    /// The parts that are meant [default: for install proxy; for uninstall all that are installed]
    #[arg(value_name = "PART", value_parser = PossibleValuesParser::new(parts::names()))]
    parts: Vec<String>,
    /// Change the host or image whose files are here
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print the steps and take none
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct InstallOptions {
    #[command(flatten)]
    common: Common,
    /// The target of the link, below the root [default: this program]
    #[arg(long, value_name = "PATH")]
    program: Option<String>,
    /// The stubdomain's ramdisk, below the root; for the part `image`
    #[arg(long, value_name = "PATH", default_value = RAMDISK)]
    image: String,
    /// The stubdomain's kernel, below the root; for the part `image` [default: the only one, or the
    /// running one]
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    /// Move files aside without a dpkg diversion, also where there is dpkg
    #[arg(long)]
    rename: bool,
    /// Do nothing, and succeed, where there is no libxl
    #[arg(long)]
    if_xen: bool,
}

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct UninstallOptions {
    #[command(flatten)]
    common: Common,
}

/// Puts the parts into their places.
///
/// # Errors
/// Names the part that is missing or in the way, or the step that failed. Before the first step
/// nothing is changed.
pub fn install(options: &InstallOptions) -> Result<()> {
    let common = &options.common;
    let root = Root::new(&common.root)?;
    let search = Libxl::search(root.dir());
    let all = &search.found;
    let rows = common.rows();
    if all
        .iter()
        .all(|libxl| rows.iter().all(|row| (row.place)(libxl).is_none()))
    {
        if options.if_xen {
            return common.print(&[]);
        }
        return Err(no_place(&root, &rows, &search));
    }
    let placements = placements(options, &root, &rows, all)?;
    let method = match !options.rename && dpkg::is_there(&root)? {
        true => Method::Dpkg,
        false => Method::Rename,
    };
    common.carry_out(&root, |facts| {
        placements
            .iter()
            .map(|placement| facts.install(placement, method))
            .collect()
    })
}

/// Takes the parts out, and brings back what was there.
///
/// # Errors
/// As [`install`].
pub fn uninstall(options: &UninstallOptions) -> Result<()> {
    let common = &options.common;
    let root = Root::new(&common.root)?;
    common.carry_out(&root, |facts| {
        let entries = facts.record.entries.iter().rev();
        let meant = entries.filter(|e| common.parts.is_empty() || common.parts.contains(&e.part));
        meant.map(|entry| facts.uninstall(entry)).collect()
    })
}

/// The result of an installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Places that hold what `install` put there.
    pub places: Vec<String>,
    /// Places that no longer do.
    pub lost: Vec<String>,
}

/// Looks at what `install` has put below `root`.
///
/// # Errors
/// There is no such root, or the record cannot be read.
pub fn state(root: &Path) -> Result<Installed> {
    let root = Root::new(root)?;
    let record = Record::read(&root)?;
    let facts = Facts {
        root: &root,
        record: &record,
        diversions: Vec::new(),
    };
    let mut state = Installed::default();
    for entry in &record.entries {
        match facts.is_put(&entry.place, &entry.put)? {
            true => state.places.push(entry.place.clone()),
            // A person's policy is no loss.
            false
                if matches!(entry.put, Put::Text(_)) && root.look(&entry.place)? == There::File => {
            }
            false => state.lost.push(entry.place.clone()),
        }
    }
    Ok(state)
}

impl Common {
    fn rows(&self) -> Vec<&'static Part> {
        PARTS
            .iter()
            .filter(|part| match self.parts.is_empty() {
                true => part.usual,
                false => self.parts.iter().any(|name| name == part.name),
            })
            .collect()
    }

    /// Plans everything, then does it.
    fn carry_out(&self, root: &Root, plan: impl Fn(&Facts<'_>) -> Result<Vec<Work>>) -> Result<()> {
        let _lock = match self.dry_run {
            true => None,
            false => Some(Lock::take(root)?),
        };
        let mut record = Record::read(root)?;
        let works = plan(&Facts {
            root,
            record: &record,
            diversions: dpkg::diversions(root),
        })?;
        if !self.dry_run {
            for work in &works {
                carry_out_one(root, &mut record, work)?;
            }
        }
        self.print(&works)
    }

    fn print(&self, works: &[Work]) -> Result<()> {
        let text = match self.json {
            true => {
                let all = works.iter().map(|work| {
                    json!({
                        "part": work.part,
                        "place": work.place,
                        "steps": work.steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
                        "note": work.note,
                    })
                });
                let value = json!({ "dry_run": self.dry_run, "places": all.collect::<Vec<_>>() });
                stubdm_qmp::text::json(&value) + "\n"
            }
            false => self.text_of(works),
        };
        io::stdout().write_all(text.as_bytes()).context("printing")
    }

    fn text_of(&self, works: &[Work]) -> String {
        let mut text = String::new();
        for work in works {
            let steps = work.steps.iter().map(ToString::to_string);
            for line in steps.chain(work.note.iter().map(|note| format!("# {note}"))) {
                text += &format!("{:<8} {line}\n", work.part);
            }
        }
        let steps: usize = works.iter().map(|work| work.steps.len()).sum();
        text + match (steps, self.dry_run) {
            (0, _) => "nothing to do\n",
            (_, true) => "dry run: nothing was changed\n",
            (_, false) => "done\n",
        }
    }
}

/// Takes the steps for one place; the record is written before and after.
fn carry_out_one(root: &Root, record: &mut Record, work: &Work) -> Result<()> {
    let known = record
        .entries
        .iter()
        .position(|entry| entry.place == work.place);
    if let Some(entry) = &work.entry {
        match known {
            Some(at) => record.entries[at] = entry.clone(),
            None => record.entries.push(entry.clone()),
        }
        record.write(root)?;
    }
    for step in &work.steps {
        step.take(root)?;
    }
    if let (None, Some(at)) = (&work.entry, known) {
        record.entries.remove(at);
        record.write(root)?;
    }
    Ok(())
}

/// Explains why no libxl has a place for any of the rows.
fn no_place(root: &Root, rows: &[&Part], search: &Search) -> Failure {
    let below = root.dir().display();
    if search.found.is_empty() {
        return Failure::new(format_args!(
            "no libxl was found below {below}: no libxenlight.so.VERSION in {}; a folder of another name belongs into /etc/ld.so.conf",
            search.searched.join(", ")
        ));
    }
    let parts: Vec<_> = rows.iter().map(|row| row.name).collect();
    let each = search.found.iter().map(|libxl| {
        let why = match &libxl.not_on_path {
            Some(name) if parts.contains(&"device-model") => {
                format!(
                    "looks for {name} on PATH, and none is in {}",
                    places::path()
                )
            }
            _ => {
                "names no place for it (4.14 is the first that knows Linux stubdomains)".to_owned()
            }
        };
        format!("libxl {} ({}) {why}", libxl.version, libxl.file)
    });
    let each: Vec<_> = each.collect();
    Failure::new(format_args!(
        "nowhere to install {} below {below}: {}",
        parts.join(", "),
        each.join("; ")
    ))
}

/// Each place of the rows in each libxl, once, with what belongs there.
fn placements(
    options: &InstallOptions,
    root: &Root,
    rows: &[&Part],
    all: &[Libxl],
) -> Result<Vec<Placement>> {
    let mut placements: Vec<Placement> = Vec::new();
    for row in rows {
        let mut put = None;
        for place in all.iter().filter_map(|libxl| (row.place)(libxl)) {
            let place = root.plain(&place);
            if place.starts_with("/nix/store/") {
                return Err(Failure::new(format_args!(
                    "{place} is in the Nix store, which nothing but Nix changes: override the package that brings it"
                )));
            }
            if placements.iter().any(|placement| placement.place == place) {
                continue;
            }
            let put = match &put {
                Some(put) => put,
                None => put.insert(what_to_put(options, root, row.what)?),
            };
            let placement = Placement {
                part: row.name.to_owned(),
                place,
                put: put.clone(),
            };
            if put == &Put::Link(placement.place.clone()) {
                return Err(Failure::usage(format_args!(
                    "{} cannot be a link to itself",
                    placement.place
                )));
            }
            placements.push(placement);
        }
    }
    Ok(placements)
}
