//! A server and its clients, one after another, in random orders of coming, writing, shutting down,
//! leaving and `next_client`. Some clients are hostile and keep their memory and their port to the
//! end.
//!
//! Property: of rings that no hostile client has come to, the server reads what their honest
//! client has written, byte by byte, and sees no violation.

use std::cell::RefCell;

use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{MappedPages, PageAccess, map};
use xen_sys::{DomId, GrantRef, Port};
use xen_vchan::{Channel, ClientBuilder, Error, PeerState, ServerBuilder};

use super::Input;
use super::channel::TestHost;

const PATH: &str = "/local/domain/0/data/fuzz";
/// More hostile clients than this add nothing.
const MOST: usize = 6;

/// A hostile client of the rings it connected to.
struct Evil {
    port: Option<BoundPort>,
    pages: MappedPages,
}

impl Evil {
    fn poke(&mut self, at: usize, bytes: &[u8]) {
        self.pages.region_mut().copy_in(at, bytes).unwrap();
        if let Some(port) = &self.port {
            port.notify().unwrap();
        }
    }
}

/// Knowledge of the rings on offer.
#[derive(Default)]
struct Rings {
    /// A hostile client has come to them.
    touched: bool,
    /// Bytes that honest clients have written there, and the server's progress.
    written: Vec<u8>,
    read: usize,
}

thread_local! {
    static TEST_HOST: RefCell<Option<TestHost>> = const { RefCell::new(None) };
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    TEST_HOST.with_borrow_mut(|slot| {
        let host = slot.get_or_insert_with(TestHost::new);
        play(host, &mut Input(data));
        assert_eq!(host.sim.leaks(), [""; 0], "something stays");
        assert!(!host.dom0.1.exists(PATH).unwrap(), "nodes stay");
    });
}

/// Connects a hostile client to the rings on offer, if there are any.
fn come(host: &TestHost) -> Option<Evil> {
    let (xen, _) = &host.domu;
    let number = |key: &str| -> Option<u32> {
        let value = host.dom0.1.read_str(&format!("{PATH}/{key}")).ok()?;
        value.parse().ok()
    };
    let (page, port) = (number("ring-ref")?, number("event-channel")?);
    let events = EventChannels::open(xen).unwrap();
    let port = events.bind_interdomain(DomId::DOM0, Port::new(port)).ok();
    let pages = map(
        xen,
        DomId::DOM0,
        &[GrantRef::new(page)],
        PageAccess::ReadWrite,
    )
    .unwrap();
    Some(Evil { port, pages })
}

fn play(host: &TestHost, input: &mut Input<'_>) {
    let (xen, store) = &host.dom0;
    let mut server = ServerBuilder::new(host.guest, PATH)
        .publish(xen, store)
        .unwrap();
    let mut evils: Vec<Evil> = Vec::new();
    // With the number of the rings that it connected to.
    let mut honest: Option<(Channel, u32)> = None;
    let mut number = 0;
    let mut rings = Rings::default();
    let mut next = 0u8;
    while !input.ended() {
        let choice = input.byte() % 15;
        let which = usize::from(input.byte());
        let count = evils.len();
        if choice == 0 && count < MOST {
            if let Some(mut evil) = come(host) {
                rings.touched = true;
                evil.poke(20, &[1]);
                evils.push(evil);
            }
            continue;
        }
        let evil = match count {
            0 => None,
            _ => evils.get_mut(which % count),
        };
        let result = match (choice, evil) {
            (1 | 2, Some(evil)) => {
                let len = input.byte();
                evil.poke(1024, &vec![0xee; usize::from(len)]);
                evil.poke(4, &u32::from(len).to_ne_bytes());
                Ok(())
            }
            (3 | 4, Some(evil)) => {
                let live = input.byte() & 3;
                evil.poke(20, &[live]);
                Ok(())
            }
            (5, Some(evil)) => {
                let (at, value) = (usize::from(input.byte() & 12), input.word());
                evil.poke(at, &value.to_ne_bytes());
                Ok(())
            }
            (6, _) if honest.is_none() => {
                let (xen, store) = &host.domu;
                match ClientBuilder::new(DomId::DOM0, PATH).connect(xen, store) {
                    Ok(client) => {
                        honest = Some((client, number));
                        Ok(())
                    }
                    Err(Error::NoServer { .. } | Error::Unreachable { .. }) => Ok(()),
                    Err(Error::Peer(_)) if rings.touched => Ok(()),
                    Err(error) => panic!("connecting: {error:?}"),
                }
            }
            (7 | 8, _) => {
                if let Some((client, came_to)) = &mut honest {
                    let bytes: Vec<u8> =
                        (0..input.byte()).map(|at| next.wrapping_add(at)).collect();
                    // Of rings of before, a hostile client may have made the server's mark.
                    match client.try_write(&bytes) {
                        Ok(did) if *came_to == number => {
                            rings.written.extend_from_slice(&bytes[..did]);
                            next = next.wrapping_add(did as u8);
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            (9, _) => {
                if let Some((client, _)) = &mut honest {
                    client.shutdown().unwrap();
                }
                Ok(())
            }
            (10, _) => {
                honest = None;
                Ok(())
            }
            (11, _) => {
                let mut buf = vec![0; usize::from(input.byte()) + 1];
                server.try_read(&mut buf).map(|did| {
                    if !rings.touched {
                        let end = rings.read + did;
                        assert!(end <= rings.written.len(), "bytes that nobody wrote");
                        assert_eq!(buf[..did], rings.written[rings.read..end]);
                        rings.read = end;
                    }
                })
            }
            (12, _) => {
                let gone = matches!(server.peer(), Ok(PeerState::Gone));
                let result = server.next_client();
                if gone && result.is_ok() {
                    rings = Rings::default();
                    number += 1;
                }
                result
            }
            (13, _) => server.try_write(&[0x22; 40]).map(drop),
            (14, _) if which == 0 => server.shutdown(),
            _ => server.acknowledge_events(),
        };
        match result {
            Ok(())
            | Err(Error::Closed | Error::ShutDown | Error::WouldBlock | Error::Invalid { .. }) => {}
            // Sticky, for rings that a hostile client connected to.
            Err(Error::Peer(_)) if rings.touched => {}
            Err(error) => panic!("call {choice}: {error:?}"),
        }
    }
    drop((server, honest, evils));
}
