//! A guest's screen, as dom0's QEMU serves it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use stubdm_screen::Size;
use xen_sys::DomId;

use crate::libxl::vnc::VncServer;
use crate::rt::error::Result;
use crate::tools::qmp::{ask, monitor_of};

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

impl Screen {
    /// Asks dom0's QEMU for `stubdomain`, by its monitor and as a viewer, until the deadline.
    pub(super) fn look(server: &VncServer, stubdomain: DomId, deadline: Instant) -> Self {
        // First, because the server counts this program later.
        let viewers = viewers(&monitor_of(stubdomain), deadline);
        Self {
            address: server.address,
            size: size(server, deadline).ok().flatten(),
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
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_viewers_are_those_that_qemu_lists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
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
