//! QMP under a policy: all clients of the host's proxy share one session with QEMU.

pub mod driver;
pub mod multiplexer;
pub mod qemu_session;
