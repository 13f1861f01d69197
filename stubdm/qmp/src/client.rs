//! The client's half of a QMP conversation: greeting, capabilities, then one command at a time.
//!
//! No I/O and no clock. [`Client::handle_bytes`] takes bytes from QEMU, [`Client::poll_transmit`]
//! returns bytes for QEMU, and [`Client::poll_event`] returns events.

use std::collections::VecDeque;

use crate::json::Json;
use crate::lines::{LINE_MAX, Line, Lines};
use crate::message::{Message, command};

/// An event of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// Greeted and negotiated: commands may be sent.
    Ready,
    /// The answer to the oldest command still open.
    Answer(Result<Json, QmpError>),
    /// An event, by name.
    Event(String),
    /// The other end does not speak QMP as it should; the conversation is over.
    Broken(String),
}

/// QEMU's refusal of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpError {
    /// The error class, e.g. `GenericError`.
    pub class: String,
    /// QEMU's words, in one line.
    pub desc: String,
}

impl std::fmt::Display for QmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.class, self.desc)
    }
}

impl std::error::Error for QmpError {}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Negotiating,
    Ready,
    Broken,
}

/// The conversation.
#[derive(Debug)]
pub struct Client {
    state: State,
    lines: Lines,
    out: VecDeque<u8>,
    events: VecDeque<ClientEvent>,
    open: VecDeque<u64>,
    next: u64,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// Returns a conversation in which nothing was received yet.
    pub fn new() -> Self {
        Self {
            state: State::Greeting,
            lines: Lines::new(LINE_MAX),
            out: VecDeque::new(),
            events: VecDeque::new(),
            open: VecDeque::new(),
            next: 1,
        }
    }

    /// Takes bytes from QEMU.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        let mut found = Vec::new();
        self.lines.push(bytes, |line| found.push(line));
        for line in found {
            match line {
                Line::Whole(line) => match Message::parse(&line) {
                    Ok(message) => self.message(message),
                    Err(error) => self.broken(error.to_string()),
                },
                Line::TooLong(length) => self.broken(format!("a message of {length} bytes")),
            }
        }
    }

    /// Queues a command. Answers are returned in the order of the commands.
    pub fn execute(&mut self, name: &str, arguments: Option<Json>) {
        let id = self.next;
        self.next += 1;
        self.open.push_back(id);
        self.out.extend(command(name, arguments, id_of(id)));
    }

    /// Takes back the command given last, when nothing else waits to be sent and no byte of it was.
    pub fn take_back(&mut self) {
        self.open.pop_back();
        self.out.clear();
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Returns bytes to send. [`Client::handle_transmitted`] takes the number of those sent.
    pub fn poll_transmit(&self) -> &[u8] {
        self.out.as_slices().0
    }

    /// Removes `count` bytes of [`Client::poll_transmit`], which were sent.
    pub fn handle_transmitted(&mut self, count: usize) {
        self.out.drain(..count.min(self.out.len()));
    }

    fn message(&mut self, message: Message) {
        match (&self.state, message) {
            (State::Broken, _) => {}
            (State::Greeting, Message::Greeting(_)) => {
                self.state = State::Negotiating;
                self.out
                    .extend(command("qmp_capabilities", None, Json::Int(0)));
            }
            // Events arrive at any time: QEMU opens a monitor while it does other things.
            (_, Message::Event { name, .. }) => self.events.push_back(ClientEvent::Event(name)),
            (State::Greeting, _) => self.broken("no greeting came first".into()),
            (_, Message::Greeting(_)) => self.broken("a second greeting came".into()),
            (
                State::Negotiating,
                Message::Return {
                    id: Json::Int(0), ..
                },
            ) => {
                self.state = State::Ready;
                self.events.push_back(ClientEvent::Ready);
            }
            (State::Negotiating, Message::Error { class, desc, .. }) => {
                self.broken(format!("capabilities were refused: {class}: {desc}"));
            }
            (_, Message::Return { id, value }) => self.answer(&id, Ok(value)),
            (_, Message::Error { id, class, desc }) => {
                // QEMU answers a command that it cannot parse without its id.
                let id = match (id, self.open.front()) {
                    (Json::Null, Some(open)) => id_of(*open),
                    (id, _) => id,
                };
                self.answer(&id, Err(QmpError { class, desc }));
            }
        }
    }

    fn answer(&mut self, id: &Json, answer: Result<Json, QmpError>) {
        match self.open.front() {
            Some(open) if *id == id_of(*open) => {
                self.open.pop_front();
                self.events.push_back(ClientEvent::Answer(answer));
            }
            _ => self.broken(format!("an answer to {id}, which was not asked")),
        }
    }

    fn broken(&mut self, why: String) {
        if self.state != State::Broken {
            self.state = State::Broken;
            self.events.push_back(ClientEvent::Broken(why));
        }
    }
}

fn id_of(number: u64) -> Json {
    i64::try_from(number).map_or(Json::Null, Json::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}}}\r\n";

    fn sent(client: &mut Client) -> String {
        let mut text = Vec::new();
        while !client.poll_transmit().is_empty() {
            text.extend_from_slice(client.poll_transmit());
            client.handle_transmitted(client.poll_transmit().len());
        }
        String::from_utf8(text).unwrap()
    }

    fn ready() -> Client {
        let mut client = Client::new();
        client.handle_bytes(GREETING);
        assert_eq!(
            sent(&mut client),
            "{\"execute\":\"qmp_capabilities\",\"id\":0}
"
        );
        client.handle_bytes(b"{\"return\": {}, \"id\": 0}\r\n");
        assert_eq!(client.poll_event(), Some(ClientEvent::Ready));
        client
    }

    #[test]
    fn nothing_is_sent_before_the_greeting() {
        let mut client = Client::new();
        assert_eq!(sent(&mut client), "");
        client.handle_bytes(b"{\"return\": {}}\r\n");
        assert!(matches!(client.poll_event(), Some(ClientEvent::Broken(_))));
    }

    #[test]
    fn an_event_before_the_greeting_is_an_event() {
        let mut client = Client::new();
        client.handle_bytes(b"{\"event\": \"STOP\"}\r\n");
        assert_eq!(client.poll_event(), Some(ClientEvent::Event("STOP".into())));
        assert_eq!(sent(&mut client), "");
        client.handle_bytes(GREETING);
        assert!(sent(&mut client).contains("qmp_capabilities"));
        client.handle_bytes(b"{\"event\": \"RESUME\"}\r\n{\"return\": {}, \"id\": 0}\r\n");
        assert_eq!(
            client.poll_event(),
            Some(ClientEvent::Event("RESUME".into()))
        );
        assert_eq!(client.poll_event(), Some(ClientEvent::Ready));
    }

    #[test]
    fn answers_pair_with_commands_in_order() {
        let mut client = ready();
        client.execute("stop", None);
        client.execute("cont", Some(crate::json::map([("a", Json::Int(1))])));
        assert_eq!(sent(&mut client).lines().count(), 2);
        client.handle_bytes(b"{\"event\": \"STOP\"}\r\n{\"return\": {}, \"id\": 1}\r\n");
        assert_eq!(client.poll_event(), Some(ClientEvent::Event("STOP".into())));
        assert_eq!(
            client.poll_event(),
            Some(ClientEvent::Answer(Ok(Json::Map(Vec::new()))))
        );
        client.handle_bytes(
            b"{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
        );
        let error = QmpError {
            class: "GenericError".into(),
            desc: "no".into(),
        };
        assert_eq!(client.poll_event(), Some(ClientEvent::Answer(Err(error))));
        assert_eq!(client.poll_event(), None);
    }

    #[test]
    fn what_was_taken_back_is_neither_sent_nor_answered() {
        let mut client = ready();
        client.execute("cont", None);
        sent(&mut client);
        client.execute("add-fd", None);
        client.take_back();
        assert_eq!(client.poll_transmit(), b"");
        client.handle_bytes(b"{\"return\": {}, \"id\": 1}\r\n");
        assert_eq!(
            client.poll_event(),
            Some(ClientEvent::Answer(Ok(Json::Map(Vec::new()))))
        );
        client.execute("stop", None);
        assert_eq!(sent(&mut client).lines().count(), 1);
        client.handle_bytes(b"{\"return\": {}, \"id\": 3}\r\n");
        assert_eq!(
            client.poll_event(),
            Some(ClientEvent::Answer(Ok(Json::Map(Vec::new()))))
        );
    }

    #[test]
    fn an_error_without_an_id_answers_the_command_that_is_out() {
        let mut client = ready();
        client.execute("cont", None);
        client.execute("stop", None);
        let refusal = b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"not parsed\"}}\r\n";
        client.handle_bytes(refusal);
        assert!(
            matches!(client.poll_event(), Some(ClientEvent::Answer(Err(error))) if error.desc == "not parsed")
        );
        client.handle_bytes(b"{\"return\": {}, \"id\": 2}\r\n");
        assert_eq!(
            client.poll_event(),
            Some(ClientEvent::Answer(Ok(Json::Map(Vec::new()))))
        );
        client.handle_bytes(refusal);
        assert!(
            matches!(client.poll_event(), Some(ClientEvent::Broken(_))),
            "none is out"
        );
    }

    #[test]
    fn an_answer_nobody_asked_for_ends_it() {
        for line in [
            &b"{\"return\":{},\"id\":9}\n"[..],
            b"{\"return\":{}}\n",
            GREETING,
            b"x\n",
        ] {
            let mut client = ready();
            client.execute("cont", None);
            client.handle_bytes(line);
            assert!(
                matches!(client.poll_event(), Some(ClientEvent::Broken(_))),
                "{line:?}"
            );
            client.handle_bytes(b"{\"return\": {}, \"id\": 1}\r\n");
            assert_eq!(client.poll_event(), None);
        }
    }
}
