//! QMP's messages: QEMU's greeting, answers and events, read under limits; and the lines that this
//! program writes, commands for QEMU, answers and greetings for clients. QEMU's own words stand
//! here once.
//!
//! A line that is no message is an error of its own, never a guess.

use crate::json::{Json, Limits, map};
use crate::lines::LINE_MAX;
use crate::policy::schema::Version;
use crate::text::{self, one_line};

/// How much a message may hold where no policy sets a limit.
pub const LIMITS: Limits = Limits {
    bytes: LINE_MAX,
    depth: 64,
    elements: 50_000,
    text: LINE_MAX,
};

/// One message from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first message of every conversation, with QEMU's version if it has one.
    Greeting(Option<Version>),
    /// A command succeeded.
    Return {
        /// The id the command carried, `Null` for none.
        id: Json,
        /// Its result.
        value: Json,
    },
    /// A command failed, or (without an id) a request could not even be parsed.
    Error {
        /// The id the command carried, `Null` for none.
        id: Json,
        /// QEMU's error class, e.g. `CommandNotFound`.
        class: String,
        /// QEMU's words, made fit for one line.
        desc: String,
    },
    /// Something happened that nobody asked for.
    Event {
        /// Its name, e.g. `SHUTDOWN`.
        name: String,
        /// Its data.
        data: Json,
    },
}

/// A line that is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAMessage(String);

impl std::fmt::Display for NotAMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a QMP message: {}", self.0)
    }
}

impl std::error::Error for NotAMessage {}

impl Message {
    /// Reads one line.
    ///
    /// # Errors
    /// The line is not JSON, not an object, or an object that is none of the four.
    pub fn parse(line: &[u8]) -> Result<Self, NotAMessage> {
        let read = Json::read(line, &LIMITS);
        let mut object = read.map_err(|error| NotAMessage(error.to_string()))?;
        if !matches!(object, Json::Map(_)) {
            return Err(NotAMessage("not an object".into()));
        }
        let id = object.take("id").unwrap_or(Json::Null);
        if let Some(greeting) = object.take("QMP") {
            Ok(Self::Greeting(greeted(&greeting)))
        } else if let Some(value) = object.take("return") {
            Ok(Self::Return { id, value })
        } else if let Some(error) = object.take("error") {
            let text = |key| one_line(error.get(key).and_then(Json::text).unwrap_or("?"));
            Ok(Self::Error {
                id,
                class: text("class"),
                desc: text("desc"),
            })
        } else if let Some(Json::Text(name)) = object.take("event") {
            Ok(Self::Event {
                name: one_line(&name),
                data: object.take("data").unwrap_or(Json::Null),
            })
        } else {
            Err(NotAMessage("neither greeting, answer nor event".into()))
        }
    }
}

/// The class of an error that has none of its own.
pub const GENERIC_ERROR: &str = "GenericError";
/// The class of an error about a command that does not exist, or not yet.
pub const COMMAND_NOT_FOUND: &str = "CommandNotFound";
/// Error classes that QEMU has.
const CLASSES: [&str; 5] = [
    GENERIC_ERROR,
    COMMAND_NOT_FOUND,
    "DeviceNotActive",
    "DeviceNotFound",
    "KVMMissingCap",
];

/// QEMU's words for a command before capabilities are negotiated.
pub const NOT_NEGOTIATED: &str = "Expecting capabilities negotiation with 'qmp_capabilities'";
/// QEMU's words for a second negotiation.
pub const ALREADY_NEGOTIATED: &str =
    "Capabilities negotiation is already complete, command ignored";

/// QEMU's words for a command that it does not have.
pub fn not_found(command: &str) -> String {
    format!("The command {command} has not been found")
}

/// The class of an error, if it is one of QEMU's, and otherwise [`GENERIC_ERROR`].
pub fn class(text: &str) -> &'static str {
    let known = CLASSES.iter().find(|class| **class == text);
    known.copied().unwrap_or(GENERIC_ERROR)
}

/// At most 512 bytes of an explanation.
pub fn cut(text: &str) -> &str {
    text::cut(text, 512)
}

/// A value as one line that ends in CR and LF.
pub fn line_of(value: &Json) -> Vec<u8> {
    let mut line = Vec::new();
    value.write(&mut line);
    line.extend_from_slice(b"\r\n");
    line
}

/// A command for QEMU, as short as it can be: QEMU reads it byte by byte, each with a turn of its
/// main loop.
pub fn command(name: &str, arguments: Option<Json>, id: Json) -> Vec<u8> {
    let mut members = vec![("execute".to_owned(), Json::from(name))];
    members.extend(arguments.map(|arguments| ("arguments".to_owned(), arguments)));
    members.push(("id".to_owned(), id));
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

fn with_id(mut members: Vec<(String, Json)>, id: Option<Json>) -> Vec<u8> {
    members.extend(id.map(|id| ("id".to_owned(), id)));
    line_of(&Json::Map(members))
}

/// The version, as in `query-version`'s answer and the greeting.
pub fn version(version: Version, package: &str) -> Json {
    let qemu = map([
        ("micro", Json::Int(version.2.into())),
        ("minor", Json::Int(version.1.into())),
        ("major", Json::Int(version.0.into())),
    ]);
    map([("qemu", qemu), ("package", Json::from(package))])
}

/// Returns a greeting that has QEMU's version and nothing else.
pub fn greeting(of: Version, package: &str) -> Vec<u8> {
    let capabilities = Json::List(Vec::new());
    let said = map([
        ("version", version(of, package)),
        ("capabilities", capabilities),
    ]);
    line_of(&map([("QMP", said)]))
}

/// The version in what the member `QMP` of a greeting holds.
pub fn greeted(greeting: &Json) -> Option<Version> {
    let qemu = greeting.get("version")?.get("qemu")?;
    let part = |key| match qemu.get(key) {
        Some(Json::Int(n)) => u16::try_from(*n).ok().filter(|n| *n < 1000),
        _ => None,
    };
    Some(Version(part("major")?, part("minor")?, part("micro")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_kinds_as_qemu_7_2_spells_them() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}"#;
        assert!(matches!(Message::parse(greeting), Ok(Message::Greeting(_))));
        assert_eq!(
            Message::parse(br#"{"return": {}, "id": 1}"#),
            Ok(Message::Return {
                id: Json::Int(1),
                value: Json::Map(Vec::new())
            })
        );
        let error = br#"{"id": "n", "error": {"class": "CommandNotFound", "desc": "a\nb"}}"#;
        let (class, desc) = ("CommandNotFound".to_owned(), "a b".to_owned());
        assert_eq!(
            Message::parse(error),
            Ok(Message::Error {
                id: Json::from("n"),
                class,
                desc
            })
        );
        let event = br#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#;
        let name = "STOP".to_owned();
        assert_eq!(
            Message::parse(event),
            Ok(Message::Event {
                name,
                data: Json::Null
            })
        );
    }

    #[test]
    fn nonsense_is_refused_and_depth_is_bounded() {
        for bad in [
            &b"[]"[..],
            b"{}",
            b"x",
            b"{\"return\"",
            b"\xff{}",
            b"{\"event\":1}",
        ] {
            assert!(Message::parse(bad).is_err(), "{bad:?}");
        }
        let deep = format!("{{\"return\":{}", "[".repeat(100_000));
        assert!(Message::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_command_is_one_line() {
        let line = command("cont", None, Json::from("a\nb"));
        assert_eq!(line, b"{\"execute\":\"cont\",\"id\":\"a\\nb\"}\n");
        let with = command("x", Some(map([("k", Json::Int(1))])), Json::Int(7));
        assert_eq!(
            with,
            b"{\"execute\":\"x\",\"arguments\":{\"k\":1},\"id\":7}\n"
        );
    }
}
