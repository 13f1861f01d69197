//! Grants of a simulated host: frames of a memfd, which the broker identifies by an object number.

use xen_sys::sim::{Client, Got};
use xen_sys::{DomId, GrantRef, Host, Result, Xen};

use crate::mapping::{Mapping, Release};
use crate::{PageAccess, UnmapNotify};

/// Pages registered with the broker, given back on drop. Giving back waits for the broker, so that
/// the notification is sent before it returns, as on Linux when the ioctl returns.
#[derive(Debug)]
pub(crate) struct Object {
    xen: Xen,
    number: u64,
}

impl Object {
    pub(crate) fn set_unmap_notify(&self, offset: u64, notify: UnmapNotify) -> Result<()> {
        let Some(client) = client(&self.xen) else {
            return Ok(());
        };
        client.set_unmap_notify(
            self.number,
            offset,
            notify.clear_byte.is_some(),
            notify.event,
        )
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Some(client) = client(&self.xen) {
            // A host or domain that has ended has taken everything back.
            let _ = client.release(self.number);
        }
    }
}

fn client(xen: &Xen) -> Option<&Client> {
    match xen.host() {
        Host::Sim(client) => Some(client),
        _ => None,
    }
}

pub(crate) fn share(
    xen: &Xen,
    client: &Client,
    to: DomId,
    pages: usize,
    access: PageAccess,
) -> Result<(Mapping, Box<[GrantRef]>)> {
    let Got {
        object,
        refs,
        pages,
    } = client.share(to, access == PageAccess::ReadWrite, pages)?;
    let release = Release::Sim(Object {
        xen: xen.clone(),
        number: object,
    });
    Ok((Mapping::new(pages, PageAccess::ReadWrite, release), refs))
}

pub(crate) fn map(
    xen: &Xen,
    client: &Client,
    from: DomId,
    refs: &[GrantRef],
    access: PageAccess,
) -> Result<Mapping> {
    let Got { object, pages, .. } = client.map(from, refs, access.protection())?;
    let release = Release::Sim(Object {
        xen: xen.clone(),
        number: object,
    });
    Ok(Mapping::new(pages, access, release))
}
