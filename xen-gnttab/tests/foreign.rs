//! Memory of other domains by frame number, on a simulated host.
#![cfg(feature = "sim")]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use xen_gnttab::{PageAccess, Region, RegionError, foreign, share};
use xen_sys::privcmd::{Privcmd, Resource};
use xen_sys::sim::{Fault, Op, Simulation};
use xen_sys::{DomId, Error, PAGE_SIZE};

/// Frames of a simulated guest.
const FRAMES: u64 = 64 << 20 >> 12;

fn host() -> (Simulation, Privcmd, DomId) {
    let host = Simulation::start().unwrap();
    let guest = host.add_domain().unwrap();
    let privcmd = Privcmd::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    (host, privcmd, guest)
}

fn byte(region: &Region, at: usize) -> u8 {
    let mut byte = [0];
    region.copy_out(at, &mut byte).unwrap();
    byte[0]
}

#[test]
fn frames_are_mapped_in_the_order_given_and_unmapped_with_the_last_part() {
    let (host, privcmd, guest) = host();
    for frame in [0x7, 0x100, 0x101u64] {
        let at = frame * PAGE_SIZE as u64 + 5;
        host.write_memory(guest, at, &[frame as u8]).unwrap();
    }
    let handle = privcmd.guest(guest);
    let mut region =
        foreign::map(handle, &[0x100, 0x101, 0x7, 0x7], PageAccess::ReadWrite).unwrap();
    assert_eq!(region.len(), 4 * PAGE_SIZE);
    let seen = [0, 1, 2, 3].map(|page| byte(&region, page * PAGE_SIZE + 5));
    assert_eq!(seen, [0x00, 0x01, 0x07, 0x07]);

    // The guest sees what is written here, and so does another mapping of the frame.
    region.copy_in(2 * PAGE_SIZE + 5, &[0x77]).unwrap();
    assert_eq!(byte(&region, 3 * PAGE_SIZE + 5), 0x77);
    let part = region.split_off(3 * PAGE_SIZE).unwrap();
    drop((region, privcmd));
    assert_eq!(byte(&part, 5), 0x77, "the pages outlive the device");
    let leak = format!("domain 0: 4 pages of domain {guest} mapped");
    assert_eq!(host.leaks(), [leak]);
    drop(part);
    host.assert_clean();
}

#[test]
fn each_frame_has_an_error_of_its_own_or_fails_all() {
    let (host, privcmd, guest) = host();
    host.write_memory(guest, 0, &[9]).unwrap();
    let frames = [FRAMES, 0, FRAMES - 1, u64::MAX, 1 << 32];
    let handle = privcmd.guest(guest);
    let pages = foreign::map_each(handle, &frames, PageAccess::ReadOnly).unwrap();
    let good: Vec<bool> = pages.iter().map(Result::is_ok).collect();
    assert_eq!(good, [false, true, true, false, false]);
    let first = pages[1].as_ref().unwrap();
    assert_eq!((first.len(), byte(first, 0)), (PAGE_SIZE, 9));
    let named = |error: &Error, frame: u64| {
        let named = matches!(
            error,
            Error::ForeignFrame { domain, frame: f, .. } if (*domain, *f) == (guest, frame)
        );
        assert!(named, "{error:?}");
        assert_eq!(error.errno(), Some(22));
    };
    named(pages[0].as_ref().unwrap_err(), FRAMES);
    named(pages[3].as_ref().unwrap_err(), u64::MAX);
    let error = foreign::map(handle, &[0, 1, FRAMES], PageAccess::ReadOnly).unwrap_err();
    named(&error, FRAMES);
    drop(pages);
    host.assert_clean();
}

#[test]
fn pages_mapped_for_reading_refuse_writes() {
    let (host, privcmd, guest) = host();
    let mut page = foreign::map(privcmd.guest(guest), &[3], PageAccess::ReadOnly).unwrap();
    assert_eq!(page.copy_in(0, &[1]), Err(RegionError::ReadOnly));
    drop(page);
    host.assert_clean();
}

#[test]
fn what_a_guest_shares_is_in_its_memory() {
    let (host, privcmd, guest) = host();
    let xen = host.xen(guest).unwrap();
    let mut shared = share(&xen, DomId::DOM0, 1, PageAccess::ReadOnly).unwrap();
    shared
        .region_mut()
        .copy_in(9, b"written by the guest")
        .unwrap();
    let page = foreign::map(privcmd.guest(guest), &[0], PageAccess::ReadOnly).unwrap();
    let mut seen = [0; 20];
    page.copy_out(9, &mut seen).unwrap();
    assert_eq!(&seen, b"written by the guest");
    drop((page, shared));
    host.assert_clean();
}

#[test]
fn every_refusal_names_its_cause_and_leaves_nothing() {
    let (host, privcmd, guest) = host();
    let map = |domain, frames: &[u64]| {
        foreign::map(privcmd.guest(domain), frames, PageAccess::ReadOnly).unwrap_err()
    };
    let none = DomId::new(99);
    let error = map(none, &[0]);
    assert!(
        matches!(error, Error::NoDomain { domain, .. } if domain == none),
        "{error:?}"
    );
    for frames in [0, (1 << 16) + 1] {
        let error = map(guest, &vec![0; frames]);
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }
    let refusals = [(1, "not permitted"), (12, "other")];
    for (errno, kind) in refusals {
        host.inject(Fault::Fail {
            domain: DomId::DOM0,
            op: Op::MapForeign,
            nth: 1,
            errno,
        });
        let error = map(guest, &[0]);
        let not_permitted = matches!(error, Error::NotPermitted { .. });
        assert_eq!(not_permitted, kind == "not permitted", "{error:?}");
        assert_eq!(error.errno(), Some(errno));
    }
    // A guest controls no other.
    let of_guest = Privcmd::open(&host.xen(guest).unwrap()).unwrap();
    let error = foreign::map(of_guest.guest(DomId::DOM0), &[0], PageAccess::ReadOnly);
    assert!(
        matches!(error, Err(Error::NotPermitted { .. })),
        "{error:?}"
    );
    // A simulated host has no resources.
    let size = privcmd.guest(guest).resource_size(Resource::GRANT_TABLE);
    assert!(matches!(size, Err(Error::Unsupported { .. })), "{size:?}");
    host.assert_clean();
}
