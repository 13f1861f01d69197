//! The properties of T. Leonard's TLA+ specification of vchan (talex5/spec-vchan, `vchan.tla`), of
//! the ring as it is written here: every reachable state of a small model is visited.
//!
//! The model is the specification's: a sender, a receiver, each with a process that may close its
//! end at any moment, and spurious events; a buffer of two units, messages of one or two, three
//! units in all. But the steps that touch shared memory are the library's own operations on a real
//! control page, in the order in which `reader.rs` and `writer.rs` make them. A unit is 512 bytes,
//! because the smallest ring holds 1024.
//!
//! | here | there |
//! |---|---|
//! | `integrity` | `Integrity`, `IntegrityI` |
//! | `types_ok` | `TypeOK` |
//! | `notify_flags_correct` | `NotifyFlagsCorrect` |
//! | `information_is_accurate_before_sleeping` | `SenderInfoAccurate`, `ReceiverInfoAccurate` |
//! | `never_both_asleep` | deadlock freedom |
//! | `availability` | `Availability` |
//! | `shutdown_ok` | `ShutdownOK`, `CloseOK` |
//!
//! What happens between the single loads and stores of an operation is for `tests/loom.rs`.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use xen_vchan::ring::{Consumer, Producer, Rings, Role};
use xen_vchan::{Geometry, Memory};

const UNIT: usize = 512;
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
const CLI_NOTIFY: usize = 22;
const SRV_NOTIFY: usize = 23;
const WRITE: u8 = 1;
const READ: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
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
enum Receiver {
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

/// Who takes a step, and which of its choices.
type Step = (u8, u8);

struct Model {
    page: Memory,
    tx: Producer,
    rx: Consumer,
    sender: Sender,
    receiver: Receiver,
    /// The receiver has asked to be told since it last slept or read.
    asked: bool,
    sender_live: bool,
    receiver_live: bool,
    /// A close that has not rung yet.
    sender_rings: bool,
    receiver_rings: bool,
    data_event: bool,
    space_event: bool,
    sent: u8,
    /// Units of the message not written yet.
    left: u8,
    got: u8,
    /// The sender closed with a message half written.
    unclean: bool,
}

impl Model {
    fn new() -> Self {
        let page = Memory::heap(4096);
        // Just before the wrap of the cursors.
        for at in [0, 4, 8, 12] {
            page.atomic_u32(at)
                .unwrap()
                .store(u32::MAX - 511, Ordering::Relaxed);
        }
        let rings = Rings::new(&page, Geometry::new(10, 11).unwrap(), None, None).unwrap();
        Self {
            tx: rings.producer(Role::Client).unwrap(),
            rx: rings.consumer(Role::Server).unwrap(),
            page,
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

    /// The steps that can be taken. Those of process 0 and 2 and the bells of a close happen sooner or
    /// later; a message, a close or a spurious event may never come.
    fn steps(&self) -> Vec<Step> {
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

    fn fair_steps(&self) -> Vec<Step> {
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

    fn step(&mut self, (process, choice): Step) {
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
        self.page.atomic_u32(at).unwrap().load(Ordering::Relaxed)
    }

    /// Units in the buffer.
    fn filled(&self) -> u8 {
        (self.word(4).wrapping_sub(self.word(0)) as usize / UNIT) as u8
    }

    fn flag(&self, at: usize, bit: u8) -> bool {
        self.page.atomic_u8(at).unwrap().load(Ordering::Relaxed) & bit != 0
    }

    fn key(&self) -> Vec<u32> {
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
            self.word(0),
            self.word(4),
            self.tx.known_space() << 16 | self.tx.staged(),
            self.rx.known_ready() << 16 | self.rx.unreleased(),
        ]
    }
}

fn replay(path: &[Step]) -> Model {
    let mut model = Model::new();
    path.iter().for_each(|step| model.step(*step));
    model
}

/// A path to every reachable state.
fn states() -> &'static [Vec<Step>] {
    static STATES: OnceLock<Vec<Vec<Step>>> = OnceLock::new();
    STATES.get_or_init(|| {
        let mut seen = HashSet::from([Model::new().key()]);
        let mut all = vec![Vec::new()];
        let mut next = VecDeque::from([Vec::new()]);
        while let Some(path) = next.pop_front() {
            for step in replay(&path).steps() {
                let mut longer = path.clone();
                longer.push(step);
                if seen.insert(replay(&longer).key()) {
                    all.push(longer.clone());
                    next.push_back(longer);
                }
            }
        }
        println!("{} states", all.len());
        assert!(all.len() > 10_000, "the model does not get anywhere");
        all
    })
}

fn everywhere(check: impl Fn(&Model)) {
    for path in states() {
        let model = replay(path);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&model)));
        if let Err(panic) = checked {
            println!("after {path:?}: {:?}, {:?}", model.sender, model.receiver);
            std::panic::resume_unwind(panic);
        }
    }
}

/// From every state: only what must happen happens, until nothing more does.
fn in_the_end(check: impl Fn(&Model)) {
    for path in states() {
        let mut model = replay(path);
        for turn in 0.. {
            let steps = model.fair_steps();
            let Some(step) = steps.get(turn % steps.len().max(1)) else {
                break;
            };
            model.step(*step);
            assert!(turn < 500, "no end after {path:?}");
        }
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&model)));
        if let Err(panic) = checked {
            println!(
                "in the end of {path:?}: {:?}, {:?}",
                model.sender, model.receiver
            );
            std::panic::resume_unwind(panic);
        }
    }
}

/// What was received is the beginning of what was sent; nothing is anywhere but in the message, the
/// buffer or the receiver's hands.
#[test]
fn integrity() {
    everywhere(|model| {
        let staged = (model.tx.staged() as usize / UNIT) as u8;
        let held = (model.rx.unreleased() as usize / UNIT) as u8;
        assert_eq!(
            model.sent,
            model.got - held + model.filled() + staged + model.left
        );
    });
}

#[test]
fn types_ok() {
    everywhere(|model| {
        assert!(model.filled() <= 2);
        // Stale knowledge only hides bytes and room.
        let staged = (model.tx.staged() as usize / UNIT) as u8;
        assert!(model.tx.known_space() as usize / UNIT <= usize::from(2 - model.filled() - staged));
        let held = (model.rx.unreleased() as usize / UNIT) as u8;
        assert!(model.rx.known_ready() as usize / UNIT <= usize::from(model.filled() - held));
    });
}

#[test]
fn notify_flags_correct() {
    everywhere(|model| {
        let live = model.sender_live && model.receiver_live;
        if live && model.receiver == Receiver::Blocked {
            assert!(
                model.flag(CLI_NOTIFY, WRITE) || model.data_event || model.sender == Sender::Notify
            );
        }
        if live && model.sender == Sender::Blocked {
            assert!(
                model.flag(SRV_NOTIFY, READ)
                    || model.space_event
                    || model.receiver == Receiver::Notify
            );
        }
    });
}

/// While a request stands and no event has come, who sleeps is right to sleep.
#[test]
fn information_is_accurate_before_sleeping() {
    everywhere(|model| {
        let live = model.sender_live && model.receiver_live;
        let asleep = live && model.receiver == Receiver::Blocked && !model.data_event;
        if asleep && model.flag(CLI_NOTIFY, WRITE) {
            assert_eq!(model.filled(), 0);
        }
        let asleep = live && model.sender == Sender::Blocked && !model.space_event;
        if asleep && model.flag(SRV_NOTIFY, READ) {
            assert_eq!(model.filled(), 2);
        }
    });
}

#[test]
fn never_both_asleep() {
    everywhere(|model| {
        let sender = model.sender == Sender::Blocked && !model.space_event;
        let receiver = model.receiver == Receiver::Blocked && !model.data_event;
        assert!(!(sender && receiver));
    });
}

/// What was sent arrives, unless the receiver closes, or the sender in the middle of a message.
#[test]
fn availability() {
    in_the_end(|model| {
        if model.receiver_live && !model.unclean {
            assert_eq!((model.got, model.left), (model.sent, 0));
        }
    });
}

/// When either side has closed, both come to their ends.
#[test]
fn shutdown_ok() {
    in_the_end(|model| {
        if !model.sender_live || !model.receiver_live {
            assert!(matches!(model.sender, Sender::Ready | Sender::Done));
            assert_eq!(model.receiver, Receiver::Done);
        }
    });
}
