//! The libraries' examples as programs of dom0: this program under one of their names is that
//! example.

#![allow(
    clippy::duplicate_mod,
    reason = "each example has the parts that they share as a module of its own"
)]

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

// Each is compiled here as the root of a crate is.
#[path = "../../../xen-gnttab/examples/guest-memory.rs"]
mod guest_memory;
#[path = "../../../xen-evtchn/examples/trace-writes.rs"]
mod trace_writes;
#[path = "../../../xen-sys/examples/xen-console-ring.rs"]
mod xen_console_ring;
#[path = "../../../xen-sys/examples/xen-list.rs"]
mod xen_list;
#[path = "../../../xen-sys/examples/xen-top.rs"]
mod xen_top;

/// An example's `main`.
pub(crate) type Main = fn() -> ExitCode;

/// The examples' names and `main` functions.
pub(crate) const ALL: &[(&str, Main)] = &[
    ("guest-memory", guest_memory::main),
    ("trace-writes", trace_writes::main),
    ("xen-console-ring", xen_console_ring::main),
    ("xen-list", xen_list::main),
    ("xen-top", xen_top::main),
];

/// Returns the example of the name that this program was called by.
pub(crate) fn named(name: &OsStr) -> Option<Main> {
    let name = Path::new(name).file_name()?;
    let found = ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, main)| *main)
}
