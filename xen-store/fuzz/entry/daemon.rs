//! An embedded daemon with an honest client in domain 0 and hostile ones in others.
//!
//! A finding is a panic, a reply to nothing asked or of another type, a hostile client that reads
//! or changes what is domain 0's, uses more than its quota, or makes more than a bounded amount
//! wait, and an honest client that is not answered.

use std::collections::HashMap;

use xen_store::wire::{Decoder, MsgType, encode};
use xen_store_server::{Config, ConnId, Daemon, Quota};
use xen_sys::DomId;

use super::input::Input;

const SECRET: &[u8] = b"domain 0 keeps this";
const DOMAINS: u16 = 3;
const NODES: u32 = 24;
const WATCHES: u32 = 8;
const TRANSACTIONS: u32 = 3;
/// Bytes that may wait for a client: its replies, a page of requests more, and 64 events of each
/// watch.
const WAITING: usize = (128 << 10) + (WATCHES as usize + 2) * 65 * (4096 + 16);

const KINDS: &[MsgType] = &[
    MsgType::CONTROL,
    MsgType::DIRECTORY,
    MsgType::READ,
    MsgType::GET_PERMS,
    MsgType::WATCH,
    MsgType::UNWATCH,
    MsgType::TRANSACTION_START,
    MsgType::TRANSACTION_END,
    MsgType::INTRODUCE,
    MsgType::RELEASE,
    MsgType::GET_DOMAIN_PATH,
    MsgType::WRITE,
    MsgType::MKDIR,
    MsgType::RM,
    MsgType::SET_PERMS,
    MsgType::WATCH_EVENT,
    MsgType::ERROR,
    MsgType::IS_DOMAIN_INTRODUCED,
    MsgType::RESUME,
    MsgType::SET_TARGET,
    MsgType::RESET_WATCHES,
    MsgType::DIRECTORY_PART,
    MsgType::GET_FEATURE,
    MsgType::SET_FEATURE,
    MsgType::GET_QUOTA,
    MsgType::SET_QUOTA,
    MsgType(20),
    MsgType(u32::MAX),
];

/// Parts of the payloads.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"/",
    b"data",
    b"data/a",
    b"data/a/b/c",
    b"/local/domain/1/data",
    b"/local/domain/2/data/x",
    b"/secret",
    b"/secret/below",
    b"/open",
    b"/open/x",
    b"@introduceDomain",
    b"@releaseDomain",
    b"T\0",
    b"F\0",
    b"n1\0",
    b"b0\0",
    b"r2\0",
    b"w3\0",
    b"0\0",
    b"1\0",
    b"4294967295\0",
    b"token\0",
    b"quota\0",
    b"nodes\0",
    b"print\0",
];

/// A client that sends any bytes and reads at any time.
struct Client {
    conn: ConnId,
    domain: u16,
    decoder: Decoder,
    /// The types of the requests with each id that are not answered.
    asked: HashMap<u32, Vec<MsgType>>,
    /// It has sent bytes that are no requests of ours: its open requests are unknown from then on.
    garbled: bool,
    next: u32,
    transactions: Vec<u32>,
}

impl Client {
    fn new(daemon: &mut Daemon, domain: u16) -> Self {
        Self {
            conn: daemon.connect(DomId::new(domain)),
            domain,
            decoder: Decoder::new(),
            asked: HashMap::new(),
            garbled: false,
            next: 1,
            transactions: Vec::new(),
        }
    }

    fn ask(&mut self, daemon: &mut Daemon, kind: MsgType, tx: u32, payload: &[u8]) {
        if !daemon.wants_input(self.conn) {
            return;
        }
        let Ok(bytes) = encode(kind, self.next, tx, &[payload]) else {
            return;
        };
        self.asked.entry(self.next).or_default().push(kind);
        self.next = self.next % 1000 + 1;
        daemon.handle_input(self.conn, &bytes);
    }

    /// Reads up to `most` bytes and judges them. Whether there were any.
    fn read(&mut self, daemon: &mut Daemon, most: usize) -> bool {
        let out = daemon.output(self.conn);
        let count = most.min(out.len());
        let bytes = out[..count].to_vec();
        daemon.handle_written(self.conn, count);
        let mut rest = bytes.as_slice();
        while let Ok(Some(message)) = self.decoder.next(&mut rest) {
            if self.domain != 0 {
                let found = message
                    .payload
                    .windows(SECRET.len())
                    .any(|seen| seen == SECRET);
                assert!(!found, "domain {} has read the secret", self.domain);
            }
            if message.kind == MsgType::WATCH_EVENT || self.garbled {
                continue;
            }
            let asked = self
                .asked
                .get_mut(&message.req_id)
                .filter(|asked| !asked.is_empty());
            let kind = asked.expect("a reply to nothing").remove(0);
            assert!(
                message.kind == kind || message.kind == MsgType::ERROR,
                "{kind} was answered with {}",
                message.kind
            );
            if message.kind == MsgType::TRANSACTION_START {
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                self.transactions
                    .extend(text.trim_end_matches('\0').parse::<u32>());
                self.transactions.truncate(8);
            }
        }
        assert!(rest.is_empty(), "a message that is too long");
        count > 0
    }
}

struct TestDaemon {
    daemon: Daemon,
    honest: Client,
    hostile: Vec<Client>,
}

impl TestDaemon {
    fn new() -> Self {
        let quota = Quota {
            nodes: NODES,
            watches: WATCHES,
            transactions: TRANSACTIONS,
            ..Quota::default()
        };
        let mut daemon = Daemon::new(Config::new().quota(quota).extensions(true));
        for domain in 1..=DOMAINS {
            daemon.add_domain(DomId::new(domain));
        }
        let honest = Client::new(&mut daemon, 0);
        let mut test = Self {
            daemon,
            honest,
            hostile: Vec::new(),
        };
        test.write(b"/secret", SECRET);
        test.write(b"/open", b"");
        // Every domain may write below it.
        test.answer(MsgType::SET_PERMS, b"/open\0b0\0");
        test
    }

    /// A request of the honest client's, and its answer.
    fn answer(&mut self, kind: MsgType, payload: &[u8]) {
        assert!(
            self.daemon.wants_input(self.honest.conn),
            "domain 0 is not read from"
        );
        self.honest.ask(&mut self.daemon, kind, 0, payload);
        while self.honest.read(&mut self.daemon, usize::MAX) {}
        let owed: usize = self.honest.asked.values().map(Vec::len).sum();
        assert_eq!(owed, 0, "domain 0 is not answered");
    }

    fn write(&mut self, path: &[u8], value: &[u8]) {
        self.answer(MsgType::WRITE, &[path, b"\0", value].concat());
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let code = input.byte();
        let at = usize::from(input.byte());
        if self.hostile.is_empty() || (code % 16 == 0 && self.hostile.len() < 5) {
            let domain = 1 + at as u16 % DOMAINS;
            self.hostile.push(Client::new(&mut self.daemon, domain));
            return;
        }
        let at = at % self.hostile.len();
        let client = &mut self.hostile[at];
        let daemon = &mut self.daemon;
        match code % 16 {
            1..=8 => {
                let kind = input.pick(KINDS);
                let tx = match input.byte() {
                    0..128 => 0,
                    128..240 => client.transactions.first().copied().unwrap_or(0),
                    other => u32::from(other),
                };
                let count = usize::from(input.byte() % 6);
                let mut payload = Vec::new();
                for _ in 0..count {
                    payload.extend_from_slice(input.pick(WORDS));
                    if input.byte() < 128 {
                        payload.push(0);
                    }
                }
                let more = usize::from(input.byte());
                match more {
                    0..128 => {}
                    128..200 => payload.extend_from_slice(input.bytes(more - 128)),
                    _ => payload.resize(payload.len() + (more - 200) * 75, b'v'),
                }
                client.ask(daemon, kind, tx, &payload);
            }
            9 | 10 => {
                client.read(daemon, usize::from(input.byte()));
            }
            11 | 12 => while client.read(daemon, usize::MAX) {},
            13 if daemon.wants_input(client.conn) => {
                client.garbled = true;
                let most = usize::from(input.byte() % 64);
                daemon.handle_input(client.conn, input.bytes(most));
            }
            14 => {
                let client = self.hostile.swap_remove(at);
                daemon.disconnect(client.conn);
            }
            15 => {
                let domain = DomId::new(client.domain);
                match input.byte() {
                    0..64 => daemon.release(domain),
                    64..128 => daemon.shutdown(domain),
                    128..200 => {
                        daemon.add_domain(domain);
                    }
                    other => daemon.set_target(domain, DomId::new(1 + u16::from(other) % DOMAINS)),
                }
            }
            _ => self.write(b"/local/domain/1/data/news", b"x"),
        }
        self.close();
    }

    /// As the event loop does, closes who is to be closed.
    fn close(&mut self) {
        let _ = self.daemon.poll_dirty();
        let daemon = &mut self.daemon;
        self.hostile.retain(|client| {
            let closing = daemon.is_closing(client.conn);
            if closing {
                daemon.disconnect(client.conn);
            }
            !closing
        });
        let stats = daemon.stats();
        // Domain 0's nodes: /, /tool, /tool/xenstored, /local, /local/domain, the homes, /secret,
        // /open, the news.
        let domain_0 = 8 + usize::from(DOMAINS);
        let domains = usize::from(DOMAINS);
        assert!(
            stats.nodes <= domain_0 + domains * (NODES as usize + 1),
            "{stats:?}"
        );
        assert!(
            stats.watches <= domains * (WATCHES as usize + 1),
            "{stats:?}"
        );
        assert!(
            stats.transactions <= domains * (TRANSACTIONS as usize + 1),
            "{stats:?}"
        );
    }

    fn end(mut self) {
        let out = |message: MsgType, payload: &[u8], test: &mut Self| {
            test.honest.ask(&mut test.daemon, message, 0, payload);
            let out = test.daemon.output(test.honest.conn).to_vec();
            test.daemon.handle_written(test.honest.conn, out.len());
            out
        };
        let read = out(MsgType::READ, b"/secret\0", &mut self);
        assert!(read.ends_with(SECRET), "the secret was changed");
        let perms = out(MsgType::GET_PERMS, b"/secret\0", &mut self);
        assert!(
            perms.ends_with(b"n0\0"),
            "the secret's permissions were changed"
        );
        for client in &mut self.hostile {
            let mut waiting = 0;
            loop {
                let count = self.daemon.output(client.conn).len();
                if !client.read(&mut self.daemon, usize::MAX) {
                    break;
                }
                waiting += count;
                assert!(waiting <= WAITING, "{waiting} bytes waited for one client");
            }
            self.daemon.disconnect(client.conn);
        }
        let stats = self.daemon.stats();
        assert_eq!(
            (stats.connections, stats.watches, stats.transactions),
            (1, 0, 0)
        );
    }
}

/// Runs an input.
pub(crate) fn daemon(data: &[u8]) {
    let mut test = TestDaemon::new();
    let mut input = Input(data);
    while !input.0.is_empty() {
        test.act(&mut input);
    }
    test.end();
}
