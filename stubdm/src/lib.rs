#![doc = "`stubdm-run`: init and supervisor of a Xen Linux stubdomain, and the host's end of its QMP."]
//!
//! | run as | does | module |
//! |---|---|---|
//! | PID 1, or `stubdm-run init` | brings up the stubdomain and QEMU, watches over it, powers off when it ends | [`init`], [`supervisor`] |
//! | `vchan-socket-proxy …` | takes upstream's program's place on the host | [`proxy`] |
//! | the device model's name, or `stubdm-run consoled` | serves a stubdomain's consoles in the place of a QEMU | [`consoled`] |
//! | `stubdm-run qmp DOMID COMMAND` | asks a guest's QEMU something | [`tools::qmp`] |
//! | `stubdm-run dmargs`, `image` and the like | shows what is on the host and makes what it needs | [`tools`], [`stubdm_image`] |
//! | `stubdm-run sim` (feature `sim`) | shows all of this on a simulated host | `sim` |
//!
//! Decisions are made by types that do no I/O ([`supervisor`], [`proxy::host`], [`proxy::guest`],
//! [`stubdm_qmp::client`], [`dmargv`]) and are tested as such; the loops around them only move bytes.

// Tests may read what they wrote themselves.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod cli;
pub mod consoled;
pub mod dmargv;
pub mod error;
pub mod event;
pub mod init;
pub mod lifetime;
pub mod log;
pub mod proxy;
pub mod save;
pub mod signals;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stats;
pub mod supervisor;
pub mod tools;
pub mod transport;
pub mod trusted;
