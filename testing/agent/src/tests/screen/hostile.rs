//! A hostile viewer and a hostile frontend of a screen that `consoled` serves.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xen_gnttab::{PageAccess, Region, foreign};
use xen_store::Store;
use xen_sys::Xen;
use xen_sys::privcmd::Privcmd;

use super::alone::{LINES, ViewedGuest, process_of, succeeds_soon};
use super::{LOG, draws, port, viewer, without_qemu};
use crate::guest::{Guest, diagnosis};
use crate::host::{PATIENCE, TestHost, soon};
use crate::suite::{Needs, Test};
use crate::tests::consoled;

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut test = |name: &str, body: fn(&Store, &mut ViewedGuest) -> Result<()>| {
        let run = move |host: &TestHost| without_qemu(|| with_guest(host, body));
        tests.push(Test::new(name, Needs::Package, run).on_request());
    };
    test("screen/hostile_viewers_without_qemu", hostile_viewers);
    test("screen/hostile_frontend_without_qemu", hostile_frontend);
}

/// The most memory that the screen's process may ever have had, in KiB.
const MOST: u64 = 24 << 10;

fn with_guest(host: &TestHost, body: fn(&Store, &mut ViewedGuest) -> Result<()>) -> Result<()> {
    let guest = Guest::create_with(&host.store, &LINES)?;
    let mut viewed = ViewedGuest::new(&host.store, guest, 0).with_context(diagnosis)?;
    body(&host.store, &mut viewed).with_context(|| fs::read_to_string(LOG).unwrap_or_default())?;
    viewed.guest.destroy()
}

/// Checks the most memory that the screen's process has had.
fn memory_is_bounded(guest: &Guest) -> Result<()> {
    let most = consoled::field(&format!("/proc/{}/status", process_of(guest)?), "VmHWM:")?;
    println!("    the screen's process had {most} KiB at most");
    ensure!(most < MOST, "{most} KiB");
    Ok(())
}

/// The guest draws its next picture, and the viewer that was there all along sees it.
fn goes_on(store: &Store, viewed: &mut ViewedGuest) -> Result<()> {
    draws(store, &mut viewed.guest, "+")?;
    viewed.number += 1;
    viewed.works().context("of the viewer beside")
}

/// Lines of the log with a text.
fn logged(text: &str) -> Result<usize> {
    let log = fs::read_to_string(LOG)?;
    Ok(log.lines().filter(|line| line.contains(text)).count())
}

/// Bytes without an order.
fn garbage(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A viewer's half of the handshake without authentication, up to the messages.
const HANDSHAKE: &[u8] = b"RFB 003.008\n\x01\x01";
/// A request for a pixel, whether it changed or not.
const PIXEL: [u8; 10] = [3, 0, 0, 1, 0, 1, 0, 1, 0, 1];
/// A request for all of the picture.
const WHOLE: [u8; 10] = [3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
/// Requests of a viewer that asks for too much.
const REQUESTS: usize = 1_000_000;

/// A connection that no honest viewer has.
fn connect(guest: &Guest) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port(guest)?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The server closes a connection; what it sent before is dropped.
fn is_closed(mut stream: TcpStream) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the connection stays open"),
        }
    }
}

/// Garbage before and after the handshake, a viewer that reads nothing, and one that asks for a
/// million rectangles.
fn hostile_viewers(store: &Store, viewed: &mut ViewedGuest) -> Result<()> {
    let pid = process_of(&viewed.guest)?;
    for before in [&b""[..], HANDSHAKE] {
        let mut stream = connect(&viewed.guest)?;
        let address = stream.local_addr()?;
        stream.write_all(before)?;
        // The server need not take all of it.
        let _ = stream.write_all(&garbage(64 << 10));
        is_closed(stream)?;
        let line = format!("viewer {address}: ");
        succeeds_soon(|| {
            ensure!(logged(&line)? > 0, "no line about {address}");
            Ok(())
        })?;
        ensure!(logged(&line)? == 1, "more than one line about {address}");
    }
    viewed.works()?;

    let mut stalled = connect(&viewed.guest)?;
    stalled.write_all(HANDSHAKE)?;
    stalled.set_nonblocking(true)?;
    let whole = WHOLE.repeat(1000);
    for _ in 0..30 {
        match stalled.write(&whole) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
            _ => viewed.viewer.watch(Duration::from_millis(1))?,
        }
    }
    goes_on(store, viewed)?;

    let mut busy = connect(&viewed.guest)?;
    busy.write_all(HANDSHAKE)?;
    busy.set_nonblocking(true)?;
    let requests = PIXEL.repeat(1000);
    let (mut sent, mut received) = (0, 0);
    let deadline = soon();
    let mut buffer = vec![0; 64 << 10];
    while sent < REQUESTS * PIXEL.len() {
        ensure!(Instant::now() < deadline, "{sent} bytes of requests");
        match busy.write(&requests[sent % requests.len()..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("requests"),
        }
        match busy.read(&mut buffer) {
            Ok(0) => bail!("the server disconnected a viewer that asks for much"),
            Ok(count) => received += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("answers"),
        }
    }
    println!("    {REQUESTS} requests of a pixel: {received} bytes of answers");
    goes_on(store, viewed)?;
    drop((stalled, busy));
    memory_is_bounded(&viewed.guest)?;
    ensure!(process_of(&viewed.guest)? == pid, "another process");
    Ok(())
}

/// The page that the stubdomain's kernel shares for its frame buffer, mapped here: whatever is
/// written to it, a hostile kernel could write.
fn page_of(store: &Store, guest: &Guest) -> Result<Region> {
    let node = format!("/local/domain/{}/device/vfb/0/page-ref", guest.stub);
    let frame = store.read_str(&node)?.parse().context(node)?;
    let privcmd = Privcmd::open(&Xen::open()?)?;
    let memory = privcmd.guest(guest.stub);
    Ok(foreign::map(memory, &[frame], PageAccess::ReadWrite)?)
}

/// Places in the page: the events' indices, the first number, the first event.
const CONS: usize = 8;
const PROD: usize = 12;
const NUMBERS: usize = 16;
const EVENTS: usize = 2048;
/// Bytes of an event, and events in the ring.
const EVENT: usize = 40;
const RING: u32 = 51;

fn number(page: &Region, at: usize) -> Result<u32> {
    let mut bytes = [0; 4];
    page.copy_out(at, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Puts events into the ring's free places; `fields` is what an event has at an index.
fn put(page: &mut Region, fields: impl Fn(u32) -> Vec<u8>) -> Result<u32> {
    let (cons, prod) = (number(page, CONS)?, number(page, PROD)?);
    let end = cons.wrapping_add(RING);
    let mut index = prod;
    while index != end && end.wrapping_sub(index) <= RING {
        let at = EVENTS + (index % RING) as usize * EVENT;
        page.copy_in(at, &fields(index))?;
        index = index.wrapping_add(1);
    }
    page.copy_in(PROD, &index.to_le_bytes())?;
    Ok(index.wrapping_sub(prod))
}

/// An event with these fields.
fn event(kind: u8, fields: &[u32]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    bytes
}

/// Garbage in every number of the page and in every event, a flood of changes and sizes, and an
/// index that cannot be.
fn hostile_frontend(store: &Store, viewed: &mut ViewedGuest) -> Result<()> {
    let pid = process_of(&viewed.guest)?;
    let mut page = page_of(store, &viewed.guest)?;
    let mut honest = vec![0; EVENTS - NUMBERS];
    page.copy_out(NUMBERS, &mut honest)?;
    page.copy_in(NUMBERS, &garbage(EVENTS - NUMBERS))?;
    let random = garbage(64 << 10);
    for round in 0..20 {
        // Unknown kinds, changes of what is not there, and sizes that cannot be.
        put(&mut page, |index| {
            let at = (index as usize * 41 + round * 997) % (random.len() - EVENT);
            let mut bytes = random[at..][..EVENT].to_vec();
            if index % 8 != 0 {
                bytes[0] = 2 + bytes[0] % 2;
            }
            bytes
        })?;
        // A viewer's bytes wake the process up, which looks at the ring too.
        viewed.viewer.pointer(0, 5, 5)?;
        viewed.viewer.watch(Duration::from_millis(50))?;
    }
    // The kernel reads the depth there.
    page.copy_in(NUMBERS, &honest)?;
    goes_on(store, viewed)?;
    let refused = logged("resizes that were refused")?;
    println!("    {refused} lines about sizes that cannot be");
    ensure!((1..=16).contains(&refused), "{refused} lines");

    let mut events = 0;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for _ in 0..20 {
            events += put(&mut page, |index| match index % 2 {
                0 => event(2, &[0, 0, 800, 600]),
                _ => event(3, &[1 + index % 800, 1 + index % 600, 3200, 32, 0]),
            })?;
            viewed.viewer.pointer(0, 6, 6)?;
            thread::sleep(Duration::from_millis(1));
        }
        viewed.viewer.watch(Duration::from_millis(1))?;
    }
    println!("    {events} events of a flood");
    ensure!(events > 1000, "{events} events");
    // Its mode is another, so the kernel sends the size that is true.
    goes_on(store, viewed)?;
    memory_is_bounded(&viewed.guest)?;
    ensure!(process_of(&viewed.guest)? == pid, "another process");

    let good = number(&page, PROD)?;
    page.copy_in(PROD, &good.wrapping_add(1000).to_le_bytes())?;
    viewed.viewer.pointer(0, 7, 7)?;
    viewed.viewer.closed()?;
    page.copy_in(PROD, &number(&page, CONS)?.to_le_bytes())?;
    viewed.viewer = viewer(&viewed.guest)?;
    viewed.works().context("after the ring is mended")?;
    // Each process that tries it logs one.
    let lines = logged("broke its ring")?;
    ensure!((1..=3).contains(&lines), "{lines} lines about the ring");
    Ok(())
}
