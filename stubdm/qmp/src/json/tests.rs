use super::*;

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    depth: 4,
    elements: 50,
    text: 20,
};

fn read(text: &str) -> Result<Json, Refused> {
    Json::read(text.as_bytes(), &LIMITS)
}

#[test]
fn every_kind_comes_back_as_it_was() {
    let text = r#"{"a":[1,-2,0.5,true,null,{}],"b":"\"\\\n\t\u001b\u009bä😀","c":[]}"#;
    let value = read(text).unwrap();
    assert_eq!(value.to_string(), text);
    assert_eq!(read(&format!(" {value}\r")).unwrap(), value);
    assert_eq!(value.get("c"), Some(&Json::List(vec![])));
    assert_eq!(read("-9223372036854775808").unwrap(), Json::Int(i64::MIN));
}

fn keys_of(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("\"k{n}\":1")).collect()
}

#[test]
fn a_literal_shows_whether_it_is_an_integer() {
    for (text, value) in [
        ("9223372036854775807", Json::Int(i64::MAX)),
        ("-9223372036854775808", Json::Int(i64::MIN)),
        ("-0", Json::Int(0)),
        ("0", Json::Int(0)),
        (
            "9223372036854775808.0",
            Json::Real(9_223_372_036_854_775_808.0),
        ),
        (
            "18446744073709551616e0",
            Json::Real(18_446_744_073_709_551_616.0),
        ),
        ("1E2", Json::Real(100.0)),
        ("1e-400", Json::Real(0.0)),
    ] {
        assert_eq!(read(text).unwrap(), value, "{text}");
    }
    let several = r#"{"-1":[1,"e\\",-2],"a":-0,"b":-0.0,"c":["\"7.5",3.5],"d":-0}"#;
    let expected = r#"{"-1":[1,"e\\",-2],"a":0,"b":-0.0,"c":["\"7.5",3.5],"d":0}"#;
    assert_eq!(read(several).unwrap().to_string(), expected);
}

#[test]
fn the_whole_text_has_a_limit() {
    let few = Limits {
        bytes: 10,
        ..LIMITS
    };
    assert!(Json::read(b"[1,2,3,45]", &few).is_ok());
    let why = Json::read(b"[1,2,3,456]", &few).unwrap_err();
    assert_eq!(why.to_string(), "11 bytes, more than 10");
}

#[test]
fn what_is_refused_is_named() {
    let deep = format!("{}{}", "[".repeat(5), "]".repeat(5));
    let many = format!("[{}0]", "0,".repeat(50));
    let long = format!("\"{}\"", "x".repeat(21));
    let key = format!("{{\"{}\":1}}", "k".repeat(129));
    let keys: Vec<String> = (0..30).map(|n| format!("\"k{}\":1", n % 29)).collect();
    let keys = format!("{{{}}}", keys.join(","));
    let nines = "9".repeat(5000);
    let last = format!("{{{},\"z\":1,\"z\":1}}", keys_of(30).join(","));
    for (text, word) in [
        (r#"{"a":1,"a":1}"#, "twice"),
        (r#"[{"b":{"a":1,"\u0061":2}}]"#, "twice"),
        (keys.as_str(), "\"k0\" twice"),
        (last.as_str(), "\"z\" twice"),
        (&deep, "deeper than 4"),
        (&many, "more than 50 values"),
        (&long, "21 bytes"),
        (&key, "129 bytes"),
        (r#""a\u0000b""#, "NUL"),
        (r#"{"a\n":1}"#, "control"),
        ("9223372036854775808", "out of range"),
        ("-9223372036854775809", "out of range"),
        ("18446744073709551615", "out of range"),
        ("18446744073709551616", "out of range"),
        ("[1,\"2.5\\\"-3\",-4,18446744073709551616]", "out of range"),
        ("-18446744073709551616", "out of range"),
        (nines.as_str(), "out of range"),
        ("1e400", "out of range"),
        ("-1e400", "out of range"),
        ("01", "invalid number"),
        ("-", "EOF"),
        ("1e999", "out of range"),
        ("{} {}", "trailing"),
        ("\"\u{1}\"", "control"),
        (r#""\ud800""#, "hex escape"),
        ("NaN", "expected"),
        ("", "EOF"),
    ] {
        let why = read(text).unwrap_err().to_string();
        assert!(why.contains(word) && !why.contains('\n'), "{text}: {why}");
    }
    assert!(Json::read(b"\"\xff\"", &LIMITS).is_err());
    assert!(Json::read(b"\xef\xbb\xbf{}", &LIMITS).is_err());
}

#[test]
fn depth_elements_and_text_may_reach_their_limits() {
    for text in [
        "[[[[]]]]".to_owned(),
        format!("[{}0]", "0,".repeat(48)),
        format!("\"{}\"", "x".repeat(20)),
    ] {
        assert!(read(&text).is_ok(), "{text}");
    }
}
