//! The vchan for the toolstack's QMP, offered again after a client broke it.

use std::time::Instant;

use stubdm_qmp::text::one_line;
use tracing::warn;
use xen_sys::DomId;

use crate::guest::server::{Backend, Server};
use crate::guest::supervisor::Event;
use crate::guest::watch::Watch;
use crate::libxl::payload::Payload;
use crate::rt::error::{Context, Result};
use crate::rt::event_loop::{Progress, Task};
use crate::rt::vchan::Vchan;

/// How often the vchan is offered again after a client broke it.
const OFFERS_MAX: u32 = 1000;

impl Watch<'_> {
    pub(super) fn serve(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        match server.turn(Instant::now()) {
            Ok(Progress::Sleep(deadline)) => self.server_deadline = deadline,
            Ok(Progress::Again | Progress::Done) => self.again = true,
            Err(error) => {
                warn!(
                    "the vchan: {}; offering a new one",
                    one_line(&error.to_string())
                );
                self.saver = self.server.take().and_then(Server::into_saver);
                self.server_deadline = None;
                self.offer();
            }
        }
    }

    pub(super) fn offer(&mut self) {
        self.offers += 1;
        let event = if self.offers > OFFERS_MAX {
            Event::Failed(format!("the vchan broke {OFFERS_MAX} times"))
        } else {
            match self.listen() {
                Ok(mut server) => {
                    if let Some(saver) = self.saver.take() {
                        server = server.with_saves(saver);
                    }
                    self.server = Some(server);
                    // Its first look must not wait for an event that may already have occurred.
                    self.again = true;
                    Event::VchanUp
                }
                Err(failure) => Event::Failed(failure.to_string()),
            }
        };
        self.handle_event(event);
    }

    fn listen(&self) -> Result<Server<Vchan>> {
        let node = format!("device-model/{}/qmp-vchan", self.env.guest.domid);
        let channel = xen_vchan::ServerBuilder::new(DomId::DOM0, node.as_str())
            // Its clients are dom0's, which can write into this domain's memory anyway.
            .reuse_memory(true)
            .publish(self.env.xen, self.env.store)
            .context(format_args!("offering the vchan {node}"))?;
        let backend = Backend::Socket(self.toolstack.clone());
        Ok(Server::new(Vchan::new(channel), backend, Payload::Qmp))
    }
}
