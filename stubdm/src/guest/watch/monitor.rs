//! Our own monitor: QEMU's greeting, the commands we give, its events, and whether it still
//! answers.

use std::io;
use std::os::fd::OwnedFd;

use stubdm_qmp::client::{Client, ClientEvent};
use stubdm_qmp::text::one_line;
use tracing::warn;

use crate::guest::server::Server;
use crate::guest::supervisor::Event;
use crate::guest::watch::Watch;
use crate::rt::stream::{Read, Stream};

/// The command in progress on our own monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnCommand {
    /// `cont`.
    Start,
    /// Anything, to see it answered.
    Alive,
    /// `add-fd` for a medium.
    Medium,
    /// `add-fd` for the file to save to.
    SaveFile,
}

impl Watch<'_> {
    pub(super) fn handle_monitor(&mut self) {
        if let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((stream, _)) => match Stream::socket(OwnedFd::from(stream)) {
                    Ok(local) => {
                        self.monitor = Some((local, Client::new()));
                        // QEMU connects once; nobody else is to.
                        self.listener = None;
                    }
                    Err(error) => self.handle_event(Event::MonitorLost(error.to_string())),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => warn!("our own monitor's socket: {error}"),
            }
        }
        let Some((local, client)) = &mut self.monitor else {
            return;
        };
        let mut lost = None;
        if let Err(error) = move_bytes(local, client, &mut self.again) {
            lost = Some(error.to_string());
        }
        let mut events = Vec::new();
        while let Some(message) = client.poll_event() {
            events.push(match message {
                ClientEvent::Ready => {
                    // Before anything else is pending: a toolstack may save as soon as it is served.
                    if let Some(saver) = &mut self.saver {
                        match saver.offer(local, client) {
                            Ok(()) => self.pending.push_back(OwnCommand::SaveFile),
                            Err(error) => warn!("QEMU gets no file to save to: {error}"),
                        }
                    }
                    Event::MonitorReady
                }
                ClientEvent::Answer(answer) => match (self.pending.pop_front(), answer) {
                    // A refusal is an answer.
                    (Some(OwnCommand::Alive), _) => Event::Answered,
                    (Some(OwnCommand::Medium), answer) => {
                        if let Err(error) = answer {
                            warn!("QEMU takes no medium: {error}");
                        }
                        continue;
                    }
                    (Some(OwnCommand::SaveFile), answer) => {
                        if let Err(error) = answer {
                            warn!("QEMU takes no file to save to: {error}");
                        }
                        continue;
                    }
                    (_, Ok(_)) => Event::Started,
                    (_, Err(error)) => Event::StartRefused(error.to_string()),
                },
                ClientEvent::Event(name) => Event::Qmp(name),
                ClientEvent::Broken(why) => {
                    lost = Some(why);
                    continue;
                }
            });
        }
        if let Some(why) = lost {
            self.monitor = None;
            events.push(Event::MonitorLost(one_line(&why)));
        }
        for event in events {
            self.handle_event(event);
        }
    }

    /// Passes new media to QEMU, one at a time, once it runs.
    pub(super) fn change_media(&mut self) {
        let (Some(drives), Some((local, client))) = (&mut self.drives, &mut self.monitor) else {
            return;
        };
        match drives.handle_events() {
            Ok(more) => self.again |= more,
            Err(error) => warn!("the kernel's words of new disks: {error}"),
        }
        let idle = self.pending.is_empty() && client.poll_transmit().is_empty();
        if idle && self.started && drives.offer(local, client) {
            self.pending.push_back(OwnCommand::Medium);
            self.again = true;
        }
    }

    /// Sends QEMU the file to save to once more, if a save was refused. While the monitor's buffer
    /// is full, a later turn tries again.
    pub(super) fn offer_file_again(&mut self) {
        self.full = false;
        let saver = self.server.as_mut().and_then(Server::saver);
        let saver = saver.filter(|saver| self.started && saver.is_to_be_offered());
        let (Some(saver), Some((local, client))) = (saver, &mut self.monitor) else {
            return;
        };
        if !self.pending.is_empty() || !client.poll_transmit().is_empty() {
            // An answer, or room to send, causes the next turn. QEMU keeps only the descriptor
            // received last.
            return;
        }
        match saver.offer(local, client) {
            Ok(()) => self.pending.push_back(OwnCommand::SaveFile),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.full = true,
            Err(error) => warn!("QEMU gets no file to save to: {error}"),
        }
    }

    /// Sends a command without arguments, if the monitor is connected.
    pub(super) fn ask(&mut self, pending: OwnCommand, command: &str) {
        if let Some((_, client)) = &mut self.monitor {
            client.execute(command, None);
            self.pending.push_back(pending);
            self.again = true;
        }
    }
}

/// Moves bytes between QEMU and our own monitor's conversation.
fn move_bytes(local: &mut Stream, client: &mut Client, again: &mut bool) -> io::Result<()> {
    let mut buffer = [0; 4096];
    for _ in 0..64 {
        let mut moved = false;
        if !client.poll_transmit().is_empty() {
            let count = local.write(client.poll_transmit())?;
            client.handle_transmitted(count);
            moved |= count > 0;
        }
        match local.read(&mut buffer)? {
            Read::Bytes(count) => {
                client.handle_bytes(buffer.get(..count).unwrap_or_default());
                moved = true;
            }
            Read::Nothing => {}
            Read::End => return Err(io::Error::other("closed")),
        }
        if !moved {
            return Ok(());
        }
    }
    *again = true;
    Ok(())
}
