//! A client that never blocks, stepped by the test.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

pub struct Client {
    pub stream: UnixStream,
    pub input: Vec<u8>,
    pub ended: bool,
}

impl Client {
    pub fn send(&mut self, command: &Value) {
        self.stream
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
    }

    pub fn message(&mut self) -> Option<Value> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        let end = self.input.iter().position(|b| *b == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        assert!(line.ends_with(b"\r\n"), "libxl needs both");
        Some(serde_json::from_slice(&line).unwrap())
    }
}
