//! The layout of the toy PV device `thermo`: its nodes, requests and responses.

use xen_store::xenbus::XenbusState;
use xen_store::{Permissions, Store};
use xen_sys::DomId;

/// A number that the response repeats, and a sensor.
pub type Request = [u32; 2];
/// The request's number, 0 or an error, and thousandths of a degree.
pub type Response = [u32; 3];
/// The error for a sensor that does not exist.
pub const NO_SENSOR: u32 = 1;

/// Makes the nodes of both ends: the toolstack's part.
pub fn create(store: &Store, guest: DomId) -> xen_store::Result<()> {
    let (ours, theirs) = (directory(guest), frontend(guest));
    let dom0 = DomId::DOM0;
    let ends = [
        (&ours, "frontend", &theirs, dom0, guest),
        (&theirs, "backend", &ours, guest, dom0),
    ];
    store.with_transaction(|t| {
        for (path, name, peer, owner, reader) in ends {
            t.mkdir(path)?;
            // Nodes that are made in it have the same permissions.
            t.set_permissions(path, &Permissions::owner_none(owner).grant_read(reader))?;
            t.write(&format!("{path}/{name}"), peer.as_str())?;
            t.write(&format!("{path}/{name}-id"), reader.to_string())?;
            t.write(&format!("{path}/state"), XenbusState::Initialising.as_str())?;
        }
        Ok(())
    })
}

/// Returns the backend's directory.
pub fn directory(guest: DomId) -> String {
    format!("/local/domain/0/backend/thermo/{guest}/0")
}

/// Returns the frontend's directory.
pub fn frontend(guest: DomId) -> String {
    format!("/local/domain/{guest}/device/thermo/0")
}
