//! `consoled`: serves a stubdomain's consoles from dom0, in the place of the QEMU that libxl starts
//! for nothing else.
//!
//! ```text
//!   libxl ── -xen-domid S … -machine xenpv ──▶ serve? ──▶ everything but consoles, or not known ──▶ the real QEMU (execve)
//!     │                                          │
//!     │ ◀── device-model/S/state = running ──────┤ run
//!     │ ◀── query-chardev ───── monitor ◀────────┤
//!     └──── SIGHUP at the end ──────────────────▶│
//!                                                │         console 0   a log        ──▶ file, rotated
//!   stubdomain S ◀── rings ── service ◀──────────┤         console 1   saved states ──▶ file, one state
//!                                                │         console 2   a state      ◀── file
//!                                                          console 3…  serial ports ◀─▶ pty, file
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`argv`] | which command line of QEMU's asks for consoles only |
//! | [`exec`] | serve, or hand over to QEMU |
//! | `frame_buffer`, [`select_console`] | what QEMU from 9.1 on lacks for a screen |
//! | [`keep_path`] | QEMU runs under the path it is called by |
//! | [`sink`], [`logfile`], [`statefile`], [`pty`] | the places for the bytes |
//! | [`position`] | the position up to which bytes were written, for another `consoled` |
//! | [`service`] | one console: its ring on one side, its sink on the other |
//! | [`qmp`], [`monitor`] | the few questions libxl asks, and the sockets for them |
//! | [`screen`] | a screen: PV frame buffer, keyboard, and a VNC server |
//! | [`run`] | the loop |
//!
//! # What the stubdomain can do
//!
//! Write anything to its rings and its own nodes, at any speed. The bytes kept of it have limits: a
//! log and the one before it, one state, the newest of what nobody reads on a pty. One turn of the
//! loop takes a bounded part from each console. The places for the bytes are read from nodes that
//! dom0 owns; a node of that name that the stubdomain may write to is ignored.

pub mod argv;
pub mod exec;
mod frame_buffer;
pub mod keep_path;
pub mod logfile;
pub mod monitor;
pub mod position;
mod probe;
pub mod pty;
pub mod qmp;
pub mod run;
pub mod screen;
pub mod select_console;
pub mod service;
pub mod sink;
pub mod statefile;
