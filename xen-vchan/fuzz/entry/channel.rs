//! A whole channel with a hostile peer, which has the pages mapped and the other end of the event
//! channel, and nothing to lose.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{MappedPages, PageAccess, Region, SharedPages, map, share};
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, GrantRef, Port, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, ServerBuilder, Violation};

use super::{Input, untouched};

const PATH: &str = "/local/domain/0/data/fuzz";
/// Longer than any call may take that was given no time.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A host for one input after another. Domain 0 is under test, `guest` is hostile, or they are the
/// same for a hostile server.
pub(super) struct TestHost {
    pub(super) sim: Simulation,
    _stored: StoreServer,
    pub(super) guest: DomId,
    pub(super) dom0: (Xen, Store),
    pub(super) domu: (Xen, Store),
}

impl TestHost {
    pub(super) fn new() -> Self {
        let sim = Simulation::start().unwrap();
        let guest = sim.add_domain().unwrap();
        let stored = StoreServer::start(Config::new()).unwrap();
        stored.add_domain(guest);
        let open = |domain| (sim.xen(domain).unwrap(), stored.connect(domain).unwrap());
        let (dom0, domu) = (open(DomId::DOM0), open(guest));
        dom0.1.write("domid", "0").unwrap();
        Self {
            sim,
            _stored: stored,
            guest,
            dom0,
            domu,
        }
    }
}

thread_local! {
    static TEST_HOST: RefCell<Option<TestHost>> = const { RefCell::new(None) };
}

/// The other end.
struct Hostile {
    port: Option<BoundPort>,
    _events: EventChannels,
    pages: Option<Held>,
    region: Region,
}

#[allow(dead_code)]
enum Held {
    Mapped(MappedPages),
    Shared(Vec<SharedPages>),
}

impl Hostile {
    fn poke(&mut self, at: usize, bytes: &[u8]) {
        self.region.copy_in(at, bytes).unwrap();
    }

    fn peek(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.region.copy_out(at, &mut bytes).unwrap();
        u32::from_ne_bytes(bytes)
    }
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    TEST_HOST.with_borrow_mut(|slot| {
        let host = slot.get_or_insert_with(TestHost::new);
        let mut input = Input(data);
        if input.byte() & 1 == 0 {
            server(host, &mut input);
        } else {
            client(host, &mut input);
        }
        assert_eq!(host.sim.leaks(), [""; 0], "something stays");
        assert!(!host.dom0.1.exists(PATH).unwrap(), "nodes stay");
    });
}

fn sizes(input: &mut Input<'_>) -> (usize, usize) {
    let mut size = || [0, 1024, 2048, 4096, 8192][usize::from(input.byte()) % 5];
    (size(), size())
}

/// A server under test, and a domU that maps its page.
fn server(host: &TestHost, input: &mut Input<'_>) {
    let (xen, store) = &host.dom0;
    let (left, right) = sizes(input);
    let channel = ServerBuilder::new(host.guest, PATH)
        .rings(left, right)
        // It keeps the pages that it has mapped.
        .reuse_memory(true)
        .watch_peer_domain(input.byte() & 7 == 0)
        .publish(xen, store)
        .unwrap();
    let number = |key: &str| -> u32 {
        let node = format!("{PATH}/{key}");
        store.read_str(&node).unwrap().parse().unwrap()
    };
    let page = GrantRef::new(number("ring-ref"));
    let remote = Port::new(number("event-channel"));
    let attach = || {
        let (xen, _) = &host.domu;
        let events = EventChannels::open(xen).unwrap();
        let port = events.bind_interdomain(DomId::DOM0, remote).unwrap();
        let mut pages = map(xen, DomId::DOM0, &[page], PageAccess::ReadWrite).unwrap();
        Hostile {
            port: Some(port),
            _events: events,
            region: pages.take_region(),
            pages: Some(Held::Mapped(pages)),
        }
    };
    let mut hostile = attach();
    if input.byte() & 3 != 0 {
        // As an honest client connects.
        hostile.poke(20, &[1]);
        hostile.port.as_ref().unwrap().notify().unwrap();
    }
    drive(input, channel, &mut hostile, [8, 12, 4, 0]);
}

/// A client under test, and a server that publishes what it likes.
fn client(host: &TestHost, input: &mut Input<'_>) {
    let (xen, store) = &host.dom0;
    let events = EventChannels::open(xen).unwrap();
    let port = events.bind_unbound(host.guest).unwrap();
    let mut control = share(xen, host.guest, 1, PageAccess::ReadWrite).unwrap();
    let order = |byte: u8| -> u16 {
        match byte {
            0..=250 => 10 + u16::from(byte % 5),
            251 => 20,
            252 => 9,
            253 => 21,
            254 => 0,
            _ => u16::MAX,
        }
    };
    let orders = [order(input.byte()), order(input.byte())];
    let rings = share(xen, host.guest, 8, PageAccess::ReadWrite).unwrap();
    let mut page = control.take_region();
    let mut hostile = |bytes: &[u8], at: usize| page.copy_in(at, bytes).unwrap();
    hostile(&orders[0].to_ne_bytes(), 16);
    hostile(&orders[1].to_ne_bytes(), 18);
    for (index, gref) in rings.refs().iter().enumerate() {
        hostile(&gref.as_u32().to_ne_bytes(), 24 + 4 * index);
    }
    if input.byte() & 7 == 0 {
        let at = 24 + 4 * usize::from(input.byte() % 8);
        hostile(&input.word().to_ne_bytes(), at);
    }
    let start = input.word().to_ne_bytes();
    for at in [0, 4, 8, 12] {
        hostile(&start, at);
    }
    if input.byte() & 7 == 0 {
        hostile(&input.word().to_ne_bytes(), usize::from(input.byte() & 12));
    }
    hostile(
        &[
            2,
            if input.byte() & 15 == 0 {
                input.byte()
            } else {
                1
            },
        ],
        20,
    );
    let text = |number: u32, input: &mut Input<'_>| match input.byte() {
        0 => "x".to_owned(),
        1 => format!("{number}0000000"),
        2 => String::new(),
        3 => format!("-{number}"),
        4 => input.word().to_string(),
        _ => number.to_string(),
    };
    let readable = Permissions::owner_none(DomId::DOM0).grant_read(host.guest);
    let marks = if input.byte() & 1 == 0 { 1 } else { 0 };
    for (key, number) in [
        ("event-channel", port.port().as_u32()),
        ("accepts-sessions", marks),
        ("ring-ref", control.refs()[0].as_u32()),
    ] {
        let node = format!("{PATH}/{key}");
        store.write(&node, text(number, input)).unwrap();
        store.set_permissions(&node, &readable).unwrap();
    }
    let began = Instant::now();
    let (xen, domu) = &host.domu;
    let connected = ClientBuilder::new(DomId::DOM0, PATH).connect(xen, domu);
    assert!(
        began.elapsed() < AT_ONCE,
        "connecting took {:?}",
        began.elapsed()
    );
    let mut hostile = Hostile {
        port: Some(port),
        _events: events,
        pages: Some(Held::Shared(vec![control, rings])),
        region: page,
    };
    match connected {
        Ok(channel) => {
            if input.byte() & 3 != 0 {
                hostile.poke(20, &[3]);
            }
            drive(input, channel, &mut hostile, [0, 4, 12, 8]);
        }
        Err(
            Error::Peer(_)
            | Error::NoServer { .. }
            | Error::Node { .. }
            | Error::Unreachable { .. }
            | Error::Os(_),
        ) => {}
        Err(error) => panic!("connecting: {error:?}"),
    }
    drop(hostile);
    store.rm(PATH).unwrap();
}

/// Calls and crimes in turn. `words`: (theirs, ours) of what we write, then of what we read.
fn drive(input: &mut Input<'_>, mut channel: Channel, hostile: &mut Hostile, words: [usize; 4]) {
    let mut violation: Option<Violation> = None;
    let (into, out) = {
        let (rx, tx) = channel.halves();
        (rx.capacity(), tx.capacity())
    };
    let source = vec![0x55; 2 * out + 16];
    let mut target = vec![0xaa; 2 * into + 16];
    while !input.ended() {
        let now = Some(Instant::now());
        let began = Instant::now();
        let choice = input.byte() % 26;
        let result = match choice {
            0 => {
                let cursors = [hostile.peek(words[1]), hostile.peek(words[0])];
                let value = input.cursor(&cursors, out as u32);
                hostile.poke(words[0], &value.to_ne_bytes());
                Ok(())
            }
            1 => {
                let cursors = [hostile.peek(words[3]), hostile.peek(words[2])];
                let value = input.cursor(&cursors, into as u32);
                hostile.poke(words[2], &value.to_ne_bytes());
                Ok(())
            }
            2 => {
                // A live byte that means something, mostly.
                let byte = input.byte();
                let value = if byte < 240 { byte & 3 } else { byte };
                hostile.poke(20 + usize::from(input.byte() & 1), &[value]);
                Ok(())
            }
            3 => {
                hostile.poke(usize::from(input.byte()), &[input.byte()]);
                Ok(())
            }
            4 | 5 => {
                if let Some(port) = &hostile.port {
                    port.notify().unwrap();
                }
                Ok(())
            }
            6 if input.byte() & 7 == 0 => {
                hostile.port = None;
                Ok(())
            }
            7 if input.byte() & 7 == 0 => {
                hostile.pages = None;
                Ok(())
            }
            8 | 9 => {
                let len = input.length(into).min(target.len());
                let result = channel
                    .try_read(&mut target[..len])
                    .inspect(|did| assert!(*did <= len));
                untouched(&target, len);
                target[..len].fill(0xaa);
                result.map(drop)
            }
            10 => channel.read_deadline(&mut [0; 100], now).map(drop),
            11 | 12 => {
                let len = input.length(out).min(source.len());
                channel
                    .try_write(&source[..len])
                    .map(|did| assert!(did <= len))
            }
            13 => channel
                .write_deadline(&source[..input.length(out).min(source.len())], now)
                .map(drop),
            14 => {
                let len = input.length(out).min(source.len());
                channel.halves().1.try_send(&source[..len])
            }
            15 => {
                let len = input.length(into).min(target.len());
                let result = channel.halves().0.try_recv(&mut target[..len]);
                untouched(&target, len);
                target[..len].fill(0xaa);
                result
            }
            16 => channel.bytes_readable().map(|ready| assert!(ready <= into)),
            17 => channel.space().map(|space| assert!(space <= out)),
            18 => channel.peer().map(drop),
            19 => channel.acknowledge_events(),
            20 => channel.next_client(),
            21 => channel.wait(now).map(drop),
            22 => {
                let count = usize::from(input.byte());
                channel.halves().0.read_chunk(now).map(|mut loan| {
                    assert!(loan.remaining() <= into);
                    assert!(loan.get(&mut vec![0; count]) <= count);
                })
            }
            23 => {
                let (least, commit) = (input.length(out), input.byte() & 1 == 0);
                channel
                    .halves()
                    .1
                    .write_chunk(least.min(out), now)
                    .map(|mut loan| {
                        assert!(loan.put(&source) <= out);
                        if commit {
                            loan.commit();
                        }
                    })
            }
            24 => {
                channel.halves().1.set_cork(input.byte() & 1 == 0);
                Ok(())
            }
            25 if input.byte() & 15 == 0 => {
                let _ = channel.shutdown();
                Ok(())
            }
            _ => channel.wait_connected(now),
        };
        assert!(
            began.elapsed() < AT_ONCE,
            "call {choice} took {:?}",
            began.elapsed()
        );
        match result {
            Ok(()) => {}
            Err(Error::Peer(found)) => {
                let first = *violation.get_or_insert(found);
                assert_eq!(found, first, "another violation, of call {choice}");
            }
            Err(
                Error::Closed
                | Error::ShutDown
                | Error::WouldBlock
                | Error::TimedOut
                | Error::Invalid { .. }
                | Error::TooLarge { .. },
            ) => {}
            // Its bell has ended with its domain, at most.
            Err(Error::Os(error)) if hostile.port.is_none() => drop(error),
            Err(error) => panic!("call {choice}: {error:?}"),
        }
    }
}
