//! Layouts and opcodes at the boundary to the kernel.
//!
//! One module per device, and one per hypercall or group of hypercalls. Each struct is `repr(C)`
//! with the fields of the C header it cites, in its order. Padding that C leaves implicit is a
//! named field here, so that what we send is always initialised. Opcodes are computed from the
//! struct's size and never typed in. `tests/layout.rs` compares both with numbers that a C compiler
//! once made from the headers; the test `headers` of sim-preload compiles the headers and compares.

use zerocopy::IntoBytes as _;

pub mod altp2m;
pub mod dm_op;
pub mod domctl;
pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
pub mod hvm_save;
pub mod hypercall;
pub mod ioreq;
pub mod memory;
pub mod privcmd;
pub mod sysctl;
#[cfg(target_arch = "x86_64")]
pub mod vcpu;
pub mod version;
pub mod vm_event;

/// The 128 bytes of a domctl's or sysctl's body that start with `bytes`, the rest zero.
fn words(bytes: &[u8]) -> [u64; 16] {
    let mut words = [0u64; 16];
    let room = words.as_mut_bytes();
    let len = bytes.len().min(room.len());
    room[..len].copy_from_slice(&bytes[..len]);
    words
}

/// The number of an ioctl.
pub type Opcode = u32;

/// `_IOC(_IOC_NONE, group, number, size)`, the form of most ioctls of Xen's drivers.
///
/// They are declared without a direction although many read and write their argument, so the
/// direction is no evidence of what the kernel does.
///
/// The layout is that of include/uapi/asm-generic/ioctl.h, which x86, Arm and RISC-V use; Xen
/// runs on no architecture that differs.
#[doc(alias = "_IOC")]
#[must_use]
pub const fn opcode(group: u8, number: u8, size: usize) -> Opcode {
    assert!(size < 1 << 14, "an ioctl argument is smaller than 16 KiB");
    ((size as u32) << 16) | ((group as u32) << 8) | number as u32
}

/// `_IOW(group, number, ...)` of `size` bytes, the form of privcmd's latest ioctls.
#[doc(alias = "_IOW")]
#[must_use]
pub const fn opcode_write(group: u8, number: u8, size: usize) -> Opcode {
    1 << 30 | opcode(group, number, size)
}
