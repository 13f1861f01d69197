//! Hypercalls of the caller's choice, on real Xen.
//!
//! # Safety
//!
//! This file is not safe code because it tests the unsafe raw hypercall. The calls it makes take no
//! address, or the address of a buffer that the call fills within its length.

#![allow(unsafe_code)]

use anyhow::{Result, ensure};
use xen_sys::privcmd::{MulticallEntry, Privcmd};
use xen_sys::{Error, Xen};

use crate::world::World;

/// Makes `xen_version(XENVER_extraversion)` by hand, alone and in a multicall.
pub(super) fn raw(_: &World) -> Result<()> {
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
