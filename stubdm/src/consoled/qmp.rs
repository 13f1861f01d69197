//! The few questions libxl and its tools ask of the QEMU that serves a stubdomain, answered as QEMU
//! would.
//!
//! | command | asked by | answer |
//! |---|---|---|
//! | `qmp_capabilities` | every client | nothing |
//! | `query-chardev` | libxl, once it runs: for terminals of serial ports | the consoles' terminals |
//! | `query-vnc` | libxl, for a guest with a display | the screen's VNC server, or that there is none |
//! | `change-vnc-password`, `set_password` | libxl, with `vncpasswd` | nothing |
//! | `query-status`, `query-version`, `query-name`, `query-commands` | people | |
//! | `query-block`, `query-blockstats` | libxenstat | no disks |
//! | `quit` | people | the end |
//!
//! Anything else is `CommandNotFound`. Lines in, lines out; no I/O.

use std::net::SocketAddr;

use serde_json::{Value, json};
use stubdm_qmp::json::Json;
use stubdm_qmp::lines::{Line, Lines};
use stubdm_qmp::message::{
    ALREADY_NEGOTIATED, COMMAND_NOT_FOUND, GENERIC_ERROR, LIMITS, NOT_NEGOTIATED, error, greeting,
    not_found, success, version,
};
use stubdm_qmp::policy::schema::Version;

/// The longest line of a client's.
pub const LINE_MAX: usize = 64 << 10;

/// The release of QEMU whose answers these are: libxl picks its commands by it.
const RELEASE: Version = Version(7, 2, 0);
/// The name in the place of QEMU's package.
const PACKAGE: &str = concat!("stubdm-run ", env!("CARGO_PKG_VERSION"));

/// Commands only of a VNC server's.
const SCREENS: &[&str] = &["change-vnc-password", "set_password"];

const COMMANDS: &[&str] = &[
    "qmp_capabilities",
    "query-block",
    "query-blockstats",
    "query-chardev",
    "query-command-line-options",
    "query-commands",
    "query-name",
    "query-status",
    "query-version",
    "query-vnc",
    "quit",
];

/// The facts for the answers.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Each character device: its label, and its file name in QEMU's words.
    pub chardevs: Vec<(String, String)>,
    /// The screen's VNC server.
    pub vnc: Option<VncFacts>,
}

/// A VNC server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VncFacts {
    /// The address at which it listens.
    pub address: SocketAddr,
    /// Viewers need a password.
    pub password: bool,
    /// The viewers' addresses.
    pub viewers: Vec<SocketAddr>,
}

/// One client's conversation.
#[derive(Debug)]
pub struct Session {
    lines: Lines,
    negotiated: bool,
    quit: bool,
    password: Option<String>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            lines: Lines::new(LINE_MAX),
            negotiated: false,
            quit: false,
            password: None,
        }
    }
}

impl Session {
    /// Returns the greeting of every conversation.
    pub fn greeting() -> Vec<u8> {
        greeting(RELEASE, PACKAGE)
    }

    /// Handles received bytes and returns the answers.
    pub fn push(&mut self, bytes: &[u8], facts: &Facts) -> Vec<u8> {
        let mut found = Vec::new();
        self.lines.push(bytes, |line| found.push(line));
        let mut answers = Vec::new();
        for one in found {
            answers.extend(match one {
                Line::Whole(text) => self.answer(&text, facts),
                Line::TooLong(_) => error(GENERIC_ERROR, "the line is too long", None),
            });
        }
        answers
    }

    /// Returns whether the client asked for the end.
    pub fn has_quit(&self) -> bool {
        self.quit
    }

    /// Takes the VNC password that the client set.
    pub fn take_password(&mut self) -> Option<String> {
        self.password.take()
    }

    fn answer(&mut self, text: &[u8], facts: &Facts) -> Vec<u8> {
        let Ok(mut request @ Json::Map(_)) = Json::read(text, &LIMITS) else {
            return error(GENERIC_ERROR, "no JSON object", None);
        };
        let id = request.take("id");
        let Some(Json::Text(command)) = request.take("execute") else {
            return error(GENERIC_ERROR, "no command", id);
        };
        if !self.negotiated && command != "qmp_capabilities" {
            return error(COMMAND_NOT_FOUND, NOT_NEGOTIATED, id);
        }
        let value = match command.as_str() {
            "qmp_capabilities" if self.negotiated => {
                return error(COMMAND_NOT_FOUND, ALREADY_NEGOTIATED, id);
            }
            "qmp_capabilities" => {
                self.negotiated = true;
                json!({})
            }
            "quit" => {
                self.quit = true;
                json!({})
            }
            "query-version" => return success(version(RELEASE, PACKAGE), id),
            "query-name" => json!({}),
            "query-status" => json!({"running": true, "singlestep": false, "status": "running"}),
            "query-vnc" => facts.vnc.as_ref().map_or_else(
                || json!({"enabled": false, "auth": "none", "clients": []}),
                query_vnc,
            ),
            "change-vnc-password" | "set_password" if facts.vnc.is_some() => {
                let mut arguments = request.take("arguments").unwrap_or(Json::Null);
                let vnc = Json::Text("vnc".into());
                let protocol = arguments.take("protocol").unwrap_or(vnc.clone());
                let password = arguments.take("password");
                let locked = facts.vnc.as_ref().is_some_and(|vnc| vnc.password);
                let (Some(Json::Text(password)), true) = (password, protocol == vnc) else {
                    return error(GENERIC_ERROR, "no password for VNC", id);
                };
                if !locked {
                    return error(GENERIC_ERROR, "Could not set password", id);
                }
                self.password = Some(password);
                json!({})
            }
            "query-block" | "query-blockstats" | "query-command-line-options" => json!([]),
            "query-chardev" => facts.chardevs.iter().map(chardev).collect(),
            "query-commands" => {
                let screens = facts.vnc.as_ref().map_or(&[][..], |_| SCREENS);
                let all = COMMANDS.iter().chain(screens);
                all.map(|name| json!({"name": name})).collect()
            }
            _ => return error(COMMAND_NOT_FOUND, &not_found(&command), id),
        };
        success(value.into(), id)
    }
}

fn query_vnc(vnc: &VncFacts) -> Value {
    let family = |address: &SocketAddr| if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let client = |viewer: &SocketAddr| {
        json!({
            "host": viewer.ip().to_string(),
            "service": viewer.port().to_string(),
            "family": family(viewer),
            "websocket": false,
        })
    };
    json!({
        "enabled": true,
        "host": vnc.address.ip().to_string(),
        "service": vnc.address.port().to_string(),
        "family": family(&vnc.address),
        "auth": if vnc.password { "vnc" } else { "none" },
        "clients": vnc.viewers.iter().map(client).collect::<Vec<_>>(),
    })
}

fn chardev((label, file): &(String, String)) -> Value {
    json!({"label": label, "filename": file, "frontend-open": true})
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stubdm_qmp::message::Message;

    fn ask(session: &mut Session, text: &str) -> Value {
        ask_of(session, text, None)
    }

    fn ask_of(session: &mut Session, text: &str, vnc: Option<VncFacts>) -> Value {
        let facts = Facts {
            chardevs: vec![("xencons3".into(), "pty:/dev/pts/3".into())],
            vnc,
        };
        let answer = session.push(format!("{text}\r\n").as_bytes(), &facts);
        assert!(answer.ends_with(b"}\r\n"));
        assert!(Message::parse(&answer).is_ok());
        serde_json::from_slice(&answer).unwrap()
    }

    fn ready() -> Session {
        let mut session = Session::default();
        let answer = ask(
            &mut session,
            r#"{"execute":"qmp_capabilities","id":2020372737}"#,
        );
        assert_eq!(answer, json!({"return": {}, "id": 2_020_372_737u32}));
        session
    }

    #[test]
    fn libxls_own_conversation() {
        let greeting: Value = serde_json::from_slice(&Session::greeting()).unwrap();
        let major = &greeting["QMP"]["version"]["qemu"]["major"];
        assert!(major.is_u64(), "{greeting}");
        let answer = ask(
            &mut ready(),
            r#"{"execute":"query-chardev","id":2020372736}"#,
        );
        assert_eq!(answer["id"], 2_020_372_736u32);
        assert_eq!(answer["return"][0]["filename"], "pty:/dev/pts/3");
        assert_eq!(answer["return"][0]["label"], "xencons3");
    }

    #[test]
    fn a_screens_questions_are_answered_as_by_qemu() {
        let vnc = |password| VncFacts {
            address: "127.0.0.1:5901".parse().unwrap(),
            password,
            viewers: vec!["[2001:db8::1]:700".parse().unwrap()],
        };
        let question = r#"{"execute":"query-vnc","id":1}"#;
        let answer = ask_of(&mut ready(), question, Some(vnc(true)));
        let answer = &answer["return"];
        assert_eq!(answer["enabled"], true);
        assert_eq!(
            (&answer["host"], &answer["service"]),
            (&json!("127.0.0.1"), &json!("5901"))
        );
        assert_eq!(
            (&answer["auth"], &answer["family"]),
            (&json!("vnc"), &json!("ipv4"))
        );
        let client =
            json!({"host": "2001:db8::1", "service": "700", "family": "ipv6", "websocket": false});
        assert_eq!(answer["clients"], json!([client]));
        for (command, arguments) in [
            ("change-vnc-password", r#"{"password":"secret"}"#),
            ("set_password", r#"{"protocol":"vnc","password":"secret"}"#),
        ] {
            let text = format!(r#"{{"execute":"{command}","arguments":{arguments},"id":1}}"#);
            let mut session = ready();
            let answer = ask_of(&mut session, &text, Some(vnc(true)));
            assert_eq!(answer["return"], json!({}), "{answer}");
            assert_eq!(session.take_password().as_deref(), Some("secret"));
            assert_eq!(session.take_password(), None);
            for (vnc, class) in [
                (Some(vnc(false)), "GenericError"),
                (None, "CommandNotFound"),
            ] {
                let answer = ask_of(&mut session, &text, vnc);
                assert_eq!(answer["error"]["class"], class, "{answer}");
                assert_eq!(session.take_password(), None);
            }
        }
        for arguments in [
            r#"{"protocol":"spice","password":"x"}"#,
            "{}",
            "7",
            r#"{"password":7}"#,
        ] {
            let text = format!(r#"{{"execute":"set_password","arguments":{arguments}}}"#);
            let answer = ask_of(&mut ready(), &text, Some(vnc(true)));
            assert_eq!(answer["error"]["class"], "GenericError", "{answer}");
        }
    }

    #[test]
    fn every_command_is_answered_and_others_are_refused() {
        for command in COMMANDS.iter().skip(1) {
            let mut session = ready();
            let answer = ask(
                &mut session,
                &format!(r#"{{"execute":"{command}","id":"a"}}"#),
            );
            assert!(
                answer["return"] != Value::Null && answer["id"] == "a",
                "{answer}"
            );
            assert_eq!(session.has_quit(), *command == "quit");
        }
        for (text, class) in [
            (r#"{"execute":"device_add"}"#, "CommandNotFound"),
            (r#"{"execute":"qmp_capabilities"}"#, "CommandNotFound"),
            (r#"{"execute":7}"#, "GenericError"),
            ("[]", "GenericError"),
            ("\u{ff}", "GenericError"),
        ] {
            let answer = ask(&mut ready(), text);
            assert_eq!(answer["error"]["class"], class, "{text}");
        }
        let early = ask(
            &mut Session::default(),
            r#"{"execute":"query-status","id":1}"#,
        );
        assert!(early["error"]["desc"].to_string().contains("negotiation"));
    }

    proptest! {
        #[test]
        fn a_line_has_one_answer_whatever_it_is(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let lines = bytes.split(|b| *b == b'\n').rev().skip(1);
            let wanted = lines.filter(|l| !l.is_empty() && *l != b"\r").count();
            let answers = ready().push(&bytes, &Facts::default());
            prop_assert_eq!(answers.split(|b| *b == b'\n').count() - 1, wanted);
        }
    }
}
