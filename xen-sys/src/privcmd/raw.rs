//! Arbitrary hypercalls: the one `unsafe` entry point.
//!
//! # Safety
//!
//! This file is not safe code because a hypercall may read and write any memory that its arguments
//! name. It only passes the caller's promise on, from a public `unsafe fn` to the one that makes
//! the call.

#![allow(unsafe_code)]

use super::{MulticallEntry, Privcmd};
use crate::Result;
use crate::ioctl::privcmd::multicall_buffer;

/// Arbitrary hypercalls.
impl Privcmd {
    /// Makes an arbitrary hypercall, and returns its result. Arguments that the call does not have
    /// are 0.
    ///
    /// Blocks the thread until the hypervisor has finished, and cannot be interrupted: no signal
    /// and no dropped future ends the call early.
    ///
    /// ```no_run
    /// use xen_sys::{Xen, privcmd::Privcmd};
    ///
    /// let privcmd = Privcmd::open(&Xen::open()?)?;
    /// let mut buffer = privcmd.buffer(16)?;
    /// let address = buffer.as_ptr().as_ptr() as u64;
    /// // xen_version(XENVER_extraversion, char[16]): xen/include/public/version.h.
    /// // SAFETY: the call writes 16 bytes at `address`, where the buffer has a page, which nobody
    /// // looks at before the call has returned.
    /// unsafe { privcmd.hypercall(17, [1, address, 0, 0, 0]) }?;
    /// println!("{:?}", buffer.bytes()[..16].utf8_chunks().next());
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::Error::Os): the hypercall's errno, or the driver's, such as `EPERM` in
    /// a domain whose kernel refuses hypercalls. `EFAULT` can mean that memory was not mapped for a
    /// moment, which cannot happen in a [`buffer`](Self::buffer) from `/dev/xen/hypercall`.
    /// [`Error::Unsupported`](crate::Error::Unsupported) on a simulated host.
    ///
    /// # Safety
    ///
    /// Arguments that are addresses must be valid for what that hypercall reads and writes, until
    /// it returns, and addresses it keeps for as long as it keeps them. Memory that Xen writes must
    /// not be reachable by a live reference. The hypercall itself must not change memory that this
    /// program relies on.
    ///
    /// An address should be in a [`buffer`](Self::buffer): Xen does not fault pages in, so the call
    /// fails when ordinary memory happens not to be mapped.
    #[doc(alias = "IOCTL_PRIVCMD_HYPERCALL")]
    #[doc(alias = "xencall0")]
    #[doc(alias = "xencall1")]
    #[doc(alias = "xencall2")]
    #[doc(alias = "xencall3")]
    #[doc(alias = "xencall4")]
    #[doc(alias = "xencall5")]
    #[doc(alias = "xencall2L")]
    pub unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> Result<i64> {
        let dev = self.backend().device("hypercall")?;
        // SAFETY: the caller's promise.
        unsafe { dev.hypercall(op, arg) }
    }

    /// Makes several hypercalls in one, in their order. The result of each call is in
    /// [`result`](MulticallEntry::result) of its entry, as Xen's negative errno if it failed; the
    /// calls after it are made all the same.
    ///
    /// # Errors
    ///
    /// As [`hypercall`](Self::hypercall); [`Error::Invalid`](crate::Error::Invalid) for more than
    /// 16384 calls.
    ///
    /// # Safety
    ///
    /// As [`hypercall`](Self::hypercall), for each of the calls.
    #[doc(alias = "multicall_entry")]
    pub unsafe fn multicall(&self, calls: &mut [MulticallEntry]) -> Result<()> {
        let dev = self.backend().device("multicall")?;
        let len = multicall_buffer(calls.len()).max(1);
        let mut buffer = self.backend().buffer(len)?;
        // SAFETY: the caller's promise.
        unsafe { dev.multicall(&mut buffer, calls) }
    }
}
