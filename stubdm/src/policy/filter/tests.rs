use super::*;

fn filter() -> Filter {
    let mut filter = Filter::new(Arc::new(Policy::built_in().unwrap()), "t".into());
    let greeting = br#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"\u001b[31m"},"capabilities":["oob"],"more":1}}"#;
    assert_eq!(
        text(&filter.greeting(greeting).unwrap()),
        "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},\"package\":\"\"},\"capabilities\":[]}}\r\n"
    );
    filter
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What goes to QEMU and to the client.
fn say(filter: &mut Filter, line: &str) -> (String, String) {
    let out = filter.client_bytes(format!("{line}\r\n").as_bytes());
    (text(&out.to_qemu), text(&out.to_client))
}

fn hear(filter: &mut Filter, line: &str) -> (String, String) {
    let out = filter.qemu_bytes(format!("{line}\r\n").as_bytes());
    (text(&out.to_qemu), text(&out.to_client))
}

#[test]
fn libxls_conversation() {
    let mut filter = filter();
    let (sent, told) = say(
        &mut filter,
        r#"{"execute":"qmp_capabilities","id":2020371713}"#,
    );
    assert_eq!(
        sent,
        "{\"execute\":\"qmp_capabilities\",\"id\":\"t-1\"}\r\n"
    );
    assert_eq!(told, "");
    let (_, told) = hear(&mut filter, r#"{"return": {}, "id": "t-1"}"#);
    assert_eq!(told, "{\"return\":{},\"id\":2020371713}\r\n");
    let (sent, _) = say(&mut filter, r#"{"execute":"cont","id":2020371712}"#);
    assert_eq!(sent, "{\"execute\":\"cont\",\"id\":\"t-2\"}\r\n");
    let (_, told) = hear(&mut filter, r#"{"return": {"x": 1}, "id": "t-2"}"#);
    assert_eq!(told, "{\"return\":{},\"id\":2020371712}\r\n");
}

#[test]
fn a_denied_command_never_reaches_qemu_and_is_answered_in_its_turn() {
    let mut filter = filter();
    say(&mut filter, r#"{"execute":"stop","id":1}"#);
    let (sent, told) = say(&mut filter, r#"{"execute":"quit","id":2}"#);
    assert_eq!((sent.as_str(), told.as_str()), ("", ""));
    let (sent, told) = say(&mut filter, r#"{"execute":"cont","id":3}"#);
    assert_eq!(
        (sent.as_str(), told.as_str()),
        ("", ""),
        "one command at a time"
    );
    let (sent, told) = hear(&mut filter, r#"{"return":{},"id":"t-1"}"#);
    assert_eq!(sent, "{\"execute\":\"cont\",\"id\":\"t-2\"}\r\n");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], r#"{"return":{},"id":1}"#);
    assert!(lines[1].contains("CommandNotFound") && lines[1].ends_with("\"id\":2}"));
    let audit: Vec<String> = std::iter::from_fn(|| filter.audit()).collect();
    assert_eq!(
        audit,
        [
            r#"{"audit":"denied","command":"quit","why":"the command is not in the policy"}"#,
            r#"{"audit":"answered","command":"stop"}"#
        ]
    );
}

#[test]
fn only_the_answer_that_is_due_goes_back_and_only_once() {
    let mut filter = filter();
    // An answer before the command was sent, under the ids libxl uses and under ours.
    for early in [
        r#"{"return":{},"id":2020371712}"#,
        r#"{"return":{},"id":"t-1"}"#,
        r#"{"QMP":{}}"#,
    ] {
        assert_eq!(hear(&mut filter, early).1, "");
    }
    say(&mut filter, r#"{"execute":"cont","id":2020371712}"#);
    for guess in [
        r#"{"return":{},"id":2020371712}"#,
        r#"{"return":{},"id":"t-2"}"#,
        r#"{"return":{}}"#,
        r#"{"event":"STOP"}"#,
    ] {
        assert_eq!(hear(&mut filter, guess).1, "");
    }
    assert_ne!(hear(&mut filter, r#"{"return":{},"id":"t-1"}"#).1, "");
    assert_eq!(
        hear(&mut filter, r#"{"return":{},"id":"t-1"}"#).1,
        "",
        "a duplicate"
    );
    let last = std::iter::from_fn(|| filter.audit()).last().unwrap();
    assert_eq!(last, r#"{"audit":"dropped","count":8}"#);
}

#[test]
fn every_lie_becomes_one_clean_error_with_the_clients_id() {
    let deep = format!("{{\"id\":\"t-1\",\"return\":{}", "[".repeat(10_000));
    let long = format!("{{\"id\":\"t-1\",\"return\":\"{}\"}}", "x".repeat(300_000));
    let many = format!("{{\"id\":\"t-1\",\"return\":[{}0]}}", "0,".repeat(30_000));
    for lie in [
        r#"{"id":"t-1","return":[]}"#,
        r#"{"id":"t-1","return":{},"return":{}}"#,
        r#"{"id":"t-1","return":{},"error":{}}"#,
        r#"{"id":"t-1"}"#,
        r#"{"id":"t-1","return":{"a":"\u0000"}}"#,
        "{\"id\":\"t-1\",\"return\":\"\u{1}\"}",
        "garbage",
        "[]",
        &deep,
        &long,
        &many,
    ] {
        let mut filter = filter();
        say(&mut filter, r#"{"execute":"cont","id":9}"#);
        let (_, told) = hear(&mut filter, lie);
        let shown = &lie[..lie.len().min(60)];
        assert!(
            told.starts_with(r#"{"error":{"class":"GenericError""#),
            "{shown}: {told}"
        );
        assert!(
            told.ends_with("\"id\":9}\r\n") && told.len() < 900,
            "{shown}: {told}"
        );
        assert_eq!(told.matches('\n').count(), 1, "{shown}");
        // And the next command is served.
        let (sent, _) = say(&mut filter, r#"{"execute":"cont","id":10}"#);
        assert!(sent.contains("\"t-2\""), "{shown}");
    }
}

#[test]
fn qemus_errors_keep_their_class_and_lose_their_tricks() {
    let mut filter = filter();
    say(&mut filter, r#"{"execute":"cont","id":1}"#);
    let desc = format!("no\\u001b[2J\\nAug 1 forged line {}", "y".repeat(5000));
    let line =
        format!(r#"{{"id":"t-1","error":{{"class":"DeviceNotFound","desc":"{desc}","x":1}}}}"#);
    let (_, told) = hear(&mut filter, &line);
    assert!(
        told.starts_with(
            r#"{"error":{"class":"DeviceNotFound","desc":"no [2J Aug 1 forged line y"#
        ),
        "{told}"
    );
    assert!(told.len() < 700 && !told.contains("\"x\""));
    say(&mut filter, r#"{"execute":"cont","id":1}"#);
    let (_, told) = hear(
        &mut filter,
        r#"{"id":"t-2","error":{"class":"Evil","desc":5}}"#,
    );
    assert_eq!(
        told,
        "{\"error\":{\"class\":\"GenericError\",\"desc\":\"\"},\"id\":1}\r\n"
    );
}

#[test]
fn what_a_client_says_wrongly_is_answered_too() {
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
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#,
            "no capability",
        ),
        (r#"{"execute":"add-fd"}"#, "not in the policy"),
    ] {
        let (sent, told) = say(&mut filter(), line);
        assert_eq!(sent, "", "{line}");
        assert!(
            told.contains(word) && told.ends_with("}\r\n"),
            "{line}: {told}"
        );
    }
    let long = format!("{{\"execute\":\"{}\"}}", "x".repeat(70_000));
    assert!(say(&mut filter(), &long).1.contains("too long"));
}

#[test]
fn a_client_that_does_not_wait_is_held_back() {
    let mut filter = filter();
    let mut said = 0;
    while filter.has_room() {
        say(&mut filter, r#"{"execute":"cont","id":1}"#);
        said += 1;
        assert!(said < 100);
    }
    assert_eq!(said, WAITING);
}

#[test]
fn a_lost_connection_answers_all_that_was_asked() {
    let mut filter = filter();
    for id in 1..=3 {
        say(&mut filter, &format!(r#"{{"execute":"stop","id":{id}}}"#));
    }
    let told = text(&filter.lost());
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 3, "{told}");
    for (n, line) in lines.iter().enumerate() {
        assert!(line.contains("went away") && line.ends_with(&format!("\"id\":{}}}", n + 1)));
    }
}

#[test]
fn a_greeting_that_is_none_is_told() {
    let mut filter = Filter::new(Arc::new(Policy::nothing()), "t".into());
    for bad in [
        &b"{\"QMP\":{}}"[..],
        br#"{"QMP":{"version":{"qemu":{"micro":-1,"minor":2,"major":7}}}}"#,
        br#"{"QMP":{"version":{"qemu":{"micro":1,"minor":2,"major":70000}}}}"#,
        b"x",
    ] {
        assert_eq!(filter.greeting(bad), None);
    }
}

#[test]
fn a_flood_costs_no_memory() {
    let mut filter = filter();
    say(&mut filter, r#"{"execute":"cont","id":1}"#);
    for _ in 0..50_000 {
        let out = filter.qemu_bytes(b"{\"event\":\"STOP\"}\r\n{\"return\":{},\"id\":\"no\"}\r\n");
        assert_eq!(out, Out::default());
    }
    assert!(filter.audit.len() <= AUDIT && filter.open.len() == 1);
    assert_eq!(filter.dropped, 100_000);
}
