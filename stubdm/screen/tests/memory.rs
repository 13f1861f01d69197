//! The memory of one viewer, counted by an allocator.

use std::alloc::System;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stubdm_screen::server::{Options, Picture, Rect, Viewer};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The limit that the module's documentation names.
const LIMIT: usize = 768 << 10;

/// Bytes that are allocated since the region began. Growing a block counts as much as it grew.
fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

#[test]
fn a_viewer_costs_bounded_memory_whatever_it_sends() {
    let mut picture = Picture::new(2000, 1000);
    let mut noise = 1u32;
    for y in 0..1000 {
        let row: Vec<u32> = (0..2000)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                noise >> 8
            })
            .collect();
        picture.update_row(0, y, &row);
    }
    let whole = Rect {
        x: 0,
        y: 0,
        width: 2000,
        height: 1000,
    };
    let options = Options::default();
    let mut out = Vec::with_capacity(1 << 20);
    let region = Region::new(ALLOCATOR);
    let mut viewer = Viewer::new(&options, [0; 16], Instant::now());
    let mut most = 0;
    let mut run = |viewer: &mut Viewer, out: &mut Vec<u8>| {
        while viewer.poll_output(&picture, out) {
            most = most.max(held(&region));
            out.clear();
        }
    };
    viewer.handle_bytes(b"RFB 003.008\n\x01\x01").unwrap();
    run(&mut viewer, &mut out);
    // ZRLE, then Hextile, then Raw, in 32 bits of which four bytes are sent, with everything else.
    for encoding in [16, 5, 0] {
        let mut bytes = vec![
            0, 0, 0, 0, 32, 32, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
        ];
        bytes.extend([2, 0, 0, 6]);
        for number in [encoding, -223, -258, -308, -312, -313i32] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend([150, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        viewer.handle_bytes(&bytes).unwrap();
        viewer.handle_damage(whole);
        run(&mut viewer, &mut out);
        // Floods: of each message, and of damage in dots.
        let floods: [&[u8]; 7] = [
            &[3, 0, 0, 1, 0, 1, 0, 9, 0, 9],
            &[4, 1, 0, 0, 0, 0, 0, 0x61],
            &[5, 9, 0, 1, 0, 1, 5, 0, 0, 2, 0, 2],
            &[6, 0, 0, 0, 0, 0, 0, 2, 1, 2],
            &[248, 0, 0, 0, 128, 0, 0, 7, 4, 1, 2, 3, 4],
            &[251, 0, 0, 9, 0, 9, 0, 0],
            &[2, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 5],
        ];
        for flood in floods {
            let flood = flood.repeat(20_000);
            let before = held(&region);
            let _ = viewer.handle_bytes(&flood).unwrap();
            let grown = held(&region).saturating_sub(before);
            assert!(grown <= 8 << 10, "{grown} bytes by {:?}", &flood[..4]);
            run(&mut viewer, &mut out);
            while viewer.poll_input().is_some() {}
        }
        viewer.handle_bytes(&bytes).unwrap();
        for at in 0..2000u16 {
            let (x, y) = (at.wrapping_mul(263) % 2000, at.wrapping_mul(97) % 1000);
            viewer.handle_damage(Rect {
                x,
                y,
                width: 1,
                height: 1,
            });
        }
        run(&mut viewer, &mut out);
    }
    viewer.release_keys();
    drop(viewer);
    // The test's harness may have allocated a little meanwhile.
    let left = held(&region);
    assert!(left < 1 << 10, "{left} bytes are left");
    println!("at most {most} bytes");
    assert!(most <= LIMIT, "{most} bytes");
    assert!(most > 100 << 10, "{most} bytes: nothing was compressed");
}
