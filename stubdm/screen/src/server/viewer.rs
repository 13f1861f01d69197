//! One viewer's connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::damage::Damage;
use super::encode::{Encoder, Encoding, header};
use super::pixels::{Converter, Format, NATIVE};
use super::{Picture, Rect};
use crate::auth::{CHALLENGE, equal, respond};
use crate::{Size, keys, keysyms};

/// The time in which a viewer has to authenticate: a person may type the password meanwhile.
pub const HANDSHAKE: Duration = Duration::from_secs(60);
/// Events that wait for [`Viewer::poll_input`], at most, beside those of
/// [`Viewer::release_keys`].
pub const INPUTS_MAX: usize = 64;
/// Bytes that one call of [`Viewer::poll_output`] appends, at most.
pub const PIECE_MAX: usize = 68 << 10;
/// Bytes of a text for the clipboard, at most. They are dropped as they arrive.
pub const TEXT_MAX: u32 = 1 << 20;

/// Bytes of answers to fences that wait, about.
const ANSWERS_FULL: usize = 512;
/// Bytes of the name that are sent.
const NAME_MAX: usize = 200;
/// Bytes of a fence's payload, at most.
const FENCE_MAX: usize = 64;
/// Rectangles of an update, at most; 65535 means something else.
const RECTANGLES_MAX: u32 = 60_000;
/// Events of one message of the pointer: a movement, and both directions of the wheel.
const PER_MESSAGE: usize = 3;
/// Events that wait before movements become one. A guest's mouse has its way from single ones.
const MOVES: usize = 32;

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// The types of security: without authentication, and with a password.
const NONE: u8 = 1;
const VNC: u8 = 2;

/// Encodings that are a viewer's abilities.
const DESKTOP_SIZE: i32 = -223;
const EXTENDED_KEYS: i32 = -258;
const EXTENDED_DESKTOP_SIZE: i32 = -308;
const FENCE: i32 = -312;
const CONTINUOUS_UPDATES: i32 = -313;

/// A fence's flags: block before, block after, synchronise the next; and a request.
const FENCE_FLAGS: u32 = 7;
const FENCE_REQUEST: u32 = 1 << 31;
/// A change of the screen's size: the server's, the viewer's own; and the latter's refusal.
const BY_SERVER: u16 = 0;
const BY_VIEWER: u16 = 1;
const PROHIBITED: u16 = 1;

/// Bits of a pointer's message.
const BUTTONS: u8 = 7;
const WHEEL_UP: u8 = 8;
const WHEEL_DOWN: u8 = 16;

/// The server's side of a connection, as it is configured.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The name that viewers show in their title. Its first 200 bytes count.
    pub name: String,
    /// VNC authentication with this password, filled up with zeroes; `None` for none at all.
    pub password: Option<[u8; 8]>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("name", &self.name)
            .field("password", &self.password.map(|_| "…"))
            .finish()
    }
}

/// A viewer's key or pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A key is pressed, once or once more, or released.
    Key {
        /// Linux's number of the key (`KEY_*`).
        keycode: u16,
        /// It is pressed.
        pressed: bool,
    },
    /// The pointer is here, with these buttons pressed.
    Pointer {
        /// The column, within the picture.
        x: u16,
        /// The row, within the picture.
        y: u16,
        /// 1 left, 2 middle, 4 right.
        buttons: u8,
    },
    /// The wheel was turned.
    Wheel {
        /// Steps, positive away from the person ("up").
        steps: i32,
    },
}

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewerError {
    /// The viewer uses another protocol.
    #[error("the viewer's version is {0:?}, not one of RFB 003")]
    Version(String),
    /// The viewer chose a type of security that was not offered.
    #[error("the viewer chose security type {0}, which was not offered")]
    Security(u8),
    /// The viewer's password is wrong.
    #[error("the viewer's password is wrong")]
    Password,
    /// The viewer did not authenticate within [`HANDSHAKE`].
    #[error("the viewer did not authenticate within {} s", HANDSHAKE.as_secs())]
    TimedOut,
    /// A format of pixels that is impossible or not supported.
    #[error("a format of {bits} bits a pixel that is not supported")]
    Format {
        /// Bits of a pixel.
        bits: u8,
    },
    /// A text for the clipboard beyond [`TEXT_MAX`].
    #[error("a text of {0} bytes")]
    Text(u32),
    /// A fence with more payload than the protocol has.
    #[error("a fence with {0} bytes")]
    Fence(u8),
    /// A message of a type that a viewer does not send.
    #[error("message {0} is none of a viewer's")]
    Message(u8),
}

/// The message or part of one that the connection waits for.
#[derive(Clone, Debug)]
enum State {
    Version,
    /// The type of security, by a viewer of 3.7 or later.
    Security,
    Response,
    ClientInit,
    Message,
    PixelFormat,
    EncodingsHeader,
    /// The encodings still to be received, and the result of those received.
    Encodings(u16, Wishes),
    Request,
    Key,
    Pointer,
    CutHeader,
    /// The bytes still to be received, which are dropped.
    Dropped(u32),
    Continuous,
    FenceHeader,
    Fence(u32, u8),
    SetSize,
    Qemu,
    QemuKey,
    Broken(ViewerError),
}

impl State {
    /// Bytes of the header that this state waits for; zero for none.
    fn header(&self) -> usize {
        match self {
            Self::Version => VERSION.len(),
            Self::Response => CHALLENGE,
            Self::Security | Self::ClientInit | Self::Message | Self::Qemu => 1,
            Self::PixelFormat => 19,
            Self::EncodingsHeader => 3,
            Self::Encodings(..) => 4,
            Self::Request | Self::Continuous => 9,
            Self::Key | Self::CutHeader | Self::SetSize => 7,
            Self::Pointer => 5,
            Self::FenceHeader => 8,
            Self::Fence(_, length) => (*length).into(),
            Self::QemuKey => 10,
            Self::Dropped(_) | Self::Broken(_) => 0,
        }
    }
}

/// A viewer's encodings.
#[derive(Clone, Copy, Debug, Default)]
struct Wishes {
    /// The first one that is supported.
    encoding: Option<Encoding>,
    desktop_size: bool,
    extended_desktop_size: bool,
    extended_keys: bool,
    fence: bool,
    continuous_updates: bool,
}

impl Wishes {
    fn add(&mut self, number: i32) {
        match number {
            DESKTOP_SIZE => self.desktop_size = true,
            EXTENDED_DESKTOP_SIZE => self.extended_desktop_size = true,
            EXTENDED_KEYS => self.extended_keys = true,
            FENCE => self.fence = true,
            CONTINUOUS_UPDATES => self.continuous_updates = true,
            other => self.encoding = self.encoding.or(Encoding::of(other)),
        }
    }
}

/// Messages that are to be sent between updates: each at most once, however often a viewer causes
/// it.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    server_init: bool,
    extended_keys: bool,
    /// The size, with the reason and status of an answer.
    extended_size: Option<(u16, u16)>,
    fence: bool,
    end_of_continuous_updates: bool,
}

/// An update of which a part is still to be sent.
#[derive(Debug)]
struct Update {
    rects: Vec<Rect>,
    encoding: Encoding,
    /// The current rectangle, and its next piece.
    rect: usize,
    piece: u32,
    /// The first rectangle is one piece. It is encoded at once, from the picture for which that was
    /// found.
    large: bool,
}

impl Update {
    /// Returns whether a rectangle is one to the viewer too.
    fn is_one(&self, index: usize) -> bool {
        let rect = self.rects.get(index);
        let joins = rect.is_some_and(|rect| self.encoding.joins_pieces(rect.width));
        joins || (self.large && index == 0)
    }

    /// The number of pieces of a rectangle.
    fn pieces(&self, index: usize) -> u32 {
        match self.rects.get(index) {
            Some(_) if self.large && index == 0 => 1,
            Some(rect) => self.encoding.pieces(rect),
            None => 0,
        }
    }

    /// The number of the viewer's rectangles.
    fn rectangles(&self) -> u32 {
        let all = 0..self.rects.len();
        all.map(|index| match self.is_one(index) {
            true => 1,
            false => self.pieces(index),
        })
        .sum()
    }
}

/// One viewer's connection, without I/O.
///
/// ```text
/// read:   bytes ─▶ handle_bytes ─▶ poll_input until None ─▶ the rest of the bytes, if any
/// write:  poll_output until false, each time after the previous piece was written
/// ```
///
/// An event of either kind may give the other one something to do: call
/// [`poll_output`](Self::poll_output) after [`handle_bytes`](Self::handle_bytes) and
/// [`handle_damage`](Self::handle_damage), and offer the rest of the bytes again after it.
#[derive(Debug)]
pub struct Viewer {
    options: Options,
    challenge: [u8; CHALLENGE],
    deadline: Option<Instant>,
    authenticated: bool,
    state: State,
    header: [u8; FENCE_MAX],
    have: usize,
    /// The minor version that both speak: 3, 7 or 8.
    version: u8,
    /// Bytes to send before an update: those of the handshake, or answers to fences.
    answers: Vec<u8>,
    due: Due,
    wishes: Wishes,
    /// The size last sent to the viewer, and that of the picture when it was last seen.
    screen: Size,
    seen: Size,
    converter: Option<Converter>,
    /// The format for the next update.
    format: Option<Format>,
    encoder: Encoder,
    damage: Damage,
    /// Damage was added since the last update began. An update without a request requires it: so
    /// the number of updates is bounded whatever is left in the list.
    fresh: bool,
    /// The part of which an update is requested.
    request: Option<Rect>,
    /// The part of which updates are sent without a request.
    continuous: Option<Rect>,
    update: Option<Update>,
    inputs: VecDeque<Input>,
    /// The last event is a movement, which the next one may replace.
    moved: bool,
    pressed: [u64; 4],
    pointer: (u16, u16, u8),
    /// All bits of the pointer's last message.
    mask: u8,
}

impl Viewer {
    /// Begins a connection. `challenge` is random and used once; without a password it is not used.
    pub fn new(options: &Options, challenge: [u8; 16], now: Instant) -> Self {
        Self {
            options: options.clone(),
            challenge,
            deadline: now.checked_add(HANDSHAKE),
            authenticated: false,
            state: State::Version,
            header: [0; FENCE_MAX],
            have: 0,
            version: 8,
            answers: VERSION.to_vec(),
            due: Due::default(),
            wishes: Wishes::default(),
            screen: Size::default(),
            seen: Size::default(),
            converter: None,
            format: Some(NATIVE),
            encoder: Encoder::default(),
            damage: Damage::default(),
            fresh: false,
            request: None,
            continuous: None,
            update: None,
            inputs: VecDeque::new(),
            moved: false,
            pressed: [0; 4],
            pointer: (0, 0, 0),
            mask: 0,
        }
    }

    /// Takes bytes off the viewer, cut anywhere, and returns how many.
    ///
    /// Fewer than all are taken when [`INPUTS_MAX`] events wait, or answers to several fences. The
    /// caller keeps the rest, reads no more, and calls again once
    /// [`poll_input`](Self::poll_input) or [`poll_output`](Self::poll_output) took something.
    ///
    /// # Errors
    /// The viewer violates the protocol or a limit, or does not authenticate. The same error is
    /// returned by all later calls. [`poll_output`](Self::poll_output) still returns the reason for
    /// a refusal, if the protocol has one; then the connection is closed.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<usize, ViewerError> {
        let mut rest = bytes;
        loop {
            if let State::Broken(error) = &self.state {
                return Err(error.clone());
            }
            if rest.is_empty() || self.is_full() {
                return Ok(bytes.len() - rest.len());
            }
            if let State::Dropped(left) = &mut self.state {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                rest = rest.get(count..).unwrap_or_default();
                *left = left.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                if *left == 0 {
                    self.state = State::Message;
                }
                continue;
            }
            let want = self.state.header();
            let count = want.saturating_sub(self.have).min(rest.len());
            let (taken, left) = rest.split_at(count);
            rest = left;
            if let Some(room) = self.header.get_mut(self.have..self.have + count) {
                room.copy_from_slice(taken);
            }
            self.have += count;
            if self.have < want {
                continue;
            }
            self.have = 0;
            match self.take_header() {
                Ok(next) => self.state = next,
                Err(error) => self.fail(error),
            }
        }
    }

    /// Returns the next key or pointer event.
    pub fn poll_input(&mut self) -> Option<Input> {
        self.inputs.pop_front()
    }

    /// Notes that a part of the picture changed.
    pub fn handle_damage(&mut self, rect: Rect) {
        if let Some(part) = rect.intersection(&self.whole()) {
            self.damage.add(part);
            self.fresh = true;
        }
    }

    /// Notes that the picture has another size, and so other pixels everywhere.
    ///
    /// [`poll_output`](Self::poll_output) sees another size by itself; this call is for a picture
    /// that was replaced by one of the same size.
    pub fn handle_resize(&mut self, width: u16, height: u16) {
        self.seen = Size { width, height };
        self.handle_damage(self.whole());
    }

    /// Appends the next piece of at most [`PIECE_MAX`] bytes to `out` and returns `true`, or
    /// returns `false` when there is nothing to send.
    ///
    /// An update is several pieces. Each is encoded when it is asked for, from the picture as it is
    /// then, so a caller that writes one piece before it asks for the next holds one piece of memory.
    pub fn poll_output(&mut self, picture: &Picture, out: &mut Vec<u8>) -> bool {
        if let State::Broken(_) = self.state {
            // Nothing, or a refusal.
            return append(&mut self.answers, out);
        }
        if self.update.is_some() {
            return self.continue_update(picture, out);
        }
        if append(&mut self.answers, out) {
            return true;
        }
        if std::mem::take(&mut self.due.server_init) {
            self.put_server_init(picture, out);
            return true;
        }
        if self.screen == Size::default() {
            return false;
        }
        self.look_at(picture);
        self.put_due(out) || self.put_size(out) || self.begin_update(picture, out)
    }

    /// Returns whether the handshake is over, with the password where there is one.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// Releases all keys and buttons that the viewer holds: [`poll_input`](Self::poll_input)
    /// returns them after the events that wait already. For a viewer that disconnects.
    pub fn release_keys(&mut self) {
        self.moved = false;
        for keycode in 0..256 {
            if self.is_pressed(keycode) {
                self.key(keycode, false);
            }
        }
        let (x, y, buttons) = self.pointer;
        if buttons != 0 {
            self.push_pointer(x, y, 0);
        }
        self.mask = 0;
    }

    /// Returns the end of the time for the handshake; `None` once it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Handles the passing of time.
    ///
    /// # Errors
    /// [`ViewerError::TimedOut`]: the handshake is not over within [`HANDSHAKE`]. The connection is
    /// closed. An earlier error of [`handle_bytes`](Self::handle_bytes) is returned again.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ViewerError> {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.fail(ViewerError::TimedOut);
        }
        match &self.state {
            State::Broken(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Ends the connection. After the handshake nothing is sent any more: an update may be in
    /// progress.
    fn fail(&mut self, error: ViewerError) {
        if let State::Broken(_) = self.state {
            return;
        }
        if self.is_authenticated() {
            self.answers.clear();
        }
        self.update = None;
        self.state = State::Broken(error);
    }

    fn is_full(&self) -> bool {
        self.inputs.len() + PER_MESSAGE > INPUTS_MAX || self.answers.len() >= ANSWERS_FULL
    }

    /// Returns `N` bytes of the header.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.header.get(at..at + N);
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.field(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.field(at))
    }

    /// Returns the whole screen, of the size last sent to the viewer.
    fn whole(&self) -> Rect {
        Rect {
            x: 0,
            y: 0,
            width: self.screen.width,
            height: self.screen.height,
        }
    }

    /// Handles a header that is whole, and returns the next state.
    fn take_header(&mut self) -> Result<State, ViewerError> {
        let [first] = self.field(0);
        let next = match &mut self.state {
            State::Version => return self.take_version(),
            State::Security => {
                let offered = self.options.password.map_or(NONE, |_| VNC);
                if first != offered {
                    return Err(ViewerError::Security(first));
                }
                self.begin_security()
            }
            State::Response => {
                let password = self.options.password.unwrap_or_default();
                if !equal(&respond(&password, &self.challenge), &self.field(0)) {
                    self.refuse(b"the password is wrong");
                    return Err(ViewerError::Password);
                }
                self.answers.extend([0; 4]);
                State::ClientInit
            }
            State::ClientInit => {
                // The shared flag, which is ignored.
                (self.authenticated, self.deadline) = (true, None);
                self.due.server_init = true;
                State::Message
            }
            State::Message => match first {
                0 => State::PixelFormat,
                2 => State::EncodingsHeader,
                3 => State::Request,
                4 => State::Key,
                5 => State::Pointer,
                6 => State::CutHeader,
                150 => State::Continuous,
                248 => State::FenceHeader,
                251 => State::SetSize,
                255 => State::Qemu,
                other => return Err(ViewerError::Message(other)),
            },
            State::PixelFormat => {
                let format = Format::read(&self.field(3))?;
                self.format = Some(format);
                State::Message
            }
            State::EncodingsHeader => match self.u16(1) {
                0 => {
                    self.take_wishes(Wishes::default());
                    State::Message
                }
                count => State::Encodings(count, Wishes::default()),
            },
            State::Encodings(left, wishes) => {
                let (left, mut wishes) = (*left - 1, *wishes);
                wishes.add(i32::from_be_bytes(self.field(0)));
                if left > 0 {
                    State::Encodings(left, wishes)
                } else {
                    self.take_wishes(wishes);
                    State::Message
                }
            }
            State::Request => {
                self.take_request(first != 0);
                State::Message
            }
            State::Key => {
                if let Some(keycode) = keysyms::keycode(self.u32(3)) {
                    self.key(keycode, first != 0);
                }
                State::Message
            }
            State::Pointer => {
                self.take_pointer(first, self.u16(1), self.u16(3));
                State::Message
            }
            State::CutHeader => match self.u32(3) {
                0 => State::Message,
                length @ ..=TEXT_MAX => State::Dropped(length),
                length => return Err(ViewerError::Text(length)),
            },
            State::Continuous => {
                let area = self.area_at(1);
                if first != 0 {
                    self.continuous = area;
                    self.fresh = true;
                } else {
                    self.due.end_of_continuous_updates |= self.continuous.is_some();
                    self.continuous = None;
                }
                State::Message
            }
            State::FenceHeader => {
                let [length] = self.field(7);
                if usize::from(length) > FENCE_MAX {
                    return Err(ViewerError::Fence(length));
                }
                let flags = self.u32(3);
                match length {
                    0 => {
                        self.answer_fence(flags, 0);
                        State::Message
                    }
                    length => State::Fence(flags, length),
                }
            }
            State::Fence(flags, length) => {
                let (flags, length) = (*flags, *length);
                self.answer_fence(flags, length);
                State::Message
            }
            State::SetSize => {
                // A viewer without this encoding would take the answer for a violation.
                if self.wishes.extended_desktop_size {
                    self.due.extended_size = Some((BY_VIEWER, PROHIBITED));
                }
                // 16 bytes for each of its screens.
                let [screens] = self.field(5);
                match u32::from(screens) * 16 {
                    0 => State::Message,
                    length => State::Dropped(length),
                }
            }
            State::Qemu if first == 0 => State::QemuKey,
            State::Qemu => return Err(ViewerError::Message(u8::MAX)),
            State::QemuKey => {
                let (pressed, symbol, code) = (self.u16(0) != 0, self.u32(2), self.u32(6));
                let keycode = keycode(code).or_else(|| keysyms::keycode(symbol));
                if let Some(keycode) = keycode {
                    self.key(keycode, pressed);
                }
                State::Message
            }
            State::Dropped(_) | State::Broken(_) => self.state.clone(),
        };
        Ok(next)
    }

    fn take_version(&mut self) -> Result<State, ViewerError> {
        let text: [u8; VERSION.len()] = self.field(0);
        let minor = text
            .strip_prefix(b"RFB 003.")
            .and_then(|rest| rest.strip_suffix(b"\n"));
        let minor = minor.filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let minor = minor.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
        self.version = match minor {
            // By the RFC those that never were are taken for 3.3.
            Some(3..=6) => 3,
            Some(7) => 7,
            Some(8..) => 8,
            _ => {
                let text = String::from_utf8_lossy(&text).into_owned();
                return Err(ViewerError::Version(text));
            }
        };
        let offered = self.options.password.map_or(NONE, |_| VNC);
        if self.version == 3 {
            self.answers.extend([0, 0, 0, offered]);
            return Ok(self.begin_security());
        }
        self.answers.extend([1, offered]);
        Ok(State::Security)
    }

    /// Continues with the type of security that both sides support.
    fn begin_security(&mut self) -> State {
        if self.options.password.is_some() {
            self.answers.extend(self.challenge);
            return State::Response;
        }
        if self.version >= 8 {
            self.answers.extend([0; 4]);
        }
        State::ClientInit
    }

    fn refuse(&mut self, reason: &[u8]) {
        self.answers.extend([0, 0, 0, 1]);
        if self.version >= 8 {
            let length = u32::try_from(reason.len()).unwrap_or(0);
            self.answers.extend(length.to_be_bytes());
            self.answers.extend(reason);
        }
    }

    fn take_wishes(&mut self, wishes: Wishes) {
        let before = std::mem::replace(&mut self.wishes, wishes);
        let due = &mut self.due;
        due.extended_keys |= wishes.extended_keys && !before.extended_keys;
        due.fence |= wishes.fence && !before.fence;
        due.end_of_continuous_updates |= wishes.continuous_updates && !before.continuous_updates;
        if !wishes.extended_desktop_size {
            due.extended_size = None;
        } else if !before.extended_desktop_size {
            due.extended_size = Some((BY_SERVER, 0));
        }
    }

    /// Returns the part of the screen that four numbers of the header name.
    fn area_at(&self, at: usize) -> Option<Rect> {
        let area = Rect {
            x: self.u16(at),
            y: self.u16(at + 2),
            width: self.u16(at + 4),
            height: self.u16(at + 6),
        };
        // Before `ServerInit` was sent, a viewer has no size.
        area.intersection(&self.whole())
    }

    fn take_request(&mut self, incremental: bool) {
        let Some(area) = self.area_at(1) else {
            return;
        };
        if !incremental {
            self.damage.add(area);
            self.fresh = true;
        }
        self.request = Some(self.request.map_or(area, |before| before.union(&area)));
    }

    fn answer_fence(&mut self, flags: u32, length: u8) {
        if flags & FENCE_REQUEST == 0 {
            return;
        }
        self.answers.extend([248, 0, 0, 0]);
        self.answers.extend((flags & FENCE_FLAGS).to_be_bytes());
        self.answers.push(length);
        let payload = self.header.get(..length.into()).unwrap_or_default();
        self.answers.extend(payload);
    }

    fn is_pressed(&self, keycode: u16) -> bool {
        let word = self.pressed.get(usize::from(keycode / 64));
        word.is_some_and(|word| word >> (keycode % 64) & 1 != 0)
    }

    fn key(&mut self, keycode: u16, pressed: bool) {
        if !pressed && !self.is_pressed(keycode) {
            return;
        }
        let Some(word) = self.pressed.get_mut(usize::from(keycode / 64)) else {
            return;
        };
        let bit = 1 << (keycode % 64);
        *word = if pressed { *word | bit } else { *word & !bit };
        self.moved = false;
        self.inputs.push_back(Input::Key { keycode, pressed });
    }

    fn take_pointer(&mut self, mask: u8, x: u16, y: u16) {
        let begun = mask & !std::mem::replace(&mut self.mask, mask);
        self.push_pointer(x, y, mask & BUTTONS);
        for (bit, steps) in [(WHEEL_UP, 1), (WHEEL_DOWN, -1)] {
            if begun & bit != 0 {
                self.moved = false;
                self.inputs.push_back(Input::Wheel { steps });
            }
        }
    }

    fn push_pointer(&mut self, x: u16, y: u16, buttons: u8) {
        // The viewer's screen may be larger than the picture.
        let x = x.min(self.seen.width.saturating_sub(1));
        let y = y.min(self.seen.height.saturating_sub(1));
        let before = std::mem::replace(&mut self.pointer, (x, y, buttons));
        if before == self.pointer {
            return;
        }
        let moves = before.2 == buttons;
        if moves && self.moved && self.inputs.len() >= MOVES {
            self.inputs.pop_back();
        }
        self.moved = moves;
        self.inputs.push_back(Input::Pointer { x, y, buttons });
    }

    fn put_server_init(&mut self, picture: &Picture, out: &mut Vec<u8>) {
        self.seen = Size {
            width: picture.width(),
            height: picture.height(),
        };
        // No viewer has a screen without pixels.
        self.screen = Size {
            width: self.seen.width.max(1),
            height: self.seen.height.max(1),
        };
        out.extend(self.screen.width.to_be_bytes());
        out.extend(self.screen.height.to_be_bytes());
        out.extend(NATIVE.to_bytes());
        let name = self.options.name.as_bytes();
        let name = name.get(..NAME_MAX).unwrap_or(name);
        out.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        out.extend(name);
        self.handle_damage(self.whole());
    }

    /// Notes the picture's size.
    fn look_at(&mut self, picture: &Picture) {
        let size = Size {
            width: picture.width(),
            height: picture.height(),
        };
        if size != self.seen {
            self.seen = size;
            self.handle_damage(self.whole());
        }
    }

    /// Sends what is due beside updates.
    fn put_due(&mut self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let due = std::mem::take(&mut self.due);
        if due.fence {
            out.extend([248, 0, 0, 0]);
            out.extend(FENCE_REQUEST.to_be_bytes());
            out.push(0);
        }
        if due.end_of_continuous_updates {
            out.push(150);
        }
        if due.extended_keys {
            out.extend([0, 0, 0, 1]);
            header(&self.whole(), EXTENDED_KEYS, out);
        }
        if let Some((reason, status)) = due.extended_size {
            out.extend([0, 0, 0, 1]);
            self.put_extended_size(reason, status, out);
        }
        out.len() > start
    }

    fn put_extended_size(&self, reason: u16, status: u16, out: &mut Vec<u8>) {
        let Size { width, height } = self.screen;
        let rect = Rect {
            x: reason,
            y: status,
            width,
            height,
        };
        header(&rect, EXTENDED_DESKTOP_SIZE, out);
        // One screen, the number 0, at 0, 0.
        out.extend([1, 0, 0, 0]);
        out.extend([0; 8]);
        out.extend(width.to_be_bytes());
        out.extend(height.to_be_bytes());
        out.extend([0; 4]);
    }

    /// Sends another size, which is an update of its own.
    fn put_size(&mut self, out: &mut Vec<u8>) -> bool {
        let size = Size {
            width: self.seen.width.max(1),
            height: self.seen.height.max(1),
        };
        let wishes = &self.wishes;
        let takes = wishes.desktop_size || wishes.extended_desktop_size;
        let asked = self.request.is_some() || self.continuous.is_some();
        if size == self.screen || !takes || !asked {
            return false;
        }
        // A requested part belongs to the screen before. The viewer's next request is for the new
        // one; continuous updates continue.
        self.request = None;
        let whole = self.whole();
        self.screen = size;
        if self.continuous == Some(whole) {
            self.continuous = Some(self.whole());
        }
        self.damage.clear();
        self.handle_damage(self.whole());
        out.extend([0, 0, 0, 1]);
        if self.wishes.extended_desktop_size {
            self.put_extended_size(BY_SERVER, 0, out);
        } else {
            header(&self.whole(), DESKTOP_SIZE, out);
        }
        true
    }

    /// Begins an update if one is requested and there is damage.
    fn begin_update(&mut self, picture: &Picture, out: &mut Vec<u8>) -> bool {
        let continuous = self.continuous.filter(|_| self.fresh);
        let area = match (self.request, continuous) {
            (Some(area), Some(other)) => area.union(&other),
            (one, other) => match one.or(other) {
                Some(area) => area,
                None => return false,
            },
        };
        if !self.damage.touches(&area) {
            return false;
        }
        let encoding = self.wishes.encoding.unwrap_or_default();
        let mut pieces = 0;
        let mut left = false;
        let rects = self.damage.take(&area, |rect| {
            let more = pieces + encoding.pieces(rect);
            let fits = more <= RECTANGLES_MAX;
            pieces = if fits { more } else { pieces };
            left |= !fits;
            fits
        });
        self.request = None;
        self.fresh = left;
        if let Some(format) = self.format.take() {
            if let Some(map) = format.colour_map() {
                out.extend(map);
            }
            self.converter = Some(Converter::new(format));
        }
        let mut update = Update {
            rects,
            encoding,
            rect: 0,
            piece: 0,
            large: false,
        };
        self.make_large(picture, &mut update);
        let count = u16::try_from(update.rectangles()).unwrap_or(u16::MAX);
        out.extend([0, 0]);
        out.extend(count.to_be_bytes());
        self.update = Some(update);
        self.continue_update(picture, out)
    }

    /// Puts the largest rectangle first, in one piece or with a part that is one.
    fn make_large(&mut self, picture: &Picture, update: &mut Update) {
        let (Encoding::Zrle, Some(converter)) = (update.encoding, &self.converter) else {
            return;
        };
        let all = update.rects.iter().enumerate();
        let Some((at, _)) = all.max_by_key(|(_, rect)| rect.area()) else {
            return;
        };
        update.rects.swap(0, at);
        let Some(first) = update.rects.first_mut() else {
            return;
        };
        let rows = self.encoder.large_piece(picture, first, converter);
        if rows == 0 {
            return;
        }
        update.large = true;
        let rest = Rect {
            y: first.y + rows,
            height: first.height - rows,
            ..*first
        };
        first.height = rows;
        if rest.height > 0 {
            update.rects.push(rest);
        }
    }

    /// Sends the next piece of the update.
    fn continue_update(&mut self, picture: &Picture, out: &mut Vec<u8>) -> bool {
        let (Some(update), Some(converter)) = (&mut self.update, &self.converter) else {
            return false;
        };
        let Some(rect) = update.rects.get(update.rect) else {
            self.update = None;
            return false;
        };
        let piece = match update.large && update.rect == 0 {
            true => Some(*rect),
            false => update.encoding.piece_at(rect, update.piece),
        };
        if let Some(piece) = piece {
            let encoding = update.encoding;
            match update.is_one(update.rect) {
                true if update.piece == 0 => self.encoder.begin(encoding, rect, out),
                true => {}
                false => self.encoder.begin(encoding, &piece, out),
            }
            self.encoder
                .encode(encoding, picture, &piece, converter, out);
        }
        update.piece += 1;
        if update.piece >= update.pieces(update.rect) {
            (update.rect, update.piece) = (update.rect + 1, 0);
        }
        if update.rect >= update.rects.len() {
            self.update = None;
        }
        true
    }
}

/// Returns Linux's number of a key by the scancode of QEMU's message. Some viewers send the prefix
/// `E0` instead of the top bit.
fn keycode(code: u32) -> Option<u16> {
    let code = match code {
        0xe000..=0xe07f => code & 0x7f | 0x80,
        other => other,
    };
    keys::keycode(u8::try_from(code).ok()?)
}

/// Moves bytes; returns false if there are none.
fn append(from: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
    let any = !from.is_empty();
    out.append(from);
    any
}
