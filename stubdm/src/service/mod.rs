//! What the proxy and `consoled` share as processes that libxl starts for a guest: the record by
//! which [`crate::supervise`] starts them again.

pub mod claim;
pub mod record;
