#![doc = "`stubdm-run`: init and supervisor of a Xen Linux stubdomain, and the host's end of its QMP."]
//!
//! | run as | does | module |
//! |---|---|---|
//! | PID 1, or `stubdm-run init` | brings up the stubdomain and QEMU, watches over it, powers off when it ends | [`guest`] |
//! | `vchan-socket-proxy …` | takes upstream's program's place on the host | [`proxy`] |
//! | the device model's name, or `stubdm-run consoled` | serves a stubdomain's consoles in the place of a QEMU | [`consoled`] |
//! | `stubdm-run supervise`, `restart` | starts the host's processes of a guest again | [`supervise`] |
//! | `stubdm-run dmargs`, `image`, `qmp` and the like | shows what is on the host and makes what it needs | [`tools`] |
//! | `stubdm-run sim` (feature `sim`) | shows all of this on a simulated host | `sim` |
//!
//! [`libxl`] holds what libxl reads and writes, [`rt`] what all parts run on.
//!
//! Decisions are made by types that do no I/O ([`guest::supervisor`], [`guest::session`],
//! [`proxy::filtered::multiplexer`], [`proxy::passthrough::session`], [`libxl::dm_argv`],
//! [`stubdm_qmp::client`]) and are tested as such; the loops around them only move bytes.

// Tests may read what they wrote themselves.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod cli;
pub mod consoled;
pub mod guest;
pub mod libxl;
pub mod proxy;
pub mod rt;
pub mod screen;
pub mod service;
#[cfg(feature = "sim")]
pub mod sim;
pub mod supervise;
pub mod tools;
pub mod viewer;
