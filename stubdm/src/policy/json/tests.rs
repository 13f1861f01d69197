use super::*;

const LIMITS: Limits = Limits {
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

#[test]
fn what_is_refused_is_named() {
    let deep = format!("{}{}", "[".repeat(5), "]".repeat(5));
    let many = format!("[{}0]", "0,".repeat(50));
    let long = format!("\"{}\"", "x".repeat(21));
    let key = format!("{{\"{}\":1}}", "k".repeat(129));
    let keys: Vec<String> = (0..30).map(|n| format!("\"k{}\":1", n % 29)).collect();
    let keys = format!("{{{}}}", keys.join(","));
    for (text, word) in [
        (r#"{"a":1,"a":1}"#, "twice"),
        (r#"[{"b":{"a":1,"\u0061":2}}]"#, "twice"),
        (keys.as_str(), "\"k0\" twice"),
        (&deep, "deeper than 4"),
        (&many, "more than 50 values"),
        (&long, "21 bytes"),
        (&key, "129 bytes"),
        (r#""a\u0000b""#, "NUL"),
        (r#"{"a\n":1}"#, "control"),
        ("9223372036854775808", "out of range"),
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
