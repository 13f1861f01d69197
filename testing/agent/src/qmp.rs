//! A person's QMP client, as small as it can be: what libxl does on `/var/run/xen/qmp-libxl-N`,
//! step by step.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use xen_sys::DomId;

use crate::host::PATIENCE;

/// One connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    next_id: u64,
}

impl Qmp {
    /// The socket that libxl uses for domain `guest`.
    pub(crate) fn socket(guest: DomId) -> String {
        format!("/var/run/xen/qmp-libxl-{guest}")
    }

    /// Connects and does nothing else: no byte has moved.
    pub(crate) fn dial(socket: impl AsRef<Path>) -> Result<Self> {
        Self::dial_within(socket, PATIENCE)
    }

    fn dial_within(socket: impl AsRef<Path>, patience: Duration) -> Result<Self> {
        let socket = socket.as_ref();
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            reader: BufReader::new(stream),
            next_id: 0x786c_7100,
        })
    }

    /// Connects, reads the greeting and leaves negotiation behind.
    pub(crate) fn connect(socket: impl AsRef<Path>) -> Result<Self> {
        Self::connect_within(socket, PATIENCE)
    }

    /// As [`connect`](Self::connect), each answer being waited for no longer than stated.
    pub(crate) fn connect_within(socket: impl AsRef<Path>, patience: Duration) -> Result<Self> {
        let mut qmp = Self::dial_within(socket, patience)?;
        qmp.greeting()?;
        qmp.execute("qmp_capabilities", None)?;
        Ok(qmp)
    }

    /// The greeting has to be the first thing that arrives.
    pub(crate) fn greeting(&mut self) -> Result<Value> {
        let message = self.message().context("waiting for the greeting")?;
        if message
            .pointer("/QMP/version/qemu/major")
            .and_then(Value::as_u64)
            .is_none()
        {
            bail!("the first message is no greeting: {message}");
        }
        Ok(message)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.reader.get_mut().write_all(bytes)?)
    }

    /// Runs a command. As for libxl, anything but events and the one answer with the command's id
    /// is an error.
    pub(crate) fn execute(&mut self, command: &str, arguments: Option<Value>) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"execute": command, "id": id});
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        self.send(format!("{request}\r\n").as_bytes())?;
        loop {
            let mut answer = self
                .message()
                .with_context(|| format!("waiting for the answer to {command}"))?;
            if answer.get("event").is_some() {
                continue;
            }
            if answer.get("id").and_then(Value::as_u64) != Some(id) {
                bail!("{command} has id {id}; what arrived is {answer}");
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            match answer.get_mut("return") {
                Some(value) => return Ok(value.take()),
                None => bail!("{command}: neither return nor error: {answer}"),
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let count = self.reader.read_until(b'\n', &mut line)?;
        if count == 0 {
            bail!("the other side closed the connection");
        }
        if !line.ends_with(b"\r\n") {
            bail!(
                "a message does not end in CR LF: {:?}",
                String::from_utf8_lossy(&line)
            );
        }
        serde_json::from_slice(&line)
            .with_context(|| format!("no JSON: {:?}", String::from_utf8_lossy(&line)))
    }
}
