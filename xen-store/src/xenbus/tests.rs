//! The handshake of both ends, by themselves and against each other.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn start() -> Instant {
    Instant::now()
}

const LATER: Duration = Duration::from_secs(2);

/// Lets the backend read `theirs` after a pause; returns its action and what it writes.
fn look(
    backend: &mut BackendHandshake,
    now: &mut Instant,
    theirs: Option<XenbusState>,
) -> (Option<BackendAction>, Option<XenbusState>) {
    *now += LATER;
    backend.handle_change();
    assert!(backend.poll_look(*now));
    backend.handle_state(theirs);
    (backend.poll_action(), backend.poll_write())
}

#[test]
fn the_values_are_those_of_the_header() {
    for (number, state) in [
        XenbusState::Unknown,
        XenbusState::Initialising,
        XenbusState::InitWait,
        XenbusState::Initialised,
        XenbusState::Connected,
        XenbusState::Closing,
        XenbusState::Closed,
        XenbusState::Reconfiguring,
        XenbusState::Reconfigured,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(state as usize, number);
        assert_eq!(state.as_str(), number.to_string());
        assert_eq!(XenbusState::from_node(number.to_string().as_bytes()), state);
    }
    for value in [&b""[..], b"9", b"04", b"4 ", b"44", b"-1", b"\xff"] {
        assert_eq!(XenbusState::from_node(value), XenbusState::Unknown);
    }
    assert_eq!(XenbusState::Closing.to_string(), "Closing (5)");
}

#[test]
fn a_backend_connects_once_for_an_offer_and_again_after_it_closed() {
    let mut now = start();
    let mut backend = BackendHandshake::new(now);
    assert_eq!(backend.poll_write(), Some(XenbusState::InitWait));
    assert_eq!(backend.poll_write(), None);
    let offer = Some(XenbusState::Initialised);
    let connect = (Some(BackendAction::Connect), None);
    // Not all of it is there: the next look asks again.
    assert_eq!(look(&mut backend, &mut now, offer), connect);
    assert_eq!(backend.poll_action(), None);
    assert_eq!(look(&mut backend, &mut now, offer), connect);
    backend.handle_connected();
    assert_eq!(backend.poll_write(), Some(XenbusState::Connected));
    let used = [XenbusState::Connected, XenbusState::Reconfigured];
    for theirs in used {
        assert_eq!(look(&mut backend, &mut now, Some(theirs)), (None, None));
    }
    let closing = look(&mut backend, &mut now, Some(XenbusState::Closing));
    assert_eq!(closing, (Some(BackendAction::Disconnect), None));
    assert_eq!(backend.poll_action(), Some(BackendAction::Disconnect));
    assert_eq!(
        backend.poll_timeout(),
        None,
        "nothing is read before it is done"
    );
    backend.handle_disconnected();
    assert_eq!(backend.poll_write(), Some(XenbusState::Closed));
    let anew = look(&mut backend, &mut now, Some(XenbusState::Initialising));
    assert_eq!(anew, (None, Some(XenbusState::InitWait)));
    assert_eq!(look(&mut backend, &mut now, offer), connect);
}

#[test]
fn a_refused_offer_is_not_tried_again_before_the_frontend_closes() {
    let mut now = start();
    let mut backend = BackendHandshake::new(now);
    backend.poll_write();
    let offer = Some(XenbusState::Initialised);
    look(&mut backend, &mut now, offer);
    backend.handle_refused();
    assert_eq!(backend.poll_write(), Some(XenbusState::Closing));
    assert_eq!(look(&mut backend, &mut now, offer), (None, None));
    assert_eq!(look(&mut backend, &mut now, None), (None, None));
    look(&mut backend, &mut now, Some(XenbusState::Closed));
    let (action, _) = look(&mut backend, &mut now, offer);
    assert_eq!(action, Some(BackendAction::Connect));
}

#[test]
fn a_frontend_that_began_anew_unseen_is_disconnected_first() {
    let mut now = start();
    let mut backend = BackendHandshake::new(now);
    look(&mut backend, &mut now, Some(XenbusState::Initialised));
    backend.handle_connected();
    backend.poll_write();
    for theirs in [
        None,
        Some(XenbusState::Unknown),
        Some(XenbusState::Initialising),
    ] {
        let mut backend = backend.clone();
        let (action, _) = look(&mut backend, &mut now, theirs);
        assert_eq!(action, Some(BackendAction::Disconnect), "{theirs:?}");
    }
}

#[test]
fn a_frontend_that_keeps_writing_is_read_once_a_second() {
    let begin = start();
    let mut backend = BackendHandshake::new(begin);
    let mut looks = Vec::new();
    for millis in 0..120_000 {
        let now = begin + Duration::from_millis(millis);
        backend.handle_change();
        if backend.poll_look(now) {
            looks.push(now);
            backend.handle_state(Some(XenbusState::Closing));
        }
    }
    assert!(looks.len() <= 16 + 8 + 120, "{}", looks.len());
    let fast = looks.windows(2).all(|two| two[1] - two[0] >= LOOK_MIN);
    assert!(fast);
    assert!(
        looks
            .windows(2)
            .rev()
            .take(60)
            .all(|two| two[1] - two[0] == LOOK_MAX)
    );
}

#[test]
fn a_frontend_publishes_connects_and_closes_in_order() {
    let now = start();
    let mut frontend = FrontendHandshake::new(Some(XenbusState::Closed)).unwrap();
    assert_eq!(frontend.poll_write(), Some(XenbusState::Initialising));
    assert_eq!(frontend.poll_action(), None);
    frontend.handle_state(Some(XenbusState::InitWait));
    assert_eq!(frontend.poll_action(), Some(FrontendAction::Publish));
    assert_eq!(frontend.poll_action(), None);
    frontend.handle_published();
    assert_eq!(frontend.poll_write(), Some(XenbusState::Initialised));
    frontend.handle_state(Some(XenbusState::Connected));
    assert_eq!(frontend.poll_write(), Some(XenbusState::Connected));
    assert!(frontend.is_connected());
    assert_eq!(frontend.poll_timeout(), None);
    frontend.close(now, LATER);
    frontend.close(now + LATER, LATER);
    assert_eq!(frontend.poll_timeout(), Some(now + LATER));
    assert_eq!(frontend.poll_write(), Some(XenbusState::Closing));
    assert_eq!(frontend.poll_write(), None, "the backend has the ring");
    frontend.handle_state(Some(XenbusState::Closing));
    assert_eq!(frontend.poll_write(), Some(XenbusState::Closed));
    assert!(!frontend.is_done());
    frontend.handle_state(Some(XenbusState::Closed));
    assert!(frontend.is_done());
    assert_eq!(frontend.poll_timeout(), None);
}

#[test]
fn a_backend_that_does_not_answer_is_waited_for_until_the_deadline() {
    let now = start();
    let mut frontend = FrontendHandshake::new(None).unwrap();
    frontend.handle_published();
    frontend.close(now, LATER);
    assert_eq!(frontend.poll_write(), Some(XenbusState::Closing));
    frontend.handle_timeout(now + LATER / 2);
    assert_eq!((frontend.poll_write(), frontend.is_done()), (None, false));
    frontend.handle_timeout(now + LATER);
    assert_eq!(frontend.poll_write(), Some(XenbusState::Closed));
    assert!(frontend.is_done());
}

#[test]
fn a_device_with_a_frontend_is_in_use() {
    for state in [
        XenbusState::InitWait,
        XenbusState::Initialised,
        XenbusState::Connected,
        XenbusState::Closing,
        XenbusState::Reconfigured,
    ] {
        assert_eq!(
            FrontendHandshake::new(Some(state)).unwrap_err(),
            InUse(state)
        );
    }
    assert!(FrontendHandshake::new(Some(XenbusState::Unknown)).is_ok());
}

/// Any state, or no node.
fn states() -> impl Strategy<Value = Option<XenbusState>> {
    proptest::option::of((0u8..10).prop_map(|n| XenbusState::from_node(&[b'0' + n])))
}

/// Both ends, with the nodes between them and the ring's mapping.
struct Pair {
    now: Instant,
    backend: BackendHandshake,
    frontend: FrontendHandshake,
    of_backend: Option<XenbusState>,
    of_frontend: Option<XenbusState>,
    mapped: bool,
}

impl Pair {
    fn new() -> Self {
        let now = start();
        Self {
            now,
            backend: BackendHandshake::new(now),
            frontend: FrontendHandshake::new(None).unwrap(),
            of_backend: Some(XenbusState::Initialising),
            of_frontend: Some(XenbusState::Initialising),
            mapped: false,
        }
    }

    fn step(&mut self, step: u8) {
        match step {
            0 => {
                if self.backend.poll_look(self.now) {
                    self.backend.handle_state(self.of_frontend);
                }
            }
            1 => match self.backend.poll_action() {
                Some(BackendAction::Connect) => {
                    assert!(!self.mapped, "connected twice");
                    self.mapped = true;
                    self.backend.handle_connected();
                }
                Some(BackendAction::Disconnect) => {
                    assert!(self.mapped);
                    self.mapped = false;
                    self.backend.handle_disconnected();
                }
                None => {}
            },
            2 => self.of_backend = self.backend.poll_write().or(self.of_backend),
            3 => self.frontend.handle_state(self.of_backend),
            4 => match self.frontend.poll_action() {
                Some(FrontendAction::Publish) => self.frontend.handle_published(),
                Some(FrontendAction::Disconnect) => self.frontend.close(self.now, LATER),
                None => {}
            },
            5 => {
                if let Some(state) = self.frontend.poll_write() {
                    self.of_frontend = Some(state);
                    self.backend.handle_change();
                }
            }
            _ => self.now += Duration::from_millis(100),
        }
    }

    /// Runs until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.now += LOOK_MAX;
            (0..6).for_each(|n| self.step(n));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    #[test]
    fn two_ends_connect_and_close_in_every_order(
        before in proptest::collection::vec(0u8..7, 0..60),
        after in proptest::collection::vec(0u8..7, 0..60),
    ) {
        let mut pair = Pair::new();
        before.into_iter().for_each(|step| pair.step(step));
        pair.settle();
        prop_assert!(pair.mapped && pair.frontend.is_connected() && pair.backend.is_connected());
        pair.frontend.close(pair.now, Duration::from_secs(1000));
        for step in after {
            pair.step(step);
            // The ring is not given back while the backend has it.
            prop_assert!(!(pair.mapped && pair.frontend.is_done()));
        }
        pair.settle();
        prop_assert!(!pair.mapped && pair.frontend.is_done());
        prop_assert_eq!(pair.of_backend, Some(XenbusState::Closed));
        prop_assert_eq!(pair.of_frontend, Some(XenbusState::Closed));
        // A second frontend, on the same nodes.
        pair.frontend = FrontendHandshake::new(pair.of_frontend).unwrap();
        pair.settle();
        prop_assert!(pair.mapped && pair.frontend.is_connected());
    }

    #[test]
    fn no_frontend_makes_a_backend_connect_twice_or_write_without_end(
        steps in proptest::collection::vec((states(), 0u64..200, 0u8..8), 0..200),
    ) {
        let mut backend = BackendHandshake::new(start());
        let mut now = start();
        let (mut mapped, mut written, mut caused) = (false, 0, 1);
        for (theirs, millis, act) in steps {
            now += Duration::from_millis(millis);
            backend.handle_change();
            if backend.poll_look(now) {
                backend.handle_state(theirs);
                caused += 1;
            }
            match backend.poll_action() {
                Some(BackendAction::Connect) => {
                    prop_assert!(!mapped);
                    match act {
                        0 => {}
                        1 => backend.handle_refused(),
                        _ => {
                            mapped = true;
                            backend.handle_connected();
                        }
                    }
                    caused += 1;
                }
                Some(BackendAction::Disconnect) if act > 3 => {
                    prop_assert!(mapped);
                    mapped = false;
                    backend.handle_disconnected();
                    caused += 1;
                }
                _ => {}
            }
            written += backend.poll_write().into_iter().count();
            prop_assert!(written <= caused);
            prop_assert_eq!(backend.is_connected(), mapped);
        }
    }

    #[test]
    fn no_backend_keeps_a_frontend_beyond_its_deadline(
        steps in proptest::collection::vec(states(), 0..40),
        closes in 0usize..40,
    ) {
        let now = start();
        let mut frontend = FrontendHandshake::new(None).unwrap();
        let mut written = Vec::new();
        frontend.handle_published();
        for (n, theirs) in steps.into_iter().enumerate() {
            if n == closes {
                frontend.close(now, LATER);
            }
            frontend.handle_state(theirs);
            written.extend(frontend.poll_write());
        }
        frontend.close(now, LATER);
        frontend.handle_timeout(now + LATER);
        while let Some(state) = frontend.poll_write() {
            written.push(state);
        }
        prop_assert!(frontend.is_done());
        // Initialised, perhaps Connected, Closing, Closed.
        prop_assert!(written.len() <= 4, "{written:?}");
        prop_assert_eq!(&written[written.len() - 2..], [XenbusState::Closing, XenbusState::Closed]);
    }
}
