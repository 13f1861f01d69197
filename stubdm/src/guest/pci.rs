//! The host's PCI devices for the guest: they are attached to this domain first, over pcifront.
//!
//! ```text
//!   libxl                        kernel in here             here
//!   device/pci/0 ─────────────────────────────────────────▶ loads xen-pcifront
//!   waits for the backend's 4 ◀─ pcifront: state 4 ───────▶ logs the number, or what is wrong
//!   device_add to QEMU
//! ```
//!
//! libxl does this after the device model has written `running`, so nothing in the start waits for
//! it. (`libxl_pci.c`, `device_pci_add_stubdom_wait`; `drivers/pci/xen-pcifront.c`.)
//!
//! | module | part |
//! |---|---|
//! | [`broker`] | answers QEMU's system calls for the devices |
//! | [`devices`] | the devices, their addresses and resources |
//! | [`hypercalls`] | which of QEMU's hypercalls are made for it |

pub mod broker;
pub mod devices;
pub mod hypercalls;

use std::fs;
use std::time::{Duration, Instant};

use stubdm_qmp::text::one_line;
use tracing::{error, info, warn};
use xen_store::Store;
use xen_store::xenbus::XenbusState;

use crate::rt::error::{Context, Result};
use crate::rt::log_limit::{LogLimit, Verdict};

/// The one frontend that all devices share.
const FRONTEND: &str = "device/pci/0";
const CONNECTED: &str = XenbusState::Connected.as_str();
/// The states of an end that has given up.
const CLOSED: [&str; 2] = [XenbusState::Closing.as_str(), XenbusState::Closed.as_str()];
/// The reason that the frontend's kernel leaves.
const ERROR: &str = "error/device/pci/0/error";
/// How often the other nodes are looked at until it is connected.
const LOOK: Duration = Duration::from_millis(500);
/// As long as libxl waits for it.
const LIMIT: Duration = Duration::from_secs(60);
/// The longest logged outcome, in bytes, without its reason.
const LINE: usize = 160;
/// Where the kernel shows what it found.
const DEVICES: &str = "/sys/bus/pci/devices";

/// The outcome of the frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is connected.
    Connected,
    /// It is not, for the time given: its own state, its backend's path and state.
    Stuck(String),
    /// The toolstack has taken the last device away.
    Gone,
}

/// Attends to the devices until this program ends; calls `load` for the first one.
///
/// # Errors
/// There is no thread for it.
pub fn attend(store: &Store, load: impl FnOnce() + Send + 'static) -> Result<()> {
    let store = store.clone();
    let body = move || {
        let mut limit = LogLimit::new(Instant::now());
        let said = attend_to(&store, LIMIT, load, |outcome| {
            if admits(&mut limit, &outcome, Instant::now()) {
                log_outcome(&outcome);
            }
        });
        if let Err(error) = said {
            warn!("PCI: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("pci".into());
    thread.spawn(body).context("a thread for PCI")?;
    Ok(())
}

/// Returns whether to log an outcome: QEMU can write the frontend's state as well, at any rate.
fn admits(limit: &mut LogLimit, outcome: &Outcome, now: Instant) -> bool {
    let length = match outcome {
        Outcome::Stuck(why) => LINE + why.len(),
        _ => LINE,
    };
    passes(limit, length, now)
}

/// Returns whether to log a line of `length` bytes.
fn passes(limit: &mut LogLimit, length: usize, now: Instant) -> bool {
    match limit.admit(length, now) {
        Verdict::Pass => true,
        Verdict::PassAfter(count) => {
            info!("PCI: {count} lines were left out");
            true
        }
        Verdict::Stop => {
            warn!("PCI: too many lines: they are left out from here on");
            false
        }
        Verdict::Drop => false,
    }
}

fn log_outcome(outcome: &Outcome) {
    match outcome {
        Outcome::Connected => {
            let count = fs::read_dir(DEVICES).map_or(0, Iterator::count);
            info!("PCI: connected; the kernel shows {count} devices");
        }
        Outcome::Gone => info!("PCI: the devices are gone"),
        Outcome::Stuck(why) => error!("PCI: the guest gets no device of the host's: {why}"),
    }
}

/// From one appearance of the frontend to the next. Ends with the store.
fn attend_to(
    store: &Store,
    limit: Duration,
    load: impl FnOnce(),
    mut report: impl FnMut(Outcome),
) -> xen_store::Result<()> {
    let state = format!("{FRONTEND}/state");
    let mut load = Some(load);
    loop {
        store.wait_for(&state, None, |value| value.map(drop))?;
        if let Some(load) = load.take() {
            info!("PCI: the toolstack has a device of the host's for the guest");
            load();
        }
        let is = |value: Option<&[u8]>| value.is_none_or(|v| v == CONNECTED.as_bytes());
        let began = Instant::now();
        let done = loop {
            let next = began + limit.min(began.elapsed() + LOOK);
            let done = store.wait_for(&state, Some(next), |value| {
                is(value).then_some(value.is_some())
            })?;
            if done.is_some() || began.elapsed() >= limit || has_failed(store) {
                break done;
            }
        };
        match done {
            Some(true) => report(Outcome::Connected),
            Some(false) => {}
            None => report(Outcome::Stuck(describe(store, began.elapsed()))),
        }
        store.wait_for(&state, None, |value| value.is_none().then_some(()))?;
        // Of the next devices it would be no reason.
        let _ = store.rm(ERROR);
        report(Outcome::Gone);
    }
}

/// Returns whether an end has given up, or the frontend has left an error.
fn has_failed(store: &Store) -> bool {
    let read = |node: &str| store.read_str(node).ok();
    let has_closed = |node: &str| read(node).is_some_and(|state| CLOSED.contains(&&*state));
    let backend = read(&format!("{FRONTEND}/backend")).unwrap_or_default();
    read(ERROR).is_some()
        || has_closed(&format!("{FRONTEND}/state"))
        || has_closed(&format!("{backend}/state"))
}

/// Describes the states of both ends.
fn describe(store: &Store, time: Duration) -> String {
    let read = |node: &str| match store.read_str(node) {
        Ok(value) => one_line(&value),
        Err(_) => "unknown".to_owned(),
    };
    let backend = read(&format!("{FRONTEND}/backend"));
    let error = match store.read_str(ERROR) {
        Ok(error) => format!("; its error is: {}", one_line(&error)),
        Err(_) => String::new(),
    };
    format!(
        "after {} s pcifront's state is {}, and that of its backend {backend} is {}; connected is {CONNECTED}{error}",
        time.as_secs(),
        read(&format!("{FRONTEND}/state")),
        read(&format!("{backend}/state")),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use xen_store_server::{Config, Server};

    use super::*;
    use crate::rt::log_limit;

    #[test]
    fn devices_that_come_and_go_all_the_time_do_not_fill_the_log() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        let outcomes = [Outcome::Gone, Outcome::Connected];
        let logged = (0..100_000u32).filter(|step| {
            let now = start + Duration::from_millis(10) * *step;
            admits(&mut limit, &outcomes[*step as usize % 2], now)
        });
        // A thousand seconds.
        let most = (log_limit::BURST + 1000 * log_limit::EACH_SECOND) / (LINE as u64 + 32);
        let logged = logged.count() as u64;
        assert!((most / 2..=most).contains(&logged), "{logged} of {most}");
    }

    const BACKEND: &str = "/local/domain/0/backend/pci/9/0";

    #[test]
    fn an_end_that_gives_up_is_reported_at_once_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let server = Server::start(Config::new()).unwrap();
        server.listen(&socket).unwrap();
        let store = Store::connect(&socket).unwrap();
        let own = Store::connect(&socket).unwrap();
        let (sender, outcomes) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = attend_to(&own, LIMIT, || (), |outcome| sender.send(outcome).unwrap());
        });
        let backend = format!("{BACKEND}/state");
        let none = "device/pci/0/none";
        for (node, value, part) in [
            (&*backend, "5", "is 5;"),
            (&*backend, "6", "is 6;"),
            ("device/pci/0/state", "6", "state is 6,"),
            (ERROR, "no\nmsi", "its error is: no msi"),
            (none, "", ""),
        ] {
            store.write("device/pci/0/backend", BACKEND).unwrap();
            store.write(&backend, "2").unwrap();
            store.write("device/pci/0/state", "1").unwrap();
            let quiet = outcomes.recv_timeout(LOOK * 3);
            assert!(quiet.is_err(), "{quiet:?} before {node}");
            if node == none {
                return;
            }
            store.write(node, value).unwrap();
            let Ok(Outcome::Stuck(why)) = outcomes.recv_timeout(Duration::from_secs(20)) else {
                panic!("{node} {value}: nothing in 20 s");
            };
            assert!(why.contains(part), "{why}");
            store.rm("device/pci/0").unwrap();
            let gone = outcomes.recv_timeout(Duration::from_secs(20));
            assert_eq!(gone, Ok(Outcome::Gone));
        }
    }

    #[test]
    fn devices_that_come_connect_go_and_come_again_are_logged() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let server = Server::start(Config::new()).unwrap();
        server.listen(&socket).unwrap();
        let store = Store::connect(&socket).unwrap();
        let own = Store::connect(&socket).unwrap();
        let (loads, loaded) = mpsc::channel();
        let (sender, outcomes) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = attend_to(
                &own,
                Duration::from_secs(1),
                move || loads.send(()).unwrap(),
                |outcome| sender.send(outcome).unwrap(),
            );
        });
        let patience = Duration::from_secs(60);
        let state = |value: &str| store.write("device/pci/0/state", value).unwrap();
        store.write("device/pci/0/backend", BACKEND).unwrap();
        store.write(&format!("{BACKEND}/state"), "2").unwrap();
        state("1");
        loaded.recv_timeout(patience).unwrap();
        let Outcome::Stuck(why) = outcomes.recv_timeout(patience).unwrap() else {
            panic!("connected");
        };
        for part in ["after 1 s", "state is 1,", BACKEND, "is 2;"] {
            assert!(why.contains(part), "{why}");
        }
        assert!(!why.contains("error"), "{why}");
        // Nothing is reported before it is removed, and nothing is loaded again when it is added
        // again.
        state("4");
        store.rm("device/pci/0").unwrap();
        assert_eq!(outcomes.recv_timeout(patience), Ok(Outcome::Gone));
        state("4");
        assert_eq!(outcomes.recv_timeout(patience), Ok(Outcome::Connected));
        assert!(loaded.try_recv().is_err());
    }
}
