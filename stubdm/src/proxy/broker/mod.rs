//! The half of the proxy that holds the host's powers: it moves bytes and parses none.

pub mod connect;
pub mod log_relay;
pub mod rates;
pub mod relay;
pub mod saved_file;
pub mod saves;
pub mod spawn;

#[cfg(test)]
mod tests;
