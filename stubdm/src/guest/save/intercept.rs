//! Watches a QMP conversation, and holds back the one answer that libxl acts on at once.
//!
//! libxl takes the save file the moment `xen-save-devices-state` is answered. [`Intercept`] finds
//! that command in the client's bytes, and holds QEMU's answer to it until
//! [`Intercept::handle_outcome`]. All other bytes pass unaltered and at once. A conversation
//! without that command is never cut into lines at QEMU's side.
//!
//! No I/O. Memory: a client's line of up to `REQUEST_MAX` bytes, and while an answer is awaited a
//! line of QEMU's of up to [`LINE_MAX`].

use stubdm_qmp::json::{Json, Limits};
use stubdm_qmp::lines::LINE_MAX;
use stubdm_qmp::message::{GENERIC_ERROR, Message, error};

use crate::libxl::state_record::{COMMAND, FDSET};
use crate::rt::buffer::Buffer;

/// The longest request that is looked at; libxl's has under 200 bytes.
const REQUEST_MAX: usize = 4096;
/// The limits of such a request.
const LIMITS: Limits = Limits {
    bytes: REQUEST_MAX,
    depth: 8,
    elements: 64,
    text: REQUEST_MAX,
};

/// Where a save stands.
#[derive(Debug, Default)]
enum State {
    /// None is asked for.
    #[default]
    Open,
    /// Asked for, under this id.
    Awaited(Json),
    /// Done by QEMU. Its answer, and what followed in the same piece, wait here.
    Held {
        id: Json,
        answer: Vec<u8>,
        rest: Vec<u8>,
    },
}

/// The interceptor.
#[derive(Debug, Default)]
pub struct Intercept {
    state: State,
    request: Vec<u8>,
    too_long: bool,
    line: Vec<u8>,
    refused: bool,
}

impl Intercept {
    /// Handles the client's bytes, before QEMU gets them. Returns `true` if a save begins with
    /// them.
    pub fn handle_client_bytes(&mut self, bytes: &[u8]) -> bool {
        let mut begins = false;
        for byte in bytes {
            if *byte == b'\n' {
                let request = std::mem::take(&mut self.request);
                if let (false, Some(id)) = (self.too_long, save_request(&request)) {
                    self.state = State::Awaited(id);
                    begins = true;
                }
                self.too_long = false;
            } else if self.request.len() < REQUEST_MAX {
                self.request.push(*byte);
            } else {
                self.too_long = true;
            }
        }
        begins
    }

    /// Handles QEMU's bytes; adds what may pass now to `out`.
    pub fn handle_monitor_bytes(&mut self, bytes: &[u8], out: &mut Buffer) {
        match &mut self.state {
            State::Open => out.append(bytes),
            State::Held { rest, .. } => rest.extend_from_slice(bytes),
            State::Awaited(_) => {
                let mut bytes = bytes;
                while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    self.line.extend_from_slice(line);
                    let line = std::mem::take(&mut self.line);
                    if self.line_passes(&line) {
                        out.append(&line);
                    } else {
                        break;
                    }
                }
                match &mut self.state {
                    State::Held { rest, .. } => rest.extend_from_slice(bytes),
                    State::Open => out.append(bytes),
                    State::Awaited(_) => {
                        self.line.extend_from_slice(bytes);
                        if self.line.len() > LINE_MAX {
                            out.append(&std::mem::take(&mut self.line));
                        }
                    }
                }
            }
        }
    }

    /// Returns whether to pass this line to the client. The answer to the save changes the state.
    fn line_passes(&mut self, line: &[u8]) -> bool {
        let State::Awaited(awaited) = &self.state else {
            return true;
        };
        match Message::parse(line) {
            Ok(Message::Return { id, .. }) if id == *awaited => {
                self.state = State::Held {
                    id,
                    answer: line.to_vec(),
                    rest: Vec::new(),
                };
                false
            }
            Ok(Message::Error { id, .. }) if id == *awaited => {
                self.state = State::Open;
                self.refused = true;
                true
            }
            // Nor is an error without an id the answer: it may be to a command before. Should it be
            // the save's, lines still pass one by one until the next answer or request.
            _ => true,
        }
    }

    /// Returns whether QEMU has refused a save, once for each.
    pub fn was_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// Returns whether QEMU has saved and its answer waits for [`Intercept::handle_outcome`].
    pub fn holds(&self) -> bool {
        matches!(self.state, State::Held { .. })
    }

    /// Passes the answer, or in its place an error with the reason why the state did not get
    /// through.
    pub fn handle_outcome(&mut self, outcome: &Result<(), String>, out: &mut Buffer) {
        if let State::Held { id, answer, rest } = std::mem::take(&mut self.state) {
            match outcome {
                Ok(()) => out.append(&answer),
                Err(why) => {
                    let id = Some(id).filter(|id| *id != Json::Null);
                    out.append(&error(GENERIC_ERROR, why, id));
                }
            }
            out.append(&rest);
        }
    }
}

/// The id of a request to save into our file, if this line is one.
fn save_request(line: &[u8]) -> Option<Json> {
    // Most lines are something else and need no parsing.
    if !line
        .windows(COMMAND.len())
        .any(|word| word == COMMAND.as_bytes())
    {
        return None;
    }
    let mut request = Json::read(line, &LIMITS).ok()?;
    let named = request.get("execute").and_then(Json::text) == Some(COMMAND);
    let file = request
        .get("arguments")
        .and_then(|arguments| arguments.get("filename"));
    let ours = file.and_then(Json::text) == Some(format!("/dev/fdset/{FDSET}").as_str());
    (named && ours).then(|| request.take("id").unwrap_or(Json::Null))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: &[u8] = b"{\"execute\":\"xen-save-devices-state\",\"id\":7,\"arguments\":\
        {\"live\":true,\"filename\":\"/dev/fdset/1\"}}\r\n";
    const ANSWER: &[u8] = b"{\"return\": {}, \"id\": 7}\r\n";
    const EVENT: &[u8] = b"{\"event\": \"STOP\"}\r\n";

    fn taken(out: &mut Buffer) -> Vec<u8> {
        let mut all = Vec::new();
        while !out.is_empty() {
            all.extend_from_slice(out.front());
            out.consume(out.front().len());
        }
        all
    }

    #[test]
    fn the_answer_waits_however_the_bytes_are_cut() {
        let stream = [EVENT, ANSWER, EVENT].concat();
        for size in 1..stream.len() {
            let (mut intercept, mut out) = (Intercept::default(), Buffer::new(100_000));
            let begun: Vec<bool> = SAVE
                .chunks(size)
                .map(|c| intercept.handle_client_bytes(c))
                .collect();
            assert_eq!(begun.iter().filter(|b| **b).count(), 1, "pieces of {size}");
            stream
                .chunks(size)
                .for_each(|c| intercept.handle_monitor_bytes(c, &mut out));
            assert!(intercept.holds());
            assert_eq!(taken(&mut out), EVENT, "pieces of {size}");
            intercept.handle_outcome(&Ok(()), &mut out);
            assert_eq!(taken(&mut out), [ANSWER, EVENT].concat());
            intercept.handle_monitor_bytes(b"and half a li", &mut out);
            assert_eq!(taken(&mut out), b"and half a li");
        }
    }

    #[test]
    fn a_state_that_did_not_get_through_is_a_refusal_with_the_same_id() {
        let (mut intercept, mut out) = (Intercept::default(), Buffer::new(100_000));
        intercept.handle_client_bytes(SAVE);
        intercept.handle_monitor_bytes(ANSWER, &mut out);
        intercept.handle_outcome(&Err("the console \"broke\"".into()), &mut out);
        assert!(!intercept.was_refused(), "not by QEMU");
        let line = taken(&mut out);
        assert!(line.ends_with(b"}\r\n"));
        assert_eq!(
            Message::parse(&line),
            Ok(Message::Error {
                id: Json::Int(7),
                class: "GenericError".into(),
                desc: "the console \"broke\"".into(),
            })
        );
    }

    #[test]
    fn qemus_own_refusal_passes_and_ends_the_wait() {
        let (mut intercept, mut out) = (Intercept::default(), Buffer::new(100_000));
        intercept.handle_client_bytes(SAVE);
        let refusal =
            b"{\"id\": 7, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n";
        intercept.handle_monitor_bytes(refusal, &mut out);
        intercept.handle_monitor_bytes(ANSWER, &mut out);
        assert!(!intercept.holds());
        assert!(intercept.was_refused() && !intercept.was_refused());
        assert_eq!(taken(&mut out), [&refusal[..], ANSWER].concat());
    }

    #[test]
    fn other_commands_files_and_answers_are_no_concern() {
        for line in [
            &b"{\"execute\":\"cont\",\"id\":7}\r\n"[..],
            b"{\"execute\":\"xen-save-devices-state\",\"id\":7,\"arguments\":{\"filename\":\"/x\"}}\n",
            b"{\"execute\":\"echo\",\"id\":7,\"arguments\":{\"filename\":\"/dev/fdset/1\",\"a\":\"xen-save-devices-state\"}}\n",
            b"not json xen-save-devices-state\n",
        ] {
            let (mut intercept, mut out) = (Intercept::default(), Buffer::new(100_000));
            assert!(!intercept.handle_client_bytes(line));
            intercept.handle_monitor_bytes(ANSWER, &mut out);
            assert_eq!(taken(&mut out), ANSWER);
        }
        let (mut intercept, mut out) = (Intercept::default(), Buffer::new(100_000));
        intercept.handle_client_bytes(SAVE);
        intercept.handle_monitor_bytes(b"{\"return\": {}, \"id\": 8}\r\n", &mut out);
        assert!(!intercept.holds());
    }

    #[test]
    fn a_request_of_any_length_costs_little() {
        let mut intercept = Intercept::default();
        for _ in 0..1000 {
            assert!(!intercept.handle_client_bytes(&[b'x'; 1000]));
        }
        assert!(intercept.request.len() <= REQUEST_MAX);
        assert!(!intercept.handle_client_bytes(b"\n"));
        assert!(
            intercept.handle_client_bytes(SAVE),
            "the next line counts again"
        );
    }
}
