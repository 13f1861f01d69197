//! `stubdm-run qmp DOMID COMMAND [JSON]`: one question to a guest's QEMU, one answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;
use stubdm_qmp::client::{Client, ClientEvent};
use stubdm_qmp::json::Json;
use stubdm_qmp::message::LIMITS;
use stubdm_qmp::text::{json, json_line, one_line};

use crate::libxl::store::{self, domid};
use crate::rt::error::{Context, Failure, Result};
use crate::rt::stream;
use xen_sys::DomId;

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct QmpOptions {
    /// Connect here instead of to the guest's own socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How long to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
    /// Print the answer over several lines
    #[arg(long)]
    pub pretty: bool,
    /// The guest (not its stubdomain)
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domid: DomId,
    /// The QMP command, e.g. query-status
    #[arg(value_name = "COMMAND")]
    pub command: String,
    /// The command's arguments, a JSON object
    #[arg(value_name = "JSON", value_parser = object)]
    pub arguments: Option<Json>,
}

/// The beginning of errors that are the proxy's own.
const PROXY: &str = "stubdm-run: ";

/// Reads a time on the command line.
pub(super) fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|e| e.to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() && timeout <= Duration::from_secs(86_400) => Ok(timeout),
        _ => Err("not between 0 and 86400 seconds".to_owned()),
    }
}

/// A command's arguments.
pub(crate) fn object(text: &str) -> std::result::Result<Json, String> {
    match Json::read(text.as_bytes(), &LIMITS) {
        Ok(value @ Json::Map(_)) => Ok(value),
        Ok(_) => Err("not a JSON object".to_owned()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// Sends a command, and prints the answer.
///
/// # Errors
/// No such guest, no stubdomain, no answer in time, or QEMU's own refusal: exit status 1.
pub fn run(options: &QmpOptions) -> Result<()> {
    let path = match &options.socket {
        Some(path) => path.clone(),
        None => guest_socket(options.domid)?,
    };
    let arguments = options.arguments.clone();
    let answer = ask(&path, &options.command, arguments, options.timeout)?;
    let text = if options.pretty {
        json(&answer)
    } else {
        json_line(&answer)
    };
    writeln!(io::stdout(), "{text}").context("printing the answer")
}

/// Has the QEMU whose monitor is at `path` execute a command; returns its answer.
///
/// # Errors
/// No answer within `timeout`, or QEMU's own refusal.
pub(super) fn ask(
    path: &Path,
    command: &str,
    arguments: Option<Json>,
    timeout: Duration,
) -> Result<Value> {
    let deadline = Instant::now() + timeout;
    let stream = connect(path, deadline).context(path.display())?;
    converse(stream, command, arguments, timeout, deadline)
}

/// Returns the socket at which libxl looks for the monitor of a domain's QEMU.
pub(super) fn monitor_of(domain: DomId) -> PathBuf {
    format!("/var/run/xen/qmp-libxl-{domain}").into()
}

/// Returns the socket at which the host's proxy listens for this guest.
fn guest_socket(guest: DomId) -> Result<PathBuf> {
    let (_, store) = store::open()?;
    let home = format!("/local/domain/{guest}");
    if !store.exists(&home).context(&home)? {
        return Err(Failure::new(format_args!("there is no domain {guest}")));
    }
    let node = format!("{home}/image/device-model-domid");
    match store.read_str(&node) {
        Ok(_) => Ok(monitor_of(guest)),
        Err(error) if error.is_not_found() => Err(Failure::new(format_args!(
            "domain {guest} has no stubdomain (no {node}); --socket takes another QEMU's monitor"
        ))),
        Err(error) => Err(Failure::new(format_args!("{node}: {error}"))),
    }
}

/// Connects; a proxy whose queue is full is asked again until the deadline.
fn connect(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        match stream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                left(deadline)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error),
            Ok(fd) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

fn converse(
    mut stream: UnixStream,
    command: &str,
    mut arguments: Option<Json>,
    timeout: Duration,
    deadline: Instant,
) -> Result<Value> {
    let mut client = Client::new();
    let mut greeted = false;
    loop {
        while let Some(event) = client.poll_event() {
            match event {
                ClientEvent::Ready => {
                    greeted = true;
                    client.execute(command, arguments.take());
                }
                ClientEvent::Answer(Ok(answer)) => return Ok(answer.into()),
                ClientEvent::Answer(Err(error)) => {
                    // The proxy's own errors begin so. A hostile QEMU may send the same text.
                    return Err(match error.desc.strip_prefix(PROXY) {
                        Some(why) => Failure::new(format_args!(
                            "the proxy gave no answer of QEMU's to {command}: {why}"
                        )),
                        None => Failure::new(format_args!("QEMU refused {command}: {error}")),
                    });
                }
                ClientEvent::Event(_) => {}
                ClientEvent::Broken(why) => {
                    return Err(Failure::new(format_args!(
                        "no proper QMP: {}",
                        one_line(&why)
                    )));
                }
            }
        }
        let asked = if greeted { "an answer" } else { "a greeting" };
        let timed = |error: io::Error| match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::new(format_args!(
                "no {} within {:?}",
                asked.trim_start_matches("an ").trim_start_matches("a "),
                timeout
            )),
            _ => Failure::new(format_args!("waiting for {asked}: {error}")),
        };
        while !client.poll_transmit().is_empty() {
            stream
                .set_write_timeout(Some(left(deadline).map_err(timed)?))
                .map_err(timed)?;
            let count = stream.write(client.poll_transmit()).map_err(timed)?;
            client.handle_transmitted(count);
        }
        stream
            .set_read_timeout(Some(left(deadline).map_err(timed)?))
            .map_err(timed)?;
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => return Err(Failure::new(format_args!("closed before {asked} came"))),
            Ok(count) => client.handle_bytes(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(timed(error)),
        }
    }
}
