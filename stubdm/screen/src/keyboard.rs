//! A PV keyboard and pointer as its backend has them: `vkbd`, of Xen's public/io/kbdif.h.
//!
//! The frontend empties a ring of 51 events when it likes. Events that find it full are dropped and
//! counted. A release may be among them, so all keys and buttons that the frontend was sent as
//! pressed are released before anything else once there is room.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;

use xen_gnttab::{Region, RegionError};

pub use crate::event_ring::RingError;
use crate::event_ring::{EVENT, Producer};

/// Where the ring to the frontend begins, and its bytes. The one back has no events yet.
const IN_RING_AT: usize = 1024;
const IN_RING: usize = 2048;
const INDICES: usize = 16;

const MOTION: u8 = 1;
const KEY: u8 = 3;
const POSITION: u8 = 4;

/// Linux's numbers of the left, middle and right buttons, by their bits.
const BUTTONS: [(u8, u16); 3] = [(1, 0x110), (2, 0x112), (4, 0x111)];
/// The most keys that the frontend is sent as pressed at once; later ones are dropped.
const PRESSED_MAX: usize = 64;

/// The keyboard and the pointer of a frontend.
#[derive(Debug)]
pub struct Keyboard {
    ring: Producer,
    /// The frontend takes positions, not movements.
    absolute: bool,
    /// The keys and buttons that the frontend was sent as pressed.
    pressed: BTreeSet<u16>,
    /// Where the frontend has the pointer, as far as that is known.
    position: Option<(u16, u16)>,
    /// The pressed ones are to be released before anything else.
    releasing: bool,
    dropped: u64,
    /// Events were put in since the frontend was notified.
    unannounced: bool,
}

impl Keyboard {
    /// Takes a mapped, writable page. The frontend receives the pointer's positions if `absolute`,
    /// and its movements otherwise.
    ///
    /// # Errors
    /// The page is unfit, or its ring's indices cannot be.
    pub fn attach(mut page: Region, absolute: bool) -> Result<Self, RingError> {
        let indices = page.take_words::<AtomicU32>(INDICES / 4)?;
        page.split_to(IN_RING_AT - INDICES)?;
        let data = page.split_to(IN_RING)?;
        let word = |number| indices.word(number).ok_or(RegionError::OutOfRange);
        Ok(Self {
            ring: Producer::attach(data, word(0)?, word(1)?)?,
            absolute,
            pressed: BTreeSet::new(),
            position: None,
            releasing: false,
            dropped: 0,
            unannounced: false,
        })
    }

    /// Sends that a key, by Linux's number, is pressed, once or once more, or released.
    ///
    /// # Errors
    /// [`RingError`]; the frontend is of no more use.
    pub fn handle_key(&mut self, keycode: u16, pressed: bool) -> Result<(), RingError> {
        self.make_room()?;
        self.key(keycode, pressed)
    }

    /// Sends where the pointer is, and which buttons are pressed: 1 left, 2 middle, 4 right.
    ///
    /// # Errors
    /// As [`handle_key`](Self::handle_key).
    pub fn handle_pointer(&mut self, x: u16, y: u16, buttons: u8) -> Result<(), RingError> {
        self.make_room()?;
        if let Some(event) = self.movement(x, y) {
            self.push(&event)?;
        }
        for (bit, keycode) in BUTTONS {
            let pressed = buttons & bit != 0;
            if pressed != self.pressed.contains(&keycode) {
                self.key(keycode, pressed)?;
            }
        }
        Ok(())
    }

    /// Sends steps of the wheel, positive away from the person.
    ///
    /// # Errors
    /// As [`handle_key`](Self::handle_key).
    pub fn handle_wheel(&mut self, steps: i32) -> Result<(), RingError> {
        self.make_room()?;
        // The frontend's axis points the other way.
        let steps = steps.saturating_neg();
        let event = match self.position.filter(|_| self.absolute) {
            Some((x, y)) => event(POSITION, 0, [x.into(), y.into(), steps]),
            None => event(MOTION, 0, [0, 0, steps]),
        };
        self.push(&event).map(drop)
    }

    /// Sends that all pressed keys and buttons are released, now or when there is room.
    ///
    /// # Errors
    /// As [`handle_key`](Self::handle_key).
    pub fn release_all(&mut self) -> Result<(), RingError> {
        self.releasing = true;
        self.make_room()
    }

    /// Sends what waits for room.
    ///
    /// # Errors
    /// As [`handle_key`](Self::handle_key).
    pub fn handle_room(&mut self) -> Result<(), RingError> {
        self.make_room()
    }

    /// Returns whether releases wait for room: call [`handle_room`](Self::handle_room) when the
    /// frontend notifies.
    pub fn waits_for_room(&self) -> bool {
        self.releasing
    }

    /// Returns whether the frontend is to be notified.
    pub fn poll_notify(&mut self) -> bool {
        std::mem::take(&mut self.unannounced)
    }

    /// Returns how many events were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Releases what is to be released first, as far as there is room.
    fn make_room(&mut self) -> Result<(), RingError> {
        while self.releasing {
            let Some(keycode) = self.pressed.first().copied() else {
                self.releasing = false;
                break;
            };
            if !self.put(&key_event(keycode, false))? {
                break;
            }
            self.pressed.remove(&keycode);
        }
        Ok(())
    }

    fn key(&mut self, keycode: u16, pressed: bool) -> Result<(), RingError> {
        if pressed {
            let full = self.pressed.len() >= PRESSED_MAX && !self.pressed.contains(&keycode);
            if full {
                self.dropped = self.dropped.saturating_add(1);
            } else if self.push(&key_event(keycode, true))? {
                self.pressed.insert(keycode);
            }
        } else if self.pressed.contains(&keycode) && self.push(&key_event(keycode, false))? {
            // One that was released with all others already is not released once more.
            self.pressed.remove(&keycode);
        }
        Ok(())
    }

    /// Returns the event for the pointer at this place; `None` if it does not move.
    fn movement(&mut self, x: u16, y: u16) -> Option<[u8; EVENT]> {
        let before = self.position.replace((x, y));
        if before == Some((x, y)) {
            return None;
        }
        if self.absolute {
            return Some(event(POSITION, 0, [x.into(), y.into(), 0]));
        }
        // The first place is no movement.
        let (from_x, from_y) = before?;
        let by = |to: u16, from: u16| i32::from(to) - i32::from(from);
        Some(event(MOTION, 0, [by(x, from_x), by(y, from_y), 0]))
    }

    /// Puts an event in unless releases wait; one that finds no room is dropped.
    fn push(&mut self, event: &[u8; EVENT]) -> Result<bool, RingError> {
        let put = !self.releasing && self.put(event)?;
        if !put {
            (self.releasing, self.position) = (true, None);
            self.dropped = self.dropped.saturating_add(1);
        }
        Ok(put)
    }

    fn put(&mut self, event: &[u8; EVENT]) -> Result<bool, RingError> {
        let put = self.ring.push(event)?;
        self.unannounced |= put;
        Ok(put)
    }
}

fn key_event(keycode: u16, pressed: bool) -> [u8; EVENT] {
    event(KEY, u8::from(pressed), [i32::from(keycode), 0, 0])
}

/// An event: its kind, the byte behind, and three numbers from byte 4 on.
fn event(kind: u8, flag: u8, numbers: [i32; 3]) -> [u8; EVENT] {
    let mut event = [0; EVENT];
    let head = [kind, flag, 0, 0].into_iter();
    let bytes = head.chain(numbers.into_iter().flat_map(i32::to_le_bytes));
    for (to, from) in event.iter_mut().zip(bytes) {
        *to = from;
    }
    event
}

#[cfg(test)]
mod tests;
