//! Domains: `domctl`, and the operations of sysctl that list them.

use std::fmt;
use std::time::Duration;

use bitflags::bitflags;

use super::{DomainHandle, Privcmd};
use crate::abi::{domctl as abi, hypercall, sysctl};
use crate::{DomId, Error, PAGE_SIZE, Result};

bitflags! {
    /// State and kind of a domain: `XEN_DOMINF_*`. Bits without a name here
    /// are kept; the shutdown code is not among them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DomainFlags: u32 {
        /// It is being destroyed.
        #[doc(alias = "XEN_DOMINF_dying")]
        const DYING = 1 << 0;
        /// It is an HVM guest (including PVH) and no PV guest.
        #[doc(alias = "XEN_DOMINF_hvm_guest")]
        const HVM = 1 << 1;
        /// It has shut down, see [`DomainInfo::shutdown`].
        #[doc(alias = "XEN_DOMINF_shutdown")]
        const SHUTDOWN = 1 << 2;
        /// The toolstack has paused it.
        #[doc(alias = "XEN_DOMINF_paused")]
        const PAUSED = 1 << 3;
        /// All its virtual CPUs wait for events.
        #[doc(alias = "XEN_DOMINF_blocked")]
        const BLOCKED = 1 << 4;
        /// One of its virtual CPUs is on a CPU now.
        #[doc(alias = "XEN_DOMINF_running")]
        const RUNNING = 1 << 5;
        /// A debugger is attached.
        #[doc(alias = "XEN_DOMINF_debugged")]
        const DEBUGGED = 1 << 6;
        /// It is the domain of xenstored.
        #[doc(alias = "XEN_DOMINF_xs_domain")]
        const XENSTORE = 1 << 7;
        /// Its memory is translated by the hardware.
        #[doc(alias = "XEN_DOMINF_hap")]
        const HAP = 1 << 8;

        const _ = 0xffff;
    }
}

/// The reason why a domain has shut down: `SHUTDOWN_*`, xen/include/public/sched.h. A guest may
/// give any.
#[doc(alias = "sched_shutdown_reason")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShutdownReason(u8);

impl ShutdownReason {
    /// It has ended normally.
    #[doc(alias = "SHUTDOWN_poweroff")]
    pub const POWEROFF: Self = Self(0);
    /// It requests a restart.
    #[doc(alias = "SHUTDOWN_reboot")]
    pub const REBOOT: Self = Self(1);
    /// It waits to be saved.
    #[doc(alias = "SHUTDOWN_suspend")]
    pub const SUSPEND: Self = Self(2);
    /// It has crashed.
    #[doc(alias = "SHUTDOWN_crash")]
    pub const CRASH: Self = Self(3);
    /// Its watchdog has ended it.
    #[doc(alias = "SHUTDOWN_watchdog")]
    pub const WATCHDOG: Self = Self(4);
    /// It requests a reset without an end.
    #[doc(alias = "SHUTDOWN_soft_reset")]
    pub const SOFT_RESET: Self = Self(5);

    /// Creates the reason numbered `reason`.
    #[must_use]
    pub const fn new(reason: u8) -> Self {
        Self(reason)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self.0
    }
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::POWEROFF => f.write_str("poweroff"),
            Self::REBOOT => f.write_str("reboot"),
            Self::SUSPEND => f.write_str("suspend"),
            Self::CRASH => f.write_str("crash"),
            Self::WATCHDOG => f.write_str("watchdog"),
            Self::SOFT_RESET => f.write_str("soft reset"),
            Self(other) => write!(f, "reason {other}"),
        }
    }
}

/// A domain at one moment, as Xen reports it.
///
/// C: `struct xen_domctl_getdomaininfo`, xen/include/public/domctl.h.
#[doc(alias = "xen_domctl_getdomaininfo")]
#[doc(alias = "xc_domaininfo_t")]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DomainInfo {
    /// Its number.
    pub id: DomId,
    /// Its state and kind.
    pub flags: DomainFlags,
    /// The reason why it has shut down, if it has.
    pub shutdown: Option<ShutdownReason>,
    /// Pages of memory it has, [`PAGE_SIZE`] bytes each.
    pub pages: u64,
    /// Pages it may have. For domain 0 it is the highest possible number, unless it was given a
    /// limit.
    pub max_pages: u64,
    /// Pages claimed for it that it does not have yet.
    pub outstanding_pages: u64,
    /// Pages it shares copy-on-write.
    pub shared_pages: u64,
    /// Pages that are paged out.
    pub paged_pages: u64,
    /// The guest frame of its shared info page.
    pub shared_info_frame: u64,
    /// The time that all its virtual CPUs ran together since it was created.
    pub cpu_time: Duration,
    /// Virtual CPUs online.
    pub online_vcpus: u32,
    /// The highest number of a virtual CPU; `None` before it was given any.
    pub max_vcpu_id: Option<u32>,
    /// Its security label's number.
    pub ssid: u32,
    /// Its UUID.
    pub handle: DomainHandle,
    /// The pool of CPUs it runs on.
    pub cpupool: u32,
    /// Bits in its physical addresses.
    pub physical_address_bits: u8,
}

impl DomainInfo {
    /// Returns [`pages`](Self::pages) in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.pages.saturating_mul(PAGE_SIZE as u64)
    }

    /// Returns [`max_pages`](Self::max_pages) in bytes, at most [`u64::MAX`].
    #[must_use]
    pub fn max_memory_bytes(&self) -> u64 {
        self.max_pages.saturating_mul(PAGE_SIZE as u64)
    }

    /// Returns [`outstanding_pages`](Self::outstanding_pages) in bytes.
    #[must_use]
    pub fn outstanding_bytes(&self) -> u64 {
        self.outstanding_pages.saturating_mul(PAGE_SIZE as u64)
    }

    /// Returns how many virtual CPUs it was given, online or not.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.max_vcpu_id.map_or(0, |last| last.saturating_add(1))
    }

    fn new(raw: &abi::GetDomainInfo) -> Self {
        let flags = DomainFlags::from_bits_truncate(raw.flags);
        let code = raw.flags >> abi::XEN_DOMINF_SHUTDOWNSHIFT & abi::XEN_DOMINF_SHUTDOWNMASK;
        let shutdown = flags.contains(DomainFlags::SHUTDOWN);
        let last = Some(raw.max_vcpu_id).filter(|&id| id != abi::XEN_INVALID_MAX_VCPU_ID);
        Self {
            id: raw.domain,
            flags,
            shutdown: shutdown.then_some(ShutdownReason::new(code as u8)),
            pages: raw.tot_pages,
            max_pages: raw.max_pages,
            outstanding_pages: raw.outstanding_pages,
            shared_pages: raw.shr_pages,
            paged_pages: raw.paged_pages,
            shared_info_frame: raw.shared_info_frame,
            cpu_time: running_time(raw.cpu_time),
            online_vcpus: raw.nr_online_vcpus,
            max_vcpu_id: last,
            ssid: raw.ssidref,
            handle: DomainHandle(raw.handle),
            cpupool: raw.cpupool,
            physical_address_bits: raw.gpaddr_bits,
        }
    }
}

/// Returns the time that virtual CPUs ran, without a flag that Xen may set in it.
///
/// While Xen updates the run states that a guest sees, it sets `XEN_RUNSTATE_UPDATE`, bit 63, in the
/// time at which the current state was entered (`update_runstate_area`, xen/common/domain.c). A sum
/// made at that moment is wrong by this bit.
fn running_time(nanoseconds: u64) -> Duration {
    Duration::from_nanos(nanoseconds & !abi::XEN_RUNSTATE_UPDATE)
}

/// A virtual CPU at one moment.
///
/// C: `struct xen_domctl_getvcpuinfo`, xen/include/public/domctl.h.
#[doc(alias = "xen_domctl_getvcpuinfo")]
#[doc(alias = "xc_vcpuinfo_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VcpuInfo {
    /// Its number in the domain.
    pub id: u32,
    /// Set if the guest has it online.
    pub online: bool,
    /// Set if it waits for an event.
    pub blocked: bool,
    /// Set if it is on a CPU now.
    pub running: bool,
    /// The time that it ran since the domain was created.
    pub cpu_time: Duration,
    /// The CPU it is on, or was on last.
    pub cpu: u32,
}

bitflags! {
    /// `XEN_DOMCTL_GETDOMSTATE_STATE_*`. Bits without a name here are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct StateFlags: u16 {
        /// There is such a domain.
        const EXIST = 1 << 0;
        /// It has shut down.
        const SHUTDOWN = 1 << 1;
        /// It is being destroyed.
        const DYING = 1 << 2;
        /// It is destroyed, but some of its memory is still in use.
        const DEAD = 1 << 3;

        const _ = !0;
    }
}

bitflags! {
    /// `XEN_DOMCTL_GETDOMSTATE_CAP_*`. Bits without a name here are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CapabilityFlags: u16 {
        /// It may create domains.
        const CONTROL = 1 << 0;
        /// It has the machine's devices.
        const HARDWARE = 1 << 1;
        /// It is the domain of xenstored.
        const XENSTORE = 1 << 2;

        const _ = !0;
    }
}

/// The state of a domain that may no longer exist.
///
/// C: `struct xen_domctl_get_domain_state`, xen/include/public/domctl.h of Xen 4.21.
#[doc(alias = "xen_domctl_get_domain_state")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainState {
    /// Its state.
    pub state: StateFlags,
    /// Its capabilities.
    pub capabilities: CapabilityFlags,
    /// A number that no other domain gets until the host is restarted, unlike its [`DomId`].
    pub unique_id: u64,
}

/// The most domains that one call requests.
const PER_CALL: u32 = 256;

/// Lists every domain, with calls that return at most [`PER_CALL`] domains, the given one first.
fn list(mut call: impl FnMut(DomId) -> Result<Vec<abi::GetDomainInfo>>) -> Result<Vec<DomainInfo>> {
    let mut domains = Vec::new();
    let mut next = 0;
    loop {
        let before = next;
        let found = call(DomId::new(next))?;
        let ascending = |raw: &&abi::GetDomainInfo| {
            let id = raw.domain.as_u16();
            let new = id >= next;
            next = next.max(id.saturating_add(1));
            new
        };
        domains.extend(found.iter().filter(ascending).map(DomainInfo::new));
        // Each turn begins above all domains found, so there are no more turns than numbers.
        let last = found.len() < PER_CALL as usize || next == before;
        if last || next >= DomId::FIRST_RESERVED.as_u16() {
            return Ok(domains);
        }
    }
}

/// Domains: xen/include/public/domctl.h and sysctl.h. For domain 0 and other control domains; the
/// store's domain may also call [`domain_info`](Self::domain_info) and [`domains`](Self::domains).
///
/// All calls fail with [`Error::NotPermitted`] where Xen refuses this domain,
/// [`Error::HypercallsRefused`] where the kernel refuses every hypercall, [`Error::LimitReached`]
/// where Xen has no room, and [`Error::InterfaceVersion`] on a hypervisor whose interface has an
/// unsupported version. Each waits for the hypervisor only.
impl Privcmd {
    /// Returns a domain as it is now.
    ///
    /// # Errors
    ///
    /// [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_getinfo_single")]
    #[doc(alias = "XEN_DOMCTL_getdomaininfo")]
    pub fn domain_info(&self, domain: DomId) -> Result<DomainInfo> {
        let found = self.backend().domctl(domain, no_info());
        Self::found(domain, found)
    }

    /// Returns several domains, each with its own result, in one hypercall for 64 of them.
    ///
    /// # Errors
    ///
    /// Those common to all calls. An error of a single domain, such as that it does not exist, is
    /// in the place of that domain.
    #[doc(alias = "xc_domain_getinfo_single")]
    pub fn domain_infos(&self, domains: &[DomId]) -> Result<Vec<Result<DomainInfo>>> {
        let found = self.backend().domctls(domains, no_info())?;
        let found = domains.iter().zip(found);
        Ok(found.map(|(&domain, f)| Self::found(domain, f)).collect())
    }

    /// Returns `domain`, if it was found: before Xen 4.18 the result is the next domain if there is
    /// no such one.
    fn found(domain: DomId, found: Result<(DomId, abi::GetDomainInfo)>) -> Result<DomainInfo> {
        let op = "XEN_DOMCTL_getdomaininfo";
        match found {
            Ok((_, raw)) if raw.domain == domain => Ok(DomainInfo::new(&raw)),
            Ok(_) => Err(Error::NoDomain { op, domain }),
            // A reserved number, in those versions.
            Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                Err(Error::NoDomain { op, domain })
            }
            Err(e) => Err(e),
        }
    }

    /// Returns every domain, by ascending number.
    ///
    /// If there are more than 256, this takes several calls, between which domains may be created
    /// and destroyed. A domain that exists all the time is never missing.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    ///
    /// ```no_run
    /// # use xen_sys::{Xen, privcmd::Privcmd};
    /// for domain in Privcmd::open(&Xen::open()?)?.domains()? {
    ///     println!("{} {} MiB", domain.id, domain.memory_bytes() >> 20);
    /// }
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    #[doc(alias = "xc_domain_getinfolist")]
    #[doc(alias = "XEN_SYSCTL_getdomaininfolist")]
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        list(|first_domain| {
            let body = sysctl::GetDomainInfoList {
                first_domain,
                pad: 0,
                max_domains: 0,
                buffer: 0,
                num_domains: 0,
                pad2: 0,
            };
            let (_, found) = self.backend().sysctl_array(body, PER_CALL)?;
            Ok(found)
        })
    }

    /// Returns the state of a domain that may no longer exist; Xen 4.21 and later, through a stable
    /// interface.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before; [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "XEN_DOMCTL_get_domain_state")]
    pub fn domain_state(&self, domain: DomId) -> Result<DomainState> {
        let op = "XEN_DOMCTL_get_domain_state";
        if domain == DomId::INVALID {
            // Xen would answer for whichever domain has changed, and consume that notification.
            return Err(Error::NoDomain { op, domain });
        }
        match self
            .backend()
            .domctl(domain, abi::GetDomainState::default())
        {
            Ok((_, raw)) => Ok(DomainState {
                state: StateFlags::from_bits_retain(raw.state),
                capabilities: CapabilityFlags::from_bits_retain(raw.caps),
                unique_id: raw.unique_id,
            }),
            // An earlier Xen treats it as a call of another version.
            Err(Error::NotPermitted { source, .. })
                if source.raw_os_error() == Some(libc::EACCES)
                    && self.version_numbers()? < (4, 21) =>
            {
                Err(Error::Unsupported { op })
            }
            Err(e) => Err(e),
        }
    }

    /// Pauses a domain: its virtual CPUs are off their CPUs when this returns. Pauses add up.
    ///
    /// # Errors
    ///
    /// `EINVAL` for this domain itself; `EOVERFLOW` at 255 pauses; [`Error::NoDomain`]; those
    /// common to all calls.
    #[doc(alias = "xc_domain_pause")]
    #[doc(alias = "XEN_DOMCTL_pausedomain")]
    pub fn pause(&self, domain: DomId) -> Result<()> {
        self.backend().domctl(domain, abi::Pause).map(drop)
    }

    /// Undoes one [`pause`](Self::pause), or lets a new domain run.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not paused; [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_unpause")]
    #[doc(alias = "XEN_DOMCTL_unpausedomain")]
    pub fn unpause(&self, domain: DomId) -> Result<()> {
        self.backend().domctl(domain, abi::Unpause).map(drop)
    }

    /// Ends a domain immediately and frees its memory. The toolstack must clean up the store and
    /// the devices; a domain that `xl` manages is better ended with `xl`.
    ///
    /// Blocks until the domain's memory is freed, which takes long for a large domain.
    ///
    /// # Errors
    ///
    /// `EINVAL` for this domain itself; [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_destroy")]
    #[doc(alias = "XEN_DOMCTL_destroydomain")]
    pub fn destroy(&self, domain: DomId) -> Result<()> {
        self.backend().domctl(domain, abi::Destroy).map(drop)
    }

    /// Declares that a domain has shut down, and so stops its virtual CPUs. Its toolstack then
    /// treats it as the domain's configuration specifies.
    ///
    /// # Errors
    ///
    /// [`Error::NoDomain`]; those common to all calls, but the interface has no version.
    #[doc(alias = "xc_domain_shutdown")]
    #[doc(alias = "SCHEDOP_remote_shutdown")]
    pub fn shutdown(&self, domain: DomId, reason: ShutdownReason) -> Result<()> {
        let argument = hypercall::SchedRemoteShutdown {
            domain_id: domain,
            pad: 0,
            reason: reason.0.into(),
        };
        let done = self.backend().operation(Some(domain), argument);
        done.map(drop)
    }

    /// Sets how much memory a domain may have, in bytes, rounded down to whole pages. The domain
    /// keeps memory that it has beyond the limit.
    ///
    /// # Errors
    ///
    /// [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_domain_setmaxmem")]
    #[doc(alias = "XEN_DOMCTL_max_mem")]
    pub fn set_max_memory(&self, domain: DomId, bytes: u64) -> Result<()> {
        let body = abi::MaxMem {
            max_memkb: bytes >> 10,
        };
        self.backend().domctl(domain, body).map(drop)
    }

    /// Returns a virtual CPU as it is now; `None` if the domain was given none of that number.
    ///
    /// # Errors
    ///
    /// [`Error::NoDomain`]; those common to all calls.
    #[doc(alias = "xc_vcpu_getinfo")]
    #[doc(alias = "XEN_DOMCTL_getvcpuinfo")]
    pub fn vcpu_info(&self, domain: DomId, vcpu: u32) -> Result<Option<VcpuInfo>> {
        let body = abi::GetVcpuInfo {
            vcpu,
            ..abi::GetVcpuInfo::default()
        };
        match self.backend().domctl(domain, body) {
            Ok((_, raw)) => Ok(Some(VcpuInfo {
                id: vcpu,
                online: raw.online != 0,
                blocked: raw.blocked != 0,
                running: raw.running != 0,
                cpu_time: running_time(raw.cpu_time),
                cpu: raw.cpu,
            })),
            // Beyond the most virtual CPUs that the domain can have.
            Err(e) if e.errno() == Some(libc::EINVAL) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn no_info() -> abi::GetDomainInfo {
    zerocopy::FromZeros::new_zeroed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shutdown_code_is_none_of_the_flags() {
        let mut raw = no_info();
        raw.flags = 0xff00_0002 | 3 << 16;
        raw.max_vcpu_id = !0;
        let info = DomainInfo::new(&raw);
        assert_eq!(info.flags, DomainFlags::HVM);
        assert_eq!(
            (info.shutdown, info.max_vcpu_id, info.vcpus()),
            (None, None, 0)
        );
        raw.flags |= 4;
        let crashed = DomainInfo::new(&raw).shutdown;
        assert_eq!(crashed, Some(ShutdownReason::CRASH));
        raw.max_vcpu_id = 1;
        raw.tot_pages = u64::MAX;
        let info = DomainInfo::new(&raw);
        assert_eq!((info.vcpus(), info.memory_bytes()), (2, u64::MAX));
    }

    #[test]
    fn the_time_that_a_domain_ran_is_without_xens_flag() {
        let mut raw = no_info();
        raw.cpu_time = 1 << 63 | 5;
        assert_eq!(DomainInfo::new(&raw).cpu_time, Duration::from_nanos(5));
    }

    #[test]
    fn pages_are_bytes_that_do_not_overflow() {
        let mut raw = no_info();
        (raw.tot_pages, raw.max_pages, raw.outstanding_pages) = (1, 2, 3);
        let bytes = |raw: &abi::GetDomainInfo| {
            let info = DomainInfo::new(raw);
            let (now, most) = (info.memory_bytes(), info.max_memory_bytes());
            [now, most, info.outstanding_bytes()]
        };
        assert_eq!(bytes(&raw), [4096, 8192, 12288]);
        // The value of domain 0, unless it was given a limit.
        raw.max_pages = u64::from(u32::MAX);
        assert_eq!(bytes(&raw)[1], (1 << 44) - 4096);
        raw.max_pages = u64::MAX;
        assert_eq!(bytes(&raw)[1], u64::MAX);
    }

    #[test]
    fn a_list_that_repeats_itself_ends() {
        let raw = |id| abi::GetDomainInfo {
            domain: DomId::new(id),
            ..no_info()
        };
        let mut firsts = Vec::new();
        let listed = list(|first| {
            firsts.push(first.as_u16());
            assert!(firsts.len() < 4, "calls from {firsts:?}");
            Ok((0..PER_CALL as u16).map(raw).collect())
        });
        let ids: Vec<u16> = listed.unwrap().iter().map(|d| d.id.as_u16()).collect();
        assert!(ids.into_iter().eq(0..256));
        assert_eq!(firsts, [0, 256]);
    }

    #[test]
    fn the_next_domain_is_not_the_one_that_was_asked_for() {
        let mut raw = no_info();
        raw.domain = DomId::new(8);
        let asked = |n| Privcmd::found(DomId::new(n), Ok((raw.domain, raw)));
        assert!(asked(8).is_ok());
        let error = asked(7).unwrap_err();
        assert_eq!(
            error.to_string(),
            "XEN_DOMCTL_getdomaininfo: there is no domain 7"
        );
        assert_eq!(error.errno(), Some(libc::ESRCH));
    }
}
