//! Events and the responses to them.

use bitflags::bitflags;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use crate::abi::vm_event as abi;
use crate::privcmd::ViewId;

pub use crate::abi::vm_event::{RegsArm, RegsX86};

bitflags! {
    /// The access that a page did not permit: `MEM_ACCESS_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AccessFlags: u32 {
        /// A read.
        #[doc(alias = "MEM_ACCESS_R")]
        const READ = abi::MEM_ACCESS_R;
        /// A write.
        #[doc(alias = "MEM_ACCESS_W")]
        const WRITE = abi::MEM_ACCESS_W;
        /// The fetch of an instruction.
        #[doc(alias = "MEM_ACCESS_X")]
        const EXECUTE = abi::MEM_ACCESS_X;
        /// The access was made to the virtual address.
        #[doc(alias = "MEM_ACCESS_FAULT_WITH_GLA")]
        const OF_ADDRESS = abi::MEM_ACCESS_FAULT_WITH_GLA;
        /// The access was made to a page table, to translate the virtual address.
        #[doc(alias = "MEM_ACCESS_FAULT_IN_GPT")]
        const OF_PAGE_TABLE = abi::MEM_ACCESS_FAULT_IN_GPT;
        /// Internal: the address is valid.
        const ADDRESS_VALID = abi::MEM_ACCESS_GLA_VALID;
    }
}

/// A register with which x86 guests control the processor: `VM_EVENT_X86_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ControlRegister(u32);

impl ControlRegister {
    /// CR0: protection, paging.
    #[doc(alias = "VM_EVENT_X86_CR0")]
    pub const CR0: Self = Self(abi::VM_EVENT_X86_CR0);
    /// CR3: the page table.
    #[doc(alias = "VM_EVENT_X86_CR3")]
    pub const CR3: Self = Self(abi::VM_EVENT_X86_CR3);
    /// CR4: extensions.
    #[doc(alias = "VM_EVENT_X86_CR4")]
    pub const CR4: Self = Self(abi::VM_EVENT_X86_CR4);
    /// XCR0: extended state.
    #[doc(alias = "VM_EVENT_X86_XCR0")]
    pub const XCR0: Self = Self(abi::VM_EVENT_X86_XCR0);

    /// Creates the register with this index, which need not exist.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Returns the index.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// An access to memory that the page does not permit.
#[doc(alias = "vm_event_mem_access")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessViolation {
    /// The guest frame, of 4096 bytes.
    pub frame: u64,
    /// The byte in the frame; hostile values are possible.
    pub offset: u64,
    /// The virtual address, if Xen reports it.
    pub address: Option<u64>,
    /// The access.
    pub flags: AccessFlags,
}

/// A breakpoint or a debug exception.
#[doc(alias = "vm_event_debug")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DebugEvent {
    /// The guest frame of the instruction.
    pub frame: u64,
    /// The debug conditions met, as VMX's `PENDING_DBG`.
    pub pending: u64,
    /// Bytes of the instruction.
    pub length: u32,
    /// `X86_EVENTTYPE_*`.
    pub kind: u8,
}

/// The kind of an event, with its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// An access that the page does not permit.
    #[doc(alias = "VM_EVENT_REASON_MEM_ACCESS")]
    MemoryAccess(AccessViolation),
    /// A write to a control register of an x86 guest.
    #[doc(alias = "VM_EVENT_REASON_WRITE_CTRLREG")]
    WriteControlRegister {
        /// The register.
        register: ControlRegister,
        /// The value before.
        old: u64,
        /// The value written.
        new: u64,
    },
    /// A write to a model-specific register.
    #[doc(alias = "VM_EVENT_REASON_MOV_TO_MSR")]
    WriteMsr {
        /// The register.
        msr: u64,
        /// The value before.
        old: u64,
        /// The value written.
        new: u64,
    },
    /// One instruction was executed.
    #[doc(alias = "VM_EVENT_REASON_SINGLESTEP")]
    SingleStep {
        /// The guest frame of the next instruction.
        frame: u64,
    },
    /// `INT3`. The guest does not see it unless the monitor injects it.
    #[doc(alias = "VM_EVENT_REASON_SOFTWARE_BREAKPOINT")]
    SoftwareBreakpoint(DebugEvent),
    /// `#DB`.
    #[doc(alias = "VM_EVENT_REASON_DEBUG_EXCEPTION")]
    DebugException(DebugEvent),
    /// The guest requested the event (`HVMOP_guest_request_vm_event`).
    #[doc(alias = "VM_EVENT_REASON_GUEST_REQUEST")]
    GuestRequest,
    /// `CPUID` was executed. Xen has set the registers that it returns, and the program counter is
    /// still at the instruction: the response moves it on ([`Response::skip`]).
    #[doc(alias = "VM_EVENT_REASON_CPUID")]
    Cpuid {
        /// Bytes of the instruction.
        length: u32,
        /// EAX before.
        leaf: u32,
        /// ECX before.
        subleaf: u32,
    },
    /// An `SMC` of an Arm guest.
    #[doc(alias = "VM_EVENT_REASON_PRIVILEGED_CALL")]
    PrivilegedCall,
    /// An interrupt of an x86 guest was delivered.
    #[doc(alias = "VM_EVENT_REASON_INTERRUPT")]
    Interrupt {
        /// Its vector.
        vector: u32,
        /// `X86_EVENTTYPE_*`.
        kind: u32,
        /// Its error code, all ones without one.
        error_code: u32,
        /// CR2.
        cr2: u64,
    },
    /// A register of a descriptor table was accessed.
    #[doc(alias = "VM_EVENT_REASON_DESCRIPTOR_ACCESS")]
    DescriptorAccess {
        /// `VM_EVENT_DESC_*`: 1 IDTR, 2 GDTR, 3 LDTR, 4 TR.
        descriptor: u8,
        /// Whether it was written.
        write: bool,
    },
    /// The emulator does not implement the instruction.
    #[doc(alias = "VM_EVENT_REASON_EMUL_UNIMPLEMENTED")]
    EmulatorUnimplemented,
    /// An exit to the hypervisor.
    #[doc(alias = "VM_EVENT_REASON_VMEXIT")]
    VmExit {
        /// VMX's exit reason.
        reason: u64,
        /// VMX's exit qualification.
        qualification: u64,
    },
    /// An access to an I/O port; Xen 4.18 and later.
    #[doc(alias = "VM_EVENT_REASON_IO_INSTRUCTION")]
    Io {
        /// The port.
        port: u16,
        /// Bytes accessed.
        bytes: u32,
        /// Whether it was read.
        read: bool,
        /// Whether the instruction is one on strings.
        string: bool,
    },
    /// An event that is unknown to this crate, by its number.
    Other(u32),
}

/// The registers of the virtual CPU, as far as Xen puts them into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(
    clippy::large_enum_variant,
    reason = "one variant only on each machine"
)]
pub enum Registers {
    /// Of an x86 virtual CPU.
    X86(RegsX86),
    /// Of an Arm virtual CPU.
    Arm(RegsArm),
}

impl Registers {
    /// Returns the address of the virtual CPU's current instruction.
    #[must_use]
    pub fn program_counter(&self) -> u64 {
        match self {
            Self::X86(regs) => regs.rip,
            Self::Arm(regs) => regs.pc,
        }
    }
}

/// An event that Xen reports to the monitor.
///
/// The guest chose the values: check them before using them as an index or a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    id: u64,
    reason: u32,
    raw: [u64; 4],
    /// The virtual CPU.
    pub vcpu: u32,
    /// Whether the virtual CPU is paused until the response.
    #[doc(alias = "VM_EVENT_FLAG_VCPU_PAUSED")]
    pub paused: bool,
    /// The view of the memory that the virtual CPU uses, if it is not the first.
    #[doc(alias = "VM_EVENT_FLAG_ALTERNATE_P2M")]
    pub view: Option<ViewId>,
    /// The kind of the event, with its values.
    pub kind: EventKind,
    /// The registers of the virtual CPU.
    pub registers: Registers,
}

/// The part of a union that is `T`.
fn part<T: FromBytes>(bytes: &(impl IntoBytes + Immutable)) -> T {
    T::read_from_prefix(bytes.as_bytes()).map_or_else(|_| T::new_zeroed(), |(part, _)| part)
}

impl Event {
    pub(super) fn new(id: u64, record: &abi::VmEvent) -> Self {
        let arm = cfg!(any(target_arch = "aarch64", target_arch = "arm"));
        let registers = match arm {
            true => Registers::Arm(part(&record.data)),
            false => Registers::X86(part(&record.data)),
        };
        let flag = |flag| record.flags & flag != 0;
        Self {
            id,
            reason: record.reason,
            raw: record.u,
            vcpu: record.vcpu_id,
            paused: flag(abi::VM_EVENT_FLAG_VCPU_PAUSED),
            view: flag(abi::VM_EVENT_FLAG_ALTERNATE_P2M).then_some(ViewId::new(record.altp2m_idx)),
            kind: EventKind::new(record.reason, &record.u),
            registers,
        }
    }
}

impl EventKind {
    fn new(reason: u32, u: &[u64; 4]) -> Self {
        match reason {
            abi::VM_EVENT_REASON_MEM_ACCESS => {
                let raw: abi::MemAccess = part(u);
                let flags = AccessFlags::from_bits_truncate(raw.flags);
                let valid = flags.contains(AccessFlags::ADDRESS_VALID);
                Self::MemoryAccess(AccessViolation {
                    frame: raw.gfn,
                    offset: raw.offset,
                    address: valid.then_some(raw.gla),
                    flags,
                })
            }
            abi::VM_EVENT_REASON_WRITE_CTRLREG => {
                let raw: abi::WriteCtrlreg = part(u);
                Self::WriteControlRegister {
                    register: ControlRegister(raw.index),
                    old: raw.old_value,
                    new: raw.new_value,
                }
            }
            abi::VM_EVENT_REASON_MOV_TO_MSR => {
                let raw: abi::MovToMsr = part(u);
                Self::WriteMsr {
                    msr: raw.msr,
                    old: raw.old_value,
                    new: raw.new_value,
                }
            }
            abi::VM_EVENT_REASON_SINGLESTEP => Self::SingleStep {
                frame: part::<abi::Singlestep>(u).gfn,
            },
            abi::VM_EVENT_REASON_SOFTWARE_BREAKPOINT => {
                Self::SoftwareBreakpoint(DebugEvent::new(&part(u)))
            }
            abi::VM_EVENT_REASON_DEBUG_EXCEPTION => Self::DebugException(DebugEvent::new(&part(u))),
            abi::VM_EVENT_REASON_GUEST_REQUEST => Self::GuestRequest,
            abi::VM_EVENT_REASON_CPUID => {
                let raw: abi::Cpuid = part(u);
                Self::Cpuid {
                    length: raw.insn_length,
                    leaf: raw.leaf,
                    subleaf: raw.subleaf,
                }
            }
            abi::VM_EVENT_REASON_PRIVILEGED_CALL => Self::PrivilegedCall,
            abi::VM_EVENT_REASON_INTERRUPT => {
                let raw: abi::InterruptX86 = part(u);
                Self::Interrupt {
                    vector: raw.vector,
                    kind: raw.kind,
                    error_code: raw.error_code,
                    cr2: raw.cr2,
                }
            }
            abi::VM_EVENT_REASON_DESCRIPTOR_ACCESS => {
                let raw: abi::DescAccess = part(u);
                Self::DescriptorAccess {
                    descriptor: raw.descriptor,
                    write: raw.is_write != 0,
                }
            }
            abi::VM_EVENT_REASON_EMUL_UNIMPLEMENTED => Self::EmulatorUnimplemented,
            abi::VM_EVENT_REASON_VMEXIT => {
                let raw: abi::Vmexit = part(u);
                Self::VmExit {
                    reason: raw.reason,
                    qualification: raw.qualification,
                }
            }
            abi::VM_EVENT_REASON_IO_INSTRUCTION => {
                let raw: abi::Io = part(u);
                Self::Io {
                    port: raw.port,
                    bytes: raw.bytes,
                    read: raw.in_ != 0,
                    string: raw.str_ != 0,
                }
            }
            other => Self::Other(other),
        }
    }
}

impl DebugEvent {
    fn new(raw: &abi::Debug) -> Self {
        Self {
            frame: raw.gfn,
            pending: raw.pending_dbg,
            length: raw.insn_length,
            kind: raw.kind,
        }
    }
}

/// The answer to one event. The virtual CPU, if it is paused, continues when Xen has read it.
///
/// For a virtual CPU that is not paused, Xen ignores everything but the permission to continue. It
/// also ignores what the machine or the kind of event does not support. It reports neither.
#[must_use = "the virtual CPU stays paused until the response is put into the ring"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    event: u64,
    record: abi::VmEvent,
}

impl Response {
    /// Answers `event`: the virtual CPU continues. After an access that a page does not permit it
    /// tries the same again, so the monitor must change the permission, or
    /// [emulate](Self::emulate).
    pub fn resume(event: &Event) -> Self {
        let mut flags = 0;
        if event.paused {
            flags |= abi::VM_EVENT_FLAG_VCPU_PAUSED;
        }
        // Xen sets the view of every response with this flag.
        if event.view.is_some() {
            flags |= abi::VM_EVENT_FLAG_ALTERNATE_P2M;
        }
        Self {
            event: event.id,
            record: abi::VmEvent {
                version: abi::VM_EVENT_INTERFACE_VERSION,
                flags,
                reason: event.reason,
                vcpu_id: event.vcpu,
                altp2m_idx: event.view.map_or(0, ViewId::as_u16),
                // Xen looks here for the frame to emulate an access to and the register whose
                // write is denied.
                u: event.raw,
                ..abi::VmEvent::new_zeroed()
            },
        }
    }

    pub(super) fn orphan(vcpu: u32) -> Self {
        Self {
            event: 0,
            record: abi::VmEvent {
                version: abi::VM_EVENT_INTERFACE_VERSION,
                flags: abi::VM_EVENT_FLAG_VCPU_PAUSED,
                vcpu_id: vcpu,
                ..abi::VmEvent::new_zeroed()
            },
        }
    }

    pub(super) fn event(&self) -> u64 {
        self.event
    }

    pub(super) fn record(&self) -> &abi::VmEvent {
        &self.record
    }

    fn flag(mut self, flag: u32) -> Self {
        self.record.flags |= flag;
        self
    }

    fn data(mut self, data: &(impl IntoBytes + Immutable + ?Sized)) -> Self {
        let room = self.record.data.as_mut_bytes();
        let bytes = data.as_bytes();
        let len = bytes.len().min(room.len());
        room.fill(0);
        room[..len].copy_from_slice(&bytes[..len]);
        self
    }

    /// Makes Xen emulate the instruction, whatever the page permits. For memory accesses on x86.
    #[doc(alias = "VM_EVENT_FLAG_EMULATE")]
    pub fn emulate(self) -> Self {
        self.flag(abi::VM_EVENT_FLAG_EMULATE)
    }

    /// Makes Xen emulate the instruction without its writes, to memory or to a device.
    #[doc(alias = "VM_EVENT_FLAG_EMULATE_NOWRITE")]
    pub fn emulate_without_writes(self) -> Self {
        self.flag(abi::VM_EVENT_FLAG_EMULATE_NOWRITE)
    }

    /// Makes Xen emulate the instruction, which reads `bytes` instead of memory; at most 340 of
    /// them, the rest is left out. Replaces [registers](Self::registers).
    #[doc(alias = "VM_EVENT_FLAG_SET_EMUL_READ_DATA")]
    pub fn emulate_reading(self, bytes: &[u8]) -> Self {
        let mut data = [0u8; 344];
        let len = bytes.len().min(data.len() - 4);
        data[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        data[4..4 + len].copy_from_slice(&bytes[..len]);
        self.flag(abi::VM_EVENT_FLAG_EMULATE | abi::VM_EVENT_FLAG_SET_EMUL_READ_DATA)
            .without(abi::VM_EVENT_FLAG_SET_REGISTERS | abi::VM_EVENT_FLAG_SET_EMUL_INSN_DATA)
            .data(&data)
    }

    /// Makes Xen emulate the instruction that starts with `bytes` instead of the one in memory: for
    /// a breakpoint that the monitor wrote over it. Replaces [registers](Self::registers).
    #[doc(alias = "VM_EVENT_FLAG_SET_EMUL_INSN_DATA")]
    pub fn emulate_instruction(self, bytes: &[u8; 16]) -> Self {
        self.flag(abi::VM_EVENT_FLAG_EMULATE | abi::VM_EVENT_FLAG_SET_EMUL_INSN_DATA)
            .without(abi::VM_EVENT_FLAG_SET_REGISTERS | abi::VM_EVENT_FLAG_SET_EMUL_READ_DATA)
            .data(bytes)
    }

    fn without(mut self, flags: u32) -> Self {
        self.record.flags &= !flags;
        self
    }

    /// Turns single-stepping on where it is off, and off where it is on. When it is on, an
    /// [`EventKind::SingleStep`] follows the next instruction, if that event is enabled.
    #[doc(alias = "VM_EVENT_FLAG_TOGGLE_SINGLESTEP")]
    pub fn toggle_single_step(self) -> Self {
        self.flag(abi::VM_EVENT_FLAG_TOGGLE_SINGLESTEP)
    }

    /// Steps over one instruction in the view of the response, and then changes to `next`, without
    /// an event.
    #[doc(alias = "VM_EVENT_FLAG_FAST_SINGLESTEP")]
    pub fn fast_single_step(self, next: ViewId) -> Self {
        let mut response = self.flag(abi::VM_EVENT_FLAG_FAST_SINGLESTEP);
        response.record.u.as_mut_bytes()[..2].copy_from_slice(&next.as_u16().to_ne_bytes());
        response
    }

    /// Denies the write to the control register or the MSR: it does not take place.
    #[doc(alias = "VM_EVENT_FLAG_DENY")]
    pub fn deny(self) -> Self {
        self.flag(abi::VM_EVENT_FLAG_DENY)
    }

    /// Makes the virtual CPU continue in this view of the memory.
    #[doc(alias = "VM_EVENT_FLAG_ALTERNATE_P2M")]
    pub fn in_view(self, view: ViewId) -> Self {
        let mut response = self.flag(abi::VM_EVENT_FLAG_ALTERNATE_P2M);
        response.record.altp2m_idx = view.as_u16();
        response
    }

    /// Makes the virtual CPU continue with these registers. On x86, Xen takes the sixteen general
    /// ones, the flags and the program counter; on Arm the program counter alone.
    #[doc(alias = "VM_EVENT_FLAG_SET_REGISTERS")]
    pub fn registers(self, registers: &Registers) -> Self {
        let response = self
            .without(abi::VM_EVENT_FLAG_SET_EMUL_READ_DATA | abi::VM_EVENT_FLAG_SET_EMUL_INSN_DATA)
            .flag(abi::VM_EVENT_FLAG_SET_REGISTERS);
        match registers {
            Registers::X86(regs) => response.data(regs),
            Registers::Arm(regs) => response.data(regs),
        }
    }

    /// Answers `event`: the virtual CPU continues `length` bytes further, behind its current
    /// instruction, with its registers as they are in the event.
    pub fn skip(event: &Event, length: u32) -> Self {
        let mut registers = event.registers;
        let at = match &mut registers {
            Registers::X86(regs) => &mut regs.rip,
            Registers::Arm(regs) => &mut regs.pc,
        };
        *at = at.wrapping_add(length.into());
        Self::resume(event).registers(&registers)
    }

    /// Makes the next interrupt an [`EventKind::Interrupt`].
    #[doc(alias = "VM_EVENT_FLAG_GET_NEXT_INTERRUPT")]
    pub fn report_next_interrupt(self) -> Self {
        self.flag(abi::VM_EVENT_FLAG_GET_NEXT_INTERRUPT)
    }

    /// Empties the processor trace of the virtual CPU.
    #[doc(alias = "VM_EVENT_FLAG_RESET_VMTRACE")]
    pub fn reset_trace(self) -> Self {
        self.flag(abi::VM_EVENT_FLAG_RESET_VMTRACE)
    }
}
