//! A virtual CPU's registers: `struct vcpu_guest_context` of xen/include/public/arch-x86/xen.h.
//!
//! Each architecture has its own struct; this one is for x86-64 and exists only there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`VcpuGuestContext::flags`]: `fpu` is valid.
pub const VGCF_I387_VALID: u64 = 1 << 0;
/// [`VcpuGuestContext::flags`]: a PV guest is in its kernel.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;
/// [`VcpuGuestContext::flags`]: the virtual CPU is online.
#[doc(alias = "VGCF_online")]
pub const VGCF_ONLINE: u64 = 1 << 5;

/// The registers that every program uses.
///
/// C: `struct cpu_user_regs`, arch-x86/xen-x86_64.h.
#[allow(missing_docs, reason = "the processor's names")]
#[doc(alias = "cpu_user_regs")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Used by Xen only.
    pub error_code: u32,
    /// Used by Xen only.
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    /// Unused.
    pub pad0: u16,
    /// For a PV guest: whether its events are masked.
    pub saved_upcall_mask: u8,
    /// Unused.
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    /// Unused.
    pub pad2: [u16; 3],
    pub es: u16,
    /// Unused.
    pub pad3: [u16; 3],
    pub ds: u16,
    /// Unused.
    pub pad4: [u16; 3],
    pub fs: u16,
    /// Unused.
    pub pad5: [u16; 3],
    pub gs: u16,
    /// Unused.
    pub pad6: [u16; 3],
}

/// An entry of a PV guest's interrupt table.
///
/// C: `struct trap_info`.
#[doc(alias = "trap_info")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    /// The exception.
    pub vector: u8,
    /// The privilege level, and whether it masks events.
    pub flags: u8,
    /// The code segment.
    pub cs: u16,
    /// Padding, implicit in C.
    pub pad: u32,
    /// The code's address.
    pub address: u64,
}

/// Everything of a virtual CPU that Xen returns. For an HVM guest, it fills the registers and the
/// bases of segments only.
///
/// C: `struct vcpu_guest_context`.
#[doc(alias = "vcpu_guest_context")]
#[doc(alias = "vcpu_guest_context_t")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuGuestContext {
    /// The floating-point registers, as FXSAVE writes them.
    pub fpu: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// The registers of user mode.
    pub user_regs: UserRegs,
    /// The interrupt table of a PV guest.
    pub trap_ctxt: [TrapInfo; 256],
    /// The address of a PV guest's LDT.
    pub ldt_base: u64,
    /// Its entries.
    pub ldt_ents: u64,
    /// The frames of a PV guest's GDT.
    pub gdt_frames: [u64; 16],
    /// Its entries.
    pub gdt_ents: u64,
    /// The stack segment of a PV guest's kernel.
    pub kernel_ss: u64,
    /// Its stack pointer.
    pub kernel_sp: u64,
    /// CR0 to CR7. For a PV guest, CR1 has the page table of user mode.
    pub ctrlreg: [u64; 8],
    /// DR0 to DR7.
    pub debugreg: [u64; 8],
    /// The address at which a PV guest takes events.
    pub event_callback_eip: u64,
    /// The address at which it takes faults of its return to user mode.
    pub failsafe_callback_eip: u64,
    /// The address at which it takes system calls.
    pub syscall_callback_eip: u64,
    /// `VMASST_TYPE_*`, as bits.
    pub vm_assist: u64,
    /// The base of FS.
    pub fs_base: u64,
    /// The base of GS in the kernel.
    pub gs_base_kernel: u64,
    /// The base of GS in user mode.
    pub gs_base_user: u64,
}
