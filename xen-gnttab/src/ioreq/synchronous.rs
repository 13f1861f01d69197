//! The synchronous requests: a slot for each virtual CPU, whose state passes between Xen and here.
//!
//! ```text
//!   none ─ Xen ─> ready ─ take ─> in process ─ complete ─> answered ─ Xen ─> none
//! ```

use std::sync::atomic::{AtomicU32, Ordering};

use xen_sys::Port;
use xen_sys::abi::ioreq as abi;

use super::{Access, Data, IoreqError, MAX_REPETITIONS, Request, Space, cut};
use crate::Words;

/// Words of a slot, and the position of each field.
const SLOT: usize = size_of::<abi::Ioreq>() / 4;
const ADDRESS: usize = 0;
const DATA: usize = 2;
const COUNT: usize = 4;
const SIZE: usize = 5;
const PORT: usize = 6;
/// 16 bits of padding, the bit fields, the type.
const STATE: usize = 7;

/// The private state of a virtual CPU.
#[derive(Clone, Copy, Debug)]
struct Vcpu {
    port: Option<Port>,
    /// The next poll must look at its slot.
    pending: bool,
    /// The caller must notify its port.
    notify: bool,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Xen's turn.
    Idle,
    /// Ours: the state word as we left it, and the size of the data to answer with, or 0.
    InProcess { word: u32, size: u8 },
    /// It had an impossible request.
    Failed,
}

#[derive(Debug)]
pub(super) struct Slots {
    words: Words<AtomicU32>,
    vcpus: Vec<Vcpu>,
    /// Where the search for the next request, and for the next notification, begins.
    next: usize,
    next_notify: usize,
}

/// Returns the state from the state word.
fn state_of(word: u32) -> u8 {
    bits_of(word) & abi::STATE_MASK
}

fn bits_of(word: u32) -> u8 {
    (word >> 16) as u8
}

fn with_state(word: u32, state: u8) -> u32 {
    word & !(u32::from(abi::STATE_MASK) << 16) | u32::from(state) << 16
}

impl Slots {
    pub(super) fn new(words: Words<AtomicU32>) -> Self {
        let vcpu = Vcpu {
            port: None,
            pending: false,
            notify: false,
            state: State::Idle,
        };
        let vcpus = vec![vcpu; words.len() / SLOT];
        Self {
            words,
            vcpus,
            next: 0,
            next_notify: 0,
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    fn word(&self, vcpu: usize, word: usize) -> Option<&AtomicU32> {
        self.words.get(vcpu * SLOT + word)
    }

    /// Loads one word, once.
    fn load(&self, vcpu: usize, word: usize) -> u32 {
        let word = self.word(vcpu, word);
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn load_pair(&self, vcpu: usize, word: usize) -> u64 {
        u64::from(self.load(vcpu, word)) | u64::from(self.load(vcpu, word + 1)) << 32
    }

    pub(super) fn remote_port(&self, vcpu: u32) -> Option<Port> {
        let port = self.word(vcpu as usize, PORT)?;
        Some(Port::new(port.load(Ordering::Relaxed)))
    }

    pub(super) fn set_port(&mut self, vcpu: u32, port: Port) -> Result<(), IoreqError> {
        let known = self.vcpus.get_mut(vcpu as usize);
        let known = known.ok_or(IoreqError::NoVcpu { vcpu })?;
        known.port = Some(port);
        known.pending = true;
        Ok(())
    }

    pub(super) fn handle_event(&mut self, port: Port) -> bool {
        let vcpu = self.vcpus.iter_mut().find(|v| v.port == Some(port));
        vcpu.map(|vcpu| vcpu.pending = true).is_some()
    }

    /// Returns the next request, taking the virtual CPUs in turn.
    pub(super) fn poll(&mut self) -> Result<Option<Request>, IoreqError> {
        let count = self.vcpus.len();
        for at in (self.next..count).chain(0..self.next) {
            let Some(vcpu) = self.vcpus.get_mut(at) else {
                continue;
            };
            if !std::mem::take(&mut vcpu.pending) || !matches!(vcpu.state, State::Idle) {
                continue;
            }
            self.next = (at + 1) % count.max(1);
            match self.take(at) {
                Ok(None) => {}
                Ok(Some((request, state))) => {
                    self.vcpus[at].state = state;
                    return Ok(Some(request));
                }
                Err(error) => {
                    self.vcpus[at].state = State::Failed;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Takes the request of a virtual CPU, if there is one.
    fn take(&self, at: usize) -> Result<Option<(Request, State)>, IoreqError> {
        let vcpu = at as u32;
        let Some(state_word) = self.word(at, STATE) else {
            return Ok(None);
        };
        let word = state_word.load(Ordering::Acquire);
        match state_of(word) {
            abi::STATE_IOREQ_READY => {}
            abi::STATE_IOREQ_NONE | abi::STATE_IORESP_READY => return Ok(None),
            state => return Err(IoreqError::State { vcpu, state }),
        }
        let ours = with_state(word, abi::STATE_IOREQ_INPROCESS);
        exchange(state_word, vcpu, word, ours)?;

        let kind = (word >> 24) as u8;
        let (size, count) = (self.load(at, SIZE), self.load(at, COUNT));
        let data = self.load_pair(at, DATA);
        let space = Space::of(kind).ok_or(IoreqError::Kind {
            vcpu: Some(vcpu),
            kind,
        })?;
        let size = match size {
            1 | 2 | 4 | 8 => size as u8,
            size => return Err(IoreqError::Size { vcpu, size }),
        };
        if count > MAX_REPETITIONS {
            return Err(IoreqError::Repetitions { vcpu, count });
        }
        let bits = bits_of(word);
        let access = match bits & abi::DIR_READ {
            0 => Access::Write,
            _ => Access::Read,
        };
        let data = match bits & abi::DATA_IS_PTR {
            0 => Data::Value(cut(data, size)),
            _ => Data::Guest(data),
        };
        let answer = match (access, data) {
            (Access::Read, Data::Value(_)) => size,
            _ => 0,
        };
        let request = Request {
            vcpu: Some(vcpu),
            space,
            access,
            address: self.load_pair(at, ADDRESS),
            size,
            count,
            descending: bits & abi::DF != 0,
            data,
        };
        let state = State::InProcess {
            word: ours,
            size: answer,
        };
        Ok(Some((request, state)))
    }

    pub(super) fn complete(&mut self, vcpu: u32, data: u64) -> Result<(), IoreqError> {
        let at = vcpu as usize;
        let known = self.vcpus.get(at).ok_or(IoreqError::NoVcpu { vcpu })?;
        let State::InProcess { word, size } = known.state else {
            return Err(IoreqError::NotWaiting { vcpu });
        };
        let (Some(low), Some(high), Some(state_word)) = (
            self.word(at, DATA),
            self.word(at, DATA + 1),
            self.word(at, STATE),
        ) else {
            return Err(IoreqError::NoVcpu { vcpu });
        };
        if size != 0 {
            let data = cut(data, size);
            low.store(data as u32, Ordering::Relaxed);
            high.store((data >> 32) as u32, Ordering::Relaxed);
        }
        let answered = with_state(word, abi::STATE_IORESP_READY);
        let done = exchange(state_word, vcpu, word, answered);
        let known = &mut self.vcpus[at];
        known.state = match done {
            Ok(()) => State::Idle,
            Err(_) => State::Failed,
        };
        known.notify |= done.is_ok();
        done
    }

    pub(super) fn poll_notify(&mut self) -> Option<Port> {
        let count = self.vcpus.len();
        for at in (self.next_notify..count).chain(0..self.next_notify) {
            let vcpu = self.vcpus.get_mut(at)?;
            if std::mem::take(&mut vcpu.notify) {
                self.next_notify = (at + 1) % count.max(1);
                if vcpu.port.is_some() {
                    return vcpu.port;
                }
            }
        }
        None
    }
}

/// Replaces a state word that must not have changed. Earlier writes are visible to a reader of the
/// new word.
fn exchange(word: &AtomicU32, vcpu: u32, old: u32, new: u32) -> Result<(), IoreqError> {
    match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(found) => Err(IoreqError::State {
            vcpu,
            state: state_of(found),
        }),
    }
}
