//! The one `ioctl(2)`, and every request of Xen's drivers as a typed, safe method.
//!
//! A type per device owns its descriptor; a method per request takes and returns plain values.
//! So the crates above contain no pointer and no opcode.
//!
//! | device | type | requests |
//! |---|---|---|
//! | `evtchn` | [`Evtchn`] | bind, unbind, notify, reset, restrict |
//! | `gntdev` | [`GntDev`] | map, unmap, set_unmap_notify, grant_copy, dmabuf_* |
//! | `gntalloc` | [`GntAlloc`] | alloc, dealloc, set_unmap_notify |
//! | `privcmd` | [`PrivCmd`] | hypercall, dm_op, restrict, mmap, irqfd, ioeventfd |
//!
//! ```no_run
//! use xen_sys::{Xen, ioctl::GntDev};
//!
//! let xen = Xen::open()?;
//! if let Some(root) = xen.dev_root() {
//!     let gntdev = GntDev::open(root)?;
//! }
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! Each request waits for the hypervisor only, except [`GntDev::dmabuf_wait_released`].
//!
//! # Safety
//!
//! This file is not safe code because `ioctl` hands the kernel an address. The methods are safe to
//! call, and the modules below are safe code, because:
//!
//! * a request reaches the driver whose header its struct follows: a `Node` of a `Driver` is
//!   made only by opening that driver's node in `/dev/xen`, or from a descriptor of the same
//!   device, and a request names its driver as a type;
//! * what the driver may read and write is stated by the request's type (`Argument`,
//!   `Exchange`, both unsafe to implement and implemented only here), and is never more than
//!   the memory handed over;
//! * the structs hold values, not addresses. The exceptions are privcmd's (`ioctl/privcmd.rs`) and
//!   the segments of a grant copy (`ioctl/copy.rs`).

#![allow(unsafe_code)]

mod copy;
mod evtchn;
mod gntalloc;
mod gntdev;
pub(crate) mod privcmd;

use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::ptr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(feature = "sim")]
pub use self::copy::CopyEnds;
pub use self::copy::{CopySegment, GrantStatus, GrantedBytes};
pub use self::evtchn::Evtchn;
pub use self::gntalloc::GntAlloc;
pub use self::gntdev::GntDev;
#[cfg(feature = "sim")]
pub(crate) use self::gntdev::unmap_action;
pub use self::privcmd::PrivCmd;
use crate::abi::Opcode;
use crate::{DevRoot, Error, GrantRef, Result, abi};

/// The most pages one share or one mapping may have: 256 MiB.
///
/// Limits how much memory a caller's number can make this crate allocate. The drivers' own limits
/// (`limit` of xen-gntalloc and xen-gntdev) are lower unless an administrator raised them.
pub const MAX_PAGES: usize = 1 << 16;

/// A driver, as a type.
trait Driver {
    /// The name of its node in `/dev/xen`.
    const NODE: &'static str;
}

/// An open device node of one driver.
#[derive(Debug)]
struct Node<D> {
    file: File,
    driver: PhantomData<fn(D)>,
}

impl<D: Driver> Node<D> {
    fn open(root: &DevRoot) -> Result<Self> {
        let file = root.open_device(D::NODE)?.into();
        Ok(Self {
            file,
            driver: PhantomData,
        })
    }

    /// Takes a descriptor that was opened elsewhere, if it is of the same device that
    /// [`open`](Self::open) would open.
    fn adopt(root: &DevRoot, fd: OwnedFd) -> Result<Self> {
        let file = File::from(fd);
        let device = |file: &File| {
            let metadata = file.metadata().map_err(|e| Error::os(D::NODE, e))?;
            let special = metadata.file_type().is_char_device();
            Ok(special.then_some(metadata.rdev()))
        };
        let theirs = device(&file)?;
        if theirs.is_none() || theirs != device(&Self::open(root)?.file)? {
            let value = theirs.unwrap_or_default();
            return Err(Error::Invalid {
                op: D::NODE,
                what: "the descriptor's device",
                value,
            });
        }
        Ok(Self {
            file,
            driver: PhantomData,
        })
    }
}

/// An argument the driver reads and does not write.
///
/// # Safety
///
/// `Driver` must, for `OPCODE`, read at most `size_of::<Self>()` bytes at the address it is
/// given, write none, and find no address in them.
unsafe trait Argument: Copy {
    type Driver: Driver;
    const OPCODE: Opcode;
    const NAME: &'static str;
}

/// The head of an argument of variable length, which the driver reads and writes.
///
/// # Safety
///
/// `Driver` must, for `OPCODE`, read and write at most `size_of::<Self>() + self.tail()` bytes at
/// the address it is given, rounded up to a multiple of eight, and find no address in them.
unsafe trait Exchange: Copy + IntoBytes + FromBytes + Immutable + KnownLayout {
    type Driver: Driver;
    const OPCODE: Opcode;
    const NAME: &'static str;

    /// Returns how many bytes follow the head.
    fn tail(&self) -> usize;
}

macro_rules! arguments {
    ($($driver:ty, $module:ident { $($type:ident => $opcode:ident;)* })*) => { $( $(
        // SAFETY: the type is the struct of the header that its module cites, the opcode is the
        // one defined next to it, the struct's fields are all values, and the driver only calls
        // `copy_from_user` on it (drivers/xen/{evtchn,gntdev,gntalloc,privcmd}.c).
        unsafe impl Argument for abi::$module::$type {
            type Driver = $driver;
            const OPCODE: Opcode = abi::$module::$opcode;
            const NAME: &'static str = stringify!($opcode);
        }
    )* )* };
}

arguments! {
    evtchn::EvtchnDriver, evtchn {
        BindVirq => IOCTL_EVTCHN_BIND_VIRQ;
        BindInterdomain => IOCTL_EVTCHN_BIND_INTERDOMAIN;
        BindUnboundPort => IOCTL_EVTCHN_BIND_UNBOUND_PORT;
        Unbind => IOCTL_EVTCHN_UNBIND;
        Notify => IOCTL_EVTCHN_NOTIFY;
        RestrictDomid => IOCTL_EVTCHN_RESTRICT_DOMID;
    }
    gntdev::GntDevDriver, gntdev {
        UnmapGrantRef => IOCTL_GNTDEV_UNMAP_GRANT_REF;
        UnmapNotify => IOCTL_GNTDEV_SET_UNMAP_NOTIFY;
        DmabufExpWaitReleased => IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED;
        DmabufImpRelease => IOCTL_GNTDEV_DMABUF_IMP_RELEASE;
    }
    gntalloc::GntAllocDriver, gntalloc {
        DeallocGref => IOCTL_GNTALLOC_DEALLOC_GREF;
        UnmapNotify => IOCTL_GNTALLOC_SET_UNMAP_NOTIFY;
    }
    privcmd::PrivCmdDriver, privcmd {
        Restrict => IOCTL_PRIVCMD_RESTRICT;
    }
}

// SAFETY: `gntdev_ioctl_map_grant_ref` reads the head and `count` entries and writes the head.
// It copies 24 bytes first, one entry with the head; `checked_count` sees to it that there is
// one. Domain numbers and references are values.
unsafe impl Exchange for abi::gntdev::MapGrantRefHead {
    type Driver = gntdev::GntDevDriver;
    const OPCODE: Opcode = abi::gntdev::IOCTL_GNTDEV_MAP_GRANT_REF;
    const NAME: &'static str = "IOCTL_GNTDEV_MAP_GRANT_REF";

    fn tail(&self) -> usize {
        self.count as usize * size_of::<abi::gntdev::GrantRefEntry>()
    }
}

// SAFETY: `gntdev_ioctl_dmabuf_exp_from_refs` reads 20 bytes, which is the head and one reference,
// writes those back, and reads `count` references. `checked_count` sees to it that there is one.
// They are values.
unsafe impl Exchange for abi::gntdev::DmabufExpFromRefsHead {
    type Driver = gntdev::GntDevDriver;
    const OPCODE: Opcode = abi::gntdev::IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS;
    const NAME: &'static str = "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS";

    fn tail(&self) -> usize {
        self.count as usize * size_of::<GrantRef>()
    }
}

// SAFETY: `gntdev_ioctl_dmabuf_imp_to_refs` reads 20 bytes, which is the head and one reference,
// and writes `count` references. `checked_count` sees to it that there is one. They are values.
unsafe impl Exchange for abi::gntdev::DmabufImpToRefsHead {
    type Driver = gntdev::GntDevDriver;
    const OPCODE: Opcode = abi::gntdev::IOCTL_GNTDEV_DMABUF_IMP_TO_REFS;
    const NAME: &'static str = "IOCTL_GNTDEV_DMABUF_IMP_TO_REFS";

    fn tail(&self) -> usize {
        self.count as usize * size_of::<GrantRef>()
    }
}

// SAFETY: `gntalloc_ioctl_alloc` reads 24 bytes, which is the head and one reference rounded up
// to a multiple of eight, writes those back, and writes `count` references. `checked_count`
// sees to it that there is one. They are values.
unsafe impl Exchange for abi::gntalloc::AllocGrefHead {
    type Driver = gntalloc::GntAllocDriver;
    const OPCODE: Opcode = abi::gntalloc::IOCTL_GNTALLOC_ALLOC_GREF;
    const NAME: &'static str = "IOCTL_GNTALLOC_ALLOC_GREF";

    fn tail(&self) -> usize {
        self.count as usize * size_of::<u32>()
    }
}

/// Calls `ioctl(2)`: returns the result, which is not negative, or the errno.
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
    // SAFETY: as for this function.
    let result = unsafe { long_ioctl(fd, name, opcode, arg) }?;
    // The drivers' own requests have results of 32 bits; a hypercall's is `call`'s.
    Ok(result as c_int)
}

/// [`ioctl`], with the whole result, of which `ioctl(3)` returns 32 bits.
///
/// # Safety
///
/// As for [`ioctl`].
#[cfg(target_os = "linux")]
unsafe fn long_ioctl(
    fd: BorrowedFd<'_>,
    name: &'static str,
    opcode: Opcode,
    arg: *mut c_void,
) -> Result<c_long> {
    let opcode = libc::c_ulong::from(opcode);
    // SAFETY: the caller vouches for `arg`; `fd` is open for the duration of the borrow.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), opcode, arg) };
    if result == -1 {
        Err(Error::os(name, io::Error::last_os_error()))
    } else {
        Ok(result)
    }
}

/// The requests are Linux's; other systems have others of these numbers.
#[cfg(not(target_os = "linux"))]
unsafe fn long_ioctl(
    _: BorrowedFd<'_>,
    name: &'static str,
    _: Opcode,
    _: *mut c_void,
) -> Result<c_long> {
    Err(Error::os(name, io::Error::from_raw_os_error(libc::ENOSYS)))
}

/// Issues a request whose argument the driver only reads.
fn set<A: Argument>(node: &Node<A::Driver>, arg: &A) -> Result<c_int> {
    // SAFETY: the node is of the argument's driver, which by the contract of `Argument` reads at
    // most the `A` that `arg` points to and writes nothing, so a pointer made from a shared
    // reference will do.
    unsafe {
        ioctl(
            node.file.as_fd(),
            A::NAME,
            A::OPCODE,
            ptr::from_ref(arg).cast_mut().cast(),
        )
    }
}

/// Issues a request without an argument.
fn set_nothing<D: Driver>(node: &Node<D>, name: &'static str, opcode: Opcode) -> Result<()> {
    // SAFETY: there is no argument; a driver that expected one would find no memory at null and
    // fail with EFAULT.
    unsafe { ioctl(node.file.as_fd(), name, opcode, ptr::null_mut()) }.map(drop)
}

/// Issues a request of variable length, after `fill` wrote what follows the head. Returns the
/// head and what follows it as the driver left them.
fn exchange<H: Exchange>(
    node: &Node<H::Driver>,
    head: H,
    fill: impl FnOnce(&mut [u8]),
) -> Result<(H, Vec<u8>)> {
    let (start, end) = (size_of::<H>(), size_of::<H>() + head.tail());
    // Whole words, so that it is aligned for any field and rounded up as C's struct is.
    let mut arg = vec![0u64; end.div_ceil(size_of::<u64>())];
    let bytes = arg.as_mut_bytes();
    bytes[..start].copy_from_slice(head.as_bytes());
    fill(&mut bytes[start..end]);
    #[cfg(test)]
    if let Some(answer) = tests::fake_driver(H::NAME, H::OPCODE, bytes) {
        answer?;
        let head = H::read_from_bytes(&bytes[..start]).unwrap_or(head);
        return Ok((head, bytes[start..end].to_vec()));
    }
    // SAFETY:
    // - the node is of the head's driver, which by the contract of `Exchange` reads and writes at
    //   most `end` bytes rounded up to words: all of `arg`. The length is of `head`, a copy of
    //   ours, which is what was written there;
    // - `arg` is borrowed mutably and used through this pointer only, during the call.
    unsafe {
        ioctl(
            node.file.as_fd(),
            H::NAME,
            H::OPCODE,
            arg.as_mut_ptr().cast(),
        )
    }?;
    let bytes = arg.as_bytes();
    let head = H::read_from_bytes(&bytes[..start]).unwrap_or(head);
    Ok((head, bytes[start..end].to_vec()))
}

/// Makes a dma-buf of granted pages; returns the descriptor that the driver made for it.
fn export_dmabuf(
    node: &Node<gntdev::GntDevDriver>,
    head: abi::gntdev::DmabufExpFromRefsHead,
    refs: &[GrantRef],
) -> Result<OwnedFd> {
    let (head, _) = exchange(node, head, |tail| tail.copy_from_slice(refs.as_bytes()))?;
    // SAFETY: the driver has put a file into this process's table under this number for this
    // request (dma_buf_fd in dmabuf_exp_from_pages), so it is open, and nothing else has it yet.
    Ok(unsafe { OwnedFd::from_raw_fd(head.fd as c_int) })
}

/// Reads the references that a driver wrote.
fn references(bytes: &[u8]) -> Box<[GrantRef]> {
    bytes
        .chunks_exact(size_of::<GrantRef>())
        .filter_map(|bytes| GrantRef::read_from_bytes(bytes).ok())
        .collect()
}

/// Reads a module's parameter as an unsigned number, as the drivers compare it.
fn parameter(path: &'static str) -> Result<u32> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::os(path, e))?;
    let number: std::result::Result<i64, _> = text.trim().parse();
    let invalid = |_| Error::os(path, io::ErrorKind::InvalidData.into());
    number.map(|number| number as u32).map_err(invalid)
}

/// Fails for a page count that is zero or beyond [`MAX_PAGES`].
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

#[cfg(test)]
mod tests;
