//! `hvm_op(altp2m)`: xen/include/public/hvm/hvm_op.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// [`Altp2mOp`].
#[doc(alias = "HVMOP_altp2m")]
pub const HVMOP_ALTP2M: u64 = 25;
/// [`Altp2mOp::version`].
pub const HVMOP_ALTP2M_INTERFACE_VERSION: u32 = 1;

/// Gets [`Altp2mState`].
#[doc(alias = "HVMOP_altp2m_get_domain_state")]
pub const HVMOP_ALTP2M_GET_DOMAIN_STATE: u32 = 1;
/// Sets [`Altp2mState`].
#[doc(alias = "HVMOP_altp2m_set_domain_state")]
pub const HVMOP_ALTP2M_SET_DOMAIN_STATE: u32 = 2;
/// Creates [`Altp2mView`].
#[doc(alias = "HVMOP_altp2m_create_p2m")]
pub const HVMOP_ALTP2M_CREATE_P2M: u32 = 4;
/// Destroys [`Altp2mView`].
#[doc(alias = "HVMOP_altp2m_destroy_p2m")]
pub const HVMOP_ALTP2M_DESTROY_P2M: u32 = 5;
/// Switches the domain to [`Altp2mView`].
#[doc(alias = "HVMOP_altp2m_switch_p2m")]
pub const HVMOP_ALTP2M_SWITCH_P2M: u32 = 6;
/// Sets [`Altp2mAccess`].
#[doc(alias = "HVMOP_altp2m_set_mem_access")]
pub const HVMOP_ALTP2M_SET_MEM_ACCESS: u32 = 7;
/// [`Altp2mChangeGfn`].
#[doc(alias = "HVMOP_altp2m_change_gfn")]
pub const HVMOP_ALTP2M_CHANGE_GFN: u32 = 8;
/// Gets [`Altp2mAccess`].
#[doc(alias = "HVMOP_altp2m_get_mem_access")]
pub const HVMOP_ALTP2M_GET_MEM_ACCESS: u32 = 12;
/// Gets [`Altp2mIndex`].
#[doc(alias = "HVMOP_altp2m_get_p2m_idx")]
pub const HVMOP_ALTP2M_GET_P2M_IDX: u32 = 14;

/// The head of every operation, and room for its body.
///
/// C: `struct xen_hvm_altp2m_op`.
#[doc(alias = "xen_hvm_altp2m_op")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Altp2mOp {
    /// [`HVMOP_ALTP2M_INTERFACE_VERSION`].
    pub version: u32,
    /// `HVMOP_ALTP2M_*`.
    pub cmd: u32,
    /// The guest.
    pub domain: DomId,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
    /// The body.
    pub u: [u64; 8],
}

impl Altp2mOp {
    /// Makes the operation `cmd` on `domain`. Bytes of `body` that do not fit are left out; all
    /// bodies here fit.
    pub(crate) fn new(cmd: u32, domain: DomId, body: &(impl IntoBytes + Immutable)) -> Self {
        let mut u = [0u64; 8];
        let (room, bytes) = (u.as_mut_bytes(), body.as_bytes());
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        Self {
            version: HVMOP_ALTP2M_INTERFACE_VERSION,
            cmd,
            domain,
            pad1: 0,
            pad2: 0,
            u,
        }
    }

    /// The body.
    pub(crate) fn body<B: FromBytes>(&self) -> Option<B> {
        B::read_from_prefix(self.u.as_bytes()).ok().map(|(b, _)| b)
    }
}

/// The state of a domain's views: on or off.
///
/// C: `struct xen_hvm_altp2m_domain_state`.
#[doc(alias = "xen_hvm_altp2m_domain_state")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Altp2mState {
    /// Not zero if they are.
    pub state: u8,
}

/// A view.
///
/// C: `struct xen_hvm_altp2m_view`.
#[doc(alias = "xen_hvm_altp2m_view")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Altp2mView {
    /// Its number: out for [`HVMOP_ALTP2M_CREATE_P2M`], otherwise in.
    pub view: u16,
    /// In: what a new view allows, `XENMEM_access_*`.
    pub hvmmem_default_access: u16,
}

/// The accesses to one frame that a view allows.
///
/// C: `struct xen_hvm_altp2m_mem_access`.
#[doc(alias = "xen_hvm_altp2m_mem_access")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Altp2mAccess {
    /// In: the view.
    pub view: u16,
    /// In or out: `XENMEM_access_*`.
    pub access: u16,
    /// Zero.
    pub pad: u32,
    /// In: the guest frame.
    pub gfn: u64,
}

/// Shows one frame in place of another.
///
/// C: `struct xen_hvm_altp2m_change_gfn`.
#[doc(alias = "xen_hvm_altp2m_change_gfn")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Altp2mChangeGfn {
    /// In: the view.
    pub view: u16,
    /// Zero.
    pub pad1: u16,
    /// Zero.
    pub pad2: u32,
    /// In: the guest frame that changes.
    pub old_gfn: u64,
    /// In: the guest frame whose memory it shows; all ones for its own again.
    pub new_gfn: u64,
}

/// The view that a virtual CPU uses.
///
/// C: `struct xen_hvm_altp2m_get_vcpu_p2m_idx`.
#[doc(alias = "xen_hvm_altp2m_get_vcpu_p2m_idx")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Altp2mIndex {
    /// In: the virtual CPU.
    pub vcpu_id: u32,
    /// Out: the view's number.
    pub altp2m_idx: u16,
    /// Padding, implicit in C.
    pub pad: u16,
}

/// Nothing.
pub const XENMEM_ACCESS_N: u8 = 0;
/// Reading.
pub const XENMEM_ACCESS_R: u8 = 1;
/// Writing.
pub const XENMEM_ACCESS_W: u8 = 2;
/// Reading and writing.
pub const XENMEM_ACCESS_RW: u8 = 3;
/// Executing.
pub const XENMEM_ACCESS_X: u8 = 4;
/// Reading and executing.
pub const XENMEM_ACCESS_RX: u8 = 5;
/// Writing and executing.
pub const XENMEM_ACCESS_WX: u8 = 6;
/// Everything.
pub const XENMEM_ACCESS_RWX: u8 = 7;
/// Reading and executing, until a write makes it reading and writing.
pub const XENMEM_ACCESS_RX2RW: u8 = 8;
/// Nothing, until an access makes it everything.
pub const XENMEM_ACCESS_N2RWX: u8 = 9;
/// Reading; the processor's own walks of page tables may write. Xen 4.20 and later.
pub const XENMEM_ACCESS_R_PW: u8 = 10;
/// The domain's default, before Xen 4.20.
pub const XENMEM_ACCESS_DEFAULT_4_17: u8 = 10;
/// The domain's default. Xen 4.20 and later.
pub const XENMEM_ACCESS_DEFAULT: u8 = 11;
