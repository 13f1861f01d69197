//! A daemon whose answers the test writes.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use xen_store::Store;
use xen_store::wire::{Decoder, Message, MsgType};

/// The daemon's end of a connection.
#[derive(Debug)]
pub(crate) struct FakeDaemon {
    stream: UnixStream,
    decoder: Decoder,
    unread: Vec<u8>,
}

/// A store and its daemon.
pub(crate) fn pair() -> (Store, FakeDaemon) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (
        Store::from_fd(ours.into()).unwrap(),
        FakeDaemon::new(theirs),
    )
}

impl FakeDaemon {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
            unread: Vec::new(),
        }
    }

    /// The next request; `None` when the client has closed.
    pub(crate) fn try_recv(&mut self) -> Option<Message> {
        loop {
            let mut input = self.unread.as_slice();
            let message = self
                .decoder
                .next(&mut input)
                .expect("the client keeps the limits");
            let left = input.len();
            self.unread.drain(..self.unread.len() - left);
            if message.is_some() {
                return message;
            }
            let mut buf = [0; 1024];
            match self.stream.read(&mut buf).unwrap() {
                0 => {
                    assert!(
                        !self.decoder.is_mid_message(),
                        "closed in the middle of a request"
                    );
                    return None;
                }
                n => self.unread.extend_from_slice(&buf[..n]),
            }
        }
    }

    #[track_caller]
    pub(crate) fn recv(&mut self) -> Message {
        self.try_recv().expect("a request")
    }

    /// Takes the request for the features, and the question before it.
    #[track_caller]
    pub(crate) fn features(&mut self, answer: &[u8]) {
        let question = self.expect(MsgType::GET_FEATURE, b"0\0");
        self.refuse(&question, "EACCES");
        let request = self.expect(MsgType::GET_FEATURE, b"");
        self.reply(&request, answer);
    }

    /// Fails if the client has sent more than was received. It had time to.
    #[track_caller]
    pub(crate) fn wait_idle(&mut self) {
        let limit = Some(Duration::from_millis(20));
        self.stream.set_read_timeout(limit).unwrap();
        let more = self.stream.read(&mut [0]);
        self.stream.set_read_timeout(None).unwrap();
        let nothing = more.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(nothing && self.unread.is_empty(), "more requests");
    }

    /// The next request, which has to be of this kind and payload.
    #[track_caller]
    pub(crate) fn expect(&mut self, kind: MsgType, payload: &[u8]) -> Message {
        let message = self.recv();
        assert_eq!(message.kind, kind);
        assert_eq!(
            message.payload.escape_ascii().to_string(),
            payload.escape_ascii().to_string()
        );
        message
    }

    pub(crate) fn send(&mut self, kind: MsgType, req_id: u32, tx_id: u32, payload: &[u8]) {
        let message = Message {
            kind,
            req_id,
            tx_id,
            payload: payload.to_vec(),
        };
        self.send_raw(&message.encode().unwrap());
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn reply(&mut self, to: &Message, payload: &[u8]) {
        self.send(to.kind, to.req_id, to.tx_id, payload);
    }

    pub(crate) fn ok(&mut self, to: &Message) {
        self.reply(to, b"OK\0");
    }

    pub(crate) fn refuse(&mut self, to: &Message, name: &str) {
        self.send(
            MsgType::ERROR,
            to.req_id,
            to.tx_id,
            format!("{name}\0").as_bytes(),
        );
    }

    pub(crate) fn event(&mut self, path: &str, token: &[u8]) {
        let payload = [path.as_bytes(), b"\0", token, b"\0"].concat();
        self.send(MsgType::WATCH_EVENT, 0, 0, &payload);
    }

    /// Takes a WATCH request for `path`, grants it and returns the token.
    #[track_caller]
    pub(crate) fn grant_watch(&mut self, path: &str) -> Vec<u8> {
        let request = self.recv();
        assert_eq!(request.kind, MsgType::WATCH);
        let token = token_of(&request.payload, path);
        self.ok(&request);
        token
    }

    /// Answers every request with OK until the client closes.
    pub(crate) fn serve_ok(&mut self) {
        while let Some(request) = self.try_recv() {
            self.ok(&request);
        }
    }
}

/// The second field of a payload whose first is `path`.
#[track_caller]
pub(crate) fn token_of(payload: &[u8], path: &str) -> Vec<u8> {
    let fields: Vec<&[u8]> = payload.split(|&byte| byte == 0).collect();
    assert_eq!(fields.len(), 3, "two fields, each with its NUL");
    assert_eq!(fields[0], path.as_bytes());
    fields[1].to_vec()
}
