//! The machine: `sysctl`.

use std::time::Duration;

use bitflags::bitflags;

use super::Privcmd;
use super::version::NO_DATA;
use crate::abi::sysctl as abi;
use crate::ioctl::privcmd::{
    AverageFrequency, CX_STATES, DEBUG_KEYS, NumaDistances, PX_STATES, PX_VALUES, SysctlArea,
};
use crate::{Error, PAGE_SIZE, Result};

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
    /// Free pages.
    pub free_pages: u64,
    /// Free pages that are still to be zeroed.
    pub scrub_pages: u64,
    /// Pages that are claimed and still free.
    pub outstanding_pages: u64,
    /// The highest number a machine frame may have.
    pub max_frame: u64,
    /// CPUID's feature words as Xen sees them, in the order `xl info` prints.
    pub hw_caps: [u32; 8],
}

impl PhysInfo {
    /// Returns [`total_pages`](Self::total_pages) in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_pages.saturating_mul(PAGE_SIZE as u64)
    }

    /// Returns [`free_pages`](Self::free_pages) in bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free_pages.saturating_mul(PAGE_SIZE as u64)
    }
}

/// The location of a CPU. An unknown or missing part is `None`.
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
    /// Free bytes.
    pub free_bytes: u64,
}

/// Bytes read from Xen's console ring.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsoleChunk {
    /// The bytes, which need not be text: guests write there too.
    pub bytes: Vec<u8>,
    /// The index from which the next read continues.
    pub next: u32,
}

/// A performance state of a CPU.
///
/// C: `struct pm_px_val`, xen/include/public/sysctl.h.
#[doc(alias = "pm_px_val")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrequencyState {
    /// Its frequency, in MHz.
    pub mhz: u64,
    /// The time that the CPU was in it.
    pub residency: Duration,
    /// The number of times that the CPU entered it.
    pub count: u64,
}

/// The performance states of a CPU, as `xenpm get-cpufreq-states` prints them.
///
/// C: `struct pm_px_stat`, xen/include/public/sysctl.h.
#[doc(alias = "pm_px_stat")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrequencyStates {
    /// The states, the fastest first.
    pub states: Vec<FrequencyState>,
    /// The number of them that the platform allows at the moment.
    pub usable: u8,
    /// The previous state, as an index into `states`.
    pub last: u8,
    /// The current state, as an index into `states`.
    pub current: u8,
    /// The number of times that the CPU changed from one state (the row) to another.
    pub transitions: Vec<Vec<u64>>,
}

/// An idle state of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdleState {
    /// The number of times that the CPU entered it.
    pub count: u64,
    /// The time that the CPU was in it.
    pub residency: Duration,
}

/// The idle states of a CPU, as `xenpm get-cpuidle-states` prints them.
///
/// C: `struct pm_cx_stat`, xen/include/public/sysctl.h.
#[doc(alias = "pm_cx_stat")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdleStates {
    /// The states, C0 first.
    pub states: Vec<IdleState>,
    /// The previous state, as an index into `states`.
    pub last: u32,
    /// The time that the CPU had no work since Xen started.
    pub idle: Duration,
    /// The raw counter of each of the package's states PC1 and on, if it has one.
    pub package: Vec<Option<u64>>,
    /// The raw counter of each of the core's states CC1 and on, if it has one.
    pub core: Vec<Option<u64>>,
}

/// The most CPUs, and nodes, that are requested.
const MAX_CPUS: u32 = 4096;
const MAX_NODES: u32 = 256;
/// Bytes of the console ring read by one call.
const CONSOLE_CHUNK: u32 = 32 << 10;
/// The most reads of the ring: a ring of 64 MiB.
const CONSOLE_CHUNKS: usize = 2048;

/// The machine: xen/include/public/sysctl.h. For control domains.
///
/// All calls fail as the operations on domains do.
impl Privcmd {
    /// Returns the machine as it is now.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
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

    /// Returns the location of each CPU, by its number.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
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
    /// Those common to all calls.
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

    /// Returns the distances between NUMA nodes, indexed by the numbers of both; `None` where one
    /// is offline. The unit is the firmware's: the distance of a node from itself is 10.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_numainfo")]
    pub fn numa_distances(&self) -> Result<Vec<Vec<Option<u32>>>> {
        let body = NumaDistances(abi::NumaInfo::default());
        let (body, distances) = self.backend().sysctl_array(body, MAX_NODES * MAX_NODES)?;
        let nodes = body.0.num_nodes.clamp(1, MAX_NODES) as usize;
        let known = |&d: &u32| Some(d).filter(|&d| d != abi::XEN_INVALID_DISTANCE);
        let row = |row: &[u32]| row.iter().map(known).collect();
        Ok(distances.chunks_exact(nodes).map(row).collect())
    }

    /// Returns how long each CPU had no work since Xen started, by its number.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_getcpuinfo")]
    #[doc(alias = "XEN_SYSCTL_getcpuinfo")]
    pub fn cpu_idle_times(&self) -> Result<Vec<Duration>> {
        let body = abi::GetCpuInfo::default();
        let (_, cpus) = self.backend().sysctl_array(body, MAX_CPUS)?;
        let idle = |cpu: &abi::CpuInfo| Duration::from_nanos(cpu.idletime);
        Ok(cpus.iter().map(idle).collect())
    }

    /// Presses debug keys, one byte each, as `xl debug-keys` does. Xen prints their output to the
    /// [console ring](Self::console_ring). `h` lists the keys; some halt or crash the machine.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for more than 256 keys; those common to all calls.
    #[doc(alias = "xc_send_debug_keys")]
    #[doc(alias = "XEN_SYSCTL_debug_keys")]
    pub fn debug_keys(&self, keys: &[u8]) -> Result<()> {
        let mut area = [0; DEBUG_KEYS];
        let Some(room) = area.get_mut(..keys.len()) else {
            return Err(Error::Invalid {
                op: "XEN_SYSCTL_debug_keys",
                what: "the number of keys",
                value: keys.len() as u64,
            });
        };
        room.copy_from_slice(keys);
        let body = abi::DebugKeys {
            nr_keys: keys.len() as u32,
            ..abi::DebugKeys::default()
        };
        self.backend().sysctl_area(body, &mut area).map(drop)
    }

    /// Returns the performance states of a CPU; `None` if Xen does not scale its frequency.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a CPU that is missing or offline; those common to all calls.
    #[doc(alias = "xc_pm_get_pxstat")]
    #[doc(alias = "PMSTAT_get_pxstat")]
    pub fn frequency_states(&self, cpu: u32) -> Result<Option<FrequencyStates>> {
        let body = abi::PmStatPx {
            cpuid: cpu,
            ..abi::PmStatPx::default()
        };
        let mut area = vec![0; <abi::PmStatPx as SysctlArea>::LEN];
        let answer = self.backend().sysctl_area(body, &mut area);
        let stat = self.managed(cpu, answer)?;
        Ok(stat.map(|stat| px_states(&stat, &area)))
    }

    /// Returns the idle states of a CPU; `None` if Xen uses none.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a CPU that is missing or offline; those common to all calls.
    #[doc(alias = "xc_pm_get_cxstat")]
    #[doc(alias = "PMSTAT_get_cxstat")]
    pub fn idle_states(&self, cpu: u32) -> Result<Option<IdleStates>> {
        let body = abi::PmStatCx {
            cpuid: cpu,
            ..abi::PmStatCx::default()
        };
        // A counter that the processor does not have stays as it is.
        let mut area = vec![0xff; <abi::PmStatCx as SysctlArea>::LEN];
        let answer = self.backend().sysctl_area(body, &mut area);
        let stat = self.managed(cpu, answer)?;
        Ok(stat
            .filter(|stat| stat.nr > 0)
            .map(|stat| cx_states(&stat, &area)))
    }

    /// Returns the average frequency of a CPU since the last call, in kHz; `None` if Xen does not
    /// scale it.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a CPU that is missing or offline; those common to all calls.
    #[doc(alias = "xc_get_cpufreq_avgfreq")]
    #[doc(alias = "XEN_SYSCTL_pm_op")]
    pub fn average_khz(&self, cpu: u32) -> Result<Option<u64>> {
        let answer = self.backend().sysctl(AverageFrequency::new(cpu));
        let answer = self.managed(cpu, answer)?;
        Ok(answer.map(|answer| answer.0.value))
    }

    /// Returns `None` if a CPU that exists has no such data.
    fn managed<T>(&self, cpu: u32, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(e) if matches!(e.errno(), Some(libc::ENODEV | NO_DATA)) => Ok(None),
            // For a CPU that is there without such data, Xen returns the same.
            Err(e) if e.errno() == Some(libc::EINVAL) => {
                let cpus = self.cpu_topology()?;
                let online = cpus.get(cpu as usize).is_some_and(|c| c.core.is_some());
                if online { Ok(None) } else { Err(e) }
            }
            Err(e) => Err(e),
        }
    }

    /// Returns everything in Xen's console ring, as `xl dmesg` prints it.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_readconsolering")]
    #[doc(alias = "XEN_SYSCTL_readconsole")]
    pub fn console_ring(&self) -> Result<Vec<u8>> {
        let mut chunk = self.read_console(false, None)?;
        let mut all = std::mem::take(&mut chunk.bytes);
        // A guest may write faster than this reads; the ring's size bounds what is there now.
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

    /// Returns at most 32 KiB of Xen's console ring from `index` on, which is the
    /// [`next`](ConsoleChunk::next) of an earlier chunk. Bytes that the ring has lost since then
    /// are left out.
    ///
    /// [`Virq::CON_RING`](crate::Virq::CON_RING) notifies the domain that has it bound of more
    /// bytes.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_readconsolering")]
    pub fn console_ring_from(&self, index: u32) -> Result<ConsoleChunk> {
        self.read_console(false, Some(index))
    }

    /// Empties Xen's console ring, for every reader.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
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

/// The numbers in an area from byte `at` on.
fn numbers(area: &[u8], at: usize) -> impl Iterator<Item = u64> {
    let bytes = area.get(at..).unwrap_or_default();
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).ok();
    bytes.chunks_exact(size_of::<u64>()).filter_map(number)
}

fn px_states(stat: &abi::PmStatPx, area: &[u8]) -> FrequencyStates {
    let total = usize::from(stat.total).min(PX_STATES);
    let mut values = numbers(area, PX_VALUES);
    let state = || {
        let mut next = || values.next().unwrap_or_default();
        FrequencyState {
            mhz: next(),
            residency: Duration::from_nanos(next()),
            count: next(),
        }
    };
    let states = std::iter::repeat_with(state).take(total).collect();
    // The rows are as long as there are states.
    let counts: Vec<u64> = numbers(area, 0).take(total * total).collect();
    FrequencyStates {
        states,
        usable: stat.usable,
        last: stat.last,
        current: stat.cur,
        transitions: counts.chunks(total.max(1)).map(<[u64]>::to_vec).collect(),
    }
}

fn cx_states(stat: &abi::PmStatCx, area: &[u8]) -> IdleStates {
    let array = |n: usize, len: u32| {
        let at = n * CX_STATES * size_of::<u64>();
        numbers(area, at).take((len as usize).min(CX_STATES))
    };
    let state = |(count, nanoseconds)| IdleState {
        count,
        residency: Duration::from_nanos(nanoseconds),
    };
    let counter = |value| Some(value).filter(|&value| value != u64::MAX);
    IdleStates {
        states: array(0, stat.nr)
            .zip(array(1, stat.nr))
            .map(state)
            .collect(),
        last: stat.last,
        idle: Duration::from_nanos(stat.idle_time),
        package: array(2, stat.nr_pc).map(counter).collect(),
        core: array(3, stat.nr_cc).map(counter).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    #[test]
    fn performance_states_are_read_where_xen_puts_them() {
        let mut area = vec![0; <abi::PmStatPx as SysctlArea>::LEN];
        area[..32].copy_from_slice([1_u64, 2, 3, 4].as_bytes());
        area[PX_VALUES..][..48].copy_from_slice([2000_u64, 5, 6, 1000, 7, 8].as_bytes());
        let stat = abi::PmStatPx {
            total: 2,
            usable: 1,
            cur: 1,
            ..abi::PmStatPx::default()
        };
        let read = px_states(&stat, &area);
        let states: Vec<_> = read.states.iter().map(|s| (s.mhz, s.count)).collect();
        assert_eq!(states, [(2000, 6), (1000, 8)]);
        assert_eq!(read.transitions, [[1, 2], [3, 4]]);
        let all = abi::PmStatPx { total: 255, ..stat };
        assert_eq!(px_states(&all, &area).states.len(), 255);
        let placed = abi::PmStatPx::default().place(0x1000);
        assert_eq!(placed.pt - placed.trans_pt, PX_VALUES as u64);
    }

    #[test]
    fn idle_states_are_as_many_as_there_is_room_for() {
        let mut area = vec![0xff; <abi::PmStatCx as SysctlArea>::LEN];
        let size = CX_STATES * 8;
        area[..16].copy_from_slice([1_u64, 2].as_bytes());
        area[size..][..16].copy_from_slice([30_u64, 40].as_bytes());
        area[2 * size + 8..][..8].copy_from_slice(&9_u64.to_ne_bytes());
        let stat = abi::PmStatCx {
            nr: 2,
            nr_pc: 2,
            nr_cc: u32::MAX,
            ..abi::PmStatCx::default()
        };
        let read = cx_states(&stat, &area);
        assert_eq!(read.states[1].residency, Duration::from_nanos(40));
        assert_eq!((read.states.len(), read.states[1].count), (2, 2));
        assert_eq!(read.package, [None, Some(9)]);
        assert_eq!(read.core.len(), CX_STATES);
    }
}
