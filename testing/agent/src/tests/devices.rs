//! A guest's devices in numbers: two network cards, three disks, four serial ports, before a save
//! and after it; and what is attached while it runs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use xen_store::Store;

use super::save::{IMAGE, restore};
use super::stubdom::is_alive;
use crate::guest::{Guest, LOG, NAME, diagnosis};
use crate::host::{TestHost, command, soon, start_local};
use crate::medium::Medium;
use crate::net::Network;
use crate::suite::{Needs, Test};

/// On the guest that the tests of [`qmp`](super::qmp) share: before them, since their last one ends
/// it.
pub(super) fn add_shared(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "stubdom/attached_while_it_runs",
        Needs::Guest,
        |host| host.with_guest(|host, guest| attached(&host.store, guest)),
    ));
}

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "stubdom/two_cards_and_three_disks",
        Needs::Package,
        all_devices,
    ));
}

/// The card of host number `host` on a network. (The guest's own rule, in testing/guest/net.s.)
fn card(network: u8, last: u8) -> String {
    format!("00:16:3e:77:{network:02x}:{last:02x}")
}

/// The guest's cards, by network and host.
const CARDS: [(u8, u8); 2] = [(1, 0x0a), (2, 0x0b)];

/// The disks besides the first: libxl's number and the name.
const DISKS: [(&str, &str); 3] = [("768", "hda"), ("832", "hdb"), ("5696", "hdd")];

fn all_devices(host: &TestHost) -> Result<()> {
    let media = [Medium::make("hdb", true)?, Medium::make("hdd", true)?];
    let networks = [Network::make(CARDS[0].0)?, Network::make(CARDS[1].0)?];
    let result = with_devices(host, &networks, &media).with_context(diagnosis);
    drop(networks);
    let [one, two] = media.map(Medium::remove);
    result.and(one).and(two)
}

fn with_devices(host: &TestHost, networks: &[Network; 2], media: &[Medium; 2]) -> Result<()> {
    let [one, two] = [0, 1].map(|index: usize| {
        let (network, last) = CARDS[index];
        let (mac, bridge) = (card(network, last), networks[index].bridge());
        // The default model, and the same by its name.
        let model = ["", "model=rtl8139,"][index];
        format!("\"mac={mac},{model}bridge={bridge},script=vif-testbed\"")
    });
    let disks = [
        "/dev/loop0",
        media[0].device.as_str(),
        media[1].device.as_str(),
    ];
    let disk = |((_, vdev), device)| {
        format!(
            "\"format=raw,vdev={vdev},access=rw,backendtype=phy,script=block-testbed,target={device}\""
        )
    };
    let disks: Vec<String> = DISKS.into_iter().zip(disks).map(disk).collect();
    let lines = [
        format!("vif=[{one},{two}]"),
        format!("disk=[{}]", disks.join(",")),
        "serial=[\"pty\",\"pty\",\"pty\",\"pty\"]".to_owned(),
        // With 128 MiB it reads its programs again and again, and once lost a datagram.
        "stubdomain_memory=256".to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut guest = Guest::create_with(&host.store, &lines)?;
    let seen = (|| {
        guest.output_after("xen-guest: disk ok sum=")?;
        answered(&mut guest, networks, "echo=ok")?;
        is_alive(&mut guest)?;
        guest.types(&host.store, "&")?;
        answered(&mut guest, networks, "datagram=ok")?;
        cards_are_joined(&host.store, &guest, networks)?;
        disks_are_read(&host.store, &mut guest)?;
        ports_speak(&host.store, &guest)
    })();
    if seen.is_err() {
        guest.destroy()?;
        return seen;
    }
    command(&["xl", "save", NAME, IMAGE])?;
    let restored = restore(guest);
    fs::remove_file(IMAGE)?;
    let mut guest = restored?;
    let seen = (|| {
        is_alive(&mut guest)?;
        guest.types(&host.store, "&")?;
        answered(&mut guest, networks, "datagram=ok")?;
        cards_are_joined(&host.store, &guest, networks)?;
        disks_are_read(&host.store, &mut guest)
    })();
    guest.destroy()?;
    seen.context("restored")
}

/// Each card is answered by its own network, with a frame of the full length as well, and no
/// other neighbour was seen there.
fn answered(guest: &mut Guest, networks: &[Network; 2], echo: &str) -> Result<()> {
    for (index, ((number, last), network)) in CARDS.into_iter().zip(networks).enumerate() {
        let mac = card(number, last);
        let said = guest.output_after(&format!("xen-guest: net{index} "))?;
        let wanted = format!("mac={mac} reply=ok from={} {echo}", network.mac());
        ensure!(
            said == wanted,
            "card {index} says `{said}`, not `{wanted}`; in {}",
            fs::read_to_string("/proc/net/arp")?
        );
        let found = network.neighbours()?;
        ensure!(
            found.into_iter().eq([(mac, network.ip(last))]),
            "neighbours on {}: {:?}",
            network.bridge(),
            network.neighbours()?
        );
    }
    Ok(())
}

/// The stubdomain's cards are the bridges' ports, each has the guest's address, and QEMU has needed
/// nothing for that.
fn cards_are_joined(store: &Store, guest: &Guest, networks: &[Network; 2]) -> Result<()> {
    let log = fs::read_to_string(LOG)?;
    for (index, ((number, last), network)) in CARDS.into_iter().zip(networks).enumerate() {
        let vif = format!("vif{}.{index}", guest.stub);
        ensure!(
            network.has(&vif),
            "{vif} is no port of {}",
            network.bridge()
        );
        connected(store, guest, "vif", &index.to_string())?;
        let line = format!("network card {index}: QEMU's net{index} is eth");
        let line = log.lines().find(|l| l.contains(&line)).context(line)?;
        ensure!(line.contains(&card(number, last)), "the log says: {line}");
    }
    ensure!(
        log.contains(
            "QEMU: user 1000 1000 1000 1000, capabilities 0000000000000000 of 0000000000000000, "
        ),
        "QEMU is more than it has to be:\n{log}"
    );
    Ok(())
}

/// A device is there twice: for the guest's own drivers, which this one does not have, and, in use,
/// for its QEMU.
fn connected(store: &Store, guest: &Guest, kind: &str, number: &str) -> Result<()> {
    let read = |path: String| store.read_str(&path).with_context(|| path.clone());
    for domain in [guest.id, guest.stub] {
        let backend = read(format!(
            "/local/domain/{domain}/device/{kind}/{number}/backend"
        ))?;
        let ready = read(format!("{backend}/hotplug-status"))?;
        ensure!(ready == "connected", "{backend} is {ready}");
        let state = read(format!("{backend}/state"))?;
        let wanted = if domain == guest.stub { "4" } else { "2" };
        ensure!(state == wanted, "{backend} is in state {state}");
    }
    Ok(())
}

/// The guest reads each disk's bytes through its emulated controller.
fn disks_are_read(store: &Store, guest: &mut Guest) -> Result<()> {
    for (number, _) in DISKS {
        connected(store, guest, "vbd", number)?;
    }
    guest.types(store, "%")?;
    for (name, wanted) in [
        ("hdb", "holds medium hdb"),
        ("hdc", "is not readable"),
        ("hdd", "holds medium hdd"),
    ] {
        let said = guest.output_after(&format!("xen-guest: {name} "))?;
        ensure!(said == wanted, "{name} {said}");
    }
    is_alive(guest)
}

/// Bytes that the guest writes to its other ports arrive on the later consoles.
fn ports_speak(store: &Store, guest: &Guest) -> Result<()> {
    for (port, console) in (2..=4).zip(4..) {
        let node = format!("/local/domain/{}/device/console/{console}/tty", guest.stub);
        let terminal = store.read_str(&node).context(node)?;
        let mut reader = start_local(&["cat", &terminal])?;
        let deadline = soon();
        // Bytes written before dom0's QEMU has noticed the reader are lost: so again.
        let heard = loop {
            guest.types(store, "@")?;
            let moment = Instant::now() + Duration::from_secs(2);
            if let Ok(line) = reader.expect("xen-guest: port ", moment) {
                break line;
            }
            ensure!(
                Instant::now() < deadline,
                "nothing on console {console}{}",
                reader.transcript()
            );
        };
        reader.kill(Signal::SIGKILL)?;
        reader.exit(soon())?;
        ensure!(
            heard == port.to_string(),
            "port {heard} is console {console}"
        );
    }
    Ok(())
}

/// libxl gives what is attached to a running guest to the guest alone, for its own drivers; the
/// stubdomain is not notified.
fn attached(store: &Store, guest: &mut Guest) -> Result<()> {
    let medium = Medium::make("attached", true)?;
    let network = Network::make(3)?;
    let result = attached_to(store, guest, &network, &medium.device).with_context(diagnosis);
    drop(network);
    result.and(medium.remove())
}

fn attached_to(store: &Store, guest: &mut Guest, network: &Network, device: &str) -> Result<()> {
    let bridge = format!("bridge={}", network.bridge());
    let mac = format!("mac={}", card(3, 0x0c));
    command(&[
        "xl",
        "network-attach",
        NAME,
        &mac,
        &bridge,
        "script=vif-testbed",
    ])?;
    let disk = format!(
        "format=raw,vdev=xvde,access=rw,backendtype=phy,script=block-testbed,target={device}"
    );
    command(&["xl", "block-attach", NAME, &disk])?;
    let vif = format!("vif{}.0", guest.id);
    ensure!(network.has(&vif), "{vif} is no port of {bridge}");
    // libxl's number of xvde.
    let devices = [("vif", "0"), ("vbd", "51776")];
    let backend = |(kind, number)| format!("/local/domain/0/backend/{kind}/{}/{number}", guest.id);
    let backends = devices.map(backend);
    for node in &backends {
        let ready = store.read_str(&format!("{node}/hotplug-status"))?;
        ensure!(ready == "connected", "{node} is {ready}");
    }
    for (kind, number) in devices {
        let node = format!("/local/domain/{}/device/{kind}/{number}", guest.stub);
        ensure!(!store.exists(&node)?, "the stubdomain was given {node}");
    }
    guest.catch_up()?;
    is_alive(guest).context("after attaching")?;
    command(&["xl", "network-detach", NAME, "0"])?;
    // By force: this guest has no driver that could agree.
    command(&["xl", "block-detach", "--force", NAME, "xvde"])?;
    for node in &backends {
        ensure!(!store.exists(node)?, "{node} is still there");
    }
    guest.catch_up()?;
    is_alive(guest).context("after detaching")
}
