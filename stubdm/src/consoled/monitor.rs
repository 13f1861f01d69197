//! A QMP socket: any number of clients one after another, a few at a time.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use super::qmp::{Facts, Session};
use crate::rt::error::Result;
use crate::rt::listener::{Listener, SocketFile, bind};
use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream};

/// How many clients may be connected at one time; libxl is one, and asks alone.
const CLIENTS: usize = 8;
/// A client that leaves this many bytes unread is disconnected.
const BACKLOG: usize = 256 << 10;

/// A listening socket with its clients.
#[derive(Debug)]
pub struct QmpSocket {
    listener: Listener,
    _file: SocketFile,
    clients: Vec<Client>,
    password: Option<String>,
}

#[derive(Debug)]
struct Client {
    local: Stream,
    session: Session,
    answers: Vec<u8>,
    gone: bool,
}

impl QmpSocket {
    /// Listens at `path`.
    ///
    /// # Errors
    /// The folder is missing, or somebody else listens there.
    pub fn listen(path: &Path) -> Result<Self> {
        let (listener, file) = bind(path)?;
        Ok(Self {
            listener: listener.into(),
            _file: file,
            clients: Vec::new(),
            password: None,
        })
    }

    /// Accepts clients and answers their commands. Returns whether one sent `quit`.
    pub fn turn(&mut self, facts: &Facts, now: Instant) -> bool {
        while self.clients.len() < CLIENTS {
            let Some(fd) = self.listener.accept(now) else {
                break;
            };
            self.clients.extend(Client::new(fd));
        }
        for client in &mut self.clients {
            client.turn(facts);
            self.password = client.session.take_password().or(self.password.take());
        }
        let quit = self.clients.iter().any(|client| client.session.has_quit());
        self.clients.retain(|client| !client.gone);
        quit
    }

    /// Takes the VNC password that a client set.
    pub fn take_password(&mut self) -> Option<String> {
        self.password.take()
    }

    /// Returns when to look again without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.listener.deadline()
    }

    /// Returns the descriptors to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = Vec::new();
        if self.clients.len() < CLIENTS {
            interests.extend(self.listener.interest());
        }
        for client in &self.clients {
            let waiting = !client.answers.is_empty();
            interests.extend(client.local.interest(!waiting, waiting));
        }
        interests
    }
}

impl Client {
    fn new(fd: OwnedFd) -> Option<Self> {
        Some(Self {
            local: Stream::socket(fd).ok()?,
            session: Session::default(),
            answers: Session::greeting(),
            gone: false,
        })
    }

    fn turn(&mut self, facts: &Facts) {
        let mut buffer = [0; 4096];
        self.send();
        // One piece at a turn, and none before the last answers are out.
        if self.answers.is_empty() && !self.gone {
            match self.local.read(&mut buffer) {
                Ok(Read::Bytes(count)) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.answers = self.session.push(bytes, facts);
                    self.gone |= self.answers.len() > BACKLOG;
                    self.send();
                }
                Ok(Read::Nothing) => {}
                Ok(Read::End) | Err(_) => self.gone = true,
            }
        }
    }

    fn send(&mut self) {
        while !self.answers.is_empty() && !self.gone {
            match self.local.write(&self.answers) {
                Ok(0) => break,
                Ok(count) => drop(self.answers.drain(..count)),
                Err(_) => self.gone = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    /// One line, while the monitor has its turns.
    fn line(monitor: &mut QmpSocket, stream: &UnixStream) -> String {
        monitor.turn(&Facts::default(), Instant::now());
        let mut text = String::new();
        BufReader::new(stream).read_line(&mut text).unwrap();
        text
    }

    #[test]
    fn clients_come_and_go_and_a_silent_one_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let mut monitor = QmpSocket::listen(&path).unwrap();
        let _silent = UnixStream::connect(&path).unwrap();
        for _ in 0..20 {
            let mut stream = UnixStream::connect(&path).unwrap();
            assert!(line(&mut monitor, &stream).starts_with(r#"{"QMP":"#));
            stream
                .write_all(b"{\"execute\":\"qmp_capabilities\"}\r\n")
                .unwrap();
            assert_eq!(line(&mut monitor, &stream), "{\"return\":{}}\r\n");
            drop(stream);
            monitor.turn(&Facts::default(), Instant::now());
            assert_eq!(monitor.clients.len(), 1);
        }
        for _ in 0..20 {
            std::mem::forget(UnixStream::connect(&path).unwrap());
            assert!(!monitor.turn(&Facts::default(), Instant::now()));
            assert!(monitor.clients.len() <= CLIENTS);
        }
        drop(monitor);
        assert!(!path.exists());
    }

    #[test]
    fn a_client_that_takes_no_answers_holds_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let mut monitor = QmpSocket::listen(&path).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_nonblocking(true).unwrap();
        for _ in 0..10_000 {
            let _ = stream.write(b"{\"execute\":\"x\"}\n{\n{\n{\n{\n{\n");
            monitor.turn(&Facts::default(), Instant::now());
            assert!(monitor.clients.iter().all(|c| c.answers.len() <= BACKLOG));
        }
    }
}
