//! libxl's side of things: the nodes, command lines, files and places that it reads and writes.
//!
//! | module | holds |
//! |---|---|
//! | [`dm_argv`] | a device model's arguments, and the changes that a stubdomain needs |
//! | [`guest`] | the guest of a stubdomain, in the store |
//! | [`discover`], [`output`], [`consoles`] | a stubdomain's consoles, and where their bytes go |
//! | [`state_record`] | the device model's saved state between the stubdomain and libxl's file |
//! | [`payload`] | the store node that names the vchan |
//! | [`trusted`], [`store`], [`lifetime`] | the host's store: nodes that only dom0 can have written, and a domain's end |
//! | [`vnc`] | the VNC server of a guest's screen |
//! | [`places`] | the paths that are compiled into a libxl |

pub mod consoles;
pub mod discover;
pub mod dm_argv;
pub mod domains;
pub mod guest;
pub mod lifetime;
pub mod output;
pub mod payload;
pub mod places;
pub mod state_record;
pub mod store;
pub mod trusted;
pub mod vnc;
