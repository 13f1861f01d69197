//! Changes to this domain's network interfaces, asked of the kernel over rtnetlink.
//!
//! Each request is answered before the next is sent; a refusal is the system's error.
//! (`rtnetlink(7)`, `linux/if_link.h`.)

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `struct ifinfomsg`: family, padding, type, index, flags, change mask.
const HEADER: usize = 16;
/// More than the kernel answers to a request: its error number and the request.
const ANSWER_MAX: usize = 4096;
/// How many messages that are no answer to the request are passed over.
const STRANGERS_MAX: usize = 64;

const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_PASSTHRU: u32 = 8;

/// The flag of an interface that is up.
const UP: u32 = libc::IFF_UP as u32;
/// It takes every frame, whatever its address.
const PROMISCUOUS: u32 = libc::IFF_PROMISC as u32;

/// The kernel's end of all this.
#[derive(Debug)]
pub struct Links {
    socket: OwnedFd,
    sequence: u32,
}

impl Links {
    /// Opens a socket.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// The system's. `ENODEV`: there is none of that number.
    pub fn bring_up(&mut self, index: u32) -> io::Result<()> {
        self.request(0, Change::flags(index, UP))
    }

    /// As [`bring_up`](Self::bring_up), and the interface takes every frame.
    ///
    /// # Errors
    /// The system's.
    pub fn bring_up_for_all(&mut self, index: u32) -> io::Result<()> {
        self.request(0, Change::flags(index, UP | PROMISCUOUS))
    }

    /// Makes a macvtap that has the interface `below` for itself: its descriptor reads all that
    /// arrives there, and what is written to the descriptor leaves there.
    ///
    /// # Errors
    /// The system's. `EOPNOTSUPP`: no module macvtap; `EEXIST`: the name is taken; `EINVAL`,
    /// `EBUSY`: something else uses `below`.
    #[doc(alias = "MACVLAN_MODE_PASSTHRU")]
    pub fn make_macvtap(&mut self, name: &str, below: u32) -> io::Result<()> {
        self.request(NLM_F_CREATE | NLM_F_EXCL, Change::macvtap(name, below))
    }

    fn request(&mut self, flags: u16, change: Change) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(change));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())?;
        self.answer()
    }

    fn answer(&self) -> io::Result<()> {
        let mut buffer = vec![0; ANSWER_MAX];
        for _ in 0..STRANGERS_MAX {
            let count = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            let message = NetlinkMessage::<Change>::deserialize(bytes).map_err(io::Error::other)?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(answer) = message.payload {
                return match answer.code {
                    None => Ok(()),
                    Some(_) => Err(answer.to_io()),
                };
            }
        }
        Err(io::Error::other("the kernel does not answer"))
    }
}

/// `RTM_NEWLINK`: an interface as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    index: u32,
    /// The flags that are to be set.
    flags: u32,
    attributes: Vec<DefaultNla>,
}

impl Change {
    fn flags(index: u32, flags: u32) -> Self {
        Self {
            index,
            flags,
            attributes: Vec::new(),
        }
    }

    fn macvtap(name: &str, below: u32) -> Self {
        let mode = MACVLAN_MODE_PASSTHRU.to_ne_bytes().to_vec();
        let data = nested(&[DefaultNla::new(IFLA_MACVLAN_MODE, mode)]);
        let info = nested(&[
            DefaultNla::new(IFLA_INFO_KIND, b"macvtap".to_vec()),
            DefaultNla::new(IFLA_INFO_DATA, data),
        ]);
        let mut named = name.as_bytes().to_vec();
        named.push(0);
        Self {
            index: 0,
            flags: 0,
            attributes: vec![
                DefaultNla::new(IFLA_IFNAME, named),
                DefaultNla::new(IFLA_LINK, below.to_ne_bytes().to_vec()),
                DefaultNla::new(IFLA_LINKINFO, info),
            ],
        }
    }
}

/// Attributes as the value of another.
fn nested(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    value
}

impl NetlinkSerializable for Change {
    fn message_type(&self) -> u16 {
        libc::RTM_NEWLINK
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let Some((header, attributes)) = buffer.split_at_mut_checked(HEADER) else {
            return;
        };
        let words = [0, self.index, self.flags, self.flags];
        for (place, word) in header.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        self.attributes.as_slice().emit(attributes);
    }
}

/// Interfaces are never asked for: what is no error is none of ours.
impl NetlinkDeserializable for Change {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, _: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::flags(0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `ip link add link 5 name net0 type macvtap mode passthru` sends it.
    #[test]
    fn the_request_is_laid_out_as_the_kernel_reads_it() {
        let change = Change::macvtap("net0", 5);
        let mut bytes = vec![0xff; NetlinkSerializable::buffer_len(&change)];
        change.serialize(&mut bytes);
        #[rustfmt::skip]
        let expected = [
            0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,
            9, 0, 3, 0,  b'n', b'e', b't', b'0',  0, 0, 0, 0,
            8, 0, 5, 0,  5, 0, 0, 0,
            28, 0, 18, 0,
                11, 0, 1, 0,  b'm', b'a', b'c', b'v',  b't', b'a', b'p', 0,
                12, 0, 2, 0,
                    8, 0, 1, 0,  8, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        let up = Change::flags(7, UP);
        let mut bytes = vec![0xff; NetlinkSerializable::buffer_len(&up)];
        up.serialize(&mut bytes);
        assert_eq!(bytes, [0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }

    /// The kernel's own answer: the number is beyond any interface's, whoever asks.
    #[test]
    fn a_refusal_is_the_systems_error() {
        let mut links = Links::open().unwrap();
        for _ in 0..2 {
            let error = links.bring_up(0x7fff_fff0).unwrap_err();
            let number = error.raw_os_error().unwrap();
            assert!([libc::ENODEV, libc::EPERM].contains(&number), "{error}");
        }
    }
}
