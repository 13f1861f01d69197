//! Limits on a simulated host: they are reported, reached, and nothing is left behind.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use xen_gnttab::{PageAccess, limits, map, map_from, share};
use xen_sys::sim::{Limits, Simulation};
use xen_sys::{DomId, Error, Xen};

const RW: PageAccess = PageAccess::ReadWrite;

/// A host with a guest that may share four pages and map three.
fn host() -> (Simulation, Xen, Xen, DomId) {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let mut limits = Limits::default();
    (limits.shared_pages, limits.mapped_pages) = (4, 3);
    host.set_limits(guest, limits).unwrap();
    let (dom0, domu) = (host.xen(DomId::DOM0).unwrap(), host.xen(guest).unwrap());
    (host, dom0, domu, guest)
}

#[track_caller]
fn reached<T>(result: xen_sys::Result<T>, of: u64, errno: i32) {
    let error = result.map(drop).unwrap_err();
    match &error {
        Error::LimitReached { limit, .. } => assert_eq!(*limit, Some(of), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(error.errno(), Some(errno));
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    let text = error.to_string();
    assert!(
        text.contains(&format!("a limit of {of} is reached")),
        "{text}"
    );
}

#[test]
fn limits_are_those_of_the_drivers_and_of_the_grant_table_where_xen_may_be_asked() {
    let (_host, dom0, domu, _) = host();
    let theirs = limits(&domu).unwrap();
    assert_eq!(
        (theirs.shared_pages, theirs.mapped_pages),
        (Some(4), Some(3))
    );
    assert_eq!(theirs.table, None, "the kernel lets no hypercall through");
    let ours = limits(&dom0).unwrap();
    assert_eq!(ours.shared_pages, Some(1024));
    let table = ours.table.unwrap();
    assert!(
        table.frames >= 1 && table.frames <= table.max_frames,
        "{table:?}"
    );
}

#[test]
fn more_shared_pages_than_the_limit_are_an_error_that_names_it_and_leave_nothing() {
    let (host, _, domu, _) = host();
    let three = share(&domu, DomId::DOM0, 3, RW).unwrap();
    reached(share(&domu, DomId::DOM0, 2, RW), 4, libc::ENOSPC);
    reached(share(&domu, DomId::DOM0, 5, RW), 4, libc::ENOSPC);
    // A page that there is room for is still given.
    let fourth = share(&domu, DomId::DOM0, 1, RW).unwrap();
    reached(share(&domu, DomId::DOM0, 1, RW), 4, libc::ENOSPC);
    drop((three, fourth));
    host.assert_clean();
    drop(share(&domu, DomId::DOM0, 4, RW).unwrap());
    host.assert_clean();
}

#[test]
fn more_mapped_pages_than_the_limit_are_an_error_that_names_it_and_leave_nothing() {
    let (host, dom0, domu, guest) = host();
    let pages = share(&dom0, guest, 4, RW).unwrap();
    let refs = pages.refs();
    reached(map(&domu, DomId::DOM0, refs, RW), 3, libc::EINVAL);
    let two = map(&domu, DomId::DOM0, &refs[..2], RW).unwrap();
    let pairs: Vec<_> = refs.iter().map(|&gref| (DomId::DOM0, gref)).collect();
    reached(map_from(&domu, &pairs[2..], RW), 3, libc::EINVAL);
    // A refusal for another reason is none of a limit.
    let unknown = map(&domu, guest, &refs[..1], RW).map(drop).unwrap_err();
    assert!(matches!(unknown, Error::Os { .. }), "{unknown:?}");
    let third = map(&domu, DomId::DOM0, &refs[2..3], RW).unwrap();
    drop((two, third, pages));
    host.assert_clean();
}
