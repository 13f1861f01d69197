//! Reports of what this stubdomain is doing, and why it ended.
//!
//! | node, relative to the stubdomain's own | value |
//! |---|---|
//! | `device-model/G/state` | `running`, by QEMU; `error: …`, by us. libxl waits for the first |
//! | `data/stubdm` | the phase, `trouble: …` while something is wrong, or the same `error: …`; there also when no guest is known |

use stubdm_qmp::text::one_line;
use tracing::{debug, error, info, warn};
use xen_store::Store;
use xen_sys::DomId;

/// The longest value written: what a store always takes.
const VALUE_MAX: usize = 1024;

/// Where to report to, as far as it is known yet.
#[derive(Debug, Default)]
pub struct Report {
    store: Option<Store>,
    guest: Option<DomId>,
}

impl Report {
    /// The store is open.
    pub fn reaches(&mut self, store: &Store) {
        self.store = Some(store.clone());
    }

    /// Sets the guest that reports are about.
    pub fn concerns(&mut self, guest: DomId) {
        self.guest = Some(guest);
    }

    /// Reports the current phase.
    pub fn phase(&self, phase: &str) {
        info!("{phase}");
        self.write("data/stubdm", phase);
    }

    /// Reports a failure that does not end the stubdomain.
    pub fn trouble(&self, what: &str) {
        let value = marked("trouble", what);
        warn!("{value}");
        self.write("data/stubdm", &value);
    }

    /// Reports why this stubdomain ends.
    pub fn failed(&self, reason: &str) {
        let value = marked("error", reason);
        error!("{value}");
        self.write("data/stubdm", &value);
        if let Some(guest) = self.guest {
            self.write(&format!("device-model/{guest}/state"), &value);
        }
    }

    fn write(&self, node: &str, value: &str) {
        let Some(store) = &self.store else { return };
        if let Err(failure) = store.write(node, value) {
            debug!("writing {node}: {failure}");
        }
    }
}

/// One line, never `running`, and short enough.
fn marked(mark: &str, reason: &str) -> String {
    let mut value = format!("{mark}: {}", one_line(reason));
    if value.len() > VALUE_MAX {
        let mut end = VALUE_MAX;
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        value.truncate(end);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_never_taken_for_success_and_always_fits() {
        assert_eq!(marked("error", "running"), "error: running");
        assert_eq!(marked("error", "a\nb"), "error: a b");
        let long = marked("error", &"ä".repeat(5000));
        assert!(long.len() <= VALUE_MAX && long.len() > VALUE_MAX - 4);
    }
}
