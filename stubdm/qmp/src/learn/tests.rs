use super::*;

/// As `--filter=off --verbose` writes it: pieces of up to 4096 bytes, without line breaks.
fn log(pieces: &[(&str, &str)]) -> String {
    let line = |(side, text): &(&str, &str)| {
        format!("2026-01-01T00:00:00.000000Z DEBUG from {side}: {text}\n")
    };
    let start = "2026-01-01T00:00:00.000000Z  INFO serving /x of domain 5\n".to_owned();
    start + &pieces.iter().map(line).collect::<String>()
}

fn conversation() -> String {
    log(&[
        (
            "vchan",
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}"#,
        ),
        (
            "client",
            r#"{"execute":"qmp_capabilities","id":1} {"execute":"query-name","id":2}"#,
        ),
        ("vchan", r#"{"return": {}, "id": 1}"#),
        ("vchan", r#"{"event": "STOP"} {"return": {"name""#),
        ("vchan", r#": "one"}, "id": 2}"#),
        ("client", r#"{"execute":"balloon","arguments":{"value":"#),
        ("client", r#"1000},"id":3}"#),
        (
            "vchan",
            r#"{"id": 3, "error": {"class": "GenericError", "desc": "no"}}"#,
        ),
        (
            "client",
            r#"{"execute":"query-blocks","id":4} {"execute":"cont","id":5}"#,
        ),
        (
            "vchan",
            r#"{"return": [{"device":"hda","size":7,"x":null},{"device":"hdb","size":70,"ro":true}], "id": 4}"#,
        ),
        ("vchan", r#"{"return": {}, "id": 5}"#),
    ])
}

fn policy(text: &str) -> Policy {
    Policy::from_toml(text, "test").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn json(text: &str) -> Json {
    Json::read(text.as_bytes(), &Policy::nothing().limits.json).unwrap()
}

#[test]
fn what_was_seen_passes_and_its_neighbours_do_not() {
    let text = learn(&conversation(), None).unwrap();
    let learnt = policy(&text);
    let ask = |name, arguments: Option<&str>| {
        let given = arguments.map(json);
        learnt.command(name, given.as_ref(), Version::default())
    };
    assert!(ask("query-name", None).is_ok(), "{text}");
    assert!(ask("cont", None).is_ok());
    assert!(ask("balloon", Some(r#"{"value":1000}"#)).is_ok());
    for (name, arguments) in [
        ("balloon", Some(r#"{"value":1001}"#)),
        ("balloon", None),
        ("query-name", Some(r#"{"x":1}"#)),
        ("quit", None),
    ] {
        assert!(ask(name, arguments).is_err(), "{name} {arguments:?}");
    }
    let row = ask("query-blocks", None).unwrap().row;
    let answer = json(r#"[{"device":"hdc","size":100,"x":null}]"#);
    assert_eq!(
        learnt.answer(row, &answer).unwrap().to_string(),
        r#"[{"device":"hdc","size":100}]"#
    );
    assert!(
        learnt
            .answer(row, &json(r#"[{"device":5,"size":1}]"#))
            .is_err()
    );
}

#[test]
fn on_top_of_the_built_in_policy_only_what_that_denies_is_written() {
    let built_in = Policy::built_in().unwrap();
    let text = learn(&conversation(), Some(&built_in)).unwrap();
    assert!(text.contains("base = \"built-in\""));
    assert!(
        text.contains("query-name") && !text.contains("cont"),
        "{text}"
    );
    let learnt = policy(&text);
    assert_eq!(learnt.rows.len(), built_in.rows.len() + 3, "{text}");
}

#[test]
fn plain_messages_line_by_line_do_as_well() {
    let text = "{\"execute\":\"system_reset\",\"id\":\"a\"}\r\n{\"return\":{},\"id\":\"a\"}\r\n";
    let learnt = policy(&learn(text, None).unwrap());
    assert_eq!(learnt.rows.len(), 1);
    assert_eq!(learnt.rows[0].command, "system_reset");
}

#[test]
fn a_log_without_qmp_is_an_error() {
    for text in ["", "nothing here\n", "x from client: garbage\n"] {
        let why = learn(text, None).unwrap_err().to_string();
        assert!(why.contains("no QMP"), "{why}");
    }
}

#[test]
fn odd_names_cannot_break_out_of_the_text() {
    let line = r#"{"execute":"x\"]\n[[row]]\ncommand = \"quit","id":1}"#;
    let why = learn(line, None).unwrap_err().to_string();
    assert!(
        why.contains("no name that QMP could have") && !why.contains('\n'),
        "{why}"
    );
    let line = r#"{"execute":"x","arguments":{"a\" = 1":"v\"w"},"id":1}"#;
    let learnt = policy(&learn(line, None).unwrap());
    let given = json(r#"{"a\" = 1":"v\"w"}"#);
    assert!(
        learnt
            .command("x", Some(&given), Version::default())
            .is_ok()
    );
}
