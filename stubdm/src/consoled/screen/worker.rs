//! The loop of the screen's process: the frontend's pixels to viewers, their keys to the frontend.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use stubdm_screen::Size;
use stubdm_screen::framebuffer::{Event, Pixels, Polled, Updates};
use stubdm_screen::keyboard::Keyboard;
use stubdm_screen::server::{Input, Options, Picture, Rect};
use tracing::{info, warn};
use xen_console::Doorbell;

use super::connection::{Connection, Step};
use super::ipc::{Report, SetPassword, VIEWERS};
use super::process::Mode;
use crate::proxy::ipc::{IpcSocket, Received};
use crate::rt::event_loop::{Progress, Task};
use crate::rt::poll::{Interest, earlier, readable};

/// The least time between two copies of what changed: a frontend can report changes at any rate.
const FRAME: Duration = Duration::from_millis(15);
/// Events taken out of the ring in one turn: two rings' worth.
const EVENTS: usize = 102;
/// Rectangles that wait to be copied; more of them become one.
const DAMAGE: usize = 16;
/// The interval at which a frontend may notify for nothing.
pub(super) const PACE: Duration = Duration::from_millis(1);
/// The least time between two reports of the viewers, and of the picture's place.
const REPORTS: Duration = Duration::from_millis(100);
/// How long nobody is let in after that failed.
const REST: Duration = Duration::from_secs(1);

/// The frontend's screen.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) updates: Updates,
    pub(super) pixels: Pixels,
    pub(super) bell: Doorbell,
}

/// The rectangles that changed and were not copied yet.
#[derive(Debug, Default)]
struct Damage {
    rects: Vec<Rect>,
}

impl Damage {
    /// Adds a rectangle. The list costs no more to copy than the whole picture twice.
    fn add(&mut self, rect: Rect, size: Size) {
        self.rects.push(rect);
        let area = |width: u16, height: u16| u64::from(width) * u64::from(height);
        let sum: u64 = self.rects.iter().map(|r| area(r.width, r.height)).sum();
        if self.rects.len() > DAMAGE || sum > area(size.width, size.height) {
            let whole = self.rects.iter().copied().reduce(around);
            self.rects = whole.into_iter().collect();
        }
    }
}

/// Returns the smallest rectangle around two.
fn around(a: Rect, b: Rect) -> Rect {
    let span = |a: u16, a_len: u16, b: u16, b_len: u16| {
        let start = a.min(b);
        let end = a.saturating_add(a_len).max(b.saturating_add(b_len));
        (start, end - start)
    };
    let (x, width) = span(a.x, a.width, b.x, b.width);
    let (y, height) = span(a.y, a.height, b.y, b.height);
    Rect {
        x,
        y,
        width,
        height,
    }
}

fn whole(size: Size) -> Rect {
    Rect {
        x: 0,
        y: 0,
        width: size.width,
        height: size.height,
    }
}

/// The screen's process.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    ipc: &'a IpcSocket,
    screen: Screen,
    keyboard: Option<(Keyboard, Doorbell)>,
    picture: Picture,
    /// The frontend moved the picture in its memory, or changed its size, since the last copy.
    moved: bool,
    damage: Damage,
    /// The picture was not kept up to date while nobody looked.
    stale: bool,
    /// When the next copy is due.
    next_copy: Instant,
    refusals: u64,
    listener: TcpListener,
    rest: Option<Instant>,
    viewers: Vec<Connection>,
    random: File,
    options: Options,
    /// Viewers need a password.
    password: bool,
    /// When the viewers are to be reported.
    report_at: Option<Instant>,
    last_report: Instant,
    /// When the picture's place is to be reported.
    mode_at: Option<Instant>,
    last_mode: Instant,
    row: Vec<u32>,
}

impl<'a> Worker<'a> {
    /// Serves viewers of `screen`, who connect to `listener`. If they need a `password`, none is
    /// let in before it is set.
    pub(super) fn new(
        ipc: &'a IpcSocket,
        screen: Screen,
        keyboard: Option<(Keyboard, Doorbell)>,
        listener: TcpListener,
        random: File,
        (name, password): (&str, bool),
    ) -> Self {
        let now = Instant::now();
        let Size { width, height } = screen.pixels.size();
        Self {
            ipc,
            screen,
            keyboard,
            picture: Picture::new(width, height),
            moved: false,
            damage: Damage::default(),
            stale: true,
            next_copy: now,
            refusals: 0,
            listener,
            rest: None,
            viewers: Vec::new(),
            random,
            options: Options {
                name: name.to_owned(),
                password: None,
            },
            password,
            report_at: None,
            last_report: now,
            mode_at: None,
            last_mode: now,
            row: Vec::new(),
        }
    }

    /// Takes `consoled`'s messages.
    fn take_messages(&mut self) -> io::Result<()> {
        while let Received::Message(message) = self.ipc.receive()? {
            if let Some(SetPassword(password)) = SetPassword::decode(&message) {
                self.options.password = password;
            }
        }
        Ok(())
    }

    /// Takes the frontend's events; returns whether there may be more.
    fn take_events(&mut self, now: Instant) -> io::Result<bool> {
        let screen = &mut self.screen;
        screen.bell.acknowledge(now)?;
        let mut more = true;
        let mut took = false;
        for _ in 0..EVENTS {
            let event = match screen.updates.poll_event().map_err(io::Error::other)? {
                Polled::Empty => {
                    more = false;
                    break;
                }
                Polled::Skipped => None,
                Polled::Event(event) => Some(event),
            };
            took = true;
            match event {
                Some(Event::Update(rect)) => self.damage.add(rect, screen.pixels.size()),
                Some(Event::Resize(geometry)) => {
                    screen.pixels.resize(geometry).map_err(io::Error::other)?;
                    self.moved = true;
                    self.mode_at = Some(now.max(self.last_mode + REPORTS));
                    self.damage.rects = vec![whole(geometry.size())];
                }
                Some(Event::Refused(error)) => {
                    self.refusals = self.refusals.saturating_add(1);
                    if self.refusals.is_power_of_two() {
                        warn!("resizes that were refused: {}; {error}", self.refusals);
                    }
                }
                None => {}
            }
        }
        if took {
            screen.bell.note_found();
            screen.bell.notify()?;
        }
        Ok(more)
    }

    /// Copies the parts that changed, if there is a viewer and it is time. A picture of another size
    /// is made here too: the frontend can send resize events at any rate.
    fn copy(&mut self, now: Instant) -> io::Result<()> {
        if self.viewers.is_empty() {
            self.stale = true;
            self.damage.rects.clear();
            return Ok(());
        }
        if std::mem::take(&mut self.stale) {
            self.damage.rects = vec![whole(self.screen.pixels.size())];
        }
        if self.damage.rects.is_empty() || now < self.next_copy {
            return Ok(());
        }
        self.next_copy = now + FRAME;
        if std::mem::take(&mut self.moved) {
            let size = self.screen.pixels.size();
            self.picture.resize(size.width, size.height);
            for viewer in &mut self.viewers {
                viewer.handle_damage(whole(size));
            }
        }
        for rect in std::mem::take(&mut self.damage.rects) {
            for y in rect.y..rect.y.saturating_add(rect.height) {
                let copied = self.screen.pixels.row(rect.x, y, rect.width, &mut self.row);
                copied.map_err(io::Error::other)?;
                let Some((start, end)) = self.picture.update_row(rect.x, y, &self.row) else {
                    continue;
                };
                let changed = Rect {
                    x: start,
                    y,
                    width: end - start,
                    height: 1,
                };
                for viewer in &mut self.viewers {
                    viewer.handle_damage(changed);
                }
            }
        }
        Ok(())
    }

    fn lets_in(&self) -> bool {
        let full =
            self.viewers.len() >= VIEWERS && self.viewers.iter().all(Connection::is_authenticated);
        let locked = self.password && self.options.password.is_none();
        !full && !locked && self.rest.is_none()
    }

    /// Lets viewers in.
    fn accept(&mut self, now: Instant) {
        if self.rest.is_some_and(|rest| rest <= now) {
            self.rest = None;
        }
        for _ in 0..VIEWERS {
            if !self.lets_in() {
                return;
            }
            let result = match self.listener.accept() {
                Ok((stream, address)) => self.admit(stream.into(), address, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                warn!("a viewer cannot be let in: {error}");
                self.rest = Some(now + REST);
            }
        }
    }

    fn admit(
        &mut self,
        fd: std::os::fd::OwnedFd,
        address: SocketAddr,
        now: Instant,
    ) -> io::Result<()> {
        let mut challenge = [0; 16];
        self.random.read_exact(&mut challenge)?;
        let viewer = Connection::new(fd, address, &self.options, challenge, now)?;
        if self.viewers.len() >= VIEWERS {
            // Those that only connect must not keep others out.
            let oldest = self.viewers.iter().position(|v| !v.is_authenticated());
            oldest.map(|at| self.viewers.remove(at));
        }
        self.viewers.push(viewer);
        self.viewers_changed(now);
        Ok(())
    }

    fn viewers_changed(&mut self, now: Instant) {
        self.report_at = Some(now.max(self.last_report + REPORTS));
    }

    /// Gives each viewer its turn; returns whether there may be more.
    fn serve(&mut self, now: Instant) -> bool {
        let mut more = false;
        let mut gone = false;
        let Self {
            viewers,
            keyboard,
            picture,
            ..
        } = self;
        viewers.retain_mut(|viewer| {
            let result = viewer.turn(picture, now, |input| type_into(keyboard, input));
            match result {
                Ok(Step::Waits) => return true,
                Ok(Step::Again) => {
                    more = true;
                    return true;
                }
                Ok(Step::Left) => {}
                Err(error) => info!("viewer {}: {error}", viewer.address()),
            }
            gone = true;
            false
        });
        if gone {
            self.viewers_changed(now);
        }
        more
    }

    /// Notifies the frontend of what was typed, and gives it what waited for room.
    fn announce_keys(&mut self, now: Instant) {
        let Some((keyboard, bell)) = &mut self.keyboard else {
            return;
        };
        let done = (|| -> io::Result<()> {
            if keyboard.waits_for_room() {
                bell.acknowledge(now)?;
                keyboard.handle_room().map_err(io::Error::other)?;
                bell.note_found();
            }
            if keyboard.poll_notify() {
                bell.notify()?;
            }
            Ok(())
        })();
        if let Err(error) = done {
            warn!("no more keys are passed on: {error}");
            self.keyboard = None;
        }
    }

    fn report(&mut self, now: Instant) -> io::Result<()> {
        if self.report_at.is_some_and(|at| at <= now) {
            (self.report_at, self.last_report) = (None, now);
            let viewers = self.viewers.iter().map(Connection::address).collect();
            self.ipc.send(&Report::Viewers(viewers).encode())?;
        }
        if self.mode_at.is_some_and(|at| at <= now) {
            (self.mode_at, self.last_mode) = (None, now);
            let mode = Mode(self.screen.pixels.geometry().numbers());
            self.ipc.send(&Report::Mode(mode).encode())?;
        }
        Ok(())
    }
}

/// Sends a viewer's event to the frontend. A keyboard whose ring is broken is dropped.
fn type_into(keyboard: &mut Option<(Keyboard, Doorbell)>, input: Input) {
    let Some((keys, _)) = keyboard else {
        return;
    };
    let typed = match input {
        Input::Key { keycode, pressed } => keys.handle_key(keycode, pressed),
        Input::Pointer { x, y, buttons } => keys.handle_pointer(x, y, buttons),
        Input::Wheel { steps } => keys.handle_wheel(steps),
        _ => Ok(()),
    };
    if let Err(error) = typed {
        warn!("no more keys are passed on: {error}");
        *keyboard = None;
    }
}

impl Task for Worker<'_> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = vec![
            readable(self.ipc.as_fd()),
            readable(self.screen.bell.as_fd()),
        ];
        // A frontend notifies after each event that it took, which is of no interest otherwise.
        let waits = self.keyboard.iter();
        let waits = waits.filter(|(keyboard, _)| keyboard.waits_for_room());
        interests.extend(waits.map(|(_, bell)| readable(bell.as_fd())));
        if self.lets_in() {
            interests.push((self.listener.as_fd(), PollFlags::POLLIN));
        }
        interests.extend(self.viewers.iter().flat_map(Connection::interests));
        interests
    }

    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        self.take_messages()?;
        let mut more = self.take_events(now)?;
        self.accept(now);
        self.copy(now)?;
        more |= self.serve(now);
        self.announce_keys(now);
        self.report(now)?;
        if more {
            return Ok(Progress::Again);
        }
        let copies = !self.damage.rects.is_empty();
        let mut deadline = copies.then_some(self.next_copy);
        let reports = earlier(self.report_at, self.mode_at);
        for other in [self.screen.bell.deadline(), self.rest, reports] {
            deadline = earlier(deadline, other);
        }
        let waits = self.keyboard.iter().filter(|(k, _)| k.waits_for_room());
        for (_, bell) in waits {
            deadline = earlier(deadline, bell.deadline());
        }
        for viewer in &self.viewers {
            deadline = earlier(deadline, viewer.deadline());
        }
        Ok(Progress::Sleep(deadline))
    }
}

#[cfg(test)]
mod tests;
