use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::Words;

const VCPUS: u32 = 3;
const SLOTS: u32 = abi::IOREQ_BUFFER_SLOT_NUM as u32;

/// Xen's end of the pages: the same words.
struct Xen {
    slots: Words<AtomicU32>,
    ring: Words<AtomicU32>,
}

/// A synchronous request as Xen writes it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    address: u64,
    data: u64,
    count: u32,
    size: u32,
    bits: u8,
    kind: u8,
}

const PORT_READ: Sent = Sent {
    address: 0x5a0,
    data: 0x1122_3344_5566_7788,
    count: 1,
    size: 2,
    bits: abi::DIR_READ,
    kind: abi::IOREQ_TYPE_PIO,
};

impl Xen {
    fn put(&self, vcpu: u32, word: usize, value: u32) {
        self.slots[vcpu as usize * 8 + word].store(value, Ordering::Relaxed);
    }

    fn get(&self, vcpu: u32, word: usize) -> u32 {
        self.slots[vcpu as usize * 8 + word].load(Ordering::Acquire)
    }

    fn state(&self, vcpu: u32) -> u8 {
        (self.get(vcpu, 7) >> 16) as u8 & abi::STATE_MASK
    }

    fn set_state(&self, vcpu: u32, state: u8) {
        let word = self.get(vcpu, 7) & !0xf_0000 | u32::from(state) << 16;
        self.slots[vcpu as usize * 8 + 7].store(word, Ordering::Release);
    }

    fn send(&self, vcpu: u32, sent: Sent) {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let words = [halves(sent.address), halves(sent.data)].concat();
        for (at, word) in words.into_iter().enumerate() {
            self.put(vcpu, at, word);
        }
        self.put(vcpu, 4, sent.count);
        self.put(vcpu, 5, sent.size);
        self.put(
            vcpu,
            7,
            u32::from(sent.bits) << 16 | u32::from(sent.kind) << 24,
        );
        self.set_state(vcpu, abi::STATE_IOREQ_READY);
    }

    /// Takes an answer.
    fn answer(&self, vcpu: u32) -> u64 {
        assert_eq!(self.state(vcpu), abi::STATE_IORESP_READY);
        self.set_state(vcpu, abi::STATE_IOREQ_NONE);
        u64::from(self.get(vcpu, 2)) | u64::from(self.get(vcpu, 3)) << 32
    }

    fn pointers(&self) -> (u32, u32) {
        let load = |word: usize| self.ring[word].load(Ordering::Acquire);
        (load(0), load(1))
    }

    /// Sends a write through the ring, if there is room; then makes the pointers small.
    fn buffer(&self, address: u32, size_code: u32, data: u64) -> bool {
        let (read, write) = self.pointers();
        let slots = if size_code == 3 { 2 } else { 1 };
        if write - read + slots > SLOTS {
            return false;
        }
        let head = u32::from(abi::IOREQ_TYPE_COPY) | size_code << 10 | address << 12;
        for n in 0..slots {
            let at = 2 + 2 * ((write + n) % SLOTS) as usize;
            self.ring[at].store(head, Ordering::Relaxed);
            let half = (data >> (32 * n)) as u32;
            self.ring[at + 1].store(half, Ordering::Relaxed);
        }
        self.ring[1].store(write + slots, Ordering::Release);
        let rounds = read / SLOTS * SLOTS;
        if rounds > 0 {
            self.ring[0].fetch_sub(rounds, Ordering::AcqRel);
            self.ring[1].fetch_sub(rounds, Ordering::AcqRel);
        }
        true
    }
}

/// Both ends, with a port for each virtual CPU: 10, 11, 12; and 20 for the ring.
fn ends() -> (Ioreqs, Xen) {
    let (mut slots, mut ring) = (Region::heap(PAGE_SIZE), Region::heap(PAGE_SIZE));
    let xen = Xen {
        slots: slots.take_words(VCPUS as usize * 8).unwrap(),
        ring: ring.take_words(PAGE_SIZE / 4).unwrap(),
    };
    let mut ours = Ioreqs {
        slots: Slots::new(xen.slots.clone()),
        ring: Some(Ring::new(xen.ring.clone())),
        ring_port: None,
        taken: None,
        in_front: 0,
    };
    for vcpu in 0..VCPUS {
        ours.set_port(vcpu, Port::new(10 + vcpu)).unwrap();
    }
    ours.set_buffered_port(Port::new(20));
    assert_eq!(ours.poll_request(), Ok(None));
    (ours, xen)
}

fn event(ours: &mut Ioreqs, vcpu: u32) {
    assert!(ours.handle_event(Port::new(10 + vcpu)));
}

#[test]
fn a_request_is_taken_answered_and_announced() {
    let (mut ours, xen) = ends();
    xen.send(1, PORT_READ);
    assert_eq!(ours.poll_request(), Ok(None), "no event yet");
    event(&mut ours, 1);
    let request = ours.poll_request().unwrap().unwrap();
    assert_eq!(request.vcpu, Some(1));
    assert_eq!((request.space, request.access), (Space::Port, Access::Read));
    assert_eq!((request.address, request.size), (0x5a0, 2));
    assert_eq!(request.data, Data::Value(0x7788));
    assert_eq!(xen.state(1), abi::STATE_IOREQ_INPROCESS);
    // Another event changes nothing.
    event(&mut ours, 1);
    assert_eq!(ours.poll_request(), Ok(None));
    assert_eq!(ours.poll_notify(), None);

    ours.complete(1, 0xffff_abcd).unwrap();
    assert_eq!(ours.poll_notify(), Some(Port::new(11)));
    assert_eq!(ours.poll_notify(), None);
    assert_eq!(xen.answer(1), 0xabcd, "cut to the size of the request");
    assert_eq!(
        ours.complete(1, 0),
        Err(IoreqError::NotWaiting { vcpu: 1 }),
        "an answer is given once"
    );
    assert_eq!(
        ours.complete(VCPUS, 0),
        Err(IoreqError::NoVcpu { vcpu: VCPUS })
    );
    assert!(ours.handle_event(Port::new(20)));
    assert!(!ours.handle_event(Port::new(21)));
}

#[test]
fn a_write_and_data_in_the_guests_memory_are_left_as_they_are() {
    let (mut ours, xen) = ends();
    for (vcpu, bits) in [(0, 0), (2, abi::DIR_READ | abi::DATA_IS_PTR | abi::DF)] {
        xen.send(vcpu, Sent { bits, ..PORT_READ });
        event(&mut ours, vcpu);
        let request = ours.poll_request().unwrap().unwrap();
        assert_eq!(request.descending, vcpu == 2);
        assert_eq!(
            request.data == Data::Guest(PORT_READ.data),
            vcpu == 2,
            "{request:?}"
        );
        ours.complete(vcpu, 0).unwrap();
        assert_eq!(xen.answer(vcpu), PORT_READ.data);
    }
}

#[test]
fn repetitions_have_the_addresses_of_the_instruction() {
    let (mut ours, xen) = ends();
    let sent = Sent {
        address: 0xf_0000,
        data: 0x10,
        count: 3,
        size: 8,
        bits: abi::DATA_IS_PTR | abi::DF,
        kind: abi::IOREQ_TYPE_COPY,
    };
    xen.send(0, sent);
    event(&mut ours, 0);
    let request = ours.poll_request().unwrap().unwrap();
    let elements: Vec<_> = request.elements().collect();
    assert_eq!(
        elements,
        [
            (0xf_0000, Some(0x10)),
            (0xe_fff8, Some(8)),
            (0xe_fff0, Some(0))
        ]
    );
    ours.complete(0, 0).unwrap();
    xen.answer(0);
    let port = Sent {
        kind: abi::IOREQ_TYPE_PIO,
        bits: abi::DATA_IS_PTR,
        ..sent
    };
    xen.send(0, port);
    event(&mut ours, 0);
    let request = ours.poll_request().unwrap().unwrap();
    let elements: Vec<_> = request.elements().collect();
    assert_eq!(elements[2], (0xf_0000, Some(0x20)), "a port stays");
}

#[test]
fn a_pci_request_names_function_and_register() {
    let (mut ours, xen) = ends();
    let sent = Sent {
        address: 0x0000_0018_0000_0004,
        kind: abi::IOREQ_TYPE_PCI_CONFIG,
        ..PORT_READ
    };
    xen.send(0, sent);
    event(&mut ours, 0);
    let request = ours.poll_request().unwrap().unwrap();
    let function = PciFunction::new(0, 0, 3, 0).unwrap();
    assert_eq!(request.pci(), Some((function, 4)));
    assert_eq!(request.space, Space::PciConfig);
}

#[test]
fn a_request_that_cannot_be_fails_its_virtual_cpu_only() {
    let cases = [
        (
            Sent {
                kind: 99,
                ..PORT_READ
            },
            IoreqError::Kind {
                vcpu: Some(0),
                kind: 99,
            },
        ),
        (
            Sent {
                size: 3,
                ..PORT_READ
            },
            IoreqError::Size { vcpu: 0, size: 3 },
        ),
        (
            Sent {
                size: 0x101,
                ..PORT_READ
            },
            IoreqError::Size {
                vcpu: 0,
                size: 0x101,
            },
        ),
        (
            Sent {
                count: MAX_REPETITIONS + 1,
                ..PORT_READ
            },
            IoreqError::Repetitions {
                vcpu: 0,
                count: MAX_REPETITIONS + 1,
            },
        ),
    ];
    for (sent, error) in cases {
        let (mut ours, xen) = ends();
        xen.send(0, sent);
        xen.send(1, PORT_READ);
        (0..2).for_each(|vcpu| event(&mut ours, vcpu));
        assert_eq!(ours.poll_request(), Err(error));
        // The virtual CPU is not looked at again, whatever it sends, and cannot be answered.
        xen.send(0, PORT_READ);
        event(&mut ours, 0);
        let request = ours.poll_request().unwrap().unwrap();
        assert_eq!(request.vcpu, Some(1));
        assert_eq!(ours.poll_request(), Ok(None));
        assert_eq!(ours.complete(0, 0), Err(IoreqError::NotWaiting { vcpu: 0 }));
        ours.complete(1, 0).unwrap();
    }
}

#[test]
fn a_state_that_is_not_xens_to_set_is_an_error() {
    for state in 0..=abi::STATE_MASK {
        let (mut ours, xen) = ends();
        xen.send(0, PORT_READ);
        xen.set_state(0, state);
        event(&mut ours, 0);
        let seen = ours.poll_request();
        match state {
            abi::STATE_IOREQ_NONE | abi::STATE_IORESP_READY => assert_eq!(seen, Ok(None)),
            abi::STATE_IOREQ_READY => assert!(seen.unwrap().is_some()),
            state => assert_eq!(seen, Err(IoreqError::State { vcpu: 0, state })),
        }
    }
}

#[test]
fn an_answer_to_a_request_that_was_taken_back_is_not_given() {
    let (mut ours, xen) = ends();
    xen.send(0, PORT_READ);
    event(&mut ours, 0);
    assert!(ours.poll_request().unwrap().is_some());
    xen.set_state(0, abi::STATE_IOREQ_NONE);
    let state = abi::STATE_IOREQ_NONE;
    assert_eq!(
        ours.complete(0, 0),
        Err(IoreqError::State { vcpu: 0, state })
    );
    assert_eq!(xen.state(0), abi::STATE_IOREQ_NONE);
    assert_eq!(ours.poll_notify(), None);
}

#[test]
fn a_buffered_request_is_returned_before_the_synchronous_one_behind_it() {
    let (mut ours, xen) = ends();
    assert!(xen.buffer(0xa_0001, 0, 0x1ff));
    assert!(xen.buffer(0xa_0002, 3, 0x1122_3344_5566_7788));
    xen.send(2, PORT_READ);
    // The event of the virtual CPU alone, since that of the ring may be late.
    event(&mut ours, 2);
    let mut next = || ours.poll_request().unwrap();
    let first = next().unwrap();
    assert_eq!((first.vcpu, first.address), (None, 0xa_0001));
    assert_eq!((first.size, first.data), (1, Data::Value(0xff)));
    let second = next().unwrap();
    assert_eq!((second.size, second.address), (8, 0xa_0002));
    assert_eq!(second.data, Data::Value(0x1122_3344_5566_7788));
    assert_eq!(next().unwrap().vcpu, Some(2));
    assert_eq!(next(), None);
}

#[test]
fn a_guest_that_fills_the_ring_without_pause_does_not_hold_up_its_virtual_cpus() {
    let (mut ours, xen) = ends();
    xen.send(0, PORT_READ);
    event(&mut ours, 0);
    let mut buffered = 0;
    loop {
        while xen.buffer(buffered, 2, 0) {}
        assert!(buffered <= SLOTS, "without end");
        match ours.poll_request().unwrap().unwrap().vcpu {
            None => buffered += 1,
            Some(vcpu) => break assert_eq!(vcpu, 0),
        }
    }
    assert_eq!(buffered, SLOTS);
}

#[test]
fn a_request_that_waits_for_buffered_ones_is_not_answered_yet() {
    let (mut ours, xen) = ends();
    assert!(xen.buffer(1, 0, 0));
    xen.send(0, PORT_READ);
    event(&mut ours, 0);
    assert_eq!(ours.poll_request().unwrap().unwrap().vcpu, None);
    assert_eq!(ours.complete(0, 0), Err(IoreqError::NotWaiting { vcpu: 0 }));
    assert_eq!(ours.poll_request().unwrap().unwrap().vcpu, Some(0));
    ours.complete(0, 0).unwrap();
}

#[test]
fn pointers_that_cannot_be_end_the_ring_and_nothing_else() {
    let half = (0, 1);
    for (read, write) in [(0, SLOTS + 1), (1, 9), (5, 0), (0, u32::MAX), half] {
        let (mut ours, xen) = ends();
        // A request of two slots, of which the last pair of pointers covers only one. Those of the
        // second pair would be a request that was read already.
        xen.ring[2].store(3 << 10, Ordering::Relaxed);
        xen.ring[0].store(read, Ordering::Relaxed);
        xen.ring[1].store(write, Ordering::Relaxed);
        xen.send(1, PORT_READ);
        event(&mut ours, 1);
        let error = IoreqError::Pointers {
            slot: 0,
            read,
            write,
        };
        assert_eq!(ours.poll_request(), Err(error));
        assert_eq!(ours.poll_request().unwrap().unwrap().vcpu, Some(1));
        assert_eq!(ours.poll_request(), Ok(None));
        assert_eq!(xen.pointers(), (read, write));
    }
}

#[test]
fn pages_that_are_too_small_are_refused() {
    let small = Ioreqs::new(Region::heap(PAGE_SIZE), 129, None);
    assert_eq!(
        small.err(),
        Some(IoreqError::Region(RegionError::OutOfRange))
    );
    let none = Ioreqs::new(Region::heap(PAGE_SIZE), u32::MAX, None);
    assert!(none.is_err());
    let ring = Ioreqs::new(Region::heap(PAGE_SIZE), 128, Some(Region::heap(8)));
    assert!(ring.is_err());
    let all = Ioreqs::new(Region::heap(PAGE_SIZE), 128, None).unwrap();
    assert_eq!(all.vcpus(), 128);
    assert_eq!(all.remote_port(127), Some(Port::new(0)));
    assert_eq!(all.remote_port(128), None);
}

/// A step of Xen or of ours.
#[derive(Clone, Copy, Debug)]
enum Step {
    Buffer { address: u32, size: u32, data: u64 },
    Send { vcpu: u32, data: u64 },
    Poll,
    Complete { vcpu: u32, data: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..1u32 << 20, 0..4u32, any::<u64>())
            .prop_map(|(address, size, data)| Step::Buffer { address, size, data }),
        1 => (0..VCPUS, any::<u64>()).prop_map(|(vcpu, data)| Step::Send { vcpu, data }),
        5 => Just(Step::Poll),
        2 => (0..VCPUS, any::<u64>()).prop_map(|(vcpu, data)| Step::Complete { vcpu, data }),
    ]
}

/// Steps that pass round the ring several times; under Miri as many as time permits.
const STEPS: usize = if cfg!(miri) { 60 } else { 3000 };
/// Slots in use, and repetitions that are counted, likewise.
const USED: u32 = if cfg!(miri) { 4 } else { SLOTS };
const COUNTED: usize = if cfg!(miri) { 4 } else { usize::MAX };

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(64))]

    /// Every request arrives once, as it was sent; those of the ring in order; each answer arrives.
    #[test]
    fn every_request_is_returned_once_in_order(steps in prop::collection::vec(step(), 1..STEPS)) {
        let (mut ours, xen) = ends();
        let mut ring: VecDeque<(u64, u8, u64)> = VecDeque::new();
        // The state of each virtual CPU's request: not sent, sent, taken.
        let mut sent = [None; VCPUS as usize];
        let mut taken = [false; VCPUS as usize];
        for step in steps {
            match step {
                Step::Buffer { address, size, data } => {
                    if xen.buffer(address, size, data) {
                        let size = 1 << size;
                        ring.push_back((u64::from(address), size, cut(data, size)));
                    }
                }
                Step::Send { vcpu, data } if sent[vcpu as usize].is_none() => {
                    xen.send(vcpu, Sent { data, bits: 0, size: 8, ..PORT_READ });
                    event(&mut ours, vcpu);
                    sent[vcpu as usize] = Some(data);
                }
                Step::Send { .. } => {}
                Step::Poll => match ours.poll_request().unwrap() {
                    None => {
                        prop_assert!(ring.is_empty());
                        prop_assert!(sent.iter().zip(taken).all(|(s, t)| s.is_none() || t));
                    }
                    Some(request) => match request.vcpu {
                        None => {
                            let (address, size, data) = ring.pop_front().unwrap();
                            prop_assert_eq!((request.address, request.size), (address, size));
                            prop_assert_eq!(request.data, Data::Value(data));
                        }
                        Some(vcpu) => {
                            let data = sent[vcpu as usize].unwrap();
                            prop_assert_eq!(request.data, Data::Value(data));
                            prop_assert!(!std::mem::replace(&mut taken[vcpu as usize], true));
                        }
                    },
                },
                Step::Complete { vcpu, data } => {
                    let done = ours.complete(vcpu, data);
                    let at = vcpu as usize;
                    prop_assert_eq!(done.is_ok(), taken[at]);
                    if std::mem::take(&mut taken[at]) {
                        prop_assert_eq!(ours.poll_notify(), Some(Port::new(10 + vcpu)));
                        prop_assert_eq!(Some(xen.answer(vcpu)), sent[at].take());
                    }
                    prop_assert_eq!(ours.poll_notify(), None);
                }
            }
        }
    }

    /// Whatever is in the pages: no panic, an end, and no store except to our own words.
    #[test]
    fn any_words_are_survived(
        slots in prop::collection::vec(any::<u32>(), VCPUS as usize * 8),
        ring in prop::collection::vec(any::<u32>(), PAGE_SIZE / 4),
        (read, used) in (0..2 * SLOTS, 0..=USED),
        ready in any::<[bool; VCPUS as usize]>(),
    ) {
        let (mut ours, xen) = ends();
        let fill = |to: &Words<AtomicU32>, from: &[u32]| {
            for (word, value) in to.iter().zip(from) {
                word.store(*value, Ordering::Relaxed);
            }
        };
        fill(&xen.slots, &slots);
        fill(&xen.ring, &ring);
        if ready[0] {
            // Possible pointers, so that the slots are looked at.
            xen.ring[0].store(read / SLOTS * SLOTS, Ordering::Relaxed);
            xen.ring[1].store(read / SLOTS * SLOTS + used, Ordering::Relaxed);
        }
        for vcpu in 0..VCPUS {
            if ready[vcpu as usize] {
                xen.set_state(vcpu, abi::STATE_IOREQ_READY);
            }
        }
        for round in 0..3 {
            (0..VCPUS).for_each(|vcpu| event(&mut ours, vcpu));
            let mut polls = 0;
            loop {
                polls += 1;
                prop_assert!(polls < 2 * SLOTS, "round {}", round);
                match ours.poll_request() {
                    Ok(None) => break,
                    Ok(Some(request)) => {
                        let counted = request.elements().take(COUNTED).count();
                        prop_assert!(counted <= MAX_REPETITIONS as usize);
                        let _ = request.pci();
                    }
                    Err(error) => drop(error.to_string()),
                }
            }
            for vcpu in 0..VCPUS {
                let _ = ours.complete(vcpu, u64::MAX);
            }
            prop_assert!(std::iter::from_fn(|| ours.poll_notify()).count() <= VCPUS as usize);
        }
    }
}
