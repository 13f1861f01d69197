//! The device model's saved state on its way out of the stubdomain and back into the next one, as
//! [`state_record`](crate::libxl::state_record) describes.

pub mod intercept;
pub mod restore;
pub mod saver;
pub mod sender;
