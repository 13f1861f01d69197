//! The messages between a domain's process and the broker.
//!
//! One packet each way (`SOCK_SEQPACKET`), so there is no framing: a head of fixed size, then
//! 32-bit numbers, and descriptors beside it (`SCM_RIGHTS`).
//!
//! | request | `a` | `b` | `c` | `object` | numbers | reply: `a` | `object` | numbers | descriptors |
//! |---|---|---|---|---|---|---|---|---|---|
//! | [`HELLO`] | domain | | | | | domain | | | |
//! | [`BIND_UNBOUND`] | remote | | | | | port | | | wait, ring |
//! | [`BIND_INTERDOMAIN`] | remote | its port | | | | port | | | wait, ring |
//! | [`BIND_VIRQ`] | virtual interrupt | | | | | port | | | wait, ring |
//! | [`UNBIND`] | port | | | | | | | | |
//! | [`SHARE`] | to | pages | writable | | | | id | references, frames | memory |
//! | [`MAP`] | from | writable | | | references | | id | frames | memory |
//! | [`MAP_FOREIGN`] | of | writable | | | frames | | id | an errno for each | memory |
//! | [`MAP_RESOURCE`] | of | writable | | | kind, id, first, count | | id | frames | memory |
//! | [`RELEASE`] | | | | id | | | | | |
//! | [`SET_UNMAP_NOTIFY`] | action | port | offset | id | | | | | |
//! | [`STORE`] | | | | | | | | | connection |
//! | [`CREATE_DOMAIN`] | domain | | | | | domain | | | |
//! | [`DESTROY_DOMAIN`] | domain | | | | | | | | |
//! | [`GRANT_LIMITS`] | | | | | | | | pages: shareable, mappable, mapped | |
//! | [`HYPERCALL`] | number | operation | bytes wanted | | the struct | | result | struct, array | |

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(super) const HELLO: u32 = 1;
pub(super) const BIND_UNBOUND: u32 = 2;
pub(super) const BIND_INTERDOMAIN: u32 = 3;
pub(super) const UNBIND: u32 = 4;
pub(super) const SHARE: u32 = 5;
pub(super) const MAP: u32 = 6;
pub(super) const RELEASE: u32 = 7;
pub(super) const SET_UNMAP_NOTIFY: u32 = 8;
pub(super) const STORE: u32 = 9;
pub(super) const CREATE_DOMAIN: u32 = 10;
pub(super) const DESTROY_DOMAIN: u32 = 11;
pub(super) const BIND_VIRQ: u32 = 12;
pub(super) const HYPERCALL: u32 = 13;
pub(super) const MAP_FOREIGN: u32 = 14;
pub(super) const GRANT_LIMITS: u32 = 15;
pub(super) const MAP_RESOURCE: u32 = 16;

/// In place of a domain's number: the connection's own domain, or the next free number.
pub(super) const ANY_DOMAIN: u32 = u32::MAX;

/// The most pages in one share or mapping: 32 MiB. Keeps a packet far below a socket's buffer;
/// a vchan has at most 513.
pub(super) const MAX_PAGES: usize = 8192;

/// The most bytes in a packet: a head and two numbers per page.
pub(super) const MAX_PACKET: usize = size_of::<Reply>() + 2 * MAX_PAGES * size_of::<u32>();

/// The most descriptors beside a packet.
pub(super) const MAX_FDS: usize = 2;

/// Bytes as numbers, the last one filled up with zeros.
pub(super) fn numbers(bytes: &[u8]) -> Vec<u32> {
    let mut numbers = vec![0; bytes.len().div_ceil(size_of::<u32>())];
    numbers.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    numbers
}

/// The head of a request.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Request {
    pub(super) op: u32,
    pub(super) a: u32,
    pub(super) b: u32,
    pub(super) c: u32,
    pub(super) object: u64,
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Reply {
    /// Zero, or what is wrong.
    pub(super) errno: i32,
    pub(super) a: u32,
    pub(super) object: u64,
}

/// Sends a packet whole. `Errno::PIPE` or `CONNRESET` when the other side has closed.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    head: &[u8],
    numbers: &[u32],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    let iov = [IoSlice::new(head), IoSlice::new(numbers.as_bytes())];
    loop {
        match sendmsg(socket, &iov, &mut ancillary, flags | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            // A packet goes whole or not at all.
            result => return result.map(drop),
        }
    }
}

/// A decoded packet.
#[derive(Debug)]
pub(super) struct Packet<H> {
    pub(super) head: H,
    pub(super) numbers: Vec<u32>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Receives a packet; `None` when the other side closed. `buffer` bounds its size: a packet that
/// does not fit is an error.
pub(super) fn receive<H: FromBytes + Immutable + KnownLayout>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Option<Packet<H>>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut iov = [IoSliceMut::new(buffer)];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket, &mut iov, &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::MSGSIZE);
    }
    let Ok((head, rest)) = H::read_from_prefix(&buffer[..received.bytes]) else {
        return Err(Errno::BADMSG);
    };
    let numbers = rest
        .chunks_exact(size_of::<u32>())
        .filter_map(|bytes| u32::read_from_bytes(bytes).ok())
        .collect();
    Ok(Some(Packet { head, numbers, fds }))
}

/// A connected pair of sockets: the broker's end, which never blocks, and a domain's end.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// The borrowed forms of owned descriptors.
pub(super) fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_survives_the_way_with_its_numbers_and_descriptors() {
        let (a, b) = pair().unwrap();
        let head = Request {
            op: MAP,
            a: 1,
            b: 2,
            c: 3,
            object: 4,
        };
        let fd = std::fs::File::open("/dev/null").unwrap();
        let fds = [fd.as_fd(), b.as_fd()];
        send(
            b.as_fd(),
            head.as_bytes(),
            &[7, 8, 9],
            &fds,
            SendFlags::empty(),
        )
        .unwrap();
        let mut buffer = [0; 64];
        let p = receive::<Request>(a.as_fd(), &mut buffer, RecvFlags::empty())
            .unwrap()
            .unwrap();
        assert_eq!(
            (p.head.op, p.head.a, p.head.b, p.head.c, p.head.object),
            (MAP, 1, 2, 3, 4)
        );
        assert_eq!(p.numbers, [7, 8, 9]);
        assert_eq!(p.fds.len(), 2);
    }

    #[test]
    fn what_is_too_long_or_too_short_is_refused_and_an_end_is_an_end() {
        let (a, b) = pair().unwrap();
        let mut buffer = [0; 32];
        send(b.as_fd(), &[0; 33], &[], &[], SendFlags::empty()).unwrap();
        let r = receive::<Request>(a.as_fd(), &mut buffer, RecvFlags::empty());
        assert_eq!(r.unwrap_err(), Errno::MSGSIZE);
        send(b.as_fd(), &[0; 5], &[], &[], SendFlags::empty()).unwrap();
        let r = receive::<Request>(a.as_fd(), &mut buffer, RecvFlags::empty());
        assert_eq!(r.unwrap_err(), Errno::BADMSG);
        let r = receive::<Request>(a.as_fd(), &mut buffer, RecvFlags::empty());
        assert_eq!(r.unwrap_err(), Errno::AGAIN);
        drop(b);
        assert!(
            receive::<Request>(a.as_fd(), &mut buffer, RecvFlags::empty())
                .unwrap()
                .is_none()
        );
    }
}
