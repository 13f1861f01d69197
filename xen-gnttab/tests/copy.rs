//! Grant copies on a simulated host: each segment has a result of its own.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use xen_gnttab::{
    CopySegment, GrantCopier, GrantStatus, GrantedBytes, PageAccess, SharedPages, map_from, share,
};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Error, GrantRef, Xen};

fn host() -> (Simulation, Xen, Xen, DomId) {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let (ours, theirs) = (host.xen(DomId::DOM0).unwrap(), host.xen(guest).unwrap());
    (host, ours, theirs, guest)
}

fn at(domain: DomId, pages: &SharedPages, page: usize, offset: usize) -> GrantedBytes {
    let gref = pages.refs()[page];
    GrantedBytes {
        domain,
        gref,
        offset,
    }
}

#[test]
fn segments_are_copied_in_both_directions_and_between_grants() {
    let (host, ours, theirs, guest) = host();
    let mut pages = share(&theirs, DomId::DOM0, 2, PageAccess::ReadWrite).unwrap();
    pages.region_mut().copy_in(100, b"from the guest").unwrap();
    let mut read = [0; 14];
    let mut segments = [
        CopySegment::read(at(guest, &pages, 0, 100), &mut read),
        CopySegment::write(b"from domain 0", at(guest, &pages, 1, 4096 - 13)),
        CopySegment::between(at(guest, &pages, 0, 105), at(guest, &pages, 1, 0), 9),
    ];
    let copier = GrantCopier::open(&ours).unwrap();
    assert!(segments.iter().all(|s| s.status().is_none()));
    copier.copy(&mut segments).unwrap();
    assert!(
        segments
            .iter()
            .all(|s| s.status() == Some(GrantStatus::OKAY))
    );
    assert_eq!(&read, b"from the guest");
    let mut page = [0; 4096];
    pages.region().copy_out(4096, &mut page).unwrap();
    assert_eq!(&page[4096 - 13..], b"from domain 0");
    assert_eq!(&page[..9], b"the guest");
    drop(pages);
    host.assert_clean();
}

#[test]
fn a_segment_that_fails_keeps_no_other_from_being_copied() {
    let (host, ours, theirs, guest) = host();
    let readable = share(&theirs, DomId::DOM0, 1, PageAccess::ReadOnly).unwrap();
    let unknown = GrantedBytes {
        domain: guest,
        gref: GrantRef::new(999),
        offset: 0,
    };
    let (mut first, mut last) = ([1; 8], [1; 8]);
    let mut segments = [
        CopySegment::read(unknown, &mut first),
        CopySegment::write(b"refused", at(guest, &readable, 0, 0)),
        CopySegment::read(at(guest, &readable, 0, 0), &mut last),
    ];
    GrantCopier::open(&ours)
        .unwrap()
        .copy(&mut segments)
        .unwrap();
    let done = segments.iter().map(|s| s.status().unwrap().is_okay());
    assert_eq!(done.collect::<Vec<_>>(), [false, false, true]);
    assert_eq!((first, last), ([1; 8], [0; 8]));
    drop(readable);
    host.assert_clean();
}

#[test]
fn bytes_that_cross_the_end_of_a_page_are_refused_before_anything_is_copied() {
    let (host, ours, theirs, guest) = host();
    let pages = share(&theirs, DomId::DOM0, 1, PageAccess::ReadWrite).unwrap();
    let copier = GrantCopier::open(&ours).unwrap();
    for (offset, len) in [
        (0, 4097),
        (4095, 2),
        (4097, 0),
        (usize::MAX, 1),
        (1, usize::MAX),
    ] {
        let good = CopySegment::write(b"good", at(guest, &pages, 0, 0));
        let (from, to) = (at(guest, &pages, 0, offset), at(guest, &pages, 0, 0));
        let mut segments = [good, CopySegment::between(from, to, len)];
        let error = copier.copy(&mut segments).unwrap_err();
        assert!(
            matches!(error, Error::Invalid { .. }),
            "{offset}: {error:?}"
        );
        assert!(segments.iter().all(|s| s.status().is_none()));
    }
    assert!(matches!(copier.copy(&mut []), Err(Error::Invalid { .. })));
    let mut start = [0; 4];
    pages.region().copy_out(0, &mut start).unwrap();
    assert_eq!(start, [0; 4]);
    drop(pages);
    host.assert_clean();
}

#[test]
fn references_of_one_domain_are_mapped_by_pairs_and_those_of_several_are_refused_here() {
    let (host, ours, theirs, guest) = host();
    let mut pages = share(&theirs, DomId::DOM0, 2, PageAccess::ReadOnly).unwrap();
    pages.region_mut().copy_in(4096, b"second").unwrap();
    let (first, second) = (pages.refs()[0], pages.refs()[1]);
    let pairs = [(guest, second), (guest, first)];
    let mapped = map_from(&ours, &pairs, PageAccess::ReadOnly).unwrap();
    let mut seen = [0; 6];
    mapped.region().copy_out(0, &mut seen).unwrap();
    assert_eq!(&seen, b"second");
    let several = [(guest, first), (DomId::DOM0, first)];
    let refused = map_from(&ours, &several, PageAccess::ReadOnly);
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
    assert!(matches!(
        map_from(&ours, &[], PageAccess::ReadOnly),
        Err(Error::Invalid { .. })
    ));
    drop((mapped, pages));
    host.assert_clean();
}
