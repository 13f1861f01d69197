//! The ring against a model of Xen's end, and against a page that anything may write to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use proptest::prelude::*;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::page::{RingPage, WORDS, Words};
use super::*;
use crate::Error;
use crate::abi::vm_event::{self as abi, RING_SLOTS, VmEvent};
use crate::privcmd::ViewId;

const FIRST: usize = 64 / 4;
const SLOT: usize = size_of::<VmEvent>() / 4;

/// Xen's end of the ring (xen/common/vm_event.c).
struct Xen {
    words: Arc<Words>,
    produced: u32,
    consumed: u32,
}

fn ring() -> (Ring, Xen) {
    let words: Arc<Words> = Arc::new([const { AtomicU32::new(0) }; WORDS]);
    let ring = Ring::new(RingPage::Private(Arc::clone(&words)));
    let xen = Xen {
        words,
        produced: 0,
        consumed: 0,
    };
    (ring, xen)
}

/// A record that Xen could write, of virtual CPU `vcpu`.
fn record(reason: u32, vcpu: u32) -> VmEvent {
    VmEvent {
        version: abi::VM_EVENT_INTERFACE_VERSION,
        flags: abi::VM_EVENT_FLAG_VCPU_PAUSED,
        reason,
        vcpu_id: vcpu,
        ..VmEvent::new_zeroed()
    }
}

impl Xen {
    /// Slots that are free: those whose response was read.
    fn free(&self) -> u32 {
        RING_SLOTS - self.produced.wrapping_sub(self.consumed)
    }

    fn slot(&self, index: u32) -> &[AtomicU32] {
        let at = FIRST + (index % RING_SLOTS) as usize * SLOT;
        &self.words[at..at + SLOT]
    }

    fn put(&mut self, record: &VmEvent) {
        assert!(self.free() > 0);
        let bytes = record.as_bytes().chunks_exact(4);
        for (word, bytes) in self.slot(self.produced).iter().zip(bytes) {
            let word_bytes = bytes.try_into().unwrap();
            word.store(u32::from_ne_bytes(word_bytes), Ordering::Relaxed);
        }
        self.produced = self.produced.wrapping_add(1);
        self.words[0].store(self.produced, Ordering::Release);
    }

    fn get(&mut self) -> Option<VmEvent> {
        if self.words[2].load(Ordering::Acquire) == self.consumed {
            return None;
        }
        let mut copy = [0u32; SLOT];
        for (copy, word) in copy.iter_mut().zip(self.slot(self.consumed)) {
            *copy = word.load(Ordering::Relaxed);
        }
        self.consumed = self.consumed.wrapping_add(1);
        Some(VmEvent::read_from_bytes(copy.as_bytes()).unwrap())
    }
}

fn cases(some: u32) -> ProptestConfig {
    // Miri is slow, and has no files for the failures.
    let cases = if cfg!(miri) { 2 } else { some };
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// Writes to the hostile page; under Miri each event takes seconds.
const WRITES: usize = if cfg!(miri) { 6 } else { 60 };

#[derive(Clone, Debug)]
enum Step {
    /// Xen reports an event, if it has room.
    Report,
    /// The monitor takes one.
    Take,
    /// The monitor answers one of those it has.
    Answer(usize),
    /// Xen reads the responses.
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Report),
        3 => Just(Step::Take),
        3 => (0usize..8).prop_map(Step::Answer),
        1 => Just(Step::Read),
    ];
    proptest::collection::vec(step, 0..if cfg!(miri) { 20 } else { 200 })
}

proptest! {
    #![proptest_config(cases(256))]

    /// Whatever the order, each event is taken once and in order, and each response is read once.
    #[test]
    fn every_event_is_taken_once_and_answered_once(start in any::<u32>(), steps in steps()) {
        let (mut ring, mut xen) = ring();
        ring.start_at(start);
        (xen.produced, xen.consumed) = (start, start);
        xen.words[0].store(start, Ordering::Relaxed);
        xen.words[2].store(start, Ordering::Relaxed);
        let (mut reported, mut taken) = (0u32, 0u32);
        let mut held: Vec<Event> = Vec::new();
        let mut answered = Vec::new();
        let mut read = Vec::new();
        for step in steps {
            match step {
                Step::Report if xen.free() > 0 => {
                    xen.put(&record(abi::VM_EVENT_REASON_GUEST_REQUEST, reported));
                    reported += 1;
                }
                Step::Report => {}
                Step::Take => match ring.poll_event().unwrap() {
                    Some(event) => {
                        prop_assert_eq!(event.vcpu, taken);
                        taken += 1;
                        held.push(event);
                    }
                    None => prop_assert_eq!(taken, reported),
                },
                Step::Answer(which) if !held.is_empty() => {
                    let event = held.remove(which % held.len());
                    let response = Response::resume(&event);
                    ring.handle_response(&response).unwrap();
                    prop_assert!(ring.handle_response(&response).is_err());
                    answered.push(event.vcpu);
                }
                Step::Answer(_) => {}
                Step::Read => while let Some(response) = xen.get() {
                    prop_assert_eq!(response.flags, abi::VM_EVENT_FLAG_VCPU_PAUSED);
                    read.push(response.vcpu_id);
                },
            }
            prop_assert_eq!(ring.unanswered(), held.len());
        }
        let rest = ring.resume_all();
        prop_assert_eq!(rest, held.len());
        while let Some(response) = xen.get() {
            read.push(response.vcpu_id);
        }
        answered.extend(held.iter().map(|event| event.vcpu));
        prop_assert_eq!(read.len(), taken as usize);
        read.sort_unstable();
        answered.sort_unstable();
        prop_assert_eq!(read, answered);
    }

    /// A page that changes before each call: no panic, no write outside of the slots and the two
    /// indices, and never more events unanswered than there are slots.
    #[test]
    fn a_hostile_page_ends_in_an_error_or_in_events(
        writes in proptest::collection::vec((0..WORDS, any::<u32>(), 0u32..12), 1..WRITES),
    ) {
        let (mut ring, xen) = ring();
        let mut events = 0u32;
        for (at, value, produced) in writes {
            xen.words[at].store(value, Ordering::Relaxed);
            xen.words[0].store(produced, Ordering::Relaxed);
            // Most words make a record of no version.
            for slot in 0..RING_SLOTS {
                let version = abi::VM_EVENT_INTERFACE_VERSION;
                xen.slot(slot)[0].store(version, Ordering::Relaxed);
            }
            match ring.poll_event() {
                Ok(Some(event)) => {
                    events += 1;
                    if value % 3 == 0 {
                        ring.handle_response(&Response::skip(&event, value)).unwrap();
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    let broken = matches!(error, Error::MonitorRing { .. });
                    prop_assert!(broken);
                    break;
                }
            }
            prop_assert!(ring.unanswered() <= RING_SLOTS as usize);
        }
        prop_assert!(events <= 11);
        let owed = ring.unanswered();
        prop_assert_eq!(ring.resume_all(), owed);
    }
}

/// Miri delays the plain words behind an index that does not order them.
#[test]
fn two_threads_see_each_record_whole_behind_its_index() {
    const EVENTS: u32 = if cfg!(miri) { 10 } else { 20_000 };
    let (ring, mut xen) = ring();
    thread::scope(|scope| {
        let model = scope.spawn(move || {
            let (mut put, mut got) = (0, 0);
            // Until the monitor's end is dropped, also by a failed assertion.
            while got < EVENTS && Arc::strong_count(&xen.words) > 1 {
                if put < EVENTS && xen.free() > 0 {
                    let access = abi::MemAccess {
                        gfn: put.into(),
                        ..abi::MemAccess::default()
                    };
                    let mut record = with(abi::VM_EVENT_REASON_MEM_ACCESS, &access);
                    record.vcpu_id = put;
                    record.data[2] = put.into();
                    xen.put(&record);
                    put += 1;
                }
                if let Some(response) = xen.get() {
                    let seen = (response.vcpu_id, response.u[0], response.data[2]);
                    assert_eq!(seen, (got, got.into(), got.into()));
                    got += 1;
                } else {
                    thread::yield_now();
                }
            }
        });
        let mut ring = ring;
        let mut taken = 0;
        while taken < EVENTS && !model.is_finished() {
            if let Some(event) = ring.poll_event().unwrap() {
                let answer = Response::resume(&event).registers(&event.registers);
                let seen = *answer.record();
                let seen = (event.vcpu, seen.u[0], seen.data[2]);
                assert_eq!(seen, (taken, taken.into(), taken.into()));
                ring.handle_response(&answer).unwrap();
                taken += 1;
            } else {
                thread::yield_now();
            }
        }
        model.join().unwrap();
        assert_eq!(taken, EVENTS);
    });
}

#[test]
fn a_ring_is_empty_whatever_its_page_held() {
    let old = || AtomicU32::new(7);
    let words: Arc<Words> = Arc::new(std::array::from_fn(|_| old()));
    let mut ring = Ring::new(RingPage::Private(Arc::clone(&words)));
    let mut xen = Xen {
        words,
        produced: 0,
        consumed: 0,
    };
    assert!(ring.poll_event().unwrap().is_none());
    assert!(xen.get().is_none());
    xen.put(&record(abi::VM_EVENT_REASON_GUEST_REQUEST, 4));
    assert_eq!(ring.poll_event().unwrap().unwrap().vcpu, 4);
}

#[test]
fn an_index_that_no_ring_can_have_is_an_error_for_good() {
    for produced in [9, 8 + 1, u32::MAX, 1 << 31] {
        let (mut ring, xen) = ring();
        xen.words[0].store(produced, Ordering::Relaxed);
        let error = ring.poll_event().unwrap_err();
        let Error::MonitorRing { value, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(value, produced);
        // An event stays taken, so an index that went back is impossible too.
        xen.words[0].store(1, Ordering::Relaxed);
        assert!(ring.poll_event().is_err());
    }
    let (mut ring, mut xen) = ring();
    xen.put(&record(abi::VM_EVENT_REASON_GUEST_REQUEST, 0));
    ring.poll_event().unwrap().unwrap();
    xen.words[0].store(0, Ordering::Relaxed);
    assert!(ring.poll_event().is_err());
    // The event can be answered all the same.
    assert_eq!(ring.resume_all(), 1);
    assert!(xen.get().is_some());
}

#[test]
fn a_record_of_another_version_is_an_error() {
    let (mut ring, mut xen) = ring();
    let mut other = record(abi::VM_EVENT_REASON_GUEST_REQUEST, 0);
    other.version = 6;
    xen.put(&other);
    let error = ring.poll_event().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the monitor's ring: the version of a record cannot be 6"
    );
}

#[test]
fn the_next_event_is_asked_to_notify() {
    let (mut ring, mut xen) = ring();
    assert!(ring.poll_event().unwrap().is_none());
    assert_eq!(xen.words[1].load(Ordering::Relaxed), 1);
    xen.put(&record(abi::VM_EVENT_REASON_GUEST_REQUEST, 0));
    assert!(ring.poll_event().unwrap().is_some());
    assert!(ring.poll_event().unwrap().is_none());
    assert_eq!(xen.words[1].load(Ordering::Relaxed), 2);
}

/// The event that a record is.
fn taken(record: &VmEvent) -> Event {
    let (mut ring, mut xen) = ring();
    xen.put(record);
    ring.poll_event().unwrap().unwrap()
}

fn with(reason: u32, u: &(impl zerocopy::IntoBytes + zerocopy::Immutable)) -> VmEvent {
    let mut record = record(reason, 3);
    let bytes = u.as_bytes();
    record.u.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    record
}

#[test]
fn each_kind_of_event_has_its_values() {
    let kind = |record: &VmEvent| taken(record).kind;
    let access = abi::MemAccess {
        gfn: 0x1234,
        offset: 0x56,
        gla: 0xffff_8000,
        flags: abi::MEM_ACCESS_W | abi::MEM_ACCESS_GLA_VALID | abi::MEM_ACCESS_FAULT_WITH_GLA,
        pad: 0,
    };
    let EventKind::MemoryAccess(seen) = kind(&with(abi::VM_EVENT_REASON_MEM_ACCESS, &access))
    else {
        panic!("no access");
    };
    assert_eq!((seen.frame, seen.offset), (0x1234, 0x56));
    assert_eq!(seen.address, Some(0xffff_8000));
    assert!(
        seen.flags
            .contains(AccessFlags::WRITE | AccessFlags::OF_ADDRESS)
    );
    assert!(
        !seen
            .flags
            .intersects(AccessFlags::READ | AccessFlags::EXECUTE)
    );

    let raw = abi::WriteCtrlreg {
        index: abi::VM_EVENT_X86_CR4,
        pad: 0,
        new_value: 7,
        old_value: 5,
    };
    let seen = kind(&with(abi::VM_EVENT_REASON_WRITE_CTRLREG, &raw));
    let register = ControlRegister::CR4;
    assert_eq!(
        seen,
        EventKind::WriteControlRegister {
            register,
            old: 5,
            new: 7
        }
    );

    let raw = abi::Cpuid {
        insn_length: 2,
        leaf: 0x4000_0000,
        subleaf: 9,
        pad: 0,
    };
    let seen = kind(&with(abi::VM_EVENT_REASON_CPUID, &raw));
    assert_eq!(
        seen,
        EventKind::Cpuid {
            length: 2,
            leaf: 0x4000_0000,
            subleaf: 9
        }
    );

    let raw = abi::Io {
        bytes: 4,
        port: 0xcf8,
        in_: 1,
        str_: 0,
    };
    let seen = kind(&with(abi::VM_EVENT_REASON_IO_INSTRUCTION, &raw));
    assert_eq!(
        seen,
        EventKind::Io {
            port: 0xcf8,
            bytes: 4,
            read: true,
            string: false
        }
    );
    for (reason, expected) in [
        (
            abi::VM_EVENT_REASON_SINGLESTEP,
            EventKind::SingleStep { frame: 0 },
        ),
        (abi::VM_EVENT_REASON_GUEST_REQUEST, EventKind::GuestRequest),
        (
            abi::VM_EVENT_REASON_PRIVILEGED_CALL,
            EventKind::PrivilegedCall,
        ),
        (
            abi::VM_EVENT_REASON_EMUL_UNIMPLEMENTED,
            EventKind::EmulatorUnimplemented,
        ),
        (99, EventKind::Other(99)),
    ] {
        assert_eq!(kind(&record(reason, 0)), expected);
    }
}

#[test]
fn a_response_has_what_xen_looks_for() {
    let access = abi::MemAccess {
        gfn: 0x77,
        flags: abi::MEM_ACCESS_W,
        ..abi::MemAccess::default()
    };
    let mut asked = with(abi::VM_EVENT_REASON_MEM_ACCESS, &access);
    asked.flags |= abi::VM_EVENT_FLAG_ALTERNATE_P2M;
    asked.altp2m_idx = 2;
    asked.data[0] = 0x1111;
    let event = taken(&asked);
    assert_eq!(
        (event.view, event.vcpu, event.paused),
        (Some(ViewId::new(2)), 3, true)
    );
    let answer = *Response::resume(&event).emulate().record();
    let kept = abi::VM_EVENT_FLAG_VCPU_PAUSED | abi::VM_EVENT_FLAG_ALTERNATE_P2M;
    assert_eq!(answer.flags, kept | abi::VM_EVENT_FLAG_EMULATE);
    // The access that is to be emulated, the view, the virtual CPU; no registers.
    assert_eq!((answer.u, answer.altp2m_idx), (asked.u, 2));
    assert_eq!((answer.vcpu_id, answer.reason, answer.data[0]), (3, 1, 0));

    let answer = *Response::resume(&event)
        .in_view(ViewId::new(5))
        .fast_single_step(ViewId::new(6))
        .record();
    assert_eq!((answer.altp2m_idx, answer.u[0] as u16), (5, 6));

    let answer = *Response::resume(&event).emulate_reading(b"abc").record();
    assert_eq!(answer.data.as_bytes()[..7], *b"\x03\0\0\0abc");
    let long = *Response::resume(&event)
        .emulate_reading(&[7; 1000])
        .record();
    assert_eq!(long.data.as_bytes()[..4], 340u32.to_ne_bytes());
    assert_eq!(long.data.as_bytes()[343], 7);
}

#[test]
fn an_event_that_does_not_pause_is_answered_without_resuming() {
    let mut asked = record(abi::VM_EVENT_REASON_WRITE_CTRLREG, 1);
    asked.flags = 0;
    let event = taken(&asked);
    assert!(!event.paused);
    assert_eq!(Response::resume(&event).record().flags, 0);
}

#[test]
fn a_response_that_skips_moves_the_program_counter_alone() {
    let mut asked = record(abi::VM_EVENT_REASON_CPUID, 0);
    for (i, register) in asked.data.iter_mut().enumerate() {
        *register = i as u64;
    }
    let event = taken(&asked);
    let answer = *Response::skip(&event, 2).record();
    let set = abi::VM_EVENT_FLAG_VCPU_PAUSED | abi::VM_EVENT_FLAG_SET_REGISTERS;
    assert_eq!(answer.flags, set);
    let before = event.registers.program_counter();
    let after = taken(&answer).registers.program_counter();
    assert_eq!(after, before + 2);
    let changed = asked.data.iter().zip(&answer.data);
    // The Arm struct is shorter than the union.
    let changed = changed.take(5).filter(|(a, b)| a != b).count();
    assert!(changed <= 1, "{changed}");
}

#[test]
fn an_answer_of_another_ring_is_refused() {
    let (mut ring, mut xen) = ring();
    // Each ring waits for the answer to its first event.
    xen.put(&record(abi::VM_EVENT_REASON_GUEST_REQUEST, 0));
    ring.poll_event().unwrap().unwrap();
    let event = taken(&record(abi::VM_EVENT_REASON_GUEST_REQUEST, 0));
    let refused = ring.handle_response(&Response::resume(&event));
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert!(xen.get().is_none());
}
