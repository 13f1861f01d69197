//! Hypercalls of the caller's choice, on real Xen.
//!
//! # Safety
//!
//! This file is not safe code because it tests the unsafe raw hypercall. The calls it makes take no
//! address, or the address of a buffer that the call fills within its length. The memory that it
//! gives and takes is the HVM guest's, at frames where the guest has none.

#![allow(unsafe_code)]

use anyhow::{Result, ensure};
use xen_sys::privcmd::{MapSpace, MulticallEntry, Privcmd};
use xen_sys::{DomId, Error, Xen};

use crate::guest;
use crate::host::TestHost;

/// Makes `xen_version(XENVER_extraversion)` by hand, alone and in a multicall.
pub(super) fn raw(_: &TestHost) -> Result<()> {
    const XEN_VERSION: u64 = 17;
    let privcmd = Privcmd::open(&Xen::open()?)?;
    let typed = privcmd.xen_version()?;
    let mut buffer = privcmd.buffer(16)?;
    let address = buffer.as_ptr().as_ptr() as u64;
    // SAFETY: the call takes no address.
    let number = unsafe { privcmd.hypercall(XEN_VERSION, [0; 5]) }?;
    ensure!(number == i64::from(typed.major) << 16 | i64::from(typed.minor));
    // SAFETY: the call writes 16 bytes at `address`, the start of a buffer of a page.
    unsafe { privcmd.hypercall(XEN_VERSION, [1, address, 0, 0, 0]) }?;
    ensure!(buffer.bytes().starts_with(typed.extra.as_bytes()));
    buffer.bytes_mut().fill(0);
    let mut calls = [0, 1, 99].map(|command| MulticallEntry {
        op: XEN_VERSION,
        args: [command, address, 0, 0, 0, 0],
        ..MulticallEntry::default()
    });
    // SAFETY: as above; there is no operation 99.
    unsafe { privcmd.multicall(&mut calls) }?;
    let results = calls.map(|call| call.result as i64);
    ensure!(results == [number, 0, -38], "{results:?}");
    ensure!(buffer.bytes().starts_with(typed.extra.as_bytes()));
    // SAFETY: there is no hypercall of that number.
    let error = unsafe { privcmd.hypercall(63, [0; 5]) };
    ensure!(matches!(&error, Err(Error::Os { .. })), "{error:?}");
    Ok(())
}

/// Gives memory to the HVM guest behind its own, moves it, and takes it again.
pub(super) fn reservation(_: &TestHost) -> Result<()> {
    let privcmd = Privcmd::open(&Xen::open()?)?;
    let hvm = guest::domid(guest::NAME)?;
    let before = privcmd.domain_info(hvm)?;
    let first = privcmd.maximum_gpfn(hvm)? + 0x100;
    privcmd.set_max_memory(hvm, (before.pages + 16) << 12)?;
    let done = populated(&privcmd, hvm, first, before.pages);
    privcmd.set_max_memory(hvm, before.max_pages << 12)?;
    done?;
    let after = privcmd.domain_info(hvm)?;
    ensure!(after.pages == before.pages, "{before:?}\n{after:?}");

    privcmd.claim_pages(hvm, 0)?;
    let all = privcmd.claim_pages(hvm, u64::from(u32::MAX));
    let errno = all.as_ref().err().and_then(Error::errno);
    ensure!(matches!(errno, Some(12 | 22)), "{all:?}");
    let none = DomId::new(0x7000);
    let claimed = privcmd.claim_pages(none, 1);
    // SAFETY: there is no such domain.
    let populated = unsafe { privcmd.populate_physmap(none, 0, &mut [first]) };
    // SAFETY: there is no such domain.
    let decreased = unsafe { privcmd.decrease_reservation(none, 0, &[first]) };
    // SAFETY: there is no such domain.
    let batch = unsafe { privcmd.add_to_physmap_batch(none, MapSpace::Frame, &[(1, 2)]) };
    // SAFETY: there is no such domain.
    let removed = unsafe { privcmd.remove_from_physmap(none, first) };
    for (call, error) in [
        ("claim", claimed),
        ("populate", populated.map(drop)),
        ("decrease", decreased.map(drop)),
        ("batch", batch.map(drop)),
        ("remove", removed),
    ] {
        let is_named = matches!(error, Err(Error::NoDomain { .. }));
        ensure!(is_named, "{call}: {error:?}");
    }
    Ok(())
}

fn populated(privcmd: &Privcmd, hvm: DomId, first: u64, pages: u64) -> Result<()> {
    let mut frames = [first, first + 1, first + 2];
    // SAFETY: the guest has nothing there.
    let done = unsafe { privcmd.populate_physmap(hvm, 0, &mut frames) }?;
    ensure!(done == 3 && privcmd.current_pages(hvm)? == pages + 3);
    // SAFETY: nothing uses these frames.
    unsafe { privcmd.add_to_physmap(hvm, MapSpace::Frame, first, first + 8) }?;
    let pairs = [(first + 1, first + 9), (first + 1000, first + 10)];
    // SAFETY: as above.
    let errors = unsafe { privcmd.add_to_physmap_batch(hvm, MapSpace::Frame, &pairs) }?;
    ensure!(errors[0] == 0 && errors[1] != 0, "{errors:?}");
    let foreign = MapSpace::Foreign(hvm);
    // SAFETY: as above.
    let refused = unsafe { privcmd.add_to_physmap(hvm, foreign, first, first) };
    ensure!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    // SAFETY: as above.
    let taken = unsafe { privcmd.decrease_reservation(hvm, 0, &[first + 8, first + 9]) }?;
    // SAFETY: as above.
    let third = unsafe { privcmd.decrease_reservation(hvm, 0, &[first + 2]) }?;
    // SAFETY: there is nothing at that frame.
    let nothing = unsafe { privcmd.remove_from_physmap(hvm, first + 8) };
    ensure!(taken == 2 && third == 1, "{taken} and {third}");
    ensure!(nothing.is_err(), "{nothing:?}");
    Ok(())
}
