//! A guest agent: reports the guest's name, kernel and memory every minute, and when it is asked.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_sys::Xen;

/// The node by which the host asks: `report` or `stop`.
const REQUEST: &str = "data/agent/request";

fn main() -> Result<(), Box<dyn Error>> {
    Ok(serve(&Store::open(&Xen::open()?)?)?)
}

/// Reports until the host writes `stop`.
pub fn serve(store: &Store) -> xen_store::Result<()> {
    let requests = store.watch(REQUEST)?;
    loop {
        // The host sees all nodes of one report, or none.
        store.with_transaction(|t| {
            for (name, value) in report() {
                t.write(&format!("data/{name}"), value)?;
            }
            t.write("data/updated", "1")
        })?;
        let next = Instant::now() + Duration::from_secs(60);
        // An event means "look", and may arrive without a change: the first one arrives
        // immediately.
        while requests.next(next)?.is_some() {
            match store.read_optional(REQUEST)?.as_deref() {
                Some(b"report") => {
                    store.rm(REQUEST)?;
                    break;
                }
                Some(b"stop") => return store.rm(REQUEST).map(drop),
                _ => {}
            }
        }
    }
}

/// Returns the names below `data` and their values.
fn report() -> [(&'static str, String); 4] {
    let line = |file: &str| {
        fs::read_to_string(file)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let rest = memory.lines().find_map(|line| line.strip_prefix(name));
        let number = rest.unwrap_or_default().split_whitespace().next();
        number.unwrap_or("0").to_owned()
    };
    [
        ("hostname", line("/proc/sys/kernel/hostname")),
        ("os_uname", line("/proc/sys/kernel/osrelease")),
        ("meminfo_total", kib("MemTotal:")),
        ("meminfo_free", kib("MemAvailable:")),
    ]
}
