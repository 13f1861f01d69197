//! Handles of a rule: objects of an end, with the names and the behaviour of those of the library
//! crates.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xen_gnttab::{PageAccess, UnmapNotify};
use xen_sys::{DomId, GrantRef, Port, Virq};

use crate::call::{Answer, Call, Id, Refusal};
use crate::end::End;

mod vchan;

pub(crate) use vchan::Vchan;

/// The result of a call.
pub(crate) type Result<T> = std::result::Result<T, Refusal>;

/// An object at an end, given back when it is dropped.
struct Object {
    end: End,
    id: Id,
}

impl Drop for Object {
    fn drop(&mut self) {
        // An end that is gone has given back everything.
        let _ = self.end.call(Call::Drop { id: self.id });
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {} of domain {}", self.id, self.end.id)
    }
}

fn odd<T>(answer: &Answer) -> Result<T> {
    Err(Refusal::other(format_args!("an odd answer: {answer:?}")))
}

/// Microseconds of a year.
const MOST: u64 = 365 * 24 * 3600 * 1_000_000;

fn micros(deadline: Option<Instant>) -> u64 {
    let left = deadline.map_or(Duration::MAX, |at| {
        at.saturating_duration_since(Instant::now())
    });
    // Rounded up, so that a wait is never shorter than was asked for.
    u64::try_from(left.as_micros()).map_or(MOST, |n| n.saturating_add(1).min(MOST))
}

impl End {
    fn make(&self, call: Call) -> Result<Object> {
        match self.call(call)? {
            Answer::Made { id } => Ok(self.object(id)),
            other => odd(&other),
        }
    }

    fn object(&self, id: Id) -> Object {
        let end = self.clone();
        Object { end, id }
    }

    fn done(&self, call: Call) -> Result<()> {
        match self.call(call)? {
            Answer::Done => Ok(()),
            other => odd(&other),
        }
    }

    fn found(&self, call: Call) -> Result<Option<Port>> {
        match self.call(call)? {
            Answer::Found { port } => Ok(port.map(Port::new)),
            other => odd(&other),
        }
    }

    fn bytes(&self, call: Call) -> Result<Vec<u8>> {
        match self.call(call)? {
            Answer::Bytes { bytes } => Ok(bytes),
            other => odd(&other),
        }
    }

    fn count(&self, call: Call) -> Result<usize> {
        match self.call(call)? {
            Answer::Count { count } => Ok(count),
            other => odd(&other),
        }
    }

    fn is(&self, call: Call) -> Result<bool> {
        match self.call(call)? {
            Answer::Is { so } => Ok(so),
            other => odd(&other),
        }
    }

    fn text(&self, call: Call) -> Result<String> {
        match self.call(call)? {
            Answer::Text { text } => Ok(text),
            other => odd(&other),
        }
    }

    pub(crate) fn channels(&self) -> Result<Channels> {
        Ok(Channels(Arc::new(self.make(Call::Channels)?)))
    }

    pub(crate) fn share(&self, to: DomId, pages: usize, access: PageAccess) -> Result<Shared> {
        let (to, write) = (to.as_u16(), access == PageAccess::ReadWrite);
        match self.call(Call::Share { to, pages, write })? {
            Answer::Shared { id, refs, len } => Ok(Shared {
                refs: refs.into_iter().map(GrantRef::new).collect(),
                view: View(self.object(id), len),
            }),
            other => odd(&other),
        }
    }

    pub(crate) fn map(&self, from: DomId, refs: &[GrantRef], access: PageAccess) -> Result<Mapped> {
        let refs = refs.iter().map(|r| r.as_u32()).collect();
        let (from, write) = (from.as_u16(), access == PageAccess::ReadWrite);
        match self.call(Call::Map { from, refs, write })? {
            Answer::Mapped { id, len } => Ok(Mapped(View(self.object(id), len))),
            other => odd(&other),
        }
    }

    pub(crate) fn store_read(&self, path: &str) -> Result<Vec<u8>> {
        let path = path.to_owned();
        self.bytes(Call::StoreRead { path })
    }

    pub(crate) fn store_perms(&self, path: &str) -> Result<String> {
        let path = path.to_owned();
        self.text(Call::StorePerms { path })
    }

    pub(crate) fn wire(&self) -> Result<Wire> {
        Ok(Wire(self.make(Call::Wire)?))
    }
}

/// A handle of event channels.
#[derive(Clone, Debug)]
pub(crate) struct Channels(Arc<Object>);

impl Channels {
    fn port(&self, call: Call) -> Result<BoundPort> {
        let end = &self.0.end;
        match end.call(call)? {
            Answer::Port { id, port } => Ok(BoundPort {
                object: end.object(id),
                channels: self.clone(),
                port: Port::new(port),
            }),
            other => odd(&other),
        }
    }

    pub(crate) fn bind_unbound(&self, remote: DomId) -> Result<BoundPort> {
        self.port(Call::BindUnbound {
            channels: self.0.id,
            remote: remote.as_u16(),
        })
    }

    pub(crate) fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<BoundPort> {
        self.port(Call::BindInterdomain {
            channels: self.0.id,
            remote: remote.as_u16(),
            port: port.as_u32(),
        })
    }

    pub(crate) fn bind_virq(&self, virq: Virq) -> Result<BoundPort> {
        let (channels, virq) = (self.0.id, virq.as_u32());
        self.port(Call::BindVirq { channels, virq })
    }

    pub(crate) fn pending(&self) -> Result<Option<Port>> {
        let channels = self.0.id;
        self.0.end.found(Call::Pending { channels })
    }

    pub(crate) fn pending_batch(&self, most: usize) -> Result<Vec<Port>> {
        let channels = self.0.id;
        match self.0.end.call(Call::PendingBatch { channels, most })? {
            Answer::Several { ports } => Ok(ports.into_iter().map(Port::new).collect()),
            other => odd(&other),
        }
    }

    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Option<Port>> {
        let (channels, micros) = (self.0.id, micros(deadline));
        self.0.end.found(Call::Wait { channels, micros })
    }

    pub(crate) fn readable(&self, millis: u16) -> Result<bool> {
        let channels = self.0.id;
        self.0.end.is(Call::Readable { channels, millis })
    }

    pub(crate) fn unmask(&self, port: Port) -> Result<()> {
        let (channels, port) = (self.0.id, port.as_u32());
        self.0.end.done(Call::Unmask { channels, port })
    }

    pub(crate) fn reset(&self) -> Result<()> {
        let channels = self.0.id;
        self.0.end.done(Call::Reset { channels })
    }

    pub(crate) fn restrict(&self, to: DomId) -> Result<()> {
        let (channels, to) = (self.0.id, to.as_u16());
        self.0.end.done(Call::Restrict { channels, to })
    }
}

/// A port, unbound when it is dropped.
#[derive(Debug)]
pub(crate) struct BoundPort {
    object: Object,
    channels: Channels,
    port: Port,
}

impl BoundPort {
    pub(crate) fn port(&self) -> Port {
        self.port
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.channels
    }

    pub(crate) fn notify(&self) -> Result<()> {
        let port = self.object.id;
        self.object.end.done(Call::Notify { port })
    }

    pub(crate) fn unmask(&self) -> Result<()> {
        self.channels.unmask(self.port)
    }
}

/// Pages, or some bytes of them.
#[derive(Debug)]
pub(crate) struct View(Object, usize);

impl View {
    pub(crate) fn len(&self) -> usize {
        self.1
    }

    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<Self> {
        let view = self.0.id;
        let slice = self.0.end.make(Call::Slice { view, offset, len })?;
        Ok(Self(slice, len))
    }

    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.0.end.done(Call::CopyIn {
            view: self.0.id,
            offset,
            bytes: bytes.to_vec(),
        })
    }

    pub(crate) fn copy_out(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        let view = self.0.id;
        self.0.end.bytes(Call::CopyOut { view, offset, len })
    }

    pub(crate) fn load_u8(&self, offset: usize) -> Result<u8> {
        Ok(self
            .copy_out(offset, 1)?
            .first()
            .copied()
            .unwrap_or_default())
    }

    pub(crate) fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<()> {
        self.0.end.done(Call::Fill {
            view: self.0.id,
            offset,
            len,
            byte,
        })
    }

    fn on_unmap(&self, notify: UnmapNotify) -> Result<()> {
        self.0.end.done(Call::OnUnmap {
            pages: self.0.id,
            clear_byte: notify.clear_byte,
            event: notify.event.map(Port::as_u32),
        })
    }
}

/// Pages that an end shares.
#[derive(Debug)]
pub(crate) struct Shared {
    refs: Vec<GrantRef>,
    view: View,
}

impl Shared {
    pub(crate) fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    pub(crate) fn region(&self) -> &View {
        &self.view
    }

    pub(crate) fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<()> {
        self.view.on_unmap(notify)
    }
}

/// Pages that an end maps.
#[derive(Debug)]
pub(crate) struct Mapped(View);

impl Mapped {
    pub(crate) fn region(&self) -> &View {
        &self.0
    }

    pub(crate) fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<()> {
        self.0.on_unmap(notify)
    }
}

/// A connection to the store's daemon.
#[derive(Debug)]
pub(crate) struct Wire(Object);

impl Wire {
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<()> {
        self.0.end.done(Call::WireSend {
            wire: self.0.id,
            bytes: bytes.to_vec(),
        })
    }

    /// Whatever comes next; nothing at its end.
    pub(crate) fn receive(&self, millis: u16) -> Result<Vec<u8>> {
        let wire = self.0.id;
        self.0.end.bytes(Call::WireRecv { wire, millis })
    }
}
