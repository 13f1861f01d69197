//! The lines this program writes itself: commands for QEMU, answers and greetings for clients.

use crate::json::{Json, map};
use crate::policy::schema::Version;

/// Bytes kept of an explanation.
const DESC: usize = 512;

/// Error classes QEMU has; any other becomes the first.
const CLASSES: [&str; 5] = [
    "GenericError",
    "CommandNotFound",
    "DeviceNotActive",
    "DeviceNotFound",
    "KVMMissingCap",
];

/// The class of an error, if it is one of QEMU's.
pub fn class(text: &str) -> &'static str {
    let known = CLASSES.iter().find(|class| **class == text);
    known.copied().unwrap_or(CLASSES[0])
}

/// At most 512 bytes of a text.
pub fn cut(text: &str) -> &str {
    let end = (0..=DESC.min(text.len())).rfind(|n| text.is_char_boundary(*n));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// A value as one line that ends in CR and LF.
pub fn line_of(value: &Json) -> Vec<u8> {
    let mut line = Vec::new();
    value.write(&mut line);
    line.extend_from_slice(b"\r\n");
    line
}

fn with_id(mut members: Vec<(String, Json)>, id: Option<Json>) -> Vec<u8> {
    members.extend(id.map(|id| ("id".to_owned(), id)));
    line_of(&Json::Map(members))
}

/// A command for QEMU, as short as it can be: QEMU reads it byte by byte, each with a turn of its main loop.
pub fn command(name: &str, arguments: Option<Json>, id: &str) -> Vec<u8> {
    let mut members = vec![("execute".to_owned(), Json::from(name))];
    members.extend(arguments.map(|arguments| ("arguments".to_owned(), arguments)));
    members.push(("id".to_owned(), Json::from(id)));
    let mut line = Vec::new();
    Json::Map(members).write(&mut line);
    line.push(b'\n');
    line
}

/// The answer to a command that was obeyed.
pub fn success(value: Json, id: Option<Json>) -> Vec<u8> {
    with_id(vec![("return".to_owned(), value)], id)
}

/// The answer to a command that was not.
pub fn error(class: &str, desc: &str, id: Option<Json>) -> Vec<u8> {
    let error = map([("class", Json::from(class)), ("desc", Json::from(desc))]);
    with_id(vec![("error".to_owned(), error)], id)
}

/// A greeting that tells QEMU's version and nothing else.
pub fn greeting(version: Version) -> Vec<u8> {
    let qemu = map([
        ("micro", Json::Int(version.2.into())),
        ("minor", Json::Int(version.1.into())),
        ("major", Json::Int(version.0.into())),
    ]);
    let version = map([("qemu", qemu), ("package", Json::from(""))]);
    let capabilities = Json::List(Vec::new());
    let said = map([("version", version), ("capabilities", capabilities)]);
    line_of(&map([("QMP", said)]))
}

/// The version in a greeting of QEMU's; `None` when that is no greeting.
pub fn greeted(said: &Json) -> Option<Version> {
    let qemu = said.get("QMP")?.get("version")?.get("qemu")?;
    let part = |key| match qemu.get(key) {
        Some(Json::Int(n)) => u16::try_from(*n).ok().filter(|n| *n < 1000),
        _ => None,
    };
    Some(Version(part("major")?, part("minor")?, part("micro")?))
}
