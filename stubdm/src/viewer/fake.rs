//! A VNC server for tests, as small as it can be: QEMU's messages, in the order in which it sends
//! them.

use std::io::{self, Read, Write};

/// One connection.
pub(crate) struct Fake<S> {
    pub(crate) stream: S,
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// A message of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A request for an update.
    Request { incremental: bool },
    /// A key, by its scancode.
    Key { down: bool, scancode: u32 },
    /// Another message.
    Other,
}

impl<S: Read + Write> Fake<S> {
    fn read<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Exchanges versions and offers a type of security; returns the client's choice.
    pub(crate) fn security(&mut self, types: &[u8]) -> io::Result<u8> {
        self.stream.write_all(b"RFB 003.008\n")?;
        assert_eq!(&self.read::<12>()?, b"RFB 003.008\n");
        self.stream.write_all(&[types.len() as u8])?;
        self.stream.write_all(types)?;
        Ok(self.read::<1>()?[0])
    }

    /// Accepts the client, and sends size, format and name.
    pub(crate) fn accept(&mut self) -> io::Result<()> {
        self.stream.write_all(&[0; 4])?;
        assert_eq!(self.read::<1>()?, [1], "others may stay");
        let mut init = Vec::new();
        init.extend(self.width.to_be_bytes());
        init.extend(self.height.to_be_bytes());
        init.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
        init.extend([0, 0, 0, 4]);
        init.extend(b"QEMU");
        self.stream.write_all(&init)
    }

    /// Reads a message.
    pub(crate) fn message(&mut self) -> io::Result<Message> {
        match self.read::<1>()? {
            [0] => self.read::<19>().map(|_| Message::Other),
            [2] => {
                let [_, high, low] = self.read()?;
                for _ in 0..u16::from_be_bytes([high, low]) {
                    self.read::<4>()?;
                }
                Ok(Message::Other)
            }
            [3] => {
                let [incremental, ..] = self.read::<9>()?;
                let incremental = incremental != 0;
                Ok(Message::Request { incremental })
            }
            [4] => self.read::<7>().map(|_| Message::Other),
            [5] => self.read::<5>().map(|_| Message::Other),
            [255] => {
                let [_, _, down, _, _, _, _, a, b, c, d] = self.read()?;
                let scancode = u32::from_be_bytes([a, b, c, d]);
                let down = down != 0;
                Ok(Message::Key { down, scancode })
            }
            [other] => panic!("message {other}"),
        }
    }

    /// Announces scancodes, as QEMU does in an update of its own.
    pub(crate) fn announce(&mut self) -> io::Result<()> {
        let mut update = vec![0, 0, 0, 1];
        update.extend(self.rectangle(-258));
        self.stream.write_all(&update)
    }

    /// Sends the size alone.
    pub(crate) fn resize(&mut self) -> io::Result<()> {
        let mut update = vec![0, 0, 0, 1];
        update.extend(self.rectangle(-223));
        self.stream.write_all(&update)
    }

    /// Sends the size and all pixels, which are `0xRRGGBB` by column and row.
    pub(crate) fn picture(&mut self, pixel: impl Fn(u16, u16) -> u32) -> io::Result<()> {
        let mut update = vec![0, 0, 0, 2];
        update.extend(self.rectangle(-223));
        update.extend(self.rectangle(0));
        for y in 0..self.height {
            update.extend((0..self.width).flat_map(|x| pixel(x, y).to_le_bytes()));
        }
        self.stream.write_all(&update)
    }

    fn rectangle(&self, encoding: i32) -> Vec<u8> {
        let mut header = vec![0; 4];
        header.extend(self.width.to_be_bytes());
        header.extend(self.height.to_be_bytes());
        header.extend(encoding.to_be_bytes());
        header
    }
}
