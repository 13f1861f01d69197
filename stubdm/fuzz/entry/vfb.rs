//! A hostile frontend against the cores of the PV frame buffer's and keyboard's backend.
//!
//! The frontend has a mapping of each page of its own, and writes to it between any two calls. A
//! finding is a panic, a rectangle beyond the picture, a row beyond the memory, or an index that
//! the frontend can move.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use stubdm_screen::Size;
use stubdm_screen::framebuffer::{Event, FrontPage, Pixels, Polled, Protocol};
use stubdm_screen::keyboard::Keyboard;
use stubdm_screen::server::Rect;
use xen_gnttab::Region;

use super::input::Input;

#[path = "../../screen/tests/shared/memory.rs"]
mod memory;

use memory::SharedMemory;

const PAGE: usize = 4096;
/// Pages of pixels that are mapped at most here.
const MAPPED: usize = 16;
/// Events in the keyboard's ring.
const LENGTH: u32 = 51;
/// More than either ring has.
const EVENTS: usize = 60;

thread_local! {
    static PAGES: RefCell<[SharedMemory; 2]> = RefCell::new([SharedMemory::new(PAGE), SharedMemory::new(PAGE)]);
}

/// Plays one input.
pub(crate) fn vfb(data: &[u8]) {
    PAGES.with_borrow_mut(|[screen, keys]| {
        for page in [&mut *screen, &mut *keys] {
            page.frontend.fill(0, PAGE, 0).unwrap();
        }
        let mut input = Input(data);
        let protocol = match input.byte() & 1 {
            0 => Protocol::Long,
            _ => Protocol::Short,
        };
        let absolute = input.byte() & 1 == 0;
        // Width, height, stride and length of the memory, rather small ones.
        for at in [16, 20, 24, 28] {
            let number = input.word();
            let shift = if number & 1 == 0 { 24 } else { number % 32 };
            screen.put(at, (number >> shift).max(1));
        }
        screen.put(32, if input.byte() < 250 { 32 } else { 24 });
        let front = FrontPage::attach(screen.backend(), protocol);
        let keyboard = Keyboard::attach(keys.backend(), absolute);
        let mut keyboard = keyboard.unwrap();
        let Ok(mut front) = front else {
            return typed(keys, &mut keyboard, &mut input);
        };
        let pages = front.geometry.pages();
        let entries = front.directory.len() * PAGE / 4;
        assert!(front.directory.len() <= 16 && entries >= pages);
        let mut pixels = (pages <= MAPPED)
            .then(|| Pixels::new(Region::heap(pages * PAGE), front.geometry).unwrap());
        let (mut size, mut taken) = (front.geometry.size(), 0);
        while !input.0.is_empty() {
            let at = (input.word() as usize % (PAGE - 4)) & !3;
            let value = input.word();
            match input.byte() % 4 {
                // Any place, or a place of the ring's own.
                0 => screen.put(at, value),
                1 => screen.put(2048 + at % 2040 / 40 * 40, 2 + (value & 1)),
                2 => screen.put(2048 + at % 2040, value >> (value % 32)),
                _ => screen.put(12, screen.number(8).wrapping_add(value % 53)),
            }
            for _ in 0..EVENTS {
                match front.updates.poll_event() {
                    Ok(Polled::Event(event)) => state(event, &mut size, pixels.as_mut()),
                    Ok(Polled::Skipped) => {}
                    Ok(Polled::Empty) | Err(_) => break,
                }
                taken += 1;
                assert_eq!(screen.number(8), taken, "the frontend moved our index");
            }
        }
    });
}

fn state(event: Event, size: &mut Size, pixels: Option<&mut Pixels>) {
    match event {
        Event::Update(Rect {
            x,
            y,
            width,
            height,
        }) => {
            assert!(width > 0 && x + width <= size.width);
            assert!(height > 0 && y + height <= size.height);
            let Some(pixels) = pixels else {
                return;
            };
            let mut row = Vec::new();
            pixels.row(x, y + height - 1, width, &mut row).unwrap();
            assert_eq!(row.len(), usize::from(width));
        }
        Event::Resize(geometry) => {
            *size = geometry.size();
            if let Some(pixels) = pixels {
                pixels.resize(geometry).unwrap();
            }
        }
        Event::Refused(_) => {}
    }
}

fn typed(page: &mut SharedMemory, keyboard: &mut Keyboard, input: &mut Input<'_>) {
    while !input.0.is_empty() {
        let number = input.byte();
        let prod = page.number(4);
        let result = match input.byte() % 6 {
            0 => keyboard.handle_key(number.into(), true),
            1 => keyboard.handle_key(number.into(), false),
            2 => keyboard.handle_pointer(number.into(), 1, number),
            3 => keyboard.handle_wheel(i32::from(number) - 128),
            4 => keyboard.release_all(),
            _ => {
                // The frontend takes all, or lies.
                let lie = if number < 200 { 0 } else { u32::from(number) };
                page.put(0, prod.wrapping_add(lie));
                if number > 250 {
                    page.put(4, lie);
                }
                keyboard.handle_room()
            }
        };
        if keyboard.poll_notify() && result.is_ok() {
            let filled = page.number(4).wrapping_sub(page.number(0));
            assert!(filled <= LENGTH, "{filled} events in the ring");
        }
    }
}
