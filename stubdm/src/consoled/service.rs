//! One console: copies bytes from its ring to its sink, and from the sink to the ring.

use std::path::Path;
use std::time::Instant;

use tracing::{info, warn};
use xen_console::ready::{self, Readiness};
use xen_console::ring::{IN_SIZE, OUT_SIZE};
use xen_console::{Backend, Connection, Error, XenbusState};
use xen_store::{Permissions, Store};
use xen_sys::{DomId, Xen};

use super::position::{Position, PositionFile};
use super::sink::Sink;
use crate::libxl::discover::Console;
use crate::rt::error::{Context, Result};
use crate::rt::log_file::AppendFile;
use crate::rt::poll::{Interest, earlier, readable};

/// How many times the ring is emptied before the other consoles have their turn.
const ROUNDS: usize = 16;
/// How much is on its way to the domain at the most: what was put into one ring, and what was taken
/// up for it meanwhile.
const PENDING: usize = 2 * IN_SIZE;
/// How many mishaps of one console are logged, which the domain could fill otherwise.
const COMPLAINTS: u32 = 20;

/// A console that is served.
#[derive(Debug)]
pub struct Service {
    backend: Backend,
    sink: Sink,
    /// On its way to the domain.
    pending: Vec<u8>,
    complaints: u32,
    /// How far the domain is ready to read.
    readiness: Readiness,
    /// The store has failed: the ring continues without it.
    deaf: bool,
    progress: Option<Progress>,
}

/// The position up to which the console has been written, for another `consoled`.
#[derive(Debug)]
struct Progress {
    file: PositionFile,
    domain: u32,
    /// The position of the one before, until the ring is connected.
    before: Option<Position>,
    /// The ring that the position's index is of.
    ring: Option<(u32, u32)>,
    failed: bool,
}

/// The place of consoles' positions.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// The domain's UUID.
    pub uuid: &'a str,
    /// Another `consoled` served the same console before: continue where it stopped.
    pub resume: bool,
}

impl Service {
    /// Opens the console's sink, writes its terminal's name to the store, and takes on the console.
    /// A log is limited to `limit` bytes.
    ///
    /// # Errors
    /// Fails if the sink cannot be opened, or the store fails.
    pub fn open(
        xen: &Xen,
        store: &Store,
        domain: DomId,
        console: &Console,
        limit: u64,
        place: Option<Place<'_>>,
    ) -> Result<Self> {
        let Console {
            number,
            path,
            frontend,
            output,
        } = console;
        let what = format!("console {number}, {output:?}");
        let progress = place.map(|place| Progress::open(place, domain, *number));
        let progress = progress.transpose().context(&what)?;
        let before = progress.as_ref().and_then(|p| p.before.as_ref());
        let kept = place.is_some_and(|place| place.resume);
        let mut sink = Sink::open(output, *number, limit, kept).context(&what)?;
        if let (Sink::State(state), Some(before)) = (&mut sink, before) {
            state.resume(&before.state);
        }
        if let Some(terminal) = sink.terminal().and_then(|name| name.to_str()) {
            let node = format!("{frontend}/tty");
            let ours = Permissions::owner_none(DomId::DOM0).grant_read(domain);
            store
                .with_transaction(|t| {
                    t.write(&node, terminal)?;
                    t.set_permissions(&node, &ours)
                })
                .context(&node)?;
            info!("console {number} is {terminal}");
        }
        let mut readiness = Readiness::Ready;
        if matches!(sink, Sink::Source(_)) {
            ready::ask(store, path).context(path)?;
            readiness = Readiness::Disconnected;
        }
        Ok(Self {
            readiness,
            backend: Backend::new(xen, store, path).context(&what)?,
            sink,
            pending: Vec::new(),
            complaints: 0,
            deaf: false,
            progress,
        })
    }

    /// Removes the position up to which it was written: the domain does not exist any more.
    pub fn forget(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.file.remove();
        }
    }

    /// The console's number.
    pub fn number(&self) -> u32 {
        self.backend.number()
    }

    /// Returns the console's sink.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Moves what there is, a bounded part of it. Returns whether there may be more at once.
    pub fn turn(&mut self, now: Instant) -> bool {
        let state = if self.deaf {
            self.read_ring(now)
        } else {
            self.backend.turn(now)
        };
        let state = state.unwrap_or_else(|error| {
            if let Error::Store(error) = &error {
                self.deaf = error.is_fatal();
            }
            self.complain(&error);
            XenbusState::Connected
        });
        if self.readiness.update(self.backend.is_connected(), now) {
            let number = self.backend.number();
            info!("console {number}: no word that anybody reads; it is sent what there is");
        }
        let moved = self.pass();
        if moved.is_ok() && state == XenbusState::Closing && self.backend.is_connected() {
            // Bytes it wrote before have been taken out above, unless it still writes.
            if moved == Ok(true) {
                return true;
            }
            match self.backend.let_go() {
                Ok(mut back) => {
                    // More than that was never sent, whatever the ring's indices are.
                    back.truncate(PENDING.saturating_sub(self.pending.len()));
                    drop(self.pending.splice(0..0, back));
                }
                Err(error) => self.complain(&error),
            }
        }
        moved.unwrap_or(false)
    }

    fn read_ring(&mut self, now: Instant) -> xen_console::Result<XenbusState> {
        if let Some(connection) = self.backend.connection() {
            connection.acknowledge(now)?;
        }
        Ok(XenbusState::Connected)
    }

    /// Both ways. A broken ring is given up.
    fn pass(&mut self) -> std::result::Result<bool, ()> {
        let moved = self.out().and_then(|out| Ok(self.into()? || out));
        moved.map_err(|error| {
            self.complain(&error);
            if let Err(error) = self.backend.give_up() {
                self.complain(&error);
            }
        })
    }

    /// From the ring to the sink. Whether the ring may hold more.
    fn out(&mut self) -> xen_console::Result<bool> {
        let Some(connection) = self.backend.connection() else {
            return Ok(false);
        };
        if let Some(progress) = &mut self.progress {
            progress.connected(connection, &mut self.sink)?;
        }
        let mut buffer = [0; OUT_SIZE];
        for _ in 0..ROUNDS {
            let count = connection.peek(&mut buffer)?;
            if count == 0 {
                return Ok(false);
            }
            // Before the room is given back: what a filler pushes out of the ring has been written.
            let bytes = buffer.get(..count).unwrap_or_default();
            self.readiness.handle_bytes(bytes);
            self.sink.take(bytes);
            if let Some(progress) = &mut self.progress {
                progress.write(connection.position().wrapping_add(count as u32), &self.sink);
            }
            connection.consume(count)?;
        }
        Ok(true)
    }

    /// From the sink to the ring. Whether either may have more.
    fn into(&mut self) -> xen_console::Result<bool> {
        if let Sink::Pty(pty) = &mut self.sink {
            pty.flush();
        }
        let Some(connection) = self
            .backend
            .connection()
            .filter(|_| self.readiness.is_ready())
        else {
            return Ok(false);
        };
        for _ in 0..ROUNDS {
            if self.pending.is_empty() {
                let mut buffer = [0; IN_SIZE];
                let count = self.sink.give(&mut buffer);
                self.pending.extend(buffer.get(..count).unwrap_or_default());
            }
            if self.pending.is_empty() {
                return Ok(false);
            }
            let took = connection.try_write(&self.pending)?;
            if took == 0 {
                return Ok(false);
            }
            self.pending.drain(..took);
        }
        Ok(true)
    }

    /// Returns the descriptors to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let fds = if self.deaf {
            // The store's is readable from now on.
            self.backend.ring_fd().into_iter().collect()
        } else {
            self.backend.poll_fds()
        };
        let mut interests: Vec<_> = fds.into_iter().map(readable).collect();
        // Only what can be passed on is asked for.
        let wanted = self.backend.is_connected() && self.pending.is_empty();
        interests.extend(self.sink.interests(wanted));
        interests
    }

    /// Returns when to look again without an event.
    pub fn deadline(&self) -> Option<Instant> {
        let backend = match self.deaf {
            true => self.backend.ring_deadline(),
            false => self.backend.deadline(),
        };
        earlier(backend, self.readiness.deadline())
    }

    fn complain(&mut self, error: &Error) {
        self.complaints = self.complaints.saturating_add(1);
        let number = self.backend.number();
        if self.complaints <= COMPLAINTS {
            warn!("console {number}: {error}");
        }
        if self.complaints == COMPLAINTS {
            warn!("console {number}: no more of this is logged");
        }
    }
}

impl Progress {
    fn open(place: Place<'_>, domain: DomId, number: u32) -> std::io::Result<Self> {
        let uuid = crc32fast::hash(place.uuid.as_bytes());
        let file = PositionFile::open(place.folder, domain.as_u16(), number, place.resume)?;
        Ok(Self {
            before: file.read().filter(|before| before.domain == uuid),
            file,
            domain: uuid,
            ring: None,
            failed: false,
        })
    }

    /// Compares the ring with the position of the one before, once it is connected.
    fn connected(
        &mut self,
        connection: &mut Connection,
        sink: &mut Sink,
    ) -> xen_console::Result<()> {
        let ring = connection.identity();
        if self.ring.replace(ring) == Some(ring) {
            return Ok(());
        }
        if let Some(before) = self.before.take() {
            let ahead = before.index.wrapping_sub(connection.position()) as usize;
            if (before.reference, before.port) == ring && ahead <= OUT_SIZE {
                if ahead > 0 {
                    connection.consume(ahead)?;
                } else if let Err(error) = sink.cut(before.file, OUT_SIZE as u64) {
                    warn!("cutting a console's file: {error}");
                }
                if let Sink::State(state) = sink {
                    state.resume(&before.state);
                }
            }
        }
        self.write(connection.position(), sink);
        Ok(())
    }

    /// Writes that the ring's bytes up to `index` are in the sink.
    fn write(&mut self, index: u32, sink: &Sink) {
        let mut position = Position::new(self.domain, self.ring.unwrap_or_default());
        position.index = index;
        if let Some(Ok(file)) = sink.file().map(AppendFile::identity) {
            position.file = file;
        }
        if let Sink::State(state) = sink {
            position.state = state.position();
        }
        if let Err(error) = self.file.write(position) {
            if !std::mem::replace(&mut self.failed, true) {
                warn!("writing a console's position: {error}");
            }
        }
    }
}
