//! What happens when, in a stubdomain: a state machine that is told events and asks for actions.
//!
//! ```text
//!  Launch ──monitor greets──▶ Prepare ──vchan offered──▶ Start ──cont obeyed──▶ Running
//!    │ deadline, QEMU dies, anything fails │                │                      │
//!    └────────────────────────────────────┴───────┬────────┴──────────────────────┘
//!                                                  ▼
//!                              Ending (QEMU killed if it lives) ──▶ PowerOff
//! ```
//!
//! No I/O and no clock. Readiness is QEMU's own word: it writes `running` when its processors
//! start, so `cont` is given only after everything else is up, and that order is kept here.
//!
//! Every path ends in [`Action::PowerOff`]: a stubdomain that cannot do its work does not stay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::one_line;

/// How long everything up to `running` may take. libxl gives up on a stubdomain 30 seconds after
/// it was started; its kernel and our own preparations have had their part of that.
pub const LAUNCH_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may live on after its monitor closed, or after it was told to die.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// How many of QEMU's last lines are kept to say why it died.
const LAST_WORDS: usize = 4;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// Killed by this signal.
    Signal(String),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "was killed by {signal}"),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Our own monitor connection is negotiated.
    MonitorReady,
    /// Our own monitor connection is closed, or speaks no QMP.
    MonitorLost(String),
    /// The vchan server is published.
    VchanUp,
    /// `cont` was obeyed.
    Started,
    /// `cont` was refused.
    StartRefused(String),
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

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish the vchan server; answered by [`Event::VchanUp`] or [`Event::Failed`].
    OfferVchan,
    /// Give `cont` on our monitor; answered by [`Event::Started`] or [`Event::StartRefused`].
    Start,
    /// Say this in the log.
    Log(String),
    /// Record that everything is up.
    ReportRunning,
    /// Record why this stubdomain ends, in the log and in the store.
    ReportError(String),
    /// Kill QEMU.
    KillQemu,
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
    last_words: VecDeque<String>,
    monitor_lost: Option<String>,
    actions: VecDeque<Action>,
}

impl Supervisor {
    /// QEMU was just started, stopped (`-S`).
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Launch,
            deadline: Some(now + LAUNCH_LIMIT),
            last_words: VecDeque::new(),
            monitor_lost: None,
            actions: VecDeque::new(),
        }
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The next thing to do.
    pub fn action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether [`Action::PowerOff`] was given.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Tells what happened.
    pub fn event(&mut self, event: Event, now: Instant) {
        match (self.phase, event) {
            (Phase::Over, _) => {}
            (_, Event::Line(line)) => self.line(&line),
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
                self.actions.push_back(Action::ReportRunning);
            }
            (Phase::Start, Event::StartRefused(why)) => {
                self.end(format!("QEMU refused to start the guest: {why}"), now);
            }
            (Phase::Ending, Event::QemuExited(_)) => self.power_off(),
            (_, Event::QemuExited(exit)) => {
                let reason = self.death(&exit);
                self.actions.push_back(Action::ReportError(reason));
                self.power_off();
            }
            // A dying QEMU closes its monitor first: its end says more than the closing does.
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
                self.actions
                    .push_back(Action::Log(format!("QEMU says {}", one_line(&name))));
            }
            (_, Event::Tick) => {
                if self.deadline.is_some_and(|deadline| deadline <= now) {
                    self.late(now);
                }
            }
            (_, Event::MonitorReady | Event::VchanUp | Event::Started | Event::StartRefused(_)) => {
            }
        }
    }

    fn late(&mut self, now: Instant) {
        let limit = LAUNCH_LIMIT.as_secs();
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
        self.actions.push_back(Action::ReportError(reason));
        self.actions.push_back(Action::KillQemu);
    }

    fn power_off(&mut self) {
        self.phase = Phase::Over;
        self.deadline = None;
        self.actions.push_back(Action::PowerOff);
    }

    fn line(&mut self, line: &str) {
        let line = one_line(line);
        if line.is_empty() {
            return;
        }
        if self.last_words.len() == LAST_WORDS {
            self.last_words.pop_front();
        }
        self.actions.push_back(Action::Log(format!("qemu: {line}")));
        self.last_words.push_back(line);
    }

    fn death(&self, exit: &Exit) -> String {
        self.with_last_words(format!("QEMU {exit}"))
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
mod tests {
    use super::*;

    struct Bench {
        machine: Supervisor,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                machine: Supervisor::new(now),
                now,
            }
        }

        fn tell(&mut self, event: Event) -> Vec<Action> {
            self.machine.event(event, self.now);
            std::iter::from_fn(|| self.machine.action()).collect()
        }

        fn wait(&mut self, time: Duration) -> Vec<Action> {
            self.now += time;
            self.tell(Event::Tick)
        }

        fn running() -> Self {
            let mut bench = Self::new();
            assert_eq!(bench.tell(Event::MonitorReady), [Action::OfferVchan]);
            assert_eq!(bench.tell(Event::VchanUp), [Action::Start]);
            assert_eq!(bench.tell(Event::Started), [Action::ReportRunning]);
            bench
        }
    }

    fn error(actions: &[Action]) -> &str {
        match actions.first() {
            Some(Action::ReportError(reason)) => reason,
            other => panic!("no error reported first, but {other:?}"),
        }
    }

    #[test]
    fn the_guest_starts_only_after_the_vchan_is_offered() {
        let mut bench = Bench::new();
        // Nothing but the right event leads on, in whatever order events come.
        assert_eq!(bench.tell(Event::VchanUp), []);
        assert_eq!(bench.tell(Event::Started), []);
        assert_eq!(bench.tell(Event::MonitorReady), [Action::OfferVchan]);
        assert_eq!(bench.tell(Event::Started), []);
        assert_eq!(bench.tell(Event::MonitorReady), []);
        assert_eq!(bench.tell(Event::VchanUp), [Action::Start]);
    }

    #[test]
    fn a_running_guest_has_no_deadline() {
        let mut bench = Bench::running();
        assert_eq!(bench.machine.deadline(), None);
        assert_eq!(bench.wait(Duration::from_secs(1_000_000)), []);
    }

    #[test]
    fn qemus_death_is_explained_and_ends_the_domain_in_every_phase() {
        let steps = [Event::MonitorReady, Event::VchanUp, Event::Started];
        for done in 0..=steps.len() {
            let mut bench = Bench::new();
            for step in steps.iter().take(done) {
                bench.tell(step.clone());
            }
            bench.tell(Event::Line("no such file\u{1b}[2J".to_owned()));
            bench.tell(Event::MonitorLost("closed".to_owned()));
            let actions = bench.tell(Event::QemuExited(Exit::Signal("SIGSEGV".to_owned())));
            let reason = error(&actions);
            assert!(
                reason.contains("SIGSEGV") && reason.contains("no such file [2J"),
                "{reason}"
            );
            assert_eq!(actions.last(), Some(&Action::PowerOff));
            assert!(bench.machine.is_over());
            assert_eq!(bench.tell(Event::Tick), []);
        }
    }

    #[test]
    fn a_silent_monitor_ends_it() {
        let mut bench = Bench::new();
        assert_eq!(bench.wait(LAUNCH_LIMIT - Duration::from_millis(1)), []);
        let actions = bench.wait(Duration::from_millis(1));
        assert!(error(&actions).contains("did not answer"));
        assert_eq!(actions.last(), Some(&Action::KillQemu));
        let exit = Event::QemuExited(Exit::Signal("SIGKILL".to_owned()));
        assert_eq!(bench.tell(exit), [Action::PowerOff]);
    }

    #[test]
    fn each_later_phase_has_the_same_deadline() {
        for steps in [
            vec![Event::MonitorReady],
            vec![Event::MonitorReady, Event::VchanUp],
        ] {
            let mut bench = Bench::new();
            for step in steps {
                bench.tell(step);
            }
            let actions = bench.wait(LAUNCH_LIMIT);
            assert!(error(&actions).contains("60 s"), "{actions:?}");
        }
    }

    #[test]
    fn a_lost_monitor_waits_for_the_death_that_explains_it_but_not_for_ever() {
        let mut bench = Bench::running();
        assert_eq!(bench.tell(Event::MonitorLost("closed".to_owned())), []);
        assert_eq!(bench.wait(DEATH_LIMIT / 2), []);
        assert_eq!(bench.tell(Event::MonitorLost("again".to_owned())), []);
        let actions = bench.wait(DEATH_LIMIT / 2);
        assert_eq!(error(&actions), "QEMU's monitor is lost: closed");
        assert_eq!(actions.last(), Some(&Action::KillQemu));
    }

    #[test]
    fn a_qemu_that_does_not_die_cannot_keep_the_domain() {
        let mut bench = Bench::running();
        let actions = bench.tell(Event::Failed("the vchan broke".to_owned()));
        assert_eq!(error(&actions), "the vchan broke");
        assert_eq!(bench.tell(Event::Terminate("SIGTERM".to_owned())), []);
        assert_eq!(bench.wait(DEATH_LIMIT).last(), Some(&Action::PowerOff));
    }

    #[test]
    fn only_the_last_words_are_kept() {
        let mut bench = Bench::running();
        for n in 0..100 {
            bench.tell(Event::Line(format!("line {n}")));
        }
        let actions = bench.tell(Event::QemuExited(Exit::Status(1)));
        let expected =
            "QEMU ended with status 1; its last words: line 96 | line 97 | line 98 | line 99";
        assert_eq!(error(&actions), expected);
    }

    #[test]
    fn a_refused_start_is_an_end() {
        let mut bench = Bench::new();
        bench.tell(Event::MonitorReady);
        bench.tell(Event::VchanUp);
        let actions = bench.tell(Event::StartRefused("GenericError: no".to_owned()));
        assert!(error(&actions).contains("GenericError: no"));
        let exit = Event::QemuExited(Exit::Signal("SIGKILL".to_owned()));
        assert_eq!(bench.tell(exit), [Action::PowerOff]);
    }
}
