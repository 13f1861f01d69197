//! The commands a person runs on the host: what is there, what is wrong with it, and how to make it
//! right.
//!
//! | command | module |
//! |---|---|
//! | `dmargs` | [`dmargs`] |
//! | `doctor` | [`doctor`] |
//! | `image` | [`image`], over [`stubdm_image`] |
//! | `install`, `uninstall` | [`install`], over [`crate::libxl`] |
//! | `policy`, `qmp` | [`policy`](mod@policy), [`qmp`] |
//! | `screen`, `screenshot` | [`screen`], [`screenshot`] |
//! | `status` | [`status`] |

pub mod dmargs;
pub mod doctor;
pub mod image;
pub mod install;
pub mod policy;
pub mod qmp;
pub mod screen;
pub mod screenshot;
pub mod status;
mod terminal;
pub mod xlcfg;
