//! `xen_version`: xen/include/public/version.h.

#![allow(
    missing_debug_implementations,
    reason = "the derives make types of their own; each of ours has it"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Returns `major << 16 | minor`; no argument.
pub const XENVER_VERSION: u64 = 0;
/// [`ExtraVersion`].
pub const XENVER_EXTRAVERSION: u64 = 1;
/// [`CompileInfo`].
pub const XENVER_COMPILE_INFO: u64 = 2;
/// [`Capabilities`].
pub const XENVER_CAPABILITIES: u64 = 3;
/// [`Changeset`].
pub const XENVER_CHANGESET: u64 = 4;
/// [`PlatformParameters`].
pub const XENVER_PLATFORM_PARAMETERS: u64 = 5;
/// [`FeatureInfo`].
pub const XENVER_GET_FEATURES: u64 = 6;
/// Returns the size of a page; no argument.
pub const XENVER_PAGESIZE: u64 = 7;
/// [`GuestHandle`].
pub const XENVER_GUEST_HANDLE: u64 = 8;
/// [`CommandLine`].
pub const XENVER_COMMANDLINE: u64 = 9;
/// [`BuildId`].
pub const XENVER_BUILD_ID: u64 = 10;
/// [`ExtraVersion2`]; Xen 4.18 and later.
pub const XENVER_EXTRAVERSION2: u64 = 11;
/// [`Capabilities2`]; Xen 4.18 and later.
pub const XENVER_CAPABILITIES2: u64 = 12;
/// [`Changeset2`]; Xen 4.18 and later.
pub const XENVER_CHANGESET2: u64 = 13;
/// [`CommandLine2`]; Xen 4.18 and later.
pub const XENVER_COMMANDLINE2: u64 = 14;

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $len:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
        #[repr(transparent)]
        pub struct $name(pub [u8; $len]);

        impl Default for $name {
            fn default() -> Self {
                Self([0; $len])
            }
        }
    )* };
}

texts! {
    /// Text that ends at the first zero.
    #[doc(alias = "xen_extraversion_t")]
    ExtraVersion: 16;
    /// Text that ends at the first zero.
    #[doc(alias = "xen_capabilities_info_t")]
    Capabilities: 1024;
    /// Text that ends at the first zero.
    #[doc(alias = "xen_changeset_info_t")]
    Changeset: 64;
    /// Text that ends at the first zero.
    #[doc(alias = "xen_commandline_t")]
    CommandLine: 1024;
    /// The caller's own UUID, in the order of its text form.
    #[doc(alias = "xen_domain_handle_t")]
    GuestHandle: 16;
}

/// How the hypervisor was compiled: texts that end at the first zero.
///
/// C: `struct xen_compile_info`.
#[doc(alias = "xen_compile_info")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompileInfo {
    /// The compiler.
    pub compiler: [u8; 64],
    /// The user.
    pub compile_by: [u8; 16],
    /// The user's domain.
    pub compile_domain: [u8; 32],
    /// The date.
    pub compile_date: [u8; 32],
}

/// The lowest virtual address that belongs to Xen in a PV guest.
///
/// C: `struct xen_platform_parameters`.
#[doc(alias = "xen_platform_parameters")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PlatformParameters {
    /// The address; 0 in guests that do not share their address space with Xen.
    pub virt_start: u64,
}

/// 32 feature bits.
///
/// C: `struct xen_feature_info`.
#[doc(alias = "xen_feature_info")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FeatureInfo {
    /// In: which 32 bits; there is only 0.
    pub submap_idx: u32,
    /// Out: the bits, `XENFEAT_*`.
    pub submap: u32,
}

/// Bytes in the buffer of a [`BuildId`] and its neighbours.
pub const VARBUF_LEN: usize = 4088;

macro_rules! buffers {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// C: `struct xen_varbuf` and a buffer; Xen returns how many bytes it wrote.
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct $name {
            /// In: bytes in `buf`.
            pub len: u32,
            /// Out: the bytes.
            pub buf: [u8; VARBUF_LEN],
        }

        impl Default for $name {
            fn default() -> Self {
                Self { len: VARBUF_LEN as u32, buf: [0; VARBUF_LEN] }
            }
        }
    )* };
}

buffers! {
    /// The hash that names the hypervisor's build.
    #[doc(alias = "xen_build_id")]
    BuildId;
    /// [`ExtraVersion`], whole.
    ExtraVersion2;
    /// [`Capabilities`], whole.
    Capabilities2;
    /// [`Changeset`], whole.
    Changeset2;
    /// [`CommandLine`], whole.
    CommandLine2;
}
