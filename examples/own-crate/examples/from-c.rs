//! The Rust of the guide for users of the C libraries.

use std::error::Error;
use std::io::{self, Read, Write};
use std::time::Instant;

use xen_evtchn::EventChannels;
use xen_store::Store;
use xen_sys::{DomId, Port, Xen};
use xen_vchan::ClientBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    let store = Store::open(&Xen::open()?)?;
    println!("start {} of this program", count(&store, "data/starts")?);
    Ok(())
}

/// Counts in a node, whatever others write there meanwhile.
pub fn count(store: &Store, path: &str) -> xen_store::Result<u64> {
    store.with_transaction(|t| {
        let old = t
            .read_str_optional(path)?
            .and_then(|text| text.parse().ok());
        let new = old.unwrap_or(0) + 1;
        t.write(path, new.to_string())?;
        Ok(new)
    })
}

/// Returns whether a node appears before the deadline.
pub fn appears(store: &Store, path: &str, deadline: Instant) -> xen_store::Result<bool> {
    let watch = store.watch(path)?;
    while watch.next(deadline)?.is_some() {
        if store.exists(path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sends four bytes to the server in another domain, and returns its four.
pub fn ask(xen: &Xen, store: &Store, server: DomId, path: &str) -> io::Result<[u8; 4]> {
    let mut channel = ClientBuilder::new(server, path).connect(xen, store)?;
    channel.write_all(b"ping")?;
    channel.flush()?;
    let mut answer = [0; 4];
    channel.read_exact(&mut answer)?;
    Ok(answer)
}

/// Answers each notification of another domain's port until the deadline, or `most` of them.
pub fn answer(
    xen: &Xen,
    (peer, port): (DomId, Port),
    most: u32,
    deadline: Instant,
) -> io::Result<u32> {
    let channels = EventChannels::open(xen)?;
    let own = channels.bind_interdomain(peer, port)?;
    let mut answered = 0;
    while answered < most {
        let Some(port) = channels.wait(Some(deadline))? else {
            break;
        };
        channels.unmask(port)?;
        own.notify()?;
        answered += 1;
    }
    Ok(answered)
}
