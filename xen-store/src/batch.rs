//! Many requests in flight together.
//!
//! A *plan* returns the next requests and takes their answers, without I/O; a *run* keeps a bounded
//! number of its requests in flight on a connection. Both clients drive the same run: see
//! `client.rs` and `tokio/mod.rs`.
//!
//! The answers are taken in the order of the requests, which is the daemons' own order. A run makes
//! its next requests when the first of those in flight is answered.

use std::collections::VecDeque;
use std::time::Instant;

use crate::directory::{Exchange, Step};
use crate::error::{Error, Result};
use crate::mux::{Mux, Stream};
use crate::proto::{Connection, RequestId, Tx};
use crate::request::{Encoded, Request};
use crate::wire::MsgType;

/// Requests of one batch, walk or snapshot that are in flight together. On the kernel's device it
/// is one, as its driver needs.
pub const MAX_IN_FLIGHT: usize = 128;

/// Requests that are sent together, each with its own result.
///
/// A batch is a [`Request`], a tuple of up to eight batches, or an array, slice or `Vec` of batches
/// of one type. `Output` has the same shape: a `Result` in place of each request.
///
/// ```no_run
/// # fn f(store: &xen_store::Store) -> xen_store::Result<()> {
/// use xen_store::request::{Directory, Optional, Read};
///
/// let (name, target, vifs) = store.batch((
///     Read { path: "name" },
///     Optional(Read { path: "target" }),
///     Directory { path: "device/vif" },
/// ));
/// let paths: Vec<String> = vifs?.iter().map(|vif| format!("device/vif/{vif}/mac")).collect();
/// let macs: Vec<Read> = paths.iter().map(|path| Read { path }).collect();
/// for mac in store.batch(macs) {
///     println!("{:?}", mac?);
/// }
/// # Ok(()) }
/// ```
///
/// Requests of different types with the same reply fit one `Vec` as
/// `Box<dyn Request<Reply = T>>`.
pub trait Batch {
    /// The results.
    type Output;

    /// Lays the requests out, in their order.
    #[doc(hidden)]
    fn encode_into(&self, requests: &mut Requests);

    /// Reads the answers, in the order of the requests.
    #[doc(hidden)]
    fn decode_from(&self, answers: &mut Answers) -> Self::Output;
}

/// Visible inside this crate only, so that no other crate can implement [`Batch`].
pub(crate) mod types {
    use crate::error::Result;
    use crate::request::Encoded;

    #[derive(Debug, Default)]
    pub struct Requests(pub(crate) Vec<Result<Encoded>>);

    #[derive(Debug)]
    pub struct Answers(pub(crate) std::vec::IntoIter<Option<Result<Vec<u8>>>>);
}

use types::{Answers, Requests};

impl<R: Request> Batch for R {
    type Output = Result<R::Reply>;

    fn encode_into(&self, requests: &mut Requests) {
        requests.0.push(self.encode());
    }

    fn decode_from(&self, answers: &mut Answers) -> Self::Output {
        // A request is without an answer only if the connection ended before the run reached it.
        self.decode(answers.0.next().flatten().unwrap_or(Err(Error::Closed)))
    }
}

macro_rules! lists {
    ($([$($generics:tt)*] $list:ty;)*) => {$(
        impl<$($generics)*> Batch for $list {
            type Output = Vec<B::Output>;

            fn encode_into(&self, requests: &mut Requests) {
                self.iter().for_each(|batch| batch.encode_into(requests));
            }

            fn decode_from(&self, answers: &mut Answers) -> Self::Output {
                self.iter().map(|batch| batch.decode_from(answers)).collect()
            }
        }
    )*};
}

lists! {
    [B: Batch] Vec<B>;
    [B: Batch] &[B];
}

impl<B: Batch, const N: usize> Batch for [B; N] {
    type Output = [B::Output; N];

    fn encode_into(&self, requests: &mut Requests) {
        self.iter().for_each(|batch| batch.encode_into(requests));
    }

    fn decode_from(&self, answers: &mut Answers) -> Self::Output {
        std::array::from_fn(|at| self[at].decode_from(answers))
    }
}

macro_rules! tuples {
    ($($($name:ident $at:tt),*;)*) => {$(
        impl<$($name: Batch),*> Batch for ($($name,)*) {
            type Output = ($($name::Output,)*);

            fn encode_into(&self, requests: &mut Requests) {
                $(self.$at.encode_into(requests);)*
            }

            fn decode_from(&self, answers: &mut Answers) -> Self::Output {
                // The fields of a tuple are evaluated in their order.
                ($(self.$at.decode_from(answers),)*)
            }
        }
    )*};
}

tuples! {
    A 0;
    A 0, B 1;
    A 0, B 1, C 2;
    A 0, B 1, C 2, D 3;
    A 0, B 1, C 2, D 3, E 4;
    A 0, B 1, C 2, D 3, E 4, F 5;
    A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
}

/// A source of requests, which makes one result from their answers. No I/O.
pub(crate) trait Plan {
    type Output;

    /// Returns the paths at or below which the plan reads.
    fn paths(&self) -> Vec<String>;

    /// Ends every request with this error, before the first is made.
    fn refuse(&mut self, error: &Error);

    /// Returns the next request that may be made now, and the number of its answer.
    fn poll_request(&mut self) -> Option<(usize, Encoded)>;

    /// Takes the answer to the request with this number. More requests may follow.
    fn handle_answer(&mut self, number: usize, answer: Result<Vec<u8>>);

    /// Returns the result, once every request is answered and there are no more.
    fn finish(self) -> Self::Output;
}

/// The requests of a [`Batch`].
#[derive(Debug)]
pub(crate) struct Requested<B> {
    batch: B,
    left: std::iter::Enumerate<std::vec::IntoIter<Result<Encoded>>>,
    answers: Vec<Option<Result<Vec<u8>>>>,
}

impl<B: Batch> Requested<B> {
    pub(crate) fn new(batch: B) -> Self {
        let mut requests = Requests::default();
        batch.encode_into(&mut requests);
        Self {
            batch,
            answers: requests.0.iter().map(|_| None).collect(),
            left: requests.0.into_iter().enumerate(),
        }
    }
}

impl<B: Batch> Plan for Requested<B> {
    type Output = B::Output;

    fn paths(&self) -> Vec<String> {
        let requests = self.left.clone().filter_map(|(_, request)| request.ok());
        requests
            .filter_map(|request| request.path_field().map(str::to_owned))
            .collect()
    }

    fn refuse(&mut self, error: &Error) {
        for (number, _) in self.left.by_ref() {
            self.answers[number] = Some(Err(error.clone()));
        }
    }

    fn poll_request(&mut self) -> Option<(usize, Encoded)> {
        loop {
            match self.left.next()? {
                (number, Ok(message)) => return Some((number, message)),
                (number, Err(invalid)) => self.handle_answer(number, Err(invalid)),
            }
        }
    }

    fn handle_answer(&mut self, number: usize, answer: Result<Vec<u8>>) {
        if let Some(slot) = self.answers.get_mut(number) {
            *slot = Some(answer);
        }
    }

    fn finish(self) -> B::Output {
        let mut answers = Answers(self.answers.into_iter());
        self.batch.decode_from(&mut answers)
    }
}

/// A request of a run, sent or not.
#[derive(Debug)]
struct Member {
    number: usize,
    op: MsgType,
    exchange: Exchange,
    /// It fetches the one list in parts that is in progress.
    is_listing: bool,
}

/// Returns whether requests of this type may belong to a transaction.
fn is_about_nodes(kind: MsgType) -> bool {
    matches!(
        kind,
        MsgType::READ
            | MsgType::WRITE
            | MsgType::MKDIR
            | MsgType::RM
            | MsgType::DIRECTORY
            | MsgType::DIRECTORY_PART
            | MsgType::GET_PERMS
            | MsgType::SET_PERMS
    )
}

/// A request of a run that is in flight, and its deadline.
type Sent = (RequestId, Option<Instant>, Member);

/// The requests in flight. Dropping this cancels them.
#[derive(Debug)]
struct InFlight<'a, S: Stream> {
    mux: &'a Mux<S>,
    sent: VecDeque<Sent>,
}

impl<S: Stream> Drop for InFlight<'_, S> {
    fn drop(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        // In a child of the process that made the connection there is nothing to cancel.
        if let Ok(mut state) = self.mux.enter() {
            for (id, ..) in &self.sent {
                state.proto.cancel(*id, true, None);
            }
            drop(self.mux.flush(state));
        }
    }
}

/// A plan being carried out on a connection. Dropping it cancels what is in flight.
#[derive(Debug)]
pub(crate) struct Run<'a, S: Stream, P> {
    tx: Tx,
    plan: P,
    /// Members that need more requests: lists to be fetched in parts. One is in progress at a time,
    /// because each may take much memory.
    lists: VecDeque<(Member, Encoded)>,
    is_listing: bool,
    in_flight: InFlight<'a, S>,
}

impl<'a, S: Stream, P: Plan> Run<'a, S, P> {
    pub(crate) fn new(mux: &'a Mux<S>, tx: Tx, plan: P) -> Self {
        Self {
            tx,
            plan,
            lists: VecDeque::new(),
            is_listing: false,
            in_flight: InFlight {
                mux,
                sent: VecDeque::new(),
            },
        }
    }

    /// Takes the answers that have arrived and makes the requests that there is room for, each with
    /// the given `deadline`. Returns the request to wait for and its deadline; `None` once all are
    /// answered.
    pub(crate) fn turn(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<(RequestId, Option<Instant>)> {
        let mux = self.in_flight.mux;
        match mux.enter() {
            Ok(mut state) => {
                self.take_answers(&mut state.proto);
                self.make_requests(&mut state.proto, deadline);
                drop(mux.flush(state));
            }
            Err(error) => self.stop(|_| error.clone()),
        }
        let (id, until, _) = self.in_flight.sent.front()?;
        Some((*id, *until))
    }

    fn take_answers(&mut self, proto: &mut Connection) {
        while let Some((id, ..)) = self.in_flight.sent.front() {
            let Some((answer, epoch)) = proto.take_reply(*id) else {
                return;
            };
            if let Some((.., member)) = self.in_flight.sent.pop_front() {
                self.handle_answer(member, answer, epoch);
            }
        }
    }

    fn handle_answer(&mut self, mut member: Member, answer: Result<Vec<u8>>, epoch: u64) {
        let was_listing = std::mem::take(&mut member.is_listing);
        self.is_listing &= !was_listing;
        match member.exchange.handle_answer(answer, epoch) {
            Step::Next(message) if was_listing => self.lists.push_front((member, message)),
            Step::Next(message) => self.lists.push_back((member, message)),
            Step::Done(answer) => self.plan.handle_answer(member.number, answer),
        }
    }

    fn make_requests(&mut self, proto: &mut Connection, deadline: Option<Instant>) {
        let most = if proto.quirks().one_at_a_time {
            1
        } else {
            MAX_IN_FLIGHT
        };
        while self.in_flight.sent.len() < most {
            let part = if self.is_listing {
                None
            } else {
                self.lists.pop_front()
            };
            let next = match part {
                Some((mut member, message)) => {
                    member.is_listing = true;
                    self.is_listing = true;
                    Some((member, message))
                }
                None => self.planned(),
            };
            let Some((member, message)) = next else {
                return;
            };
            let tx = if is_about_nodes(message.kind()) {
                self.tx
            } else {
                Tx::NONE
            };
            match proto.submit_in(tx, message) {
                Ok(id) => self.in_flight.sent.push_back((id, deadline, member)),
                Err(error) => self.handle_answer(member, Err(error), proto.epoch()),
            }
        }
    }

    fn planned(&mut self) -> Option<(Member, Encoded)> {
        let (number, message) = self.plan.poll_request()?;
        let (exchange, message) = Exchange::begin(message);
        let member = Member {
            number,
            op: message.kind(),
            exchange,
            is_listing: false,
        };
        Some((member, message))
    }

    /// Ends the run at its deadline. Members that have an answer keep it; all others end with
    /// [`Error::TimedOut`], whether they were sent or not.
    pub(crate) fn expire(&mut self) {
        self.stop(|op| Error::TimedOut { op });
    }

    /// Ends every unanswered request with an error.
    pub(crate) fn stop(&mut self, why: impl Fn(MsgType) -> Error) {
        let mux = self.in_flight.mux;
        let mut state = mux.enter().ok();
        for (id, _, member) in std::mem::take(&mut self.in_flight.sent) {
            let answer = state.as_mut().and_then(|state| {
                let answer = state.proto.take_reply(id);
                state.proto.cancel(id, true, None);
                answer
            });
            let (answer, epoch) = answer.unwrap_or_else(|| (Err(why(member.op)), 0));
            self.handle_answer(member, answer, epoch);
        }
        if let Some(state) = state {
            drop(mux.flush(state));
        }
        while let Some((member, _)) = self.lists.pop_front().or_else(|| self.planned()) {
            let op = member.op;
            self.handle_answer(member, Err(why(op)), 0);
        }
    }

    /// Returns the result, after `turn` returned `None` or the run was ended.
    pub(crate) fn finish(self) -> P::Output {
        self.plan.finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    // The lint exempts test functions, but not the helpers beside them.
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use nix::errno::Errno;

    use super::*;
    use crate::proto::Quirks;
    use crate::request::{Mkdir, Read, ResetWatches};
    use crate::transport::Written;
    use crate::wire::{self, Header};

    /// A transport that takes everything and has nothing to read.
    #[derive(Debug, Default)]
    struct Sink(Mutex<Vec<u8>>);

    impl Stream for Sink {
        fn read(&self, _: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
            Ok(None)
        }

        fn writer(&self) -> impl Fn(&[u8]) -> Written {
            |bytes| {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Written::Some(bytes.len())
            }
        }
    }

    /// The headers written since the last call.
    fn written(mux: &Mux<Sink>) -> Vec<Header> {
        let bytes = std::mem::take(&mut *mux.stream().0.lock().unwrap());
        let (mut decoder, mut input) = (wire::Decoder::new(), &bytes[..]);
        std::iter::from_fn(|| decoder.next(&mut input).unwrap())
            .map(|message| Header {
                kind: message.kind,
                req_id: message.req_id,
                tx_id: message.tx_id,
                len: 0,
            })
            .collect()
    }

    fn answer(mux: &Mux<Sink>, to: Header) {
        let reply = wire::encode(to.kind, to.req_id, to.tx_id, &[b"x"]).unwrap();
        mux.lock().proto.handle_input(&reply).unwrap();
    }

    /// Requests beyond the limit are not even queued: those of other users are sent in between.
    #[test]
    fn on_the_device_one_request_of_a_batch_is_in_flight() {
        let mux = Mux::new(Sink::default(), Quirks::XENBUS);
        let batch = Requested::new(["/a", "/b", "/c"].map(|path| Read { path }));
        let mut run = Run::new(&mux, Tx::NONE, batch);
        for _ in 0..3 {
            assert!(run.turn(None).is_some());
            let sent = written(&mux);
            assert_eq!(sent.len(), 1);
            let other = Mkdir { path: "/other" }.encode().unwrap();
            mux.submit(Tx::NONE, other).unwrap();
            answer(&mux, sent[0]);
            drop(mux.flush(mux.lock()));
            let sent = written(&mux);
            let kinds: Vec<MsgType> = sent.iter().map(|sent| sent.kind).collect();
            assert_eq!(kinds, [MsgType::MKDIR]);
            answer(&mux, sent[0]);
        }
        assert!(run.turn(None).is_none());
        assert!(run.finish().into_iter().all(|value| value.unwrap() == b"x"));
    }

    #[test]
    fn requests_about_the_daemon_are_of_no_transaction() {
        let mux = Mux::new(Sink::default(), Quirks::SOCKET);
        let batch = Requested::new((Read { path: "/a" }, ResetWatches {}));
        let mut run = Run::new(&mux, Tx { id: 7, epoch: 0 }, batch);
        assert!(run.turn(None).is_some());
        let sent = written(&mux);
        assert_eq!(
            sent.iter().map(|sent| sent.tx_id).collect::<Vec<_>>(),
            [7, 0]
        );
        sent.into_iter().for_each(|sent| answer(&mux, sent));
        assert!(run.turn(None).is_none());
    }

    #[test]
    fn a_run_that_is_dropped_gives_its_requests_up() {
        let mux = Mux::new(Sink::default(), Quirks::SOCKET);
        let mut run = Run::new(&mux, Tx::NONE, Requested::new([Read { path: "/a" }; 2]));
        let (first, _) = run.turn(None).unwrap();
        let sent = written(&mux);
        drop(run);
        sent.into_iter().for_each(|sent| answer(&mux, sent));
        let mut state = mux.lock();
        assert!(state.proto.failure().is_none());
        let kept = state.proto.poll_reply(first);
        assert!(kept.is_none(), "the answer is kept for nobody: {kept:?}");
    }
}
