//! `stubdm-run screenshot` and `screen` against a store with a guest, and a VNC server as QEMU's.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use tempfile::TempDir;
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

#[path = "../src/viewer/fake.rs"]
#[allow(dead_code)]
mod fake;

use fake::{Fake, Message};

/// The guest, and its stubdomain.
const GUEST: u16 = 5;
const STUB: u16 = 6;

/// A guest whose stubdomain has a screen, and a VNC server that waits for one viewer.
struct Host {
    dir: TempDir,
    store: Store,
    listener: TcpListener,
    _server: Server,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Config::new()).unwrap();
        server.listen(dir.path().join("s")).unwrap();
        let store = Store::connect(dir.path().join("s")).unwrap();
        for domain in [GUEST, STUB, 7] {
            server.add_domain(DomId::new(domain));
            server.introduce(DomId::new(domain));
            let home = format!("/local/domain/{domain}");
            store.write(&format!("{home}/name"), "d").unwrap();
        }
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let host = Self {
            dir,
            store,
            listener,
            _server: server,
        };
        let port = host.listener.local_addr().unwrap().port().to_string();
        let image = format!("/local/domain/{GUEST}/image/device-model-domid");
        host.store.write(&image, STUB.to_string()).unwrap();
        let target = format!("/local/domain/{STUB}/target");
        host.store.write(&target, GUEST.to_string()).unwrap();
        host.console("vnc-listen", "127.0.0.1");
        host.console("vnc-port", &port);
        host
    }

    /// Writes a node of the stubdomain's console.
    fn console(&self, name: &str, value: &str) {
        let node = format!("/local/domain/{STUB}/console/{name}");
        self.store.write(&node, value).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("shot.png")
    }

    fn shoot(&self, domain: u16, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command.arg("screenshot").args(more).arg("--store");
        command.arg(self.dir.path().join("s"));
        command
            .arg(domain.to_string())
            .arg(self.file())
            .output()
            .unwrap()
    }

    /// As [`shoot`](Self::shoot), which fails with one line and leaves no file.
    fn fails(&self, domain: u16, more: &[&str]) -> String {
        let output = self.shoot(domain, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let left = fs::read_dir(self.dir.path()).unwrap();
        let left = left.filter(|e| e.as_ref().unwrap().file_name() != "s");
        assert_eq!(left.count(), 0);
        said
    }

    /// Serves one viewer.
    fn serve(&self, serving: impl FnOnce(Fake<TcpStream>) + Send + 'static) -> JoinHandle<()> {
        let listener = self.listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let (width, height) = (300, 2);
            serving(Fake {
                stream,
                width,
                height,
            });
        })
    }
}

fn colour(x: u16, y: u16) -> u32 {
    u32::from_be_bytes([0, (17 * y) as u8, (x % 7) as u8, x as u8])
}

/// Sends the picture when it is requested, and stays until the viewer leaves.
fn show(server: &mut Fake<TcpStream>) {
    server.accept().unwrap();
    while server.message().unwrap() != (Message::Request { incremental: false }) {}
    server.announce().unwrap();
    server.picture(colour).unwrap();
    while server.message().is_ok() {}
}

/// The file has the picture, pixel for pixel.
fn is_shown(file: &Path) {
    let decoder = png::Decoder::new(BufReader::new(File::open(file).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!((info.width, info.height), (300, 2));
    assert_eq!(info.color_type, png::ColorType::Rgb);
    for (at, pixel) in bytes[..info.buffer_size()].chunks(3).enumerate() {
        let expected = colour((at % 300) as u16, (at / 300) as u16);
        assert_eq!(pixel, &expected.to_be_bytes()[1..], "pixel {at}");
    }
}

#[test]
fn the_file_has_the_screen_of_a_guest_or_its_stubdomain() {
    for domain in [GUEST, STUB] {
        let host = Host::new();
        let serving = host.serve(|mut server| {
            assert_eq!(server.security(&[1]).unwrap(), 1);
            show(&mut server);
        });
        let output = host.shoot(domain, &[]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.ends_with("shot.png: 300x2 pixels\n"), "{said}");
        is_shown(&host.file());
        let mode = fs::metadata(host.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        serving.join().unwrap();
    }
}

#[test]
fn the_password_is_the_stores() {
    let host = Host::new();
    host.console("vnc-pass", "secret");
    let serving = host.serve(|mut server| {
        assert_eq!(server.security(&[2]).unwrap(), 2);
        let challenge: Vec<u8> = (0..16).collect();
        server.stream.write_all(&challenge).unwrap();
        let mut response = [0; 16];
        server.stream.read_exact(&mut response).unwrap();
        // By openssl: stubdm-screen's own test has the command.
        assert_eq!(response[..4], [0xee, 0x22, 0x53, 0x9f]);
        assert_eq!(response[12..], [0xdb, 0xc9, 0x95, 0xdd]);
        show(&mut server);
    });
    let output = host.shoot(GUEST, &[]);
    assert!(output.status.success(), "{output:?}");
    is_shown(&host.file());
    serving.join().unwrap();
}

#[test]
fn each_failure_is_one_line_and_leaves_no_file() {
    let host = Host::new();
    assert!(host.fails(99, &[]).contains("there is no domain 99"));
    assert!(host.fails(7, &[]).contains("domain 7 has no screen"));

    let serving = host.serve(|mut server| {
        let _ = server.security(&[2]);
    });
    assert!(host.fails(GUEST, &[]).contains("wants a password"));
    serving.join().unwrap();

    // Most of the picture is not the picture.
    let serving = host.serve(|mut server| {
        server.security(&[1]).unwrap();
        server.accept().unwrap();
        server.height = 1;
        let mut update = vec![0, 0, 0, 1, 0, 0, 0, 0];
        update.extend([1, 44, 0, 1, 0, 0, 0, 0]);
        update.extend([9; 300 * 4]);
        server.stream.write_all(&update).unwrap();
        while server.message().is_ok() {}
    });
    let said = host.fails(GUEST, &["--timeout", "0.3"]);
    assert!(said.contains("sent no picture within 300ms"), "{said}");
    serving.join().unwrap();

    let serving = host.serve(drop);
    let said = host.fails(GUEST, &[]);
    assert!(said.contains("VNC server"), "{said}");
    serving.join().unwrap();

    // A closed port.
    let gone = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = gone.local_addr().unwrap().port().to_string();
    drop(gone);
    host.console("vnc-port", &port);
    let said = host.fails(GUEST, &[]);
    assert!(said.contains(&format!("127.0.0.1 port {port}")), "{said}");
    host.console("vnc-port", "70000");
    assert!(host.fails(GUEST, &[]).contains("vnc-port"));
    host.console("vnc-port", &port);
    host.console("vnc-listen", "localhost");
    assert!(host.fails(GUEST, &[]).contains("vnc-listen"));
}

#[test]
fn an_address_that_others_may_write_is_not_used() {
    let host = Host::new();
    let node = format!("/local/domain/{STUB}/console/vnc-port");
    let perms = Permissions::owner_none(DomId::DOM0).grant_write(DomId::new(STUB));
    host.store.set_permissions(&node, &perms).unwrap();
    let output = host.shoot(GUEST, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("domain 5 has no screen"), "{said}");
}

#[test]
fn a_wrong_command_line_is_status_2() {
    let host = Host::new();
    assert_eq!(
        host.shoot(GUEST, &["--timeout", "0"]).status.code(),
        Some(2)
    );
    assert_eq!(host.shoot(GUEST, &["--png"]).status.code(), Some(2));
}

/// A terminal of 40 columns and 10 rows.
fn terminal() -> OpenptyResult {
    let size = Winsize {
        ws_row: 10,
        ws_col: 40,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    openpty(&size, None).unwrap()
}

/// Starts `stubdm-run screen` on a terminal.
fn watch(host: &Host, terminal: &OpenptyResult) -> Child {
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command.arg("screen").arg("--store");
    command
        .arg(host.dir.path().join("s"))
        .arg(GUEST.to_string());
    command.stdin(end()).stdout(end()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Reads the terminal until it shows `wanted`; `all` is everything so far.
fn shown(terminal: &mut File, all: &mut Vec<u8>, wanted: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(all).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(20_000u16)).unwrap();
        assert!(ready > 0, "{text:?} without {wanted:?}");
        let count = terminal.read(&mut buffer).unwrap();
        all.extend(&buffer[..count]);
    }
}

#[test]
fn the_screen_is_drawn_in_the_terminal_and_keys_are_passed() {
    let host = Host::new();
    let (seen, keys) = mpsc::channel();
    let serving = host.serve(move |mut server| {
        server.width = 8;
        assert_eq!(server.security(&[1]).unwrap(), 1);
        server.accept().unwrap();
        while server.message().unwrap() != (Message::Request { incremental: false }) {}
        server.announce().unwrap();
        server.picture(colour).unwrap();
        let mut pictures = 1;
        while let Ok(message) = server.message() {
            match message {
                Message::Key { down, scancode } => {
                    seen.send((down, scancode)).unwrap();
                    if pictures == 1 {
                        server.picture(|_, _| 0x01_0203).unwrap();
                        pictures = 2;
                    }
                }
                Message::Request { .. } | Message::Other => {}
            }
        }
    });
    let pty = terminal();
    let before = tcgetattr(&pty.slave).unwrap();
    let child = watch(&host, &pty);
    let mut far = File::from(pty.master.try_clone().unwrap());
    let mut all = Vec::new();
    // The first two columns, pixel for pixel, and the line below.
    let cells = "\x1b[1;1H\x1b[38;2;0;0;0;48;2;17;0;0m▀\x1b[38;2;0;1;1;48;2;17;1;1m▀";
    let text = shown(&mut far, &mut all, cells);
    assert!(text.contains("\x1b[?1049h"), "{text:?}");
    let line = "\x1b[10;1Hdomain 5, 8x2: Ctrl-] leaves";
    assert!(text.contains(line), "{text:?}");
    let during = tcgetattr(&pty.slave).unwrap();
    assert!(
        !during.local_flags.contains(LocalFlags::ISIG),
        "Ctrl-C is the guest's"
    );

    // A, Ctrl-C and an arrow, with their modifiers around them.
    far.write_all(b"A\x03\x1b[C").unwrap();
    let press = |code| [(true, code), (false, code)];
    let around = |modifier, code| {
        let [down, up] = press(code);
        [(true, modifier), down, up, (false, modifier)].to_vec()
    };
    let expected = [around(42, 30), around(29, 46), press(0xcd).to_vec()].concat();
    let patience = Duration::from_secs(20);
    for key in expected {
        assert_eq!(keys.recv_timeout(patience).unwrap(), key);
    }
    // The guest's answer is drawn.
    shown(&mut far, &mut all, "\x1b[38;2;1;2;3;48;2;1;2;3m▀▀");

    far.write_all(b"\x1d").unwrap();
    shown(&mut far, &mut all, "\x1b[?1049l");
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    serving.join().unwrap();
}

#[test]
fn a_screen_that_goes_is_one_line_on_a_terminal_as_it_was() {
    let host = Host::new();
    let serving = host.serve(|mut server| {
        server.security(&[1]).unwrap();
        server.accept().unwrap();
        while server.message().unwrap() != (Message::Request { incremental: false }) {}
        server.picture(colour).unwrap();
        // The request for the next one follows the first whole picture.
        while !matches!(server.message().unwrap(), Message::Request { .. }) {}
    });
    let pty = terminal();
    let before = tcgetattr(&pty.slave).unwrap();
    let child = watch(&host, &pty);
    let mut far = File::from(pty.master.try_clone().unwrap());
    // The frames must be read, or they fill the terminal's buffer.
    let reading = std::thread::spawn(move || shown(&mut far, &mut Vec::new(), "\x1b[?1049l"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the VNC server closed the connection"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    reading.join().unwrap();
    serving.join().unwrap();
}

#[test]
fn without_a_terminal_nothing_is_drawn() {
    let host = Host::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command
        .args(["screen", "5", "--store"])
        .arg(host.dir.path().join("s"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("on a terminal, and this is none"), "{said}");
}
