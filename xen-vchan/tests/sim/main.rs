//! Both ends on a simulated Xen host: real descriptors, real shared memory, real processes that
//! die.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod arm;
mod death;
mod domain_end;
mod find;
mod halves;
mod host;
mod hostile;
mod listener;
mod pacing;
mod partial;
mod reconnecting;
mod sessions;
mod shared;
mod stream;
#[cfg(feature = "tokio")]
mod tasks;
#[cfg(feature = "tokio")]
mod tasks_events;
#[cfg(feature = "tokio")]
mod tasks_reconnecting;
mod vanish;
