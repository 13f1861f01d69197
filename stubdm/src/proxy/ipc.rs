//! The messages of the two halves: short ones, over a pair of SOCK_SEQPACKET sockets.
//!
//! Neither side's messages accumulate. At most [`WINDOW`] messages of bytes are on their way in
//! each direction; after half a window the receiver sends [`Request::Took`] or [`Event::Took`].
//! Everything else is one question and one answer, or is sent at most once a second. A socket
//! buffer holds far more than that, so a full one means that the partner violated the protocol.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use crate::proxy::counters::Counters;
use crate::rt::poll::sleep;

/// The most bytes in one message.
pub const CHUNK: usize = 3072;
/// Messages of bytes that may be on their way in one direction.
pub const WINDOW: usize = 16;
/// After how many of them the receiver confirms.
pub const HALF: usize = WINDOW / 2;

/// From the worker to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The worker is confined; sent once.
    Ready,
    /// Close the vchan if there is one, and connect again; answered with [`Event::Up`] or
    /// [`Event::Down`].
    Connect,
    /// Close the vchan.
    Close,
    /// For the other end of the vchan.
    Bytes(&'a [u8]),
    /// How much has the other end not read yet? Answered with [`Event::Unread`].
    Unread,
    /// [`HALF`] messages of bytes were taken.
    Took,
    /// The counters so far, for administrators to read; once a second at most.
    Counted(Counters),
    /// Is the saved state where the toolstack looks for it? Answered with [`Event::Stored`].
    Stored,
}

/// From the broker to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The vchan is connected; all earlier messages are about an earlier one.
    Up,
    /// It could not be.
    Down {
        /// A server can still appear.
        may_come: bool,
        /// Why not.
        why: &'a str,
    },
    /// From the other end of the vchan.
    Bytes(&'a [u8]),
    /// The vchan is of no more use.
    Lost {
        /// The other end left it in good order.
        ended: bool,
        /// The reason otherwise.
        why: &'a str,
    },
    /// The answer to [`Request::Unread`].
    Unread(u32),
    /// [`HALF`] messages of bytes were taken.
    Took,
    /// The answer to [`Request::Stored`]: it is, or why not.
    Stored(Result<(), &'a str>),
}

impl<'a> Request<'a> {
    /// As a message.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Ready => vec![b'r'],
            Self::Connect => vec![b'c'],
            Self::Close => vec![b'x'],
            Self::Bytes(bytes) => tagged(b'b', bytes),
            Self::Unread => vec![b'u'],
            Self::Took => vec![b't'],
            Self::Counted(counters) => tagged(b'n', counters.as_bytes()),
            Self::Stored => vec![b's'],
        }
    }

    /// Parses a message; `None` for what no honest worker sends.
    pub fn decode(message: &'a [u8]) -> Option<Self> {
        Some(match message {
            [b'r'] => Self::Ready,
            [b'c'] => Self::Connect,
            [b'x'] => Self::Close,
            [b'b', bytes @ ..] if !bytes.is_empty() => Self::Bytes(bytes),
            [b'u'] => Self::Unread,
            [b't'] => Self::Took,
            [b'n', bytes @ ..] => Self::Counted(Counters::read_from_bytes(bytes).ok()?),
            [b's'] => Self::Stored,
            _ => return None,
        })
    }
}

impl<'a> Event<'a> {
    /// As a message.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Up => vec![b'u'],
            Self::Down { may_come, why } => with_text(if may_come { b'd' } else { b'D' }, why),
            Self::Bytes(bytes) => tagged(b'b', bytes),
            Self::Lost { ended, why } => with_text(if ended { b'l' } else { b'L' }, why),
            Self::Unread(count) => tagged(b'n', &count.to_ne_bytes()),
            Self::Took => vec![b't'],
            Self::Stored(Ok(())) => vec![b's'],
            Self::Stored(Err(why)) => with_text(b'S', why),
        }
    }

    /// Parses a message; `None` for what the broker never sends.
    pub fn decode(message: &'a [u8]) -> Option<Self> {
        let (tag, rest) = message.split_first()?;
        let why = std::str::from_utf8(rest).unwrap_or_default();
        Some(match tag {
            b'u' => Self::Up,
            b'd' | b'D' => Self::Down {
                may_come: *tag == b'd',
                why,
            },
            b'b' => Self::Bytes(rest),
            b'l' | b'L' => Self::Lost {
                ended: *tag == b'l',
                why,
            },
            b'n' => Self::Unread(u32::from_ne_bytes(rest.try_into().ok()?)),
            b't' => Self::Took,
            b's' => Self::Stored(Ok(())),
            b'S' => Self::Stored(Err(why)),
            _ => return None,
        })
    }
}

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + bytes.len());
    message.push(tag);
    message.extend_from_slice(bytes);
    message
}

/// A message with a line of text that is cut to fit.
fn with_text(tag: u8, text: &str) -> Vec<u8> {
    tagged(tag, stubdm_qmp::text::cut(text, CHUNK / 2).as_bytes())
}

/// One end of the pair.
#[derive(Debug)]
pub struct IpcSocket(OwnedFd);

/// The result of receiving.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// The other half has closed the socket.
    End,
}

impl IpcSocket {
    /// Takes an end over.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Both ends.
    ///
    /// # Errors
    /// The system's.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends a message at once.
    ///
    /// # Errors
    /// The other half has ended, or does not keep to the window.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        loop {
            match nix::unistd::write(&self.0, message) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes the next message, if there is one.
    ///
    /// # Errors
    /// The system's.
    pub fn receive(&self) -> io::Result<Received> {
        let mut buffer = [0; 1 + CHUNK];
        loop {
            return match nix::unistd::read(&self.0, &mut buffer) {
                Ok(0) | Err(Errno::ECONNRESET) => Ok(Received::End),
                Ok(count) => Ok(Received::Message(
                    buffer.get(..count).unwrap_or_default().to_vec(),
                )),
                Err(Errno::EAGAIN) => Ok(Received::Nothing),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Sleeps until there is a message and takes it; `None` if the other half has ended.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.receive()? {
                Received::Message(message) => return Ok(Some(message)),
                Received::End => return Ok(None),
                Received::Nothing => {}
            }
            sleep(&[(self.0.as_fd(), PollFlags::POLLIN)], None)?;
        }
    }
}

impl AsFd for IpcSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_decoded_and_nothing_else_is() {
        let bytes = [7; CHUNK];
        for order in [
            Request::Ready,
            Request::Connect,
            Request::Close,
            Request::Bytes(&bytes),
            Request::Unread,
            Request::Took,
            Request::Counted(Counters {
                sessions: 1,
                longest_us: u64::MAX,
                ..Counters::default()
            }),
            Request::Stored,
        ] {
            assert_eq!(Request::decode(&order.encode()), Some(order));
        }
        for notice in [
            Event::Up,
            Event::Down {
                may_come: true,
                why: "no server",
            },
            Event::Bytes(&bytes),
            Event::Lost {
                ended: false,
                why: "a lie",
            },
            Event::Unread(77),
            Event::Took,
            Event::Stored(Ok(())),
            Event::Stored(Err("cut short")),
        ] {
            assert_eq!(Event::decode(&notice.encode()), Some(notice));
        }
        for wrong in [
            &b""[..],
            b"b",
            b"cc",
            b"?",
            b"\0\0",
            b"n",
            &[b'n'; 64],
            &[b'n'; 66],
        ] {
            assert_eq!(Request::decode(wrong), None, "{wrong:?}");
        }
        let long = "é".repeat(CHUNK);
        let why = Event::Lost {
            ended: false,
            why: &long,
        };
        assert!(why.encode().len() <= 1 + CHUNK / 2);
    }

    #[test]
    fn two_windows_and_questions_fit_the_socket() {
        let (a, b) = IpcSocket::pair().unwrap();
        for _ in 0..WINDOW {
            a.send(&Request::Bytes(&[0; CHUNK]).encode()).unwrap();
            a.send(&Request::Unread.encode()).unwrap();
        }
        assert!(matches!(b.receive(), Ok(Received::Message(m)) if m.len() == 1 + CHUNK));
        drop(a);
        for _ in 1..2 * WINDOW {
            assert!(matches!(b.receive(), Ok(Received::Message(_))));
        }
        assert_eq!(b.receive().unwrap(), Received::End);
    }
}
