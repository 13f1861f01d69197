use std::net::TcpStream;
use std::thread;

use stubdm_screen::framebuffer::{FrontPage, Protocol};
use stubdm_screen::rfb::Client;
use xen_evtchn::{BoundPort, EventChannels};
use xen_sys::DomId;
use xen_sys::sim::Simulation;

use super::*;
use crate::rt::event_loop::{self, HangUp};
use crate::viewer::{LARGEST, Viewer};

#[path = "../../../../screen/tests/shared/memory.rs"]
mod memory;

use memory::SharedMemory;

const PAGE: usize = 4096;
const SIZE: Size = Size {
    width: 64,
    height: 48,
};
const PATIENCE: Duration = Duration::from_secs(30);

/// A frontend's screen and keyboard, and the process that serves them.
struct Guest {
    page: SharedMemory,
    pixels: SharedMemory,
    keys: SharedMemory,
    ports: [BoundPort; 2],
    consoled: IpcSocket,
    address: SocketAddr,
    worker: Option<thread::JoinHandle<Result<Option<String>, String>>>,
    _host: Simulation,
}

/// A worker's parts, and the frontend's ends.
struct Fixture {
    page: SharedMemory,
    pixels: SharedMemory,
    keys: SharedMemory,
    ports: [BoundPort; 2],
    screen: Screen,
    keyboard: (Keyboard, Doorbell),
    listener: TcpListener,
    address: SocketAddr,
    random: File,
    host: Simulation,
}

impl Fixture {
    fn new() -> Self {
        let host = Simulation::start().unwrap();
        let guest = host.add_domain().unwrap();
        let [dom0, domu] = [DomId::DOM0, guest].map(|domain| host.xen(domain).unwrap());
        let channels = EventChannels::open(&domu).unwrap();
        let ports = [(); 2].map(|()| channels.bind_unbound(DomId::DOM0).unwrap());
        let [screen_bell, key_bell] =
            [0, 1].map(|at: usize| Doorbell::bind(&dom0, guest, ports[at].port(), PACE).unwrap());
        let bytes = usize::from(SIZE.width) * usize::from(SIZE.height) * 4;
        let (mut page, pixels, keys) = (
            SharedMemory::new(PAGE),
            SharedMemory::new(bytes),
            SharedMemory::new(PAGE),
        );
        let row = u32::from(SIZE.width) * 4;
        let numbers = [SIZE.width.into(), SIZE.height.into(), row, bytes as u32, 32];
        for (at, number) in numbers.into_iter().enumerate() {
            page.put(16 + 4 * at, number);
        }
        let front = FrontPage::attach(page.backend(), Protocol::Long).unwrap();
        let screen = Screen {
            updates: front.updates,
            pixels: Pixels::new(pixels.backend(), front.geometry).unwrap(),
            bell: screen_bell,
        };
        let keyboard = Keyboard::attach(keys.backend(), true).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            page,
            pixels,
            keys,
            ports,
            screen,
            keyboard: (keyboard, key_bell),
            listener,
            random: File::open("/dev/urandom").unwrap(),
            host,
        }
    }
}

impl Guest {
    fn new(password: bool) -> Self {
        let Fixture {
            page,
            pixels,
            keys,
            ports,
            screen,
            keyboard,
            listener,
            address,
            random,
            host,
        } = Fixture::new();
        let (consoled, ipc) = IpcSocket::pair().unwrap();
        let worker = thread::spawn(move || {
            let what = ("g", password);
            let mut worker = Worker::new(&ipc, screen, Some(keyboard), listener, random, what);
            let stop = &mut HangUp(ipc.as_fd());
            event_loop::run(&mut worker, &mut [stop]).map_err(|error| error.to_string())
        });
        Self {
            page,
            pixels,
            keys,
            ports,
            consoled,
            address,
            worker: Some(worker),
            _host: host,
        }
    }

    fn viewer(&self, password: Option<&str>) -> Viewer {
        let stream = TcpStream::connect(self.address).unwrap();
        let mut client = Client::new(LARGEST);
        if let Some(password) = password {
            client = client.with_password(password);
        }
        Viewer::new(stream.into(), client).unwrap()
    }

    /// Sets a pixel, and sends that these rows changed.
    fn paint(&mut self, (x, y): (usize, usize), colour: u32, rows: (u32, u32)) {
        let at = (y * usize::from(SIZE.width) + x) * 4;
        self.pixels.put(at, colour);
        let prod = self.page.number(12);
        let at = 2048 + (prod % 51) as usize * 40;
        let fields = [2, 0, rows.0, SIZE.width.into(), rows.1];
        for (number, field) in fields.into_iter().enumerate() {
            self.page.put(at + 4 * number, field);
        }
        self.page.put(12, prod.wrapping_add(1));
        self.ports[0].notify().unwrap();
    }

    /// Waits for the next events of the keyboard's ring, as kind, flag and first number.
    fn typed(&mut self, count: u32) -> Vec<(u8, u8, u32)> {
        let end = Instant::now() + PATIENCE;
        let cons = self.keys.number(0);
        while self.keys.number(4).wrapping_sub(cons) < count {
            assert!(Instant::now() < end, "nothing is typed");
            thread::sleep(Duration::from_millis(5));
        }
        self.keys.put(0, cons + count);
        let event = |index: u32| {
            let at = 1024 + (index % 51) as usize * 40;
            let [kind, flag, ..] = self.keys.number(at).to_le_bytes();
            (kind, flag, self.keys.number(at + 4))
        };
        (cons..cons + count).map(event).collect()
    }

    /// Ends the process and returns how it ended.
    fn end(self) -> Result<Option<String>, String> {
        let Self {
            consoled,
            mut worker,
            ..
        } = self;
        drop(consoled);
        worker.take().unwrap().join().unwrap()
    }

    /// The last report of the viewers.
    fn viewers(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "{count} viewers are not reported");
            match self.consoled.receive().unwrap() {
                Received::Message(message) => match Report::decode(&message) {
                    Some(Report::Viewers(viewers)) if viewers.len() == count => return,
                    Some(Report::Viewers(_)) => {}
                    other => panic!("{other:?}"),
                },
                Received::Nothing => thread::sleep(Duration::from_millis(5)),
                Received::End => panic!("it ended"),
            }
        }
    }
}

fn pixel(viewer: &Viewer, x: usize, y: usize) -> Option<u32> {
    let at = (y * usize::from(viewer.picture().size.width) + x) * 4;
    let bytes = viewer.picture().bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().unwrap()) & 0xff_ffff)
}

fn sees(viewer: &mut Viewer, place: (usize, usize), colour: u32) {
    let deadline = Instant::now() + PATIENCE;
    let seen = viewer.run_until(deadline, |viewer| {
        pixel(viewer, place.0, place.1) == Some(colour)
    });
    assert!(seen.unwrap(), "{place:?} is not {colour:#x}");
}

#[test]
fn viewers_see_what_changes_and_what_they_type_arrives() {
    let mut guest = Guest::new(false);
    guest.pixels.put(0, 0xff11_2233);
    let [mut first, mut second] = [(); 2].map(|()| guest.viewer(None));
    for viewer in [&mut first, &mut second] {
        sees(viewer, (0, 0), 0x11_2233);
        assert_eq!(viewer.picture().size, SIZE);
    }
    guest.viewers(2);
    guest.paint((63, 47), 0x00ab_cdef, (40, 8));
    sees(&mut first, (63, 47), 0xab_cdef);
    // A change that is not announced is not seen yet.
    guest.pixels.put(4, 0x77);
    guest.paint((62, 47), 0x5, (40, 8));
    sees(&mut second, (62, 47), 0x5);
    assert_eq!(pixel(&second, 1, 0), Some(0));
    guest.paint((1, 0), 0x78, (0, 48));
    sees(&mut second, (1, 0), 0x78);

    first.client.pointer(1, 10, 11);
    first.client.key(true, 0x9d);
    let deadline = Instant::now() + PATIENCE;
    assert!(first.run_until(deadline, |_| true).unwrap());
    let typed = guest.typed(3);
    assert_eq!(typed, [(4, 0, 10), (3, 1, 0x110), (3, 1, 97)]);
    // A viewer that leaves releases its keys.
    drop(first);
    let mut released = guest.typed(2);
    released.sort_unstable();
    assert_eq!(released, [(3, 0, 97), (3, 0, 0x110)]);
    guest.viewers(1);
    drop(second);
    guest.viewers(0);
    // Changes that nobody sees are seen by the next one.
    guest.paint((5, 5), 0x99, (5, 1));
    let mut third = guest.viewer(None);
    sees(&mut third, (5, 5), 0x99);
    assert!(guest.end().is_ok());
}

#[test]
fn a_picture_of_another_size_follows_and_one_that_cannot_be_is_refused() {
    let mut guest = Guest::new(false);
    let mut viewer = guest.viewer(None);
    sees(&mut viewer, (0, 0), 0);
    for (number, (width, height, offset)) in
        [(32, 16, 4), (32, 16, 8), (9000, 1, 0), (32, 16, 12_288)]
            .into_iter()
            .enumerate()
    {
        let at = 2048 + number * 40;
        for (field, value) in [3, width, height, 128, 32, offset].into_iter().enumerate() {
            guest.page.put(at + 4 * field, value);
        }
        guest.pixels.put(8, 0x42);
        guest.page.put(12, number as u32 + 1);
        guest.ports[0].notify().unwrap();
        let place = if number == 0 { (1, 0) } else { (0, 0) };
        sees(&mut viewer, place, 0x42);
        let size = viewer.picture().size;
        assert_eq!((size.width, size.height), (32, 16), "{number}");
    }
    // Another process continues with the last one.
    let expected = Report::Mode(Mode([32, 16, 128, 8]));
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the picture's place");
        match guest.consoled.receive().unwrap() {
            Received::Message(message) if Report::decode(&message) == Some(expected.clone()) => {
                break;
            }
            Received::Nothing => thread::sleep(Duration::from_millis(5)),
            _ => {}
        }
    }
    assert!(guest.end().is_ok());
}

#[test]
fn a_flood_of_resizes_makes_one_picture_for_each_copy() {
    let mut parts = Fixture::new();
    let (_consoled, ipc) = IpcSocket::pair().unwrap();
    let Fixture {
        screen, listener, ..
    } = parts;
    let mut worker = Worker::new(&ipc, screen, None, listener, parts.random, ("g", false));
    let now = Instant::now();
    let mut flood = |worker: &mut Worker<'_>, last: u32| {
        let prod = parts.page.number(12);
        for number in 0..40 {
            let at = 2048 + ((prod + number) % 51) as usize * 40;
            let width = if number == 39 { last } else { 8 + number };
            for (field, value) in [3, width, 16, 256, 32, 0].into_iter().enumerate() {
                parts.page.put(at + 4 * field, value);
            }
        }
        parts.page.put(12, prod + 40);
        assert!(!worker.take_events(now).unwrap());
    };
    let width = |worker: &Worker<'_>| u32::from(worker.picture.width());
    // Without a viewer there is nothing to do.
    flood(&mut worker, 20);
    worker.copy(now).unwrap();
    assert_eq!(width(&worker), u32::from(SIZE.width));
    let _viewer = TcpStream::connect(parts.address).unwrap();
    worker.accept(now);
    worker.copy(now).unwrap();
    assert_eq!(width(&worker), 20);
    flood(&mut worker, 21);
    worker.copy(now).unwrap();
    assert_eq!(width(&worker), 20);
    worker.copy(now + FRAME).unwrap();
    assert_eq!(width(&worker), 21);
}

#[test]
fn nobody_is_let_in_before_the_password_is_set_and_with_a_wrong_one() {
    let guest = Guest::new(true);
    let mut viewer = guest.viewer(Some("secret"));
    let soon = Instant::now() + Duration::from_millis(300);
    assert!(!viewer.run_until(soon, Viewer::is_whole).unwrap());
    let password = SetPassword(Some(*b"secret\0\0"));
    guest.consoled.send(&password.encode()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    assert!(viewer.run_until(deadline, Viewer::is_whole).unwrap());
    for wrong in [Some("secrets"), None] {
        let mut viewer = guest.viewer(wrong);
        viewer.run_until(deadline, Viewer::is_whole).unwrap_err();
    }
    assert!(guest.end().is_ok());
}

#[test]
fn connections_without_a_handshake_keep_nobody_out() {
    let guest = Guest::new(false);
    let silent: Vec<_> = (0..3 * VIEWERS)
        .map(|_| TcpStream::connect(guest.address).unwrap())
        .collect();
    let mut viewers: Vec<_> = (0..VIEWERS).map(|_| guest.viewer(None)).collect();
    for viewer in &mut viewers {
        let deadline = Instant::now() + PATIENCE;
        assert!(viewer.run_until(deadline, Viewer::is_whole).unwrap());
    }
    // All places are taken: one more waits until somebody leaves.
    let mut late = guest.viewer(None);
    let soon = Instant::now() + Duration::from_millis(300);
    assert!(!late.run_until(soon, Viewer::is_whole).unwrap());
    viewers.pop();
    let deadline = Instant::now() + PATIENCE;
    assert!(late.run_until(deadline, Viewer::is_whole).unwrap());
    drop(silent);
    assert!(guest.end().is_ok());
}

#[test]
fn a_viewer_that_sends_garbage_and_one_that_reads_nothing_are_in_nobodys_way() {
    use std::io::Write as _;

    let mut guest = Guest::new(false);
    let mut garbage = TcpStream::connect(guest.address).unwrap();
    garbage.write_all(&[0xff; 4096]).unwrap();
    let mut deaf = TcpStream::connect(guest.address).unwrap();
    // The handshake, and requests of the whole picture again and again.
    deaf.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    deaf.set_nonblocking(true).unwrap();
    let whole = [3, 0, 0, 0, 0, 0, 0, 64, 0, 48];
    for _ in 0..100_000 {
        if deaf.write_all(&whole).is_err() {
            break;
        }
    }
    let mut viewer = guest.viewer(None);
    sees(&mut viewer, (0, 0), 0);
    for colour in 1..50 {
        guest.paint((1, 1), colour, (0, 48));
        sees(&mut viewer, (1, 1), colour);
    }
    assert!(guest.end().is_ok());
}

#[test]
fn a_frontend_that_breaks_a_ring_ends_the_process_or_its_keyboard() {
    let mut guest = Guest::new(false);
    let mut viewer = guest.viewer(None);
    sees(&mut viewer, (0, 0), 0);
    guest.keys.put(0, 1000);
    viewer.client.key(true, 30);
    let deadline = Instant::now() + PATIENCE;
    assert!(viewer.run_until(deadline, |_| true).unwrap());
    // The screen continues.
    guest.paint((2, 2), 0x31, (0, 48));
    sees(&mut viewer, (2, 2), 0x31);
    let cons = guest.page.number(8);
    guest.page.put(12, cons.wrapping_add(52));
    guest.ports[0].notify().unwrap();
    let ended = guest.worker.take().unwrap().join().unwrap();
    assert!(ended.unwrap_err().contains("broke its ring"));
}

#[test]
fn damage_is_a_short_list_of_no_more_than_the_picture() {
    let rect = |x, y, width, height| Rect {
        x,
        y,
        width,
        height,
    };
    let mut damage = Damage::default();
    damage.add(rect(1, 1, 2, 2), SIZE);
    damage.add(rect(60, 40, 4, 8), SIZE);
    assert_eq!(damage.rects.len(), 2);
    damage.add(whole(SIZE), SIZE);
    assert_eq!(damage.rects, [whole(SIZE)]);
    let mut damage = Damage::default();
    for x in 0..64 {
        damage.add(rect(x, 3, 1, 1), SIZE);
        assert!(damage.rects.len() <= DAMAGE);
    }
    let all = damage.rects.into_iter().reduce(around).unwrap();
    assert_eq!(all, rect(0, 3, 64, 1));
}
