//! The one `ioctl(2)`, and every request of Xen's drivers as a typed, safe method.
//!
//! A type per device owns its descriptor; a method per request takes and returns plain values.
//! So the crates above contain no pointer and no opcode.
//!
//! | device | type | requests |
//! |---|---|---|
//! | `evtchn` | [`Evtchn`] | bind, unbind, notify, reset, restrict |
//! | `gntdev` | [`GntDev`] | map, unmap, set_unmap_notify |
//! | `gntalloc` | [`GntAlloc`] | alloc, dealloc, set_unmap_notify |
//! | `privcmd` | [`PrivCmd`] | hypercall, restrict |
//!
//! None of the requests waits for anything but the hypervisor itself.
//!
//! # Safety
//!
//! This file is not safe code because `ioctl` hands the kernel an address. What makes the
//! methods safe to call: the descriptor inside each type was opened by this file from a node in
//! `/dev/xen`, so the driver that sees the request is the one whose header the request's struct
//! follows; and the struct holds values, not addresses. The exception is a hypercall, whose
//! arguments may be addresses: it is an `unsafe fn`.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{Opcode, evtchn, gntalloc, gntdev, privcmd};
use crate::mmap::HypercallBuffer;
use crate::{DevRoot, DomId, Error, GrantRef, Port, Result};

/// The most pages one share or one mapping may have: 256 MiB.
///
/// Bounds what a caller's number can make us allocate; the drivers' own limits (`limit` of
/// xen-gntalloc and xen-gntdev) are lower unless an administrator raised them.
pub const MAX_PAGES: usize = 1 << 16;

/// An argument the driver reads and does not write.
///
/// # Safety
///
/// The driver whose header defines `OPCODE` must read at most `size_of::<Self>()` bytes at the
/// address it is given, write none, and find no address in them.
unsafe trait Argument: Copy {
    const OPCODE: Opcode;
    const NAME: &'static str;
}

macro_rules! arguments {
    ($($type:path => $opcode:path;)*) => { $(
        // SAFETY: the type is the struct of the header that its module cites, the opcode is the
        // one defined next to it, the struct's fields are all values, and the driver only calls
        // `copy_from_user` on it (drivers/xen/{evtchn,gntdev,gntalloc,privcmd}.c).
        unsafe impl Argument for $type {
            const OPCODE: Opcode = $opcode;
            const NAME: &'static str = {
                // "evtchn::IOCTL_X" names the module first; a reader wants only the C name.
                let path = stringify!($opcode).as_bytes();
                let mut at = path.len();
                while at > 0 && path[at - 1] != b':' && path[at - 1] != b' ' {
                    at -= 1;
                }
                match std::str::from_utf8(path.split_at(at).1) {
                    Ok(name) => name,
                    Err(_) => panic!("an identifier is UTF-8"),
                }
            };
        }
    )* };
}

arguments! {
    evtchn::BindVirq => evtchn::IOCTL_EVTCHN_BIND_VIRQ;
    evtchn::BindInterdomain => evtchn::IOCTL_EVTCHN_BIND_INTERDOMAIN;
    evtchn::BindUnboundPort => evtchn::IOCTL_EVTCHN_BIND_UNBOUND_PORT;
    evtchn::Unbind => evtchn::IOCTL_EVTCHN_UNBIND;
    evtchn::Notify => evtchn::IOCTL_EVTCHN_NOTIFY;
    evtchn::RestrictDomid => evtchn::IOCTL_EVTCHN_RESTRICT_DOMID;
    gntdev::UnmapGrantRef => gntdev::IOCTL_GNTDEV_UNMAP_GRANT_REF;
    gntdev::UnmapNotify => gntdev::IOCTL_GNTDEV_SET_UNMAP_NOTIFY;
    gntalloc::DeallocGref => gntalloc::IOCTL_GNTALLOC_DEALLOC_GREF;
    gntalloc::UnmapNotify => gntalloc::IOCTL_GNTALLOC_SET_UNMAP_NOTIFY;
    privcmd::Restrict => privcmd::IOCTL_PRIVCMD_RESTRICT;
}

/// `ioctl(2)`: the result, which is not negative, or the errno.
///
/// # Safety
///
/// `arg` must be null, or valid for whatever the driver behind `fd` reads and writes for
/// `opcode`; what is there must not make the driver touch other memory of this process.
unsafe fn ioctl(
    fd: BorrowedFd<'_>,
    name: &'static str,
    opcode: Opcode,
    arg: *mut c_void,
) -> Result<c_int> {
    // SAFETY: the caller vouches for `arg`; `fd` is open for the duration of the borrow.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), opcode as libc::Ioctl, arg) };
    if r < 0 {
        Err(Error::os(name, io::Error::last_os_error()))
    } else {
        Ok(r)
    }
}

/// Issues a request whose argument the driver only reads.
fn set<A: Argument>(fd: impl AsFd, arg: &A) -> Result<c_int> {
    // SAFETY: by the contract of `Argument` the driver reads at most the `A` that `arg` points
    // to and writes nothing, so a pointer made from a shared reference will do. `fd` is that
    // driver's: all callers are methods of the device types below, each of which holds a
    // descriptor of its own node only.
    unsafe {
        ioctl(
            fd.as_fd(),
            A::NAME,
            A::OPCODE,
            ptr::from_ref(arg).cast_mut().cast(),
        )
    }
}

/// Refuses a page count that is zero or beyond [`MAX_PAGES`].
fn checked_count(op: &'static str, pages: usize) -> Result<u32> {
    if pages == 0 || pages > MAX_PAGES {
        return Err(Error::Invalid {
            op,
            what: "the number of pages",
            value: pages as u64,
        });
    }
    Ok(pages as u32)
}

/// An open `/dev/xen/evtchn`.
#[derive(Debug)]
pub struct Evtchn(File);

impl Evtchn {
    /// Opens the device, blocking or not as any file.
    ///
    /// # Errors
    ///
    /// What [`DevRoot::open_device`] says.
    pub fn open(root: &DevRoot) -> Result<Self> {
        root.open_device("evtchn").map(|fd| Self(fd.into()))
    }

    /// The open file, to read pending ports from and to write ports to unmask to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// A local port bound to a virtual interrupt.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn bind_virq(&self, virq: u32) -> Result<Port> {
        set(&self.0, &evtchn::BindVirq { virq }).map(port)
    }

    /// A local port bound to the port `remote` of domain `domain`.
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when the other side holds no such port open for us.
    pub fn bind_interdomain(&self, domain: DomId, remote: Port) -> Result<Port> {
        let arg = evtchn::BindInterdomain {
            remote_domain: domain.as_u16().into(),
            remote_port: remote.as_u32(),
        };
        set(&self.0, &arg).map(port)
    }

    /// A local port that `domain` may bind to.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn bind_unbound(&self, domain: DomId) -> Result<Port> {
        let arg = evtchn::BindUnboundPort {
            remote_domain: domain.as_u16().into(),
        };
        set(&self.0, &arg).map(port)
    }

    /// Closes a local port.
    ///
    /// # Errors
    ///
    /// The driver's; `ENOTCONN` when this file does not hold the port.
    pub fn unbind(&self, port: Port) -> Result<()> {
        set(
            &self.0,
            &evtchn::Unbind {
                port: port.as_u32(),
            },
        )
        .map(drop)
    }

    /// Sends an event through a local port.
    ///
    /// # Errors
    ///
    /// The driver's; `ENOTCONN` when this file does not hold the port.
    #[inline]
    pub fn notify(&self, port: Port) -> Result<()> {
        set(
            &self.0,
            &evtchn::Notify {
                port: port.as_u32(),
            },
        )
        .map(drop)
    }

    /// Empties the event buffer and clears its overflow.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn reset(&self) -> Result<()> {
        let (name, opcode) = ("IOCTL_EVTCHN_RESET", evtchn::IOCTL_EVTCHN_RESET);
        // SAFETY: the request has no argument; the descriptor is of /dev/xen/evtchn.
        unsafe { ioctl(self.0.as_fd(), name, opcode, ptr::null_mut()) }.map(drop)
    }

    /// Limits this file for good to binding interdomain to `domain`.
    ///
    /// # Errors
    ///
    /// The driver's; `EACCES` when it is limited already.
    pub fn restrict(&self, domain: DomId) -> Result<()> {
        set(&self.0, &evtchn::RestrictDomid { domid: domain }).map(drop)
    }
}

/// The port a bind returned, which is never negative.
fn port(n: c_int) -> Port {
    Port::new(n as u32)
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An open `/dev/xen/gntdev`.
#[derive(Debug)]
pub struct GntDev(OwnedFd);

impl GntDev {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// What [`DevRoot::open_device`] says.
    pub fn open(root: &DevRoot) -> Result<Self> {
        root.open_device("gntdev").map(Self)
    }

    /// Announces the pages `refs` of `domain`; the index returned is the offset to give mmap.
    /// Nothing is mapped, and no reference looked at, before that.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`]; else the driver's.
    pub fn map_grant_ref(&self, domain: DomId, refs: &[GrantRef]) -> Result<u64> {
        const NAME: &str = "IOCTL_GNTDEV_MAP_GRANT_REF";
        const HEAD: usize = size_of::<gntdev::MapGrantRefHead>();
        let count = checked_count(NAME, refs.len())?;
        // One argument: head and entries in one run of memory aligned for both.
        let words = (HEAD + size_of_val(refs) * 2) / size_of::<u64>();
        let mut arg = vec![0u64; words];
        let (head, entries) = arg.as_mut_bytes().split_at_mut(HEAD);
        let domid = domain.as_u16().into();
        for (slot, gref) in entries
            .chunks_exact_mut(size_of::<gntdev::GrantRefEntry>())
            .zip(refs)
        {
            let entry = gntdev::GrantRefEntry {
                domid,
                gref: gref.as_u32(),
            };
            slot.copy_from_slice(entry.as_bytes());
        }
        head.copy_from_slice(
            gntdev::MapGrantRefHead {
                count,
                pad: 0,
                index: 0,
            }
            .as_bytes(),
        );
        // SAFETY:
        // - the driver reads the head and `count` entries and writes `index` in the head, all
        //   within `arg`, which holds exactly that and is at least the 24 bytes the driver
        //   copies first because `count >= 1`;
        // - `arg` is borrowed mutably and used through this pointer only, during the call;
        // - head and entries are values; the descriptor is of /dev/xen/gntdev.
        unsafe {
            ioctl(
                self.0.as_fd(),
                NAME,
                gntdev::IOCTL_GNTDEV_MAP_GRANT_REF,
                arg.as_mut_ptr().cast(),
            )
        }?;
        // The index is the second word: offset 8 of the head (tests/layout.rs).
        Ok(arg[1])
    }

    /// Gives up the pages of an index. Those still mapped stay until they are unmapped.
    ///
    /// # Errors
    ///
    /// The driver's; `ENOENT` when index and count are not those of one announcement.
    pub fn unmap_grant_ref(&self, index: u64, pages: usize) -> Result<()> {
        let count = checked_count("IOCTL_GNTDEV_UNMAP_GRANT_REF", pages)?;
        set(
            &self.0,
            &gntdev::UnmapGrantRef {
                index,
                count,
                pad: 0,
            },
        )
        .map(drop)
    }

    /// Says what the kernel does when the pages around offset `index` are unmapped; see
    /// [`gntdev::UnmapNotify`].
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when the port is not bound through an open `/dev/xen/evtchn`.
    pub fn set_unmap_notify(&self, index: u64, clear: bool, event: Option<Port>) -> Result<()> {
        let (action, event_channel_port) = unmap_action(clear, event);
        set(
            &self.0,
            &gntdev::UnmapNotify {
                index,
                action,
                event_channel_port,
            },
        )
        .map(drop)
    }
}

/// The `action` and `event_channel_port` of an unmap notification.
pub(crate) fn unmap_action(clear: bool, event: Option<Port>) -> (u32, u32) {
    let mut action = 0;
    if clear {
        action |= gntdev::UNMAP_NOTIFY_CLEAR_BYTE;
    }
    if event.is_some() {
        action |= gntdev::UNMAP_NOTIFY_SEND_EVENT;
    }
    (action, event.map_or(0, Port::as_u32))
}

impl AsFd for GntDev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An open `/dev/xen/gntalloc`.
#[derive(Debug)]
pub struct GntAlloc(OwnedFd);

impl GntAlloc {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// What [`DevRoot::open_device`] says.
    pub fn open(root: &DevRoot) -> Result<Self> {
        root.open_device("gntalloc").map(Self)
    }

    /// Makes `pages` zeroed pages and grants them to `domain`: the offset to give mmap, and a
    /// reference per page.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`]; else the driver's: `ENOSPC`
    /// at the limit of the module or of the grant table.
    pub fn alloc_gref(
        &self,
        domain: DomId,
        writable: bool,
        pages: usize,
    ) -> Result<(u64, Box<[GrantRef]>)> {
        const NAME: &str = "IOCTL_GNTALLOC_ALLOC_GREF";
        const HEAD: usize = size_of::<gntalloc::AllocGrefHead>();
        let count = checked_count(NAME, pages)?;
        let flags = if writable {
            gntalloc::GNTALLOC_FLAG_WRITABLE
        } else {
            0
        };
        // Rounded up to whole words, as C's struct is.
        let words = (HEAD + pages * size_of::<GrantRef>()).div_ceil(size_of::<u64>());
        let mut arg = vec![0u64; words];
        let head = gntalloc::AllocGrefHead {
            domid: domain,
            flags,
            count,
            index: 0,
        };
        arg.as_mut_bytes()[..HEAD].copy_from_slice(head.as_bytes());
        // SAFETY:
        // - the driver reads the head and writes `index` and `count` references, all within
        //   `arg`, which has room for them and is at least the 24 bytes the driver copies first
        //   because `count >= 1`;
        // - `arg` is borrowed mutably and used through this pointer only, during the call;
        // - the head is values; the descriptor is of /dev/xen/gntalloc.
        unsafe {
            ioctl(
                self.0.as_fd(),
                NAME,
                gntalloc::IOCTL_GNTALLOC_ALLOC_GREF,
                arg.as_mut_ptr().cast(),
            )
        }?;
        let refs = arg.as_bytes()[HEAD..]
            .chunks_exact(size_of::<GrantRef>())
            .take(pages)
            .filter_map(|bytes| GrantRef::read_from_bytes(bytes).ok())
            .collect();
        // The index is the second word: offset 8 of the head (tests/layout.rs).
        Ok((arg[1], refs))
    }

    /// Gives up the pages of an index. Those still mapped, here or by the peer, stay until they
    /// are unmapped.
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when index and count are not pages of this file.
    pub fn dealloc_gref(&self, index: u64, pages: usize) -> Result<()> {
        let count = checked_count("IOCTL_GNTALLOC_DEALLOC_GREF", pages)?;
        set(
            &self.0,
            &gntalloc::DeallocGref {
                index,
                count,
                pad: 0,
            },
        )
        .map(drop)
    }

    /// Says what the kernel does when the page around offset `index` is given up; see
    /// [`gntalloc::UnmapNotify`].
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when the port is not bound through an open `/dev/xen/evtchn`.
    pub fn set_unmap_notify(&self, index: u64, clear: bool, event: Option<Port>) -> Result<()> {
        let (action, event_channel_port) = unmap_action(clear, event);
        set(
            &self.0,
            &gntalloc::UnmapNotify {
                index,
                action,
                event_channel_port,
            },
        )
        .map(drop)
    }
}

impl AsFd for GntAlloc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An open `/dev/xen/privcmd`. [`crate::privcmd`] has the typed operations.
#[derive(Debug)]
pub struct PrivCmd(OwnedFd);

impl PrivCmd {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// What [`DevRoot::open_device`] says.
    pub fn open(root: &DevRoot) -> Result<Self> {
        root.open_device("privcmd").map(Self)
    }

    /// Makes hypercall `op`, and returns what it returned, which is not negative.
    ///
    /// # Errors
    ///
    /// The hypercall's errno, or the driver's: `EPERM` from a restricted file, or in a domain
    /// whose kernel refuses privileged hypercalls.
    ///
    /// # Safety
    ///
    /// Arguments that are addresses must be valid, for as long as and for what that hypercall
    /// reads and writes, and the hypercall itself must not change memory this program relies
    /// on. Memory that Xen writes must not be reachable by a live reference. An address should
    /// be in a [`HypercallBuffer`]: Xen does not fault pages in, so the call fails with
    /// `EFAULT` when ordinary memory happens not to be mapped.
    #[doc(alias = "IOCTL_PRIVCMD_HYPERCALL")]
    pub unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> Result<c_int> {
        let mut call = privcmd::Hypercall { op, arg };
        // SAFETY: the driver reads one `Hypercall`, which `call` is; the caller vouches for the
        // addresses in it; the descriptor is of /dev/xen/privcmd.
        unsafe {
            ioctl(
                self.0.as_fd(),
                "IOCTL_PRIVCMD_HYPERCALL",
                privcmd::IOCTL_PRIVCMD_HYPERCALL,
                ptr::from_mut(&mut call).cast(),
            )
        }
    }

    /// `xen_version(XENVER_version)`: `(major, minor)`.
    ///
    /// # Errors
    ///
    /// As [`hypercall`](Self::hypercall).
    pub fn xenver_version(&self) -> Result<(u16, u16)> {
        let arg = [privcmd::XENVER_VERSION, 0, 0, 0, 0];
        // SAFETY: this operation takes no address (xen/include/public/version.h: "arg == NULL").
        let v = unsafe { self.hypercall(privcmd::HYPERVISOR_XEN_VERSION, arg) }? as u32;
        Ok(((v >> 16) as u16, v as u16))
    }

    /// `xen_version(cmd)` for one of the two operations that write text: the bytes Xen wrote,
    /// which end at the first zero.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an operation other than [`privcmd::XENVER_EXTRAVERSION`] and
    /// [`privcmd::XENVER_CAPABILITIES`] or a buffer too small for it; else as
    /// [`hypercall`](Self::hypercall).
    pub fn xenver_text<'b>(&self, cmd: u64, buffer: &'b mut HypercallBuffer) -> Result<&'b [u8]> {
        const OP: &str = "xen_version";
        let len = match cmd {
            privcmd::XENVER_EXTRAVERSION => privcmd::XEN_EXTRAVERSION_LEN,
            privcmd::XENVER_CAPABILITIES => privcmd::XEN_CAPABILITIES_INFO_LEN,
            _ => {
                return Err(Error::Invalid {
                    op: OP,
                    what: "the operation",
                    value: cmd,
                });
            }
        };
        if buffer.len() < len {
            let value = buffer.len() as u64;
            return Err(Error::Invalid {
                op: OP,
                what: "the buffer's length",
                value,
            });
        }
        let arg = [cmd, buffer.as_ptr().as_ptr() as u64, 0, 0, 0];
        // SAFETY: this operation writes `len` bytes at its second argument
        // (xen/include/public/version.h) and nothing else; the buffer has that many, and is
        // borrowed mutably, so no reference into it is live.
        unsafe { self.hypercall(privcmd::HYPERVISOR_XEN_VERSION, arg) }?;
        let bytes = &buffer.bytes()[..len];
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(len);
        Ok(&bytes[..end])
    }

    /// Limits this file for good to operations on `domain`.
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when it is limited to another domain already.
    pub fn restrict(&self, domain: DomId) -> Result<()> {
        set(&self.0, &privcmd::Restrict { domid: domain }).map(drop)
    }
}

impl AsFd for PrivCmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_the_c_name_of_the_request() {
        assert_eq!(<evtchn::Notify as Argument>::NAME, "IOCTL_EVTCHN_NOTIFY");
        let null = DevRoot::at("/dev").open_device("null").unwrap();
        let e = set(&null, &evtchn::Notify { port: 1 }).unwrap_err();
        assert_eq!(e.errno(), Some(libc::ENOTTY));
        assert!(e.to_string().starts_with("IOCTL_EVTCHN_NOTIFY: "), "{e}");
    }

    #[test]
    fn page_counts_are_bounded_before_anything_is_allocated() {
        for pages in [0, MAX_PAGES + 1, usize::MAX] {
            assert!(
                matches!(checked_count("x", pages), Err(Error::Invalid { .. })),
                "{pages}"
            );
        }
        assert_eq!(checked_count("x", MAX_PAGES).unwrap(), 1 << 16);
    }

    #[test]
    fn both_unmap_actions_go_into_one_request() {
        assert_eq!(unmap_action(true, Some(Port::new(7))), (3, 7));
        assert_eq!(unmap_action(true, None), (1, 0));
        assert_eq!(unmap_action(false, Some(Port::new(7))), (2, 7));
        assert_eq!(unmap_action(false, None), (0, 0));
    }
}
