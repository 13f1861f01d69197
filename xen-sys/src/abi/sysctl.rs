//! `sysctl`: xen/include/public/sysctl.h.
//!
//! The structs here are the same in every interface version of [`INTERFACE_VERSIONS`].

use std::ops::RangeInclusive;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// The interface versions with these layouts: 0x15 is that of Xen 4.17 to 4.20, 0x16 that of
/// 4.21 and 4.22.
#[doc(alias = "XEN_SYSCTL_INTERFACE_VERSION")]
pub const INTERFACE_VERSIONS: RangeInclusive<u32> = 0x15..=0x16;

/// The head of every operation, and room for its body.
///
/// C: `struct xen_sysctl`.
#[doc(alias = "xen_sysctl")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sysctl {
    /// `XEN_SYSCTL_*`.
    pub cmd: u32,
    /// One of [`INTERFACE_VERSIONS`].
    pub interface_version: u32,
    /// The body.
    pub u: [u64; 16],
}

impl Sysctl {
    /// The operation `cmd`; what of `body` does not fit is left out, which is nothing for the
    /// bodies here.
    pub(crate) fn new(cmd: u32, version: u32, body: &(impl IntoBytes + Immutable)) -> Self {
        Self {
            cmd,
            interface_version: version,
            u: super::words(body.as_bytes()),
        }
    }

    /// The body.
    pub(crate) fn body<B: FromBytes>(&self) -> Option<B> {
        B::read_from_prefix(self.u.as_bytes()).ok().map(|(b, _)| b)
    }
}

/// [`ReadConsole`].
#[doc(alias = "XEN_SYSCTL_readconsole")]
pub const XEN_SYSCTL_READCONSOLE: u32 = 1;
/// [`PhysInfo`].
#[doc(alias = "XEN_SYSCTL_physinfo")]
pub const XEN_SYSCTL_PHYSINFO: u32 = 3;
/// [`GetDomainInfoList`].
#[doc(alias = "XEN_SYSCTL_getdomaininfolist")]
pub const XEN_SYSCTL_GETDOMAININFOLIST: u32 = 6;
/// [`CpuTopoInfo`].
#[doc(alias = "XEN_SYSCTL_cputopoinfo")]
pub const XEN_SYSCTL_CPUTOPOINFO: u32 = 16;
/// [`NumaInfo`].
#[doc(alias = "XEN_SYSCTL_numainfo")]
pub const XEN_SYSCTL_NUMAINFO: u32 = 17;

/// Reads Xen's console ring.
///
/// C: `struct xen_sysctl_readconsole`.
#[doc(alias = "xen_sysctl_readconsole")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadConsole {
    /// In: not zero to take what is read out of the ring.
    pub clear: u8,
    /// In: not zero to start at `index`.
    pub incremental: u8,
    /// Zero.
    pub pad0: u8,
    /// Zero.
    pub pad1: u8,
    /// In: where to start; out: where the next read starts.
    pub index: u32,
    /// In: the address of `count` bytes.
    pub buffer: u64,
    /// In: bytes there is room for; out: bytes written.
    pub count: u32,
    /// C leaves it implicit.
    pub pad2: u32,
}

/// Xen's record of the machine.
///
/// C: `struct xen_sysctl_physinfo`.
#[doc(alias = "xen_sysctl_physinfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PhysInfo {
    /// Hardware threads in a core.
    pub threads_per_core: u32,
    /// Cores in a socket.
    pub cores_per_socket: u32,
    /// CPUs online.
    pub nr_cpus: u32,
    /// The highest CPU there may be.
    pub max_cpu_id: u32,
    /// NUMA nodes online.
    pub nr_nodes: u32,
    /// The highest node there may be.
    pub max_node_id: u32,
    /// A CPU's frequency, in kHz.
    pub cpu_khz: u32,
    /// `XEN_SYSCTL_PHYSCAP_*`.
    pub capabilities: u32,
    /// `XEN_SYSCTL_PHYSCAP_ARM_*`, in Xen 4.18 and later.
    pub arch_capabilities: u32,
    /// Zero.
    pub pad: u32,
    /// Pages of memory.
    pub total_pages: u64,
    /// Pages that are free.
    pub free_pages: u64,
    /// Free pages still to be zeroed.
    pub scrub_pages: u64,
    /// Pages claimed and not given yet.
    pub outstanding_pages: u64,
    /// The highest machine frame there may be.
    pub max_mfn: u64,
    /// CPUID words.
    pub hw_cap: [u32; 8],
}

/// Lists domains.
///
/// C: `struct xen_sysctl_getdomaininfolist`.
#[doc(alias = "xen_sysctl_getdomaininfolist")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetDomainInfoList {
    /// In: the lowest domain wanted.
    pub first_domain: DomId,
    /// C leaves it implicit.
    pub pad: u16,
    /// In: the most domains.
    pub max_domains: u32,
    /// In: the address of that many [`GetDomainInfo`](super::domctl::GetDomainInfo).
    pub buffer: u64,
    /// Out: how many were written.
    pub num_domains: u32,
    /// C leaves it implicit.
    pub pad2: u32,
}

/// Where a CPU sits.
///
/// C: `struct xen_sysctl_cputopo`.
#[doc(alias = "xen_sysctl_cputopo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuTopo {
    /// Its core, within the socket.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its NUMA node.
    pub node: u32,
}

/// In the place of a core, socket or node that there is not.
#[doc(alias = "XEN_INVALID_CORE_ID")]
#[doc(alias = "XEN_INVALID_SOCKET_ID")]
#[doc(alias = "XEN_INVALID_NODE_ID")]
pub const XEN_INVALID_ID: u32 = !0;

/// Lists CPUs.
///
/// C: `struct xen_sysctl_cputopoinfo`.
#[doc(alias = "xen_sysctl_cputopoinfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuTopoInfo {
    /// In: the most CPUs; out: how many there are.
    pub num_cpus: u32,
    /// C leaves it implicit.
    pub pad: u32,
    /// In: the address of that many [`CpuTopo`], or zero.
    pub cputopo: u64,
}

/// A NUMA node's memory.
///
/// C: `struct xen_sysctl_meminfo`.
#[doc(alias = "xen_sysctl_meminfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemInfo {
    /// Its size, in bytes.
    pub memsize: u64,
    /// The free part, in bytes.
    pub memfree: u64,
}

/// [`MemInfo`] of a node that is offline.
pub const XEN_INVALID_MEM_SZ: u64 = 0xffff_ffff;

/// Lists NUMA nodes.
///
/// C: `struct xen_sysctl_numainfo`.
#[doc(alias = "xen_sysctl_numainfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NumaInfo {
    /// In: the most nodes; out: how many there are.
    pub num_nodes: u32,
    /// C leaves it implicit.
    pub pad: u32,
    /// In: the address of that many [`MemInfo`], or zero.
    pub meminfo: u64,
    /// In: the address of the distances, or zero.
    pub distance: u64,
}
