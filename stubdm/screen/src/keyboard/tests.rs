use proptest::prelude::*;

use super::*;
use crate::shared::SharedMemory;

const PAGE: usize = 4096;
const IN_CONS: usize = 0;
const IN_PROD: usize = 4;
/// Events in the ring.
const LENGTH: u32 = 51;

struct Frontend {
    page: SharedMemory,
    cons: u32,
}

/// An event as a frontend reads it: kind, flag, numbers.
type InputEvent = (u8, u8, [i32; 3]);

impl Frontend {
    /// The indices of the ring begin at `start`.
    fn new(start: u32) -> Self {
        let mut all = Self {
            page: SharedMemory::new(PAGE),
            cons: start,
        };
        all.page.put(IN_CONS, start);
        all.page.put(IN_PROD, start);
        all
    }

    fn attach(&self, absolute: bool) -> Result<Keyboard, RingError> {
        Keyboard::attach(self.page.backend(), absolute)
    }

    /// Takes all events out.
    fn take(&mut self) -> Vec<InputEvent> {
        let mut seen = Vec::new();
        while self.cons != self.page.number(IN_PROD) {
            let at = IN_RING_AT + (self.cons % LENGTH) as usize * EVENT;
            let mut bytes = [0; EVENT];
            self.page.frontend.copy_out(at, &mut bytes).unwrap();
            let number = |at| crate::event_ring::int(&bytes, at);
            seen.push((bytes[0], bytes[1], [number(4), number(8), number(12)]));
            self.cons = self.cons.wrapping_add(1);
        }
        self.page.put(IN_CONS, self.cons);
        seen
    }
}

fn key(keycode: i32, pressed: u8) -> InputEvent {
    (KEY, pressed, [keycode, 0, 0])
}

#[test]
fn keys_positions_buttons_and_the_wheel_arrive() {
    let mut frontend = Frontend::new(77);
    let mut keyboard = frontend.attach(true).unwrap();
    assert!(!keyboard.poll_notify());
    keyboard.handle_key(30, true).unwrap();
    keyboard.handle_key(30, true).unwrap();
    keyboard.handle_key(30, false).unwrap();
    keyboard.handle_key(30, false).unwrap();
    assert!(keyboard.poll_notify() && !keyboard.poll_notify());
    // A held key repeats; a release without a press is none.
    assert_eq!(frontend.take(), [key(30, 1), key(30, 1), key(30, 0)]);
    keyboard.handle_pointer(5, 6, 0).unwrap();
    keyboard.handle_pointer(5, 6, 4).unwrap();
    keyboard.handle_wheel(2).unwrap();
    keyboard.handle_pointer(7, 6, 3).unwrap();
    let expected = [
        (POSITION, 0, [5, 6, 0]),
        key(0x111, 1),
        (POSITION, 0, [5, 6, -2]),
        (POSITION, 0, [7, 6, 0]),
        key(0x110, 1),
        key(0x112, 1),
        key(0x111, 0),
    ];
    assert_eq!(frontend.take(), expected);
    keyboard.release_all().unwrap();
    assert_eq!(frontend.take(), [key(0x110, 0), key(0x112, 0)]);
    assert_eq!(keyboard.dropped(), 0);
}

#[test]
fn a_frontend_without_positions_gets_movements() {
    let mut frontend = Frontend::new(0);
    let mut keyboard = frontend.attach(false).unwrap();
    keyboard.handle_pointer(100, 100, 0).unwrap();
    assert_eq!(frontend.take(), []);
    keyboard.handle_pointer(90, 107, 0).unwrap();
    keyboard.handle_wheel(-1).unwrap();
    let expected = [(MOTION, 0, [-10, 7, 0]), (MOTION, 0, [0, 0, 1])];
    assert_eq!(frontend.take(), expected);
}

#[test]
fn a_full_ring_loses_events_and_no_release() {
    let mut frontend = Frontend::new(0);
    let mut keyboard = frontend.attach(true).unwrap();
    keyboard.handle_key(42, true).unwrap();
    for _ in 1..LENGTH {
        keyboard.handle_key(30, true).unwrap();
    }
    assert_eq!((keyboard.dropped(), keyboard.waits_for_room()), (0, false));
    keyboard.handle_key(30, false).unwrap();
    keyboard.handle_pointer(1, 1, 1).unwrap();
    assert_eq!((keyboard.dropped(), keyboard.waits_for_room()), (3, true));
    assert_eq!(frontend.take().len(), 51);
    keyboard.handle_room().unwrap();
    assert!(!keyboard.waits_for_room());
    assert_eq!(frontend.take(), [key(30, 0), key(42, 0)]);
    // The place and the button that were dropped are sent again.
    keyboard.handle_pointer(1, 1, 1).unwrap();
    assert_eq!(frontend.take(), [(POSITION, 0, [1, 1, 0]), key(0x110, 1)]);
}

#[test]
fn many_keys_at_once_are_limited() {
    let mut frontend = Frontend::new(0);
    let mut keyboard = frontend.attach(true).unwrap();
    for keycode in 1..=200 {
        keyboard.handle_key(keycode, true).unwrap();
        frontend.take();
    }
    assert_eq!(keyboard.dropped(), 200 - PRESSED_MAX as u64);
}

#[test]
fn indices_that_cannot_be_are_refused() {
    let mut frontend = Frontend::new(0);
    frontend.page.put(IN_PROD, LENGTH + 1);
    assert!(frontend.attach(true).is_err());
    frontend.page.put(IN_PROD, 0);
    let mut keyboard = frontend.attach(true).unwrap();
    for cons in [1, u32::MAX - LENGTH] {
        frontend.page.put(IN_CONS, cons);
        let broken = keyboard.handle_key(1, true);
        assert!(matches!(broken, Err(RingError::Indices { prod: 0, .. })));
    }
    // The own index is not read again.
    frontend.page.put(IN_CONS, 0);
    frontend.page.put(IN_PROD, 17);
    keyboard.handle_key(1, true).unwrap();
    assert_eq!(frontend.page.number(IN_PROD), 1);
}

proptest! {
    /// The frontend has no key as pressed once it took all events after the release of all, however
    /// many events found its ring full before.
    #[test]
    fn no_key_stays_pressed(
        steps in proptest::collection::vec((1u16..12, any::<bool>(), 0u8..10), 1..400),
        // The wrap is the protocol's own fault (`Ring::place`).
        start in 0..u32::MAX - 1000,
    ) {
        let mut frontend = Frontend::new(start);
        let mut keyboard = frontend.attach(true).unwrap();
        let mut held = BTreeSet::new();
        let mut see = |seen: Vec<InputEvent>| {
            for (kind, pressed, [keycode, ..]) in seen {
                match (kind, pressed) {
                    (KEY, 0) => drop(held.remove(&keycode)),
                    (KEY, _) => drop(held.insert(keycode)),
                    _ => {}
                }
            }
            held.len()
        };
        for (number, pressed, take) in steps {
            if number == 11 {
                keyboard.handle_pointer(number, take.into(), u8::from(pressed)).unwrap();
            } else {
                keyboard.handle_key(number, pressed).unwrap();
            }
            if take == 0 {
                see(frontend.take());
            }
        }
        see(frontend.take());
        keyboard.release_all().unwrap();
        prop_assert_eq!(see(frontend.take()), 0);
    }

    /// Any places of the indices.
    #[test]
    fn any_indices_are_survived(places in proptest::collection::vec(any::<u32>(), 1..100)) {
        let mut frontend = Frontend::new(0);
        let mut keyboard = frontend.attach(true).unwrap();
        for place in places {
            frontend.page.put(IN_CONS, if place & 1 == 0 { place } else { frontend.page.number(IN_PROD) });
            let _ = keyboard.handle_key(1, place & 2 == 0);
            let _ = keyboard.handle_room();
        }
    }
}
