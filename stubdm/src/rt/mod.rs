//! The base of every part of the program: one place to sleep, descriptors that never block, logs
//! with limits.
//!
//! | module | holds |
//! |---|---|
//! | [`event_loop`] | the main loop of every part |
//! | [`outcome`] | work that blocks, in a thread of its own |
//! | [`poll`], [`signals`] | sleeping until a descriptor, a signal or a deadline |
//! | [`stream`], [`listener`], [`fd`] | sockets and inherited descriptors |
//! | [`transport`], [`vchan`] | a byte stream both ways, and the vchan as one |
//! | [`backoff`], [`buffer`], [`token_bucket`] | bounds on attempts, on bytes that wait and on received bytes |
//! | [`log`], [`log_limit`] | log lines, and limits on what another domain can make of them |
//! | [`error`] | one line and an exit status |
//! | [`process`] | the kernel's view of a process |
//! | [`text`] | the program's machine code, unmapped while a process is idle |

pub mod backoff;
pub mod buffer;
pub mod error;
pub mod event_loop;
pub mod fd;
pub mod listener;
pub mod log;
pub mod log_file;
pub mod log_limit;
pub mod outcome;
pub mod poll;
pub mod process;
pub mod signals;
pub mod stream;
pub mod text;
pub mod token_bucket;
pub mod transport;
pub mod vchan;
