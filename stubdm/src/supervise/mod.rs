//! Starts a guest's host processes again: the QMP proxy and `consoled`.
//!
//! ```text
//!   proxy, consoled ──claim──▶ /run/stubdm/services/NAME (locked while the process lives)
//!                                    │ read
//!   stubdm-run supervise ◀───────────┘   lock free and domain alive ──▶ the same command line, --resume
//! ```
//!
//! libxl starts each of them once and looks at neither again. Each writes a [record](crate::service) of
//! how it was started and holds a lock on it, which the kernel releases with the process, however
//! that ends. A process that ends in good order removes its record. So a record without a lock is
//! a process that was killed. Process numbers are used only while the lock shows whose they are.

pub mod folder;
pub mod process;
pub mod restart;
pub mod run;
