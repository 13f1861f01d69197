//! A guest's screen, as dom0's QEMU serves it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use stubdm_screen::Size;
use xen_sys::DomId;

use crate::libxl::vnc::VncServer;
use crate::rt::error::Result;
use crate::tools::qmp::{ask, monitor_of};

/// The time for which a size that was named is shown.
const SIZE_LASTS: Duration = Duration::from_secs(30);

/// A guest's screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// The VNC server's address, as this host reaches it.
    pub address: SocketAddr,
    /// The size that the server names to a viewer; `None` if it names none in time.
    pub size: Option<Size>,
    /// The number of viewers, this program not being one; `None` if QEMU's monitor gives none.
    pub viewers: Option<usize>,
}

/// The screens of all guests, and the sizes that their servers named last.
///
/// A server names its size to viewers. So this connects to each for a moment, but not again for
/// each frame of `status --watch`.
#[derive(Debug, Default)]
pub struct Screens {
    sizes: HashMap<(DomId, SocketAddr), (Instant, Size)>,
}

impl Screens {
    /// Asks dom0's QEMU for each stubdomain, by its monitor and as a viewer, all at once until the
    /// deadline: one that does not answer costs the others nothing.
    pub(super) fn look(
        &mut self,
        servers: &[(DomId, VncServer)],
        deadline: Instant,
    ) -> Vec<Screen> {
        let now = Instant::now();
        self.sizes
            .retain(|_, (named, _)| now.saturating_duration_since(*named) < SIZE_LASTS);
        let sizes = &self.sizes;
        let screens: Vec<Screen> = thread::scope(|scope| {
            let asking = |(stubdomain, server): &'_ (DomId, VncServer)| {
                let known = sizes
                    .get(&(*stubdomain, server.address))
                    .map(|(_, size)| *size);
                let (stubdomain, server) = (*stubdomain, server.clone());
                let address = server.address;
                let look = move || Screen::look(&server, stubdomain, known, deadline);
                (address, thread::Builder::new().spawn_scoped(scope, look))
            };
            let asked: Vec<_> = servers.iter().map(asking).collect();
            let answered = asked.into_iter().map(|(address, thread)| {
                let screen = thread.ok().and_then(|thread| thread.join().ok());
                screen.unwrap_or(Screen {
                    address,
                    size: None,
                    viewers: None,
                })
            });
            answered.collect()
        });
        for ((stubdomain, _), screen) in servers.iter().zip(&screens) {
            if let Some(size) = screen.size {
                let key = (*stubdomain, screen.address);
                self.sizes.entry(key).or_insert((now, size));
            }
        }
        screens
    }
}

impl Screen {
    fn look(server: &VncServer, stubdomain: DomId, known: Option<Size>, deadline: Instant) -> Self {
        // First, because the server counts this program later.
        let viewers = viewers(&monitor_of(stubdomain), deadline);
        Self {
            address: server.address,
            size: known.or_else(|| size(server, deadline).ok().flatten()),
            viewers,
        }
    }
}

/// Asks a QEMU's monitor how many viewers there are.
fn viewers(monitor: &Path, deadline: Instant) -> Option<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = left.max(Duration::from_millis(1));
    let answer: Value = ask(monitor, "query-vnc", None, left).ok()?;
    answer.get("clients")?.as_array().map(Vec::len)
}

/// Joins as a viewer until the server names the screen's size.
fn size(server: &VncServer, deadline: Instant) -> Result<Option<Size>> {
    let mut viewer = server.connect(deadline)?;
    viewer.run_until(deadline, |viewer| viewer.client.screen().is_some())?;
    Ok(viewer.client.screen())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewer::fake::Fake;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A VNC server that names its size to each viewer, and the number of those so far.
    fn server(width: u16) -> (VncServer, Arc<AtomicUsize>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let server = VncServer::at(listener.local_addr().unwrap());
        let joined = Arc::new(AtomicUsize::new(0));
        let count = joined.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let height = 7;
                let mut fake = Fake {
                    stream,
                    width,
                    height,
                };
                fake.security(&[1]).unwrap();
                let _ = fake.accept();
            }
        });
        (server, joined)
    }

    #[test]
    fn a_server_that_does_not_answer_costs_the_others_nothing() {
        // Its queue takes connections, and nobody serves them.
        let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let silent = VncServer::at(silent.local_addr().unwrap());
        let domains = [60_001, 60_002, 60_003].map(DomId::new);
        let (one, joined) = server(5);
        let (other, _) = server(6);
        let servers = [(domains[0], silent), (domains[1], one), (domains[2], other)];
        let mut screens = Screens::default();
        let width = |screen: &Screen| screen.size.map(|size| size.width);
        for _ in 0..3 {
            let deadline = Instant::now() + Duration::from_secs(2);
            let seen = screens.look(&servers, deadline);
            assert_eq!(
                seen.iter().map(width).collect::<Vec<_>>(),
                [None, Some(5), Some(6)]
            );
        }
        // Each that answered was joined once.
        assert_eq!(joined.load(Ordering::Relaxed), 1);
        // A size is asked for again in the end, and at once for another guest.
        for (named, _) in screens.sizes.values_mut() {
            *named = named.checked_sub(SIZE_LASTS).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        screens.look(&servers[1..], deadline);
        assert_eq!(joined.load(Ordering::Relaxed), 2);
        let moved = [(domains[0], servers[1].1.clone())];
        screens.look(&moved, deadline);
        assert_eq!(joined.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn the_viewers_are_those_that_qemu_lists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .write_all(b"{\"QMP\": {\"version\": {}}}\r\n")
                .unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for (command, answer) in [
                ("qmp_capabilities", "{}"),
                ("query-vnc", r#"{"enabled": true, "clients": [{}, {}]}"#),
            ] {
                let line = lines.next().unwrap().unwrap();
                assert!(line.contains(command), "{line}");
                let asked: Value = serde_json::from_str(&line).unwrap();
                let id = &asked["id"];
                write!(stream, "{{\"return\": {answer}, \"id\": {id}}}\r\n").unwrap();
            }
        });
        let soon = Instant::now() + Duration::from_secs(20);
        assert_eq!(viewers(&path, soon), Some(2));
        serving.join().unwrap();
        assert_eq!(viewers(&path, soon), None);
    }
}
