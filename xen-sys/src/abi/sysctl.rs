//! `sysctl`: xen/include/public/sysctl.h.
//!
//! The structs here are the same in every interface version of [`INTERFACE_VERSIONS`].

use std::ops::RangeInclusive;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// The interface versions with these layouts: 0x15 for Xen 4.17 to 4.20, 0x16 for 4.21 and 4.22.
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
    /// Makes the operation `cmd`. Bytes of `body` that do not fit are left out; all bodies here
    /// fit.
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
    /// In: not zero to remove the bytes read from the ring.
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
    /// In: room in bytes; out: bytes written.
    pub count: u32,
    /// Padding, implicit in C.
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
    /// Padding, implicit in C.
    pub pad: u16,
    /// In: the most domains.
    pub max_domains: u32,
    /// In: the address of that many [`GetDomainInfo`](super::domctl::GetDomainInfo).
    pub buffer: u64,
    /// Out: how many were written.
    pub num_domains: u32,
    /// Padding, implicit in C.
    pub pad2: u32,
}

/// The location of a CPU.
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

/// The value in place of a core, socket or node that does not exist.
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
    /// Padding, implicit in C.
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
    /// Padding, implicit in C.
    pub pad: u32,
    /// In: the address of that many [`MemInfo`], or zero.
    pub meminfo: u64,
    /// In: the address of the distances, or zero.
    pub distance: u64,
}

/// [`DebugKeys`].
#[doc(alias = "XEN_SYSCTL_debug_keys")]
pub const XEN_SYSCTL_DEBUG_KEYS: u32 = 7;
/// [`GetCpuInfo`].
#[doc(alias = "XEN_SYSCTL_getcpuinfo")]
pub const XEN_SYSCTL_GETCPUINFO: u32 = 8;
/// [`PmStatPx`] and [`PmStatCx`].
#[doc(alias = "XEN_SYSCTL_get_pmstat")]
pub const XEN_SYSCTL_GET_PMSTAT: u32 = 10;
/// [`PmOp`].
#[doc(alias = "XEN_SYSCTL_pm_op")]
pub const XEN_SYSCTL_PM_OP: u32 = 12;

/// The value in place of the distance between nodes of which one is offline.
#[doc(alias = "XEN_INVALID_NODE_DIST")]
pub const XEN_INVALID_DISTANCE: u32 = !0;

/// Presses debug keys.
///
/// C: `struct xen_sysctl_debug_keys`.
#[doc(alias = "xen_sysctl_debug_keys")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DebugKeys {
    /// In: the address of the keys.
    pub keys: u64,
    /// In: how many.
    pub nr_keys: u32,
    /// Padding, implicit in C.
    pub pad: u32,
}

/// Lists the CPUs' idle times.
///
/// C: `struct xen_sysctl_getcpuinfo`.
#[doc(alias = "xen_sysctl_getcpuinfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetCpuInfo {
    /// In: the most CPUs.
    pub max_cpus: u32,
    /// Padding, implicit in C.
    pub pad: u32,
    /// In: the address of that many [`CpuInfo`].
    pub info: u64,
    /// Out: how many were written.
    pub nr_cpus: u32,
    /// Padding, implicit in C.
    pub pad2: u32,
}

/// A CPU's idle time.
///
/// C: `struct xen_sysctl_cpuinfo`.
#[doc(alias = "xen_sysctl_cpuinfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuInfo {
    /// In nanoseconds.
    pub idletime: u64,
}

/// Returns how many performance states there are: [`PmStatPx::total`].
#[doc(alias = "PMSTAT_get_max_px")]
pub const PMSTAT_GET_MAX_PX: u32 = 0x11;
/// [`PmStatPx`].
#[doc(alias = "PMSTAT_get_pxstat")]
pub const PMSTAT_GET_PXSTAT: u32 = 0x12;
/// [`PmStatCx`].
#[doc(alias = "PMSTAT_get_cxstat")]
pub const PMSTAT_GET_CXSTAT: u32 = 0x22;

/// A CPU's performance states.
///
/// C: `struct xen_sysctl_get_pmstat`, with its union's `getpx`.
#[doc(alias = "xen_sysctl_get_pmstat")]
#[doc(alias = "pm_px_stat")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PmStatPx {
    /// In: `PMSTAT_*`.
    pub kind: u32,
    /// In: the CPU.
    pub cpuid: u32,
    /// In, in Xen 4.18 and later: room in `pt`; out: how many states there are.
    pub total: u8,
    /// Out: how many may be used.
    pub usable: u8,
    /// Out: the previous state.
    pub last: u8,
    /// Out: the current state.
    pub cur: u8,
    /// Padding, implicit in C.
    pub pad: u32,
    /// In: the address of `total` times `total` counts of transitions.
    pub trans_pt: u64,
    /// In: the address of `total` [`PmPxVal`].
    pub pt: u64,
}

/// A performance state.
///
/// C: `struct pm_px_val`.
#[doc(alias = "pm_px_val")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PmPxVal {
    /// MHz.
    pub freq: u64,
    /// Nanoseconds in it.
    pub residency: u64,
    /// The number of times that it was entered.
    pub count: u64,
}

/// A CPU's idle states.
///
/// C: `struct xen_sysctl_get_pmstat`, with its union's `getcx`.
#[doc(alias = "pm_cx_stat")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PmStatCx {
    /// In: `PMSTAT_*`.
    pub kind: u32,
    /// In: the CPU.
    pub cpuid: u32,
    /// In: room in `triggers` and `residencies`; out: how many states there are.
    pub nr: u32,
    /// Out: the previous state.
    pub last: u32,
    /// Out: nanoseconds without work since Xen started.
    pub idle_time: u64,
    /// In: the address of `nr` counts.
    pub triggers: u64,
    /// In: the address of `nr` times, in nanoseconds.
    pub residencies: u64,
    /// In: room in `pc`; out: how many there are.
    pub nr_pc: u32,
    /// In: room in `cc`; out: how many there are.
    pub nr_cc: u32,
    /// In: the address of the packages' times.
    pub pc: u64,
    /// In: the address of the cores' times.
    pub cc: u64,
}

/// Returns a CPU's average frequency: [`PmOp::value`], in kHz.
pub const GET_CPUFREQ_AVGFREQ: u32 = 0x14;

/// An operation of power management with one number.
///
/// C: `struct xen_sysctl_pm_op`, with its union's `get_avgfreq`.
#[doc(alias = "xen_sysctl_pm_op")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PmOp {
    /// In: the operation.
    pub cmd: u32,
    /// In: the CPU.
    pub cpuid: u32,
    /// The number.
    pub value: u64,
}
