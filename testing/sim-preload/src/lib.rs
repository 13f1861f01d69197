//! The C libraries libxenevtchn and libxengnttab over a simulated host, for `LD_PRELOAD`.
//!
//! With this library preloaded an unmodified program or library that uses `xenevtchn_*`,
//! `xengnttab_*` and `xengntshr_*`, such as Debian's `libxenvchan.so`, runs as a process of a
//! domain of a [simulated host](xen_sys::sim). The store needs nothing of the kind: C's
//! libxenstore connects to the embedded daemon by `XENSTORED_PATH`.
//!
//! | environment | |
//! |---|---|
//! | `XEN_SIM_SOCKET` | the path the simulation listens at |
//! | `XEN_SIM_DOMAIN` | the domain to be; 0 unless given |
//! | `XEN_SIM_NOTIFY_NS` | how much longer a notify is to take, in nanoseconds, to stand for a hypercall |
//!
//! It is part of the tests and has the functions that libxenvchan and similar programs call. Others
//! (virtual interrupts, grant copy, dma-buf) are not exported, so a program that calls them uses
//! the real library's, which fail because there is no device.
//!
//! # Safety
//!
//! This file is not safe code because C calls it. Each function relies on what the C headers
//! (`xenevtchn.h`, `xengnttab.h`) demand of the caller, and on nothing else: a handle is one that
//! the matching open returned and that was not closed; an array has as many elements as the count
//! states.

#![allow(unsafe_code)]

mod handles;

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::slice;

use xen_gnttab::{PageAccess, UnmapNotify};
use xen_sys::{DomId, GrantRef, Port};

use handles::Failed;
pub use handles::{Events, Grants};

/// Sets `errno` and gives what C's function returns for a failure.
fn fail<T>(value: T, e: &Failed) -> T {
    // SAFETY: the function has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is the address of this thread's errno, valid for the life of the thread.
    unsafe { *errno = e.errno() };
    value
}

/// An int as the C functions return it: the value, or -1 and errno.
fn int(result: Result<c_int, Failed>) -> c_int {
    result.unwrap_or_else(|e| fail(-1, &e))
}

/// An address as the C functions return it: the value, or null and errno.
fn address(result: Result<*mut u8, Failed>) -> *mut c_void {
    result.map_or_else(|e| fail(ptr::null_mut(), &e), |p| p.cast())
}

/// A handle as the C functions return it: the value, or null and errno.
fn handle<T>(result: Result<T, Failed>) -> *mut T {
    result.map_or_else(
        |e| fail(ptr::null_mut(), &e),
        |h| Box::into_raw(Box::new(h)),
    )
}

/// Closes a handle. Null is nothing.
///
/// # Safety
///
/// `h` is null, or a handle that [`handle`] made and that was not closed.
unsafe fn close<T>(h: *mut T) -> c_int {
    if !h.is_null() {
        // SAFETY: the caller's promise; the box is taken back once.
        drop(unsafe { Box::from_raw(h) });
    }
    0
}

fn domain(n: u32) -> Result<DomId, Failed> {
    u16::try_from(n)
        .map(DomId::new)
        .map_err(|_| Failed::new(libc::EINVAL))
}

fn access(writable: bool) -> PageAccess {
    if writable {
        PageAccess::ReadWrite
    } else {
        PageAccess::ReadOnly
    }
}

/// The notification of the `_notify` functions, where -1 is none.
fn notify(offset: u32, port: u32) -> UnmapNotify {
    UnmapNotify {
        clear_byte: (offset != u32::MAX).then_some(offset as usize),
        event: (port != u32::MAX).then_some(Port::new(port)),
    }
}

/// `xenevtchn_open`: an empty set of ports, or null.
#[unsafe(no_mangle)]
pub extern "C" fn xenevtchn_open(_logger: *mut c_void, _flags: c_uint) -> *mut Events {
    handle(Events::open())
}

/// `xenevtchn_close`.
///
/// # Safety
///
/// As `xenevtchn.h`: a handle of [`xenevtchn_open`], not closed yet, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenevtchn_close(h: *mut Events) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { close(h) }
}

/// The functions on a set of ports: each takes the handle and plain numbers.
macro_rules! evtchn {
    ($($(#[$doc:meta])* fn $name:ident($h:ident $(, $arg:ident: $type:ty)*) $body:block)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// As `xenevtchn.h`: an open handle of [`xenevtchn_open`].
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($h: *mut Events $(, $arg: $type)*) -> c_int {
            // SAFETY: the caller's promise; the set is shared, never borrowed mutably.
            let $h = unsafe { &*$h };
            int($body)
        }
    )* };
}

evtchn! {
    /// `xenevtchn_fd`: to poll for input.
    fn xenevtchn_fd(h) { Ok(h.fd()) }
    /// `xenevtchn_notify`.
    fn xenevtchn_notify(h, port: u32) { h.notify(Port::new(port)) }
    /// `xenevtchn_bind_unbound_port`.
    fn xenevtchn_bind_unbound_port(h, domid: u32) {
        domain(domid).and_then(|d| h.bind_unbound(d))
    }
    /// `xenevtchn_bind_interdomain`.
    fn xenevtchn_bind_interdomain(h, domid: u32, remote: u32) {
        domain(domid).and_then(|d| h.bind_interdomain(d, Port::new(remote)))
    }
    /// `xenevtchn_unbind`.
    fn xenevtchn_unbind(h, port: u32) { h.unbind(Port::new(port)) }
    /// `xenevtchn_pending`: waits, unless the descriptor was made non-blocking.
    fn xenevtchn_pending(h) { h.pending() }
    /// `xenevtchn_unmask`.
    fn xenevtchn_unmask(h, port: u32) { h.unmask(Port::new(port)) }
}

/// How often this process called, for benchmarks: notifies, and all that would have been system
/// calls on a real host. To be found by `dlsym`.
///
/// # Safety
///
/// `out` has room for two elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xen_sim_counts(out: *mut u64) {
    let counts = handles::counts();
    // SAFETY: the caller's promise.
    unsafe { ptr::copy_nonoverlapping(counts.as_ptr(), out, counts.len()) };
}

/// `xengnttab_open`: mappings of others' pages, or null.
#[unsafe(no_mangle)]
pub extern "C" fn xengnttab_open(_logger: *mut c_void, _flags: c_uint) -> *mut Grants {
    handle(Grants::open())
}

/// `xengntshr_open`: pages of our own, or null.
#[unsafe(no_mangle)]
pub extern "C" fn xengntshr_open(_logger: *mut c_void, _flags: c_uint) -> *mut Grants {
    handle(Grants::open())
}

/// `xengnttab_close`: unmaps everything too.
///
/// # Safety
///
/// As `xengnttab.h`: a handle of [`xengnttab_open`], not closed yet, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengnttab_close(h: *mut Grants) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { close(h) }
}

/// `xengntshr_close`: gives every page up too.
///
/// # Safety
///
/// As `xengnttab.h`: a handle of [`xengntshr_open`], not closed yet, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengntshr_close(h: *mut Grants) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { close(h) }
}

/// `xengnttab_map_domain_grant_refs`: the address, or null.
///
/// # Safety
///
/// As `xengnttab.h`: an open handle of [`xengnttab_open`], and `refs` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengnttab_map_domain_grant_refs(
    h: *mut Grants,
    count: u32,
    domid: u32,
    refs: *mut u32,
    prot: c_int,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let h = unsafe { &*h };
    // SAFETY: the caller's promise: `refs` has `count` elements, which C has written.
    let refs = unsafe { slice::from_raw_parts(refs, count as usize) };
    let refs: Vec<GrantRef> = refs.iter().map(|&r| GrantRef::new(r)).collect();
    let access = access(prot & libc::PROT_WRITE != 0);
    address(domain(domid).and_then(|d| h.map(d, &refs, access, UnmapNotify::default())))
}

/// `xengnttab_map_grant_ref_notify`: the address, or null.
///
/// # Safety
///
/// As `xengnttab.h`: an open handle of [`xengnttab_open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengnttab_map_grant_ref_notify(
    h: *mut Grants,
    domid: u32,
    gref: u32,
    prot: c_int,
    notify_offset: u32,
    notify_port: u32,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let h = unsafe { &*h };
    let access = access(prot & libc::PROT_WRITE != 0);
    let notify = notify(notify_offset, notify_port);
    address(domain(domid).and_then(|d| h.map(d, &[GrantRef::new(gref)], access, notify)))
}

/// `xengnttab_unmap`.
///
/// # Safety
///
/// As `xengnttab.h`: an open handle of [`xengnttab_open`], and nothing uses the pages any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengnttab_unmap(h: *mut Grants, at: *mut c_void, count: u32) -> c_int {
    // SAFETY: the caller's promise.
    let h = unsafe { &*h };
    int(h.give_back(at.addr(), count as usize))
}

/// `xengntshr_unshare`.
///
/// # Safety
///
/// As `xengnttab.h`: an open handle of [`xengntshr_open`], and nothing uses the pages any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengntshr_unshare(h: *mut Grants, at: *mut c_void, count: u32) -> c_int {
    // SAFETY: the caller's promise.
    let h = unsafe { &*h };
    int(h.give_back(at.addr(), count as usize))
}

/// `xengntshr_share_pages`: the address, or null.
///
/// # Safety
///
/// As `xengnttab.h`: an open handle of [`xengntshr_open`], and `refs` has room for `count`
/// elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengntshr_share_pages(
    h: *mut Grants,
    domid: u32,
    count: c_int,
    refs: *mut u32,
    writable: c_int,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let h = unsafe { &*h };
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller's promise: `refs` has room for `count` elements.
    unsafe { share(h, domid, count, refs, writable, UnmapNotify::default()) }
}

/// Shares `count` pages and writes their references to `refs`.
///
/// # Safety
///
/// `refs` has room for `count` elements.
unsafe fn share(
    h: &Grants,
    domid: u32,
    count: usize,
    refs: *mut u32,
    writable: c_int,
    notify: UnmapNotify,
) -> *mut c_void {
    let shared = domain(domid).and_then(|d| h.share(d, count, access(writable != 0), notify));
    address(shared.map(|(at, made)| {
        // SAFETY: there are `count` references, one per page, and the caller has room for them;
        // what it has is not ours.
        unsafe { ptr::copy_nonoverlapping(made.as_ptr(), refs, made.len()) };
        at
    }))
}

/// `xengntshr_share_page_notify`: the address, or null.
///
/// # Safety
///
/// As `xengnttab.h`: an open handle of [`xengntshr_open`], and `gref` has room for one element.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengntshr_share_page_notify(
    h: *mut Grants,
    domid: u32,
    gref: *mut u32,
    writable: c_int,
    notify_offset: u32,
    notify_port: u32,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let h = unsafe { &*h };
    // SAFETY: the caller's promise: `gref` has room for one element.
    unsafe {
        share(
            h,
            domid,
            1,
            gref,
            writable,
            notify(notify_offset, notify_port),
        )
    }
}
