//! A client that sends exactly the bytes of the test and shows exactly what arrives.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use xen_store::Store;
use xen_store::wire::{Decoder, Message, MsgType, encode, strings};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

/// Bytes instead of a [`Store`].
#[derive(Debug)]
pub(crate) struct Raw {
    stream: UnixStream,
    decoder: Decoder,
    unread: Vec<u8>,
    next_id: u32,
}

/// A message for comparing: `READ "value"`, `ERROR ENOENT`, `EVENT /path token`.
fn show(message: &Message) -> String {
    let fields: Vec<String> = strings(&message.payload)
        .map(|field| field.escape_ascii().to_string())
        .collect();
    match message.kind {
        MsgType::WATCH_EVENT => format!("EVENT {}", fields.join(" ")),
        MsgType::ERROR => format!("ERROR {}", fields.join(" ")),
        kind => format!("{kind} \"{}\"", message.payload.escape_ascii()),
    }
}

impl Raw {
    pub(crate) fn connect(server: &Server, domain: DomId) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        server.add_connection(theirs.into(), domain);
        // Nothing takes this long; a test that waits forever reports less than one that fails.
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream: ours,
            decoder: Decoder::new(),
            unread: Vec::new(),
            next_id: 1,
        }
    }

    pub(crate) fn send(&mut self, kind: MsgType, tx: u32, payload: &[u8]) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.send_bytes(&encode(kind, id, tx, &[payload]).unwrap());
        id
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next message; `None` if the daemon closed the connection.
    pub(crate) fn recv(&mut self) -> Option<Message> {
        loop {
            let mut input = self.unread.as_slice();
            let message = self.decoder.next(&mut input).unwrap();
            let left = input.len();
            self.unread.drain(..self.unread.len() - left);
            if message.is_some() {
                return message;
            }
            let mut buf = [0; 4096];
            match self.stream.read(&mut buf).unwrap_or(0) {
                0 => return None,
                n => self.unread.extend_from_slice(&buf[..n]),
            }
        }
    }

    /// The next message as text.
    #[track_caller]
    pub(crate) fn next(&mut self) -> String {
        show(&self.recv().expect("a message"))
    }

    /// Sends a request and returns the reply; there must be nothing before it.
    #[track_caller]
    pub(crate) fn ask(&mut self, kind: MsgType, payload: &[u8]) -> String {
        self.ask_in(0, kind, payload)
    }

    #[track_caller]
    pub(crate) fn ask_in(&mut self, tx: u32, kind: MsgType, payload: &[u8]) -> String {
        let id = self.send(kind, tx, payload);
        let message = self.recv().expect("a reply");
        assert_eq!(
            (message.req_id, message.tx_id),
            (id, tx),
            "{}",
            show(&message)
        );
        show(&message)
    }

    /// The messages up to and including the reply to one more request, which is left out.
    pub(crate) fn drain(&mut self) -> Vec<String> {
        let id = self.send(MsgType::GET_DOMAIN_PATH, 0, b"0\0");
        let mut messages = Vec::new();
        loop {
            let message = self.recv().expect("a message");
            if message.req_id == id && message.kind == MsgType::GET_DOMAIN_PATH {
                return messages;
            }
            messages.push(show(&message));
        }
    }
}

/// A daemon with domains 5 and 6.
pub(crate) fn start() -> Server {
    start_with(Config::new())
}

pub(crate) fn start_with(config: Config) -> Server {
    let server = Server::start(config).unwrap();
    assert!(server.add_domain(DomId::new(5)) && server.add_domain(DomId::new(6)));
    server
}

pub(crate) fn dom(id: u16) -> DomId {
    DomId::new(id)
}

/// Clients of domains 0 and 5.
pub(crate) fn clients(server: &Server) -> (Store, Store) {
    (
        server.connect(dom(0)).unwrap(),
        server.connect(dom(5)).unwrap(),
    )
}

/// The name of the error.
#[track_caller]
pub(crate) fn name<T: std::fmt::Debug>(result: xen_store::Result<T>) -> String {
    match result {
        Err(xen_store::Error::Daemon { code, .. }) => code.name().to_owned(),
        Err(xen_store::Error::NotOffered { .. }) => "ENOSYS".to_owned(),
        other => panic!("expected the daemon's refusal, got {other:?}"),
    }
}
