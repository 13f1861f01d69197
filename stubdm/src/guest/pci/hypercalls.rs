//! The hypercalls of QEMU's PCI passthrough, checked and made for it.
//!
//! QEMU's privcmd refuses all hypercalls once the guest runs. These are the ones that a device
//! needs; the request is copied once, and what is checked is what is made.
//!
//! | call | checked |
//! |---|---|
//! | `XEN_DOMCTL_getdomaininfo` | the domain is the guest |
//! | `XEN_DOMCTL_memory_mapping` | and the frames are of one range of a device |
//! | `XEN_DOMCTL_ioport_mapping` | and the ports are of one range of a device |
//! | `XEN_DOMCTL_bind_pt_irq`, `unbind_pt_irq` | and the interrupt was mapped here; by line or message |
//! | `PHYSDEVOP_map_pirq` | and the line is a device's, or the message a device's by its address on the host |
//! | `PHYSDEVOP_unmap_pirq` | and the interrupt was mapped here |
//!
//! # Safety
//! A hypercall is not safe code because Xen reads and writes the memory that its arguments name.
//! These have one struct each, in a buffer of this process, and the operations in the table hold no
//! address.
#![allow(unsafe_code)]

use std::collections::BTreeSet;

use nix::errno::Errno;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, PciFunction};

use super::devices::Resources;

/// The hypercalls (`xen/include/public/xen.h`).
const PHYSDEV_OP: u64 = 33;
const DOMCTL: u64 = 36;

/// Operations (`domctl.h`, `physdev.h`).
const GET_DOMAIN_INFO: u32 = 5;
const BIND: u32 = 38;
const MEMORY_MAPPING: u32 = 39;
const IOPORT_MAPPING: u32 = 40;
const UNBIND: u32 = 48;
const MAP_PIRQ: u64 = 13;
const UNMAP_PIRQ: u64 = 14;

/// Bytes of their structs.
const DOMCTL_SIZE: usize = 144;
const MAP_PIRQ_SIZE: usize = 40;
const UNMAP_PIRQ_SIZE: usize = 8;

/// The offset of a domctl's own struct.
const BODY: usize = 16;

/// Kinds of interrupts for `bind_pt_irq`: a line of the device's, and its messages.
const BY_LINE: u32 = 0;
const BY_MESSAGE: u32 = 2;

/// Kinds of interrupts for `map_pirq`.
const MESSAGE: u32 = 0;
const LINE: u32 = 1;
const MESSAGE_OF_SEGMENT: u32 = 3;

/// The most interrupts that QEMU may have mapped at a time.
const PIRQS: usize = 8192;

/// A copy of a request of QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where QEMU has the struct.
    pub address: u64,
    /// The struct.
    pub bytes: Vec<u8>,
    op: u64,
    command: u64,
}

/// A device, by its address on the host, and what belongs to it.
pub type Device = (PciFunction, Resources);

impl Request {
    /// Returns the request for a hypercall and its arguments, without the struct's bytes; `None`
    /// for any other hypercall.
    pub fn of(op: u64, args: [u64; 5]) -> Option<Self> {
        let (command, address, size) = match (op, args) {
            (DOMCTL, [address, ..]) => (0, address, DOMCTL_SIZE),
            (PHYSDEV_OP, [MAP_PIRQ, address, ..]) => (MAP_PIRQ, address, MAP_PIRQ_SIZE),
            (PHYSDEV_OP, [UNMAP_PIRQ, address, ..]) => (UNMAP_PIRQ, address, UNMAP_PIRQ_SIZE),
            _ => return None,
        };
        Some(Self {
            address,
            bytes: vec![0; size],
            op,
            command,
        })
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or_default()
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// Returns whether this is a hypercall of passthrough, and not one that a QEMU makes while it
    /// starts.
    fn is_known(&self) -> bool {
        let known = [
            GET_DOMAIN_INFO,
            BIND,
            MEMORY_MAPPING,
            IOPORT_MAPPING,
            UNBIND,
        ];
        self.op == PHYSDEV_OP || known.contains(&self.word(0))
    }
}

/// The decision on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Make,
    /// It fails with `EPERM`.
    Refuse(&'static str),
    /// It is none of this module's; the kernel decides.
    Leave,
}

/// The interrupts that were mapped for QEMU, and the guest that it may do so for.
#[derive(Debug)]
pub struct Judge {
    guest: DomId,
    pirqs: BTreeSet<u32>,
}

impl Judge {
    /// Nothing is mapped yet.
    pub fn new(guest: DomId) -> Self {
        Self {
            guest,
            pirqs: BTreeSet::new(),
        }
    }

    /// Decides on a request.
    pub fn judge(&self, request: &Request, devices: &[Device]) -> Verdict {
        use Verdict::{Leave, Make, Refuse};
        if !request.is_known() {
            return Leave;
        }
        let domain = match request.op {
            DOMCTL => request.half(8),
            _ => request.half(0),
        };
        if domain != self.guest.as_u16() {
            return Refuse("another domain than the guest");
        }
        let make = |right, refusal| if right { Make } else { Refuse(refusal) };
        let any = |test: &dyn Fn(&Device) -> bool| devices.iter().any(test);
        match (request.op, request.command) {
            (PHYSDEV_OP, MAP_PIRQ) if self.pirqs.len() >= PIRQS => Refuse("too many interrupts"),
            (PHYSDEV_OP, MAP_PIRQ) => match request.word(4) {
                LINE => {
                    let line = request.word(8);
                    make(
                        line != 0 && any(&|(_, has)| has.irq == line),
                        "an interrupt line of no device",
                    )
                }
                MESSAGE | MESSAGE_OF_SEGMENT => {
                    let (place, function) = (request.word(16), request.word(20));
                    let table = request.long(32);
                    let is_it = |(host, has): &Device| {
                        let segment = match request.word(4) {
                            MESSAGE => host.segment() == 0 && place < 0x100,
                            _ => true,
                        };
                        let sbdf = place >> 16 << 16 | (place & 0xff) << 8 | function & 0xff;
                        segment
                            && place & 0xff00 == 0
                            && function < 0x100
                            && sbdf == host.sbdf()
                            // Xen checks the entry against the table's size.
                            && (table == 0 || has.begins_at(table))
                    };
                    make(any(&is_it), "a message of no device")
                }
                _ => Refuse("an unknown kind of interrupt"),
            },
            (PHYSDEV_OP, UNMAP_PIRQ) => make(
                self.pirqs.contains(&request.word(4)),
                "an interrupt that was not mapped",
            ),
            _ => match request.word(0) {
                GET_DOMAIN_INFO => Make,
                MEMORY_MAPPING => {
                    let (first, count) = (request.long(BODY + 8), request.long(BODY + 16));
                    make(
                        any(&|(_, has)| has.has_frames(first, count)),
                        "frames of no device",
                    )
                }
                IOPORT_MAPPING => {
                    let (first, count) = (request.word(BODY + 4), request.word(BODY + 8));
                    let within = |(_, has): &Device| has.has_ports(first.into(), count.into());
                    make(any(&within), "ports of no device")
                }
                BIND | UNBIND => make(
                    matches!(request.word(BODY + 4), BY_LINE | BY_MESSAGE)
                        && self.pirqs.contains(&request.word(BODY)),
                    "an interrupt that was not mapped, or of another kind",
                ),
                _ => Leave,
            },
        }
    }

    /// Notes what a request has done.
    pub fn done(&mut self, request: &Request) {
        match (request.op, request.command) {
            (PHYSDEV_OP, MAP_PIRQ) => self.pirqs.insert(request.word(12)),
            (PHYSDEV_OP, UNMAP_PIRQ) => self.pirqs.remove(&request.word(4)),
            _ => false,
        };
    }
}

/// Makes a request for which [`Judge::judge`] has returned [`Verdict::Make`]; its bytes are Xen's
/// afterwards.
///
/// # Errors
/// Xen's.
pub fn make(privcmd: &Privcmd, request: &mut Request) -> Result<i64, Errno> {
    let failed = |error: xen_sys::Error| Errno::from_raw(error.errno().unwrap_or(libc::EIO));
    if !request.is_known() {
        return Err(Errno::EPERM);
    }
    let size = request.bytes.len();
    let mut buffer = privcmd.buffer(size).map_err(failed)?;
    let room = buffer.bytes_mut().get_mut(..size).ok_or(Errno::EIO)?;
    room.copy_from_slice(&request.bytes);
    let address = buffer.as_ptr().as_ptr() as u64;
    let args = match request.op {
        DOMCTL => [address, 0, 0, 0, 0],
        _ => [request.command, address, 0, 0, 0],
    };
    // SAFETY: the hypercall is one of the operations of `is_known`, or `map_pirq` or `unmap_pirq`
    // by `Request::of`, which alone makes requests. Xen reads and writes one struct at `address`,
    // of the size that `Request::of` gave the bytes, where the buffer has as many. None of these
    // structs holds an address, and no reference to the buffer is live. They change what belongs to
    // another domain, and nothing in the memory of this one.
    let result = unsafe { privcmd.hypercall(request.op, args) }.map_err(failed)?;
    let bytes = buffer.bytes().get(..size).ok_or(Errno::EIO)?;
    request.bytes.copy_from_slice(bytes);
    Ok(result)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::devices::tests::device;
    use super::*;

    pub(in crate::guest::pci) const GUEST: u16 = 7;

    /// Makes a hypercall as QEMU's library does, on a descriptor that there is not.
    pub(in crate::guest::pci) fn as_qemu(op: u64, [first, second]: [u64; 2]) -> Result<i64, Errno> {
        let words = [op, first, second, 0, 0, 0];
        // SAFETY: without a descriptor the kernel does nothing.
        Errno::result(unsafe { libc::ioctl(-1, 48 << 16 | 0x5000, words.as_ptr()) }).map(i64::from)
    }

    /// A request to map frames.
    pub(in crate::guest::pci) fn frames(domain: u16, first: u32, count: u32) -> Vec<u8> {
        domctl(MEMORY_MAPPING, domain, &[9, 0, first, 0, count, 0, 1]).bytes
    }

    fn devices() -> Vec<Device> {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path());
        let host = PciFunction::new(0, 0, 8, 0).unwrap();
        vec![(host, Resources::read(dir.path()))]
    }

    fn domctl(command: u32, domain: u16, body: &[u32]) -> Request {
        let mut request = Request::of(DOMCTL, [0x1000, 0, 0, 0, 0]).unwrap();
        request.bytes[..4].copy_from_slice(&command.to_le_bytes());
        request.bytes[8..10].copy_from_slice(&domain.to_le_bytes());
        fill(&mut request, BODY, body);
        request
    }

    fn physdev(command: u64, words: &[u32]) -> Request {
        let mut request = Request::of(PHYSDEV_OP, [command, 0x1000, 0, 0, 0]).unwrap();
        fill(&mut request, 0, words);
        request
    }

    fn fill(request: &mut Request, at: usize, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        request.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    fn is_made(judge: &Judge, request: &Request) -> bool {
        match judge.judge(request, &devices()) {
            Verdict::Make => {
                let none = judge.judge(request, &[]);
                let info = request.word(0) == GET_DOMAIN_INFO && request.op == DOMCTL;
                let pirq = [BIND, UNBIND].contains(&request.word(0)) && request.op == DOMCTL;
                let unmap = request.command == UNMAP_PIRQ;
                assert_eq!(none == Verdict::Make, info || pirq || unmap, "{none:?}");
                true
            }
            Verdict::Refuse(_) => false,
            Verdict::Leave => panic!("it is left to the kernel"),
        }
    }

    fn judge() -> Judge {
        Judge::new(DomId::new(GUEST))
    }

    #[test]
    fn only_the_calls_of_passthrough_are_judged() {
        let args = [1, 2, 3, 4, 5];
        for op in (0..64).filter(|op| ![DOMCTL, PHYSDEV_OP].contains(op)) {
            assert_eq!(Request::of(op, args), None, "{op}");
        }
        for command in (0..64).filter(|command| ![MAP_PIRQ, UNMAP_PIRQ].contains(command)) {
            assert_eq!(Request::of(PHYSDEV_OP, [command, 2, 3, 4, 5]), None);
        }
        let judged = [
            GET_DOMAIN_INFO,
            BIND,
            MEMORY_MAPPING,
            IOPORT_MAPPING,
            UNBIND,
        ];
        for command in 0..100 {
            let verdict = judge().judge(&domctl(command, GUEST, &[]), &devices());
            assert_eq!(verdict == Verdict::Leave, !judged.contains(&command));
        }
    }

    #[test]
    fn every_call_for_another_domain_is_refused() {
        let mut judge = judge();
        judge.pirqs.insert(40);
        let frames = [0, 0, 0xfebc0, 0, 32, 0, 1];
        let bind = [40, BY_MESSAGE];
        for (command, body) in [
            (GET_DOMAIN_INFO, &[][..]),
            (MEMORY_MAPPING, &frames),
            (IOPORT_MAPPING, &[0xc040, 0xc040, 32, 1]),
            (BIND, &bind),
            (UNBIND, &bind),
        ] {
            assert!(is_made(&judge, &domctl(command, GUEST, body)), "{command}");
            for other in [0, GUEST + 1, 0x7ff0] {
                assert!(!is_made(&judge, &domctl(command, other, body)));
            }
        }
        for (command, words) in [(MAP_PIRQ, [7, LINE, 17]), (UNMAP_PIRQ, [7, 40, 0])] {
            let words = &words[..if command == UNMAP_PIRQ { 2 } else { 3 }];
            assert!(is_made(&judge, &physdev(command, words)));
            let mut other = physdev(command, words);
            other.bytes[..2].copy_from_slice(&0x7ff0_u16.to_le_bytes());
            assert!(!is_made(&judge, &other));
        }
    }

    #[test]
    fn frames_and_ports_are_a_devices() {
        let judge = judge();
        let frames = |first, count| domctl(MEMORY_MAPPING, GUEST, &[9, 0, first, 0, count, 0, 1]);
        assert!(is_made(&judge, &frames(0xfebc1, 2)));
        assert!(!is_made(&judge, &frames(0xfebbf, 2)));
        assert!(!is_made(&judge, &frames(0xfebdf, 2)));
        let high = domctl(MEMORY_MAPPING, GUEST, &[9, 0, 0xfebc1, 1, 2, 0, 1]);
        assert!(!is_made(&judge, &high));
        let many = domctl(MEMORY_MAPPING, GUEST, &[9, 0, 0xfebc1, 0, 2, 1, 1]);
        assert!(!is_made(&judge, &many));
        let ports = |first, count| domctl(IOPORT_MAPPING, GUEST, &[9, first, count, 1]);
        assert!(is_made(&judge, &ports(0xc050, 16)));
        assert!(!is_made(&judge, &ports(0xc050, 17)) && !is_made(&judge, &ports(0xcf8, 8)));
    }

    #[test]
    fn messages_and_lines_are_a_devices() {
        let judge = judge();
        let line = |line| physdev(MAP_PIRQ, &[7, LINE, line, u32::MAX]);
        assert!(is_made(&judge, &line(17)));
        assert!(!is_made(&judge, &line(16)) && !is_made(&judge, &line(0)));
        // A device without an interrupt.
        let without = [(devices()[0].0, Resources::default())];
        let verdict = judge.judge(&line(0), &without);
        assert!(matches!(verdict, Verdict::Refuse(_)), "{verdict:?}");
        let message = |kind, bus, function, entry, table| {
            let minus = u32::MAX;
            let words = [7, kind, minus, minus, bus, function, entry, 0, table, 0];
            physdev(MAP_PIRQ, &words)
        };
        for kind in [MESSAGE, MESSAGE_OF_SEGMENT] {
            assert!(is_made(&judge, &message(kind, 0, 0x40, 0, 0)));
            assert!(is_made(&judge, &message(kind, 0, 0x40, 4, 0xfebc_0000)));
            for (bus, function, entry, table) in [
                (0, 0x48, 0, 0),
                (1, 0x40, 0, 0),
                (0x1_0000, 0x40, 0, 0),
                (0x100, 0x40, 0, 0),
                (0, 0x140, 0, 0),
                (0, 0x40, 0, 0xfebc_1000),
            ] {
                let other = message(kind, bus, function, entry, table);
                assert!(!is_made(&judge, &other), "{other:?}");
            }
        }
        for kind in [2, 4, 5] {
            assert!(!is_made(&judge, &message(kind, 0, 0x40, 0, 0)), "{kind}");
        }
    }

    #[test]
    fn interrupts_are_those_that_were_mapped() {
        let mut judge = judge();
        let bind = |kind| domctl(BIND, GUEST, &[55, kind]);
        let unmap = physdev(UNMAP_PIRQ, &[7, 55]);
        assert!(!is_made(&judge, &bind(BY_MESSAGE)) && !is_made(&judge, &unmap));
        // As Xen answers it.
        judge.done(&physdev(MAP_PIRQ, &[7, LINE, 17, 55]));
        for kind in 0..6 {
            let right = [BY_LINE, BY_MESSAGE].contains(&kind);
            assert_eq!(is_made(&judge, &bind(kind)), right, "{kind}");
        }
        assert!(is_made(&judge, &unmap));
        judge.done(&unmap);
        assert!(!is_made(&judge, &bind(BY_MESSAGE)) && !is_made(&judge, &unmap));
        judge.pirqs.extend(0..PIRQS as u32);
        assert!(!is_made(&judge, &physdev(MAP_PIRQ, &[7, LINE, 17])));
    }
}
