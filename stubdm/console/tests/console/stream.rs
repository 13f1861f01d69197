//! Bytes to send and to check.

/// A stream of bytes that cannot be mistaken for another part of itself.
pub(crate) struct Stream(pub(crate) u64);

impl Stream {
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = (self.0 >> 24) as u8;
        }
    }
}
