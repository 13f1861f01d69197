//! A client with libxl's habits: the same ids every time, a greeting expected first, and no
//! patience for an answer it did not ask for.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

const COMMAND_ID: u32 = 0x786c_7100;
const CAPABILITIES_ID: u32 = 0x786c_7101;

pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        // Only so that a hang is a failure.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Waits until the other side closes; it may not send anything before.
    pub(crate) fn closed(&mut self) {
        let mut rest = String::new();
        assert_eq!(self.stream.read_line(&mut rest).unwrap_or(0), 0, "{rest}");
    }

    fn read_message(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    fn send(&mut self, command: &Value) {
        self.write(format!("{command}\r\n").as_bytes());
    }

    pub(crate) fn negotiate(&mut self) {
        let greeting = self.read_message();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        self.send(&json!({"execute": "qmp_capabilities", "id": CAPABILITIES_ID}));
        assert_eq!(
            self.read_message(),
            json!({"return": {}, "id": CAPABILITIES_ID})
        );
    }

    pub(crate) fn send_command(&mut self, command: &str, arguments: Value) {
        self.send(&json!({"execute": command, "arguments": arguments, "id": COMMAND_ID}));
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.send_command(command, arguments);
        let answer = self.read_message();
        assert_eq!(answer["id"], COMMAND_ID, "{answer}");
        answer["return"].clone()
    }
}
