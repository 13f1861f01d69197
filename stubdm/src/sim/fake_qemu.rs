//! A scripted QMP peer, for machines without QEMU: it takes QEMU's arguments, listens and connects
//! at the places they name, and supports a handful of commands.
//!
//! It behaves as QEMU does where the proxy relies on it: a greeting for every conversation, only
//! `qmp_capabilities` before that was sent, ids returned, errors for unknown commands. It ends when
//! the monitor it connected to is closed, or by `quit`, a person's `quit` included.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use stubdm_qmp::json::Json;
use stubdm_qmp::lines::{Line, Lines};
use stubdm_qmp::message::{COMMAND_NOT_FOUND, GENERIC_ERROR, LIMITS, NOT_NEGOTIATED, not_found};

use crate::libxl::dm_argv::pairs;
use crate::rt::error::{Context, Failure, Result};

/// The name under which this program is the peer.
pub const NAME: &str = "scripted-qmp-peer";

/// The longest command.
const COMMAND_MAX: usize = 1 << 20;

/// Is the peer, to its end. `args` are those that QEMU would get.
///
/// # Errors
/// The arguments name no monitors, or these cannot be had.
pub fn play(args: &[OsString]) -> Result<ExitCode> {
    let listener = path(args, "stubdm-toolstack")?;
    let listener = UnixListener::bind(&listener).context(&listener)?;
    let own = path(args, "stubdm-own")?;
    let own = UnixStream::connect(&own).context(&own)?;
    let machine = Arc::new(Machine::default());
    let theirs = Arc::clone(&machine);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let machine = Arc::clone(&theirs);
            std::thread::spawn(move || converse(stream, &machine));
        }
    });
    converse(own, &machine);
    Ok(ExitCode::SUCCESS)
}

/// The path of the character device `id`.
fn path(args: &[OsString], id: &str) -> Result<String> {
    let of = |arg: &OsString| {
        let pairs = pairs(arg.as_bytes());
        let value = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        (value("id")? == id).then(|| value("path")).flatten()
    };
    let none = || Failure::usage(format_args!("no character device {id} among the arguments"));
    args.iter().find_map(of).ok_or_else(none)
}

/// State shared by all conversations.
#[derive(Debug, Default)]
struct Machine {
    running: AtomicBool,
}

/// One conversation, to its end.
fn converse(stream: UnixStream, machine: &Machine) {
    // Both directions end with whichever does first; there is nobody to report the reason to.
    let _ = talk(stream, machine);
}

fn talk(mut stream: UnixStream, machine: &Machine) -> std::io::Result<()> {
    let greeting = json!({"QMP": {"version": version(), "capabilities": []}});
    stream.write_all(format!("{greeting}\r\n").as_bytes())?;
    let mut lines = Lines::new(COMMAND_MAX);
    let mut negotiated = false;
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let mut found = Vec::new();
        lines.push(buffer.get(..count).unwrap_or_default(), |line| {
            found.push(line);
        });
        for line in found {
            let (answer, ends) = machine.answer(&line, &mut negotiated);
            stream.write_all(format!("{answer}\r\n").as_bytes())?;
            if ends {
                std::process::exit(0);
            }
        }
    }
}

fn version() -> Value {
    json!({"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": format!(" ({NAME}, no QEMU)")})
}

impl Machine {
    /// The answer to a line, and whether it is the last.
    fn answer(&self, line: &Line, negotiated: &mut bool) -> (Value, bool) {
        let refuse = |class: &str, desc: &str| json!({"error": {"class": class, "desc": desc}});
        let command = match line {
            Line::Whole(line) => Json::read(line, &LIMITS).ok().map(Value::from),
            Line::TooLong(_) => None,
        };
        let Some(command) = command else {
            return (refuse(GENERIC_ERROR, "JSON parse error"), false);
        };
        let name = command.get("execute").and_then(Value::as_str);
        let outcome = match (name, *negotiated) {
            (None, _) => Err((GENERIC_ERROR, "QMP input lacks member 'execute'".to_owned())),
            (Some("qmp_capabilities"), false) => {
                *negotiated = true;
                Ok(json!({}))
            }
            (Some(_), false) => Err((COMMAND_NOT_FOUND, NOT_NEGOTIATED.to_owned())),
            (Some(name), true) => self
                .execute(name)
                .ok_or_else(|| (COMMAND_NOT_FOUND, not_found(name))),
        };
        let said = command.pointer("/arguments/command-line");
        let ends = match name {
            Some("quit") => outcome.is_ok(),
            Some("human-monitor-command") => said.is_some_and(|said| said == "quit"),
            _ => false,
        };
        let mut answer = match outcome {
            Ok(value) => json!({"return": value}),
            Err((class, desc)) => refuse(class, &desc),
        };
        if let (Some(id), Some(answer)) = (command.get("id"), answer.as_object_mut()) {
            answer.insert("id".to_owned(), id.clone());
        }
        (answer, ends)
    }

    /// The script.
    fn execute(&self, name: &str) -> Option<Value> {
        const COMMANDS: [&str; 8] = [
            "query-version",
            "query-status",
            "query-name",
            "query-commands",
            "cont",
            "stop",
            "quit",
            "human-monitor-command",
        ];
        Some(match name {
            "query-version" => version(),
            "query-status" => {
                let running = self.running.load(Ordering::Acquire);
                let status = if running { "running" } else { "paused" };
                json!({"running": running, "status": status})
            }
            "query-name" => json!({"name": "simulated"}),
            "query-commands" => COMMANDS.iter().map(|name| json!({"name": name})).collect(),
            "cont" | "stop" => {
                self.running.store(name == "cont", Ordering::Release);
                json!({})
            }
            "quit" => json!({}),
            "human-monitor-command" => json!(""),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(machine: &Machine, negotiated: &mut bool, line: &str) -> Value {
        let line = Line::Whole(line.as_bytes().to_vec());
        machine.answer(&line, negotiated).0
    }

    #[test]
    fn it_has_qemus_manners() {
        let (machine, mut negotiated) = (Machine::default(), false);
        let mut ask = |line: &str| reply(&machine, &mut negotiated, line);
        let early = ask(r#"{"execute": "query-status", "id": 7}"#);
        assert_eq!(early["error"]["class"], "CommandNotFound");
        assert_eq!(early["id"], 7);
        assert_eq!(ask("\u{ff}")["error"]["class"], "GenericError");
        let ready = ask(r#"{"execute": "qmp_capabilities"}"#);
        assert_eq!(ready, json!({"return": {}}));
        ask(r#"{"execute": "cont"}"#);
        let status = ask(r#"{"execute": "query-status"}"#);
        assert_eq!(status["return"]["status"], "running");
        let again = ask(r#"{"execute": "qmp_capabilities"}"#);
        assert_eq!(again["error"]["class"], "CommandNotFound");
    }

    #[test]
    fn every_command_it_names_is_known() {
        let machine = Machine::default();
        let names = machine.execute("query-commands").unwrap();
        for name in names.as_array().unwrap() {
            assert!(machine.execute(name["name"].as_str().unwrap()).is_some());
        }
    }

    #[test]
    fn a_path_with_a_comma_is_found() {
        let args = ["-chardev", "socket,id=stubdm-own,path=/a,,b,server=off"].map(OsString::from);
        assert_eq!(path(&args, "stubdm-own").unwrap(), "/a,b");
        assert!(path(&args, "stubdm-toolstack").is_err());
    }
}
