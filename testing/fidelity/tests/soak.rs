//! A thousand domains on one simulated host, each with a store connection, ten watches and a
//! vchan to domain 0; domains that die at random; and what all of it costs.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xen_store::{Store, Watch};
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, PeerState, ServerBuilder};

/// The handles of one domain and of its peer in domain 0.
struct Guest {
    server: Channel,
    client: Channel,
    watches: Vec<Watch>,
    store: Store,
    _xen: Xen,
}

struct Host {
    simulation: Simulation,
    stored: Arc<StoreServer>,
    dom0: Xen,
    /// Each for some of the servers: Linux lets 500 nested epolls watch one descriptor.
    tools: [Store; 4],
}

/// Descriptors one domain costs, both ends, broker and store included; with room to spare.
const DESCRIPTORS: u64 = 19;

/// Resident memory of this process, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

impl Host {
    fn start() -> Self {
        let simulation = Simulation::start().unwrap();
        let stored = xen_store_server::sim::start(&simulation, Config::new()).unwrap();
        let dom0 = simulation.xen(DomId::DOM0).unwrap();
        let tools = std::array::from_fn(|_| Store::open(&dom0).unwrap());
        Self {
            simulation,
            stored,
            dom0,
            tools,
        }
    }

    fn add(&self) -> (DomId, Guest) {
        let id = self.simulation.add_domain().unwrap();
        self.stored.add_domain(id);
        let home = format!("/local/domain/{id}/data");
        let path = format!("/local/domain/0/data/soak/{id}");
        let mut server = ServerBuilder::new(id, &path)
            .watch_peer_domain(true)
            .publish(&self.dom0, &self.tools[usize::from(id.as_u16()) % 4])
            .unwrap();
        let xen = self.simulation.xen(id).unwrap();
        let store = Store::open(&xen).unwrap();
        let watches = (0..10)
            .map(|n| store.watch(&format!("{home}/{n}")).unwrap())
            .collect();
        let client = ClientBuilder::new(DomId::DOM0, &path)
            .connect(&xen, &store)
            .unwrap();
        // The client's first byte waits for this.
        server
            .wait_connected(Some(Instant::now() + Duration::from_secs(30)))
            .unwrap();
        (
            id,
            Guest {
                server,
                client,
                watches,
                store,
                _xen: xen,
            },
        )
    }
}

impl Guest {
    /// A few bytes each way, and a watch that fires.
    fn talk(&mut self, id: DomId, round: u32) {
        let deadline = Some(Instant::now() + Duration::from_secs(30));
        let text = format!("domain {id}, round {round}");
        let mut seen = vec![0; text.len()];
        assert_eq!(
            self.client
                .write_deadline(text.as_bytes(), deadline)
                .unwrap(),
            text.len()
        );
        assert_eq!(
            self.server.read_deadline(&mut seen, deadline).unwrap(),
            text.len()
        );
        assert_eq!(seen, text.as_bytes());
        assert_eq!(
            self.server.write_deadline(&seen, deadline).unwrap(),
            text.len()
        );
        assert_eq!(
            self.client.read_deadline(&mut seen, deadline).unwrap(),
            text.len()
        );

        let watch = &self.watches[round as usize % 10];
        while watch.try_next().unwrap().is_some() {}
        self.store.write(watch.path(), &text).unwrap();
        let event = watch.next(deadline).unwrap().unwrap();
        assert_eq!(&*event.path, watch.path());
    }
}

/// A fixed sequence that looks random: what fails once fails again.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % sides
    }
}

#[test]
fn a_thousand_domains_live_and_die_in_bounded_memory() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard).unwrap();
    let count = ((hard.max(soft) - 200) / DESCRIPTORS).min(1000) as usize;
    if count < 1000 {
        println!("{count} domains: RLIMIT_NOFILE is {hard}");
    }
    let (before, start) = (memory(), Instant::now());
    let at_first = open_descriptors();
    let host = Host::start();
    let descriptors = open_descriptors();
    let mut guests: BTreeMap<DomId, Guest> = (0..count).map(|_| host.add()).collect();
    let each = (open_descriptors() - descriptors) as f64 / count as f64;
    println!(
        "{count} domains made in {:?}, {each:.1} descriptors each",
        start.elapsed()
    );
    for (id, guest) in &mut guests {
        guest.talk(*id, 0);
    }
    let full = memory();
    println!("{} KiB each", (full - before) / count as u64);

    let mut dice = Dice(1);
    let mut killed = 0;
    for round in 1..=5 {
        let ids: Vec<DomId> = guests.keys().copied().collect();
        for _ in 0..count / 10 {
            let id = ids[dice.throw(ids.len())];
            let Some(mut dead) = guests.remove(&id) else {
                continue;
            };
            host.simulation.destroy_domain(id).unwrap();
            killed += 1;
            // Its peer in domain 0 learns of it.
            let deadline = Some(Instant::now() + Duration::from_secs(30));
            let heard = dead.server.read_deadline(&mut [0; 8], deadline);
            assert!(
                matches!(heard, Err(Error::Closed)),
                "domain {id} is dead: {heard:?}"
            );
            assert_eq!(dead.server.peer().unwrap(), PeerState::Gone);
        }
        while guests.len() < count {
            guests.extend([host.add()]);
        }
        for (id, guest) in guests.iter_mut().step_by(7) {
            guest.talk(*id, round);
        }
    }
    let after = memory();
    println!(
        "{killed} killed, {:?} in all, {full} KiB grew to {after} KiB",
        start.elapsed()
    );
    assert!(
        after < full + full / 2,
        "memory grew from {full} KiB to {after} KiB"
    );

    drop(guests);
    host.simulation.assert_clean();
    let left = host.tools[0]
        .directory("/local/domain/0/data/soak")
        .unwrap();
    assert!(left.is_empty(), "nodes left: {left:?}");
    drop(host);
    assert_eq!(open_descriptors(), at_first, "descriptors left");
}
