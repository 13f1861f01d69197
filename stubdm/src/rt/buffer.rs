//! A byte queue with a limit: what does not fit stays in its source.

use std::collections::VecDeque;

/// Bytes held for each direction of a session.
pub const SIZE: usize = 64 << 10;

/// Bytes on their way. Holds up to its limit, plus what one [`Buffer::append`] adds.
#[derive(Debug)]
pub struct Buffer {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Buffer {
    /// An empty queue that asks for no more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
        }
    }

    /// Returns how many more bytes fit.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.bytes.len())
    }

    /// Returns whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds bytes at the end. Callers read at most [`Buffer::room`] bytes beforehand.
    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Returns the next bytes to write: perhaps fewer than all, empty only when nothing waits.
    pub fn front(&self) -> &[u8] {
        let (first, second) = self.bytes.as_slices();
        if first.is_empty() { second } else { first }
    }

    /// Removes the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_across_the_wrap() {
        let mut buffer = Buffer::new(8);
        let mut out = Vec::new();
        let mut next = 0u8;
        while out.len() < 200 {
            let room = buffer.room().min(3);
            let chunk: Vec<u8> = (0..room).map(|i| next.wrapping_add(i as u8)).collect();
            next = next.wrapping_add(room as u8);
            buffer.append(&chunk);
            let front = buffer.front().to_vec();
            assert_eq!(front.is_empty(), buffer.is_empty());
            let taken = front.len().min(2);
            out.extend_from_slice(&front[..taken]);
            buffer.consume(taken);
        }
        assert!(out.iter().enumerate().all(|(i, b)| *b == i as u8));
    }

    #[test]
    fn room_ends_at_the_limit() {
        let mut buffer = Buffer::new(4);
        buffer.append(b"abcdef");
        assert_eq!(buffer.room(), 0);
        buffer.consume(100);
        assert_eq!(buffer.room(), 4);
    }
}
