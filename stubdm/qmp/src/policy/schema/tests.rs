use super::*;
use crate::json::Limits;

const OLD: Way = Way::ToQemu(Version(7, 2, 0));
const NEW: Way = Way::ToQemu(Version(9, 2, 0));

fn json(text: &str) -> Json {
    let limits = Limits {
        bytes: 1 << 20,
        depth: 9,
        elements: 99,
        text: 999,
    };
    Json::read(text.as_bytes(), &limits).unwrap()
}

fn member(key: &str, shape: Shape, optional: bool) -> Member {
    Member {
        key: key.into(),
        shape,
        optional,
    }
}

/// What becomes of a value, or the refusal.
fn made(shape: &Shape, text: &str, way: Way) -> String {
    match shape.rebuild(&json(text), way) {
        Ok(value) => value.to_string(),
        Err(misfit) => misfit.to_string(),
    }
}

#[test]
fn an_unknown_member_is_refused_on_the_way_in_and_left_out_on_the_way_back() {
    let inner = Shape::Map(vec![member("n", Shape::Int(0, 9), false)]);
    let shape = Shape::Map(vec![
        member("list", Shape::List(Box::new(inner), 2), false),
        member("may", Shape::Bool, true),
    ]);
    let text = r#"{"x":1,"list":[{"n":1,"y":[]},{"n":2}]}"#;
    assert_eq!(
        made(&shape, text, Way::FromQemu),
        r#"{"list":[{"n":1},{"n":2}]}"#
    );
    assert_eq!(made(&shape, text, OLD), "x is not expected");
    let inner = r#"{"list":[{"n":1},{"n":1,"y":1}]}"#;
    assert_eq!(made(&shape, inner, OLD), "list[1]: y is not expected");
    let bad = r#"{"list":[{"n":1},{"n":10}]}"#;
    assert_eq!(
        made(&shape, bad, Way::FromQemu),
        "list[1].n: 10 is not within 0..9"
    );
    assert_eq!(
        made(&shape, r#"{"list":[1,2,3]}"#, Way::FromQemu),
        "list: 3 items, more than 2"
    );
    assert_eq!(
        made(&shape, r#"{"may":true}"#, Way::FromQemu),
        "list is missing"
    );
    assert!(made(&shape, r#"{"list":[],"may":1}"#, OLD).starts_with("may: an integer where"));
}

#[test]
fn nothing_keeps_nothing() {
    assert_eq!(made(&Shape::Nothing, r#"{"a":1}"#, Way::FromQemu), "{}");
    assert_eq!(
        made(&Shape::Nothing, r#"{"a":1}"#, OLD),
        "a is not expected"
    );
    assert!(made(&Shape::Nothing, "[]", Way::FromQemu).contains("an array"));
}

#[test]
fn numbers_become_integers_for_those_who_want_them() {
    let shape = Shape::Number(0, 255, Version(9, 2, 0));
    assert_eq!(made(&shape, "\"4\"", OLD), "\"4\"");
    assert_eq!(made(&shape, "\"4\"", NEW), "4");
    assert_eq!(made(&shape, "4", OLD), "4");
    for bad in [
        "\"04\"", "\"+4\"", "\"-1\"", "256", "\"4 \"", "4.0", "\"\"", "null",
    ] {
        assert!(shape.rebuild(&json(bad), NEW).is_err(), "{bad}");
    }
}

#[test]
fn text_from_qemu_cannot_act_on_a_terminal() {
    let escape = r#""a\u001b[2J\nb\u009b1m\u202ec\t\u007f""#;
    assert_eq!(
        made(&Shape::Line(50), escape, Way::FromQemu),
        r#""a [2J b 1m c  ""#
    );
    assert_eq!(
        made(&Shape::Lines(50), escape, Way::FromQemu),
        r#""a [2J\nb 1m c\t ""#
    );
    assert_eq!(made(&Shape::Line(50), escape, OLD), "a control character");
    assert_eq!(
        made(&Shape::Lines(3), "\"abcd\"", Way::FromQemu),
        "4 bytes, more than 3"
    );
}

#[test]
fn names() {
    let shape = Shape::Token(24, vec!["-x86_64-cpu".into()]);
    assert_eq!(
        made(&shape, "\"qemu64-x86_64-cpu\"", OLD),
        "\"qemu64-x86_64-cpu\""
    );
    for bad in [
        "\"qemu64\"",
        "\"\"",
        "\"a b-x86_64-cpu\"",
        "\"é-x86_64-cpu\"",
        "\"aaaaaaaaaaaaaaaa-x86_64-cpu\"",
    ] {
        assert!(shape.rebuild(&json(bad), OLD).is_err(), "{bad}");
    }
    let one = Shape::OneOf(vec!["a".into()]);
    assert!(made(&one, "\"b\"", OLD).contains("not one of"));
}
