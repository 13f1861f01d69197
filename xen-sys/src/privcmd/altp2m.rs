//! Alternative views of a guest's memory: `hvm_op(altp2m)`.
//!
//! # Safety
//!
//! This file is not safe code because [`Altp2m::change_gfn`] could replace this program's own
//! memory by other memory. It passes the caller's promise on; the operation itself holds no
//! address.

#![allow(unsafe_code)]

use super::Privcmd;
use crate::abi::altp2m as abi;
use crate::ioctl::privcmd::Altp2mOperation;
use crate::{DomId, Error, Result};

/// The accesses to a guest frame that raise no event.
#[doc(alias = "xenmem_access_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryAccess {
    /// Nothing.
    #[doc(alias = "XENMEM_access_n")]
    None,
    /// Reading.
    #[doc(alias = "XENMEM_access_r")]
    R,
    /// Writing.
    #[doc(alias = "XENMEM_access_w")]
    W,
    /// Reading and writing.
    #[doc(alias = "XENMEM_access_rw")]
    Rw,
    /// Executing.
    #[doc(alias = "XENMEM_access_x")]
    X,
    /// Reading and executing.
    #[doc(alias = "XENMEM_access_rx")]
    Rx,
    /// Writing and executing.
    #[doc(alias = "XENMEM_access_wx")]
    Wx,
    /// Everything.
    #[doc(alias = "XENMEM_access_rwx")]
    Rwx,
    /// Reading and executing, until a write makes it [`Rw`](Self::Rw).
    #[doc(alias = "XENMEM_access_rx2rw")]
    RxToRw,
    /// Nothing, until an access makes it [`Rwx`](Self::Rwx) and raises an event that does not pause
    /// the virtual CPU.
    #[doc(alias = "XENMEM_access_n2rwx")]
    NoneToRwx,
    /// Reading; the processor's own walks of page tables may write. Xen 4.20 and later, on
    /// processors that support it.
    #[doc(alias = "XENMEM_access_r_pw")]
    RPagingWrite,
    /// The default of the domain or of the view. It has another number from Xen 4.20 on.
    #[doc(alias = "XENMEM_access_default")]
    Default,
    /// An access that is unknown to this crate, by its number.
    Other(u8),
}

/// The accesses whose numbers never changed, from 0 on.
const ACCESSES: [MemoryAccess; 10] = [
    MemoryAccess::None,
    MemoryAccess::R,
    MemoryAccess::W,
    MemoryAccess::Rw,
    MemoryAccess::X,
    MemoryAccess::Rx,
    MemoryAccess::Wx,
    MemoryAccess::Rwx,
    MemoryAccess::RxToRw,
    MemoryAccess::NoneToRwx,
];

impl MemoryAccess {
    /// Returns the number in a Xen of version `xen`; `None` if there is none.
    pub(crate) fn number(self, xen: (u16, u16)) -> Option<u8> {
        match (self, xen >= (4, 20)) {
            (Self::Default, false) => Some(abi::XENMEM_ACCESS_DEFAULT_4_17),
            (Self::Default, true) => Some(abi::XENMEM_ACCESS_DEFAULT),
            (Self::RPagingWrite, false) => None,
            (Self::RPagingWrite, true) => Some(abi::XENMEM_ACCESS_R_PW),
            (Self::Other(number), _) => Some(number),
            (access, _) => {
                let number = ACCESSES.iter().position(|&a| a == access)?;
                u8::try_from(number).ok()
            }
        }
    }

    /// Returns the access that has `number` in a Xen of version `xen`.
    pub(crate) fn from_number(number: u8, xen: (u16, u16)) -> Self {
        match (ACCESSES.get(usize::from(number)), number, xen >= (4, 20)) {
            (Some(&access), ..) => access,
            (_, abi::XENMEM_ACCESS_DEFAULT_4_17, false) => Self::Default,
            (_, abi::XENMEM_ACCESS_R_PW, true) => Self::RPagingWrite,
            (_, abi::XENMEM_ACCESS_DEFAULT, true) => Self::Default,
            (_, other, _) => Self::Other(other),
        }
    }
}

/// A view of a guest's memory, by its number in that guest. View 0 is the guest's own memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(u16);

impl ViewId {
    /// The guest's own memory map, which cannot be destroyed.
    pub const HOST: Self = Self(0);

    /// Creates the view numbered `view`.
    #[must_use]
    pub const fn new(view: u16) -> Self {
        Self(view)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

/// The alternative views of one HVM guest's memory, from [`Privcmd::altp2m`].
///
/// The guest's toolstack must allow them first: `altp2m` in xl.cfg, which sets
/// [`HvmParam::ALTP2M`](super::HvmParam::ALTP2M). They need Intel's EPT; on other hardware every
/// operation fails with [`Error::Unsupported`].
///
/// All calls also fail with [`Error::Unsupported`] while the views are off, [`Error::NotPermitted`]
/// where Xen refuses them, [`Error::HypercallsRefused`] where the kernel does, [`Error::NoDomain`],
/// and `EINVAL` without the toolstack's permission.
#[derive(Clone, Copy, Debug)]
pub struct Altp2m<'p> {
    privcmd: &'p Privcmd,
    domain: DomId,
}

impl Privcmd {
    /// Returns the alternative views of a guest's memory. Sends no request to Xen.
    #[must_use]
    pub fn altp2m(&self, domain: DomId) -> Altp2m<'_> {
        Altp2m {
            privcmd: self,
            domain,
        }
    }
}

impl Altp2m<'_> {
    /// Returns the guest.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Returns whether the views are on.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_altp2m_get_domain_state")]
    #[doc(alias = "HVMOP_altp2m_get_domain_state")]
    pub fn enabled(&self) -> Result<bool> {
        let body = abi::Altp2mState::default();
        let answer = self.operation::<{ abi::HVMOP_ALTP2M_GET_DOMAIN_STATE }, _>(body)?;
        Ok(answer.state != 0)
    }

    /// Switches the views on or off for all virtual CPUs. Off destroys them.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_altp2m_set_domain_state")]
    #[doc(alias = "HVMOP_altp2m_set_domain_state")]
    pub fn set_enabled(&self, enabled: bool) -> Result<()> {
        let body = abi::Altp2mState {
            state: enabled.into(),
        };
        let done = self.operation::<{ abi::HVMOP_ALTP2M_SET_DOMAIN_STATE }, _>(body);
        done.map(drop)
    }

    /// Creates a view whose frames allow `access`. It stays until it is destroyed, the views are
    /// switched off, or the guest ends.
    ///
    /// # Errors
    ///
    /// `ERANGE` when the guest has as many views as there may be; those common to all calls.
    #[doc(alias = "xc_altp2m_create_view")]
    #[doc(alias = "HVMOP_altp2m_create_p2m")]
    pub fn create_view(&self, access: MemoryAccess) -> Result<ViewId> {
        let body = abi::Altp2mView {
            view: 0,
            hvmmem_default_access: self.number("HVMOP_altp2m_create_p2m", access)?.into(),
        };
        let answer = self.operation::<{ abi::HVMOP_ALTP2M_CREATE_P2M }, _>(body)?;
        Ok(ViewId(answer.view))
    }

    /// Destroys a view.
    ///
    /// # Errors
    ///
    /// `EBUSY` while a virtual CPU uses it; `EINVAL` if there is none, and for [`ViewId::HOST`];
    /// those common to all calls.
    #[doc(alias = "xc_altp2m_destroy_view")]
    #[doc(alias = "HVMOP_altp2m_destroy_p2m")]
    pub fn destroy_view(&self, view: ViewId) -> Result<()> {
        let done = self.operation::<{ abi::HVMOP_ALTP2M_DESTROY_P2M }, _>(named(view));
        done.map(drop)
    }

    /// Makes all virtual CPUs of the guest use a view.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none; those common to all calls.
    #[doc(alias = "xc_altp2m_switch_to_view")]
    #[doc(alias = "HVMOP_altp2m_switch_p2m")]
    pub fn switch_view(&self, view: ViewId) -> Result<()> {
        let done = self.operation::<{ abi::HVMOP_ALTP2M_SWITCH_P2M }, _>(named(view));
        done.map(drop)
    }

    /// Returns the view that a virtual CPU uses.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such virtual CPU; those common to all calls.
    #[doc(alias = "xc_altp2m_get_vcpu_p2m_idx")]
    #[doc(alias = "HVMOP_altp2m_get_p2m_idx")]
    pub fn vcpu_view(&self, vcpu: u32) -> Result<ViewId> {
        let body = abi::Altp2mIndex {
            vcpu_id: vcpu,
            ..abi::Altp2mIndex::default()
        };
        let answer = self.operation::<{ abi::HVMOP_ALTP2M_GET_P2M_IDX }, _>(body)?;
        Ok(ViewId(answer.altp2m_idx))
    }

    /// Returns what a view allows of a guest frame.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such view; [`Error::NoDomain`] also for a frame without memory, for
    /// which Xen returns the same `ESRCH` as for a missing guest; those common to all calls.
    #[doc(alias = "xc_altp2m_get_mem_access")]
    #[doc(alias = "HVMOP_altp2m_get_mem_access")]
    pub fn access(&self, view: ViewId, gfn: u64) -> Result<MemoryAccess> {
        let body = access(view, gfn, 0);
        let answer = self.operation::<{ abi::HVMOP_ALTP2M_GET_MEM_ACCESS }, _>(body)?;
        let number = u8::try_from(answer.access).unwrap_or(u8::MAX);
        let xen = self.privcmd.version_numbers()?;
        Ok(MemoryAccess::from_number(number, xen))
    }

    /// Sets what a view allows of a guest frame. Any other access raises an event of the monitor.
    /// Without a monitor it pauses the guest, if the domain requires one.
    ///
    /// # Errors
    ///
    /// As [`access`](Self::access).
    #[doc(alias = "xc_altp2m_set_mem_access")]
    #[doc(alias = "HVMOP_altp2m_set_mem_access")]
    pub fn set_access(&self, view: ViewId, gfn: u64, allowed: MemoryAccess) -> Result<()> {
        let number = self.number("HVMOP_altp2m_set_mem_access", allowed)?;
        let body = access(view, gfn, number);
        let done = self.operation::<{ abi::HVMOP_ALTP2M_SET_MEM_ACCESS }, _>(body);
        done.map(drop)
    }

    /// Shows the memory of guest frame `new` at frame `old` in a view; `None` restores its own.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such view, and for frames without ordinary memory; those common to
    /// all calls.
    ///
    /// # Safety
    ///
    /// The guest must not be the domain that this program runs in, under any of its numbers: there
    /// it would replace memory that the program uses.
    #[doc(alias = "xc_altp2m_change_gfn")]
    #[doc(alias = "HVMOP_altp2m_change_gfn")]
    pub unsafe fn change_gfn(&self, view: ViewId, old: u64, new: Option<u64>) -> Result<()> {
        let body = abi::Altp2mChangeGfn {
            view: view.0,
            old_gfn: old,
            new_gfn: new.unwrap_or(u64::MAX),
            ..abi::Altp2mChangeGfn::default()
        };
        let done = self.operation::<{ abi::HVMOP_ALTP2M_CHANGE_GFN }, _>(body);
        done.map(drop)
    }

    fn number(&self, op: &'static str, access: MemoryAccess) -> Result<u8> {
        let number = access.number(self.privcmd.version_numbers()?);
        number.ok_or(Error::Unsupported { op })
    }

    /// Makes the operation numbered `CMD`; returns its body as Xen left it.
    fn operation<const CMD: u32, B>(&self, body: B) -> Result<B>
    where
        B: zerocopy::IntoBytes + zerocopy::Immutable + zerocopy::FromBytes,
        Altp2mOperation<CMD>: crate::ioctl::privcmd::Operation,
    {
        let argument = Altp2mOperation::<CMD>(abi::Altp2mOp::new(CMD, self.domain, &body));
        let backend = self.privcmd.backend();
        match backend.operation(Some(self.domain), argument) {
            Ok((_, Altp2mOperation(answer))) => Ok(answer.body().unwrap_or(body)),
            Err(Error::Os { op, source }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(Error::Unsupported { op })
            }
            Err(e) => Err(e),
        }
    }
}

fn named(view: ViewId) -> abi::Altp2mView {
    abi::Altp2mView {
        view: view.0,
        hvmmem_default_access: 0,
    }
}

fn access(view: ViewId, gfn: u64, number: u8) -> abi::Altp2mAccess {
    abi::Altp2mAccess {
        view: view.0,
        access: number.into(),
        pad: 0,
        gfn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_lies_behind_a_head_of_sixteen_bytes() {
        use zerocopy::IntoBytes as _;
        let body = access(ViewId(3), 0x1234, abi::XENMEM_ACCESS_RX);
        let op = abi::Altp2mOp::new(abi::HVMOP_ALTP2M_SET_MEM_ACCESS, DomId::new(9), &body);
        let bytes = op.as_bytes();
        assert_eq!(bytes.len(), 80);
        assert_eq!(bytes[..8], [1, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[8..16], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [3, 0, 5, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..32], [0x34, 0x12, 0, 0, 0, 0, 0, 0]);
        assert!(bytes[32..].iter().all(|&b| b == 0));
        let back: abi::Altp2mAccess = op.body().unwrap();
        assert_eq!((back.view, back.access, back.gfn), (3, 5, 0x1234));
    }

    #[test]
    fn the_default_access_has_the_number_of_the_xen_that_is_asked() {
        let default = |xen| MemoryAccess::Default.number(xen);
        assert_eq!((default((4, 17)), default((4, 19))), (Some(10), Some(10)));
        assert_eq!((default((4, 20)), default((5, 0))), (Some(11), Some(11)));
        assert_eq!(MemoryAccess::RPagingWrite.number((4, 19)), None);
        for xen in [(4, 17), (4, 19), (4, 20), (4, 22)] {
            for number in 0..=u8::MAX {
                let access = MemoryAccess::from_number(number, xen);
                assert_eq!(access.number(xen), Some(number), "{access:?} of {xen:?}");
            }
        }
        let old = MemoryAccess::from_number(11, (4, 17));
        assert_eq!(old, MemoryAccess::Other(11));
    }
}
