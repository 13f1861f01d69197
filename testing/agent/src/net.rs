//! Networks of dom0's own for guests' cards: each a bridge with an address, and a port that echoes.
//!
//! ```text
//!   guest 10.77.N.H ══ vif ── bridge 10.77.N.1: dom0's kernel answers ARP and ICMP, a thread of ours UDP on port 7
//! ```
//!
//! The kernel's table of neighbours holds the peers seen on a network, with their cards'
//! addresses. The kernel leaves the checksum of its own datagrams to the card, but not that of an
//! ARP or ICMP reply.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::host::command;

/// A network that is there until it is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    number: u8,
    bridge: String,
    echo: Option<(UdpSocket, JoinHandle<()>)>,
}

impl Network {
    /// Makes the bridge `net-NUMBER` with the address 10.77.NUMBER.1.
    pub(crate) fn make(number: u8) -> Result<Self> {
        let bridge = format!("net-{number}");
        command(&["brctl", "addbr", &bridge])?;
        let mut network = Self {
            number,
            bridge,
            echo: None,
        };
        let bridge = network.bridge();
        // A port that is new forwards at once, not after 15 seconds of learning.
        let delay = format!("/sys/class/net/{bridge}/bridge/forward_delay");
        fs::write(&delay, "0").context(delay)?;
        // Without one of its own it has the first card's, which is the same for all of netback's.
        command(&["ip", "link", "set", bridge, "address", &network.mac()])?;
        let address = format!("{}/24", network.ip(1));
        command(&["ip", "addr", "add", &address, "dev", bridge])?;
        command(&["ip", "link", "set", bridge, "up"])?;
        let socket = UdpSocket::bind((network.ip(1), 7)).context("port 7")?;
        let server = socket.try_clone()?;
        network.echo = Some((socket, thread::spawn(move || echo(&server))));
        Ok(network)
    }

    /// The bridge's name.
    pub(crate) fn bridge(&self) -> &str {
        &self.bridge
    }

    /// The bridge's hardware address.
    pub(crate) fn mac(&self) -> String {
        format!("02:00:00:77:00:{:02x}", self.number)
    }

    /// The address of a host here.
    pub(crate) fn ip(&self, host: u8) -> String {
        format!("10.77.{}.{host}", self.number)
    }

    /// Whether an interface is a port of the bridge.
    pub(crate) fn has(&self, interface: &str) -> bool {
        fs::exists(format!("/sys/class/net/{}/brif/{interface}", self.bridge)).unwrap_or_default()
    }

    /// Returns the hardware addresses of the neighbours seen here, each with its IP address.
    pub(crate) fn neighbours(&self) -> Result<BTreeMap<String, String>> {
        const TABLE: &str = "/proc/net/arp";
        let table = fs::read_to_string(TABLE).context(TABLE)?;
        let row = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[ip, _, _, mac, _, device] = words.as_slice() else {
                return None;
            };
            (device == self.bridge).then(|| (mac.to_owned(), ip.to_owned()))
        };
        Ok(table.lines().filter_map(row).collect())
    }
}

/// Sends everything back, up to a datagram of nothing, which only this program sends.
fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((count @ 1.., from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..count], from);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some((socket, server)) = self.echo.take() {
            let ended = socket.local_addr().and_then(|own| socket.send_to(&[], own));
            if ended.is_ok() {
                let _ = server.join();
            }
        }
        let _ = command(&["ip", "link", "set", &self.bridge, "down"]);
        let _ = command(&["brctl", "delbr", &self.bridge]);
    }
}
