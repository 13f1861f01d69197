//! The messages between `consoled` and the screen's process, over a pair of SOCK_SEQPACKET sockets.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::process::Mode;

/// Viewers at once.
pub(super) const VIEWERS: usize = 8;
/// Bytes of a picture's place.
const MODE: usize = 16;
/// Bytes of a viewer's address: a port and an IPv6 address, which may stand for an IPv4 one.
const ADDRESS: usize = 18;

/// A VNC password, filled up with zeroes.
pub(super) type Password = [u8; 8];

/// From the screen's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It is in the sandbox, and has the frontend's pages; sent once.
    Ready,
    /// The viewers' addresses.
    Viewers(Vec<SocketAddr>),
    /// The frontend has its picture here from now on.
    Mode(Mode),
}

/// From `consoled`: the password that viewers need from now on; `None` lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetPassword(pub(super) Option<Password>);

impl Report {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut message = Vec::new();
        match self {
            Self::Ready => message.push(b'r'),
            Self::Viewers(viewers) => {
                message.push(b'v');
                for viewer in viewers.iter().take(VIEWERS) {
                    let address = match viewer.ip() {
                        IpAddr::V4(address) => address.to_ipv6_mapped(),
                        IpAddr::V6(address) => address,
                    };
                    message.extend(viewer.port().to_be_bytes());
                    message.extend(address.octets());
                }
            }
            Self::Mode(Mode(numbers)) => {
                message.push(b'm');
                message.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
            }
        }
        message
    }

    /// `None` for what no honest process sends.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        match message {
            [b'r'] => Some(Self::Ready),
            [b'v', rest @ ..] if rest.len() % ADDRESS == 0 => {
                let viewers = rest.chunks_exact(ADDRESS).take(VIEWERS + 1);
                let viewers: Option<Vec<_>> = viewers.map(address).collect();
                let viewers = viewers.filter(|viewers| viewers.len() <= VIEWERS);
                viewers.map(Self::Viewers)
            }
            [b'm', rest @ ..] if rest.len() == MODE => {
                let mut numbers = [0; MODE / 4];
                for (number, bytes) in numbers.iter_mut().zip(rest.chunks_exact(4)) {
                    *number = u32::from_be_bytes(bytes.try_into().ok()?);
                }
                Some(Self::Mode(Mode(numbers)))
            }
            _ => None,
        }
    }
}

fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (port, address) = bytes.split_at_checked(2)?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let address: [u8; 16] = address.try_into().ok()?;
    let address = Ipv6Addr::from(address).to_canonical();
    Some(SocketAddr::new(address, port))
}

impl SetPassword {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut message = vec![b'p'];
        message.extend(self.0.iter().flatten());
        message
    }

    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        match message {
            [b'p'] => Some(Self(None)),
            [b'p', password @ ..] => Some(Self(Some(password.try_into().ok()?))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written_and_others_are_refused() {
        let viewers = ["192.0.2.1:5", "[2001:db8::1]:65535"].map(|text| text.parse().unwrap());
        for report in [
            Report::Ready,
            Report::Viewers(Vec::new()),
            Report::Viewers(viewers.to_vec()),
            Report::Viewers(vec![viewers[0]; VIEWERS]),
            Report::Mode(Mode([1, u32::MAX, 3, 4])),
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        let many = [&[b'v'][..], &[0; ADDRESS * (VIEWERS + 1)]].concat();
        for wrong in [
            &b""[..],
            b"x",
            b"rr",
            b"v1",
            b"m123",
            &[b'm'; 18],
            &[0; 64],
            &many,
        ] {
            assert_eq!(Report::decode(wrong), None, "{wrong:?}");
        }
        for password in [None, Some(*b"secret\0\0")] {
            let message = SetPassword(password);
            assert_eq!(SetPassword::decode(&message.encode()), Some(message));
        }
        for wrong in [&b""[..], b"x", b"p1", b"p123456789"] {
            assert_eq!(SetPassword::decode(wrong), None, "{wrong:?}");
        }
    }
}
