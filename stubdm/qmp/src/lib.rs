//! QMP with a QEMU that is not trusted, without I/O.
//!
//! ```text
//!   bytes ──lines──▶ a line ──json──▶ a value under limits ──message──▶ greeting, answer or event
//!   client's command ──policy──▶ a value rebuilt from the row's schema ──message──▶ a line of our own
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`lines`] | cuts a stream into lines of bounded length |
//! | [`json`] | JSON under limits |
//! | [`message`] | QEMU's messages, and the lines that this program writes |
//! | [`client`] | the client's half of a conversation |
//! | [`policy`] | the commands and answers that pass, as [`policy::schema`] and [`policy::pattern`] describe them |
//! | [`conversation`], [`monitor`] | both sides of a proxy that applies a policy |
//! | [`audit`] | one event for each decision of the policy |
//! | [`learn`] | writes a policy from a log |
//! | [`text`] | makes text from another domain harmless |
//!
//! `docs/proxy.md` describes the policy.

// Tests may read what they wrote themselves.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod audit;
pub mod client;
pub mod conversation;
pub mod json;
pub mod learn;
pub mod lines;
pub mod message;
pub mod monitor;
pub mod policy;
pub mod text;
