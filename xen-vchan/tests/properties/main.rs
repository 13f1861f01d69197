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
//! Interleavings of single loads and stores within an operation are for `tests/loom.rs`.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod model;
#[path = "../page/mod.rs"]
mod page;

use std::collections::{HashSet, VecDeque};
use std::sync::OnceLock;

use model::{Model, Receiver, Sender, Step, UNIT};
use page::{CLI_NOTIFY, READ, SRV_NOTIFY, WRITE};

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

/// The received bytes are a prefix of the sent ones; every byte is in the message, the buffer or
/// the receiver's hands.
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

/// A side that sleeps while a request is pending and there was no event is right to sleep.
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

/// Sent bytes arrive, unless the receiver closes, or the sender in the middle of a message.
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
