//! The multiplexer with clients and a QEMU that are lines in a test.

mod hostile;
mod several;

use super::*;
use serde_json::Value;

const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"\u001b[31m"},"capabilities":["oob"],"more":1}}"#;

struct Bench {
    multiplexer: Multiplexer,
    now: Instant,
}

impl Bench {
    /// Returns a bench without clients.
    fn new() -> Self {
        let now = Instant::now();
        let policy = Arc::new(Policy::built_in().unwrap());
        Self {
            multiplexer: Multiplexer::new(policy, 7, now),
            now,
        }
    }

    /// A client that has negotiated, and QEMU ready.
    fn talking() -> (Self, u64) {
        let mut bench = Self::new();
        let client = bench.multiplexer.handle_client_arrived(bench.now);
        bench.connect();
        bench.negotiate(client);
        (bench, client)
    }

    /// Connects the vchan with a new monitor session behind it.
    fn connect(&mut self) {
        let VchanAction::Connect(at) = self.multiplexer.poll_connection() else {
            panic!("{:?}", self.multiplexer.poll_connection())
        };
        self.now = self.now.max(at);
        self.multiplexer.handle_vchan_up(self.now);
        self.qemu(GREETING);
        let probe = self.id();
        let refusal = format!(r#"{{"id":"{probe}","error":{{"class":"CommandNotFound"}}}}"#);
        self.qemu(&refusal);
        let (command, id) = self.sent().unwrap();
        assert_eq!(command, "qmp_capabilities");
        self.qemu(&format!(r#"{{"return":{{}},"id":"{id}"}}"#));
    }

    fn negotiate(&mut self, client: u64) {
        let greeting = self.output(client);
        assert_eq!(
            greeting,
            "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},\"package\":\"\"},\"capabilities\":[]}}\r\n"
        );
        let output = self.send_line(client, r#"{"execute":"qmp_capabilities","id":2020371713}"#);
        assert_eq!(output, "{\"return\":{},\"id\":2020371713}\r\n");
    }

    /// Another client, of which QEMU gets nothing.
    fn another(&mut self) -> u64 {
        let client = self.multiplexer.handle_client_arrived(self.now);
        self.negotiate(client);
        client
    }

    /// Sends a client's line; returns the output that follows at once.
    fn send_line(&mut self, client: u64, line: &str) -> String {
        let line = format!("{line}\r\n");
        self.multiplexer
            .handle_client_bytes(client, line.as_bytes(), self.now);
        self.output(client)
    }

    fn output(&mut self, client: u64) -> String {
        let mut all = Vec::new();
        while !self.multiplexer.poll_client(client).is_empty() {
            let out = self.multiplexer.poll_client(client).to_vec();
            self.multiplexer
                .handle_client_written(client, out.len(), self.now);
            all.extend(out);
        }
        String::from_utf8(all).unwrap()
    }

    /// QEMU sends a line, in pieces as the ring returns them.
    fn qemu(&mut self, line: &str) {
        for piece in format!("{line}\r\n").as_bytes().chunks(4096) {
            self.multiplexer.handle_vchan_bytes(piece, self.now);
        }
    }

    /// Returns the name and id of QEMU's command, one at most.
    fn sent(&mut self) -> Option<(String, String)> {
        let mut all = Vec::new();
        while !self.multiplexer.poll_vchan().is_empty() {
            let out = self.multiplexer.poll_vchan().to_vec();
            self.multiplexer.handle_vchan_written(out.len());
            all.extend(out);
        }
        let text = String::from_utf8_lossy(&all).into_owned();
        let line = text.trim_start_matches(['\u{fffd}', '\n']);
        if line.is_empty() {
            return None;
        }
        assert!(
            line.ends_with('\n') && line.matches('\n').count() == 1,
            "{line}"
        );
        let said: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        Some((text("execute"), text("id")))
    }

    /// Returns the id of the command that is sent now.
    fn id(&mut self) -> String {
        self.sent().unwrap().1
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.multiplexer.handle_timeout(self.now);
    }

    fn audit(&mut self) -> Vec<String> {
        std::iter::from_fn(|| Some(self.multiplexer.poll_audit()?.to_string())).collect()
    }
}

#[test]
fn libxls_conversation() {
    let (mut bench, client) = Bench::talking();
    assert_eq!(
        bench.send_line(client, r#"{"execute":"cont","id":2020371712}"#),
        ""
    );
    let (command, id) = bench.sent().unwrap();
    assert_eq!(command, "cont");
    bench.qemu(&format!(r#"{{"return": {{"x": 1}}, "id": "{id}"}}"#));
    assert_eq!(
        bench.output(client),
        "{\"return\":{},\"id\":2020371712}\r\n"
    );
    assert_eq!(bench.multiplexer.poll_connection(), VchanAction::Keep);
    assert_eq!(
        bench.multiplexer.poll_timeout(),
        None,
        "nothing is waited for"
    );
}

/// QEMU names no command in its answer to one that it cannot parse.
#[test]
fn an_error_without_an_id_answers_the_command_that_is_out() {
    let refusal = r#"{"error":{"class":"GenericError","desc":"JSON parse error"}}"#;
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, r#"{"execute":"stop","id":1}"#);
    let id = bench.id();
    bench.qemu(refusal);
    let output = bench.output(client);
    assert!(
        output.contains("JSON parse error") && output.ends_with("\"id\":1}\r\n"),
        "{output}"
    );
    bench.send_line(client, r#"{"execute":"cont","id":2}"#);
    let next = bench.id();
    bench.qemu(&format!(r#"{{"return":{{}},"id":"{id}"}}"#));
    assert_eq!(bench.output(client), "", "the late answer is nobody's");
    bench.qemu(&format!(r#"{{"return":{{}},"id":"{next}"}}"#));
    assert_eq!(bench.output(client), "{\"return\":{},\"id\":2}\r\n");
    bench.qemu(refusal);
    assert_eq!(bench.output(client), "", "no command is out");
}

#[test]
fn what_qemu_could_not_parse_is_denied_under_its_id() {
    let (mut bench, client) = Bench::talking();
    for code in [
        "\\ufffe",
        "\\uffff",
        "\\ufdd0",
        "\\ud83f\\udfff",
        "\u{10fffe}",
    ] {
        let line = format!(
            r#"{{"execute":"human-monitor-command","id":5,"arguments":{{"command-line":"info {code}"}}}}"#
        );
        let output = bench.send_line(client, &line);
        assert!(
            output.contains("GenericError") && output.ends_with("\"id\":5}\r\n"),
            "{output}"
        );
        assert_eq!(bench.sent(), None, "{code}");
    }
    for line in [
        r#"{"execute":"stop","id":"\ud800"}"#,
        "{\"execute\":\"stop\",\"id\":\"\u{1}\"}",
    ] {
        assert!(
            bench.send_line(client, line).contains("no proper JSON"),
            "{line}"
        );
        assert_eq!(bench.sent(), None, "{line}");
    }
}

#[test]
fn one_read_of_denied_commands_is_counted_to_the_last() {
    let (mut bench, client) = Bench::talking();
    bench.audit();
    let many = "{}\n".repeat(4096 / 3);
    bench
        .multiplexer
        .handle_client_bytes(client, many.as_bytes(), bench.now);
    let lines = bench.audit();
    assert_eq!(lines.len(), 65);
    assert_eq!(
        lines.last().unwrap(),
        r#"{"audit":"denied","left-out":1301}"#
    );
    assert_eq!(bench.multiplexer.counters().denied, 4096 / 3);
}

/// QEMU takes a turn of its main loop for each byte of a command.
#[test]
fn qemu_has_no_more_to_read_than_libxl_wrote() {
    let said = r#"{"execute":"query-status","id":2020371712}"#;
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, said);
    let out = bench.multiplexer.poll_vchan();
    assert!(out.len() < said.len(), "{}", String::from_utf8_lossy(out));
}

#[test]
fn a_save_is_answered_after_a_look_at_the_state() {
    let save = r#"{"execute":"xen-save-devices-state","id":9,"arguments":{"live":true,"filename":"/dev/fdset/1"}}"#;
    let (mut bench, client) = Bench::talking();
    for (outcome, word) in [
        (Ok(()), "{\"return\":{},\"id\":9}\r\n"),
        (Err("it is cut\nshort".to_owned()), "it is cut short"),
    ] {
        assert_eq!(bench.send_line(client, save), "");
        let id = bench.id();
        assert!(!bench.multiplexer.has_saved());
        bench.qemu(&format!(r#"{{"return": {{}}, "id": "{id}"}}"#));
        assert!(bench.multiplexer.has_saved());
        assert_eq!(bench.output(client), "");
        bench.multiplexer.handle_stored(&outcome, bench.now);
        let output = bench.output(client);
        assert!(
            output.contains(word) && output.ends_with("\"id\":9}\r\n"),
            "{output}"
        );
        assert_eq!(output.contains("GenericError"), outcome.is_err());
        assert!(!bench.multiplexer.has_saved());
    }
    // QEMU's own refusal has nothing to be looked at; a client that left gets nothing, but its
    // record counts.
    bench.send_line(client, save);
    let id = bench.id();
    bench.qemu(&format!(
        r#"{{"error": {{"class": "GenericError", "desc": "no"}}, "id": "{id}"}}"#
    ));
    assert!(!bench.multiplexer.has_saved() && bench.output(client).contains("\"no\""));
    bench.send_line(client, save);
    let id = bench.id();
    bench.multiplexer.handle_client_gone(client, bench.now);
    bench.qemu(&format!(r#"{{"return": {{}}, "id": "{id}"}}"#));
    assert!(bench.multiplexer.has_saved());
    bench.multiplexer.handle_stored(&Ok(()), bench.now);
    assert!(!bench.multiplexer.has_saved());
}

#[test]
fn capabilities_come_first_and_once_as_with_qemu() {
    let mut bench = Bench::new();
    let client = bench.multiplexer.handle_client_arrived(bench.now);
    assert_eq!(
        bench.multiplexer.client_room(client),
        0,
        "before the greeting"
    );
    bench.connect();
    bench.output(client);
    let output = bench.send_line(client, r#"{"execute":"cont","id":1}"#);
    assert!(
        output.contains("CommandNotFound") && output.contains("Expecting"),
        "{output}"
    );
    bench.send_line(client, r#"{"execute":"qmp_capabilities","id":2}"#);
    let output = bench.send_line(client, r#"{"execute":"qmp_capabilities","id":3}"#);
    assert!(output.contains("already complete"), "{output}");
    assert_eq!(bench.sent(), None, "QEMU gets none of it");
}

#[test]
fn a_denied_command_never_reaches_qemu_and_is_answered_in_its_turn() {
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, r#"{"execute":"stop","id":1}"#);
    let id = bench.id();
    assert_eq!(bench.send_line(client, r#"{"execute":"quit","id":2}"#), "");
    assert_eq!(bench.send_line(client, r#"{"execute":"cont","id":3}"#), "");
    assert_eq!(bench.sent(), None, "one command at a time");
    bench.wait(Duration::from_millis(5));
    bench.qemu(&format!(r#"{{"return":{{}},"id":"{id}"}}"#));
    let output = bench.output(client);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], r#"{"return":{},"id":1}"#);
    assert!(lines[1].contains("CommandNotFound") && lines[1].ends_with("\"id\":2}"));
    assert_eq!(bench.sent().unwrap().0, "cont");
    assert_eq!(
        bench.audit(),
        [
            r#"{"audit":"denied","client":1,"command":"quit","why":"the command is not in the policy"}"#,
            r#"{"audit":"answered","client":1,"command":"stop"}"#
        ]
    );
    let counters = bench.multiplexer.counters();
    let counted = (counters.sessions, counters.answered, counters.denied);
    assert_eq!((counted, counters.latency_us), ((1, 1, 1), 5000));
}

#[test]
fn what_a_client_sends_wrongly_is_answered_too() {
    for (line, word) in [
        ("{", "JSON"),
        ("[]", "an object"),
        ("{}", "execute is missing"),
        (r#"{"execute":"cont","id":[1]}"#, "an id is"),
        (r#"{"exec-oob":"cont"}"#, "execute is missing"),
        (
            r#"{"execute":"cont","control":1}"#,
            "control is not expected",
        ),
        (r#"{"execute":"add-fd"}"#, "not in the policy"),
    ] {
        let (mut bench, client) = Bench::talking();
        let output = bench.send_line(client, line);
        assert_eq!(bench.sent(), None, "{line}");
        assert!(
            output.contains(word) && output.ends_with("}\r\n"),
            "{line}: {output}"
        );
    }
    let (mut bench, client) = Bench::talking();
    let long = format!("{{\"execute\":\"{}\"}}", "x".repeat(70_000));
    assert!(bench.send_line(client, &long).contains("too long"));

    let mut bench = Bench::new();
    let client = bench.multiplexer.handle_client_arrived(bench.now);
    bench.connect();
    bench.output(client);
    let oob = r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#;
    assert!(bench.send_line(client, oob).contains("no capability"));
}

#[test]
fn a_client_that_does_not_wait_is_held_back() {
    let (mut bench, client) = Bench::talking();
    let mut said = 0;
    while bench.multiplexer.client_room(client) > 0 {
        bench.send_line(client, r#"{"execute":"cont","id":1}"#);
        said += 1;
        assert!(said < 100);
    }
    assert_eq!(said, stubdm_qmp::conversation::WAITING);
}

#[test]
fn a_command_that_takes_long_is_reported_and_not_ended() {
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, r#"{"execute":"stop","id":1}"#);
    let id = bench.id();
    let start = bench.now;
    let mut reports = Vec::new();
    while bench.now < start + Duration::from_secs(3000) {
        bench.now = bench.multiplexer.poll_timeout().unwrap();
        bench.multiplexer.handle_timeout(bench.now);
        reports.extend(bench.audit());
    }
    let at = |seconds| {
        format!(r#"{{"audit":"waiting","client":1,"command":"stop","seconds":{seconds}}}"#)
    };
    assert_eq!(
        reports,
        [at(10), at(60), at(360), at(2160), at(12960)][..reports.len()]
    );
    assert!(reports.len() >= 4);
    bench.qemu(&format!(r#"{{"return":{{}},"id":"{id}"}}"#));
    assert_eq!(bench.output(client), "{\"return\":{},\"id\":1}\r\n");
}

#[test]
fn a_lost_connection_answers_all_that_was_asked() {
    let (mut bench, client) = Bench::talking();
    for id in 1..=3 {
        bench.send_line(client, &format!(r#"{{"execute":"stop","id":{id}}}"#));
    }
    bench.multiplexer.handle_vchan_lost(bench.now);
    let output = bench.output(client);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 3, "{output}");
    for (n, line) in lines.iter().enumerate() {
        assert!(line.contains("went away") && line.ends_with(&format!("\"id\":{}}}", n + 1)));
    }
    assert_eq!(
        bench.multiplexer.poll_connection(),
        VchanAction::End,
        "nobody needs it now"
    );
    bench.send_line(client, r#"{"execute":"cont","id":4}"#);
    bench.connect();
    assert_eq!(
        bench.sent().unwrap().0,
        "cont",
        "served by the next session"
    );
}

#[test]
fn a_command_does_not_wait_for_a_lost_qemu_for_ever() {
    let (mut bench, client) = Bench::talking();
    bench.multiplexer.handle_vchan_lost(bench.now);
    bench.send_line(client, r#"{"execute":"cont","id":4}"#);
    let start = bench.now;
    let mut output = String::new();
    while output.is_empty() {
        match bench.multiplexer.poll_connection() {
            VchanAction::Connect(at) if at <= bench.now => {
                bench.multiplexer.handle_vchan_lost(bench.now)
            }
            _ => {
                bench.now = bench.multiplexer.poll_timeout().unwrap();
                bench.multiplexer.handle_timeout(bench.now);
            }
        }
        output = bench.output(client);
    }
    assert!(
        output.contains("cannot be reached") && output.ends_with("\"id\":4}\r\n"),
        "{output}"
    );
    assert!(bench.now - start <= Duration::from_secs(6));
}
