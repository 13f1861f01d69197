//! The doctor's checks of the processes that serve running guests.

use super::State;
use super::checks::Host;
use crate::proxy::counters;
use crate::service::record::{self, Liveness};
use crate::supervise::run::is_running;

impl Host<'_> {
    /// Reports each proxy and console server that has ended or is older than the installed program,
    /// and a missing supervisor.
    pub(super) fn services(&mut self) {
        let folder = counters::FOLDER.trim_start_matches('/');
        let folder = self.root.join(folder);
        let supervised = is_running(&folder);
        let mut living = 0;
        for (_, record, life) in record::all(&folder) {
            let (kind, domain) = (record.kind.name(), record.stubdomain);
            match life {
                Liveness::Alive => {
                    living += 1;
                    if self.was_replaced(record.pid) {
                        self.report(
                            "services",
                            State::Note,
                            format!(
                                "the {kind} of domain {domain}, process {}, runs a program that was replaced or removed",
                                record.pid
                            ),
                            &format!("stubdm-run restart {domain}"),
                        );
                    }
                }
                Liveness::Gone(_) => self.report(
                    "services",
                    State::Wrong,
                    format!(
                        "the {kind} of domain {domain}, process {}, is gone",
                        record.pid
                    ),
                    &format!("stubdm-run restart {domain}"),
                ),
            }
        }
        match supervised {
            true => self.ok("services", format!("{living} run, and are supervised")),
            false => self.report(
                "services",
                State::Note,
                format!("{living} run without a supervisor: a killed one is not started again"),
                "systemctl start stubdm-supervise, or stubdm-run supervise --standby &",
            ),
        }
    }

    /// Returns whether a process's program is no longer the file of its name.
    fn was_replaced(&self, pid: u32) -> bool {
        let program = std::fs::read_link(self.root.join(format!("proc/{pid}/exe")));
        program.is_ok_and(|path| path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)"))
    }
}
