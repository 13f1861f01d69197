//! Calls on the store: a value, its permissions, and bytes on a connection of its own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use super::{Done, Object, Worker, readable, unknown};
use crate::call::{Answer, Call, Id, Refusal};

impl Worker {
    pub(super) fn store(&mut self, call: Call) -> Done {
        match call {
            Call::StoreRead { path } => {
                let bytes = self.client()?.read(&path)?;
                Ok(Answer::Bytes { bytes })
            }
            Call::StorePerms { path } => {
                let text = self.client()?.permissions(&path)?.to_string();
                Ok(Answer::Text { text })
            }
            Call::Wire => {
                let wire = File::from((self.connect)()?);
                let id = self.keep(Object::Wire(wire));
                Ok(Answer::Made { id })
            }
            Call::WireSend { wire, bytes } => {
                self.wire(wire)?.write_all(&bytes)?;
                Ok(Answer::Done)
            }
            Call::WireRecv { wire, millis } => {
                let mut wire = self.wire(wire)?;
                if !readable(wire.as_fd(), millis)? {
                    return Err(Refusal::other("nothing came from the store"));
                }
                let mut bytes = vec![0; 8192];
                let count = wire.read(&mut bytes)?;
                bytes.truncate(count);
                Ok(Answer::Bytes { bytes })
            }
            other => Err(Refusal::other(format_args!("no such call: {other:?}"))),
        }
    }

    fn wire(&self, id: Id) -> Result<&File, Refusal> {
        match self.objects.get(&id) {
            Some(Object::Wire(wire)) => Ok(wire),
            _ => Err(unknown(id)),
        }
    }
}
