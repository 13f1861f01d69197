//! A server made by hand, whose shared page has values that no server's has.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{PageAccess, Region, share};
use xen_store::{Permissions, Store};
use xen_sys::{DomId, Xen};

use super::{Act, Behaviour, Script};

// The control page of `io/libxenvchan.h`: both rings inside it.
const LEFT_CONS: usize = 0;
const LEFT_PROD: usize = 4;
const RIGHT_CONS: usize = 8;
const RIGHT_PROD: usize = 12;
const LEFT_ORDER: usize = 16;
const RIGHT_ORDER: usize = 18;
const CLI_LIVE: usize = 20;
const SRV_LIVE: usize = 21;
const CLI_NOTIFY: usize = 22;
const SRV_NOTIFY: usize = 23;
const GRANTS: usize = 24;
const PAGE: usize = 4096;
const RIGHT_RING: usize = 2048;

/// How long a fault is left to be seen before the next.
const BEAT: Duration = Duration::from_millis(20);

/// The fault of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Producer,
    Consumer,
    Orders,
    Lives,
    Bell,
}

impl Fault {
    pub(super) fn of(behaviour: Behaviour) -> Option<Self> {
        Some(match behaviour {
            Behaviour::RingProducer => Self::Producer,
            Behaviour::RingConsumer => Self::Consumer,
            Behaviour::RingOrders => Self::Orders,
            Behaviour::RingLives => Self::Lives,
            Behaviour::BellStorm => Self::Bell,
            _ => return None,
        })
    }
}

struct Page<'a> {
    region: &'a mut Region,
    port: &'a BoundPort,
}

impl Page<'_> {
    fn put(&mut self, at: usize, value: &[u8]) {
        // Within the page: all offsets are constants above.
        let _ = self.region.copy_in(at, value);
        let _ = self.port.notify();
    }

    fn byte(&self, at: usize) -> u8 {
        let mut byte = [0];
        let _ = self.region.copy_out(at, &mut byte);
        byte[0]
    }

    /// Everything at its beginning, and a greeting in the ring.
    fn reset(&mut self) {
        for at in [LEFT_CONS, LEFT_PROD, RIGHT_CONS, RIGHT_PROD] {
            self.put(at, &[0; 4]);
        }
        self.put(LEFT_ORDER, &10u16.to_ne_bytes());
        self.put(RIGHT_ORDER, &11u16.to_ne_bytes());
        self.put(CLI_LIVE, &[2]);
        self.put(CLI_NOTIFY, &[1]);
        self.put(SRV_NOTIFY, &[1]);
        let mut script = Script::new(Behaviour::Honest, 0);
        for act in script.handle_client() {
            if let Act::Send(bytes) = act {
                let count = u32::try_from(bytes.len()).unwrap_or_default();
                self.put(RIGHT_RING, &bytes);
                self.put(RIGHT_PROD, &count.to_ne_bytes());
            }
        }
        self.put(SRV_LIVE, &[1]);
    }

    fn spoil(&mut self, fault: Fault, round: u32) {
        // Near and far from what is true, and across the wrap.
        const WORDS: [u32; 6] = [2049, 0x8000_0000, u32::MAX, 4096, 1, 0x7fff_ffff];
        let word = WORDS
            .get(round as usize % WORDS.len())
            .copied()
            .unwrap_or_default();
        match fault {
            Fault::Producer => self.put(RIGHT_PROD, &word.to_ne_bytes()),
            Fault::Consumer => self.put(LEFT_CONS, &word.to_ne_bytes()),
            Fault::Orders => {
                let order = u16::try_from(word & 0xffff).unwrap_or_default();
                self.put(LEFT_ORDER, &order.to_ne_bytes());
                self.put(RIGHT_ORDER, &order.swap_bytes().to_ne_bytes());
                self.put(GRANTS, &[0xff; 64]);
            }
            Fault::Bell => {
                // As often as a peer can that acts before each sleep of the other side.
                let until = Instant::now() + BEAT;
                while Instant::now() < until {
                    let _ = self.port.notify();
                }
            }
            Fault::Lives => {
                let live = u8::try_from(round % 4).unwrap_or_default();
                self.put(SRV_LIVE, &[live]);
                self.put(CLI_LIVE, &[live ^ 1]);
            }
        }
    }
}

pub(super) fn play(
    xen: &Xen,
    store: &Store,
    client: DomId,
    path: &str,
    fault: Fault,
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    let mut pages = share(xen, client, 1, PageAccess::ReadWrite).context("sharing a page")?;
    let events = EventChannels::open(xen).context("event channels")?;
    let mut region = pages.take_region();
    let mut round = 0;
    while !stop() {
        let port = events.bind_unbound(client).context("a port")?;
        let mut page = Page {
            region: &mut region,
            port: &port,
        };
        let _ = page.region.fill(0, PAGE, 0);
        page.reset();
        // The folder is this domain's own.
        let home = path.rsplit_once('/').map_or(path, |(home, _)| home);
        let owner = store
            .permissions(home)
            .context("the folder's owner")?
            .owner();
        let own = Permissions::owner_none(owner).grant_read(client);
        let reference = pages.refs().first().context("no grant")?.to_string();
        for (name, value) in [
            ("ring-ref", reference),
            ("event-channel", port.port().to_string()),
        ] {
            let node = format!("{path}/{name}");
            store.write(&node, value).context("publishing")?;
            store.set_permissions(&node, &own).context("publishing")?;
        }
        // A client comes; then the fault, again and again, while it is there.
        let mut came = None;
        while !stop() {
            let _ = events.wait(Some(Instant::now() + BEAT));
            if let Ok(Some(_)) = events.pending() {
                let _ = port.unmask();
            }
            let live = page.byte(CLI_LIVE);
            let since = match came {
                None if live == 1 => *came.insert(Instant::now()),
                None => continue,
                Some(since) => since,
            };
            page.spoil(fault, round);
            round += 1;
            if live == 0 || since.elapsed() > 100 * BEAT {
                break;
            }
        }
        // The next one is to be found.
        page.put(SRV_LIVE, &[0]);
    }
    for name in ["ring-ref", "event-channel"] {
        let _ = store.rm(&format!("{path}/{name}"));
    }
    Ok(())
}
