//! Bytes as they are: each client has a vchan connection of its own, one client after another.

pub mod driver;
pub mod session;
