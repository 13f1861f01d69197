//! The commands a person runs on the host: what is there, what is wrong with it, and how to make it right.
//!
//! | command | module |
//! |---|---|
//! | `dmargs` | [`dmargs`] |
//! | `doctor` | [`doctor`] |
//! | `image` | [`image`], over [`crate::image`] |
//! | `install`, `uninstall` | [`install`], over [`libxl`] |
//! | `status` | [`status`] |

pub mod dmargs;
pub mod doctor;
pub mod image;
pub mod install;
pub mod libxl;
pub mod status;
pub mod store;
pub mod xlcfg;
