//! A guest's requests in pages that are written to without a rule, between any two calls.

use std::collections::BTreeSet;

use xen_gnttab::Region;
use xen_gnttab::ioreq::{IoreqError, Ioreqs, MAX_REPETITIONS};
use xen_sys::abi::ioreq as abi;
use xen_sys::{PAGE_SIZE, Port};

use super::{Input, load, peer, store};

/// Words of a virtual CPU's slot.
const SLOT: usize = size_of::<abi::Ioreq>() / 4;
const STATE: usize = 7;
/// Words of the page of buffered requests.
const READ: usize = 0;
const WRITE: usize = 1;
const RING: usize = PAGE_SIZE / 4;
const RING_PORT: Port = Port::new(99);

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let vcpus = u32::from(input.byte() % 5);
    let (slots, ring) = (Region::heap(PAGE_SIZE), Region::heap(PAGE_SIZE));
    let (xen, _) = peer(&slots, vcpus as usize * SLOT);
    let (xens_ring, _) = peer(&ring, RING);
    let buffered = input.byte() & 1 == 0;
    if buffered {
        store(&xens_ring, READ, input.near(0, 511));
    }
    let mut ours = Ioreqs::new(slots, vcpus, buffered.then_some(ring)).unwrap();
    assert_eq!(ours.vcpus(), vcpus);
    ours.set_buffered_port(RING_PORT);
    let mut returned = Returned::default();
    while !input.ended() {
        match input.byte() % 8 {
            0 => {
                let vcpu = u32::from(input.byte() % 6);
                let set = ours.set_port(vcpu, Port::new(vcpu));
                assert_eq!(set.is_ok(), vcpu < vcpus);
                if set.is_ok() {
                    returned.bound.insert(vcpu);
                }
                assert_eq!(ours.remote_port(vcpu).is_some(), vcpu < vcpus);
            }
            1 => {
                let vcpu = u32::from(input.byte() % 6);
                let is_one = ours.handle_event(Port::new(vcpu));
                assert_eq!(is_one, returned.bound.contains(&vcpu));
                assert!(ours.handle_event(RING_PORT));
            }
            2 => {
                returned.poll(&mut ours);
            }
            3 => {
                // Without a concurrent writer, the entries are used up at some time.
                let most = abi::IOREQ_BUFFER_SLOT_NUM + vcpus as usize + 1;
                let polls = (0..=most).take_while(|_| returned.poll(&mut ours)).count();
                assert!(polls <= most, "work without end");
                assert_eq!(ours.poll_request(), Ok(None));
            }
            4 => {
                let vcpu = u32::from(input.byte() % 6);
                returned.complete(&mut ours, vcpu, u64::from(input.word()) << 16);
            }
            5 => {
                // Each answer is announced once.
                while let Some(port) = ours.poll_notify() {
                    assert!(returned.answered.remove(&port.as_u32()), "{port}");
                    assert!(returned.bound.contains(&port.as_u32()));
                }
                returned
                    .answered
                    .retain(|vcpu| !returned.bound.contains(vcpu));
                assert!(returned.answered.is_empty(), "an answer is not announced");
            }
            6 if vcpus > 0 => {
                let at = usize::from(input.byte()) % (vcpus as usize * SLOT);
                match (at % SLOT, input.byte()) {
                    // A request as Xen would have it, more or less.
                    (STATE, bits @ 0..200) => {
                        let kind = u32::from(input.byte() % 10);
                        let value = u32::from(bits) << 16 | kind << 24;
                        store(&xen, at, value);
                    }
                    (STATE, _) => {
                        let value = load(&xen, at) & !0xf_0000 | 1 << 16;
                        store(&xen, at, value);
                    }
                    (_, small @ 0..200) => store(&xen, at, u32::from(small % 10)),
                    _ => store(&xen, at, input.word()),
                }
            }
            _ => match input.byte() % 8 {
                0..=2 => {
                    let value = input.near(load(&xens_ring, READ), 511);
                    store(&xens_ring, WRITE, value);
                }
                3 => {
                    let value = input.near(load(&xens_ring, WRITE), 511);
                    store(&xens_ring, READ, value);
                }
                4 => {
                    // As Xen keeps the pointers small.
                    let (read, write) = (load(&xens_ring, READ), load(&xens_ring, WRITE));
                    store(&xens_ring, READ, read.wrapping_sub(511));
                    store(&xens_ring, WRITE, write.wrapping_sub(511));
                }
                _ => {
                    let at = usize::from(input.byte()) * 4 + usize::from(input.byte() % 4);
                    store(&xens_ring, at % RING, input.word() & 0xffff_fc0f);
                }
            },
        }
    }
}

/// The requests and errors that were returned so far.
#[derive(Default)]
struct Returned {
    /// Virtual CPUs with a port, which has the same number.
    bound: BTreeSet<u32>,
    waiting: BTreeSet<u32>,
    failed: BTreeSet<u32>,
    answered: BTreeSet<u32>,
    ring_failed: bool,
}

impl Returned {
    /// Returns whether there was a request, or an error.
    fn poll(&mut self, ours: &mut Ioreqs) -> bool {
        match ours.poll_request() {
            Ok(None) => return false,
            Ok(Some(request)) => {
                assert!(matches!(request.size, 1 | 2 | 4 | 8) && request.count <= MAX_REPETITIONS);
                let count = request.count as usize;
                assert_eq!(request.elements().size_hint(), (count, Some(count)));
                assert_eq!(request.elements().take(3).count(), count.min(3));
                let _ = request.pci();
                match request.vcpu {
                    Some(vcpu) => {
                        assert!(vcpu < ours.vcpus() && !self.failed.contains(&vcpu));
                        assert!(self.waiting.insert(vcpu), "a second request of {vcpu}");
                    }
                    None => assert!(!self.ring_failed, "a request after an error"),
                }
            }
            Err(error) => self.fail(error),
        }
        true
    }

    fn fail(&mut self, error: IoreqError) {
        match error {
            IoreqError::State { vcpu, .. }
            | IoreqError::Size { vcpu, .. }
            | IoreqError::Repetitions { vcpu, .. }
            | IoreqError::Kind {
                vcpu: Some(vcpu), ..
            } => assert!(self.failed.insert(vcpu), "a second error: {error}"),
            IoreqError::Kind { vcpu: None, .. } | IoreqError::Pointers { .. } => {
                assert!(!self.ring_failed, "a second error: {error}");
                self.ring_failed = true;
            }
            other => panic!("{other}"),
        }
    }

    fn complete(&mut self, ours: &mut Ioreqs, vcpu: u32, data: u64) {
        let waited = self.waiting.remove(&vcpu);
        match ours.complete(vcpu, data) {
            Ok(()) => {
                assert!(waited, "{vcpu} did not wait");
                self.answered.insert(vcpu);
            }
            Err(IoreqError::NoVcpu { .. }) => assert!(vcpu >= ours.vcpus()),
            Err(IoreqError::NotWaiting { .. }) => assert!(!waited),
            Err(error) => {
                assert!(waited, "{error}");
                self.fail(error);
            }
        }
    }
}
