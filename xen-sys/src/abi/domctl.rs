//! `domctl`: xen/include/public/domctl.h.
//!
//! The structs here are the same in every interface version of
//! [`INTERFACE_VERSIONS`], so one binary serves all of them.

use std::ops::RangeInclusive;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// The interface versions with these layouts.
///
/// | version | Xen |
/// |---|---|
/// | 0x15 | 4.17 |
/// | 0x16 | 4.18 |
/// | 0x17 | 4.19, 4.20, 4.21 |
/// | 0x18 | 4.22 |
#[doc(alias = "XEN_DOMCTL_INTERFACE_VERSION")]
pub const INTERFACE_VERSIONS: RangeInclusive<u32> = 0x15..=0x18;

/// The head of every operation, and room for its body.
///
/// C: `struct xen_domctl`.
#[doc(alias = "xen_domctl")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Domctl {
    /// `XEN_DOMCTL_*`.
    pub cmd: u32,
    /// One of [`INTERFACE_VERSIONS`]; 0 for the operations whose interface is stable.
    pub interface_version: u32,
    /// The domain.
    pub domain: DomId,
    /// Zero.
    pub pad: [u16; 3],
    /// The body.
    pub u: [u64; 16],
}

impl Domctl {
    /// Makes the operation `cmd` on `domain`. Bytes of `body` that do not fit are left out; all
    /// bodies here fit.
    pub(crate) fn new(
        cmd: u32,
        version: u32,
        domain: DomId,
        body: &(impl IntoBytes + Immutable),
    ) -> Self {
        Self {
            cmd,
            interface_version: version,
            domain,
            pad: [0; 3],
            u: super::words(body.as_bytes()),
        }
    }

    /// The body.
    pub(crate) fn body<B: FromBytes>(&self) -> Option<B> {
        B::read_from_prefix(self.u.as_bytes()).ok().map(|(b, _)| b)
    }
}

/// Ends a domain: [`Destroy`].
#[doc(alias = "XEN_DOMCTL_destroydomain")]
pub const XEN_DOMCTL_DESTROYDOMAIN: u32 = 2;
/// [`Pause`].
#[doc(alias = "XEN_DOMCTL_pausedomain")]
pub const XEN_DOMCTL_PAUSEDOMAIN: u32 = 3;
/// [`Unpause`].
#[doc(alias = "XEN_DOMCTL_unpausedomain")]
pub const XEN_DOMCTL_UNPAUSEDOMAIN: u32 = 4;
/// [`GetDomainInfo`].
#[doc(alias = "XEN_DOMCTL_getdomaininfo")]
pub const XEN_DOMCTL_GETDOMAININFO: u32 = 5;
/// [`MaxMem`].
#[doc(alias = "XEN_DOMCTL_max_mem")]
pub const XEN_DOMCTL_MAX_MEM: u32 = 11;
/// [`GetVcpuInfo`].
#[doc(alias = "XEN_DOMCTL_getvcpuinfo")]
pub const XEN_DOMCTL_GETVCPUINFO: u32 = 14;
/// [`DebugOp`].
#[doc(alias = "XEN_DOMCTL_debug_op")]
pub const XEN_DOMCTL_DEBUG_OP: u32 = 54;
/// [`VmEventOp`].
#[doc(alias = "XEN_DOMCTL_vm_event_op")]
pub const XEN_DOMCTL_VM_EVENT_OP: u32 = 56;
/// [`SetAccessRequired`].
#[doc(alias = "XEN_DOMCTL_set_access_required")]
pub const XEN_DOMCTL_SET_ACCESS_REQUIRED: u32 = 64;
/// [`MonitorOp`].
#[doc(alias = "XEN_DOMCTL_monitor_op")]
pub const XEN_DOMCTL_MONITOR_OP: u32 = 77;
/// [`GetDomainState`]; Xen 4.21 and later.
#[doc(alias = "XEN_DOMCTL_get_domain_state")]
pub const XEN_DOMCTL_GET_DOMAIN_STATE: u32 = 90;

/// No body: ends the domain.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Destroy;

/// No body: pauses the domain.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Pause;

/// No body: takes back one [`Pause`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Unpause;

/// Bytes in `struct xen_arch_domainconfig`, rounded up as in [`GetDomainInfo`].
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
pub const ARCH_CONFIG_LEN: usize = 8;
/// Bytes in `struct xen_arch_domainconfig`, rounded up as in [`GetDomainInfo`].
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
pub const ARCH_CONFIG_LEN: usize = 16;

/// Xen's record of a domain.
///
/// C: `struct xen_domctl_getdomaininfo`.
#[doc(alias = "xen_domctl_getdomaininfo")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetDomainInfo {
    /// The domain this is about.
    pub domain: DomId,
    /// Zero.
    pub pad1: u16,
    /// `XEN_DOMINF_*`.
    pub flags: u32,
    /// Pages it has.
    pub tot_pages: u64,
    /// Pages it may have.
    pub max_pages: u64,
    /// Pages claimed for it and not given yet.
    pub outstanding_pages: u64,
    /// Pages it shares copy-on-write.
    pub shr_pages: u64,
    /// Pages that are paged out.
    pub paged_pages: u64,
    /// The guest frame of its shared info page.
    pub shared_info_frame: u64,
    /// Nanoseconds its virtual CPUs ran.
    pub cpu_time: u64,
    /// Virtual CPUs online.
    pub nr_online_vcpus: u32,
    /// The highest virtual CPU.
    pub max_vcpu_id: u32,
    /// Its security label.
    pub ssidref: u32,
    /// Its UUID, in the order of its text form.
    pub handle: [u8; 16],
    /// Its pool of CPUs.
    pub cpupool: u32,
    /// Bits in a guest-physical address.
    pub gpaddr_bits: u8,
    /// Zero.
    pub pad2: [u8; 7],
    /// The part that differs between architectures.
    pub arch_config: [u8; ARCH_CONFIG_LEN],
}

/// A flag in a virtual CPU's times while Xen updates them: xen/include/public/vcpu.h.
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;
/// [`GetDomainInfo::max_vcpu_id`] of a domain without virtual CPUs.
pub const XEN_INVALID_MAX_VCPU_ID: u32 = !0;
/// Bits of [`GetDomainInfo::flags`] from which the shutdown code starts.
pub const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;
/// The shutdown code after that shift.
pub const XEN_DOMINF_SHUTDOWNMASK: u32 = 255;

/// The most memory a domain may have.
///
/// C: `struct xen_domctl_max_mem`.
#[doc(alias = "xen_domctl_max_mem")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MaxMem {
    /// In KiB.
    pub max_memkb: u64,
}

/// Xen's record of a virtual CPU.
///
/// C: `struct xen_domctl_getvcpuinfo`.
#[doc(alias = "xen_domctl_getvcpuinfo")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVcpuInfo {
    /// In: the virtual CPU.
    pub vcpu: u32,
    /// Out: whether it is online.
    pub online: u8,
    /// Out: whether it waits for an event.
    pub blocked: u8,
    /// Out: whether it is on a CPU now.
    pub running: u8,
    /// Padding, implicit in C.
    pub pad: u8,
    /// Out: nanoseconds it ran.
    pub cpu_time: u64,
    /// Out: the CPU it is on, or was on last.
    pub cpu: u32,
    /// Padding, implicit in C.
    pub pad2: u32,
}

/// The state of a domain; a stable interface.
///
/// C: `struct xen_domctl_get_domain_state`.
#[doc(alias = "xen_domctl_get_domain_state")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetDomainState {
    /// Out: `XEN_DOMCTL_GETDOMSTATE_STATE_*`.
    pub state: u16,
    /// Out: `XEN_DOMCTL_GETDOMSTATE_CAP_*`.
    pub caps: u16,
    /// Zero.
    pub pad0: u32,
    /// Out: a number that no other domain gets until the host is restarted.
    pub unique_id: u64,
}

/// Single-stepping of a virtual CPU.
///
/// C: `struct xen_domctl_debug_op`.
#[doc(alias = "xen_domctl_debug_op")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DebugOp {
    /// `XEN_DOMCTL_DEBUG_OP_*`.
    pub op: u32,
    /// The virtual CPU.
    pub vcpu: u32,
}

/// Off.
pub const XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF: u32 = 0;
/// On.
pub const XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON: u32 = 1;

/// The ring of the monitor, the pager or the sharer.
///
/// C: `struct xen_domctl_vm_event_op`.
#[doc(alias = "xen_domctl_vm_event_op")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmEventOp {
    /// `XEN_VM_EVENT_*`.
    pub op: u32,
    /// `XEN_DOMCTL_VM_EVENT_OP_*`.
    pub mode: u32,
    /// Out: a union: the guest's port of the ring's event channel, or the version of the records.
    pub u: u32,
}

/// Out: the port.
pub const XEN_VM_EVENT_ENABLE: u32 = 0;
/// Ends it.
pub const XEN_VM_EVENT_DISABLE: u32 = 1;
/// Responses are in the ring.
pub const XEN_VM_EVENT_RESUME: u32 = 2;
/// Out: the version.
pub const XEN_VM_EVENT_GET_VERSION: u32 = 3;
/// The monitor's ring.
pub const XEN_DOMCTL_VM_EVENT_OP_MONITOR: u32 = 2;

/// Requires a monitor for a domain whose memory's permissions need one, or not.
///
/// C: `struct xen_domctl_set_access_required`.
#[doc(alias = "xen_domctl_set_access_required")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetAccessRequired {
    /// 1: an access that needs the monitor's attention while there is no monitor ends the domain.
    pub access_required: u8,
}

/// The events that the monitor gets.
///
/// C: `struct xen_domctl_monitor_op`.
#[doc(alias = "xen_domctl_monitor_op")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MonitorOp {
    /// `XEN_DOMCTL_MONITOR_OP_*`.
    pub op: u32,
    /// In: `XEN_DOMCTL_MONITOR_EVENT_*`. Out, of capabilities: a bit for each.
    pub event: u32,
    /// A union: the event's options, in their C order.
    pub u: [u8; 16],
}

/// Starts an event.
pub const XEN_DOMCTL_MONITOR_OP_ENABLE: u32 = 0;
/// Stops an event.
pub const XEN_DOMCTL_MONITOR_OP_DISABLE: u32 = 1;
/// Returns which events there are.
pub const XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES: u32 = 2;
/// Reports each step of a repeated instruction that is emulated.
pub const XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP: u32 = 3;
/// Lets responses deny writes to control registers.
pub const XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS: u32 = 4;
/// A write to a control register.
pub const XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG: u32 = 0;
/// A write to a model-specific register.
pub const XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR: u32 = 1;
/// Each instruction.
pub const XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP: u32 = 2;
/// `INT3`.
pub const XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT: u32 = 3;
/// `HVMOP_guest_request_vm_event`.
pub const XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST: u32 = 4;
/// `#DB`.
pub const XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION: u32 = 5;
/// `CPUID`.
pub const XEN_DOMCTL_MONITOR_EVENT_CPUID: u32 = 6;
/// `SMC`.
pub const XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL: u32 = 7;
/// An interrupt.
pub const XEN_DOMCTL_MONITOR_EVENT_INTERRUPT: u32 = 8;
/// A register of a descriptor table.
pub const XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS: u32 = 9;
/// An instruction that the emulator does not implement.
pub const XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED: u32 = 10;
/// A fault in the guest's own page tables; reported unless it is disabled.
pub const XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT: u32 = 11;
/// An exit to the hypervisor.
pub const XEN_DOMCTL_MONITOR_EVENT_VMEXIT: u32 = 12;
/// An I/O port; Xen 4.18 and later.
pub const XEN_DOMCTL_MONITOR_EVENT_IO: u32 = 13;

/// [`VcpuContext`]: sets it.
#[doc(alias = "XEN_DOMCTL_setvcpucontext")]
pub const XEN_DOMCTL_SETVCPUCONTEXT: u32 = 12;
/// [`VcpuContext`]: gets it.
#[doc(alias = "XEN_DOMCTL_getvcpucontext")]
pub const XEN_DOMCTL_GETVCPUCONTEXT: u32 = 13;
/// [`MaxVcpus`].
#[doc(alias = "XEN_DOMCTL_max_vcpus")]
pub const XEN_DOMCTL_MAX_VCPUS: u32 = 15;
/// [`IrqPermission`].
#[doc(alias = "XEN_DOMCTL_irq_permission")]
pub const XEN_DOMCTL_IRQ_PERMISSION: u32 = 19;
/// [`IomemPermission`].
#[doc(alias = "XEN_DOMCTL_iomem_permission")]
pub const XEN_DOMCTL_IOMEM_PERMISSION: u32 = 20;
/// [`IoportPermission`].
#[doc(alias = "XEN_DOMCTL_ioport_permission")]
pub const XEN_DOMCTL_IOPORT_PERMISSION: u32 = 21;
/// [`HvmContext`]: gets it.
#[doc(alias = "XEN_DOMCTL_gethvmcontext")]
pub const XEN_DOMCTL_GETHVMCONTEXT: u32 = 33;
/// [`HvmContext`]: sets it.
#[doc(alias = "XEN_DOMCTL_sethvmcontext")]
pub const XEN_DOMCTL_SETHVMCONTEXT: u32 = 34;
/// [`AddressSize`].
#[doc(alias = "XEN_DOMCTL_get_address_size")]
pub const XEN_DOMCTL_GET_ADDRESS_SIZE: u32 = 36;
/// [`AssignDevice`]: gives the device to a domain.
#[doc(alias = "XEN_DOMCTL_assign_device")]
pub const XEN_DOMCTL_ASSIGN_DEVICE: u32 = 37;
/// [`AssignDevice`]: checks whether that could be done.
#[doc(alias = "XEN_DOMCTL_test_assign_device")]
pub const XEN_DOMCTL_TEST_ASSIGN_DEVICE: u32 = 45;
/// [`SetTarget`].
#[doc(alias = "XEN_DOMCTL_set_target")]
pub const XEN_DOMCTL_SET_TARGET: u32 = 46;
/// [`AssignDevice`]: takes the device back.
#[doc(alias = "XEN_DOMCTL_deassign_device")]
pub const XEN_DOMCTL_DEASSIGN_DEVICE: u32 = 47;
/// [`HvmContextPartial`].
#[doc(alias = "XEN_DOMCTL_gethvmcontext_partial")]
pub const XEN_DOMCTL_GETHVMCONTEXT_PARTIAL: u32 = 55;

/// A virtual CPU's registers.
///
/// C: `struct xen_domctl_vcpucontext`.
#[doc(alias = "xen_domctl_vcpucontext")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuContext {
    /// In: the virtual CPU.
    pub vcpu: u32,
    /// Padding, implicit in C.
    pub pad: u32,
    /// In: the address of the architecture's struct.
    pub ctxt: u64,
}

/// Makes a domain's virtual CPUs.
///
/// C: `struct xen_domctl_max_vcpus`.
#[doc(alias = "xen_domctl_max_vcpus")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MaxVcpus {
    /// In: how many.
    pub max: u32,
}

/// The width of a PV guest's addresses.
///
/// C: `struct xen_domctl_address_size`.
#[doc(alias = "xen_domctl_address_size")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressSize {
    /// Out: in bits.
    pub size: u32,
}

/// The state of an HVM guest that Xen keeps.
///
/// C: `struct xen_domctl_hvmcontext`.
#[doc(alias = "xen_domctl_hvmcontext")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmContext {
    /// In: bytes in the buffer; out: bytes needed or written.
    pub size: u32,
    /// Padding, implicit in C.
    pub pad: u32,
    /// In: the address of the buffer, or zero to request the size.
    pub buffer: u64,
}

/// One record of that state.
///
/// C: `struct xen_domctl_hvmcontext_partial`.
#[doc(alias = "xen_domctl_hvmcontext_partial")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmContextPartial {
    /// In: the kind of the record.
    pub kind: u32,
    /// In: which of that kind.
    pub instance: u32,
    /// In: bytes in the buffer; out: bytes needed or written.
    pub bufsz: u64,
    /// In: the address of the buffer, or zero to request the size.
    pub buffer: u64,
}

/// Lets a domain use an interrupt of the machine.
///
/// C: `struct xen_domctl_irq_permission`.
#[doc(alias = "xen_domctl_irq_permission")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqPermission {
    /// In: the interrupt, by the caller's number.
    pub pirq: u32,
    /// In: not zero to allow.
    pub allow_access: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Lets a domain map memory of the machine.
///
/// C: `struct xen_domctl_iomem_permission`.
#[doc(alias = "xen_domctl_iomem_permission")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IomemPermission {
    /// In: the first machine frame.
    pub first_mfn: u64,
    /// In: how many.
    pub nr_mfns: u64,
    /// In: not zero to allow.
    pub allow_access: u8,
    /// Padding, implicit in C.
    pub pad: [u8; 7],
}

/// Lets a domain use I/O ports of the machine.
///
/// C: `struct xen_domctl_ioport_permission`.
#[doc(alias = "xen_domctl_ioport_permission")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoportPermission {
    /// In: the first port.
    pub first_port: u32,
    /// In: how many.
    pub nr_ports: u32,
    /// In: not zero to allow.
    pub allow_access: u8,
    /// Padding, implicit in C.
    pub pad: [u8; 3],
}

/// A PCI device, for [`AssignDevice::dev`].
pub const XEN_DOMCTL_DEV_PCI: u32 = 0;

/// Gives a device of the machine to a domain. The union's PCI member only.
///
/// C: `struct xen_domctl_assign_device`.
#[doc(alias = "xen_domctl_assign_device")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AssignDevice {
    /// In: [`XEN_DOMCTL_DEV_PCI`].
    pub dev: u32,
    /// In: `XEN_DOMCTL_DEV_RDM_RELAXED`, or zero.
    pub flags: u32,
    /// In: segment, bus, device and function.
    pub machine_sbdf: u32,
    /// Of the union's other member.
    pub pad: u32,
    /// Of the union's other member.
    pub pad2: u64,
}

/// Makes a domain the device model of another.
///
/// C: `struct xen_domctl_set_target`.
#[doc(alias = "xen_domctl_set_target")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetTarget {
    /// In: the guest.
    pub target: DomId,
}
