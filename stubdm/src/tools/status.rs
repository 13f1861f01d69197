//! `stubdm-run status`: the guests with stubdomains, as the store and the host's processes show them.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use serde_json::json;
use xen_store::Store;
use xen_sys::DomId;

use super::store::{StoreOptions, optional};
use crate::error::{Context, Result, one_line};

/// What the person typed.
#[derive(Args, Clone, Debug)]
pub struct StatusOptions {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    store: StoreOptions,
}

/// A guest with a stubdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The guest.
    pub guest: DomId,
    /// Its name.
    pub name: Option<String>,
    /// Its stubdomain.
    pub stubdomain: DomId,
    /// What the device model says of itself: `running`, or why it is not.
    pub state: Option<String>,
    /// The process that carries QMP on the host.
    pub proxy: Option<u32>,
    /// The memory the toolstack gave the stubdomain, in KiB.
    pub memory: Option<u64>,
}

/// Reads the store. A domain that goes meanwhile is left out.
///
/// # Errors
/// The store's.
pub fn rows(store: &Store) -> Result<Vec<Row>> {
    let mut domains: Vec<DomId> = store
        .directory("/local/domain")
        .context("/local/domain")?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    domains.sort_unstable();
    let mut rows = Vec::new();
    for guest in domains {
        let home = format!("/local/domain/{guest}");
        let number = optional(store, &format!("{home}/image/device-model-domid"))?;
        let Some(stubdomain) = number.and_then(|text| text.trim().parse::<DomId>().ok()) else {
            continue;
        };
        let stub = format!("/local/domain/{stubdomain}");
        let proxy = optional(store, &format!("{stub}/image/qmp-proxy-pid"))?;
        let memory = optional(store, &format!("{stub}/memory/target"))?;
        rows.push(Row {
            guest,
            name: optional(store, &format!("{home}/name"))?,
            stubdomain,
            state: optional(store, &format!("{stub}/device-model/{guest}/state"))?,
            proxy: proxy.and_then(|text| text.trim().parse().ok()),
            memory: memory.and_then(|text| text.trim().parse().ok()),
        });
    }
    Ok(rows)
}

/// Reads and prints.
///
/// # Errors
/// The store's, or the result cannot be printed.
pub fn run(options: &StatusOptions) -> Result<()> {
    let rows = rows(&options.store.open()?)?;
    let alive = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    let text = match options.json {
        true => as_json(&rows, &alive),
        false => table(&rows, &alive),
    };
    io::stdout().write_all(text.as_bytes()).context("printing")
}

fn as_json(rows: &[Row], alive: &dyn Fn(u32) -> bool) -> String {
    let all = rows.iter().map(|row| {
        json!({
            "guest": row.guest.as_u16(),
            "name": row.name,
            "stubdomain": row.stubdomain.as_u16(),
            "state": row.state,
            "proxy": row.proxy.map(|pid| json!({ "pid": pid, "alive": alive(pid) })),
            "memory_kib": row.memory,
        })
    });
    format!("{:#}\n", json!({ "guests": all.collect::<Vec<_>>() }))
}

fn table(rows: &[Row], alive: &dyn Fn(u32) -> bool) -> String {
    let mut text = format!(
        "{:<20} {:>5} {:>7} {:>7} {:>10}  {}\n",
        "NAME", "GUEST", "STUBDOM", "MiB", "PROXY", "DEVICE MODEL"
    );
    for row in rows {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let proxy = row.proxy.map(|pid| match alive(pid) {
            true => pid.to_string(),
            false => "gone".to_owned(),
        });
        text += &format!(
            "{:<20} {:>5} {:>7} {:>7} {:>10}  {}\n",
            or_none(row.name.as_deref().map(one_line)),
            row.guest.to_string(),
            row.stubdomain.to_string(),
            or_none(row.memory.map(|kib| (kib >> 10).to_string())),
            or_none(proxy),
            or_none(row.state.as_deref().map(one_line)),
        );
    }
    text
}
