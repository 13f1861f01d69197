//! The VNC server that dom0's QEMU has for a guest's screen.
//!
//! Address, port and password are in the nodes from which `xl vncviewer` takes them. Only nodes
//! that dom0 alone may write are used: this program connects to what they name. The address is a
//! number, as QEMU's `query-vnc` returned it to libxl.

use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use stubdm_screen::rfb::Client;
use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::store::Pair;
use crate::libxl::trusted;
use crate::rt::error::{Context, Failure, Result};
use crate::viewer::{LARGEST, Viewer};

/// A VNC server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VncServer {
    /// Its address, as this host reaches it.
    pub address: SocketAddr,
    password: Option<String>,
}

impl VncServer {
    /// Finds the server in the nodes of `owner`, the stubdomain; `None` if there is none.
    ///
    /// # Errors
    /// The store fails, or a node holds no address or no port.
    pub fn of(store: &Store, owner: DomId) -> Result<Option<Self>> {
        let folder = format!("/local/domain/{owner}/console");
        let read = |name: &str| -> Result<Option<String>> {
            let node = format!("{folder}/{name}");
            let value = trusted::read_str(store, &node).context(&node)?;
            Ok(value.filter(|value| !value.is_empty()))
        };
        let Some(port) = read("vnc-port")? else {
            return Ok(None);
        };
        let port = port.parse().context(format_args!("{folder}/vnc-port"))?;
        let listen = reachable(read("vnc-listen")?.as_deref());
        let listen = listen.context(format_args!("{folder}/vnc-listen"))?;
        Ok(Some(Self {
            address: SocketAddr::new(listen, port),
            password: read("vnc-pass")?,
        }))
    }

    /// Finds the server of a domain's screen, in the nodes of its stubdomain or its own.
    ///
    /// # Errors
    /// There is no such domain, it has no screen, the store fails, or a node holds no address or no
    /// port.
    pub fn of_domain(store: &Store, domain: DomId) -> Result<Self> {
        let pair = Pair::of(store, domain)?;
        for owner in pair.stubdomain.into_iter().chain([pair.guest]) {
            if let Some(server) = Self::of(store, owner)? {
                return Ok(server);
            }
        }
        Err(Failure::new(format_args!(
            "domain {domain} has no screen over VNC: \
             its configuration has vnc=0, or no QEMU serves it"
        )))
    }

    /// Joins a domain's screen as a viewer, and waits for the whole picture.
    ///
    /// # Errors
    /// As [`of_domain`](Self::of_domain); the server sends no picture in time, or closes the
    /// connection.
    pub fn picture_of(store: &Store, domain: DomId, timeout: Duration) -> Result<Viewer> {
        let deadline = Instant::now() + timeout;
        let mut viewer = Self::of_domain(store, domain)?.connect(deadline)?;
        match viewer.run_until(deadline, Viewer::is_whole)? {
            true => Ok(viewer),
            false => Err(Failure::new(format_args!(
                "the VNC server of domain {domain} sent no picture within {timeout:?}"
            ))),
        }
    }

    /// A server without a password.
    #[cfg(test)]
    pub(crate) fn at(address: SocketAddr) -> Self {
        let password = None;
        Self { address, password }
    }

    /// Connects a viewer.
    ///
    /// # Errors
    /// The server does not accept the connection in time.
    pub fn connect(&self, deadline: Instant) -> Result<Viewer> {
        let (ip, port) = (self.address.ip(), self.address.port());
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        let stream = TcpStream::connect_timeout(&self.address, left);
        let stream = stream.context(format_args!("the VNC server at {ip} port {port}"))?;
        let mut client = Client::new(LARGEST);
        if let Some(password) = &self.password {
            client = client.with_password(password.as_str());
        }
        Viewer::new(stream.into(), client)
    }
}

/// Returns an address for a connection to a server that listens at `listen`.
fn reachable(listen: Option<&str>) -> std::result::Result<IpAddr, AddrParseError> {
    let listen = listen.map_or(Ok(Ipv4Addr::LOCALHOST.into()), str::parse)?;
    Ok(match listen {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_reached_on_this_host() {
        for (listen, expected) in [
            (None, Some("127.0.0.1")),
            (Some("0.0.0.0"), Some("127.0.0.1")),
            (Some("::"), Some("::1")),
            (Some("192.0.2.7"), Some("192.0.2.7")),
            (Some("2001:db8::7"), Some("2001:db8::7")),
            (Some("localhost"), None),
        ] {
            let found = reachable(listen).ok().map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{listen:?}");
        }
    }
}
