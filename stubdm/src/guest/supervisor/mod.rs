//! The stubdomain's state machine: takes events and returns actions.
//!
//! ```text
//!  Launch ──monitor greets──▶ Prepare ──vchan offered──▶ Start ──cont obeyed──▶ Running
//!    │ deadline, QEMU dies, anything fails │                │                      │
//!    └────────────────────────────────────┴───────┬────────┴──────────────────────┘
//!                                                  ▼
//!                              Ending (QEMU killed if it lives) ──▶ the guest told ──▶ PowerOff
//! ```
//!
//! While QEMU runs it is asked for a sign of life ([`watchdog`]); one that gives none is reported
//! and not killed. Its output is logged within bounds ([`crate::rt::log_limit`]).
//!
//! No I/O and no clock. QEMU itself reports readiness: it writes `running` when its processors
//! start. So `cont` is sent only after everything else is up; this machine keeps that order.
//!
//! A guest that has started loses its device model with QEMU. The init reports its crash to the
//! hypervisor, and the toolstack acts on it by its configuration (`on_crash`).
//!
//! Every path ends in [`Action::PowerOff`]: no stubdomain remains that cannot do its work.

pub mod watchdog;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::rt::log_limit::{LogLimit, Verdict};
use crate::rt::poll::earlier;
use stubdm_qmp::text::one_line;
use watchdog::{Beat, Watchdog};

/// How long everything up to `running` may take, unless `stubdm.launch-limit` sets another limit.
/// libxl has a limit of its own: it fails 30 seconds after it started the stubdomain, the time of
/// the kernel's boot and of our preparations included.
pub const LAUNCH_LIMIT: Duration = Duration::from_secs(60);
/// How long a running QEMU may be silent on our monitor before that is reported. Twice what libxl
/// itself waits for an answer to most commands.
pub const HANG_LIMIT: Duration = Duration::from_secs(20);
/// How long QEMU may live after its monitor closed, or after it was killed.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// How many of QEMU's last lines are kept to report why it died.
const LAST_WORDS: usize = 4;

/// QEMU's message in every stubdomain: it tries to give nodes to domain 0, which only domain 0 can.
const HARMLESS: &str = "xen be core: xs_set_permissions ";

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// Killed by this signal.
    Signal(String),
}

impl Exit {
    /// The likely cause, and the remedy. Only the kernel kills QEMU with these in a stubdomain:
    /// where no memory is left, and where a file in memory cannot grow.
    fn hint(&self) -> &'static str {
        match self {
            Self::Signal(signal) if signal == "SIGKILL" || signal == "SIGBUS" => {
                ", probably because the stubdomain's memory is used up: raise stubdomain_memory"
            }
            _ => "",
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "was killed by {signal}"),
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Our own monitor connection is negotiated.
    MonitorReady,
    /// Our own monitor connection is closed, or violates QMP.
    MonitorLost(String),
    /// The vchan server is published.
    VchanUp,
    /// `cont` was obeyed.
    Started,
    /// `cont` was refused.
    StartRefused(String),
    /// QEMU has answered [`Action::Ask`].
    Answered,
    /// A QMP event.
    Qmp(String),
    /// A line on QEMU's stdout or stderr.
    Line(String),
    /// QEMU has ended.
    QemuExited(Exit),
    /// Something else of ours failed for good.
    Failed(String),
    /// A signal asks for the end.
    Terminate(String),
    /// Time has passed.
    Tick,
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish the vchan server; answered by [`Event::VchanUp`] or [`Event::Failed`].
    OfferVchan,
    /// Give `cont` on our monitor; answered by [`Event::Started`] or [`Event::StartRefused`].
    Start,
    /// Say this in the log.
    Log(String),
    /// Say this in the log if it is to hold everything.
    Detail(String),
    /// Ask QEMU for anything; answered by [`Event::Answered`].
    Ask,
    /// Record that everything is up.
    ReportRunning,
    /// Record that QEMU does not answer, in the log and in the store.
    ReportHung(String),
    /// Record that it answers again.
    ReportBack(String),
    /// Record why this stubdomain ends, in the log and in the store.
    ReportError(String),
    /// Kill QEMU.
    KillQemu,
    /// Tell the hypervisor that the guest has crashed: it has no device model any more.
    CrashGuest,
    /// Power this domain off. The last action there is.
    PowerOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Launch,
    Prepare,
    Start,
    Running,
    Ending,
    Over,
}

/// The machine.
#[derive(Debug)]
pub struct Supervisor {
    phase: Phase,
    deadline: Option<Instant>,
    /// Since the guest was started.
    watchdog: Option<Watchdog>,
    launch_limit: Duration,
    hang_limit: Duration,
    limit: LogLimit,
    last_words: VecDeque<String>,
    monitor_lost: Option<String>,
    actions: VecDeque<Action>,
}

impl Supervisor {
    /// QEMU was just started, stopped (`-S`). Everything up to `running` may take `launch_limit`,
    /// usually [`LAUNCH_LIMIT`]. Later a silence of `hang_limit`, usually [`HANG_LIMIT`], is
    /// reported.
    pub fn new(now: Instant, launch_limit: Duration, hang_limit: Duration) -> Self {
        Self {
            phase: Phase::Launch,
            deadline: Some(now + launch_limit),
            watchdog: None,
            launch_limit,
            hang_limit,
            limit: LogLimit::new(now),
            last_words: VecDeque::new(),
            monitor_lost: None,
            actions: VecDeque::new(),
        }
    }

    /// Returns when [`Event::Tick`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        earlier(
            self.deadline,
            self.watchdog.as_ref().and_then(Watchdog::poll_timeout),
        )
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns whether [`Action::PowerOff`] was given.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Tells what happened.
    pub fn handle_event(&mut self, event: Event, now: Instant) {
        match (self.phase, event) {
            (Phase::Over, _) => {}
            (_, Event::Line(line)) => self.line(&line, now),
            (Phase::Launch, Event::MonitorReady) => {
                self.phase = Phase::Prepare;
                self.actions.push_back(Action::OfferVchan);
            }
            (Phase::Prepare, Event::VchanUp) => {
                self.phase = Phase::Start;
                self.actions.push_back(Action::Start);
            }
            (Phase::Start, Event::Started) => {
                self.phase = Phase::Running;
                self.deadline = None;
                self.watchdog = Some(Watchdog::new(self.hang_limit, now));
                self.actions.push_back(Action::ReportRunning);
            }
            (Phase::Start, Event::StartRefused(why)) => {
                self.end(format!("QEMU refused to start the guest: {why}"), now);
            }
            (Phase::Ending, Event::QemuExited(_)) => self.power_off(),
            (_, Event::QemuExited(exit)) => {
                self.count_dropped();
                let reason = self.with_last_words(format!("QEMU {exit}{}", exit.hint()));
                self.actions.push_back(Action::ReportError(reason));
                self.power_off();
            }
            // A dying QEMU closes its monitor first: its end is more informative than the closing.
            (Phase::Ending, Event::MonitorLost(_)) => {}
            (_, Event::MonitorLost(why)) => {
                if self.monitor_lost.is_none() {
                    self.monitor_lost = Some(why);
                    self.deadline = Some(now + DEATH_LIMIT);
                }
            }
            (Phase::Ending, Event::Failed(_) | Event::Terminate(_)) => {}
            (_, Event::Failed(why)) => self.end(why, now),
            (_, Event::Terminate(signal)) => self.end(format!("told to end by {signal}"), now),
            (_, Event::Qmp(name)) => {
                self.log(format!("QEMU says {}", one_line(&name)), now);
            }
            (_, Event::Answered) => {
                if let Some(silent) = self.watchdog.as_mut().and_then(|p| p.handle_answer(now)) {
                    let again = format!("QEMU answers again, after {} s", silent.as_secs());
                    self.actions.push_back(Action::ReportBack(again));
                }
            }
            (_, Event::Tick) => {
                if self.deadline.is_some_and(|deadline| deadline <= now) {
                    self.late(now);
                }
                match self
                    .watchdog
                    .as_mut()
                    .and_then(|watchdog| watchdog.handle_timeout(now))
                {
                    Some(Beat::Ask) => self.actions.push_back(Action::Ask),
                    Some(Beat::Hung) => {
                        let limit = self.hang_limit.as_secs();
                        let hung = format!("QEMU has not answered for {limit} s");
                        self.actions.push_back(Action::ReportHung(hung));
                    }
                    None => {}
                }
            }
            (_, Event::MonitorReady | Event::VchanUp | Event::Started | Event::StartRefused(_)) => {
            }
        }
    }

    fn late(&mut self, now: Instant) {
        let limit = self.launch_limit.as_secs();
        let reason = match (self.phase, self.monitor_lost.take()) {
            (Phase::Ending, _) => {
                self.actions
                    .push_back(Action::Log("QEMU does not die".to_owned()));
                self.power_off();
                return;
            }
            (_, Some(why)) => format!("QEMU's monitor is lost: {why}"),
            (Phase::Launch, None) => format!("QEMU's monitor did not answer in {limit} s"),
            (Phase::Prepare, None) => format!("the vchan was not offered in {limit} s"),
            (_, None) => format!("QEMU did not start the guest in {limit} s"),
        };
        let reason = self.with_last_words(reason);
        self.end(reason, now);
    }

    fn end(&mut self, reason: String, now: Instant) {
        self.phase = Phase::Ending;
        self.deadline = Some(now + DEATH_LIMIT);
        self.count_dropped();
        self.actions.push_back(Action::ReportError(reason));
        self.actions.push_back(Action::KillQemu);
    }

    fn power_off(&mut self) {
        self.phase = Phase::Over;
        self.deadline = None;
        // There is a watchdog once the guest has been started.
        if self.watchdog.take().is_some() {
            self.actions.push_back(Action::CrashGuest);
        }
        self.actions.push_back(Action::PowerOff);
    }

    fn line(&mut self, line: &str, now: Instant) {
        let line = one_line(line);
        if line.is_empty() {
            return;
        }
        if line.starts_with(HARMLESS) {
            self.actions
                .push_back(Action::Detail(format!("qemu: {line}")));
            return;
        }
        if self.last_words.len() == LAST_WORDS {
            self.last_words.pop_front();
        }
        self.log(format!("qemu: {line}"), now);
        self.last_words.push_back(line);
    }

    /// Puts something of QEMU's into the log, if there is room for it.
    fn log(&mut self, line: String, now: Instant) {
        match self.limit.admit(line.len(), now) {
            Verdict::Pass => {}
            Verdict::PassAfter(dropped) => self.left_out(dropped),
            Verdict::Stop => {
                let stop =
                    "QEMU says more than goes into this log: lines are left out from here on";
                self.actions.push_back(Action::Log(stop.to_owned()));
                return;
            }
            Verdict::Drop => return,
        }
        self.actions.push_back(Action::Log(line));
    }

    fn left_out(&mut self, dropped: u64) {
        let count = format!("{dropped} lines were left out");
        self.actions.push_back(Action::Log(count));
    }

    fn count_dropped(&mut self) {
        let dropped = self.limit.dropped();
        if dropped > 0 {
            self.left_out(dropped);
        }
    }

    fn with_last_words(&self, mut reason: String) -> String {
        if !self.last_words.is_empty() {
            let words: Vec<&str> = self.last_words.iter().map(String::as_str).collect();
            reason.push_str("; its last words: ");
            reason.push_str(&words.join(" | "));
        }
        reason
    }
}

#[cfg(test)]
mod tests;
