//! Classifies a line from QEMU: the greeting, an answer, or an event.
//!
//! The text comes from a domain that may be hostile: it is read under [`LIMITS`]. A line that is no
//! message is an error of its own, never a guess.

use serde_json::Value;

use crate::json::{Json, Limits};
use crate::lines::LINE_MAX;
use crate::text::one_line;

/// How much a message may hold where no policy says so.
pub const LIMITS: Limits = Limits {
    bytes: LINE_MAX,
    depth: 64,
    elements: 50_000,
    text: LINE_MAX,
};

/// One message from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first message of every conversation.
    Greeting(Json),
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
            Ok(Self::Greeting(greeting))
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

/// A command as one line, ready to send.
pub fn command(name: &str, arguments: Option<&Value>, id: &Value) -> Vec<u8> {
    let mut line = b"{\"execute\":".to_vec();
    line.extend_from_slice(Value::from(name).to_string().as_bytes());
    if let Some(arguments) = arguments {
        line.extend_from_slice(b",\"arguments\":");
        line.extend_from_slice(arguments.to_string().as_bytes());
    }
    line.extend_from_slice(b",\"id\":");
    line.extend_from_slice(id.to_string().as_bytes());
    line.extend_from_slice(b"}\r\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let line = command("cont", None, &json!("a\nb"));
        assert_eq!(line, b"{\"execute\":\"cont\",\"id\":\"a\\nb\"}\r\n");
        let with = command("x", Some(&json!({"k": 1})), &json!(7));
        assert_eq!(
            with,
            b"{\"execute\":\"x\",\"arguments\":{\"k\":1},\"id\":7}\r\n"
        );
    }
}
