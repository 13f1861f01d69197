//! Both ends together without Xen: the init's loop in a simulated stubdomain, a process that plays
//! QEMU, and the host's proxy in a simulated dom0 with clients that behave like libxl.
//!
//! Not run by the usual harness: the init's loop takes over SIGCHLD, which only the first thread
//! of a process can do for all of them.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod client;
mod host;
mod hostile;
mod proxy;
mod qemu;
mod sandbox;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use host::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use stubdm::guest::report::Report;
use stubdm::guest::{InitOptions, qemu as qemu_start, watch};
use stubdm::libxl::dm_argv::{ArgvError, DmArgv};
use stubdm::libxl::guest::Guest;
use stubdm::rt::signals::Signals;

/// The descriptors this process was started with; whoever started it may leave some open.
static INHERITED: OnceLock<BTreeSet<u32>> = OnceLock::new();

type Test = (&'static str, fn(&Signals));

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if args.get(1).is_some_and(|first| first == "-S") {
        return qemu::play(&args);
    }
    if args.get(1).is_some_and(|first| first == proxy::ROLE) {
        return proxy::play(&args);
    }
    INHERITED.get_or_init(qemu::descriptors);
    if std::env::var_os("STUBDM_TEST_LOG").is_some() {
        stubdm::rt::log::to_console(true);
    }
    // Before any thread is started: they inherit it.
    let signals = Signals::take(watch::SIGNALS).unwrap();
    let tests: &[Test] = &[
        (
            "store_decides_what_is_wrong_with_dm_argv",
            store_decides_what_is_wrong_with_dm_argv,
        ),
        (
            "arguments_reach_qemu_byte_for_byte",
            arguments_reach_qemu_byte_for_byte,
        ),
        (
            "two_hundred_conversations_then_a_crash",
            two_hundred_conversations_then_a_crash,
        ),
        (
            "a_qemu_that_dies_at_once_is_explained",
            a_qemu_that_dies_at_once_is_explained,
        ),
        (
            "a_qemu_that_refuses_to_start_is_killed",
            a_qemu_that_refuses_to_start_is_killed,
        ),
        (
            "a_qemu_that_hangs_is_reported_and_its_return_as_well",
            a_qemu_that_hangs_is_reported_and_its_return_as_well,
        ),
        (
            "a_flood_of_words_and_events_leaves_everything_else_as_it_is",
            a_flood_of_words_and_events_leaves_everything_else_as_it_is,
        ),
        ("a_missing_qemu_is_named", a_missing_qemu_is_named),
        ("both_modes_with_paths", |_| proxy::both_modes_with_paths()),
        ("each_vchan_connection_begins_with_the_marker", |_| {
            proxy::each_vchan_connection_begins_with_the_marker()
        }),
        ("stdin_stdout_and_descriptors", |_| {
            proxy::stdin_stdout_and_descriptors()
        }),
        (
            "a_worker_that_was_taken_over_is_replaced_and_ends_with_the_proxy",
            |_| sandbox::a_worker_that_was_taken_over_is_replaced_and_ends_with_the_proxy(),
        ),
        ("a_worker_that_fills_the_log_fills_little_of_it", |_| {
            sandbox::a_worker_that_fills_the_log_fills_little_of_it()
        }),
        ("the_halves_of_the_proxy_end_as_they_should", |_| {
            sandbox::the_halves_of_the_proxy_end_as_they_should()
        }),
        ("a_sandbox_that_cannot_be_made_ends_the_proxy", |_| {
            sandbox::a_sandbox_that_cannot_be_made_ends_the_proxy()
        }),
        ("what_the_worker_counts_can_be_read", |_| {
            sandbox::what_the_worker_counts_can_be_read()
        }),
        ("hostile_stubdomains", |_| hostile::hostile_stubdomains()),
        ("what_is_not_there_is_named", |_| {
            proxy::what_is_not_there_is_named()
        }),
    ];
    let words = args.iter().skip(1).filter_map(|word| word.to_str());
    let only = words.clone().find(|word| !word.starts_with('-'));
    let chosen = |name: &str| only.is_none_or(|part| name.contains(part));
    for (name, test) in tests.iter().filter(|test| chosen(test.0)) {
        let started = Instant::now();
        test(&signals);
        println!(
            "test {name} ... ok ({:.1} s)",
            started.elapsed().as_secs_f64()
        );
    }
    ExitCode::SUCCESS
}

/// Launches this program as QEMU and watches over it to its end; `meanwhile` is the host.
fn run(
    host: &Host,
    signals: &Signals,
    extra: &[&[u8]],
    meanwhile: impl FnOnce() + Send,
) -> ExitCode {
    let mut args = vec![
        b"-store".to_vec(),
        host.store_socket().as_os_str().as_encoded_bytes().to_vec(),
    ];
    args.extend(extra.iter().map(|arg| arg.to_vec()));
    host.set_dm_argv(&args);
    let store = host.stub_store();
    let guest = Guest::read(&store).unwrap();
    assert_eq!(guest.domid, host.guest);
    let argv = guest.argv(&store).unwrap();
    assert_eq!(argv.args(), args);
    let mut report = Report::default();
    report.reaches(&store);
    report.concerns(guest.domid);
    let me = std::env::current_exe().unwrap();
    let started = qemu_start::start_in(
        &host.dir().join("run"),
        &me,
        argv,
        Vec::new(),
        false,
        None,
        None,
    )
    .unwrap();
    let xen = host.stub_xen();
    let watched = watch::Environment {
        xen: &xen,
        store: &store,
        guest: &guest,
        report: &report,
        signals,
        began: Instant::now(),
        options: &InitOptions {
            hang_after: 1,
            ..InitOptions::default()
        },
    };
    std::thread::scope(|scope| {
        let meanwhile = scope.spawn(meanwhile);
        let status = watch::over(&watched, started, None, None, None).unwrap();
        meanwhile.join().unwrap();
        status
    })
}

fn is_failure(status: ExitCode) -> bool {
    format!("{status:?}") == format!("{:?}", ExitCode::FAILURE)
}

fn two_hundred_conversations_then_a_crash(signals: &Signals) {
    let host = Host::new();
    let proxy = host.proxy();
    let status = run(&host, signals, &[b"-name", b"x"], || {
        host.wait_for_state(|state| state == "running");
        let mut open_early = usize::MAX;
        for n in 0..200 {
            if n == 20 {
                open_early = qemu::descriptors().len();
            }
            let mut client = proxy.client();
            client.negotiate();
            let answer = client.ask("echo", json!({"n": n}));
            assert_eq!(answer, json!({"n": n}));
            if n % 3 == 0 {
                // Gone in the middle of a command.
                client.write(b"{\"execute\": \"ec");
            }
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while qemu::descriptors().len() > open_early {
            assert!(
                Instant::now() < deadline,
                "descriptors leak: {:?}",
                qemu::descriptors()
            );
            std::thread::yield_now();
        }
        let mut client = proxy.client();
        client.negotiate();
        client.send_command("crash", json!({}));
        let state = host.wait_for_state(|state| state.starts_with("error: "));
        assert!(
            state.contains("SIGABRT") && state.contains("something broke"),
            "{state}"
        );
    });
    assert!(is_failure(status));
    proxy.stop();
    host.assert_clean();
}

fn a_qemu_that_dies_at_once_is_explained(signals: &Signals) {
    let host = Host::new();
    let status = run(
        &host,
        signals,
        &[b"-die", b"could not open disk image"],
        || {},
    );
    assert!(is_failure(status));
    let state = host.state().unwrap();
    let expected = "error: QEMU ended with status 1; its last words: could not open disk image";
    assert_eq!(state, expected);
    host.assert_clean();
}

fn a_qemu_that_refuses_to_start_is_killed(signals: &Signals) {
    let host = Host::new();
    let status = run(&host, signals, &[b"-refuse"], || {});
    assert!(is_failure(status));
    let state = host.state().unwrap();
    assert!(
        state.contains("refused to start the guest: GenericError: not today"),
        "{state}"
    );
    host.assert_clean();
}

fn a_qemu_that_hangs_is_reported_and_its_return_as_well(signals: &Signals) {
    let host = Host::new();
    let phase = format!("/local/domain/{}/data/stubdm", host.stub);
    let status = run(&host, signals, &[b"-sleepy"], || {
        host.wait_for(&phase, |phase| phase == "running");
        let said = host.wait_for(&phase, |phase| phase != "running");
        assert_eq!(said, "trouble: QEMU has not answered for 1 s");
        assert_eq!(host.state().unwrap(), "running", "libxl's own node");
        let pid = host.wait_for("/qemu", |_| true).parse().unwrap();
        let signal = |signal| kill(Pid::from_raw(pid), signal).unwrap();
        signal(Signal::SIGCONT);
        host.wait_for(&phase, |phase| phase == "running");
        signal(Signal::SIGKILL);
        host.wait_for_state(|state| {
            state.starts_with("error: QEMU was killed by SIGKILL, probably")
        });
    });
    assert!(is_failure(status));
    host.assert_clean();
}

fn a_flood_of_words_and_events_leaves_everything_else_as_it_is(signals: &Signals) {
    let host = Host::new();
    let proxy = host.proxy();
    let status = run(&host, signals, &[b"-flood"], || {
        host.wait_for_state(|state| state == "running");
        for n in 0..5 {
            let mut client = proxy.client();
            client.negotiate();
            assert_eq!(client.ask("echo", json!({"n": n})), json!({"n": n}));
        }
        // Its signs of life are seen all the same.
        let phase = format!("/local/domain/{}/data/stubdm", host.stub);
        host.wait_for(&phase, |phase| phase == "running");
        let mut client = proxy.client();
        client.negotiate();
        client.send_command("crash", json!({}));
        host.wait_for_state(|state| state.starts_with("error: QEMU was killed by SIGABRT"));
    });
    assert!(is_failure(status));
    proxy.stop();
    host.assert_clean();
}

fn a_missing_qemu_is_named(_: &Signals) {
    let dir = tempfile::tempdir().unwrap();
    let argv = DmArgv::new(vec![b"-xen-domid".to_vec()]).unwrap();
    let program = Path::new("/nonexistent/qemu");
    let error = qemu_start::start_in(dir.path(), program, argv, Vec::new(), false, None, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/qemu") && error.contains("No such file"),
        "{error}"
    );
}

fn arguments_reach_qemu_byte_for_byte(signals: &Signals) {
    let host = Host::new();
    let dump = host.dir().join("args");
    let odd: &[&[u8]] = &[
        b"",
        b"two\nlines",
        b"back\\slash",
        b"\xff\xfe",
        b" spaces ",
        b"$HOME",
        b"'\"",
        b"",
    ];
    let inherited = INHERITED
        .get()
        .unwrap()
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>();
    let inherited = inherited.join(",");
    let mut args = vec![
        b"-inherited".as_slice(),
        inherited.as_bytes(),
        b"-dump".as_slice(),
        dump.as_os_str().as_encoded_bytes(),
    ];
    args.extend(odd);
    let status = run(&host, signals, &args, || {});
    assert!(is_failure(status));
    assert_eq!(host.state().unwrap(), "error: QEMU ended with status 0");
    let got = std::fs::read(&dump).unwrap();
    let got: Vec<&[u8]> = got.split(|b| *b == 0).collect();
    // The last element is what follows the last NUL.
    assert_eq!(&got[got.len() - odd.len() - 1..got.len() - 1], odd);
    host.assert_clean();
}

fn store_decides_what_is_wrong_with_dm_argv(_: &Signals) {
    let host = Host::new();
    let store = host.stub_store();
    let guest = Guest::read(&store).unwrap();
    let complaint = || guest.argv(&store).unwrap_err().to_string();
    assert_eq!(
        complaint(),
        ArgvError::Missing { mini_os: false }.to_string()
    );
    host.write(&format!("{}/image/dmargs", guest.vm), b" -d 1");
    assert_eq!(
        complaint(),
        ArgvError::Missing { mini_os: true }.to_string()
    );
    host.set_dm_argv(&[]);
    assert_eq!(complaint(), ArgvError::Empty { mini_os: true }.to_string());
    let many: Vec<Vec<u8>> = (0..1200).map(|n| format!("arg {n}").into_bytes()).collect();
    host.set_dm_argv(&many);
    assert_eq!(
        guest.argv(&store).unwrap().args(),
        many,
        "past 999, in order"
    );
    host.remove(&format!("{}/image/dm-argv/500", guest.vm));
    assert_eq!(complaint(), ArgvError::Gap(500).to_string());
    host.remove(&format!("/local/domain/{}/target", host.stub));
    assert!(
        Guest::read(&store)
            .unwrap_err()
            .to_string()
            .contains("no stubdomain")
    );
}
