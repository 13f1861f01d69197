//! How often the worker may ask for what: each kind of [`Request`] has a burst and a pause after
//! it.
//!
//! An order beyond its rate is neither refused nor lost: it waits, and with it all that follows.
//!
//! | order | at once | then one in | an honest worker |
//! |---|---|---|---|
//! | `Ready` | 1 | never | once: another breaks the rules |
//! | `Connect`, `Close` | 200 | 20 ms | once for each client with `--filter=off`, else once in 50 ms |
//! | `Bytes` | 65,536 | 25 µs | as the vchan takes them |
//! | `Took` | 16,384 | 100 µs | once for eight messages |
//! | `Unread` | 2000 | 1 ms | once in 5 ms, while a client that left has bytes on their way |
//! | `Counted` | 10 | 500 ms | once a second |
//! | `Stored` | 16 | 5 s | once for each save; it reads up to 128 MiB |

use std::time::{Duration, Instant};

use crate::proxy::ipc::Request;
use crate::rt::token_bucket::TokenBucket;

/// The rates. They outlive a worker: another in its place gets no new burst.
#[derive(Debug)]
pub struct Rates {
    connect: TokenBucket,
    close: TokenBucket,
    bytes: TokenBucket,
    unread: TokenBucket,
    took: TokenBucket,
    counted: TokenBucket,
    stored: TokenBucket,
}

impl Rates {
    /// All bursts are whole.
    pub fn new(now: Instant) -> Self {
        let rate = |most, micros| TokenBucket::new(most, 1, Duration::from_micros(micros), now);
        Self {
            connect: rate(200, 20_000),
            close: rate(200, 20_000),
            bytes: rate(65_536, 25),
            unread: rate(2000, 1000),
            took: rate(16_384, 100),
            counted: rate(10, 500_000),
            stored: rate(16, 5_000_000),
        }
    }

    /// Takes note of an order.
    ///
    /// # Errors
    /// It is too early; when it is not.
    pub fn take(&mut self, order: &Request<'_>, now: Instant) -> Result<(), Instant> {
        match order {
            // The broker itself ensures that this is received once.
            Request::Ready => return Ok(()),
            Request::Connect => &mut self.connect,
            Request::Close => &mut self.close,
            Request::Bytes(_) => &mut self.bytes,
            Request::Unread => &mut self.unread,
            Request::Took => &mut self.took,
            Request::Counted(_) => &mut self.counted,
            Request::Stored => &mut self.stored,
        }
        .try_take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::counters::Counters;

    #[test]
    fn every_kind_is_held_to_its_rate() {
        let start = Instant::now();
        let counted = Request::Counted(Counters::default());
        let kinds: [(Request<'_>, u64, u64); 7] = [
            (Request::Connect, 200, 50),
            (Request::Close, 200, 50),
            (Request::Bytes(b"x"), 65_536, 40_000),
            (Request::Unread, 2000, 1000),
            (Request::Took, 16_384, 10_000),
            (counted, 10, 2),
            (Request::Stored, 16, 1),
        ];
        for (order, burst, each_second) in kinds {
            let mut rates = Rates::new(start);
            let (mut now, mut taken) = (start, 0);
            while now < start + Duration::from_secs(10) {
                match rates.take(&order, now) {
                    Ok(()) => taken += 1,
                    Err(at) => {
                        assert!(at > now, "{order:?}");
                        now = at;
                    }
                }
            }
            assert!(taken <= burst + 10 * each_second, "{order:?}: {taken}");
            assert!(taken >= burst, "{order:?}: {taken}");
        }
    }
}
