//! The guides' programs on a simulated host: their loops in threads, the other ends here.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thermometer::device::{self, NO_SENSOR, Request, Response};
use xen_evtchn::EventChannels;
use xen_gnttab::ring::FrontRing;
use xen_gnttab::{PageAccess, SharedPages, share};
use xen_store::Store;
use xen_store_server::{Config, Server};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/from-c.rs"]
mod from_c;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/guest-agent.rs"]
mod guest_agent;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/thermo-backend.rs"]
mod thermo_backend;

fn host() -> (Simulation, Arc<Server>, DomId) {
    let host = Simulation::start().unwrap();
    let store = xen_store_server::sim::start(&host, Config::new()).unwrap();
    let guest = host.add_domain().unwrap();
    store.add_domain(guest);
    (host, store, guest)
}

fn process(host: &Simulation, domain: DomId) -> (Xen, Store) {
    let xen = host.xen(domain).unwrap();
    let store = Store::open(&xen).unwrap();
    (xen, store)
}

fn minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Waits until a node has a value.
fn reaches(store: &Store, node: &str, value: &str) {
    let value = value.as_bytes();
    let found = store.wait_for(node, minute(), |now| (now == Some(value)).then_some(()));
    assert_eq!(found.unwrap(), Some(()), "{node}");
}

#[test]
fn what_the_c_libraries_do() {
    let (host, _stored, guest) = host();
    let (xen, store) = process(&host, guest);
    let (dom0_xen, dom0_store) = process(&host, DomId::DOM0);

    // Two that count at once lose no count.
    thread::scope(|scope| {
        for store in [&store, &dom0_store] {
            let path = format!("/local/domain/{guest}/data/starts");
            scope.spawn(move || {
                for _ in 0..50 {
                    from_c::count(store, &path).unwrap();
                }
            });
        }
    });
    assert_eq!(from_c::count(&store, "data/starts").unwrap(), 101);

    assert!(!from_c::appears(&store, "data/late", Instant::now()).unwrap());
    let writer = thread::spawn(move || store.write("data/late", "1"));
    let late = format!("/local/domain/{guest}/data/late");
    assert!(from_c::appears(&dom0_store, &late, minute()).unwrap());
    writer.join().unwrap().unwrap();

    let path = format!("/local/domain/0/data/pong/{guest}");
    let server = xen_vchan::ServerBuilder::new(guest, path.as_str());
    let mut server = server.publish(&dom0_xen, &dom0_store).unwrap();
    let client = thread::spawn({
        let (xen, store) = process(&host, guest);
        move || from_c::ask(&xen, &store, DomId::DOM0, &path)
    });
    let mut question = [0; 4];
    server.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"ping");
    server.write_all(b"pong").unwrap();
    server.flush().unwrap();
    assert_eq!(&client.join().unwrap().unwrap(), b"pong");
    drop(server);

    let channels = EventChannels::open(&dom0_xen).unwrap();
    let own = channels.bind_unbound(guest).unwrap();
    let port = own.port();
    let client = thread::spawn(move || from_c::answer(&xen, (DomId::DOM0, port), 3, minute()));
    for _ in 0..3 {
        assert_eq!(channels.wait(Some(minute())).unwrap(), Some(port));
        channels.unmask(port).unwrap();
        own.notify().unwrap();
    }
    assert_eq!(client.join().unwrap().unwrap(), 3);
    drop((own, channels));
    host.assert_clean();
}

#[test]
fn the_agent_reports_when_it_is_asked() {
    let (host, _stored, guest) = host();
    let (_xen, store) = process(&host, DomId::DOM0);
    let agent = thread::spawn({
        let (_xen, store) = process(&host, guest);
        move || guest_agent::serve(&store)
    });
    let node = |name: &str| format!("/local/domain/{guest}/data/{name}");
    reaches(&store, &node("updated"), "1");
    let total: u64 = store
        .read_str(&node("meminfo_total"))
        .unwrap()
        .parse()
        .unwrap();
    assert!(total > 0);
    // The next report comes before the minute is over.
    store.rm(&node("updated")).unwrap();
    store.write(&node("agent/request"), "nonsense").unwrap();
    store.write(&node("agent/request"), "report").unwrap();
    reaches(&store, &node("updated"), "1");
    assert!(!store.exists(&node("agent/request")).unwrap());
    store.write(&node("agent/request"), "stop").unwrap();
    agent.join().unwrap().unwrap();
    host.assert_clean();
}

/// The guest's end of the device.
struct Front {
    ring: FrontRing<Request, Response>,
    channels: EventChannels,
    port: xen_evtchn::BoundPort,
    pages: SharedPages,
}

impl Front {
    fn offer(xen: &Xen, store: &Store, guest: DomId) -> Self {
        let mut pages = share(xen, DomId::DOM0, 1, PageAccess::ReadWrite).unwrap();
        let ring = FrontRing::new(pages.take_region()).unwrap();
        let channels = EventChannels::open(xen).unwrap();
        let port = channels.bind_unbound(DomId::DOM0).unwrap();
        let node = |name: &str| format!("{}/{name}", device::frontend(guest));
        store
            .with_transaction(|t| {
                t.write(&node("ring-ref"), pages.refs()[0].as_u32().to_string())?;
                t.write(&node("event-channel"), port.port().as_u32().to_string())?;
                t.write(&node("state"), "3")
            })
            .unwrap();
        Self {
            ring,
            channels,
            port,
            pages,
        }
    }

    /// Asks about sensors, and returns the responses.
    fn ask(&mut self, sensors: &[u32]) -> Vec<Response> {
        for (id, sensor) in sensors.iter().enumerate() {
            self.ring.push_request(&[id as u32, *sensor]).unwrap();
        }
        if self.ring.publish().unwrap() {
            self.port.notify().unwrap();
        }
        let mut responses = Vec::new();
        while responses.len() < sensors.len() {
            match self.ring.poll_response().unwrap() {
                Some(response) => responses.push(response),
                None if self.ring.arm(1).unwrap() => {}
                None => {
                    let port = self.channels.wait(Some(minute())).unwrap().unwrap();
                    self.channels.unmask(port).unwrap();
                }
            }
        }
        responses
    }
}

/// Starts the backend for a guest, and runs the guest's part.
fn with_backend(guest_part: impl FnOnce(&Simulation, &Xen, &Store, DomId)) {
    let (host, _stored, guest) = host();
    let (xen, store) = process(&host, DomId::DOM0);
    device::create(&store, guest).unwrap();
    let backend = thread::spawn({
        let (xen, store) = process(&host, DomId::DOM0);
        move || {
            let mut backend = thermo_backend::Backend::new(&xen, &store, guest).unwrap();
            let result = backend.run(|sensor| (sensor < 2).then_some(20_000 + sensor));
            result.map_err(|error| error.to_string())
        }
    });
    let (guest_xen, guest_store) = process(&host, guest);
    reaches(&guest_store, &state(guest), "2");
    guest_part(&host, &guest_xen, &guest_store, guest);
    store.rm(&device::frontend(guest)).unwrap();
    backend.join().unwrap().unwrap();
    drop((xen, guest_xen));
    host.assert_clean();
}

fn state(guest: DomId) -> String {
    format!("{}/state", device::directory(guest))
}

#[test]
fn the_backend_answers_until_the_guest_closes() {
    with_backend(|_host, xen, store, guest| {
        let own = format!("{}/state", device::frontend(guest));
        // More requests than one turn takes, and a second connection.
        for round in 0..2 {
            let mut front = Front::offer(xen, store, guest);
            reaches(store, &state(guest), "4");
            store.write(&own, "4").unwrap();
            assert_eq!(
                front.ask(&[0, 1, 2]),
                [[0, 0, 20_000], [1, 0, 20_001], [2, NO_SENSOR, 0]]
            );
            let many = vec![1; front.ring.entries() as usize];
            assert!(many.len() > 64);
            assert_eq!(front.ask(&many).len(), many.len(), "round {round}");
            store.write(&own, "5").unwrap();
            reaches(store, &state(guest), "6");
            drop(front);
            store.write(&own, "6").unwrap();
            store.write(&own, "1").unwrap();
            reaches(store, &state(guest), "2");
        }
    });
}

#[test]
fn the_backend_refuses_a_guest_that_breaks_the_rules() {
    with_backend(|host, xen, store, guest| {
        let node = |name: &str| format!("{}/{name}", device::frontend(guest));
        // Nodes that are no numbers, then a grant that does not exist.
        for reference in ["x", "9999"] {
            store.write(&node("ring-ref"), reference).unwrap();
            store.write(&node("event-channel"), "1").unwrap();
            store.write(&node("state"), "3").unwrap();
            reaches(store, &state(guest), "5");
            store.write(&node("state"), "1").unwrap();
            reaches(store, &state(guest), "2");
        }
        // An impossible index in the ring.
        let front = Front::offer(xen, store, guest);
        reaches(store, &state(guest), "4");
        let index = u32::MAX.to_ne_bytes();
        host.scribble(guest, front.pages.refs()[0], 0, &index)
            .unwrap();
        front.port.notify().unwrap();
        reaches(store, &state(guest), "5");
    });
}
