//! Policies as text.

use super::*;

#[test]
fn events_pass_only_if_the_policy_names_them() {
    assert_eq!(built_in().event("STOP", None), None);
    let text = "version = 1\n[[event]]\nevent = \"DEVICE_DELETED\"\ndata.device = { name = 64, optional = true }\n";
    let policy = Policy::from_toml(text, "test").unwrap();
    let data = json(r#"{"path":"/x","device":"a"}"#);
    assert_eq!(
        policy.event("DEVICE_DELETED", Some(&data)),
        Some(json(r#"{"device":"a"}"#))
    );
    assert_eq!(
        policy.event("DEVICE_DELETED", Some(&json(r#"{"device":1}"#))),
        None
    );
    assert_eq!(policy.event("STOP", None), None);
}

#[test]
fn a_policy_can_add_to_the_base_and_take_from_it() {
    let text = "version = 1\ndeny = [\"human-monitor-command\"]\n[limits]\nelements = 2\n\
                [[row]]\ncommand = \"query-name\"\nanswer.object.name = { line = 64, optional = true }\n";
    let policy = Policy::from_toml(text, "test").unwrap();
    assert_eq!(policy.limits.json.elements, 2);
    assert_eq!(policy.limits.command, built_in().limits.command);
    assert_eq!(policy.rows.len(), built_in().rows.len());
    assert!(policy.command("query-name", None, OLD).is_ok());
    assert!(policy.command("human-monitor-command", None, OLD).is_err());
    let alone = Policy::from_toml("version = 1\nbase = \"nothing\"", "test").unwrap();
    assert_eq!(alone, Policy::nothing());
}

#[test]
fn a_malformed_policy_is_one_line_that_names_the_place() {
    for (text, words) in [
        ("", &["version"][..]),
        ("version = 2", &["version 2"]),
        ("version = 1\nrow = 3", &["line 2"]),
        ("version = 1\n\n[[row]\n", &["line 3"]),
        ("version = 1\nbase = \"x\"", &["base \"x\""]),
        ("version = 1\nsurprise = 1", &["surprise"]),
        ("version = 1\ndeny = [\"quit\"]", &["deny", "quit"]),
        (
            "version = 1\n[limits]\nanswer = 0",
            &["limits, answer", "0"],
        ),
        ("version = 1\n[limits]\nanswer = 99999999", &["1048576"]),
        ("version = 1\n[[row]]\nwhen = \"x\"", &["command"]),
        ("version = 1\n[[row]]\ncommand = \"a b\"", &["row 1 (a b)"]),
        (
            "version = 1\n[[row]]\ncommand = \"qmp_capabilities\"",
            &["answered by the proxy"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"x\"\narguments.y = {}",
            &["row 1 (x)", "argument y", "no kind"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"x\"\narguments.y = { bool = true, line = 3 }",
            &["more than one"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"x\"\narguments.y = { int = [2, 1] }",
            &["argument y", "2..1"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"x\"\narguments.y = { form = \"{dec}\" }",
            &["{dec}"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"x\"\nanswer.list.bool = true",
            &["answer", "most"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"x\"\nanswer.most = 1\nanswer.list.object.z.form = \"{\"",
            &["answer: list: z"],
        ),
        (
            "version = 1\n[[row]]\ncommand = \"stop\"",
            &["\"stop\"", "twice"],
        ),
        ("version = 1\n[[event]]\nevent = \"\"", &["event"]),
    ] {
        let failure = Policy::from_toml(text, "/etc/p.toml")
            .unwrap_err()
            .to_string();
        assert!(failure.starts_with("policy /etc/p.toml: "), "{failure}");
        assert!(!failure.contains('\n'), "{failure}");
        for word in words {
            assert!(failure.contains(word), "{text:?}: {failure}");
        }
    }
}
