//! A client's state machine with a daemon that is right, or hostile.
//!
//! A finding is a panic, a request that is answered twice, never or with another one's answer, an
//! answer or event that is not announced, a connection that ends although the daemon was right, and
//! more held than may be.

use std::collections::{HashSet, VecDeque};

use xen_store::proto::{Connection, Failure, Quirks, Ready, RequestId, WatchId};
use xen_store::wire::{Decoder, Message, MsgType, PAYLOAD_MAX, encode};
use xen_store::{Error, MAX_DISTINCT_PATHS};

use super::input::Input;

const KINDS: &[MsgType] = &[
    MsgType::READ,
    MsgType::WRITE,
    MsgType::WATCH,
    MsgType::UNWATCH,
    MsgType::TRANSACTION_START,
    MsgType::TRANSACTION_END,
    MsgType::DIRECTORY,
    MsgType::WATCH_EVENT,
    MsgType::ERROR,
];
/// The first so many are requests.
const REQUESTS: usize = 7;
/// Requests that are waited for, and watches held, at the same time.
const MOST: usize = 64;

struct Bench {
    connection: Connection,
    /// Each with what a right daemon answers.
    waiting: Vec<(RequestId, Vec<u8>)>,
    watches: Vec<WatchId>,
    announced: HashSet<Ready>,
    next: u32,
    /// Requests that the daemon has read and not answered.
    asked: VecDeque<Message>,
    reader: Decoder,
    /// On its way to the client.
    line: Vec<u8>,
    /// The daemon was not right.
    hostile: bool,
}

impl Bench {
    fn ask(&mut self, input: &mut Input<'_>) {
        if self.waiting.len() >= MOST {
            return;
        }
        let kind = input.pick(&KINDS[..REQUESTS]);
        self.next += 1;
        let payload = self.next.to_string().into_bytes();
        match self.connection.request(kind, 0, &[&payload]) {
            Ok(id) => self.waiting.push((id, payload)),
            Err(_) => assert!(self.connection.failure().is_some(), "it is refused"),
        }
    }

    /// The client writes up to `most` bytes of its next message.
    fn write(&mut self, most: usize) -> bool {
        let Some(mut message) = self.connection.poll_outgoing() else {
            return false;
        };
        let bytes = message.unsent();
        let bytes = bytes[..most.min(bytes.len())].to_vec();
        let mut rest = bytes.as_slice();
        while let Some(message) = self.reader.next(&mut rest).expect("it is too long") {
            self.asked.push_back(message);
        }
        if !message.advance(bytes.len()) {
            self.connection.put_back(message);
        }
        true
    }

    /// A right answer to what was asked first.
    fn answer(&mut self, refused: bool) -> bool {
        let Some(asked) = self.asked.pop_front() else {
            return false;
        };
        let (kind, payload) = match refused {
            true => (MsgType::ERROR, b"ENOENT\0".to_vec()),
            false => (asked.kind, asked.payload),
        };
        self.line
            .extend(encode(kind, asked.req_id, asked.tx_id, &[&payload]).unwrap());
        true
    }

    fn event(&mut self, input: &mut Input<'_>) {
        let known = self.watches.get(usize::from(input.byte()) % MOST);
        let token = known.map_or_else(|| "ffff".to_owned(), |watch| Connection::token(*watch));
        let payload = format!("/w/{}\0{token}\0", input.byte());
        self.line
            .extend(encode(MsgType::WATCH_EVENT, 0, 0, &[payload.as_bytes()]).unwrap());
    }

    /// Anything a daemon can send.
    fn lie(&mut self, input: &mut Input<'_>) {
        self.hostile = true;
        match input.byte() % 4 {
            0 => {
                let most = usize::from(input.byte() % 64);
                self.line.extend_from_slice(input.bytes(most));
            }
            1 => {
                let (kind, id) = (input.pick(KINDS), u32::from(input.byte()));
                self.line
                    .extend(encode(kind, id, 0, &[input.bytes(8)]).unwrap());
            }
            2 => {
                let mut bytes = encode(input.pick(KINDS), u32::from(input.byte()), 0, &[]).unwrap();
                let len =
                    (PAYLOAD_MAX as u32 - 2) + (u32::from(input.byte()) << (input.byte() % 24));
                bytes[12..].copy_from_slice(&len.to_ne_bytes());
                self.line.extend(bytes);
                self.line.resize(self.line.len() + 5000, b'x');
            }
            _ => {
                let many = usize::from(input.byte()) * 8;
                for n in 0..many {
                    let token = self
                        .watches
                        .first()
                        .map_or("1".to_owned(), |w| Connection::token(*w));
                    let payload = format!("/w/{n}\0{token}\0");
                    let event = encode(MsgType::WATCH_EVENT, 0, 0, &[payload.as_bytes()]);
                    self.line.extend(event.unwrap());
                }
            }
        }
    }

    fn deliver(&mut self, most: usize) {
        let now: Vec<u8> = self.line.drain(..most.min(self.line.len())).collect();
        let received = self.connection.handle_input(&now);
        assert_eq!(received.is_err(), self.connection.failure().is_some());
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(ready) = self.connection.poll_ready() {
            self.announced.insert(ready);
        }
        match self.connection.failure() {
            None => assert!(!self.announced.contains(&Ready::Ended), "it has not ended"),
            Some(failure) => {
                assert!(self.hostile, "{failure:?} although the daemon was right");
                assert!(
                    self.announced.contains(&Ready::Ended),
                    "the end is not announced"
                );
                assert!(!self.connection.has_outgoing());
            }
        }
    }

    /// Takes the answer to one request, if there is one.
    fn take(&mut self, at: usize) {
        let (id, want) = self.waiting[at].clone();
        let Some(reply) = self.connection.poll_reply(id) else {
            return;
        };
        self.settle();
        let ended = self.announced.contains(&Ready::Ended);
        assert!(
            ended || self.announced.contains(&Ready::Reply(id)),
            "not announced"
        );
        self.waiting.swap_remove(at);
        assert!(self.connection.poll_reply(id).is_none(), "answered twice");
        match reply {
            Ok(payload) => {
                assert!(self.hostile || payload == want, "another one's answer");
                assert!(payload.len() <= PAYLOAD_MAX);
            }
            Err(Error::Daemon { .. }) => {}
            Err(error) => assert!(self.hostile, "{error}"),
        }
    }

    fn take_events(&mut self, watch: WatchId) {
        let mut count = 0;
        while let Some(Ok(_)) = self.connection.poll_event(watch) {
            count += 1;
            assert!(count <= MAX_DISTINCT_PATHS, "too many events wait");
            self.settle();
            let ended = self.announced.contains(&Ready::Ended);
            assert!(
                ended || self.announced.contains(&Ready::Event(watch)),
                "not announced"
            );
        }
        self.announced.remove(&Ready::Event(watch));
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let (code, at) = (input.byte(), usize::from(input.byte()));
        let waiting = (!self.waiting.is_empty()).then(|| at % self.waiting.len().max(1));
        let watch = (!self.watches.is_empty()).then(|| at % self.watches.len().max(1));
        match (code % 16, waiting, watch) {
            (0..=2, ..) => self.ask(input),
            (3 | 4, ..) => {
                self.write(at.max(1));
            }
            (5 | 6, ..) => {
                self.answer(at % 8 == 0);
            }
            (7 | 8, ..) => self.deliver(at + 1),
            (9, Some(at), _) => self.take(at),
            (10, Some(at), _) => {
                let (id, _) = self.waiting.swap_remove(at);
                let watch = self.watches.first().copied().filter(|_| input.byte() < 128);
                self.connection.cancel(id, code < 128, watch);
                assert!(self.connection.poll_reply(id).is_none(), "it was given up");
            }
            (11, ..) if self.watches.len() < MOST => {
                self.watches.push(self.connection.add_watch("/w"));
            }
            (12, _, Some(at)) if code < 64 => {
                let watch = self.watches.swap_remove(at);
                self.connection.remove_watch(watch);
            }
            (12, _, Some(at)) => self.take_events(self.watches[at]),
            (13, ..) => self.event(input),
            (14, ..) if code < 96 => self.lie(input),
            (15, ..) if code < 64 => {
                if let Some(message) = self.connection.poll_outgoing() {
                    // Only the kernel's device refuses, and only whole messages.
                    match message.unsent().len() >= 16 && !self.reader.is_mid_message() {
                        true => self.connection.handle_rejection(&message, 22),
                        false => self.connection.put_back(message),
                    }
                }
            }
            _ => {}
        }
        self.settle();
    }

    /// The daemon is right from here on, or gone.
    fn end(mut self) {
        if self.hostile {
            self.connection.handle_failure(Failure::Closed);
            self.hostile = true;
        } else {
            while self.write(usize::MAX) | self.answer(false) | !self.line.is_empty() {
                self.deliver(usize::MAX);
            }
        }
        self.settle();
        for watch in self.watches.clone() {
            self.take_events(watch);
        }
        while let Some(last) = self.waiting.len().checked_sub(1) {
            self.take(last);
            assert!(self.waiting.len() <= last, "a request is never answered");
        }
        assert_eq!(self.connection.failure().is_some(), self.hostile);
    }
}

/// Runs an input.
pub(crate) fn client(data: &[u8]) {
    let mut input = Input(data);
    let quirks = input.pick(&[Quirks::SOCKET, Quirks::XENBUS]);
    let mut bench = Bench {
        connection: Connection::new(quirks),
        waiting: Vec::new(),
        watches: Vec::new(),
        announced: HashSet::new(),
        next: 0,
        asked: VecDeque::new(),
        reader: Decoder::new(),
        line: Vec::new(),
        hostile: false,
    };
    while !input.0.is_empty() {
        bench.act(&mut input);
    }
    bench.end();
}
