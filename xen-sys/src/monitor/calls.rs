//! Calls for the monitor of a guest: its ring, its events, the permissions of its memory.

use std::ops::Range;

use bitflags::bitflags;

use super::{ControlRegister, Ring};
use crate::abi::hypercall::{MemAccessOp, MemoryReservation};
use crate::abi::{domctl as abi, vm_event};
use crate::ioctl::privcmd::{
    DecreaseReservation, GetMemAccess, PopulatePhysmap, SetMemAccess, SetMemAccessEach,
};
use crate::mmap::Protection;
use crate::privcmd::{HvmParam, MemoryAccess, Privcmd};
use crate::{DomId, Error, Port, Result};

bitflags! {
    /// The events that a guest can be watched for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MonitorEvents: u32 {
        /// [`MonitorEvent::WriteControlRegister`].
        const WRITE_CONTROL_REGISTER = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG;
        /// [`MonitorEvent::WriteMsr`].
        const WRITE_MSR = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR;
        /// [`MonitorEvent::SingleStep`].
        const SINGLE_STEP = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP;
        /// [`MonitorEvent::SoftwareBreakpoint`].
        const SOFTWARE_BREAKPOINT = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT;
        /// [`MonitorEvent::GuestRequest`].
        const GUEST_REQUEST = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST;
        /// [`MonitorEvent::DebugException`].
        const DEBUG_EXCEPTION = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION;
        /// [`MonitorEvent::Cpuid`].
        const CPUID = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_CPUID;
        /// [`MonitorEvent::PrivilegedCall`].
        const PRIVILEGED_CALL = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL;
        /// [`Response::report_next_interrupt`](crate::monitor::Response::report_next_interrupt).
        const INTERRUPT = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_INTERRUPT;
        /// [`MonitorEvent::DescriptorAccess`].
        const DESCRIPTOR_ACCESS = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS;
        /// [`MonitorEvent::EmulatorUnimplemented`].
        const EMULATOR_UNIMPLEMENTED = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED;
        /// [`MonitorEvent::IgnorePageTableFaults`].
        const IGNORE_PAGE_TABLE_FAULTS = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT;
        /// [`MonitorEvent::VmExit`].
        const VM_EXIT = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_VMEXIT;
        /// [`MonitorEvent::Io`].
        const IO = 1 << abi::XEN_DOMCTL_MONITOR_EVENT_IO;
        /// Other events of newer versions of Xen.
        const _ = !0;
    }
}

/// An event to be reported, with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MonitorEvent {
    /// Writes to a control register of an x86 guest.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG")]
    #[doc(alias = "xc_monitor_write_ctrlreg")]
    WriteControlRegister {
        /// The register.
        register: ControlRegister,
        /// Set to pause the virtual CPU until the response.
        pause: bool,
        /// Only writes that change the value.
        on_change_only: bool,
        /// Bits whose change alone is not reported.
        ignored_bits: u64,
    },
    /// Writes to a model-specific register. The virtual CPU is paused until the response.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR")]
    #[doc(alias = "xc_monitor_mov_to_msr")]
    WriteMsr {
        /// The register.
        msr: u32,
        /// Only writes that change the value.
        on_change_only: bool,
    },
    /// Each instruction of a virtual CPU that single-steps. Intel only.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP")]
    #[doc(alias = "xc_monitor_singlestep")]
    SingleStep,
    /// `INT3`.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT")]
    #[doc(alias = "xc_monitor_software_breakpoint")]
    SoftwareBreakpoint,
    /// `HVMOP_guest_request_vm_event`.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST")]
    #[doc(alias = "xc_monitor_guest_request")]
    GuestRequest {
        /// Whether the virtual CPU is paused until the response.
        pause: bool,
        /// Whether programs of the guest may make the request, beside its kernel.
        allow_userspace: bool,
    },
    /// `#DB`.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION")]
    #[doc(alias = "xc_monitor_debug_exceptions")]
    DebugException {
        /// Whether the virtual CPU is paused until the response.
        pause: bool,
    },
    /// `CPUID`. The virtual CPU is paused until the response.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_CPUID")]
    #[doc(alias = "xc_monitor_cpuid")]
    Cpuid,
    /// `SMC` of an Arm guest.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL")]
    #[doc(alias = "xc_monitor_privileged_call")]
    PrivilegedCall,
    /// Accesses to the registers of descriptor tables.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS")]
    #[doc(alias = "xc_monitor_descriptor_access")]
    DescriptorAccess,
    /// Instructions that the emulator does not implement.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED")]
    #[doc(alias = "xc_monitor_emul_unimplemented")]
    EmulatorUnimplemented,
    /// Suppresses the events of memory accesses that the processor makes to the guest's page
    /// tables; Xen emulates them.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT")]
    #[doc(alias = "xc_monitor_inguest_pagefault")]
    IgnorePageTableFaults,
    /// Exits to the hypervisor.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_VMEXIT")]
    #[doc(alias = "xc_monitor_vmexit")]
    VmExit {
        /// Whether Xen leaves the exit alone, and the virtual CPU is paused until the response.
        pause: bool,
    },
    /// Accesses to I/O ports; Xen 4.18 and later, Intel only.
    #[doc(alias = "XEN_DOMCTL_MONITOR_EVENT_IO")]
    #[doc(alias = "xc_monitor_io")]
    Io,
}

impl MonitorEvent {
    /// Returns the event without its options.
    #[must_use]
    pub fn events(&self) -> MonitorEvents {
        MonitorEvents::from_bits_retain(1 << self.number())
    }

    fn number(&self) -> u32 {
        match self {
            Self::WriteControlRegister { .. } => abi::XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG,
            Self::WriteMsr { .. } => abi::XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR,
            Self::SingleStep => abi::XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP,
            Self::SoftwareBreakpoint => abi::XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT,
            Self::GuestRequest { .. } => abi::XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST,
            Self::DebugException { .. } => abi::XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION,
            Self::Cpuid => abi::XEN_DOMCTL_MONITOR_EVENT_CPUID,
            Self::PrivilegedCall => abi::XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL,
            Self::DescriptorAccess => abi::XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS,
            Self::EmulatorUnimplemented => abi::XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED,
            Self::IgnorePageTableFaults => abi::XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT,
            Self::VmExit { .. } => abi::XEN_DOMCTL_MONITOR_EVENT_VMEXIT,
            Self::Io => abi::XEN_DOMCTL_MONITOR_EVENT_IO,
        }
    }

    /// Returns the options, in the union of `struct xen_domctl_monitor_op`.
    fn options(&self) -> [u8; 16] {
        let mut u = [0; 16];
        match *self {
            Self::WriteControlRegister {
                register,
                pause,
                on_change_only,
                ignored_bits,
            } => {
                // A register number of more than eight bits does not exist, and neither does 255.
                u[0] = u8::try_from(register.as_u32()).unwrap_or(u8::MAX);
                u[1] = pause.into();
                u[2] = on_change_only.into();
                u[8..].copy_from_slice(&ignored_bits.to_ne_bytes());
            }
            Self::WriteMsr {
                msr,
                on_change_only,
            } => {
                u[..4].copy_from_slice(&msr.to_ne_bytes());
                u[4] = on_change_only.into();
            }
            Self::GuestRequest {
                pause,
                allow_userspace,
            } => {
                u[0] = pause.into();
                u[1] = allow_userspace.into();
            }
            Self::DebugException { pause } | Self::VmExit { pause } => u[0] = pause.into(),
            Self::SingleStep
            | Self::SoftwareBreakpoint
            | Self::Cpuid
            | Self::PrivilegedCall
            | Self::DescriptorAccess
            | Self::EmulatorUnimplemented
            | Self::IgnorePageTableFaults
            | Self::Io => {}
        }
        u
    }
}

const ACCESS_OP: &str = "XENMEM_access_op";
const VM_EVENT_OP: &str = "XEN_DOMCTL_vm_event_op";
const MONITOR_OP: &str = "XEN_DOMCTL_monitor_op";

/// Converts Xen's `EOPNOTSUPP` to [`Error::Unsupported`]: the machine or the kind of domain lacks
/// it.
fn unless_missing<T>(op: &'static str, result: Result<T>) -> Result<T> {
    match result {
        Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Err(Error::Unsupported { op }),
        result => result,
    }
}

/// The monitor of a guest. `xen_evtchn::monitor::Monitor` makes these calls in the right order.
///
/// A domain cannot monitor itself. All calls fail with [`Error::NotPermitted`] where Xen refuses
/// them, [`Error::HypercallsRefused`] where the kernel does, and [`Error::NoDomain`]. They fail
/// with [`Error::Unsupported`] where the machine does not support them (memory permissions need an
/// Intel or Arm processor, for instance), and for PV domains, for which they have no meaning. A
/// simulated host has no monitor.
impl Privcmd {
    /// Makes the monitor's ring of a guest. Returns the ring, and the guest's port, to which this
    /// domain may [bind](crate::ioctl::Evtchn::bind_interdomain) once.
    ///
    /// The guest is paused meanwhile. The ring's page is removed from its memory, so that the guest
    /// cannot write to it. Another domain can, if the guest has granted it the page.
    ///
    /// # Errors
    ///
    /// [`Error::InterfaceVersion`] when Xen's records are of another version; [`Error::Os`]:
    /// `EBUSY` when the guest has a monitor, possibly left by a killed program
    /// ([`disable_monitor`](Self::disable_monitor)), `EINVAL` for this domain itself;
    /// [`Error::Unsupported`] when it is no HVM or Arm guest, or one for which no toolstack has
    /// chosen the page ([`HvmParam::MONITOR_RING_PFN`]); [`Error::ForeignFrame`] when the page
    /// cannot be mapped; those common to all calls.
    #[doc(alias = "xc_monitor_enable")]
    #[doc(alias = "XEN_VM_EVENT_ENABLE")]
    pub fn enable_monitor(&self, domain: DomId) -> Result<(Ring, Port)> {
        self.check_event_version()?;
        // Fails for the calling domain itself: from here on the domain is another.
        self.pause(domain)?;
        let made = self.make_ring(domain);
        let resumed = self.unpause(domain);
        let made = made?;
        resumed?;
        Ok(made)
    }

    fn check_event_version(&self) -> Result<()> {
        // Xen answers this request without a domain.
        let version = self.vm_event(DomId::INVALID, abi::XEN_VM_EVENT_GET_VERSION)?;
        match version {
            vm_event::VM_EVENT_INTERFACE_VERSION => Ok(()),
            _ => Err(Error::InterfaceVersion {
                op: "vm_event",
                lowest: vm_event::VM_EVENT_INTERFACE_VERSION,
                highest: vm_event::VM_EVENT_INTERFACE_VERSION,
            }),
        }
    }

    fn vm_event(&self, domain: DomId, op: u32) -> Result<u32> {
        let mode = abi::XEN_DOMCTL_VM_EVENT_OP_MONITOR;
        let body = abi::VmEventOp { op, mode, u: 0 };
        let done = self.backend().domctl(domain, body);
        unless_missing(VM_EVENT_OP, done).map(|(_, body)| body.u)
    }

    /// Makes the ring of `domain`, which is paused and not this domain.
    fn make_ring(&self, domain: DomId) -> Result<(Ring, Port)> {
        let frame = match self.hvm_param(domain, HvmParam::MONITOR_RING_PFN) {
            // A PV domain has no parameters.
            Err(e) if e.errno() == Some(libc::EINVAL) => {
                return Err(Error::Unsupported { op: VM_EVENT_OP });
            }
            frame => frame?,
        };
        // Xen refuses it too.
        if frame == 0 {
            return Err(Error::Unsupported { op: VM_EVENT_OP });
        }
        let guest = self.guest(domain);
        let map = || guest.map_frames(&[frame], Protection::ReadWrite);
        let mut mapped = map()?;
        // The previous monitor removed the page.
        if mapped.errors == [libc::EINVAL] {
            let argument = PopulatePhysmap(reservation(domain));
            self.backend().frame_list(domain, argument, &[frame], &[])?;
            mapped = map()?;
        }
        let error = mapped.errors.first().copied().unwrap_or(libc::EIO);
        let ring = Ring::mapped(mapped).ok_or_else(|| guest.frame_error(frame, error))?;
        let port = Port::new(self.vm_event(domain, abi::XEN_VM_EVENT_ENABLE)?);
        let argument = DecreaseReservation(reservation(domain));
        let removed = self.backend().frame_list(domain, argument, &[frame], &[]);
        if let Err(e) = removed {
            // The first error is the one to return.
            let _ = self.disable_monitor(domain);
            return Err(e);
        }
        Ok((ring, port))
    }

    /// Ends the monitor of a guest, whoever made it. No further event is reported.
    ///
    /// A virtual CPU that is paused for an event without a response **stays paused**. A virtual CPU
    /// that has not run since its response loses what that requested: registers, an emulation, a
    /// write to a register. `xen_evtchn::monitor` prevents both.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EINVAL` when there is no monitor, `EBUSY` while a virtual CPU waits for room
    /// in the ring (even then no further event is reported); those common to all calls.
    #[doc(alias = "xc_monitor_disable")]
    #[doc(alias = "XEN_VM_EVENT_DISABLE")]
    pub fn disable_monitor(&self, domain: DomId) -> Result<()> {
        self.vm_event(domain, abi::XEN_VM_EVENT_DISABLE).map(drop)
    }

    /// Lets Xen read the responses in the ring, as a notification of the event channel does.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ENODEV` when the guest has no monitor; those common to all calls.
    #[doc(alias = "xc_monitor_resume")]
    #[doc(alias = "XEN_VM_EVENT_RESUME")]
    pub fn resume_monitor(&self, domain: DomId) -> Result<()> {
        self.vm_event(domain, abi::XEN_VM_EVENT_RESUME).map(drop)
    }

    /// Ends the monitor of a guest, whoever made it, and resumes the virtual CPUs that are paused
    /// for events without a response: for a monitor that a killed program left. Permissions of the
    /// memory stay, and Xen lifts each at the next access, unless
    /// [`set_access_required`](Self::set_access_required) is in effect.
    ///
    /// The events themselves are lost: an instruction that Xen reports before it is executed is
    /// executed again.
    ///
    /// # Errors
    ///
    /// Those of [`enable_monitor`](Self::enable_monitor), apart from `EBUSY`.
    pub fn recover_from_monitor(&self, domain: DomId) -> Result<()> {
        self.check_event_version()?;
        // Paused, so that no virtual CPU that continues is reported again.
        self.pause(domain)?;
        let recovered = self.resume_orphans(domain);
        let resumed = self.unpause(domain);
        recovered.and(resumed)
    }

    fn resume_orphans(&self, domain: DomId) -> Result<()> {
        let vcpus = self.domain_info(domain)?.vcpus();
        match self.disable_monitor(domain) {
            // There is no monitor.
            Err(e) if e.errno() == Some(libc::EINVAL) => {}
            done => done?,
        }
        let (mut ring, _) = self.make_ring(domain)?;
        for vcpu in 0..vcpus {
            ring.resume_orphan(vcpu);
            // If this fails, so does the call below, whose error is returned.
            let _ = self.resume_monitor(domain);
        }
        self.disable_monitor(domain)
    }

    fn monitor(&self, domain: DomId, op: u32, event: u32, u: [u8; 16]) -> Result<u32> {
        let body = abi::MonitorOp { op, event, u };
        let done = self.backend().domctl(domain, body);
        unless_missing(MONITOR_OP, done).map(|(_, body)| body.event)
    }

    /// Returns the events of a guest that this machine can report; none for a PV domain.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_monitor_get_capabilities")]
    #[doc(alias = "XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES")]
    pub fn monitor_capabilities(&self, domain: DomId) -> Result<MonitorEvents> {
        let op = abi::XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES;
        let bits = self.monitor(domain, op, 0, [0; 16])?;
        Ok(MonitorEvents::from_bits_retain(bits))
    }

    /// Reports an event from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the machine cannot; [`Error::Os`]: `EEXIST` when it is enabled,
    /// `EINVAL` when the register cannot be watched; those common to all calls.
    #[doc(alias = "XEN_DOMCTL_MONITOR_OP_ENABLE")]
    pub fn enable_event(&self, domain: DomId, event: &MonitorEvent) -> Result<()> {
        let op = abi::XEN_DOMCTL_MONITOR_OP_ENABLE;
        let done = self.monitor(domain, op, event.number(), event.options());
        done.map(drop)
    }

    /// Stops reporting an event. Its options other than the register are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the machine cannot; [`Error::Os`]: `EEXIST` when it is not
    /// enabled; those common to all calls.
    #[doc(alias = "XEN_DOMCTL_MONITOR_OP_DISABLE")]
    pub fn disable_event(&self, domain: DomId, event: &MonitorEvent) -> Result<()> {
        let op = abi::XEN_DOMCTL_MONITOR_OP_DISABLE;
        let done = self.monitor(domain, op, event.number(), event.options());
        done.map(drop)
    }

    /// Lets responses [deny](crate::monitor::Response::deny) writes to control registers. Xen then
    /// makes such a write when the virtual CPU continues, and **loses** it if the monitor is
    /// disabled before. Stays in effect until the monitor is disabled.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when Xen has no such operation; those common to all calls.
    #[doc(alias = "xc_monitor_control_register")]
    #[doc(alias = "XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS")]
    pub fn enable_control_register_denial(&self, domain: DomId) -> Result<()> {
        let op = abi::XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS;
        self.monitor(domain, op, 0, [0; 16]).map(drop)
    }

    /// Reports each step of a repeated instruction that Xen emulates, or the instruction once.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] without memory permissions; those common to all calls.
    #[doc(alias = "xc_monitor_emulate_each_rep")]
    #[doc(alias = "XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP")]
    pub fn set_emulate_each_repetition(&self, domain: DomId, each: bool) -> Result<()> {
        let op = abi::XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP;
        self.monitor(domain, op, each.into(), [0; 16]).map(drop)
    }

    /// Turns single-stepping of a virtual CPU on or off. The virtual CPU or its domain must be
    /// paused.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the machine cannot; [`Error::Os`]: `EINVAL` for no such virtual
    /// CPU; those common to all calls.
    #[doc(alias = "xc_domain_debug_control")]
    #[doc(alias = "XEN_DOMCTL_debug_op")]
    pub fn set_single_step(&self, domain: DomId, vcpu: u32, on: bool) -> Result<()> {
        let op = match on {
            true => abi::XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON,
            false => abi::XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF,
        };
        let done = self.backend().domctl(domain, abi::DebugOp { op, vcpu });
        unless_missing("XEN_DOMCTL_debug_op", done).map(drop)
    }

    /// Sets what happens to a guest that makes an access that its memory does not permit while it
    /// has no monitor: `true` ends it, `false` lifts the permission, which is the default.
    ///
    /// # Errors
    ///
    /// Those common to all calls.
    #[doc(alias = "xc_domain_set_access_required")]
    #[doc(alias = "XEN_DOMCTL_set_access_required")]
    pub fn set_access_required(&self, domain: DomId, required: bool) -> Result<()> {
        let access_required = required.into();
        let body = abi::SetAccessRequired { access_required };
        let done = self.backend().domctl(domain, body);
        unless_missing("XEN_DOMCTL_set_access_required", done).map(drop)
    }

    fn get_access(&self, domain: DomId, frame: u64) -> Result<MemAccessOp> {
        let argument = GetMemAccess(access(domain, 0, 0, frame));
        let done = self.backend().operation(Some(domain), argument);
        done.map(|(_, GetMemAccess(answer))| answer)
    }

    /// Distinguishes a machine without permissions from a frame that does not exist: Xen fails with
    /// `EINVAL` for both. The default permission of a domain always exists.
    fn or_no_permissions<T>(&self, domain: DomId, result: Result<T>) -> Result<T> {
        let invalid = |e: &Error| e.errno() == Some(libc::EINVAL);
        match unless_missing(ACCESS_OP, result) {
            Err(e) if invalid(&e) => match self.get_access(domain, u64::MAX) {
                Err(probe) if invalid(&probe) => Err(Error::Unsupported { op: ACCESS_OP }),
                _ => Err(e),
            },
            result => result,
        }
    }

    /// Returns the permission of a guest frame.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the machine has no permissions; [`Error::Os`]: `ENODEV` when the
    /// guest has no monitor, `ESRCH` or `EINVAL` for frames that the guest does not have; those
    /// common to all calls.
    #[doc(alias = "xc_get_mem_access")]
    #[doc(alias = "XENMEM_access_op_get_access")]
    pub fn mem_access(&self, domain: DomId, frame: u64) -> Result<MemoryAccess> {
        let done = self.get_access(domain, frame);
        let answer = self.or_no_permissions(domain, done)?;
        let xen = self.version_numbers()?;
        Ok(MemoryAccess::from_number(answer.access, xen))
    }

    /// Sets the permission of a range of guest frames.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the machine has no permissions, or Xen does not have this one;
    /// [`Error::Invalid`] for a range that is empty or of more than 2<sup>32</sup> frames;
    /// [`Error::Os`]: `ENODEV` when the guest has no monitor, `EINVAL` for frames that the guest
    /// does not have; those common to all calls.
    #[doc(alias = "xc_set_mem_access")]
    #[doc(alias = "XENMEM_access_op_set_access")]
    pub fn set_mem_access(
        &self,
        domain: DomId,
        frames: Range<u64>,
        permission: MemoryAccess,
    ) -> Result<()> {
        let count = frames.end.saturating_sub(frames.start);
        let nr = u32::try_from(count).ok().filter(|&nr| nr > 0);
        let nr = nr.ok_or(Error::Invalid {
            op: ACCESS_OP,
            what: "the number of frames",
            value: count,
        })?;
        let code = access_number(permission, self.version_numbers()?)?;
        let argument = SetMemAccess(access(domain, code, nr, frames.start));
        let done = self.backend().operation(Some(domain), argument);
        self.or_no_permissions(domain, done).map(drop)
    }

    /// Sets the permission that pages get when they become the guest's.
    ///
    /// # Errors
    ///
    /// As [`set_mem_access`](Self::set_mem_access).
    #[doc(alias = "xc_set_mem_access")]
    pub fn set_default_mem_access(&self, domain: DomId, permission: MemoryAccess) -> Result<()> {
        let code = access_number(permission, self.version_numbers()?)?;
        let argument = SetMemAccess(access(domain, code, 0, u64::MAX));
        let done = self.backend().operation(Some(domain), argument);
        self.or_no_permissions(domain, done).map(drop)
    }

    /// Returns the permission that pages get when they become the guest's.
    ///
    /// # Errors
    ///
    /// As [`mem_access`](Self::mem_access).
    #[doc(alias = "xc_get_mem_access")]
    pub fn default_mem_access(&self, domain: DomId) -> Result<MemoryAccess> {
        self.mem_access(domain, u64::MAX)
    }

    /// Sets the permission of each of several guest frames, in one hypercall for 4096 of them.
    ///
    /// # Errors
    ///
    /// Those of [`set_mem_access`](Self::set_mem_access); some of the permissions are set then.
    #[doc(alias = "xc_set_mem_access_multi")]
    #[doc(alias = "XENMEM_access_op_set_access_multi")]
    pub fn set_mem_access_each(&self, domain: DomId, frames: &[(u64, MemoryAccess)]) -> Result<()> {
        let xen = self.version_numbers()?;
        for frames in frames.chunks(4096) {
            let codes = frames.iter().map(|&(_, access)| access_number(access, xen));
            let codes = codes.collect::<Result<Vec<u8>>>()?;
            let numbers: Vec<u64> = frames.iter().map(|&(frame, _)| frame).collect();
            let argument = SetMemAccessEach(access(domain, 0, 0, 0));
            let done = self
                .backend()
                .frame_list(domain, argument, &numbers, &codes);
            self.or_no_permissions(domain, done)?;
        }
        Ok(())
    }
}

fn access_number(access: MemoryAccess, xen: (u16, u16)) -> Result<u8> {
    let number = access.number(xen);
    number.ok_or(Error::Unsupported { op: ACCESS_OP })
}

fn access(domain: DomId, access: u8, nr: u32, pfn: u64) -> MemAccessOp {
    MemAccessOp {
        op: 0,
        access,
        domid: domain,
        nr,
        pfn,
        pfn_list: 0,
        access_list: 0,
    }
}

fn reservation(domain: DomId) -> MemoryReservation {
    MemoryReservation {
        extent_start: 0,
        nr_extents: 0,
        extent_order: 0,
        mem_flags: 0,
        domid: domain,
        pad: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_an_event_are_where_c_has_them() {
        let u = MonitorEvent::WriteControlRegister {
            register: ControlRegister::CR3,
            pause: true,
            on_change_only: false,
            ignored_bits: 0x1122_3344_5566_7788,
        }
        .options();
        assert_eq!(u[..8], [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(u[8..], 0x1122_3344_5566_7788_u64.to_ne_bytes());
        let u = MonitorEvent::WriteMsr {
            msr: 0xc000_0082,
            on_change_only: true,
        }
        .options();
        assert_eq!(u[..4], 0xc000_0082_u32.to_ne_bytes());
        assert_eq!(u[4..6], [1, 0]);
        let u = MonitorEvent::GuestRequest {
            pause: false,
            allow_userspace: true,
        };
        assert_eq!(u.options()[..2], [0, 1]);
    }

    #[test]
    fn a_register_beyond_eight_bits_is_not_taken_for_another() {
        let event = |index| MonitorEvent::WriteControlRegister {
            register: ControlRegister::new(index),
            pause: false,
            on_change_only: false,
            ignored_bits: 0,
        };
        assert_eq!(event(0x101).options()[0], 255);
    }

    #[test]
    fn a_permission_that_an_older_xen_takes_for_another_is_not_sent_to_it() {
        let number = |xen| access_number(MemoryAccess::RPagingWrite, xen);
        assert!(matches!(number((4, 17)), Err(Error::Unsupported { .. })));
        assert_eq!(number((4, 20)).unwrap(), 10);
    }
}
