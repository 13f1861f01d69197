//! A QEMU that lies, floods and guesses.

use super::*;

#[test]
fn only_the_answer_that_is_due_goes_back_and_only_once() {
    let (mut bench, client) = Bench::talking();
    // An answer before the command was sent, under the ids libxl uses and under ours.
    for early in [
        r#"{"return":{},"id":2020371712}"#,
        r#"{"return":{},"id":"3"}"#,
        r#"{"QMP":{}}"#,
    ] {
        bench.qemu(early);
        assert_eq!(bench.output(client), "");
    }
    bench.send_line(client, r#"{"execute":"cont","id":2020371712}"#);
    let id = bench.id();
    assert_eq!(id, "3", "and it was guessed right");
    for guess in [
        r#"{"return":{},"id":2020371712}"#,
        r#"{"return":{},"id":"4"}"#,
        r#"{"return":{}}"#,
        r#"{"event":"STOP"}"#,
    ] {
        bench.qemu(guess);
        assert_eq!(bench.output(client), "");
    }
    let due = format!(r#"{{"return":{{}},"id":"{id}"}}"#);
    bench.qemu(&due);
    assert_ne!(bench.output(client), "");
    bench.qemu(&due);
    assert_eq!(bench.output(client), "", "a duplicate");
    bench.multiplexer.handle_client_gone(client, bench.now);
    let last = bench.audit().pop().unwrap();
    assert_eq!(last, r#"{"audit":"dropped","count":8}"#);
}

#[test]
fn every_lie_becomes_one_clean_error_with_the_clients_id() {
    let deep = format!("{{\"id\":\"ID\",\"return\":{}", "[".repeat(10_000));
    let long = format!("{{\"id\":\"ID\",\"return\":\"{}\"}}", "x".repeat(300_000));
    let many = format!("{{\"id\":\"ID\",\"return\":[{}0]}}", "0,".repeat(30_000));
    for lie in [
        r#"{"id":"ID","return":[]}"#,
        r#"{"id":"ID","return":{},"return":{}}"#,
        r#"{"id":"ID","return":{},"error":{}}"#,
        r#"{"id":"ID"}"#,
        r#"{"id":"ID","return":{"a":"\u0000"}}"#,
        "{\"id\":\"ID\",\"return\":\"\u{1}\"}",
        "garbage",
        "[]",
        &deep,
        &long,
        &many,
    ] {
        let (mut bench, client) = Bench::talking();
        bench.send_line(client, r#"{"execute":"cont","id":9}"#);
        let id = bench.id();
        bench.qemu(&lie.replace("ID", &id));
        let output = bench.output(client);
        let shown = &lie[..lie.len().min(60)];
        assert!(
            output.starts_with(r#"{"error":{"class":"GenericError""#),
            "{shown}: {output}"
        );
        assert!(
            output.ends_with("\"id\":9}\r\n") && output.len() < 900,
            "{shown}: {output}"
        );
        assert_eq!(output.matches('\n').count(), 1, "{shown}");
        // And the next command is served.
        bench.send_line(client, r#"{"execute":"cont","id":10}"#);
        assert_eq!(bench.sent().unwrap().0, "cont", "{shown}");
    }
}

#[test]
fn an_answer_over_the_limits_is_not_called_broken_json() {
    for (many, says) in [
        (
            format!("[{}0]", "0,".repeat(60_000)),
            "beyond what is taken",
        ),
        (format!("\"{}\"", "x".repeat(2 << 20)), "too long"),
        ("[0,".to_owned(), "no proper JSON"),
    ] {
        let (mut bench, client) = Bench::talking();
        bench.send_line(client, r#"{"execute":"query-status","id":9}"#);
        let id = bench.id();
        bench.qemu(&format!(r#"{{"id":"{id}","return":{many}}}"#));
        let output = bench.output(client);
        assert!(output.contains(says), "no {says:?} in {output}");
        let called_broken = output.contains("no proper JSON");
        assert_eq!(called_broken, says == "no proper JSON", "{output}");
    }
}

#[test]
fn qemus_errors_keep_their_class_and_lose_their_tricks() {
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, r#"{"execute":"cont","id":1}"#);
    let id = bench.id();
    let desc = format!("no\\u001b[2J\\nAug 1 forged line {}", "y".repeat(5000));
    bench.qemu(&format!(
        r#"{{"id":"{id}","error":{{"class":"DeviceNotFound","desc":"{desc}","x":1}}}}"#
    ));
    let output = bench.output(client);
    assert!(
        output.starts_with(
            r#"{"error":{"class":"DeviceNotFound","desc":"no [2J Aug 1 forged line y"#
        ),
        "{output}"
    );
    assert!(output.len() < 700 && !output.contains("\"x\""));
    bench.send_line(client, r#"{"execute":"cont","id":1}"#);
    let id = bench.id();
    bench.qemu(&format!(
        r#"{{"id":"{id}","error":{{"class":"Evil","desc":5}}}}"#
    ));
    assert_eq!(
        bench.output(client),
        "{\"error\":{\"class\":\"GenericError\",\"desc\":\"\"},\"id\":1}\r\n"
    );
}

#[test]
fn a_greeting_that_is_none_leads_nowhere_and_is_tried_again() {
    for bad in [
        r#"{"QMP":{}}"#,
        r#"{"QMP":{"version":{"qemu":{"micro":-1,"minor":2,"major":7}}}}"#,
        r#"{"QMP":{"version":{"qemu":{"micro":1,"minor":2,"major":70000}}}}"#,
    ] {
        let mut bench = Bench::new();
        let client = bench.multiplexer.handle_client_arrived(bench.now);
        bench.multiplexer.handle_vchan_up(bench.now);
        bench.qemu(bad);
        let id = bench.id();
        bench.qemu(&format!(r#"{{"id":"{id}","error":{{}}}}"#));
        assert_eq!(bench.output(client), "", "{bad}");
        let VchanAction::Connect(at) = bench.multiplexer.poll_connection() else {
            panic!("{bad}: {:?}", bench.multiplexer.poll_connection())
        };
        assert!(at > bench.now, "{bad}: not at once");
    }
}

/// As one that died and left its side of the ring alive: the next server is found on another.
#[test]
fn a_server_that_sends_nothing_is_left_and_looked_for_anew() {
    let mut bench = Bench::new();
    let client = bench.multiplexer.handle_client_arrived(bench.now);
    let VchanAction::Connect(at) = bench.multiplexer.poll_connection() else {
        panic!("{:?}", bench.multiplexer.poll_connection())
    };
    bench.now = bench.now.max(at);
    bench.multiplexer.handle_vchan_up(bench.now);
    for _ in 0..9 {
        bench.wait(Duration::from_secs(1));
        assert_eq!(bench.multiplexer.poll_connection(), VchanAction::Keep);
    }
    bench.wait(Duration::from_secs(1));
    bench.connect();
    bench.negotiate(client);
}

#[test]
fn a_flood_costs_no_memory_and_no_lines() {
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, r#"{"execute":"cont","id":1}"#);
    bench.id();
    for _ in 0..50_000 {
        bench.qemu("{\"event\":\"STOP\"}\r\n{\"return\":{},\"id\":\"no\"}");
        assert!(bench.multiplexer.poll_client(client).is_empty());
        assert!(bench.multiplexer.poll_vchan().is_empty());
    }
    assert_eq!(bench.audit(), [""; 0]);
    bench.multiplexer.handle_client_gone(client, bench.now);
    let dropped = r#"{"audit":"dropped","count":100000}"#;
    assert_eq!(bench.audit(), [dropped]);
}

#[test]
fn a_flood_is_read_no_faster_than_the_rate() {
    let (mut bench, _) = Bench::talking();
    let start = bench.now;
    let piece = vec![b'x'; 4096];
    let mut read = 0;
    while bench.now < start + Duration::from_secs(10) {
        let room = bench.multiplexer.vchan_room();
        if room > 0 {
            bench
                .multiplexer
                .handle_vchan_bytes(&piece[..room], bench.now);
            read += room;
        } else {
            bench.now = bench.multiplexer.poll_timeout().unwrap();
            bench.multiplexer.handle_timeout(bench.now);
        }
    }
    assert!(read <= 16 << 20, "{read} bytes in ten seconds");
}

#[test]
fn a_server_that_leaves_over_and_over_is_not_followed_without_a_pause() {
    let (mut bench, client) = Bench::talking();
    let start = bench.now;
    for _ in 0..10 {
        bench.send_line(client, r#"{"execute":"cont","id":1}"#);
        bench.multiplexer.handle_vchan_lost(bench.now);
        bench.output(client);
        bench.send_line(client, r#"{"execute":"cont","id":2}"#);
        bench.connect();
    }
    assert!(bench.now - start > Duration::from_secs(5));
}

#[test]
fn events_pass_by_name_and_in_number_only() {
    let policy = Policy::from_toml(
        "version = 1\n[[event]]\nevent = \"STOP\"\ndata.x = { int = [0, 9], optional = true }",
        "test",
    )
    .unwrap();
    let mut bench = Bench::new();
    bench.multiplexer = Multiplexer::new(Arc::new(policy), 7, bench.now);
    let client = bench.multiplexer.handle_client_arrived(bench.now);
    bench.connect();
    bench.negotiate(client);
    bench.qemu(r#"{"event":"STOP","data":{"x":1,"y":2}}"#);
    bench.qemu(r#"{"event":"STOP","data":{"x":10}}"#);
    bench.qemu(r#"{"event":"RESET"}"#);
    assert_eq!(
        bench.output(client),
        "{\"event\":\"STOP\",\"data\":{\"x\":1}}\r\n"
    );
    for _ in 0..1000 {
        bench.qemu(r#"{"event":"STOP"}"#);
    }
    assert_eq!(bench.output(client).lines().count() as u32, EVENTS - 1);
    bench.now += Duration::from_secs(1);
    bench.qemu(r#"{"event":"STOP"}"#);
    assert_eq!(bench.output(client).lines().count(), 1, "a second later");
}
