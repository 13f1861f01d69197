//! How the two sides find each other: the store nodes and the grant list.
//!
//! | node under the path | value | written by |
//! |---|---|---|
//! | `ring-ref` | grant reference of the control page, decimal | every server |
//! | `event-channel` | the server's unbound port, decimal | every server |
//! | `accepts-sessions` | `1`: this server marks sessions (see `session.rs`) | servers of this crate |
//! | `withdraws` | `1`: the nodes are removed when a client has connected, so their absence is no sign of the server's end | listeners of this crate |
//!
//! Order: a client that can read `ring-ref` may connect immediately, so it is written last and
//! removed
//! first. No transaction is needed: libxenvchan's client reads `ring-ref` before `event-channel`,
//! and so does this one. All nodes belong to the server and are readable by the peer domain only.

use xen_store::{Permissions, Store, Watch};
use xen_sys::{DomId, GrantRef, Port};

use crate::{Error, NodeValue, Result};

const RING_REF: &str = "ring-ref";
const EVENT_CHANNEL: &str = "event-channel";
const ACCEPTS_SESSIONS: &str = "accepts-sessions";
const WITHDRAWS: &str = "withdraws";
/// The most events of a watch that are taken at a time.
pub(crate) const DRAIN: usize = 256;

/// The nodes a server published; removed when dropped.
#[derive(Debug)]
pub(crate) struct Published {
    store: Store,
    path: String,
    ring_ref: Vec<u8>,
}

impl Published {
    /// Publishes a ring for `peer`.
    pub(crate) fn publish(
        store: &Store,
        path: &str,
        peer: DomId,
        control: GrantRef,
        port: Port,
        withdraws: bool,
    ) -> Result<Self> {
        let path = path.trim_end_matches('/');
        let own = match store.own_domain() {
            // The toolstack writes the node for every domain it makes.
            Err(error) if error.is_not_found() => {
                return Err(Error::Invalid {
                    what: "the store does not say which domain this is (node domid)",
                });
            }
            own => own?,
        };
        let readable = Permissions::owner_none(own).grant_read(peer);
        let ring_ref = control.as_u32().to_string().into_bytes();
        // From here on a failure removes what was written.
        let this = Self {
            store: store.clone(),
            path: path.to_owned(),
            ring_ref,
        };
        let port = port.as_u32().to_string();
        let withdraws: &[_] = if withdraws {
            &[(WITHDRAWS, &b"1"[..])]
        } else {
            &[]
        };
        let others = [(EVENT_CHANNEL, port.as_bytes()), (ACCEPTS_SESSIONS, b"1")];
        let last = [(RING_REF, &this.ring_ref[..])];
        for (key, value) in withdraws.iter().chain(&others).chain(&last) {
            let node = node(path, key);
            store.write(&node, value)?;
            store.set_permissions(&node, &readable)?;
        }
        Ok(this)
    }

    /// Removes the nodes, unless another server has published itself here since.
    fn withdraw(&self) -> Result<(), xen_store::Error> {
        let ring_ref = node(&self.path, RING_REF);
        match self.store.read(&ring_ref) {
            Ok(value) if value != self.ring_ref => return Ok(()),
            Ok(_) => self.store.rm(&ring_ref)?,
            // Not published completely, or removed by the toolstack: the rest may still be there.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        // A node that cannot be removed (its name was too long to be written) does not stop the
        // removal of the others.
        let mut failed = Ok(());
        for key in [EVENT_CHANNEL, ACCEPTS_SESSIONS, WITHDRAWS] {
            match self.store.rm(&node(&self.path, key)) {
                Err(error) if !error.is_not_found() => failed = Err(error),
                _ => {}
            }
        }
        // libxenvchan's server removes the whole path, and so does this one, unless there is
        // something else under it.
        if self.store.directory(&self.path)?.is_empty() {
            self.store.rm(&self.path)?;
        }
        failed
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        match self.withdraw() {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(path = %self.path, %error, "the vchan's store nodes could not be removed");
            }
        }
    }
}

/// Removes the `ring-ref` that a killed server has left at `path`.
///
/// Must be called before the next server opens a port and grants a page. Both may get the numbers
/// that the old node and its neighbour contain, and a client that reads those would find a page in
/// the making.
pub(crate) fn clear(store: &Store, path: &str) -> Result<()> {
    match store.rm(&node(path.trim_end_matches('/'), RING_REF)) {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where a server can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) control: GrantRef,
    pub(crate) port: Port,
    pub(crate) accepts_sessions: bool,
    pub(crate) withdraws: bool,
}

/// Reads what a server published: `None` if nothing (readable) is there yet.
pub(crate) fn read_address(store: &Store, path: &str) -> Result<Option<Address>> {
    let path = path.trim_end_matches('/');
    let Some(control) = read_number(store, path, RING_REF)? else {
        return Ok(None);
    };
    let Some(port) = read_number(store, path, EVENT_CHANNEL)? else {
        return Ok(None);
    };
    let accepts_sessions = read_number(store, path, ACCEPTS_SESSIONS)?.is_some_and(|n| n == 1);
    let withdraws = read_number(store, path, WITHDRAWS)?.is_some_and(|n| n == 1);
    // Not a snapshot: if the server was replaced meanwhile, the reference has changed.
    if read_number(store, path, RING_REF)? != Some(control) {
        return Ok(None);
    }
    Ok(Some(Address {
        control: GrantRef::new(control),
        port: Port::new(port),
        accepts_sessions,
        withdraws,
    }))
}

/// Returns whether there is a `ring-ref` at `path` that this side may read.
pub(crate) fn is_published(store: &Store, path: &str) -> Result<bool> {
    match store.exists(&node(path.trim_end_matches('/'), RING_REF)) {
        Ok(exists) => Ok(exists),
        Err(error) if error.is_denied() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_number(store: &Store, path: &str, key: &'static str) -> Result<Option<u32>> {
    let value = match store.read(&node(path, key)) {
        Ok(value) => value,
        // Not readable: between the server's write and its setting of the permissions.
        Err(error) if error.is_not_found() || error.is_denied() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let number = std::str::from_utf8(&value)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Error::Node {
        key,
        value: NodeValue::new(&value),
    })
}

/// Watches for a server to be published at `path`.
pub(crate) fn watch(store: &Store, path: &str) -> Result<Watch> {
    Ok(store.watch(&node(path.trim_end_matches('/'), RING_REF))?)
}

/// Takes the events of a watch, at most [`DRAIN`]; returns their number. A peer can write to its
/// nodes without limit. While events remain, the watch's descriptor stays readable.
pub(crate) fn drain(watch: &Watch) -> Result<usize> {
    for taken in 0..DRAIN {
        if watch.try_next()?.is_none() {
            return Ok(taken);
        }
    }
    Ok(DRAIN)
}

/// Returns where the servers of OCaml's vchan library and of Qubes publish the service `name` of
/// `server` for `client`: `/local/domain/SERVER/data/vchan/CLIENT/NAME`.
///
/// # Errors
///
/// [`Error::Invalid`] for a name with characters other than letters, digits, `_` and `-`, which
/// that library refuses.
pub fn service_path(server: DomId, client: DomId, name: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(fine) {
        return Err(Error::Invalid {
            what: "a vchan service's name is made of letters, digits, _ and -",
        });
    }
    Ok(format!("/local/domain/{server}/data/vchan/{client}/{name}"))
}

fn node(path: &str, key: &str) -> String {
    format!("{path}/{key}")
}

#[cfg(test)]
mod tests {
    use xen_store_server::{Config, Server};

    use super::*;

    #[test]
    fn the_events_taken_at_a_time_are_bounded() {
        let stored = Server::start(Config::new()).unwrap();
        let store = stored.connect(DomId::DOM0).unwrap();
        let watch = watch(&store, "n").unwrap();
        // Events for different nodes are not merged, and those of the last write arrive before its
        // answer. The one event more is that of the watch itself.
        for index in 0..DRAIN + 9 {
            store.write(&format!("n/ring-ref/{index}"), "").unwrap();
        }
        store.exists("n").unwrap();
        assert_eq!(drain(&watch).unwrap(), DRAIN);
        let rest = drain(&watch).unwrap();
        assert!((9..DRAIN).contains(&rest), "{rest}");
        assert_eq!(drain(&watch).unwrap(), 0);
    }
}
