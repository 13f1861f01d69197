//! Both ends on a simulated Xen host: real descriptors, real shared memory, real processes that
//! die.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod death;
mod find;
mod halves;
mod hostile;
mod partial;
mod sessions;
mod stream;
#[cfg(feature = "tokio")]
mod tasks;
mod world;
