//! Calls on a vchan, at either end.

use std::time::Duration;

use xen_sys::DomId;
use xen_vchan::{Channel, ClientBuilder, PeerState, ServerBuilder};

use super::{Done, Object, Worker, after, unknown};
use crate::call::{Answer, Call, Id, Refusal};

impl Worker {
    pub(super) fn vchan(&mut self, call: Call) -> Done {
        match call {
            Call::Listen {
                peer,
                path,
                left,
                right,
            } => {
                let store = self.client()?;
                let builder = ServerBuilder::new(DomId::new(peer), path).rings(left, right);
                let channel = builder.publish(&self.xen, &store)?;
                let id = self.keep(Object::Vchan(Box::new(channel)));
                Ok(Answer::Made { id })
            }
            Call::Connect {
                server,
                path,
                micros,
            } => {
                let store = self.client()?;
                let mut builder = ClientBuilder::new(DomId::new(server), path);
                if micros > 0 {
                    let timeout = Duration::from_micros(micros);
                    builder = builder.wait_for_server(true).timeout(timeout);
                }
                let channel = builder.connect(&self.xen, &store)?;
                let id = self.keep(Object::Vchan(Box::new(channel)));
                Ok(Answer::Made { id })
            }
            Call::WaitConnected { vchan, micros } => {
                self.channel(vchan)?.wait_connected(after(micros))?;
                Ok(Answer::Done)
            }
            Call::NextClient { vchan } => {
                self.channel(vchan)?.next_client()?;
                Ok(Answer::Done)
            }
            Call::Peer { vchan } => {
                let text = match self.channel(vchan)?.peer()? {
                    PeerState::Waiting => "waiting",
                    PeerState::Connected => "connected",
                    PeerState::Gone => "gone",
                    _ => "another state",
                };
                let text = text.to_owned();
                Ok(Answer::Text { text })
            }
            Call::WaitEvent { vchan, micros } => {
                let so = self.channel(vchan)?.wait(after(micros))?;
                Ok(Answer::Is { so })
            }
            Call::Read {
                vchan,
                most,
                micros,
            } => {
                let mut bytes = vec![0; most];
                let channel = self.channel(vchan)?;
                let count = channel.read_deadline(&mut bytes, after(micros))?;
                bytes.truncate(count);
                Ok(Answer::Bytes { bytes })
            }
            Call::Write {
                vchan,
                bytes,
                micros,
            } => {
                let count = self.channel(vchan)?.write_deadline(&bytes, after(micros))?;
                Ok(Answer::Count { count })
            }
            Call::TryRead { vchan, most } => {
                let mut bytes = vec![0; most];
                let count = self.channel(vchan)?.try_read(&mut bytes)?;
                bytes.truncate(count);
                Ok(Answer::Bytes { bytes })
            }
            other => Err(Refusal::other(format_args!("no such call: {other:?}"))),
        }
    }

    fn channel(&mut self, id: Id) -> Result<&mut Channel, Refusal> {
        match self.objects.get_mut(&id) {
            Some(Object::Vchan(channel)) => Ok(channel),
            _ => Err(unknown(id)),
        }
    }
}
