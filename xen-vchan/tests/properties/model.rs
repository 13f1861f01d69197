//! The model: two processes, a ring, and the steps that each can make.

use std::sync::atomic::Ordering;

use xen_vchan::Geometry;
use xen_vchan::ring::{Consumer, ControlWords, Producer, Role};

use crate::page::{self, CLI_NOTIFY, LEFT_CONS, LEFT_PROD, READ, SRV_NOTIFY, WRITE};

pub(crate) const UNIT: usize = 512;
/// Units that the sender may send in all.
const LIMIT: u8 = 3;
/// Unit `n` is made of bytes `n + 1`.
static STREAM: [u8; LIMIT as usize * UNIT] = {
    let mut bytes = [0; LIMIT as usize * UNIT];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at / UNIT) as u8 + 1;
        at += 1;
    }
    bytes
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// In the hands of the application.
    Ready,
    Write,
    Request,
    Recheck,
    Publish,
    Notify,
    Blocked,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    Fetch,
    CheckLive,
    FinalFetch,
    Request,
    Take,
    Release,
    Notify,
    Blocked,
    Done,
}

/// The process that takes a step, and which of its choices.
pub(crate) type Step = (u8, u8);

pub(crate) struct Model {
    words: ControlWords,
    pub(crate) tx: Producer,
    pub(crate) rx: Consumer,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// The receiver has asked for a notification since it last slept or read.
    asked: bool,
    pub(crate) sender_live: bool,
    pub(crate) receiver_live: bool,
    /// A close that has not rung yet.
    sender_rings: bool,
    receiver_rings: bool,
    pub(crate) data_event: bool,
    pub(crate) space_event: bool,
    pub(crate) sent: u8,
    /// Units of the message not written yet.
    pub(crate) left: u8,
    pub(crate) got: u8,
    /// The sender closed with a message half written.
    pub(crate) unclean: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        // Just before the wrap of the cursors.
        let start = u32::MAX - 511;
        let [client, server] = page::pair(Geometry::new(10, 11).unwrap(), start, start);
        let words = client.words().clone();
        let (tx, _) = client.attach(Role::Client).unwrap();
        let (_, rx) = server.attach(Role::Server).unwrap();
        Self {
            tx,
            rx,
            words,
            sender: Sender::Ready,
            receiver: Receiver::Fetch,
            asked: false,
            sender_live: true,
            receiver_live: true,
            sender_rings: false,
            receiver_rings: false,
            data_event: false,
            space_event: false,
            sent: 0,
            left: 0,
            got: 0,
            unclean: false,
        }
    }

    /// The steps that can be taken. Those of process 0 and 2 and the bells of a close happen sooner
    /// or later; a message, a close or a spurious event may never come.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps = self.fair_steps();
        if self.sender == Sender::Ready && self.sender_live {
            let most = (LIMIT - self.sent).min(2);
            steps.extend((1..=most).map(|units| (0, units)));
        }
        if self.receiver == Receiver::Take && self.rx.known_ready() as usize > UNIT {
            steps.push((2, 1));
        }
        if self.sender_live {
            steps.push((1, 0));
        }
        if self.receiver_live {
            steps.push((3, 0));
        }
        if !self.data_event {
            steps.push((4, 0));
        }
        if !self.space_event {
            steps.push((4, 1));
        }
        steps
    }

    pub(crate) fn fair_steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let sender = match self.sender {
            Sender::Ready => !self.sender_live || !self.receiver_live,
            Sender::Blocked => self.space_event || !self.sender_live,
            Sender::Done => false,
            _ => true,
        };
        if sender {
            steps.push((0, 0));
        }
        if self.sender_rings {
            steps.push((1, 1));
        }
        let receiver = match self.receiver {
            Receiver::Blocked => self.data_event || !self.receiver_live,
            Receiver::Done => false,
            _ => true,
        };
        if receiver {
            steps.push((2, 0));
        }
        if self.receiver_rings {
            steps.push((3, 1));
        }
        steps
    }

    pub(crate) fn step(&mut self, (process, choice): Step) {
        match (process, choice) {
            (0, units) => self.send(units),
            (1, 0) => {
                self.sender_live = false;
                self.sender_rings = true;
                self.unclean = self.left != 0 || self.tx.staged() != 0;
            }
            (1, _) => {
                self.sender_rings = false;
                self.data_event = true;
            }
            (2, fewer) => self.receive(fewer),
            (3, 0) => {
                self.receiver_live = false;
                self.receiver_rings = true;
            }
            (3, _) => {
                self.receiver_rings = false;
                self.space_event = true;
            }
            (_, 0) => self.data_event = true,
            _ => self.space_event = true,
        }
    }

    /// Stages what fits of the message; `false` if that is nothing.
    fn stage(&mut self) -> bool {
        let first = usize::from(self.sent - self.left);
        let bytes = &STREAM[first * UNIT..usize::from(self.sent) * UNIT];
        let len = self.tx.stage(bytes).unwrap();
        assert_eq!(len % UNIT, 0);
        self.left -= (len / UNIT) as u8;
        len != 0
    }

    fn send(&mut self, units: u8) {
        let sender = self.sender;
        self.sender = match sender {
            Sender::Ready if !self.sender_live || !self.receiver_live => Sender::Done,
            Sender::Ready => {
                self.left = units;
                self.sent += units;
                Sender::Write
            }
            Sender::Write | Sender::Recheck if !self.sender_live || !self.receiver_live => {
                Sender::Done
            }
            Sender::Write if self.stage() => Sender::Publish,
            Sender::Write => Sender::Request,
            Sender::Request => {
                self.tx.request();
                Sender::Recheck
            }
            Sender::Recheck if self.stage() => Sender::Publish,
            Sender::Recheck => Sender::Blocked,
            Sender::Publish if self.tx.publish() => Sender::Notify,
            Sender::Publish => self.written(),
            Sender::Notify => {
                self.data_event = true;
                self.written()
            }
            Sender::Blocked => {
                self.space_event = false;
                Sender::Write
            }
            Sender::Done => unreachable!(),
        };
    }

    fn written(&self) -> Sender {
        if self.left == 0 {
            Sender::Ready
        } else {
            Sender::Write
        }
    }

    fn receive(&mut self, fewer: u8) {
        let receiver = self.receiver;
        self.receiver = match receiver {
            Receiver::Fetch if !self.receiver_live => Receiver::Done,
            Receiver::Fetch if self.rx.refresh().unwrap() != 0 => Receiver::Take,
            Receiver::Fetch => Receiver::CheckLive,
            Receiver::CheckLive if !self.sender_live => Receiver::FinalFetch,
            Receiver::CheckLive if self.asked => Receiver::Blocked,
            Receiver::CheckLive => Receiver::Request,
            Receiver::FinalFetch if self.rx.refresh().unwrap() != 0 => Receiver::Take,
            Receiver::FinalFetch => Receiver::Done,
            Receiver::Request => {
                self.rx.request();
                self.asked = true;
                Receiver::Fetch
            }
            Receiver::Take => {
                let mut buf = [0; 2 * UNIT];
                let len = if fewer == 1 { UNIT } else { 2 * UNIT };
                let len = self.rx.take(&mut buf[..len]);
                let first = usize::from(self.got) * UNIT;
                assert!(buf[..len] == STREAM[first..first + len], "integrity");
                self.got += (len / UNIT) as u8;
                self.asked = false;
                Receiver::Release
            }
            Receiver::Release if self.rx.release() => Receiver::Notify,
            Receiver::Release => Receiver::Fetch,
            Receiver::Notify => {
                self.space_event = true;
                Receiver::Fetch
            }
            Receiver::Blocked => {
                self.data_event = false;
                self.asked = false;
                Receiver::Fetch
            }
            Receiver::Done => unreachable!(),
        };
    }

    fn word(&self, at: usize) -> u32 {
        page::peek(&self.words, at)
    }

    /// Units in the buffer.
    pub(crate) fn filled(&self) -> u8 {
        (self.word(LEFT_PROD).wrapping_sub(self.word(LEFT_CONS)) as usize / UNIT) as u8
    }

    pub(crate) fn flag(&self, at: usize, bit: u8) -> bool {
        self.words.atomic_u8(at).unwrap().load(Ordering::Relaxed) & bit != 0
    }

    pub(crate) fn key(&self) -> Vec<u32> {
        let bools = [
            self.asked,
            self.sender_live,
            self.receiver_live,
            self.sender_rings,
            self.receiver_rings,
            self.data_event,
            self.space_event,
            self.unclean,
            self.flag(CLI_NOTIFY, WRITE),
            self.flag(SRV_NOTIFY, READ),
        ];
        let bools = bools
            .iter()
            .fold(0, |all, flag| all << 1 | u32::from(*flag));
        vec![
            self.sender as u32,
            self.receiver as u32,
            bools,
            u32::from(self.sent) << 16 | u32::from(self.left) << 8 | u32::from(self.got),
            self.word(LEFT_CONS),
            self.word(LEFT_PROD),
            self.tx.known_space() << 16 | self.tx.staged(),
            self.rx.known_ready() << 16 | self.rx.unreleased(),
        ]
    }
}
