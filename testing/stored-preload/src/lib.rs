//! The Xen that C xenstored and oxenstored need, faked for `LD_PRELOAD`.
//!
//! With this library preloaded the unmodified daemons run as ordinary processes on a machine
//! without Xen: their calls of libxenctrl, libxengnttab and libxenevtchn are answered from files
//! and sockets in one folder, which `XEN_STORED_PRELOAD` names (`hypervisor.rs` lists its
//! contents). The paths that are compiled into them (`/proc/xen/xsd_kva`, `/proc/xen/xsd_port`, and
//! oxenstored's socket) lead into that folder too.
//!
//! It is part of the tests, and has what the two daemons of Xen 4.17 call: live update is not.
//!
//! # Safety
//!
//! This file is not safe code because C calls it, and because it maps the pages that C asks for.
//! Each function relies on what the C headers (`xenevtchn.h`, `xengnttab.h`, `xenctrl.h`) and POSIX
//! demand of the caller, and on nothing else: a handle is one that the matching open returned and
//! that was not closed; a string ends with a NUL; an array has as many elements as the count
//! states.

#![allow(unsafe_code)]

mod hypervisor;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use nix::sys::prctl;
use nix::sys::signal::Signal;

pub use hypervisor::Events;
use hypervisor::{DomainState, VIRQ};

const PAGE: usize = 4096;
/// The size of both descriptions of a domain in Xen 4.17's headers.
const DOMAIN_INFO: usize = 112;

/// Sets `errno` and gives what C's function returns for a failure.
fn fail<T>(value: T, error: &io::Error) -> T {
    // SAFETY: the function has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is the address of this thread's errno, valid for the life of the thread.
    unsafe { *errno = error.raw_os_error().unwrap_or(libc::EINVAL) };
    value
}

/// An int as the C functions return it: the value, or -1 and errno.
fn int(result: io::Result<c_int>) -> c_int {
    result.unwrap_or_else(|error| fail(-1, &error))
}

/// The text of a C path.
///
/// # Safety
///
/// `path` is null or a string that ends with a NUL and lives for `'a`.
unsafe fn bytes<'a>(path: *const c_char) -> &'a [u8] {
    if path.is_null() {
        return b"";
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

/// Maps a path that C opens: the same, or a file of the fake host's folder.
///
/// # Safety
///
/// As [`bytes`].
unsafe fn redirected(path: *const c_char) -> Option<CString> {
    // SAFETY: the caller's promise.
    let path = unsafe { bytes(path) };
    let instead = hypervisor::instead(path)?;
    CString::new(instead.into_os_string().into_vec()).ok()
}

/// `open(2)`. The third argument is one only if C has given it, and is passed on unused otherwise.
///
/// # Safety
///
/// As POSIX: `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let instead = unsafe { redirected(path) };
    let path = instead.as_ref().map_or(path, |path| path.as_ptr());
    // SAFETY: the caller's promise, or a string of ours that lives on; `openat` keeps nothing.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) };
    fd as c_int
}

/// `open64`, which is the same where offsets have 64 bits anyway.
///
/// # Safety
///
/// As [`open`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { open(path, flags, mode) }
}

/// `unlink(2)`: a socket that a daemon before this one left.
///
/// # Safety
///
/// As POSIX: `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let instead = unsafe { redirected(path) };
    let path = instead.as_ref().map_or(path, |path| path.as_ptr());
    // SAFETY: the caller's promise, or a string of ours that lives on; `unlinkat` keeps nothing.
    let done = unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) };
    done as c_int
}

/// `mkdir(2)`: the folder of the socket.
///
/// # Safety
///
/// As POSIX: `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let instead = unsafe { redirected(path) };
    let path = instead.as_ref().map_or(path, |path| path.as_ptr());
    // SAFETY: the caller's promise, or a string of ours that lives on; `mkdirat` keeps nothing.
    let done = unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) };
    done as c_int
}

/// `chmod(2)`: who may connect.
///
/// # Safety
///
/// As POSIX: `path` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn chmod(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let instead = unsafe { redirected(path) };
    let path = instead.as_ref().map_or(path, |path| path.as_ptr());
    // SAFETY: the caller's promise, or a string of ours that lives on; the call keeps nothing.
    let done = unsafe { libc::syscall(libc::SYS_fchmodat, libc::AT_FDCWD, path, mode) };
    done as c_int
}

/// `bind(2)`: oxenstored's socket has its path compiled in.
///
/// # Safety
///
/// As POSIX: `address` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const c_void, length: libc::socklen_t) -> c_int {
    // SAFETY: an all-zero address is one: numbers only.
    let mut other: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sockaddr_un>().min(length as usize);
    // SAFETY: both have `size` bytes, which may be anything; they do not overlap.
    unsafe { ptr::copy_nonoverlapping(address.cast(), (&raw mut other).cast::<u8>(), size) };
    let text: Vec<u8> = other.sun_path.iter().map(|c| c.to_ne_bytes()[0]).collect();
    let end = text.iter().position(|byte| *byte == 0);
    let named = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
    let instead = match c_int::from(other.sun_family) {
        libc::AF_UNIX => hypervisor::instead(named),
        _ => None,
    };
    let Some(instead) = instead else {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_bind, fd, address, length) } as c_int;
    };
    let instead = instead.into_os_string().into_vec();
    other.sun_path.fill(0);
    for (to, from) in other.sun_path.iter_mut().zip(instead) {
        *to = c_char::from_ne_bytes([from]);
    }
    let size = size_of::<libc::sockaddr_un>();
    // SAFETY: `other` has `size` bytes, and the call keeps nothing.
    unsafe { libc::syscall(libc::SYS_bind, fd, &raw const other, size) as c_int }
}

/// `setrlimit(2)`: oxenstored asks for as many descriptors as there can be, and ends if it may not.
#[unsafe(no_mangle)]
pub extern "C" fn setrlimit(_resource: c_int, _limit: *const c_void) -> c_int {
    0
}

/// `setrlimit64`, which is the same.
#[unsafe(no_mangle)]
pub extern "C" fn setrlimit64(resource: c_int, limit: *const c_void) -> c_int {
    setrlimit(resource, limit)
}

/// `xc_interface_open`. The daemon ends with the thread that started it from here on.
#[unsafe(no_mangle)]
pub extern "C" fn xc_interface_open(
    _logger: *mut c_void,
    _dombuild_logger: *mut c_void,
    _flags: c_uint,
) -> *mut c_void {
    match prctl::set_pdeathsig(Signal::SIGKILL) {
        // No handle is ever looked into: any address that is not null will do.
        Ok(()) => ptr::dangling_mut::<u64>().cast(),
        Err(errno) => fail(ptr::null_mut(), &errno.into()),
    }
}

/// `xc_interface_close`.
#[unsafe(no_mangle)]
pub extern "C" fn xc_interface_close(_xc: *mut c_void) -> c_int {
    0
}

/// `xc_error`: a code and a text.
#[derive(Debug)]
#[repr(C)]
pub struct XcError {
    code: c_uint,
    message: [u8; 1024],
}

/// `xc_get_last_error`: none, so that oxenstored looks at `errno`.
#[unsafe(no_mangle)]
pub extern "C" fn xc_get_last_error(_xc: *mut c_void) -> *const XcError {
    static NONE: XcError = XcError {
        code: 0,
        message: [0; 1024],
    };
    &raw const NONE
}

/// Writes a description of each domain from number `first` on; how many there are.
///
/// # Safety
///
/// `info` has room for `most` elements of [`DOMAIN_INFO`] bytes.
unsafe fn describe(
    first: u32,
    most: c_uint,
    info: *mut u8,
    describe: fn(u32, DomainState) -> [u8; DOMAIN_INFO],
) -> c_int {
    let domains = hypervisor::domains(first, most as usize);
    for (index, (number, state)) in domains.iter().enumerate() {
        let element = describe(*number, *state);
        // SAFETY: there are at most `most` domains, so this element is in the caller's room.
        let at = unsafe { info.add(index * DOMAIN_INFO) };
        // SAFETY: as above; an element has `DOMAIN_INFO` bytes, and this one is a local variable.
        unsafe { ptr::copy_nonoverlapping(element.as_ptr(), at, DOMAIN_INFO) };
    }
    domains.len() as c_int
}

/// Two of a description's fields, the number and the flags at `at`; the others are 0.
fn fields(number: &[u8], state: DomainState, at: usize) -> [u8; DOMAIN_INFO] {
    // The three flags are the same bits in both forms.
    let flags: u32 = match state {
        DomainState::Dying => 1,
        DomainState::Shutdown => 1 << 2,
        DomainState::Running => 1 << 5,
    };
    let mut element = [0; DOMAIN_INFO];
    element[..number.len()].copy_from_slice(number);
    element[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
    element
}

/// `xc_domain_getinfo`: the number, and whether it runs, as bit fields.
///
/// # Safety
///
/// As `xenctrl.h`: `info` has room for `most` elements of `xc_dominfo_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xc_domain_getinfo(
    _xc: *mut c_void,
    first: u32,
    most: c_uint,
    info: *mut u8,
) -> c_int {
    let one = |number: u32, state| fields(&number.to_ne_bytes(), state, 8);
    // SAFETY: the caller's promise; the header's structure has `DOMAIN_INFO` bytes.
    unsafe { describe(first, most, info, one) }
}

/// `xc_domain_getinfolist`: as [`xc_domain_getinfo`], in the hypervisor's own form
/// (`xen_domctl_getdomaininfo` with `XEN_DOMINF_*`).
///
/// # Safety
///
/// As `xenctrl.h`: `info` has room for `most` elements of `xc_domaininfo_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xc_domain_getinfolist(
    _xc: *mut c_void,
    first: u32,
    most: c_uint,
    info: *mut u8,
) -> c_int {
    let one = |number, state| {
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        fields(&number.to_ne_bytes(), state, 4)
    };
    // SAFETY: the caller's promise; the header's structure has `DOMAIN_INFO` bytes.
    unsafe { describe(first, most, info, one) }
}

/// Maps the page of a domain's ring; null and errno if there is none.
fn map_ring(domain: u32, prot: c_int) -> *mut c_void {
    let file = match hypervisor::ring(domain) {
        Ok(file) => file,
        Err(error) => return fail(ptr::null_mut(), &error),
    };
    let fd = file.as_raw_fd();
    // SAFETY: the kernel picks the address, so nothing that is mapped already is replaced.
    let at = unsafe { libc::mmap(ptr::null_mut(), PAGE, prot, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return fail(ptr::null_mut(), &io::Error::last_os_error());
    }
    at
}

/// `xc_map_foreign_range`: oxenstored maps a ring by its frame.
#[unsafe(no_mangle)]
pub extern "C" fn xc_map_foreign_range(
    _xc: *mut c_void,
    domain: u32,
    size: c_int,
    prot: c_int,
    _frame: c_ulong,
) -> *mut c_void {
    if usize::try_from(size) != Ok(PAGE) {
        return fail(ptr::null_mut(), &io::ErrorKind::InvalidInput.into());
    }
    map_ring(domain, prot)
}

/// `xengnttab_open`.
#[unsafe(no_mangle)]
pub extern "C" fn xengnttab_open(_logger: *mut c_void, _flags: c_uint) -> *mut c_void {
    ptr::dangling_mut::<u64>().cast()
}

/// `xengnttab_close`.
#[unsafe(no_mangle)]
pub extern "C" fn xengnttab_close(_handle: *mut c_void) -> c_int {
    0
}

/// `xengnttab_set_max_grants`.
#[unsafe(no_mangle)]
pub extern "C" fn xengnttab_set_max_grants(_handle: *mut c_void, _count: u32) -> c_int {
    0
}

/// `xengnttab_map_grant_ref`: grant 1 of a domain is its ring.
#[unsafe(no_mangle)]
pub extern "C" fn xengnttab_map_grant_ref(
    _handle: *mut c_void,
    domain: u32,
    reference: u32,
    prot: c_int,
) -> *mut c_void {
    if reference != 1 {
        return fail(ptr::null_mut(), &io::ErrorKind::InvalidInput.into());
    }
    map_ring(domain, prot)
}

/// `xengnttab_unmap`.
///
/// # Safety
///
/// As `xengnttab.h`: `at` is what [`xengnttab_map_grant_ref`] returned, and nothing uses it any
/// more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xengnttab_unmap(
    _handle: *mut c_void,
    at: *mut c_void,
    count: u32,
) -> c_int {
    // SAFETY: the caller's promise; each mapping has one page.
    unsafe { libc::munmap(at, count as usize * PAGE) }
}

/// `xenevtchn_open`: the set of ports, or null.
#[unsafe(no_mangle)]
pub extern "C" fn xenevtchn_open(_logger: *mut c_void, _flags: c_uint) -> *mut Events {
    match Events::open() {
        Ok(events) => Box::into_raw(Box::new(events)),
        Err(error) => fail(ptr::null_mut(), &error),
    }
}

/// `xenevtchn_close`.
///
/// # Safety
///
/// As `xenevtchn.h`: a handle of [`xenevtchn_open`], not closed yet, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenevtchn_close(h: *mut Events) -> c_int {
    if !h.is_null() {
        // SAFETY: the caller's promise; the box is taken back once.
        drop(unsafe { Box::from_raw(h) });
    }
    0
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
    /// `xenevtchn_bind_virq`.
    fn xenevtchn_bind_virq(h, virq: c_uint) { Ok(h.bind(VIRQ, virq)) }
    /// `xenevtchn_bind_interdomain`.
    fn xenevtchn_bind_interdomain(h, domain: u32, remote: u32) { Ok(h.bind(domain, remote)) }
    /// `xenevtchn_unbind`. The port is never used again, so what comes for it is ignored.
    fn xenevtchn_unbind(_h, _port: u32) { Ok(0) }
    /// `xenevtchn_notify`.
    fn xenevtchn_notify(h, port: u32) { h.notify(port).map(|()| 0) }
    /// `xenevtchn_pending`: waits for an event.
    fn xenevtchn_pending(h) { h.pending() }
    /// `xenevtchn_unmask`: nothing is masked here.
    fn xenevtchn_unmask(_h, _port: u32) { Ok(0) }
}
