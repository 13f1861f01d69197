//! `stubdm-run screenshot DOMID FILE.png`: a picture of the guest's screen, from the VNC server
//! that dom0's QEMU has for it.
//!
//! Address, port and password are in the nodes from which `xl vncviewer` takes them. Only nodes
//! that dom0 alone may write are used: this program connects to what they name. The address is a
//! number, as QEMU's `query-vnc` returned it to libxl.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use stubdm_screen::rfb::Client;
use stubdm_screen::{PIXEL, Size};
use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::store::{Pair, StoreOptions, domid};
use crate::libxl::trusted;
use crate::rt::error::{Context, Failure, Result};
use crate::tools::qmp::seconds;
use crate::viewer::{LARGEST, Picture, Viewer};

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct ScreenshotOptions {
    /// How long to wait for the picture
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
    #[command(flatten)]
    store: StoreOptions,
    /// The guest, or its stubdomain
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domid: DomId,
    /// The PNG file to write, for its owner alone
    #[arg(value_name = "FILE.png")]
    pub file: PathBuf,
}

/// A VNC server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    address: SocketAddr,
    password: Option<String>,
}

/// Writes the picture.
///
/// # Errors
/// No such guest, no screen, no picture in time, or the file cannot be written: exit status 1.
pub fn run(options: &ScreenshotOptions) -> Result<()> {
    let deadline = Instant::now() + options.timeout;
    let store = options.store.open()?;
    let server = Server::of(&store, options.domid)?;
    let mut viewer = server.connect(deadline)?;
    if !viewer.run_until(deadline, Viewer::is_whole)? {
        return Err(Failure::new(format_args!(
            "the VNC server of domain {} sent no picture within {:?}",
            options.domid, options.timeout
        )));
    }
    let picture = viewer.picture();
    write(&options.file, picture)?;
    let Size { width, height } = picture.size;
    let file = options.file.display();
    writeln!(io::stdout(), "{file}: {width}x{height} pixels").context("printing")
}

impl Server {
    /// Finds the server of a guest, in the nodes of its stubdomain or its own.
    fn of(store: &Store, domain: DomId) -> Result<Self> {
        let pair = Pair::of(store, domain)?;
        for owner in pair.stubdomain.into_iter().chain([pair.guest]) {
            let folder = format!("/local/domain/{owner}/console");
            let read = |name: &str| -> Result<Option<String>> {
                let node = format!("{folder}/{name}");
                let value = trusted::read_str(store, &node).context(&node)?;
                Ok(value.filter(|value| !value.is_empty()))
            };
            let Some(port) = read("vnc-port")? else {
                continue;
            };
            let port = port.parse().context(format_args!("{folder}/vnc-port"))?;
            let listen = reachable(read("vnc-listen")?.as_deref());
            let listen = listen.context(format_args!("{folder}/vnc-listen"))?;
            return Ok(Self {
                address: SocketAddr::new(listen, port),
                password: read("vnc-pass")?,
            });
        }
        Err(Failure::new(format_args!(
            "domain {domain} has no screen over VNC: \
             its configuration has vnc=0, or no QEMU serves it"
        )))
    }

    fn connect(&self, deadline: Instant) -> Result<Viewer> {
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

/// Writes the file whole or not at all.
fn write(file: &Path, picture: &Picture) -> Result<()> {
    let bytes = encode(picture).context("the picture")?;
    let mut part = file.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(&part);
    let mut made = made.context(part.display())?;
    let written = made.write_all(&bytes).context(part.display());
    let written = written.and_then(|()| fs::rename(&part, file).context(file.display()));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Returns the picture as a PNG file's bytes. This takes seconds, so no file exists yet: a signal
/// may end the program.
fn encode(picture: &Picture) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::new();
    let Size { width, height } = picture.size;
    let mut encoder = png::Encoder::new(&mut out, width.into(), height.into());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let pixels = picture.bytes.chunks_exact(PIXEL);
    let rgb: Vec<u8> = pixels.flat_map(|p| [p[2], p[1], p[0]]).collect();
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&rgb)?;
    writer.finish()?;
    Ok(out)
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
