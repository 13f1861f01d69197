use super::*;
use crate::json::Limits;

const OLD: Direction = Direction::ToQemu(Version(7, 2, 0));
const NEW: Direction = Direction::ToQemu(Version(9, 2, 0));

fn json(text: &str) -> Json {
    let limits = Limits {
        bytes: 1 << 20,
        depth: 9,
        elements: 99,
        text: 999,
    };
    Json::read(text.as_bytes(), &limits).unwrap()
}

fn member(key: &str, schema: Schema, optional: bool) -> Member {
    Member {
        key: key.into(),
        schema,
        optional,
    }
}

/// Returns the rebuilt value, or the refusal.
fn made(schema: &Schema, text: &str, direction: Direction) -> String {
    match schema.rebuild(&json(text), direction) {
        Ok(value) => value.to_string(),
        Err(misfit) => misfit.to_string(),
    }
}

#[test]
fn an_unknown_member_is_refused_on_the_way_in_and_left_out_on_the_way_back() {
    let inner = Schema::Map(vec![member("n", Schema::Int(0, 9), false)]);
    let schema = Schema::Map(vec![
        member("list", Schema::List(Box::new(inner), 2), false),
        member("may", Schema::Bool, true),
    ]);
    let text = r#"{"x":1,"list":[{"n":1,"y":[]},{"n":2}]}"#;
    assert_eq!(
        made(&schema, text, Direction::FromQemu),
        r#"{"list":[{"n":1},{"n":2}]}"#
    );
    assert_eq!(made(&schema, text, OLD), "x is not expected");
    let inner = r#"{"list":[{"n":1},{"n":1,"y":1}]}"#;
    assert_eq!(made(&schema, inner, OLD), "list[1]: y is not expected");
    let bad = r#"{"list":[{"n":1},{"n":10}]}"#;
    assert_eq!(
        made(&schema, bad, Direction::FromQemu),
        "list[1].n: 10 is not within 0..9"
    );
    assert_eq!(
        made(&schema, r#"{"list":[1,2,3]}"#, Direction::FromQemu),
        "list: 3 items, more than 2"
    );
    assert_eq!(
        made(&schema, r#"{"may":true}"#, Direction::FromQemu),
        "list is missing"
    );
    assert!(made(&schema, r#"{"list":[],"may":1}"#, OLD).starts_with("may: an integer where"));
}

#[test]
fn nothing_keeps_nothing() {
    assert_eq!(
        made(&Schema::Nothing, r#"{"a":1}"#, Direction::FromQemu),
        "{}"
    );
    assert_eq!(
        made(&Schema::Nothing, r#"{"a":1}"#, OLD),
        "a is not expected"
    );
    assert!(made(&Schema::Nothing, "[]", Direction::FromQemu).contains("an array"));
}

#[test]
fn numbers_become_integers_for_those_who_want_them() {
    let schema = Schema::Number(0, 255, Version(9, 2, 0));
    assert_eq!(made(&schema, "\"4\"", OLD), "\"4\"");
    assert_eq!(made(&schema, "\"4\"", NEW), "4");
    assert_eq!(made(&schema, "4", OLD), "4");
    for bad in [
        "\"04\"", "\"+4\"", "\"-1\"", "256", "\"4 \"", "4.0", "\"\"", "null",
    ] {
        assert!(schema.rebuild(&json(bad), NEW).is_err(), "{bad}");
    }
}

#[test]
fn text_from_qemu_cannot_act_on_a_terminal() {
    let escape = r#""a\u001b[2J\nb\u009b1m\u202ec\t\u007f""#;
    assert_eq!(
        made(&Schema::Line(50), escape, Direction::FromQemu),
        r#""a [2J b 1m c  ""#
    );
    assert_eq!(
        made(&Schema::Lines(50), escape, Direction::FromQemu),
        r#""a [2J\nb 1m c\t ""#
    );
    assert_eq!(made(&Schema::Line(50), escape, OLD), "a control character");
    assert_eq!(
        made(&Schema::Lines(3), "\"abcd\"", Direction::FromQemu),
        "4 bytes, more than 3"
    );
}

#[test]
fn names() {
    let schema = Schema::Token(24, vec!["-x86_64-cpu".into()]);
    assert_eq!(
        made(&schema, "\"qemu64-x86_64-cpu\"", OLD),
        "\"qemu64-x86_64-cpu\""
    );
    for bad in [
        "\"qemu64\"",
        "\"\"",
        "\"a b-x86_64-cpu\"",
        "\"é-x86_64-cpu\"",
        "\"aaaaaaaaaaaaaaaa-x86_64-cpu\"",
    ] {
        assert!(schema.rebuild(&json(bad), OLD).is_err(), "{bad}");
    }
    let one = Schema::OneOf(vec!["a".into()]);
    assert!(made(&one, "\"b\"", OLD).contains("not one of"));
}
