//! The monitor's ring and its records: xen/include/public/vm_event.h.
//!
//! The records are the same in Xen 4.17 to 4.22, which use version [`VM_EVENT_INTERFACE_VERSION`]
//! of them; newer ones have more kinds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of the records here.
pub const VM_EVENT_INTERFACE_VERSION: u32 = 7;

/// One request or response.
///
/// C: `struct vm_event_st`.
#[doc(alias = "vm_event_st")]
#[doc(alias = "vm_event_request_t")]
#[doc(alias = "vm_event_response_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmEvent {
    /// [`VM_EVENT_INTERFACE_VERSION`].
    pub version: u32,
    /// `VM_EVENT_FLAG_*`.
    pub flags: u32,
    /// `VM_EVENT_REASON_*`.
    pub reason: u32,
    /// The virtual CPU.
    pub vcpu_id: u32,
    /// The view of the memory, with `VM_EVENT_FLAG_ALTERNATE_P2M`.
    pub altp2m_idx: u16,
    /// Zero.
    pub pad: [u16; 3],
    /// A union: the event's values, by `reason`.
    pub u: [u64; 4],
    /// A union: registers, or the bytes of or for an emulated instruction.
    pub data: [u64; 43],
}

/// Bytes of the ring page before its first slot.
///
/// C: `struct vm_event_sring`.
#[doc(alias = "vm_event_sring")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SringHeader {
    /// Requests that Xen has written.
    pub req_prod: u32,
    /// The request at which Xen should notify; Xen notifies at each.
    pub req_event: u32,
    /// Responses that the monitor has written.
    pub rsp_prod: u32,
    /// The response at which the monitor should notify.
    pub rsp_event: u32,
    /// Private to other rings.
    pub pvt: [u8; 4],
    /// Zero.
    pub pad: [u8; 44],
}

/// Slots of the ring: the power of two that fits into a page.
#[doc(alias = "__CONST_RING_SIZE")]
pub const RING_SLOTS: u32 = 8;

const _: () = {
    let slots = (crate::PAGE_SIZE - size_of::<SringHeader>()) / size_of::<VmEvent>();
    assert!(slots >= RING_SLOTS as usize && slots < 2 * RING_SLOTS as usize);
};

/// The virtual CPU is paused; in a response: it continues.
pub const VM_EVENT_FLAG_VCPU_PAUSED: u32 = 1 << 0;
/// The access was another domain's.
pub const VM_EVENT_FLAG_FOREIGN: u32 = 1 << 1;
/// Emulate the instruction.
pub const VM_EVENT_FLAG_EMULATE: u32 = 1 << 2;
/// Emulate the instruction without what it writes.
pub const VM_EVENT_FLAG_EMULATE_NOWRITE: u32 = 1 << 3;
/// Turn single-stepping on if it is off, and off if it is on.
pub const VM_EVENT_FLAG_TOGGLE_SINGLESTEP: u32 = 1 << 4;
/// The emulated instruction reads the bytes in the response.
pub const VM_EVENT_FLAG_SET_EMUL_READ_DATA: u32 = 1 << 5;
/// The write to the register does not take place.
pub const VM_EVENT_FLAG_DENY: u32 = 1 << 6;
/// The view of the memory is `altp2m_idx`.
pub const VM_EVENT_FLAG_ALTERNATE_P2M: u32 = 1 << 7;
/// The virtual CPU continues with the registers in the response.
pub const VM_EVENT_FLAG_SET_REGISTERS: u32 = 1 << 8;
/// The instruction to emulate is that of the response.
pub const VM_EVENT_FLAG_SET_EMUL_INSN_DATA: u32 = 1 << 9;
/// Report the next interrupt.
pub const VM_EVENT_FLAG_GET_NEXT_INTERRUPT: u32 = 1 << 10;
/// One step, then another view of the memory.
pub const VM_EVENT_FLAG_FAST_SINGLESTEP: u32 = 1 << 11;
/// The event is of a nested guest.
pub const VM_EVENT_FLAG_NESTED_P2M: u32 = 1 << 12;
/// Empty the processor trace.
pub const VM_EVENT_FLAG_RESET_VMTRACE: u32 = 1 << 13;
/// Reset the state of a forked guest.
pub const VM_EVENT_FLAG_RESET_FORK_STATE: u32 = 1 << 14;
/// Reset the memory of a forked guest.
pub const VM_EVENT_FLAG_RESET_FORK_MEMORY: u32 = 1 << 15;

/// No reason.
pub const VM_EVENT_REASON_UNKNOWN: u32 = 0;
/// [`MemAccess`].
pub const VM_EVENT_REASON_MEM_ACCESS: u32 = 1;
/// For the sharing ring.
pub const VM_EVENT_REASON_MEM_SHARING: u32 = 2;
/// For the paging ring.
pub const VM_EVENT_REASON_MEM_PAGING: u32 = 3;
/// [`WriteCtrlreg`].
pub const VM_EVENT_REASON_WRITE_CTRLREG: u32 = 4;
/// [`MovToMsr`].
pub const VM_EVENT_REASON_MOV_TO_MSR: u32 = 5;
/// [`struct@Debug`].
pub const VM_EVENT_REASON_SOFTWARE_BREAKPOINT: u32 = 6;
/// [`Singlestep`].
pub const VM_EVENT_REASON_SINGLESTEP: u32 = 7;
/// The guest requested the event.
pub const VM_EVENT_REASON_GUEST_REQUEST: u32 = 8;
/// [`struct@Debug`].
pub const VM_EVENT_REASON_DEBUG_EXCEPTION: u32 = 9;
/// [`Cpuid`].
pub const VM_EVENT_REASON_CPUID: u32 = 10;
/// An `SMC` of an Arm guest.
pub const VM_EVENT_REASON_PRIVILEGED_CALL: u32 = 11;
/// [`InterruptX86`].
pub const VM_EVENT_REASON_INTERRUPT: u32 = 12;
/// [`DescAccess`].
pub const VM_EVENT_REASON_DESCRIPTOR_ACCESS: u32 = 13;
/// The emulator does not implement the instruction.
pub const VM_EVENT_REASON_EMUL_UNIMPLEMENTED: u32 = 14;
/// [`Vmexit`].
pub const VM_EVENT_REASON_VMEXIT: u32 = 15;
/// [`Io`]; Xen 4.18 and later.
pub const VM_EVENT_REASON_IO_INSTRUCTION: u32 = 16;

/// CR0.
pub const VM_EVENT_X86_CR0: u32 = 0;
/// CR3.
pub const VM_EVENT_X86_CR3: u32 = 1;
/// CR4.
pub const VM_EVENT_X86_CR4: u32 = 2;
/// XCR0.
pub const VM_EVENT_X86_XCR0: u32 = 3;

/// The registers of an x86 virtual CPU.
///
/// C: `struct vm_event_regs_x86`. A segment's limit has 20 bits, its attributes the 12 above.
#[doc(alias = "vm_event_regs_x86")]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "registers, each by its name")]
pub struct RegsX86 {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rflags: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub rip: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub msr_efer: u64,
    pub msr_star: u64,
    pub msr_lstar: u64,
    pub gdtr_base: u64,
    /// The page table of the nested guest, with `VM_EVENT_FLAG_NESTED_P2M`.
    pub npt_base: u64,
    /// The position in the processor trace; all ones without one.
    pub vmtrace_pos: u64,
    pub cs_base: u32,
    pub ss_base: u32,
    pub ds_base: u32,
    pub es_base: u32,
    pub fs_base: u64,
    pub gs_base: u64,
    pub cs: u32,
    pub ss: u32,
    pub ds: u32,
    pub es: u32,
    pub fs: u32,
    pub gs: u32,
    pub shadow_gs: u64,
    pub gdtr_limit: u16,
    pub cs_sel: u16,
    pub ss_sel: u16,
    pub ds_sel: u16,
    pub es_sel: u16,
    pub fs_sel: u16,
    pub gs_sel: u16,
    pub pad: u16,
}

/// The registers of an Arm virtual CPU.
///
/// C: `struct vm_event_regs_arm`.
#[doc(alias = "vm_event_regs_arm")]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "registers, each by its name")]
pub struct RegsArm {
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub ttbcr: u64,
    pub pc: u64,
    pub cpsr: u64,
}

/// The access was a read.
pub const MEM_ACCESS_R: u32 = 1 << 0;
/// The access was a write.
pub const MEM_ACCESS_W: u32 = 1 << 1;
/// The access was the fetch of an instruction.
pub const MEM_ACCESS_X: u32 = 1 << 2;
/// `gla` is valid.
pub const MEM_ACCESS_GLA_VALID: u32 = 1 << 3;
/// The access was to `gla`.
pub const MEM_ACCESS_FAULT_WITH_GLA: u32 = 1 << 4;
/// The access was to a page table, to translate `gla`.
pub const MEM_ACCESS_FAULT_IN_GPT: u32 = 1 << 5;

/// An access that the page does not permit.
///
/// C: `struct vm_event_mem_access`.
#[doc(alias = "vm_event_mem_access")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemAccess {
    /// The guest frame.
    pub gfn: u64,
    /// The byte in the frame.
    pub offset: u64,
    /// The virtual address.
    pub gla: u64,
    /// `MEM_ACCESS_*`.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// A write to a control register.
///
/// C: `struct vm_event_write_ctrlreg`.
#[doc(alias = "vm_event_write_ctrlreg")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WriteCtrlreg {
    /// `VM_EVENT_X86_*`.
    pub index: u32,
    /// Zero.
    pub pad: u32,
    /// The value to be written.
    pub new_value: u64,
    /// The value before.
    pub old_value: u64,
}

/// A write to a model-specific register.
///
/// C: `struct vm_event_mov_to_msr`.
#[doc(alias = "vm_event_mov_to_msr")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MovToMsr {
    /// The register.
    pub msr: u64,
    /// The value to be written.
    pub new_value: u64,
    /// The value before.
    pub old_value: u64,
}

/// One instruction was executed.
///
/// C: `struct vm_event_singlestep`.
#[doc(alias = "vm_event_singlestep")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Singlestep {
    /// The frame of the next instruction.
    pub gfn: u64,
}

/// A breakpoint or a debug exception.
///
/// C: `struct vm_event_debug`.
#[doc(alias = "vm_event_debug")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Debug {
    /// The frame of the instruction.
    pub gfn: u64,
    /// The debug conditions met.
    pub pending_dbg: u64,
    /// Bytes of the instruction.
    pub insn_length: u32,
    /// `HVMOP_TRAP_*`.
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// `CPUID` was executed.
///
/// C: `struct vm_event_cpuid`.
#[doc(alias = "vm_event_cpuid")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cpuid {
    /// Bytes of the instruction.
    pub insn_length: u32,
    /// EAX.
    pub leaf: u32,
    /// ECX.
    pub subleaf: u32,
    /// Zero.
    pub pad: u32,
}

/// An interrupt was delivered.
///
/// C: `struct vm_event_interrupt_x86`.
#[doc(alias = "vm_event_interrupt_x86")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptX86 {
    /// Its vector.
    pub vector: u32,
    /// `X86_EVENTTYPE_*`.
    pub kind: u32,
    /// Its error code; all ones without one.
    pub error_code: u32,
    /// Zero.
    pub pad: u32,
    /// CR2.
    pub cr2: u64,
}

/// A register of a descriptor table was accessed.
///
/// C: `struct vm_event_desc_access`.
#[doc(alias = "vm_event_desc_access")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DescAccess {
    /// VMX's description of the instruction.
    pub instr_info: u32,
    /// Zero.
    pub pad1: u32,
    /// VMX's exit qualification.
    pub exit_qualification: u64,
    /// `VM_EVENT_DESC_*`.
    pub descriptor: u8,
    /// 1 for a write.
    pub is_write: u8,
    /// Zero.
    pub pad: [u8; 6],
}

/// IDTR.
pub const VM_EVENT_DESC_IDTR: u8 = 1;
/// GDTR.
pub const VM_EVENT_DESC_GDTR: u8 = 2;
/// LDTR.
pub const VM_EVENT_DESC_LDTR: u8 = 3;
/// TR.
pub const VM_EVENT_DESC_TR: u8 = 4;

/// An exit to the hypervisor.
///
/// C: `struct vm_event_vmexit`.
#[doc(alias = "vm_event_vmexit")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Vmexit {
    /// VMX's exit reason.
    pub reason: u64,
    /// VMX's exit qualification.
    pub qualification: u64,
}

/// An access to an I/O port.
///
/// C: `struct vm_event_io`; Xen 4.18 and later.
#[doc(alias = "vm_event_io")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Io {
    /// Bytes accessed.
    pub bytes: u32,
    /// The port.
    pub port: u16,
    /// 1 for `IN`.
    pub in_: u8,
    /// 1 for a string instruction.
    pub str_: u8,
}
