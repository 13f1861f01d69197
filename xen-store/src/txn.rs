//! Transactions: several changes that happen together or not at all.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use crate::client::Store;
use crate::error::{Error, Result};
use crate::proto::Tx;
use crate::request::{EndTransaction, Request, StartTransaction};

/// The most attempts of [`Store::with_transaction`].
pub const MAX_ATTEMPTS: u32 = 64;
/// The longest pause of [`Store::with_transaction`] between two attempts.
pub const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The span from which a pause is drawn, at most, in multiples of the duration of the attempt
/// before it.
const MAX_SPREAD: u32 = 64;

/// A set of reads and changes that the daemon carries out as one, or refuses as one.
///
/// It sees the store as it was at its start plus its own changes; no other client sees those until
/// [`Transaction::commit`]. Dropped without a commit it is aborted, without waiting.
///
/// A daemon allows each domain only a few at a time (10 by default in xenstored), and a long one is
/// likely to meet a conflict: open late, commit soon.
#[derive(Debug)]
#[must_use = "dropping a transaction aborts it"]
#[doc(alias = "xs_transaction_t")]
pub struct Transaction {
    store: Store,
    tx: Tx,
    live: bool,
}

impl Store {
    /// Starts a transaction.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`] with `EBUSY` or `ENOSPC` if this domain has too many open.
    #[doc(alias = "xs_transaction_start")]
    pub fn transaction(&self) -> Result<Transaction> {
        let start = StartTransaction {};
        let (answer, epoch) = self.call(Tx::NONE, start.encode()?, None);
        let id = start.decode(answer)?;
        Ok(Transaction {
            store: self.clone(),
            tx: Tx { id, epoch },
            live: true,
        })
    }

    /// Runs `body` in a transaction and commits it. After a conflict it starts again, up to
    /// [`MAX_ATTEMPTS`] times.
    ///
    /// After a conflict it pauses for a random time, so that conflicting clients spread out: less
    /// than the attempt took at first, twice as long a span after each further conflict, up to 64
    /// times what an attempt took and never more than [`MAX_PAUSE`].
    ///
    /// A transaction that is lost with its connection ([`Store::reconnecting`]) is begun again too,
    /// unless its commit was sent: then it may have been carried out, and the call fails with
    /// [`Error::Lost`].
    ///
    /// `body` may run several times; only what it does through the transaction is undone. If it
    /// fails with anything but a conflict, the transaction is aborted and the error returned.
    ///
    /// # Errors
    ///
    /// The error of `body`; [`Error::Conflict`] when the attempts are used up, or [`Error::Lost`]
    /// if the last one was lost with its connection.
    ///
    /// ```no_run
    /// # fn f(store: &xen_store::Store) -> xen_store::Result<()> {
    /// let count = store.with_transaction(|t| {
    ///     let count = t.read_str("/tool/count")?.parse().unwrap_or(0) + 1;
    ///     t.write("/tool/count", count.to_string())?;
    ///     Ok(count)
    /// })?;
    /// # Ok(()) }
    /// ```
    pub fn with_transaction<T>(
        &self,
        mut body: impl FnMut(&Transaction) -> Result<T>,
    ) -> Result<T> {
        let mut attempt = 1;
        loop {
            let begun = Instant::now();
            let outcome = self.transaction().and_then(|transaction| {
                let value = body(&transaction)?;
                Ok(transaction.commit()?.then_some(value))
            });
            if let Some(result) = settle(attempt, outcome) {
                return result;
            }
            self.pause(pause(attempt, begun.elapsed()))?;
            attempt += 1;
        }
    }
}

/// Returns the result of `with_transaction` after its attempt number `attempt`; `None` if it must
/// try again. An outcome of `None` is a conflict at the commit.
pub(crate) fn settle<T>(attempt: u32, outcome: Result<Option<T>>) -> Option<Result<T>> {
    match outcome {
        Ok(Some(value)) => Some(Ok(value)),
        Err(error) if !error.is_again() && !error.is_lost_transaction() => Some(Err(error)),
        _ if attempt < MAX_ATTEMPTS => None,
        Err(error) if error.is_lost_transaction() => Some(Err(error)),
        _ => Some(Err(Error::Conflict { attempts: attempt })),
    }
}

/// Returns how long to pause after this many conflicts, the last of which took `took`.
pub(crate) fn pause(conflicts: u32, took: Duration) -> Duration {
    let spread = 2_u32.saturating_pow(conflicts - 1).min(MAX_SPREAD);
    let span = took.saturating_mul(spread).min(MAX_PAUSE);
    span.mul_f64(chance())
}

/// Returns a random number, at least 0 and below 1.
pub(crate) fn chance() -> f64 {
    // The standard library's only source of randomness; each state is another one.
    let chance = RandomState::new().hash_one(0_u8) >> 32;
    chance as f64 / 2_f64.powi(32)
}

impl Transaction {
    /// Carries out the changes. Returns `false` if another client changed what this transaction
    /// used: *nothing* was carried out then, so begin a new one.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`] other than `EAGAIN`. After [`Error::TimedOut`] the changes may or may not
    /// have been carried out.
    #[must_use = "`false` means that nothing was carried out"]
    #[doc(alias = "xs_transaction_end")]
    pub fn commit(mut self) -> Result<bool> {
        self.live = false;
        self.end(true)
    }

    /// Discards the changes, and waits until the daemon has done so. A drop does the same without
    /// waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`] if the daemon no longer has the transaction.
    pub fn abort(mut self) -> Result<()> {
        self.live = false;
        self.end(false).map(drop)
    }

    fn end(&self, commit: bool) -> Result<bool> {
        self.store.run(self.tx, &EndTransaction { commit })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn tx(&self) -> Tx {
        self.tx
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.live {
            let end = EndTransaction { commit: false };
            self.store.mux.send_detached(self.tx, &end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MsgType;

    #[test]
    fn pauses_spread_and_stay_within_their_bound() {
        let took = Duration::from_millis(2);
        for conflicts in 1..=MAX_ATTEMPTS {
            let span = took * 2_u32.saturating_pow(conflicts - 1).min(MAX_SPREAD);
            let pauses: Vec<_> = (0..100).map(|_| pause(conflicts, took)).collect();
            assert!(pauses.iter().all(|pause| *pause < span));
            assert!(pauses.iter().any(|pause| *pause > span / 8), "no chance");
            assert!(
                pauses.iter().any(|pause| *pause < span / 8 * 7),
                "no chance"
            );
        }
        assert!(pause(MAX_ATTEMPTS, Duration::MAX) <= MAX_PAUSE);
    }

    #[test]
    fn the_last_attempt_decides_which_error_is_returned() {
        let lost = |may_be_done| {
            let lost = Error::Lost {
                op: MsgType::WRITE,
                transaction: Some(7),
                may_be_done,
            };
            Err::<Option<()>, _>(lost)
        };
        assert!(matches!(settle(1, Ok(Some(5))), Some(Ok(5))));
        assert!(settle::<()>(1, Ok(None)).is_none());
        assert!(settle(MAX_ATTEMPTS - 1, lost(false)).is_none());
        let sent = settle(1, lost(true));
        assert!(matches!(sent, Some(Err(Error::Lost { .. }))), "{sent:?}");
        let last = settle(MAX_ATTEMPTS, lost(false));
        assert!(matches!(last, Some(Err(Error::Lost { .. }))), "{last:?}");
        let last = settle::<()>(MAX_ATTEMPTS, Ok(None));
        assert!(
            matches!(last, Some(Err(Error::Conflict { attempts: 64 }))),
            "{last:?}"
        );
    }
}
