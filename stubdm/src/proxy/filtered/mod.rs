//! QMP under a policy: all clients of the host's proxy share one session with QEMU.

pub mod driver;
pub mod multiplexer;
pub mod qemu_session;

use std::fmt;

use stubdm_qmp::policy::Policy;

use crate::proxy::counters::Reporter;
use crate::proxy::saves::Saves;

/// The needs of a proxy that filters, besides its clients and its vchan.
pub struct Filter {
    /// The policy.
    pub policy: Policy,
    /// The reporter of its counters.
    pub reporter: Option<Reporter>,
    /// The checks that answers to saves wait for.
    pub saves: Box<dyn Saves>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}
