//! The host's session core, defect by defect: what upstream's proxy gets wrong must not happen.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use serde_json::Value;
use stubdm::libxl::payload::Payload;
use stubdm::proxy::VchanAction;
use stubdm::proxy::passthrough::session::HostSession;
use stubdm::proxy::resync::Memory;
use stubdm::rt::buffer::SIZE;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}"#;

struct Bench {
    session: HostSession,
    memory: Memory,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            session: HostSession::new(Payload::Qmp, now),
            memory: Memory::new(7),
            now,
        }
    }

    /// The next client of the same proxy.
    fn next(mut self) -> Self {
        self.session = HostSession::new(Payload::Qmp, self.now);
        self
    }

    fn up(mut self) -> Self {
        assert!(matches!(
            self.session.poll_connection(self.now, 0),
            VchanAction::Connect(_)
        ));
        self.session.handle_vchan_up(self.now);
        self
    }

    fn vchan(&mut self, line: &str) {
        self.session.handle_vchan_bytes(
            &mut self.memory,
            format!("{line}\r\n").as_bytes(),
            self.now,
        );
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.session.handle_timeout(&mut self.memory, self.now);
    }

    /// Takes the bytes for the vchan.
    fn for_vchan(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !self.session.poll_vchan().is_empty() {
            all.extend_from_slice(self.session.poll_vchan());
            self.session
                .handle_vchan_written(self.session.poll_vchan().len());
        }
        all
    }

    fn for_client(&mut self) -> String {
        let mut all = Vec::new();
        while !self.session.poll_client().is_empty() {
            all.extend_from_slice(self.session.poll_client());
            self.session
                .handle_client_written(self.session.poll_client().len());
        }
        String::from_utf8(all).unwrap()
    }

    /// Returns the id of the probe that is sent, which must be the only thing sent.
    fn probe(&mut self) -> String {
        let bytes = self.for_vchan();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let line = text.trim_start_matches(['\u{fffd}', '\n']);
        let json: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!(json["execute"], "query-version");
        json["id"].as_str().unwrap().to_owned()
    }

    fn refuse(&mut self, id: &str) {
        self.vchan(&format!(
            r#"{{"id": "{id}", "error": {{"class": "CommandNotFound", "desc": "Expecting capabilities negotiation"}}}}"#
        ));
    }

    fn obey(&mut self, id: &str) {
        self.vchan(&format!(r#"{{"return": {{"qemu": {{}}}}, "id": "{id}"}}"#));
    }

    /// A session whose client has been greeted.
    fn relaying() -> Self {
        let mut bench = Self::new().up();
        bench.vchan(GREETING);
        let id = bench.probe();
        bench.refuse(&id);
        assert_eq!(bench.for_client(), format!("{GREETING}\r\n"));
        bench
    }
}

#[test]
fn the_client_is_greeted_once_the_session_is_known_to_be_new() {
    let mut bench = Bench::new().up();
    bench.vchan(GREETING);
    assert_eq!(bench.for_client(), "");
    let id = bench.probe();
    bench.refuse(&id);
    assert_eq!(bench.for_client(), format!("{GREETING}\r\n"));
    bench
        .session
        .handle_client_bytes(b"{\"execute\":\"qmp_capabilities\",\"id\":1}\r\n");
    assert_eq!(
        bench.for_vchan(),
        b"{\"execute\":\"qmp_capabilities\",\"id\":1}\r\n"
    );
    bench.vchan(r#"{"return": {}, "id": 1}"#);
    assert_eq!(bench.for_client(), "{\"return\": {}, \"id\": 1}\r\n");
    assert_eq!(
        bench.session.poll_connection(bench.now, 5),
        VchanAction::Keep
    );
    assert_eq!(
        bench.session.poll_timeout(),
        None,
        "no command has a time limit of ours"
    );
}

#[test]
fn what_an_earlier_client_left_in_the_ring_reaches_nobody() {
    let mut bench = Bench::new().up();
    // The tail of an answer, a whole answer under the id libxl always uses, an event, an old
    // greeting, and an answer to a probe of an earlier session.
    bench.vchan(r#"": 17}, "id": 2020371712}"#);
    bench.vchan(r#"{"return": {}, "id": 2020371712}"#);
    bench.vchan(r#"{"event": "STOP", "timestamp": {}}"#);
    bench.vchan(r#"{"QMP": {"version": "old"}}"#);
    let first = bench.probe();
    bench.vchan(r#"{"id": "stubdm-7-999", "error": {"class": "CommandNotFound", "desc": ""}}"#);
    bench.vchan(GREETING);
    let second = bench.probe();
    assert_ne!(first, second);
    bench.refuse(&first);
    assert_eq!(bench.for_client(), "", "a newer probe is out");
    bench.refuse(&second);
    assert_eq!(bench.for_client(), format!("{GREETING}\r\n"));
}

#[test]
fn a_server_that_did_not_notice_the_change_of_client_is_made_to() {
    let mut bench = Bench::relaying();
    bench.session.handle_client_gone(bench.now);
    assert_eq!(
        bench.session.poll_connection(bench.now, 0),
        VchanAction::End
    );
    let mut bench = bench.next().up();
    // No greeting arrives: the old monitor session continues.
    bench.wait(Duration::from_millis(499));
    assert!(bench.for_vchan().is_empty());
    bench.wait(Duration::from_millis(1));
    assert!(
        bench.session.poll_vchan().starts_with(b"\xff\n"),
        "half a command may be in the parser"
    );
    let id = bench.probe();
    bench.obey(&id);
    assert_eq!(bench.for_client(), "");
    let VchanAction::Connect(at) = bench.session.poll_connection(bench.now, 0) else {
        panic!("kept the vchan")
    };
    assert!(at > bench.now, "with no pause the server may miss it again");
    bench.now = at;
    bench.session.handle_vchan_up(bench.now);
    bench.vchan(GREETING);
    let id = bench.probe();
    bench.refuse(&id);
    assert_eq!(bench.for_client(), format!("{GREETING}\r\n"));
}

#[test]
fn an_unnoticed_session_that_was_never_negotiated_is_as_good_as_new() {
    let bench = Bench::relaying();
    let mut bench = bench.next().up();
    bench.wait(Duration::from_millis(500));
    let id = bench.probe();
    bench.refuse(&id);
    assert_eq!(
        bench.for_client(),
        format!("{GREETING}\r\n"),
        "the greeting seen before"
    );
}

#[test]
fn a_lost_probe_is_sent_again() {
    let mut bench = Bench::new().up();
    bench.vchan(GREETING);
    let lost = bench.probe();
    bench.wait(Duration::from_secs(2));
    let id = bench.probe();
    bench.refuse(&lost);
    assert_eq!(bench.for_client(), "");
    bench.refuse(&id);
    assert_eq!(bench.for_client(), format!("{GREETING}\r\n"));
}

#[test]
fn the_cut_does_not_depend_on_how_bytes_arrive() {
    let stream = |id: &str| {
        format!(
            "\"}}\r\n{GREETING}\r\n{{\"id\": \"{id}\", \"error\": {{\"class\": \"x\", \"desc\": \"\"}}}}\r\nrest\r"
        )
    };
    for size in 1..80 {
        let mut bench = Bench::new().up();
        let bytes = stream("stubdm-7-1");
        for chunk in bytes.as_bytes().chunks(size) {
            bench
                .session
                .handle_vchan_bytes(&mut bench.memory, chunk, bench.now);
        }
        assert_eq!(
            bench.for_client(),
            format!("{GREETING}\r\nrest\r"),
            "chunks of {size}"
        );
    }
}

#[test]
fn a_client_that_leaves_before_the_vchan_is_up_ends_it() {
    for up in [false, true] {
        let mut bench = Bench::new();
        bench.session.handle_client_bytes(b"early");
        if up {
            bench = bench.up();
        }
        bench.session.handle_client_gone(bench.now);
        assert_eq!(
            bench.session.poll_connection(bench.now, 9),
            VchanAction::End
        );
        assert!(bench.session.client_is_gone());
    }
}

#[test]
fn a_client_that_writes_and_leaves_is_read_but_not_waited_for_longer_than_stated() {
    let mut bench = Bench::relaying();
    bench.session.handle_client_bytes(b"last words");
    bench.session.handle_client_gone(bench.now);
    assert_eq!(
        bench.session.poll_connection(bench.now, 0),
        VchanAction::Keep
    );
    bench.vchan("an answer to nobody");
    assert_eq!(bench.for_client(), "");
    assert_eq!(bench.for_vchan(), b"last words");
    assert_eq!(
        bench.session.poll_connection(bench.now, 10),
        VchanAction::Keep,
        "written is not yet read"
    );
    assert_eq!(
        bench.session.poll_connection(bench.now, 0),
        VchanAction::End
    );
    bench.wait(Duration::from_millis(1));
    assert!(bench.session.poll_timeout().unwrap() < bench.now + Duration::from_millis(100));
    bench.wait(Duration::from_secs(2));
    assert_eq!(
        bench.session.poll_connection(bench.now, 10),
        VchanAction::End,
        "a server that does not read"
    );
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    let mut bench = Bench::relaying();
    bench.session.handle_client_bytes(b"question");
    bench.session.handle_client_half_closed();
    assert_eq!(bench.session.client_room(), 0);
    assert_eq!(bench.for_vchan(), b"question");
    bench.vchan("answer");
    assert_eq!(bench.for_client(), "answer\r\n");
    assert_eq!(
        bench.session.poll_connection(bench.now, 0),
        VchanAction::Keep
    );
}

#[test]
fn a_vchan_lost_before_the_greeting_is_tried_again_and_after_it_is_the_end() {
    let mut bench = Bench::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        bench.session.handle_vchan_lost(bench.now);
        let VchanAction::Connect(at) = bench.session.poll_connection(bench.now, 0) else {
            panic!()
        };
        assert_eq!(bench.session.poll_timeout(), Some(at));
        pauses.push(at - bench.now);
        bench.now = at;
    }
    assert!(pauses.windows(2).all(|p| p[0] <= p[1]), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(1)));

    let mut bench = Bench::relaying();
    bench.vchan("last");
    bench.session.handle_vchan_lost(bench.now);
    assert_eq!(
        bench.session.poll_connection(bench.now, 0),
        VchanAction::Keep,
        "there is something to deliver"
    );
    assert_eq!(bench.for_client(), "last\r\n");
    assert_eq!(
        bench.session.poll_connection(bench.now, 0),
        VchanAction::End
    );
}

#[test]
fn buffers_are_bounded_both_ways() {
    let mut bench = Bench::relaying();
    let room = bench.session.client_room();
    bench.session.handle_client_bytes(&vec![b'x'; room]);
    assert_eq!(bench.session.client_room(), 0);
    let room = bench.session.vchan_room();
    assert_eq!(room, SIZE);
    bench
        .session
        .handle_vchan_bytes(&mut bench.memory, &vec![b'y'; room], bench.now);
    assert_eq!(bench.session.vchan_room(), 0);

    // A server that floods before it greets is read on and kept at one line's length.
    let mut bench = Bench::new().up();
    for _ in 0..3000 {
        let room = bench.session.vchan_room();
        assert!(room > 0);
        bench
            .session
            .handle_vchan_bytes(&mut bench.memory, &vec![b'z'; room], bench.now);
    }
    bench.vchan("");
    bench.vchan(GREETING);
    let id = bench.probe();
    bench.refuse(&id);
    assert_eq!(bench.for_client(), format!("{GREETING}\r\n"));
}

#[test]
fn opaque_bytes_flow_at_once_and_unaltered() {
    let mut bench = Bench::new();
    bench.session = HostSession::new(Payload::Opaque, bench.now);
    let mut bench = bench.up();
    bench.session.handle_client_bytes(b"\x01\xff\r\n");
    assert_eq!(bench.for_vchan(), b"\x01\xff\r\n");
    bench
        .session
        .handle_vchan_bytes(&mut bench.memory, b"{\"QMP\"", bench.now);
    assert_eq!(bench.for_client(), "{\"QMP\"");
}
