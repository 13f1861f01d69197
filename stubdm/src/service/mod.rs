//! The proxy and `consoled` as processes that libxl starts for a guest: the record by which
//! [`crate::supervise`] starts them again.

pub mod claim;
pub mod record;
