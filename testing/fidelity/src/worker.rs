//! The end that carries out calls, with the public API of the library crates.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{
    MappedPages, PageAccess, Region, RegionError, SharedPages, UnmapNotify, map, share,
};
use xen_store::Store;
use xen_sys::{DomId, GrantRef, Port, Virq, Xen};
use xen_vchan::Channel;

use crate::call::{Answer, Call, Id, Refusal};

mod store;
mod vchan;

/// Makes a separate connection to the store's daemon.
pub type Connect = Box<dyn Fn() -> io::Result<OwnedFd> + Send>;

/// A process of a domain that does what rules ask.
pub struct Worker {
    xen: Xen,
    connect: Connect,
    store: Option<Store>,
    objects: HashMap<Id, Object>,
    last: Id,
}

enum Object {
    Channels(EventChannels),
    Port(BoundPort),
    Shared(SharedPages),
    Mapped(MappedPages),
    View(Region),
    Wire(File),
    Vchan(Box<Channel>),
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("xen", &self.xen)
            .field("objects", &self.objects.len())
            .finish_non_exhaustive()
    }
}

type Done = Result<Answer, Refusal>;

impl Worker {
    /// A worker that reaches the hypervisor through `xen`, and the store's daemon byte by byte
    /// through what `connect` makes.
    pub fn new(xen: Xen, connect: impl Fn() -> io::Result<OwnedFd> + Send + 'static) -> Self {
        Self {
            xen,
            connect: Box::new(connect),
            store: None,
            objects: HashMap::new(),
            last: 0,
        }
    }

    /// How many objects it has that were not given back yet.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.objects.len()
    }

    pub(crate) fn call(&mut self, call: Call) -> Done {
        match call {
            Call::Channels
            | Call::BindUnbound { .. }
            | Call::BindInterdomain { .. }
            | Call::BindVirq { .. }
            | Call::Pending { .. }
            | Call::PendingBatch { .. }
            | Call::Wait { .. }
            | Call::Readable { .. }
            | Call::Unmask { .. }
            | Call::Reset { .. }
            | Call::Restrict { .. }
            | Call::Notify { .. } => self.evtchn(call),
            Call::Share { .. }
            | Call::Map { .. }
            | Call::OnUnmap { .. }
            | Call::Slice { .. }
            | Call::CopyIn { .. }
            | Call::CopyOut { .. }
            | Call::Fill { .. } => self.gnttab(call),
            Call::StoreRead { .. }
            | Call::StorePerms { .. }
            | Call::Wire
            | Call::WireSend { .. }
            | Call::WireRecv { .. } => self.store(call),
            Call::Drop { id } => {
                self.objects.remove(&id).ok_or_else(|| unknown(id))?;
                Ok(Answer::Done)
            }
            _ => self.vchan(call),
        }
    }

    fn keep(&mut self, object: Object) -> Id {
        self.last += 1;
        self.objects.insert(self.last, object);
        self.last
    }

    fn evtchn(&mut self, call: Call) -> Done {
        match call {
            Call::Channels => {
                let channels = EventChannels::open(&self.xen)?;
                let id = self.keep(Object::Channels(channels));
                Ok(Answer::Made { id })
            }
            Call::BindUnbound { channels, remote } => {
                let port = self.channels(channels)?.bind_unbound(DomId::new(remote))?;
                Ok(self.port(port))
            }
            Call::BindInterdomain {
                channels,
                remote,
                port,
            } => {
                let channels = self.channels(channels)?;
                let port = channels.bind_interdomain(DomId::new(remote), Port::new(port))?;
                Ok(self.port(port))
            }
            Call::BindVirq { channels, virq } => {
                let port = self.channels(channels)?.bind_virq(Virq::new(virq))?;
                Ok(self.port(port))
            }
            Call::Pending { channels } => Ok(found(self.channels(channels)?.pending()?)),
            Call::PendingBatch { channels, most } => {
                let mut out = vec![Port::default(); most.min(64)];
                let n = self.channels(channels)?.pending_batch(&mut out)?;
                let ports = out[..n].iter().map(|p| p.as_u32()).collect();
                Ok(Answer::Several { ports })
            }
            Call::Wait { channels, micros } => {
                Ok(found(self.channels(channels)?.wait(after(micros))?))
            }
            Call::Readable { channels, millis } => {
                let so = readable(self.channels(channels)?.as_fd(), millis)?;
                Ok(Answer::Is { so })
            }
            Call::Unmask { channels, port } => {
                self.channels(channels)?.unmask(Port::new(port))?;
                Ok(Answer::Done)
            }
            Call::Reset { channels } => {
                self.channels(channels)?.reset()?;
                Ok(Answer::Done)
            }
            Call::Restrict { channels, to } => {
                self.channels(channels)?.restrict(DomId::new(to))?;
                Ok(Answer::Done)
            }
            Call::Notify { port } => match self.objects.get(&port) {
                Some(Object::Port(bound)) => {
                    bound.notify()?;
                    Ok(Answer::Done)
                }
                _ => Err(unknown(port)),
            },
            other => Err(Refusal::other(format_args!("no such call: {other:?}"))),
        }
    }

    fn channels(&self, id: Id) -> Result<&EventChannels, Refusal> {
        match self.objects.get(&id) {
            Some(Object::Channels(channels)) => Ok(channels),
            _ => Err(unknown(id)),
        }
    }

    fn port(&mut self, bound: BoundPort) -> Answer {
        let port = bound.port().as_u32();
        let id = self.keep(Object::Port(bound));
        Answer::Port { id, port }
    }

    fn gnttab(&mut self, call: Call) -> Done {
        match call {
            Call::Share { to, pages, write } => {
                let shared = share(&self.xen, DomId::new(to), pages, access(write))?;
                let refs = shared.refs().iter().map(|r| r.as_u32()).collect();
                let len = shared.region().len();
                let id = self.keep(Object::Shared(shared));
                Ok(Answer::Shared { id, refs, len })
            }
            Call::Map { from, refs, write } => {
                let refs: Vec<GrantRef> = refs.into_iter().map(GrantRef::new).collect();
                let mapped = map(&self.xen, DomId::new(from), &refs, access(write))?;
                let len = mapped.region().len();
                let id = self.keep(Object::Mapped(mapped));
                Ok(Answer::Mapped { id, len })
            }
            Call::OnUnmap {
                pages,
                clear_byte,
                event,
            } => {
                let event = event.map(Port::new);
                let notify = UnmapNotify { clear_byte, event };
                match self.objects.get(&pages) {
                    Some(Object::Shared(shared)) => shared.set_unmap_notify(notify)?,
                    Some(Object::Mapped(mapped)) => mapped.set_unmap_notify(notify)?,
                    _ => return Err(unknown(pages)),
                }
                Ok(Answer::Done)
            }
            Call::Slice { view, offset, len } => {
                let view = self.view_mut(view)?;
                // Nothing is taken unless all of it is there.
                let end = offset.checked_add(len).filter(|end| *end <= view.len());
                end.ok_or(RegionError::OutOfRange)?;
                let slice = view.split_off(offset)?.split_to(len)?;
                let id = self.keep(Object::View(slice));
                Ok(Answer::Made { id })
            }
            Call::CopyIn {
                view,
                offset,
                bytes,
            } => {
                self.view_mut(view)?.copy_in(offset, &bytes)?;
                Ok(Answer::Done)
            }
            Call::CopyOut { view, offset, len } => {
                let view = self.view(view)?;
                let mut bytes = vec![0; len.min(view.len())];
                view.copy_out(offset, &mut bytes)?;
                Ok(Answer::Bytes { bytes })
            }
            Call::Fill {
                view,
                offset,
                len,
                byte,
            } => {
                self.view_mut(view)?.fill(offset, len, byte)?;
                Ok(Answer::Done)
            }
            other => Err(Refusal::other(format_args!("no such call: {other:?}"))),
        }
    }

    fn view(&self, id: Id) -> Result<&Region, Refusal> {
        match self.objects.get(&id) {
            Some(Object::Shared(shared)) => Ok(shared.region()),
            Some(Object::Mapped(mapped)) => Ok(mapped.region()),
            Some(Object::View(view)) => Ok(view),
            _ => Err(unknown(id)),
        }
    }

    fn view_mut(&mut self, id: Id) -> Result<&mut Region, Refusal> {
        match self.objects.get_mut(&id) {
            Some(Object::Shared(shared)) => Ok(shared.region_mut()),
            Some(Object::Mapped(mapped)) => Ok(mapped.region_mut()),
            Some(Object::View(view)) => Ok(view),
            _ => Err(unknown(id)),
        }
    }

    /// The store's client, opened when it is first needed.
    fn client(&mut self) -> Result<Store, Refusal> {
        if self.store.is_none() {
            self.store = Some(Store::open(&self.xen)?);
        }
        self.store.clone().ok_or_else(|| Refusal::other("no store"))
    }
}

fn unknown(id: Id) -> Refusal {
    Refusal::other(format_args!("{id} is no object of this kind"))
}

fn found(port: Option<Port>) -> Answer {
    Answer::Found {
        port: port.map(Port::as_u32),
    }
}

fn access(write: bool) -> PageAccess {
    if write {
        PageAccess::ReadWrite
    } else {
        PageAccess::ReadOnly
    }
}

fn after(micros: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_micros(micros))
}

fn readable(fd: BorrowedFd<'_>, millis: u16) -> io::Result<bool> {
    let deadline = Instant::now() + Duration::from_millis(millis.into());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, left) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result? > 0),
        }
    }
}
