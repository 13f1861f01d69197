//! Nodes that dom0's QEMU needs before it serves a stubdomain's consoles.
//!
//! QEMU serves the consoles of a stubdomain from dom0. Since its release 8.2 it
//!
//! * takes nothing from a console whose frontend is not `Connected`. Nobody sets that state for
//!   console 0, which has no frontend driver: its ring fills up, and the kernel that writes there
//!   spins forever;
//! * makes no console that has neither an `output` node nor a serial port of QEMU's own. libxl
//!   gives console 2 an output on restore only, and a kernel waits minutes at boot for its backend.
//!
//! libxl starts the proxy after it has written the nodes and before it starts that QEMU, and waits
//! for the proxy's state: what the proxy writes before that is there when QEMU looks. Older QEMUs
//! act the same with these nodes as without.

use tracing::{debug, warn};
use xen_store::xenbus::XenbusState;
use xen_store::{Permissions, Store};
use xen_sys::DomId;

/// A chardev of QEMU's that takes everything and gives nothing.
const NOWHERE: &str = "null";

/// The consoles that can be without an output.
const RESTORE: u32 = 2;

/// Completes the nodes of `stub`'s consoles. A failed write is logged; an older QEMU does without.
pub fn complete(store: &Store, stub: DomId) {
    let first = format!("/local/domain/{stub}/console");
    add(
        store,
        stub,
        &first,
        "state",
        XenbusState::Connected.as_str(),
    );
    let restore = format!("/local/domain/{stub}/device/console/{RESTORE}");
    add(store, stub, &restore, "output", NOWHERE);
}

/// Writes one node of a console that QEMU serves, unless it is there, for `stub` to read only: QEMU
/// opens what `output` names.
fn add(store: &Store, stub: DomId, console: &str, name: &str, value: &str) {
    let node = format!("{console}/{name}");
    match store.read_str(&format!("{console}/type")) {
        Ok(kind) if kind == "ioemu" => {}
        _ => return,
    }
    let own = Permissions::owner_none(DomId::DOM0).grant_read(stub);
    let written = store.with_transaction(|t| {
        if t.exists(&node)? {
            return Ok(false);
        }
        t.write(&node, value)?;
        t.set_permissions(&node, &own)?;
        Ok(true)
    });
    match written {
        Ok(true) => debug!("{node} is {value} now"),
        Ok(false) => {}
        Err(error) => warn!("writing {node}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: DomId = DomId::new(8);

    fn host() -> (xen_store_server::Server, Store) {
        let server = xen_store_server::Server::start(xen_store_server::Config::new()).unwrap();
        server.add_domain(STUB);
        let store = server.connect(DomId::DOM0).unwrap();
        (server, store)
    }

    /// A console as libxl writes it: the folder is the stubdomain's own.
    fn console(store: &Store, path: &str, kind: &str) {
        store.mkdir(path).unwrap();
        let perms = Permissions::owner_none(STUB).grant_read(DomId::DOM0);
        store.set_permissions(path, &perms).unwrap();
        store.write(&format!("{path}/type"), kind).unwrap();
    }

    #[test]
    fn what_is_missing_is_added_and_is_not_the_stubdomains_to_change() {
        let (server, store) = host();
        for path in ["console", "device/console/1", "device/console/2"] {
            console(&store, &format!("/local/domain/8/{path}"), "ioemu");
        }
        complete(&store, STUB);
        let stub = server.connect(STUB).unwrap();
        for (node, value) in [
            ("/local/domain/8/console/state", "4"),
            ("/local/domain/8/device/console/2/output", "null"),
        ] {
            assert_eq!(stub.read_str(node).unwrap(), value);
            assert!(stub.write(node, "file:/etc/passwd").is_err(), "{node}");
        }
        assert!(
            !store
                .exists("/local/domain/8/device/console/1/output")
                .unwrap()
        );
    }

    #[test]
    fn what_is_there_stays_and_other_backends_consoles_are_left_alone() {
        let (_server, store) = host();
        console(&store, "/local/domain/8/console", "xenconsoled");
        let second = "/local/domain/8/device/console/2";
        console(&store, second, "ioemu");
        let output = format!("{second}/output");
        store.write(&output, "pipe:/var/lib/xen/resume").unwrap();
        complete(&store, STUB);
        assert!(!store.exists("/local/domain/8/console/state").unwrap());
        assert_eq!(store.read_str(&output).unwrap(), "pipe:/var/lib/xen/resume");
    }

    #[test]
    fn no_consoles_no_nodes() {
        let (_server, store) = host();
        complete(&store, STUB);
        assert!(!store.exists("/local/domain/8/console").unwrap());
        assert!(!store.exists("/local/domain/8/device").unwrap());
    }
}
