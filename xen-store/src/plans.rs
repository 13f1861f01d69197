//! Batches, walks and snapshots on a connection in memory, without threads: for the fuzzer.

use std::fmt;
use std::sync::PoisonError;

use nix::errno::Errno;

use crate::batch::{Plan, Requested, Run};
use crate::error::{Error, Result};
use crate::mux::{Mux, Stream};
use crate::proto::{Failure, Quirks, Tx};
use crate::request::Read;
use crate::snapshot::{Snapshot, Tree};
use crate::sync::Mutex;
use crate::transport::Written;

/// The two directions of a connection: what the client sent and the daemon has not read yet, and
/// what the daemon sent and the client has not read yet.
#[derive(Debug, Default)]
struct Memory {
    sent: Mutex<Vec<u8>>,
    arrived: Mutex<Vec<u8>>,
}

impl Stream for Memory {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let count = arrived.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(arrived.drain(..count)) {
            *to = from;
        }
        Ok((count > 0).then_some(count))
    }

    fn writer(&self) -> impl Fn(&[u8]) -> Written {
        |bytes| {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.extend_from_slice(bytes);
            Written::Some(bytes.len())
        }
    }
}

/// The result of a plan.
#[derive(Debug)]
pub enum Outcome {
    /// Of a batch of reads, in their order.
    Values(Vec<Result<Vec<u8>>>),
    /// Of a walk.
    Paths(Result<Vec<String>>),
    /// Of a snapshot.
    Nodes(Result<Snapshot>),
}

/// A connection whose other end is the caller.
#[derive(Debug)]
pub struct MemoryConnection(Mux<Memory>);

/// A plan that is being carried out. Dropping it cancels its requests.
pub struct Running<'a>(Box<dyn PlanRun + 'a>);

trait PlanRun {
    fn turn(&mut self) -> bool;
    fn expire(&mut self);
    fn finish(self: Box<Self>) -> Outcome;
}

struct Finishes<'a, P: Plan> {
    run: Run<'a, Memory, P>,
    outcome: fn(P::Output) -> Outcome,
}

impl<P: Plan> PlanRun for Finishes<'_, P> {
    fn turn(&mut self) -> bool {
        self.run.turn(None).is_some()
    }

    fn expire(&mut self) {
        self.run.expire();
    }

    fn finish(self: Box<Self>) -> Outcome {
        (self.outcome)(self.run.finish())
    }
}

impl MemoryConnection {
    /// Creates a connection on which nothing was sent.
    #[must_use]
    pub fn new(quirks: Quirks) -> Self {
        Self(Mux::new(Memory::default(), quirks))
    }

    /// Begins a batch of reads in transaction `tx_id`, or in none (0).
    pub fn read_many<'a>(&'a self, tx_id: u32, paths: &'a [String]) -> Running<'a> {
        let requests = paths.iter().map(|path| Read { path });
        let plan = Requested::new(requests.collect::<Vec<_>>());
        self.run(tx_id, plan, Outcome::Values)
    }

    /// Begins a walk.
    pub fn walk(&self, tx_id: u32, path: &str, depth: u32) -> Running<'_> {
        self.run(tx_id, Tree::walk(path, depth), Outcome::Paths)
    }

    /// Begins a snapshot.
    pub fn snapshot(&self, tx_id: u32, path: &str) -> Running<'_> {
        self.run(tx_id, Tree::snapshot(path), Outcome::Nodes)
    }

    fn run<'a, P: Plan + 'a>(
        &'a self,
        tx_id: u32,
        plan: P,
        outcome: fn(P::Output) -> Outcome,
    ) -> Running<'a> {
        let tx = Tx {
            id: tx_id,
            epoch: 0,
        };
        let run = Run::new(&self.0, tx, plan);
        Running(Box::new(Finishes { run, outcome }))
    }

    /// Takes what the client sent.
    pub fn take_sent(&self) -> Vec<u8> {
        let sent = &self.0.stream().sent;
        std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passes bytes of the daemon to the client.
    pub fn deliver(&self, bytes: &[u8]) {
        let arrived = &self.0.stream().arrived;
        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.extend_from_slice(bytes);
        drop(arrived);
        drop(self.0.turn(self.0.lock()));
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.0.lock().proto.handle_failure(Failure::Closed);
    }

    /// Returns why the connection ended, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.0.lock().proto.failure().map(Error::from)
    }
}

impl Running<'_> {
    /// Takes the answers that have arrived and sends the requests that may follow. Returns `false`
    /// once all are answered.
    pub fn turn(&mut self) -> bool {
        self.0.turn()
    }

    /// Passes the deadline: unanswered requests end with [`Error::TimedOut`].
    pub fn expire(&mut self) {
        self.0.expire();
    }

    /// Returns the result, after `turn` returned `false`, or after `expire`.
    #[must_use]
    pub fn finish(self) -> Outcome {
        self.0.finish()
    }
}

impl fmt::Debug for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}
