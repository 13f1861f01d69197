//! A monitor that behaves as QEMU 7.2 was seen to: greeting on connection, nothing but
//! `qmp_capabilities` before it was sent, half a command kept until its other half arrives, and
//! dropped at 0xFF.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

pub struct Qemu {
    listener: UnixListener,
    pub connections: Vec<QemuMonitor>,
    pub accepted: usize,
}

pub struct QemuMonitor {
    stream: UnixStream,
    input: Vec<u8>,
    negotiated: bool,
    output: Vec<u8>,
}

impl Qemu {
    pub fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            connections: Vec::new(),
            accepted: 0,
        }
    }

    /// Does what can be done; returns whether it did anything.
    pub fn step(&mut self) -> bool {
        let mut busy = false;
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            self.accepted += 1;
            let mut monitor = QemuMonitor {
                stream,
                input: Vec::new(),
                negotiated: false,
                output: Vec::new(),
            };
            monitor.send(
                &json!({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}},
                "capabilities": [], "n": self.accepted}}),
            );
            self.connections.push(monitor);
            busy = true;
        }
        self.connections.retain_mut(|monitor| match monitor.step() {
            Some(some) => {
                busy |= some;
                true
            }
            None => {
                busy = true;
                false
            }
        });
        busy
    }
}

impl QemuMonitor {
    pub fn send(&mut self, message: &Value) {
        self.output
            .extend_from_slice(format!("{message}\r\n").as_bytes());
    }

    fn step(&mut self) -> Option<bool> {
        let mut busy = false;
        let mut buffer = [0; 512];
        match self.stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                busy = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        while let Some(end) = self.input.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if line.contains(&0xff) {
                self.send(&json!({"error": {"class": "GenericError", "desc": "JSON parse error"}}));
            } else {
                self.command(&line);
            }
        }
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => {
                    self.output.drain(..count);
                    busy = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return None,
            }
        }
        Some(busy)
    }

    fn command(&mut self, line: &[u8]) {
        let Ok(command) = serde_json::from_slice::<Value>(line) else {
            if !line.trim_ascii().is_empty() {
                self.send(&json!({"error": {"class": "GenericError", "desc": "JSON parse error"}}));
            }
            return;
        };
        let (name, id) = (command["execute"].clone(), command["id"].clone());
        let refused =
            |why: &str| json!({"id": id, "error": {"class": "CommandNotFound", "desc": why}});
        let answer = match (name.as_str().unwrap(), self.negotiated) {
            ("qmp_capabilities", false) => {
                self.negotiated = true;
                json!({"return": {}, "id": id})
            }
            ("qmp_capabilities", true) => refused("Capabilities negotiation is already complete"),
            (_, false) => refused("Expecting capabilities negotiation"),
            ("big", true) => json!({"return": "x".repeat(300_000), "id": id}),
            (name, true) => {
                json!({"return": {"asked": name, "with": command["arguments"]}, "id": id})
            }
        };
        self.send(&answer);
    }
}
