//! QMP, QEMU's JSON protocol: lines, messages, and the client's half of a conversation.
//!
//! * [`lines`]: bytes in, whole lines out, within limits;
//! * [`message`]: what a line from QEMU is;
//! * [`client`]: greeting, capabilities, commands and their answers, without I/O;
//! * [`person`]: `stubdm-run qmp`, the command a person types.

pub mod client;
pub mod lines;
pub mod message;
pub mod person;
