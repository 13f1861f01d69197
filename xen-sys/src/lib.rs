//! Xen's ABI types, the `/dev/xen` device layer, privcmd and the handle from which every crate
//! opens its objects.
//!
//! Most programs need three things from here: [`Xen`] to open the other crates' objects from, the
//! identifiers [`DomId`], [`Port`] and [`GrantRef`], and [`Error`]. The rest is the layer on which
//! the sibling crates are built.
//!
//! ```text
//!   xen-evtchn   xen-gnttab   xen-store          safe code, no ioctl, no pointer
//!        \           |           /
//!         Xen ──> Host ──> DevRoot                which host; where the devices are
//!                    |
//!         ioctl (the one ioctl(2))   mmap (the one mmap(2))
//!                    |
//!                 abi (layouts and opcodes, checked against the C headers)
//! ```
//!
//! # From C names to ours
//!
//! | C | here |
//! |---|---|
//! | `domid_t`, `evtchn_port_t`, `grant_ref_t` | [`DomId`], [`Port`], [`GrantRef`] |
//! | `IOCTL_EVTCHN_*` and their structs | [`abi::evtchn`], issued by [`ioctl::Evtchn`] |
//! | `IOCTL_GNTDEV_*` | [`abi::gntdev`], issued by [`ioctl::GntDev`] |
//! | `IOCTL_GNTALLOC_*` | [`abi::gntalloc`], issued by [`ioctl::GntAlloc`] |
//! | `IOCTL_PRIVCMD_*` | [`abi::privcmd`], issued by [`ioctl::PrivCmd`] |
//! | hypercalls' structs | [`abi::hypercall`], [`abi::version`], [`abi::domctl`], [`abi::sysctl`], [`abi::dm_op`] |
//! | `vm_event_st` and what is in it | [`abi::vm_event`], read and written by [`monitor::Ring`] |
//! | `xencall_open`, `xc_interface_open` | [`privcmd::Privcmd`] |
//! | `xencall1` to `xencall5`, `xencall_alloc_buffer` | [`privcmd::Privcmd::hypercall`], [`privcmd::Privcmd::buffer`] |
//! | `xendevicemodel_open` | [`device_model::DeviceModel`] |
//! | `xc_version`, `xc_domain_getinfolist`, ... | [`privcmd::Privcmd::xen_version`], [`privcmd::Privcmd::domains`], ... |
//!
//! # Example
//!
//! ```no_run
//! use xen_sys::{Xen, privcmd::Privcmd};
//!
//! let xen = Xen::open()?;
//! println!("Xen {}", Privcmd::open(&xen)?.xen_version()?);
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! # Fork
//!
//! Every descriptor is close-on-exec and every mapping is left out of a forked child
//! (`MADV_DONTFORK`). A child that continues without exec must open its own [`Xen`].

pub mod abi;
pub mod device_model;
mod devices;
mod error;
mod host;
pub mod hvm_save;
mod ids;
pub mod ioctl;
pub mod mmap;
pub mod monitor;
pub mod privcmd;
#[cfg(feature = "sim")]
pub mod sim;

pub use devices::DevRoot;
pub use error::{Error, MachineResource, Result};
#[doc(hidden)]
pub use host::Host;
pub use host::Xen;
pub use ids::{DomId, GrantRef, ParseIdError, PciFunction, Port, Virq};

/// Bytes in a page, the unit of sharing between domains.
///
/// Xen's grant tables share 4096-byte frames on every architecture, whatever page size the
/// kernel of a domain uses for itself (`XEN_PAGE_SIZE` in Linux's `xen/page.h`).
#[doc(alias = "XEN_PAGE_SIZE")]
#[doc(alias = "XC_PAGE_SIZE")]
pub const PAGE_SIZE: usize = 4096;

// The handle is shared freely between threads.
const _: fn() = || {
    fn ok<T: Send + Sync>() {}
    ok::<Xen>();
    ok::<Error>();
    fn clone<T: Clone>() {}
    clone::<Error>();
};

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
