//! Linux's input events, read from `/dev/input/event*`, as keys and pointer of a VNC client.
//!
//! A keyboard and a mouse may be one device or several; all their events go into one [`Input`].

use std::collections::{BTreeSet, VecDeque};

use crate::keys::scancode;

/// Bytes of one event: two machine words of time, type, code, value.
pub const EVENT: usize = size_of::<usize>() * 2 + 8;

const EV_SYN: u16 = 0;
const EV_KEY: u16 = 1;
const EV_REL: u16 = 2;
const EV_ABS: u16 = 3;
const SYN_REPORT: u16 = 0;
const SYN_DROPPED: u16 = 3;
/// The axes have the same numbers among the relative and among the absolute ones.
const X: u16 = 0;
const Y: u16 = 1;
const REL_WHEEL: u16 = 8;
/// `BTN_LEFT`, `BTN_RIGHT`, `BTN_MIDDLE`, and their bits in the protocol.
const BUTTONS: &[(u16, u8)] = &[(0x110, 1), (0x111, 4), (0x112, 2)];
const WHEEL_UP: u8 = 8;
const WHEEL_DOWN: u8 = 16;

/// Steps of the wheel that one report may make.
const WHEEL_MAX: i32 = 8;
/// Actions that wait to be taken, at most. Later ones are lost, and all keys are
/// released.
const WAITING_MAX: usize = 512;
/// The largest coordinate of a pointer.
const FAR: i32 = u16::MAX as i32;

/// A message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A key is pressed, once or once more, or released.
    Key {
        /// It is pressed.
        down: bool,
        /// Its [scancode](crate::keys).
        scancode: u8,
    },
    /// The pointer is here, with these buttons pressed.
    Pointer {
        /// The buttons, as [`Client::pointer`](crate::rfb::Client::pointer) takes them.
        buttons: u8,
        /// Pixels from the left edge of the frame buffer.
        x: i32,
        /// Pixels from its upper edge.
        y: i32,
    },
}

/// The state of keyboard and mouse.
#[derive(Clone, Debug, Default)]
pub struct Input {
    pressed: BTreeSet<u8>,
    buttons: u8,
    x: i32,
    y: i32,
    wheel: i32,
    /// The pointer has changed since the last report.
    moved: bool,
    actions: VecDeque<Action>,
}

impl Input {
    /// Takes whole events as a device gives them. A part of an event at the end is no event.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        for event in bytes.chunks_exact(EVENT) {
            let [.., t0, t1, c0, c1, v0, v1, v2, v3] = event else {
                continue;
            };
            self.handle_event(
                u16::from_ne_bytes([*t0, *t1]),
                u16::from_ne_bytes([*c0, *c1]),
                i32::from_ne_bytes([*v0, *v1, *v2, *v3]),
            );
        }
    }

    /// Takes one event.
    pub fn handle_event(&mut self, kind: u16, code: u16, value: i32) {
        if self.actions.len() >= WAITING_MAX {
            self.actions.clear();
            self.release_all();
        }
        match (kind, code) {
            (EV_KEY, _) => self.key(code, value),
            (EV_ABS, X) => self.to(value, self.y),
            (EV_ABS, Y) => self.to(self.x, value),
            (EV_REL, X) => self.to(self.x.saturating_add(value), self.y),
            (EV_REL, Y) => self.to(self.x, self.y.saturating_add(value)),
            (EV_REL, REL_WHEEL) => {
                let sum = self.wheel.saturating_add(value);
                self.wheel = sum.clamp(-WHEEL_MAX, WHEEL_MAX);
            }
            (EV_SYN, SYN_REPORT) => self.report(),
            // The kernel's buffer was full: releases may be among what is lost.
            (EV_SYN, SYN_DROPPED) => self.release_all(),
            _ => {}
        }
    }

    /// Returns the next message to send.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Releases all keys and buttons.
    pub fn release_all(&mut self) {
        let released = std::mem::take(&mut self.pressed).into_iter();
        self.actions.extend(released.map(|scancode| Action::Key {
            down: false,
            scancode,
        }));
        self.wheel = 0;
        if self.buttons != 0 {
            self.buttons = 0;
            self.moved = true;
            self.report();
        }
    }

    fn key(&mut self, code: u16, value: i32) {
        if let Some((_, bit)) = BUTTONS.iter().find(|(own, _)| *own == code) {
            let before = self.buttons;
            match value {
                0 => self.buttons &= !bit,
                _ => self.buttons |= bit,
            }
            self.moved |= self.buttons != before;
            return;
        }
        let Some(scancode) = scancode(code) else {
            return;
        };
        let down = value != 0;
        let known = match down {
            true => {
                self.pressed.insert(scancode);
                true
            }
            // One that was released with all others already.
            false => self.pressed.remove(&scancode),
        };
        if known {
            self.actions.push_back(Action::Key { down, scancode });
        }
    }

    fn to(&mut self, x: i32, y: i32) {
        let (x, y) = (x.clamp(0, FAR), y.clamp(0, FAR));
        self.moved |= (x, y) != (self.x, self.y);
        (self.x, self.y) = (x, y);
    }

    /// Handles the end of a report: the events since the last one belong together.
    fn report(&mut self) {
        let (x, y) = (self.x, self.y);
        let steps = std::mem::take(&mut self.wheel);
        let wheel = if steps > 0 { WHEEL_UP } else { WHEEL_DOWN };
        let buttons = self.buttons;
        if std::mem::take(&mut self.moved) {
            self.actions.push_back(Action::Pointer { buttons, x, y });
        }
        for _ in 0..steps.unsigned_abs() {
            for buttons in [buttons | wheel, buttons] {
                self.actions.push_back(Action::Pointer { buttons, x, y });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn actions(input: &mut Input, events: &[(u16, u16, i32)]) -> Vec<Action> {
        for (kind, code, value) in events {
            input.handle_event(*kind, *code, *value);
        }
        std::iter::from_fn(|| input.poll_action()).collect()
    }

    fn key(down: bool, scancode: u8) -> Action {
        Action::Key { down, scancode }
    }

    fn pointer(buttons: u8, x: i32, y: i32) -> Action {
        Action::Pointer { buttons, x, y }
    }

    const REPORT: (u16, u16, i32) = (EV_SYN, SYN_REPORT, 0);

    #[test]
    fn a_key_is_pressed_repeated_and_released() {
        let events = [
            (EV_KEY, 105, 1),
            REPORT,
            (EV_KEY, 105, 2),
            (EV_KEY, 105, 0),
            REPORT,
        ];
        let all = [key(true, 0xcb), key(true, 0xcb), key(false, 0xcb)];
        assert_eq!(actions(&mut Input::default(), &events), all);
        // A release of a key that is not pressed, and a key that no keyboard has.
        let none = [(EV_KEY, 30, 0), (EV_KEY, 0x2f0, 1)];
        assert_eq!(actions(&mut Input::default(), &none), []);
    }

    #[test]
    fn a_report_is_one_movement() {
        let mut input = Input::default();
        let events = [
            (EV_ABS, X, 7),
            (EV_ABS, Y, 9),
            (EV_KEY, 0x110, 1),
            REPORT,
            REPORT,
        ];
        assert_eq!(actions(&mut input, &events), [pointer(1, 7, 9)]);
        let events = [(EV_REL, X, -10), (EV_KEY, 0x111, 1), REPORT];
        assert_eq!(actions(&mut input, &events), [pointer(5, 0, 9)]);
        let events = [(EV_KEY, 0x110, 0), REPORT];
        assert_eq!(actions(&mut input, &events), [pointer(4, 0, 9)]);
        // A button that is pressed again, and a pointer that stays where it is.
        let events = [(EV_KEY, 0x111, 1), (EV_ABS, Y, 9), REPORT];
        assert_eq!(actions(&mut input, &events), []);
        let events = [(EV_REL, Y, i32::MAX), (EV_REL, Y, i32::MAX), REPORT];
        assert_eq!(actions(&mut input, &events), [pointer(4, 0, FAR)]);
    }

    #[test]
    fn the_wheel_turns_by_steps_up_to_a_limit() {
        let mut input = Input::default();
        let down = [(EV_REL, REL_WHEEL, -1), REPORT];
        assert_eq!(
            actions(&mut input, &down),
            [pointer(WHEEL_DOWN, 0, 0), pointer(0, 0, 0)]
        );
        let far = [(EV_REL, REL_WHEEL, i32::MAX), REPORT];
        assert_eq!(actions(&mut input, &far).len(), 16);
    }

    #[test]
    fn what_the_kernel_dropped_leaves_no_key_pressed() {
        let mut input = Input::default();
        let events = [
            (EV_KEY, 29, 1),
            (EV_KEY, 0x110, 1),
            REPORT,
            (EV_REL, REL_WHEEL, 3),
            (EV_SYN, SYN_DROPPED, 0),
        ];
        let all = [
            key(true, 29),
            pointer(1, 0, 0),
            key(false, 29),
            pointer(0, 0, 0),
        ];
        assert_eq!(actions(&mut input, &events), all);
    }

    #[test]
    fn actions_that_are_not_taken_are_dropped_and_all_keys_released() {
        let mut input = Input::default();
        input.handle_event(EV_KEY, 29, 1);
        let mut most = 0;
        for _ in 0..WAITING_MAX + 4 {
            input.handle_event(EV_KEY, 30, 1);
            most = most.max(input.actions.len());
        }
        assert_eq!(most, WAITING_MAX);
        let all = [key(false, 29), key(false, 30)];
        let more = [key(true, 30); 5];
        assert_eq!(actions(&mut input, &[]), [&all[..], &more].concat());
    }

    #[test]
    fn events_are_read_as_the_kernel_writes_them() {
        let mut event = vec![0xaa; EVENT - 8];
        event.extend(EV_KEY.to_ne_bytes());
        event.extend(30u16.to_ne_bytes());
        event.extend(1i32.to_ne_bytes());
        let mut input = Input::default();
        input.handle_bytes(&event.repeat(2));
        input.handle_bytes(event.get(1..).unwrap());
        assert_eq!(actions(&mut input, &[]), [key(true, 30); 2]);
    }

    proptest! {
        #[test]
        fn any_events_leave_bounded_work_and_no_key_pressed(
            bytes in prop::collection::vec(any::<(u16, u16, i32)>(), 0..3000)
        ) {
            let mut input = Input::default();
            for (kind, code, value) in bytes {
                input.handle_event(kind % 4, code % 0x120, value);
                prop_assert!(input.actions.len() <= WAITING_MAX + 2 * WHEEL_MAX as usize + 300);
            }
            input.release_all();
            let mut pressed = BTreeSet::new();
            let mut held = 0;
            while let Some(action) = input.poll_action() {
                match action {
                    Action::Key { down: true, scancode } => { pressed.insert(scancode); }
                    Action::Key { down: false, scancode } => { pressed.remove(&scancode); }
                    Action::Pointer { buttons, x, y } => {
                        held = buttons;
                        prop_assert!((0..=FAR).contains(&x) && (0..=FAR).contains(&y));
                    }
                }
            }
            prop_assert!(pressed.is_empty() && held == 0, "{pressed:?} {held}");
        }
    }
}
