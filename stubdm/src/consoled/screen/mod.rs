//! A stubdomain's screen, without QEMU in dom0: `vfb` and `vkbd`, and a VNC server.
//!
//! ```text
//!   stubdomain           dom0
//!   xen-fbfront ── vfb ──┬── nodes, states ── this process (root) ── QMP: libxl
//!   xen-kbdfront ─ vkbd ─┤                         │ starts, kills, one socket pair
//!                        └── pages, events ── the screen's process ══ VNC ══ viewers
//!                                              (a user of its own, in the sandbox)
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`vnc`] | what libxl's `-vnc` asks for |
//! | `device` | the nodes and states of one device |
//! | `ipc` | the messages of the two processes |
//! | `reports` | those of the screen's process, at a rate |
//! | [`server`] | this process's half |
//! | [`process`] | the screen's process: it maps, enters the sandbox, and serves |
//! | `worker` | its loop |
//! | `connection` | one viewer |
//!
//! The domain is hostile on one side and the network on the other, so the process that reads from
//! either has no powers. It ends with the frontend's connection, and is started again after a
//! fault, after pauses that double up to a minute.

mod connection;
mod device;
mod ipc;
pub mod process;
mod reports;
pub mod server;
pub mod vnc;
mod worker;
