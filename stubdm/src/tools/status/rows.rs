//! Reads what there is to show of each guest with a stubdomain.
//!
//! A domain or a process may end at any moment between two reads: what is not there any more is
//! `None`, and a domain that has ended is left out.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::discover::goes_to;
use crate::libxl::domains::Domains;
use crate::libxl::trusted;
use crate::libxl::vnc::VncServer;
use crate::proxy::counters::{self, Counters};
use crate::rt::error::{Context, Result};
use crate::service::record::{self, Kind, Liveness, Record};
use crate::tools::status::screen::{Screen, Screens};

/// A process on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number, as the toolstack noted it.
    pub pid: u32,
    /// `true` if it still exists.
    pub alive: bool,
    /// `true` if it has a record, by which it can be started again.
    pub recorded: bool,
    /// Its resident memory, in KiB.
    pub memory: Option<u64>,
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
    /// The device model's own state: `running`, or why it is not.
    pub state: Option<String>,
    /// The process that carries QMP on the host.
    pub proxy: Option<Process>,
    /// The counters of that process.
    pub counters: Option<Counters>,
    /// The process that serves the stubdomain's consoles on the host.
    pub consoles: Option<Process>,
    /// The bytes in the files that the stubdomain's consoles are written to.
    pub console_bytes: Option<u64>,
    /// The memory the toolstack gave the stubdomain, in KiB.
    pub memory: Option<u64>,
    /// Its screen, if dom0's QEMU serves one.
    pub screen: Option<Screen>,
    /// The first thing that could not be read of this guest, and why.
    pub fault: Option<String>,
}

/// The state shown for a stubdomain that does not exist, though its nodes do.
pub(super) const GONE: &str = "the stubdomain is gone";

/// Time in which the QEMUs of all screens answer.
const SCREENS: Duration = Duration::from_secs(2);

/// Reads the store, and the services' records and counters in `folder`. Nodes and process numbers
/// are hints: a domain that does not exist is left out, and a process is alive if it holds its
/// record, or, without a record, if its command line names the stubdomain. The first node of a
/// guest that cannot be read is that row's [`fault`](Row::fault).
///
/// # Errors
/// The connection to the store failed, or its list of domains cannot be read.
pub fn rows(existing: &mut Domains, folder: &Path, screens: &mut Screens) -> Result<Vec<Row>> {
    existing.look();
    let store = existing.store();
    // Without their locks, which a process that is being started waits for.
    let records: Vec<_> = record::all(folder)
        .into_iter()
        .map(|(_, record, life)| (record, matches!(life, Liveness::Alive)))
        .collect();
    let mut domains: Vec<DomId> = store
        .directory("/local/domain")
        .context("/local/domain")?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    domains.sort_unstable();
    let mut rows: Vec<Row> = Vec::new();
    // The places of those rows that have a screen, and the servers.
    let (mut places, mut servers) = (Vec::new(), Vec::new());
    for guest in domains {
        if existing.exists(guest) == Some(false) {
            continue;
        }
        let mut reader = Reader {
            store,
            records: &records,
            fault: None,
        };
        let home = format!("/local/domain/{guest}");
        let number = reader.dom0s(&format!("{home}/image/device-model-domid"))?;
        let Some(stubdomain) = number.and_then(|text| text.trim().parse::<DomId>().ok()) else {
            continue;
        };
        let stub = format!("/local/domain/{stubdomain}");
        let proxy = reader.process(Kind::Proxy, stubdomain)?;
        let memory = reader.text(&format!("{stub}/memory/target"))?;
        let page = counters::read(folder, stubdomain.as_u16());
        // A file that another process left does not describe this one.
        let page = page.filter(|page| proxy.is_some_and(|proxy| proxy.pid == page.pid));
        if let Some(server) = reader.vnc_server(stubdomain) {
            places.push(rows.len());
            servers.push((stubdomain, server));
        }
        rows.push(Row {
            guest,
            name: reader.text(&format!("{home}/name"))?,
            stubdomain,
            state: match existing.exists(stubdomain) {
                Some(false) => Some(GONE.to_owned()),
                _ => reader.text(&format!("{stub}/device-model/{guest}/state"))?,
            },
            proxy,
            counters: page.map(|page| page.counters),
            consoles: reader.process(Kind::Consoled, stubdomain)?,
            console_bytes: reader.console_bytes(stubdomain)?,
            memory: memory.and_then(|text| text.trim().parse().ok()),
            screen: None,
            fault: reader.fault,
        });
    }
    let screens = screens.look(&servers, Instant::now() + SCREENS);
    for (place, screen) in places.into_iter().zip(screens) {
        if let Some(row) = rows.get_mut(place) {
            row.screen = Some(screen);
        }
    }
    Ok(rows)
}

/// Reads one row's nodes: an error is kept as the row's fault, unless it is the connection's end.
struct Reader<'a> {
    store: &'a Store,
    /// Each with whether its process lives.
    records: &'a [(Record, bool)],
    fault: Option<String>,
}

impl Reader<'_> {
    fn keep<T>(&mut self, node: &str, read: xen_store::Result<Option<T>>) -> Result<Option<T>> {
        match read {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) if !error.is_fatal() => {
                self.fault.get_or_insert_with(|| format!("{node}: {error}"));
                Ok(None)
            }
            other => other.context(node),
        }
    }

    /// A node's value, to be shown.
    fn text(&mut self, node: &str) -> Result<Option<String>> {
        let value = self.keep(node, self.store.read(node).map(Some))?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// A node's value, if it is dom0's.
    fn dom0s(&mut self, node: &str) -> Result<Option<String>> {
        self.keep(node, trusted::read_str(self.store, node))
    }

    /// The process that serves a stubdomain: as it is recorded, or whose number libxl's node holds.
    fn process(&mut self, kind: Kind, stubdomain: DomId) -> Result<Option<Process>> {
        let mut records = self.records.iter();
        let own = |record: &Record| record.kind == kind && record.stubdomain == stubdomain.as_u16();
        if let Some((record, alive)) = records.find(|(record, _)| own(record)) {
            return Ok(Some(process(record.pid, *alive, true)));
        }
        let text = self.dom0s(&format!("/local/domain/{stubdomain}/{}", kind.node()))?;
        let pid = text.and_then(|text| text.trim().parse().ok());
        Ok(pid.map(|pid| process(pid, names(pid, stubdomain), false)))
    }

    /// The VNC server of a stubdomain's screen.
    fn vnc_server(&mut self, stubdomain: DomId) -> Option<VncServer> {
        let server = VncServer::of(self.store, stubdomain);
        server.unwrap_or_else(|failure| {
            self.fault.get_or_insert_with(|| failure.to_string());
            None
        })
    }

    /// Returns how long the files are that a stubdomain's consoles are written to; `None` if there
    /// are none.
    fn console_bytes(&mut self, stubdomain: DomId) -> Result<Option<u64>> {
        let stub = format!("/local/domain/{stubdomain}");
        let folder = format!("{stub}/device/console");
        let others = self.keep(&folder, self.store.directory(&folder).map(Some))?;
        let others = others.unwrap_or_default();
        let others = others
            .iter()
            // The stubdomain may have made any number of others.
            .filter(|name| name.parse::<u8>().is_ok())
            .map(|name| format!("{folder}/{name}/output"));
        let mut sum = None;
        for node in [format!("{stub}/console/output")].into_iter().chain(others) {
            let Some(path) = self.keep(&node, goes_to(self.store, &node))? else {
                continue;
            };
            if let Ok(meta) = fs::symlink_metadata(path) {
                if meta.is_file() {
                    sum = Some(sum.unwrap_or(0) + meta.len());
                }
            }
        }
        Ok(sum)
    }
}

/// Returns whether a process is one for that stubdomain: upstream's proxy and QEMU have its number
/// as a word of their command lines.
fn names(pid: u32, stubdomain: DomId) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let number = stubdomain.to_string();
    line.split(|byte| *byte == 0)
        .any(|word| word == number.as_bytes())
}

fn process(pid: u32, alive: bool, recorded: bool) -> Process {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.as_deref().unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Process {
        pid,
        recorded,
        alive: alive && !status.is_empty(),
        memory: line
            .filter(|_| alive)
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok()),
    }
}
