//! The VNC server that libxl asks of a QEMU: `-vnc ADDRESS:DISPLAY[,password=on][,to=LAST]`.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::rt::error::{Context, Failure, Result};

/// How long a port of before may be in use: the screen's process ends after the `consoled` that it
/// got the socket from.
const HAND_OVER: Duration = Duration::from_secs(2);
/// The pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(10);
/// The port of display 0.
const FIRST_PORT: u16 = 5900;

/// A VNC server that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vnc {
    /// The address to listen at.
    pub address: IpAddr,
    /// The first and the last display to try.
    pub displays: (u16, u16),
    /// Viewers need a password, which QMP sets.
    pub password: bool,
}

impl FromStr for Vnc {
    type Err = String;

    /// Reads libxl's words. Any others, a host's name among them, are QEMU's to understand.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        read(text).ok_or_else(|| "not ADDRESS:DISPLAY[,password=on][,to=LAST]".to_owned())
    }
}

fn read(text: &str) -> Option<Vnc> {
    let mut words = text.split(',');
    let (address, display) = words.next()?.rsplit_once(':')?;
    let address = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    let first = number(display)?;
    let mut vnc = Vnc {
        address: address.parse().ok()?,
        displays: (first, first),
        password: false,
    };
    let mut ranged = false;
    for word in words {
        match word {
            "password" | "password=on" if !vnc.password => vnc.password = true,
            _ => {
                let last = number(word.strip_prefix("to=")?)?;
                if std::mem::replace(&mut ranged, true) || last < first {
                    return None;
                }
                vnc.displays.1 = last;
            }
        }
    }
    Some(vnc)
}

/// Reads a display's number whose port can be.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u16 = text.parse().ok().filter(|_| plain)?;
    number.checked_add(FIRST_PORT).map(|_| number)
}

impl std::fmt::Display for Vnc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, last) = self.displays;
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{first}")?,
            IpAddr::V6(address) => write!(f, "[{address}]:{first}")?,
        }
        f.write_str(if self.password { ",password=on" } else { "" })?;
        write!(f, ",to={last}")
    }
}

impl Vnc {
    /// Listens at the first display whose port is free; at `again`'s port, if that is given.
    ///
    /// # Errors
    /// None is free, or the system's.
    pub fn listen(&self, again: Option<u16>) -> Result<TcpListener> {
        let (first, last) = self.displays;
        let what = format!("a VNC server at {self}");
        if let Some(port) = again {
            if let Ok(listener) = listen_again(self.address, port) {
                return Ok(listener);
            }
        }
        for display in first..=last {
            match listen(self.address, FIRST_PORT.saturating_add(display)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                other => return other.context(what),
            }
        }
        Err(Failure::new(format_args!("{what}: no port is free")))
    }
}

/// Listens at a port that may be in use for a moment.
fn listen_again(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let end = Instant::now() + HAND_OVER;
    loop {
        match listen(address, port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((address, port))?;
    listener.set_nonblocking(true)?;
    // Connections inherit both: small messages are not held back, and a viewer whose host has
    // disappeared is noticed.
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    setsockopt(&listener, sockopt::KeepAlive, &true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libxls_words_are_read() {
        for (text, address, displays, password) in [
            ("127.0.0.1:0,to=99", "127.0.0.1", (0, 99), false),
            ("127.0.0.1:0,password=on,to=99", "127.0.0.1", (0, 99), true),
            ("127.0.0.1:0,password,to=99", "127.0.0.1", (0, 99), true),
            ("0.0.0.0:7", "0.0.0.0", (7, 7), false),
            ("[::1]:3,to=3", "::1", (3, 3), false),
            (":::5", "::", (5, 5), false),
        ] {
            let vnc: Vnc = text.parse().unwrap();
            let expected = Vnc {
                address: address.parse().unwrap(),
                displays,
                password,
            };
            assert_eq!(vnc, expected, "{text}");
            assert_eq!(vnc.to_string().parse(), Ok(expected), "{vnc}");
        }
    }

    #[test]
    fn other_words_are_not() {
        for text in [
            "",
            "none",
            ":0",
            "localhost:0",
            "127.0.0.1",
            "127.0.0.1:x",
            "127.0.0.1:+1",
            "127.0.0.1:60000",
            "127.0.0.1:0,to=x",
            "127.0.0.1:5,to=4",
            "127.0.0.1:0,to=5,to=6",
            "127.0.0.1:0,password,password=on",
            "127.0.0.1:0,tls-creds=x",
            "127.0.0.1:0,websocket=on",
            "unix:/run/x",
        ] {
            assert!(text.parse::<Vnc>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_in_use_is_passed_over_and_one_of_before_comes_first() {
        // Somewhere beyond the ports that others use: a few tries find free ones.
        for display in (20_000..40_000).step_by(997) {
            let vnc: Vnc = format!("127.0.0.1:{display},to={}", display + 1)
                .parse()
                .unwrap();
            let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
            let Ok(first) = vnc.listen(None) else {
                continue;
            };
            let Ok(second) = vnc.listen(None) else {
                continue;
            };
            assert_eq!(port(&first), 5900 + display);
            assert_eq!(port(&second), 5900 + display + 1);
            assert!(vnc.listen(None).is_err());
            // The process that was killed with it still has it for a moment.
            let ends = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                drop((first, second));
            });
            let again = vnc.listen(Some(5900 + display)).unwrap();
            assert_eq!(port(&again), 5900 + display);
            ends.join().unwrap();
            return;
        }
        panic!("no free ports");
    }
}
