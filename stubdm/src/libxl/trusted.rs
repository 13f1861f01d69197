//! Store values that only dom0 can have written: the one rule for what becomes a path, a domain's
//! number or a program.
//!
//! A stubdomain owns folders in the store, and may let another domain write there. So it is not
//! asked whether *the stubdomain* may write to a node, but whether anybody but dom0 may:
//!
//! * dom0 owns the node. A domain that removes and recreates it, because a folder above is the
//!   domain's own, becomes its owner, and only dom0 gives a node to another owner.
//! * Neither the default nor any entry lets another domain write
//!   ([`Permissions::written_only_by`]).
//! * Permissions that cannot be read, as those of a kind that is not known here, are not dom0's.
//!
//! dom0 has to write value and permissions in one transaction, as libxl does: a node inherits its
//! folder's permissions first.
//!
//! [`Permissions::written_only_by`]: xen_store::Permissions::written_only_by

use std::sync::atomic::{AtomicU32, Ordering};

use tracing::warn;
use xen_store::{Error, Result, Store};
use xen_sys::DomId;

/// How many untrusted nodes are logged by one process: their owners can make any number of them.
const COMPLAINTS: u32 = 20;

/// The value of a node, if only dom0 can have written it; `None` also if there is no such node.
///
/// # Errors
/// The connection failed ([`Error::is_fatal`]), or the store refuses the path.
pub fn read(store: &Store, node: &str) -> Result<Option<Vec<u8>>> {
    // Asked outside a transaction first: one that reads a node which its owner keeps writing to
    // never ends well.
    let read = match store.permissions(node) {
        Ok(perms) if !perms.written_only_by(DomId::DOM0) => Ok(None),
        Ok(_) => store.with_transaction(|transaction| {
            if !transaction.permissions(node)?.written_only_by(DomId::DOM0) {
                return Ok(None);
            }
            transaction.read(node).map(Some)
        }),
        Err(error) => Err(error),
    };
    match read {
        Ok(None) => complain(node, "others than dom0 may write to it"),
        Err(Error::Malformed { .. }) => complain(node, "its permissions are of a kind not known"),
        Err(Error::Conflict { .. }) => complain(node, "it is written to all the time"),
        Err(error) if error.is_not_found() => {}
        other => return other,
    }
    Ok(None)
}

/// As [`read`], as text; what is not UTF-8 is rejected too.
///
/// # Errors
/// As [`read`].
pub fn read_str(store: &Store, node: &str) -> Result<Option<String>> {
    let value = read(store, node)?;
    Ok(value.and_then(|value| String::from_utf8(value).ok()))
}

fn complain(node: &str, why: &str) {
    static COMPLAINED: AtomicU32 = AtomicU32::new(0);
    // Saturates by standing still.
    let count = COMPLAINED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        (count < COMPLAINTS).then_some(count + 1)
    });
    if count.is_ok() {
        warn!("{node} is not believed: {why}");
    }
}

/// Connections of dom0's on which a test acts between a request and its reply.
#[cfg(test)]
pub(crate) mod intercept {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use xen_store::Store;
    use xen_store_server::Server;
    use xen_sys::DomId;

    /// A connection of dom0's on which `alter` is called with each request and its reply, which it
    /// may change.
    pub(crate) fn between(
        server: &Server,
        mut alter: impl FnMut(&[u8], &mut Vec<u8>) + Send + 'static,
    ) -> Store {
        let (mut near, ours) = UnixStream::pair().unwrap();
        let (mut far, theirs) = UnixStream::pair().unwrap();
        server.add_connection(theirs.into(), DomId::DOM0);
        std::thread::spawn(move || {
            while let Some(request) = message(&mut near) {
                far.write_all(&request).unwrap();
                let mut reply = message(&mut far).unwrap();
                alter(&request, &mut reply);
                near.write_all(&reply).unwrap();
            }
        });
        Store::from_fd(ours.into()).unwrap()
    }

    /// One message of the protocol: a header of 16 bytes, of which the last four are the length of
    /// the rest.
    fn message(stream: &mut UnixStream) -> Option<Vec<u8>> {
        let mut message = vec![0; 16];
        stream.read_exact(&mut message).ok()?;
        let length = u32::from_ne_bytes(message[12..].try_into().unwrap());
        message.resize(16 + length as usize, 0);
        stream.read_exact(&mut message[16..]).ok()?;
        Some(message)
    }

    /// Returns whether it asks for the permissions of a node `output`.
    pub(crate) fn asks_for_perms(request: &[u8]) -> bool {
        request.first() == Some(&3) && request.ends_with(b"/output\0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::trusted::intercept::{asks_for_perms, between};
    use xen_store::Permissions;
    use xen_store_server::{Config, Server};

    const STUB: DomId = DomId::new(8);
    const ACCOMPLICE: DomId = DomId::new(9);
    const NODE: &str = "/local/domain/8/device/console/1/output";
    const LIE: &str = "file:/etc/cron.d/x";

    /// A host whose stubdomain lets its accomplice write to its folder.
    fn host() -> (Server, Store) {
        let server = Server::start(Config::new()).unwrap();
        server.add_domain(STUB);
        server.add_domain(ACCOMPLICE);
        let store = server.connect(DomId::DOM0).unwrap();
        let theirs = Permissions::owner_none(STUB)
            .grant_read(DomId::DOM0)
            .grant(ACCOMPLICE, xen_store::Access::ReadWrite);
        for folder in ["device", "device/console", "device/console/1"] {
            let folder = format!("/local/domain/8/{folder}");
            store.mkdir(&folder).unwrap();
            store.set_permissions(&folder, &theirs).unwrap();
        }
        store.write(NODE, "file:/var/lib/xen/save").unwrap();
        let ours = Permissions::owner_none(DomId::DOM0).grant_read(STUB);
        store.set_permissions(NODE, &ours).unwrap();
        (server, store)
    }

    #[test]
    fn what_dom0_wrote_is_believed_and_what_is_missing_is_none() {
        let (_server, store) = host();
        let value = read_str(&store, NODE).unwrap();
        assert_eq!(value.as_deref(), Some("file:/var/lib/xen/save"));
        assert_eq!(read(&store, "/local/domain/8/none").unwrap(), None);
    }

    #[test]
    fn an_accomplices_node_is_not_believed_though_the_stubdomain_may_not_write_to_it() {
        let (server, store) = host();
        let accomplice = server.connect(ACCOMPLICE).unwrap();
        accomplice.rm(NODE).unwrap_err();
        // The folder is the accomplice's to remove, with dom0's nodes in it.
        let folder = NODE.rsplit_once('/').unwrap().0;
        accomplice.rm(folder).unwrap();
        accomplice.write(NODE, LIE).unwrap();
        let read_only = Permissions::owner_none(ACCOMPLICE).grant_read(STUB);
        accomplice.set_permissions(NODE, &read_only).unwrap();
        let now = store.permissions(NODE).unwrap();
        assert!(!now.access_of(STUB).can_write(), "the stubdomain may not");
        assert_eq!(read(&store, NODE).unwrap(), None);
    }

    #[test]
    fn a_node_that_anybody_else_may_write_to_is_not_believed() {
        let (_server, store) = host();
        for perms in [
            Permissions::new(DomId::DOM0, xen_store::Access::Write),
            Permissions::new(DomId::DOM0, xen_store::Access::ReadWrite).grant_read(STUB),
            Permissions::owner_none(DomId::DOM0).grant_write(ACCOMPLICE),
            // The guest: the stubdomain has its rights.
            Permissions::owner_none(DomId::DOM0).grant_write(DomId::new(7)),
            Permissions::owner_none(ACCOMPLICE),
        ] {
            store.set_permissions(NODE, &perms).unwrap();
            assert_eq!(read(&store, NODE).unwrap(), None, "{perms}");
        }
    }

    #[test]
    fn permissions_of_an_unknown_kind_are_not_believed() {
        let (server, _store) = host();
        let store = between(&server, |request, reply| {
            if asks_for_perms(request) {
                // An entry for all domains, of a letter of its own.
                reply.extend_from_slice(b"a*\0");
                let length = u32::try_from(reply.len() - 16).unwrap();
                reply[12..16].copy_from_slice(&length.to_ne_bytes());
            }
        });
        assert_eq!(read(&store, NODE).unwrap(), None);
        store.read("/").unwrap();
    }

    #[test]
    fn a_node_that_changes_at_each_look_is_not_believed_and_no_error() {
        let (server, store) = host();
        let dom0 = server.connect(DomId::DOM0).unwrap();
        let perms = store.permissions(NODE).unwrap();
        let changing = between(&server, move |request, _| {
            if asks_for_perms(request) {
                dom0.write(NODE, LIE).unwrap();
                dom0.set_permissions(NODE, &perms).unwrap();
            }
        });
        assert_eq!(read(&changing, NODE).unwrap(), None);
        changing.read("/").unwrap();
    }
}
