//! The guest's screen, keyboard and mouse, through the VNC server that `consoled` or dom0's QEMU has
//! for the stubdomain.

mod alone;
mod hostile;

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use stubdm_screen::Size;
use xen_store::Store;

use super::consoled;
use super::linux::{disk_line, loop_device};
use super::save::{IMAGE, goes_on, restore, second};
use crate::guest::{Guest, NAME, diagnosis};
use crate::host::{TestHost, command};
use crate::leftovers::processes;
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};
use crate::vnc::{Picture, Viewer};

/// A card with pictures made of pixels, for which the guest has a driver. xl's default is a Cirrus
/// card.
pub(super) const STDVGA: &str = "vga=\"stdvga\"";

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "screen/picture_keys_and_mouse",
        Needs::Package,
        |host| shown(host, consoled::qemu_in_dom0),
    ));
    tests.push(
        Test::new("screen/picture_without_qemu", Needs::Package, |host| {
            without_qemu(|| shown(host, consoled::no_qemu_in_dom0))
        })
        .on_request(),
    );
    tests.push(Test::new(
        "screen/kept_without_qemu",
        Needs::Package,
        |host| {
            let result = without_qemu(|| kept(host));
            let _ = fs::remove_file(IMAGE);
            result
        },
    ));
    tests.push(Test::new("screen/two_guests_and_cirrus", Needs::Package, two_guests).on_request());
    alone::add(tests);
    hostile::add(tests);
}

/// The file that has screens served without QEMU.
const SCREENS: &str = "/etc/stubdm/screens";
/// The screen's process in dom0, and its log.
const PROCESS: &str = "stubdm-run serve-screen ";
const LOG: &str = "/var/log/xen/qemu-dm-hvm-dm.log";

/// Runs a test while screens are served without QEMU.
fn without_qemu<T>(test: impl FnOnce() -> Result<T>) -> Result<T> {
    let folder = SCREENS.rsplit_once('/').map_or("/", |(folder, _)| folder);
    fs::create_dir_all(folder)?;
    fs::write(SCREENS, "consoled\n")?;
    let result = test();
    fs::remove_file(SCREENS)?;
    result
}

/// A guest with a password for viewers, which QEMU without DES cannot serve, is saved and restored.
fn kept(host: &TestHost) -> Result<()> {
    let more = ["vnc=1", "vncpasswd=\"secret\"", STDVGA];
    let mut guest = Guest::create_with(&host.store, &more)?;
    let before = second(&mut guest).with_context(diagnosis)?;
    let refused = viewer_with(&guest, Some("wrong"));
    ensure!(refused.is_err(), "a wrong password is taken");
    guest = is_kept_with(&host.store, guest, Some("secret"), |guest| {
        command(&["xl", "save", NAME, IMAGE])?;
        restore(guest)
    })
    .with_context(diagnosis)?;
    goes_on(&mut guest, before)?;
    consoled::no_qemu_in_dom0()?;
    confined()?;
    guest.destroy()?;
    ensure!(screen_processes()?.is_empty(), "the screen's process stays");
    Ok(())
}

/// The screens' processes in dom0.
fn screen_processes() -> Result<Vec<i32>> {
    let all = processes()?.into_iter();
    let screens = all.filter(|(_, line)| line.starts_with(PROCESS));
    Ok(screens.map(|(pid, _)| pid).collect())
}

/// The one process of a screen in dom0 is in the sandbox.
fn confined() -> Result<()> {
    let pids = screen_processes()?;
    let [pid] = pids[..] else {
        bail!("the screens' processes in dom0: {pids:?}");
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    for line in [
        "Uid:\t20133",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        ensure!(status.contains(line), "no {line:?} in {status}");
    }
    // A directory that is deleted gives an error in the place of names.
    let root = fs::read_dir(format!("/proc/{pid}/root/"))?
        .flatten()
        .count();
    ensure!(root == 0, "{root} names in the root directory of {pid}");
    consoled::print_memory("the screen's process", pid)
}

/// A guest with little memory, from its start over a restart to its end. `served` checks who serves
/// its screen in dom0.
fn shown(host: &TestHost, served: fn() -> Result<()>) -> Result<()> {
    let more = [
        "vnc=1",
        STDVGA,
        "stubdomain_memory=128",
        "on_reboot=\"restart\"",
    ];
    let mut guest = Guest::create_with(&host.store, &more)?;
    let result = seen_and_typed(&host.store, &mut guest).with_context(diagnosis);
    if result.is_ok() {
        served()?;
        if fs::exists(SCREENS)? {
            confined().with_context(|| fs::read_to_string(LOG).unwrap_or_default())?;
        }
        guest = guest.restarts(&host.store, "$").with_context(diagnosis)?;
        shows_bios(&guest).context("after the restart")?;
    }
    guest.destroy()?;
    result
}

/// Connects a viewer to a guest that runs.
fn viewer(guest: &Guest) -> Result<Viewer> {
    viewer_with(guest, None)
}

fn viewer_with(guest: &Guest, password: Option<&str>) -> Result<Viewer> {
    Viewer::connect(port(guest)?, password)
}

/// The port of a guest's VNC server.
fn port(guest: &Guest) -> Result<u16> {
    let mut qmp = Qmp::connect(Qmp::socket(guest.stub))?;
    let vnc = qmp.execute("query-vnc", None)?;
    let port = vnc["service"].as_str().and_then(|port| port.parse().ok());
    port.with_context(|| format!("no port in {vnc}"))
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

/// Returns whether the picture has this size and these pixels. The last rows come last.
fn is(picture: &Picture, size: (u16, u16), expected: impl Fn(usize, usize) -> u32) -> bool {
    let (width, height) = size;
    let row = |y| (0..usize::from(width)).all(|x| picture.pixel(x, y) == expected(x, y));
    picture.size == Size { width, height } && (0..usize::from(height)).rev().all(row)
}

fn is_drawn(picture: &Picture) -> bool {
    is(picture, (720, 400), drawn())
}

/// The sizes in which the guest's pictures made of pixels are seen. The last one is larger than the
/// stubdomain's frame buffer, so it is cut.
const PAINTED: [(u16, u16); 3] = [(640, 480), (640, 480), (800, 600)];

/// Returns whether this is one of the pictures made of pixels: tiles of 32 by 32 in eight colours.
fn is_painted(picture: &Picture, number: usize) -> bool {
    let channel = |colour: usize, bit: usize| if colour & bit == 0 { 0 } else { 0xff };
    is(picture, PAINTED[number], |x, y| {
        let colour = (x / 32 + y / 32 + number) % 8;
        channel(colour, 4) << 16 | channel(colour, 2) << 8 | channel(colour, 1)
    })
}

/// A viewer sees one of the pictures made of pixels.
fn painting_is_seen(viewer: &mut Viewer, number: usize) -> Result<()> {
    let what = format!("picture {number} made of pixels, pixel for pixel");
    viewer.until(&what, |viewer| is_painted(&viewer.picture, number))
}

/// Has the guest draw a picture: `*` is of text, and each `+` is the next one made of pixels.
fn draws(store: &Store, guest: &mut Guest, picture: &str) -> Result<()> {
    guest.types(store, picture)?;
    guest.output_after("xen-guest: screen drawn").map(drop)
}

/// The guest draws its first picture made of pixels, is saved and restored by `saved`, and shows it
/// and the next one.
pub(super) fn is_kept(
    store: &Store,
    guest: Guest,
    saved: impl FnOnce(Guest) -> Result<Guest>,
) -> Result<Guest> {
    is_kept_with(store, guest, None, saved)
}

fn is_kept_with(
    store: &Store,
    mut guest: Guest,
    password: Option<&str>,
    saved: impl FnOnce(Guest) -> Result<Guest>,
) -> Result<Guest> {
    draws(store, &mut guest, "*")?;
    draws(store, &mut guest, "+")?;
    let mut before = viewer_with(&guest, password)?;
    painting_is_seen(&mut before, 0)?;
    drop(before);
    guest = saved(guest)?;
    let mut after = viewer_with(&guest, password)?;
    painting_is_seen(&mut after, 0).context("of the guest that was restored")?;
    draws(store, &mut guest, "+")?;
    painting_is_seen(&mut after, 1)?;
    arrives(&mut after, 0x1e, &mut guest, &[0x1e, 0x9e])?;
    Ok(guest)
}

/// A key by its scancode gives these bytes at the guest's controller.
fn arrives(viewer: &mut Viewer, key: u8, guest: &mut Guest, bytes: &[u8]) -> Result<()> {
    viewer.key(key)?;
    for byte in bytes {
        let said = guest.output_after("xen-guest: key ")?;
        ensure!(said == format!("0x{byte:08x}"), "{said}, not {byte:#x}");
    }
    Ok(())
}

fn seen_and_typed(store: &Store, guest: &mut Guest) -> Result<()> {
    guest.output_after("xen-guest: alive second=")?;
    let [mut first, mut second] = [viewer(guest)?, viewer(guest)?];
    bios_is_seen(&mut first)?;
    draws(store, guest, "*")?;
    for viewer in [&mut first, &mut second] {
        shows_drawn(viewer)?;
    }
    let file = "/tmp/screen.png";
    let result = command(&["stubdm-run", "screenshot", &guest.id.to_string(), file])
        .and_then(|_| Picture::read(file));
    let _ = fs::remove_file(file);
    ensure!(is_drawn(&result?), "the picture in the file differs");
    let status = command(&["stubdm-run", "status"])?;
    let shown = "  its screen: 720x400, 2 viewers, VNC at 127.0.0.1 port ";
    ensure!(
        status.iter().any(|line| line.starts_with(shown)),
        "{status:#?}"
    );
    // A, and the right control key, which has a prefix.
    arrives(&mut first, 0x1e, guest, &[0x1e, 0x9e])?;
    arrives(&mut first, 0x9d, guest, &[0xe0, 0x1d, 0xe0, 0x9d])?;
    moves(&mut first, guest)?;
    // Another resolution, other pixels in it, and one that is larger than the frame buffer.
    for number in 0..PAINTED.len() {
        draws(store, guest, "+")?;
        for viewer in [&mut first, &mut second] {
            painting_is_seen(viewer, number)?;
        }
    }
    drop(first);
    let mut again = viewer(guest)?;
    painting_is_seen(&mut again, 2).context("by a viewer that connects anew")?;
    arrives(&mut second, 0x1e, guest, &[0x1e, 0x9e])?;
    arrives(&mut again, 0x30, guest, &[0x30, 0xb0])
}

/// The mouse moves by what the pointer moves, and up is positive.
fn moves(viewer: &mut Viewer, guest: &mut Guest) -> Result<()> {
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
    let said = guest.output_after("xen-guest: mouse ")?;
    let all = u32::from_str_radix(said.trim_start_matches("0x"), 16).context(said)?;
    let [_, flags, x, y] = all.to_be_bytes();
    let signed = |byte: u8, bit: u8| i32::from(byte) - if flags & bit == 0 { 0 } else { 256 };
    Ok((u32::from(flags & 7), signed(x, 0x10), signed(y, 0x20)))
}

/// Two guests have a screen each, the second one that of a Cirrus card and a USB tablet, which it
/// does not use.
fn two_guests(host: &TestHost) -> Result<()> {
    let lines: [&[&str]; 2] = [
        &["vnc=1", STDVGA],
        &["vnc=1", "vga=\"cirrus\"", "usbdevice=\"tablet\""],
    ];
    with_two(&host.store, lines, |mut guests| {
        side_by_side(&host.store, &mut guests)?;
        let [first, second] = guests;
        first.destroy()?;
        shows_drawn(&mut viewer(&second)?).context("when the other guest is gone")?;
        second.destroy()
    })
}

/// Creates two guests with these lines of configuration, the second one with a disk of its own.
/// `test` destroys them.
fn with_two(
    store: &Store,
    [first, second]: [&[&str]; 2],
    test: impl FnOnce([Guest; 2]) -> Result<()>,
) -> Result<()> {
    let file = "/tmp/other.img";
    fs::copy("/boot/guest.img", file).context("the guest's disk")?;
    let device = loop_device(file)?;
    let result = (|| {
        let first = Guest::create_with(store, first)?;
        let disk = disk_line(&device);
        let second = Guest::create_other(store, &[second, &[&*disk]].concat())?;
        test([first, second])
    })()
    .with_context(diagnosis);
    let detached = command(&["losetup", "-d", &device]);
    fs::remove_file(file)?;
    result.and(detached.map(drop))
}

fn shows_drawn(viewer: &mut Viewer) -> Result<()> {
    viewer.until("the guest's picture, pixel for pixel", |viewer| {
        is_drawn(&viewer.picture)
    })
}

fn side_by_side(store: &Store, [first, second]: &mut [Guest; 2]) -> Result<()> {
    let mut viewers = [viewer(first)?, viewer(second)?];
    for guest in [&mut *first, &mut *second] {
        guest.output_after("xen-guest: alive second=")?;
        draws(store, guest, "*")?;
    }
    for viewer in &mut viewers {
        shows_drawn(viewer)?;
    }
    draws(store, first, "+")?;
    let [one, other] = &mut viewers;
    painting_is_seen(one, 0)?;
    arrives(one, 0x1e, first, &[0x1e, 0x9e])?;
    // The first guest's key did not reach the second.
    arrives(other, 0x30, second, &[0x30, 0xb0])?;
    shows_drawn(other)
}
