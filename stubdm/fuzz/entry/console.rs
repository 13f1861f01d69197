//! A hostile frontend against a console that `consoled` serves.
//!
//! A finding is a panic, a file over its limit, something that stays, or a server that an
//! honest frontend cannot use afterwards.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stubdm::consoled::service::Service;
use stubdm::libxl::discover::Console;
use stubdm::libxl::output::Output;
use xen_console::Frontend;
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{PageAccess, Region, SharedPages, Words, share};
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};

use super::input::Input;

/// The largest log here, in bytes.
const LIMIT: u64 = 5000;
/// Longer than any input may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than the time between two connections of one backend.
const STEP: Duration = Duration::from_millis(30);

/// A host for one input after another.
struct TestHost {
    sim: Simulation,
    _stored: Arc<Server>,
    guest: DomId,
    dom0: (Xen, Store),
    domu: (Xen, Store),
    dir: tempfile::TempDir,
}

impl TestHost {
    fn new() -> Self {
        let sim = Simulation::start().unwrap();
        let stored = xen_store_server::sim::start(&sim, Config::new()).unwrap();
        let guest = sim.add_domain().unwrap();
        stored.add_domain(guest);
        stored.introduce(guest);
        let open = |domain| (sim.xen(domain).unwrap(), stored.connect(domain).unwrap());
        Self {
            dom0: open(DomId::DOM0),
            domu: open(guest),
            _stored: stored,
            sim,
            guest,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The console of that number as libxl writes it, and the file of its bytes.
    fn console(&self, number: u32) -> Console {
        let store = &self.dom0.1;
        let guest = self.guest;
        let path = format!("/local/domain/0/backend/console/{guest}/{number}");
        let frontend = format!("/local/domain/{guest}/device/console/{number}");
        let _ = store.rm(&frontend);
        store.mkdir(&frontend).unwrap();
        let theirs = Permissions::owner_none(guest).grant_read(DomId::DOM0);
        store.set_permissions(&frontend, &theirs).unwrap();
        for (name, value) in [
            ("backend", path.as_str()),
            ("backend-id", "0"),
            ("state", "1"),
        ] {
            let node = format!("{frontend}/{name}");
            store.write(&node, value).unwrap();
            store.set_permissions(&node, &theirs).unwrap();
        }
        for (name, value) in [
            ("frontend", frontend.clone()),
            ("frontend-id", guest.to_string()),
        ] {
            store.write(&format!("{path}/{name}"), value).unwrap();
        }
        let ours = Permissions::owner_none(DomId::DOM0).grant_read(guest);
        store.set_permissions(&path, &ours).unwrap();
        let file = self.dir.path().join(format!("f{number}"));
        let output = match number {
            1 | 4 => Output::File(file),
            2 => {
                std::fs::write(&file, [1; 3000]).unwrap();
                Output::Pipe(file)
            }
            _ => Output::Pty,
        };
        Console {
            number,
            path,
            frontend,
            output,
        }
    }
}

thread_local! {
    static TEST_HOST: RefCell<Option<TestHost>> = const { RefCell::new(None) };
}

/// Runs an input.
pub(crate) fn console(data: &[u8]) {
    TEST_HOST.with_borrow_mut(|slot| {
        let host = slot.get_or_insert_with(TestHost::new);
        let began = Instant::now();
        let mut input = Input(data);
        let console = host.console(1 + u32::from(input.byte() % 4));
        let (xen, store) = &host.dom0;
        let mut service = Service::open(xen, store, host.guest, &console, LIMIT, None).unwrap();
        // Times are an argument: those between two connections pass at once.
        let mut now = Instant::now();
        let mut turn = |service: &mut Service| {
            now += STEP;
            service.turn(now)
        };
        let mut hostile = Hostile::new(&host.domu, &console.frontend);
        while !input.0.is_empty() {
            hostile.act(&mut input);
            turn(&mut service);
            bounded(&console.output);
        }
        drop(hostile);
        honest(host, &console, &mut service, &mut turn);
        drop(service);
        assert_eq!(host.sim.leaks(), [""; 0], "something stays");
        assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    });
}

/// A page and a port, which may or may not be those in the nodes.
struct Hostile<'a> {
    store: &'a Store,
    node: &'a str,
    pages: SharedPages,
    output: Region,
    indices: Words<AtomicU32>,
    port: BoundPort,
    _events: EventChannels,
}

impl<'a> Hostile<'a> {
    fn new((xen, store): &'a (Xen, Store), node: &'a str) -> Self {
        let events = EventChannels::open(xen).unwrap();
        let mut pages = share(xen, DomId::DOM0, 1, PageAccess::ReadWrite).unwrap();
        let mut page = pages.take_region();
        page.split_to(1024).unwrap();
        let hostile = Self {
            store,
            node,
            pages,
            output: page.split_to(2048).unwrap(),
            indices: page.take_words(4).unwrap(),
            port: events.bind_unbound(DomId::DOM0).unwrap(),
            _events: events,
        };
        hostile.publish();
        hostile
    }

    fn write(&self, name: &str, value: &[u8]) {
        self.store
            .write(&format!("{}/{name}", self.node), value)
            .unwrap();
    }

    fn publish(&self) {
        let reference = self.pages.refs()[0].as_u32().to_string();
        self.write("ring-ref", reference.as_bytes());
        self.write("port", self.port.port().as_u32().to_string().as_bytes());
        self.write("state", b"3");
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let index = |which: u8| &self.indices[usize::from(which % 4)];
        match input.byte() % 16 {
            // Bytes, and a cursor that could be meant: what an honest one does.
            0..=4 => {
                let (byte, count) = (input.byte(), u32::from(input.byte()) * 9);
                let start = index(3).load(Ordering::Relaxed);
                for at in 0..count {
                    let place = start.wrapping_add(at) as usize % 2048;
                    let byte = [byte.wrapping_add(at as u8)];
                    self.output.copy_in(place, &byte).unwrap();
                }
                index(3).store(start.wrapping_add(count), Ordering::Release);
                let _ = self.port.notify();
            }
            // Takes out the other ring's bytes.
            5 => index(0).store(index(1).load(Ordering::Acquire), Ordering::Release),
            6 => index(input.byte()).store(input.word(), Ordering::Release),
            7 => {
                let which = index(input.byte());
                let near = u32::from(input.byte()).wrapping_sub(128);
                which.fetch_add(near, Ordering::AcqRel);
            }
            8 => drop(self.port.notify()),
            9 => self.write("ring-ref", input.word().to_string().as_bytes()),
            10 => self.write("port", input.word().to_string().as_bytes()),
            11 => {
                let name = ["ring-ref", "port", "state"][usize::from(input.byte() % 3)];
                self.write(name, &[input.byte(); 3]);
            }
            12 => drop(self.store.rm(&format!("{}/ring-ref", self.node))),
            13 => self.publish(),
            _ => self.write("state", &[b'0' + input.byte() % 8]),
        }
    }
}

/// No file is longer than it may be.
fn bounded(output: &Output) {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    if let Output::File(path) = output {
        let old = path.with_extension("old");
        // The state's limit is out of reach here; what one turn takes out of a ring is not.
        let limit = if path.ends_with("f4") { LIMIT } else { 1 << 26 };
        assert!(length(path) <= limit && length(&old) <= limit, "{path:?}");
    }
}

/// The next frontend finds a console that works.
fn honest(
    host: &TestHost,
    console: &Console,
    service: &mut Service,
    turn: &mut impl FnMut(&mut Service) -> bool,
) {
    let (xen, store) = &host.domu;
    let state = format!("{}/state", console.frontend);
    store.write(&state, "6").unwrap();
    let ended = Instant::now() + PATIENCE;
    let theirs = format!("{}/state", console.path);
    while host.dom0.1.read_str(&theirs).unwrap() != "6" {
        turn(service);
        assert!(Instant::now() < ended, "not let go");
    }
    let mut frontend = Frontend::publish(xen, store, &console.frontend, &[]).unwrap();
    assert_eq!(frontend.connection().try_write(b"honest").unwrap(), 6);
    while frontend.connection().unread().unwrap() > 0 {
        turn(service);
        frontend.turn().unwrap();
        assert!(Instant::now() < ended, "not served");
    }
}
