//! The host's domains, nodes and processes, compared before and after a test: nothing may be left.
//!
//! Domains by their numbers, xenstore nodes (their paths, not their values), processes that have a
//! command line. No program is started for it, because in the emulator that takes most of a short
//! test's time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use xen_store::Store;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

/// Folders that libxl makes for the first guest of a host and keeps, empty, ever after.
const TOOLSTACK_FOLDERS: [&str; 5] = [
    "/libxl",
    "/vm",
    "/local/domain/0/backend",
    "/local/domain/0/device",
    "/local/domain/0/device-model",
];

/// Folders that libxl makes for each PCI device that it has given to a guest, and keeps, empty.
const PCI_FOLDERS: &str = "/libxl/pci";

/// The first job of every domU.
const WATCHER: &str = "/data/agent/jobs/0/lines";

/// How long things that are on their way out may take.
const MOMENT: Duration = Duration::from_secs(30);

/// The host at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    domains: BTreeSet<DomId>,
    nodes: BTreeSet<String>,
    /// By number and start: one that becomes another program, as `xl console` does, is the same. It
    /// has no command line for a moment then; kernel threads never have one.
    processes: BTreeMap<(i32, u64), String>,
}

impl Snapshot {
    pub(crate) fn take(store: &Store) -> Result<Self> {
        let nodes = store.walk("/", u32::MAX)?;
        // The job that reports the openings of privcmd lives as long as its domU.
        let nodes = nodes.into_iter().filter(|node| !node.contains(WATCHER));
        Ok(Self {
            domains: domains()?,
            nodes: nodes.collect(),
            processes: started(all_processes()?),
        })
    }

    /// Returns a line for each thing in `self` that `before` lacks.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let mut extra = Vec::new();
        extra.extend(
            self.domains
                .difference(&before.domains)
                .map(|domain| format!("domain {domain}")),
        );
        let nodes: Vec<&String> = self
            .nodes
            .difference(&before.nodes)
            .filter(|node| !TOOLSTACK_FOLDERS.contains(&node.as_str()))
            .filter(|node| !node.starts_with(PCI_FOLDERS))
            .collect();
        extra.extend(
            nodes
                .iter()
                .take(20)
                .map(|node| format!("xenstore node {node}")),
        );
        if nodes.len() > 20 {
            extra.push(format!("and {} more xenstore nodes", nodes.len() - 20));
        }
        for (process, line) in &self.processes {
            if !line.is_empty() && !before.processes.contains_key(process) {
                extra.push(format!("process {}: {line}", process.0));
            }
        }
        extra
    }
}

/// Fails when something stays that was not there in `before`. Things go away a moment after the
/// command that ends them has returned, so they are given a [`MOMENT`].
pub(crate) fn assert_none(store: &Store, before: &Snapshot) -> Result<()> {
    let deadline = Instant::now() + MOMENT;
    loop {
        let extra = Snapshot::take(store)?.beyond(before);
        if extra.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("left behind:\n    {}", extra.join("\n    "));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Returns Xen's domains, including those that are ending.
pub(crate) fn domains() -> Result<BTreeSet<DomId>> {
    let all = Privcmd::open(&Xen::open()?)?.domains()?;
    Ok(all.iter().map(|info| info.id).collect())
}

/// Adds when each process was started; one that has ended is left out.
fn started(processes: BTreeMap<i32, String>) -> BTreeMap<(i32, u64), String> {
    let start = |pid: i32| -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold spaces and parentheses.
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(19)?.parse().ok()
    };
    let all = processes.into_iter();
    all.filter_map(|(pid, line)| Some(((pid, start(pid)?), line)))
        .collect()
}

/// Every process with a command line: kernel threads have none.
pub(crate) fn processes() -> Result<BTreeMap<i32, String>> {
    let mut found = all_processes()?;
    found.retain(|_, line| !line.is_empty());
    Ok(found)
}

fn all_processes() -> Result<BTreeMap<i32, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Gone by now, or a zombie: it is its parent's to reap and runs no code.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        found.insert(pid, line.trim_end().to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_left_behind() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let before = Snapshot {
            domains: [DomId::new(0)].into(),
            nodes: set(&["/local", "/vm"]),
            processes: [
                ((1, 5), "/init".to_owned()),
                ((7, 6), "xenstored".to_owned()),
                ((8, 6), String::new()),
            ]
            .into(),
        };
        let after = Snapshot {
            domains: [0, 3].map(DomId::new).into(),
            nodes: set(&["/local", "/local/domain/3", "/libxl"]),
            processes: [
                ((1, 5), "/init".to_owned()),
                ((7, 9), "qemu".to_owned()),
                ((8, 6), "xenconsole 3".to_owned()),
                ((9, 9), String::new()),
            ]
            .into(),
        };
        assert_eq!(
            after.beyond(&before),
            [
                "domain 3",
                "xenstore node /local/domain/3",
                "process 7: qemu"
            ]
        );
        assert!(before.beyond(&before).is_empty());
    }

    #[test]
    fn this_process_is_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        let all = started(processes().unwrap());
        let (_, start) = all.keys().find(|(pid, _)| *pid == own).unwrap();
        assert!(*start > 0);
    }
}
