use proptest::prelude::*;

use super::*;
use crate::shared::SharedMemory;

/// Numbers of the indices in the page.
const OUT_CONS: usize = 8;
const OUT_PROD: usize = 12;
const OUT_AT: usize = RINGS + IN_RING;
/// Events in the ring.
const LENGTH: u32 = 51;

struct Frontend {
    page: SharedMemory,
    prod: u32,
}

impl Frontend {
    fn new(numbers: [u32; 5], directory: &[u64]) -> Self {
        let mut all = Self {
            page: SharedMemory::new(PAGE),
            prod: 0,
        };
        for (at, number) in numbers.into_iter().enumerate() {
            all.page.put(INDICES + 4 * at, number);
        }
        for (at, number) in directory.iter().enumerate() {
            let at = INDICES + NUMBERS + 4 + 8 * at;
            all.page
                .frontend
                .copy_in(at, &number.to_le_bytes())
                .unwrap();
        }
        all
    }

    /// As Linux's, with 800x600 pixels in 2 MiB.
    fn honest() -> Self {
        Self::new([800, 600, 3200, 2 << 20, 32], &[7])
    }

    fn attach(&self) -> Result<FrontPage, Error> {
        FrontPage::attach(self.page.backend(), Protocol::Long)
    }

    fn send(&mut self, kind: u8, fields: &[i32]) {
        let at = OUT_AT + (self.prod % LENGTH) as usize * 40;
        self.page.frontend.copy_in(at, &[kind]).unwrap();
        for (number, field) in fields.iter().enumerate() {
            self.page.put(at + 4 + 4 * number, unsigned(*field));
        }
        self.prod = self.prod.wrapping_add(1);
        self.page.put(OUT_PROD, self.prod);
    }
}

fn unsigned(number: i32) -> u32 {
    u32::from_ne_bytes(number.to_ne_bytes())
}

fn update(x: u16, y: u16, width: u16, height: u16) -> Polled {
    Polled::Event(Event::Update(Rect {
        x,
        y,
        width,
        height,
    }))
}

#[test]
fn an_honest_page_is_read() {
    let front = Frontend::honest().attach().unwrap();
    let (width, height) = (800, 600);
    assert_eq!(front.geometry.size(), Size { width, height });
    assert_eq!(front.geometry.pages(), 512);
    assert_eq!(front.directory, [7]);
}

#[test]
fn another_backend_goes_on_with_the_last_picture() {
    let mut frontend = Frontend::honest();
    let mut first = frontend.attach().unwrap();
    frontend.send(3, &[640, 480, 3200, 32, 64]);
    let Polled::Event(Event::Resize(geometry)) = first.updates.poll_event().unwrap() else {
        panic!("no resize");
    };
    assert_eq!(geometry.numbers(), [640, 480, 3200, 64]);
    // The page has the first picture's numbers, and the event is not in the ring any more.
    let mut second = frontend.attach().unwrap();
    assert_eq!(second.geometry.numbers(), [800, 600, 3200, 0]);
    second.resize(geometry.numbers()).unwrap();
    assert_eq!(second.geometry, geometry);
    frontend.send(2, &[0, 0, 800, 600]);
    let changed = second.updates.poll_event().unwrap();
    assert_eq!(changed, update(0, 0, 640, 480));
    for wrong in [
        [641, 480, 2560, 0],
        [640, 480, 3200, 2 << 20],
        [0, 480, 3200, 0],
        [640, 480, u32::MAX, 0],
    ] {
        assert!(second.resize(wrong).is_err(), "{wrong:?}");
        assert_eq!(second.geometry, geometry);
    }
}

#[test]
fn the_directory_is_read_by_the_frontends_width() {
    for (value, width) in [
        (Some(&b"x86_32-abi"[..]), 4),
        (Some(b"x86_64-abi"), 8),
        (Some(b"arm-abi"), 8),
        (None, 8),
    ] {
        let protocol = Protocol::from_node(value).unwrap();
        let mut page = Region::heap(PAGE);
        for (at, number) in [(16, 2048), (20, 2048), (24, 8192), (28, 16 << 20), (32, 32)] {
            page.copy_in(at, &u32::to_le_bytes(number)).unwrap();
        }
        let at = if width == 4 { 36 } else { 40 };
        for number in 0..8 {
            let value = 0x100 + number as u64;
            let bytes = value.to_le_bytes();
            page.copy_in(at + width * number, &bytes[..width]).unwrap();
        }
        let front = FrontPage::attach(page, protocol).unwrap();
        let pages = 4096 * width / PAGE;
        let expected: Vec<u64> = (0x100..).take(pages).collect();
        assert_eq!(front.directory, expected, "{value:?}");
        let mut directory = Region::heap(pages * PAGE);
        let last = 4095 * width;
        directory.copy_in(last, &0x1234_u32.to_le_bytes()).unwrap();
        let frames = front.frames(&directory).unwrap();
        assert_eq!((frames.len(), frames[4095]), (4096, 0x1234));
        let short = front.frames(&Region::heap(pages * PAGE - PAGE));
        assert!(matches!(short, Err(Error::Pages(_))), "{short:?}");
    }
    assert_eq!(Protocol::from_node(Some(b"vax-abi")), None);
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let honest = [800, 600, 3200, 2 << 20, 32];
    let with = |at: usize, number: u32| {
        let mut numbers = honest;
        numbers[at] = number;
        Frontend::new(numbers, &[7]).attach().unwrap_err()
    };
    for side in [0, u32::MAX, 8193, 65536 + 800, unsigned(i32::MIN)] {
        assert!(matches!(with(0, side), Error::Size { .. }), "{side}");
        assert!(matches!(with(1, side), Error::Size { .. }), "{side}");
    }
    for stride in [0, 3199, u32::MAX, 4000, unsigned(i32::MIN)] {
        assert!(matches!(with(2, stride), Error::Rows { .. }), "{stride}");
    }
    for memory in [0, (32 << 20) + 1, u32::MAX] {
        assert_eq!(with(3, memory), Error::Memory(memory));
    }
    for memory in [1, 800 * 600 * 4 - 1] {
        assert!(matches!(with(3, memory), Error::Rows { .. }), "{memory}");
    }
    for depth in [0_u8, 8, 16, 24, 255] {
        assert_eq!(with(4, depth.into()), Error::Depth(depth.into()));
    }
    // The last row need not fill its stride.
    let close = Frontend::new([2, 2, 4096, 4104, 32], &[7]);
    assert_eq!(close.attach().unwrap().geometry.pages(), 2);
}

#[test]
fn indices_that_cannot_be_are_refused() {
    let mut front = Frontend::honest();
    front.page.put(OUT_PROD, LENGTH + 1);
    assert!(matches!(front.attach(), Err(Error::Ring(_))));
    // Another backend's place is where this one begins.
    front.page.put(OUT_CONS, u32::MAX);
    front.page.put(OUT_PROD, 3);
    let mut updates = front.attach().unwrap().updates;
    for _ in 0..4 {
        assert_eq!(updates.poll_event(), Ok(Polled::Skipped));
    }
    assert_eq!(updates.poll_event(), Ok(Polled::Empty));
    // The own index is not read again.
    front.page.put(OUT_CONS, 2);
    assert_eq!(updates.poll_event(), Ok(Polled::Empty));
    front.page.put(OUT_PROD, 3 + LENGTH + 1);
    let broken = updates.poll_event();
    assert_eq!(broken, updates.poll_event());
    assert!(matches!(broken, Err(RingError::Indices { cons: 3, .. })));
}

#[test]
fn rectangles_are_cut_to_the_picture() {
    let mut frontend = Frontend::honest();
    let mut updates = frontend.attach().unwrap().updates;
    for (rect, expected) in [
        ([1, 2, 3, 4], update(1, 2, 3, 4)),
        ([-5, -6, 10, 10], update(0, 0, 5, 4)),
        ([799, 599, i32::MAX, i32::MAX], update(799, 599, 1, 1)),
        ([i32::MIN, 0, i32::MAX, 1], Polled::Skipped),
        ([0, 0, i32::MIN, 5], Polled::Skipped),
        ([800, 0, 1, 1], Polled::Skipped),
        ([0, 600, 1, 1], Polled::Skipped),
        ([0, 0, 0, 1], Polled::Skipped),
    ] {
        frontend.send(UPDATE, &rect);
        assert_eq!(updates.poll_event(), Ok(expected), "{rect:?}");
    }
    assert_eq!(updates.poll_event(), Ok(Polled::Empty));
}

#[test]
fn a_resize_is_judged_against_the_memory_that_is_mapped() {
    let mut frontend = Frontend::honest();
    let front = frontend.attach().unwrap();
    let mut updates = front.updates;
    let mut pixels = Pixels::new(Region::heap(2 << 20), front.geometry).unwrap();
    // The page's own numbers are not looked at any more.
    frontend.page.put(INDICES + 12, 16 << 20);
    frontend.send(RESIZE, &[1024, 768, 4096, 32, 0]);
    let refused = updates.poll_event().unwrap();
    let rows = |polled| matches!(polled, Polled::Event(Event::Refused(Error::Rows { .. })));
    assert!(rows(refused), "{refused:?}");
    frontend.send(UPDATE, &[0, 0, 9999, 9999]);
    assert_eq!(updates.poll_event(), Ok(update(0, 0, 800, 600)));
    frontend.send(RESIZE, &[640, 480, 2560, 32, 4096]);
    let Ok(Polled::Event(Event::Resize(geometry))) = updates.poll_event() else {
        panic!("no resize");
    };
    pixels.resize(geometry).unwrap();
    assert_eq!(pixels.size().width, 640);
    frontend.send(UPDATE, &[0, 0, 9999, 9999]);
    assert_eq!(updates.poll_event(), Ok(update(0, 0, 640, 480)));
    for last in [i32::MAX, -1, (2 << 20) - 1] {
        frontend.send(RESIZE, &[640, 480, 2560, 32, last]);
        assert!(rows(updates.poll_event().unwrap()), "{last}");
    }
}

#[test]
fn a_row_is_copied_as_far_as_it_is_within_the_picture() {
    let front = Frontend::new([4, 2, 32, 4096, 32], &[7]).attach().unwrap();
    let mut memory = Region::heap(PAGE);
    for (at, pixel) in (1u32..).take(16).enumerate() {
        memory.copy_in(at * 4, &pixel.to_le_bytes()).unwrap();
    }
    let mut pixels = Pixels::new(memory, front.geometry).unwrap();
    let mut row = vec![9];
    for (x, y, count, expected) in [
        (0, 0, 4, &[1, 2, 3, 4][..]),
        (1, 1, 2, &[10, 11]),
        (3, 1, 9, &[12]),
        (4, 0, 1, &[]),
        (0, 2, 1, &[]),
        (0, 0, 0, &[]),
    ] {
        pixels.row(x, y, count, &mut row).unwrap();
        assert_eq!(row, expected, "{x}, {y}");
    }
    let small = Pixels::new(Region::heap(PAGE - 1), front.geometry);
    assert!(matches!(small, Err(Error::Pages(_))));
}

proptest! {
    /// Whatever the page holds, what is accepted can be read to its last pixel.
    #[test]
    fn an_accepted_picture_is_within_its_memory(
        size in (0i32..9000, 0i32..9000),
        rows in (0i32..40_000, -1i32..10_000),
        memory in 1usize..MEMORY_MAX,
    ) {
        if let Ok(geometry) = Geometry::new(size, rows, 32, memory) {
            let mut pixels = Pixels::new(Region::heap(geometry.pages() * PAGE), geometry).unwrap();
            let Size { width, height } = geometry.size();
            let mut row = Vec::new();
            for y in [0, height / 2, height - 1] {
                pixels.row(0, y, width, &mut row).unwrap();
                prop_assert_eq!(row.len(), usize::from(width));
            }
        }
    }

    /// Any bytes in the page and its ring, and any places of the indices.
    #[test]
    fn any_page_is_survived(
        bytes in proptest::collection::vec(any::<u8>(), PAGE),
        numbers in any::<Option<[u16; 5]>>(),
        places in proptest::collection::vec(any::<u32>(), 0..60),
    ) {
        let mut frontend = Frontend::honest();
        frontend.page.frontend.copy_in(INDICES, &bytes[INDICES..]).unwrap();
        if let Some(numbers) = numbers {
            for (at, number) in numbers.into_iter().enumerate() {
                frontend.page.put(INDICES + 4 * at, number.into());
            }
            frontend.page.put(INDICES + 16, 32);
        }
        let Ok(front) = frontend.attach() else {
            return Ok(());
        };
        let mut updates = front.updates;
        let mut size = front.geometry.size();
        for place in places {
            frontend.page.put(OUT_PROD, place);
            for _ in 0..=LENGTH {
                match updates.poll_event() {
                    Ok(Polled::Empty) | Err(_) => break,
                    Ok(Polled::Event(Event::Update(Rect { x, y, width, height }))) => {
                        prop_assert!(width > 0 && x + width <= size.width);
                        prop_assert!(height > 0 && y + height <= size.height);
                    }
                    Ok(Polled::Event(Event::Resize(geometry))) => size = geometry.size(),
                    Ok(_) => {}
                }
            }
        }
    }
}
