//! The lock and the condition variable that the drivers are written with: the machine's, or
//! loom's under `cfg(loom)`.

#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
