//! The state machine, given events and asked for actions.

use super::*;

struct Bench {
    machine: Supervisor,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            machine: Supervisor::new(now, LAUNCH_LIMIT, HANG_LIMIT),
            now,
        }
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.machine.handle_event(event, self.now);
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    fn wait(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.handle(Event::Tick)
    }

    fn running() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.handle(Event::MonitorReady), [Action::OfferVchan]);
        assert_eq!(bench.handle(Event::VchanUp), [Action::Start]);
        assert_eq!(bench.handle(Event::Started), [Action::ReportRunning]);
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
    // Only the right event advances the phase, in whatever order events arrive.
    assert_eq!(bench.handle(Event::VchanUp), []);
    assert_eq!(bench.handle(Event::Started), []);
    assert_eq!(bench.handle(Event::MonitorReady), [Action::OfferVchan]);
    assert_eq!(bench.handle(Event::Started), []);
    assert_eq!(bench.handle(Event::MonitorReady), []);
    assert_eq!(bench.handle(Event::VchanUp), [Action::Start]);
}

#[test]
fn a_running_guest_has_no_deadline_but_its_qemu_is_asked_for_signs_of_life() {
    let mut bench = Bench::running();
    for _ in 0..1000 {
        assert_eq!(bench.wait(watchdog::ASK_EVERY), [Action::Ask]);
        assert_eq!(bench.handle(Event::Answered), []);
    }
}

/// It is reported once and not killed: it may recover, and the guest's data in its memory would be
/// lost.
#[test]
fn a_qemu_that_hangs_is_reported_and_not_killed() {
    let mut bench = Bench::running();
    assert_eq!(bench.wait(watchdog::ASK_EVERY), [Action::Ask]);
    assert_eq!(bench.wait(HANG_LIMIT - Duration::from_millis(1)), []);
    let hung = Action::ReportHung("QEMU has not answered for 20 s".to_owned());
    assert_eq!(bench.wait(Duration::from_millis(1)), [hung]);
    assert_eq!(bench.machine.poll_timeout(), None);
    assert_eq!(bench.wait(Duration::from_secs(1_000_000)), []);
    let back = "QEMU answers again, after 1000020 s".to_owned();
    assert_eq!(bench.handle(Event::Answered), [Action::ReportBack(back)]);
    assert_eq!(bench.wait(watchdog::ASK_EVERY), [Action::Ask]);
    let actions = bench.handle(Event::QemuExited(Exit::Signal("SIGKILL".to_owned())));
    assert!(error(&actions).starts_with("QEMU was killed by SIGKILL"));
}

/// A guest that never ran is left to the toolstack to destroy; one that ran is crashed.
#[test]
fn the_guest_crashes_if_it_has_run() {
    let killed = || Event::QemuExited(Exit::Signal("SIGKILL".to_owned()));
    let actions = Bench::running().handle(killed());
    assert_eq!(actions[1..], [Action::CrashGuest, Action::PowerOff]);
    let mut bench = Bench::new();
    bench.handle(Event::MonitorReady);
    bench.handle(Event::VchanUp);
    assert_eq!(bench.handle(killed())[1..], [Action::PowerOff]);
    // However it ends.
    let mut bench = Bench::running();
    bench.handle(Event::Failed("the vchan broke".to_owned()));
    let expected = [Action::CrashGuest, Action::PowerOff];
    assert_eq!(bench.handle(killed()), expected);
}

#[test]
fn a_flood_of_words_or_events_fills_no_log_and_hides_neither_the_end_nor_the_hang() {
    let mut bench = Bench::running();
    let mut logged = 0;
    for n in 0..50_000 {
        let event = if n % 2 == 0 {
            Event::Line(format!("line {n}"))
        } else {
            Event::Qmp("FLOOD".to_owned())
        };
        for action in bench.handle(event) {
            match action {
                Action::Log(line) => logged += line.len(),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(logged < 70_000, "{logged} bytes");
    assert_eq!(bench.wait(watchdog::ASK_EVERY), [Action::Ask]);
    assert!(matches!(
        bench.wait(HANG_LIMIT)[..],
        [Action::ReportHung(_)]
    ));
    let mut actions = bench.handle(Event::QemuExited(Exit::Status(1)));
    let Action::Log(count) = actions.remove(0) else {
        panic!("{actions:?}")
    };
    assert!(count.ends_with("lines were left out"), "{count}");
    // The last words are those that were not logged.
    assert!(
        error(&actions).ends_with("line 49994 | line 49996 | line 49998"),
        "{actions:?}"
    );
}

#[test]
fn qemus_death_is_explained_and_ends_the_domain_in_every_phase() {
    let steps = [Event::MonitorReady, Event::VchanUp, Event::Started];
    for done in 0..=steps.len() {
        let mut bench = Bench::new();
        for step in steps.iter().take(done) {
            bench.handle(step.clone());
        }
        bench.handle(Event::Line("no such file\u{1b}[2J".to_owned()));
        bench.handle(Event::MonitorLost("closed".to_owned()));
        let actions = bench.handle(Event::QemuExited(Exit::Signal("SIGSEGV".to_owned())));
        let reason = error(&actions);
        assert!(
            reason.contains("SIGSEGV") && reason.contains("no such file [2J"),
            "{reason}"
        );
        assert_eq!(actions.last(), Some(&Action::PowerOff));
        assert!(bench.machine.is_over());
        assert_eq!(bench.handle(Event::Tick), []);
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
    assert_eq!(bench.handle(exit), [Action::PowerOff]);
}

#[test]
fn each_later_phase_has_the_same_deadline() {
    for steps in [
        vec![Event::MonitorReady],
        vec![Event::MonitorReady, Event::VchanUp],
    ] {
        let mut bench = Bench::new();
        for step in steps {
            bench.handle(step);
        }
        let actions = bench.wait(LAUNCH_LIMIT);
        assert!(error(&actions).contains("60 s"), "{actions:?}");
    }
}

#[test]
fn a_lost_monitor_waits_for_the_death_that_explains_it_but_not_for_ever() {
    let mut bench = Bench::running();
    assert_eq!(bench.handle(Event::MonitorLost("closed".to_owned())), []);
    assert_eq!(bench.wait(DEATH_LIMIT / 2), []);
    assert_eq!(bench.handle(Event::MonitorLost("again".to_owned())), []);
    let actions = bench.wait(DEATH_LIMIT / 2);
    assert_eq!(error(&actions), "QEMU's monitor is lost: closed");
    assert_eq!(actions.last(), Some(&Action::KillQemu));
}

#[test]
fn a_qemu_that_does_not_die_cannot_keep_the_domain() {
    let mut bench = Bench::running();
    let actions = bench.handle(Event::Failed("the vchan broke".to_owned()));
    assert_eq!(error(&actions), "the vchan broke");
    assert_eq!(bench.handle(Event::Terminate("SIGTERM".to_owned())), []);
    assert_eq!(bench.wait(DEATH_LIMIT).last(), Some(&Action::PowerOff));
}

#[test]
fn only_the_last_words_are_kept() {
    let mut bench = Bench::running();
    for n in 0..100 {
        bench.handle(Event::Line(format!("line {n}")));
    }
    let noise = "xen be core: xs_set_permissions device-model/3/backends/9pfs: failed";
    let actions = bench.handle(Event::Line(noise.to_owned()));
    assert_eq!(actions, [Action::Detail(format!("qemu: {noise}"))]);
    let actions = bench.handle(Event::QemuExited(Exit::Status(1)));
    let expected =
        "QEMU ended with status 1; its last words: line 96 | line 97 | line 98 | line 99";
    assert_eq!(error(&actions), expected);
}

#[test]
fn a_refused_start_is_an_end() {
    let mut bench = Bench::new();
    bench.handle(Event::MonitorReady);
    bench.handle(Event::VchanUp);
    let actions = bench.handle(Event::StartRefused("GenericError: no".to_owned()));
    assert!(error(&actions).contains("GenericError: no"));
    let exit = Event::QemuExited(Exit::Signal("SIGKILL".to_owned()));
    assert_eq!(bench.handle(exit), [Action::PowerOff]);
}

#[test]
fn a_qemu_the_kernel_kills_for_memory_is_reported_with_the_setting_that_helps() {
    for (signal, hint) in [
        ("SIGKILL", true),
        ("SIGBUS", true),
        ("SIGSEGV", false),
        ("SIGABRT", false),
    ] {
        let mut bench = Bench::running();
        let actions = bench.handle(Event::QemuExited(Exit::Signal(signal.to_owned())));
        let reason = error(&actions);
        assert!(reason.contains(signal), "{reason}");
        assert_eq!(reason.contains("stubdomain_memory"), hint, "{reason}");
    }
}

#[test]
fn a_slow_machine_may_be_given_longer_to_launch() {
    let now = Instant::now();
    let longer = LAUNCH_LIMIT * 3;
    let mut bench = Bench {
        machine: Supervisor::new(now, longer, HANG_LIMIT),
        now,
    };
    assert_eq!(bench.wait(longer - Duration::from_millis(1)), []);
    let actions = bench.wait(Duration::from_millis(1));
    assert!(error(&actions).contains("did not answer in 180 s"));
}
