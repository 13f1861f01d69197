//! The records of an HVM guest's context: xen/include/public/hvm/save.h and x86's part of it,
//! arch-x86/hvm/save.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The head of every record.
///
/// C: `struct hvm_save_descriptor`.
#[doc(alias = "hvm_save_descriptor")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// The kind of the record.
    pub typecode: u16,
    /// The number within that kind.
    pub instance: u16,
    /// Bytes behind this head.
    pub length: u32,
}

/// The record behind the last one.
#[doc(alias = "HVM_SAVE_CODE_END")]
pub const CODE_END: u16 = 0;
/// [`Header`].
pub const CODE_HEADER: u16 = 1;
/// [`Cpu`].
pub const CODE_CPU: u16 = 2;
/// [`Header::magic`].
#[doc(alias = "HVM_FILE_MAGIC")]
pub const FILE_MAGIC: u32 = 0x5438_1286;
/// [`Header::version`].
#[doc(alias = "HVM_FILE_VERSION")]
pub const FILE_VERSION: u32 = 1;
/// [`Cpu::flags`]: `fpu_regs` is valid.
#[doc(alias = "XEN_X86_FPU_INITIALISED")]
pub const FPU_INITIALISED: u32 = 1;

/// The first record.
///
/// C: `struct hvm_save_header`.
#[doc(alias = "hvm_save_header")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`FILE_MAGIC`].
    pub magic: u32,
    /// [`FILE_VERSION`].
    pub version: u32,
    /// The changeset of the Xen that wrote it; all ones where that is none.
    pub changeset: u64,
    /// EAX of CPUID leaf 1 on that machine.
    pub cpuid: u32,
    /// The frequency of the guest's time stamp counter, in kHz.
    pub gtsc_khz: u32,
}

/// A virtual CPU's registers.
///
/// C: `struct hvm_hw_cpu`.
#[allow(missing_docs, reason = "the processor's names")]
#[doc(alias = "hvm_hw_cpu")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cpu {
    /// As FXSAVE writes them.
    pub fpu_regs: [u8; 512],
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr0: u64,
    pub dr1: u64,
    pub dr2: u64,
    pub dr3: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub cs_sel: u32,
    pub ds_sel: u32,
    pub es_sel: u32,
    pub fs_sel: u32,
    pub gs_sel: u32,
    pub ss_sel: u32,
    pub tr_sel: u32,
    pub ldtr_sel: u32,
    pub cs_limit: u32,
    pub ds_limit: u32,
    pub es_limit: u32,
    pub fs_limit: u32,
    pub gs_limit: u32,
    pub ss_limit: u32,
    pub tr_limit: u32,
    pub ldtr_limit: u32,
    pub idtr_limit: u32,
    pub gdtr_limit: u32,
    pub cs_base: u64,
    pub ds_base: u64,
    pub es_base: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ss_base: u64,
    pub tr_base: u64,
    pub ldtr_base: u64,
    pub idtr_base: u64,
    pub gdtr_base: u64,
    pub cs_arbytes: u32,
    pub ds_arbytes: u32,
    pub es_arbytes: u32,
    pub fs_arbytes: u32,
    pub gs_arbytes: u32,
    pub ss_arbytes: u32,
    pub tr_arbytes: u32,
    pub ldtr_arbytes: u32,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub shadow_gs: u64,
    /// No longer used.
    pub msr_flags: u64,
    pub msr_lstar: u64,
    pub msr_star: u64,
    pub msr_cstar: u64,
    pub msr_syscall_mask: u64,
    pub msr_efer: u64,
    pub msr_tsc_aux: u64,
    pub tsc: u64,
    /// A vector, its type, and whether there is one.
    pub pending_event: u32,
    /// The error code of that event.
    pub error_code: u32,
    /// [`FPU_INITIALISED`].
    pub flags: u32,
    /// Zero.
    pub pad0: u32,
}
