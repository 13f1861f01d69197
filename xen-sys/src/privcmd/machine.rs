//! The machine: `sysctl`.

use bitflags::bitflags;

use super::Privcmd;
use crate::abi::sysctl as abi;
use crate::{PAGE_SIZE, Result};

bitflags! {
    /// Capabilities of the machine: `XEN_SYSCTL_PHYSCAP_*`. Bits without a name here are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PhysCaps: u32 {
        /// It runs HVM guests.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_hvm")]
        const HVM = 1 << 0;
        /// It runs PV guests.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_pv")]
        const PV = 1 << 1;
        /// Guests may be given devices: there is an IOMMU.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_directio")]
        const DIRECT_IO = 1 << 2;
        /// The hardware translates guests' memory.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_hap")]
        const HAP = 1 << 3;
        /// Xen translates guests' memory.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_shadow")]
        const SHADOW = 1 << 4;
        /// The IOMMU uses the page tables of [`HAP`](Self::HAP).
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share")]
        const IOMMU_HAP_PT_SHARE = 1 << 5;
        /// The processors can trace guests.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_vmtrace")]
        const VMTRACE = 1 << 6;
        /// Guests have performance counters.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_vpmu")]
        const VPMU = 1 << 7;
        /// There are grant tables of version 1.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_gnttab_v1")]
        const GRANT_TABLE_V1 = 1 << 8;
        /// There are grant tables of version 2.
        #[doc(alias = "XEN_SYSCTL_PHYSCAP_gnttab_v2")]
        const GRANT_TABLE_V2 = 1 << 9;

        const _ = !0;
    }
}

/// The machine at one moment.
///
/// C: `struct xen_sysctl_physinfo`, xen/include/public/sysctl.h.
#[doc(alias = "xen_sysctl_physinfo")]
#[doc(alias = "xc_physinfo_t")]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PhysInfo {
    /// Hardware threads in a core.
    pub threads_per_core: u32,
    /// Cores in a socket.
    pub cores_per_socket: u32,
    /// CPUs (hardware threads) online.
    pub cpus: u32,
    /// The highest number a CPU may have.
    pub max_cpu_id: u32,
    /// NUMA nodes online.
    pub nodes: u32,
    /// The highest number a node may have.
    pub max_node_id: u32,
    /// The frequency of CPU 0's time stamp counter, in kHz.
    pub cpu_khz: u32,
    /// Its capabilities.
    pub capabilities: PhysCaps,
    /// Capabilities that depend on the architecture: `XEN_SYSCTL_PHYSCAP_ARM_*`.
    pub arch_capabilities: u32,
    /// Memory, in pages of [`PAGE_SIZE`] bytes.
    pub total_pages: u64,
    /// Pages that belong to nobody.
    pub free_pages: u64,
    /// Free pages that are still to be zeroed.
    pub scrub_pages: u64,
    /// Pages that are claimed and belong to nobody yet.
    pub outstanding_pages: u64,
    /// The highest number a machine frame may have.
    pub max_frame: u64,
    /// CPUID's feature words as Xen sees them, in the order `xl info` prints.
    pub hw_caps: [u32; 8],
}

impl PhysInfo {
    /// [`total_pages`](Self::total_pages) in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_pages.saturating_mul(PAGE_SIZE as u64)
    }

    /// [`free_pages`](Self::free_pages) in bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free_pages.saturating_mul(PAGE_SIZE as u64)
    }
}

/// The place of a CPU. An unknown or missing part is `None`.
///
/// C: `struct xen_sysctl_cputopo`, xen/include/public/sysctl.h.
#[doc(alias = "xen_sysctl_cputopo")]
#[doc(alias = "xc_cputopo_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuTopology {
    /// Its core.
    pub core: Option<u32>,
    /// Its socket.
    pub socket: Option<u32>,
    /// Its NUMA node.
    pub node: Option<u32>,
}

/// A NUMA node's memory.
///
/// C: `struct xen_sysctl_meminfo`, xen/include/public/sysctl.h.
#[doc(alias = "xen_sysctl_meminfo")]
#[doc(alias = "xc_meminfo_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeMemory {
    /// Its size in bytes; holes count.
    pub bytes: u64,
    /// Bytes of it that belong to nobody.
    pub free_bytes: u64,
}

/// Bytes read from Xen's console ring.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsoleChunk {
    /// The bytes, which need not be text: guests write there, too.
    pub bytes: Vec<u8>,
    /// Where the next read goes on.
    pub next: u32,
}

/// CPUs, and nodes, asked for at the most.
const MAX_CPUS: u32 = 4096;
const MAX_NODES: u32 = 256;
/// Bytes of the console ring read by one call.
const CONSOLE_CHUNK: u32 = 32 << 10;
/// Reads of the ring at the most: a ring of 64 MiB.
const CONSOLE_CHUNKS: usize = 2048;

/// The machine: xen/include/public/sysctl.h. For control domains.
///
/// All of them fail as the operations on domains do.
impl Privcmd {
    /// Returns the machine at this moment.
    ///
    /// # Errors
    ///
    /// As all of them.
    ///
    /// ```no_run
    /// # use xen_sys::{Xen, privcmd::Privcmd};
    /// let machine = Privcmd::open(&Xen::open()?)?.phys_info()?;
    /// println!("{} CPUs, {} MiB free", machine.cpus, machine.free_bytes() >> 20);
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    #[doc(alias = "xc_physinfo")]
    #[doc(alias = "XEN_SYSCTL_physinfo")]
    pub fn phys_info(&self) -> Result<PhysInfo> {
        let raw = self.backend().sysctl(abi::PhysInfo::default())?;
        Ok(PhysInfo {
            threads_per_core: raw.threads_per_core,
            cores_per_socket: raw.cores_per_socket,
            cpus: raw.nr_cpus,
            max_cpu_id: raw.max_cpu_id,
            nodes: raw.nr_nodes,
            max_node_id: raw.max_node_id,
            cpu_khz: raw.cpu_khz,
            capabilities: PhysCaps::from_bits_retain(raw.capabilities),
            arch_capabilities: raw.arch_capabilities,
            total_pages: raw.total_pages,
            free_pages: raw.free_pages,
            scrub_pages: raw.scrub_pages,
            outstanding_pages: raw.outstanding_pages,
            max_frame: raw.max_mfn,
            hw_caps: raw.hw_cap,
        })
    }

    /// Where each CPU sits, by its number.
    ///
    /// # Errors
    ///
    /// As all of them.
    #[doc(alias = "xc_cputopoinfo")]
    #[doc(alias = "XEN_SYSCTL_cputopoinfo")]
    pub fn cpu_topology(&self) -> Result<Vec<CpuTopology>> {
        let body = abi::CpuTopoInfo::default();
        let (_, cpus) = self.backend().sysctl_array(body, MAX_CPUS)?;
        let known = |id| Some(id).filter(|&id| id != abi::XEN_INVALID_ID);
        let topology = |raw: &abi::CpuTopo| CpuTopology {
            core: known(raw.core),
            socket: known(raw.socket),
            node: known(raw.node),
        };
        Ok(cpus.iter().map(topology).collect())
    }

    /// Returns the memory of each NUMA node, by its number; `None` for one that is offline.
    ///
    /// # Errors
    ///
    /// As all of them.
    #[doc(alias = "xc_numainfo")]
    #[doc(alias = "XEN_SYSCTL_numainfo")]
    pub fn numa_memory(&self) -> Result<Vec<Option<NodeMemory>>> {
        let body = abi::NumaInfo::default();
        let (_, nodes) = self.backend().sysctl_array(body, MAX_NODES)?;
        let memory = |raw: &abi::MemInfo| {
            let online = raw.memsize != abi::XEN_INVALID_MEM_SZ;
            online.then_some(NodeMemory {
                bytes: raw.memsize,
                free_bytes: raw.memfree,
            })
        };
        Ok(nodes.iter().map(memory).collect())
    }

    /// Returns everything in Xen's console ring: what `xl dmesg` prints.
    ///
    /// # Errors
    ///
    /// As all of them.
    #[doc(alias = "xc_readconsolering")]
    #[doc(alias = "XEN_SYSCTL_readconsole")]
    pub fn console_ring(&self) -> Result<Vec<u8>> {
        let mut chunk = self.read_console(false, None)?;
        let mut all = std::mem::take(&mut chunk.bytes);
        // A guest may write faster than this reads; the ring's size bounds what there is now.
        for _ in 0..CONSOLE_CHUNKS {
            let more = self.console_ring_from(chunk.next)?;
            if more.bytes.is_empty() {
                break;
            }
            all.extend_from_slice(&more.bytes);
            chunk.next = more.next;
        }
        Ok(all)
    }

    /// At most 32 KiB of Xen's console ring from `index` on, which an earlier chunk gave as its
    /// [`next`](ConsoleChunk::next). Bytes that the ring has lost since then are left out.
    ///
    /// [`Virq::CON_RING`](crate::Virq::CON_RING) tells the domain it belongs to that there is more.
    ///
    /// # Errors
    ///
    /// As all of them.
    #[doc(alias = "xc_readconsolering")]
    pub fn console_ring_from(&self, index: u32) -> Result<ConsoleChunk> {
        self.read_console(false, Some(index))
    }

    /// Empties Xen's console ring, for every reader.
    ///
    /// # Errors
    ///
    /// As all of them.
    #[doc(alias = "xc_readconsolering")]
    pub fn clear_console_ring(&self) -> Result<()> {
        for _ in 0..CONSOLE_CHUNKS {
            if self.read_console(true, None)?.bytes.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn read_console(&self, clear: bool, from: Option<u32>) -> Result<ConsoleChunk> {
        let body = abi::ReadConsole {
            clear: clear.into(),
            incremental: from.is_some().into(),
            index: from.unwrap_or_default(),
            ..abi::ReadConsole::default()
        };
        let (body, bytes) = self.backend().sysctl_array(body, CONSOLE_CHUNK)?;
        Ok(ConsoleChunk {
            bytes,
            next: body.index,
        })
    }
}
