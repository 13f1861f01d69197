//! The guest's screen, keyboard and mouse, through the VNC server that dom0's QEMU has for the
//! stubdomain.

use std::fs;

use anyhow::{Context, Result, ensure};
use stubdm_screen::Size;
use xen_store::Store;

use crate::guest::{Guest, diagnosis};
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};
use crate::vnc::{Picture, Viewer};
use crate::world::{World, command};

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "screen/picture_keys_and_mouse",
        Needs::Package,
        shown,
    ));
}

/// A guest with little memory, from its start to its end.
fn shown(world: &World) -> Result<()> {
    let more = ["vnc=1", "stubdomain_memory=128"];
    let mut guest = Guest::create_with(&world.store, &more)?;
    let result = seen_and_typed(&world.store, &mut guest).with_context(diagnosis);
    guest.destroy()?;
    result
}

/// The viewer of a guest that runs.
fn viewer(guest: &Guest) -> Result<Viewer> {
    let mut qmp = Qmp::connect(Qmp::socket(guest.stub))?;
    let vnc = qmp.execute("query-vnc", None)?;
    let port = vnc["service"].as_str().context("no port")?.parse()?;
    Viewer::connect(port).with_context(|| format!("{vnc}"))
}

/// The BIOS has written its name.
fn bios_is_seen(viewer: &mut Viewer) -> Result<()> {
    viewer.until("the BIOS's name", |viewer| {
        viewer.picture.has_text("SeaBIOS (version ")
    })
}

/// A viewer of a guest that runs sees the BIOS's name.
pub(super) fn shows_bios(guest: &Guest) -> Result<()> {
    bios_is_seen(&mut viewer(guest)?)
}

/// The picture that the guest draws: 80 by 25 cells of 9 by 16 pixels in the first eight colours.
fn drawn() -> impl Fn(usize, usize) -> u32 {
    // As QEMU widens the six bits of the VGA's colours to eight.
    let [half, quarter] = [0xa8, 0x57];
    let red = half << 16;
    let colours = [
        0,
        half,
        half << 8,
        half << 8 | half,
        red,
        red | half,
        red | quarter << 8,
        red | half << 8 | half,
    ];
    move |x, y| colours[(x / 9 + y / 16) % 8]
}

fn is_drawn(picture: &Picture) -> bool {
    let (width, height) = (720, 400);
    let expected = drawn();
    picture.size == Size { width, height }
        && (0..400).all(|y| (0..720).all(|x| picture.pixel(x, y) == expected(x, y)))
}

fn seen_and_typed(store: &Store, guest: &mut Guest) -> Result<()> {
    guest.says("xen-guest: alive second=")?;
    let mut viewer = viewer(guest)?;
    bios_is_seen(&mut viewer)?;
    guest.types(store, "*")?;
    guest.says("xen-guest: screen drawn")?;
    viewer.until("the guest's picture, pixel for pixel", |viewer| {
        is_drawn(&viewer.picture)
    })?;
    let file = "/tmp/screen.png";
    let result = command(&["stubdm-run", "screenshot", &guest.id.to_string(), file])
        .and_then(|_| Picture::read(file));
    let _ = fs::remove_file(file);
    ensure!(is_drawn(&result?), "the picture in the file differs");
    // A, and the right control key, which has a prefix.
    viewer.key(0x1e)?;
    viewer.key(0x9d)?;
    for byte in [0x1e, 0x9e, 0xe0, 0x1d, 0xe0, 0x9d] {
        let said = guest.says("xen-guest: key ")?;
        ensure!(said == format!("0x{byte:08x}"), "{said}, not {byte:#x}");
    }
    // The mouse moves by what the pointer moves, and up is positive.
    viewer.pointer(0, 100, 100)?;
    viewer.pointer(0, 140, 80)?;
    let (mut right, mut up) = (0, 0);
    while (right, up) != (40, 20) {
        let (_, x, y) = movement(guest)?;
        (right, up) = (right + x, up + y);
        ensure!(right <= 42 && up <= 22, "moved by {right}, {up}");
        // A pixel may be lost where coordinates are scaled.
        if right >= 38 && up >= 18 {
            break;
        }
    }
    viewer.pointer(4, 140, 80)?;
    let (buttons, ..) = movement(guest)?;
    ensure!(buttons == 2, "the right button: {buttons}");
    Ok(())
}

/// A movement of the mouse: buttons, to the right, upwards.
fn movement(guest: &mut Guest) -> Result<(u32, i32, i32)> {
    let said = guest.says("xen-guest: mouse ")?;
    let all = u32::from_str_radix(said.trim_start_matches("0x"), 16).context(said)?;
    let [_, flags, x, y] = all.to_be_bytes();
    let signed = |byte: u8, bit: u8| i32::from(byte) - if flags & bit == 0 { 0 } else { 256 };
    Ok((u32::from(flags & 7), signed(x, 0x10), signed(y, 0x20)))
}
