//! The guest's emulated network cards, each joined to the card that the toolstack gave the
//! stubdomain for it.
//!
//! ```text
//!   guest ── rtl8139, e1000… in QEMU ── descriptor ── netN (macvtap, passthru) ── ethX ══ vif on the host ── bridge
//! ```
//!
//! A macvtap in that mode has the card below it for itself and passes every frame on, both ways,
//! whatever its addresses: it learns nothing, ages nothing, and the card may keep the guest's
//! address. QEMU gets its descriptor, needs no capability for it and makes no interface itself. A
//! bridge and a tap would do the same with six times the code in modules, and addresses to be kept
//! apart.
//!
//! Which card is whose is libxl's numbering: `-netdev …,id=netN` and the device `vif-N`.

pub mod netlink;

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use stubdm_qmp::text::one_line;
use tracing::{info, warn};

use crate::guest::net::netlink::Links;
use crate::guest::{Patience, wait_for};
use crate::libxl::dm_argv::Tap;
use crate::rt::error::{Context, Failure, Result};

/// Where the kernel shows its interfaces.
const INTERFACES: &str = "/sys/class/net";

/// This domain must send nothing of its own on the guest's networks.
const SILENT: &[&str] = &[
    "/proc/sys/net/ipv6/conf/all/disable_ipv6",
    "/proc/sys/net/ipv6/conf/default/disable_ipv6",
];

/// QEMU's part of one of its cards.
#[derive(Debug)]
pub struct Port {
    /// The `id` of its `-netdev`.
    pub netdev: String,
    /// The guest's end.
    pub end: OwnedFd,
}

/// Keeps the kernel from announcing itself on cards that are added from now on.
pub fn be_silent() {
    for node in SILENT {
        match fs::write(node, "1") {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!("{node}: {error}"),
            _ => {}
        }
    }
}

/// Joins each of QEMU's cards to ours.
///
/// # Errors
/// A card is not there when the patience ends, or the kernel refuses something.
pub fn join(taps: &[Tap], patience: Patience) -> Result<Vec<Port>> {
    if taps.is_empty() {
        return Ok(Vec::new());
    }
    let mut links = Links::open().context("a netlink socket")?;
    let mut join = |tap| join_one(&mut links, tap, patience);
    taps.iter().map(&mut join).collect()
}

fn join_one(links: &mut Links, tap: &Tap, patience: Patience) -> Result<Port> {
    let interfaces = Path::new(INTERFACES);
    let number = tap.number;
    let what = format!("network card {number}");
    let find = || card(interfaces, number);
    let own = wait_for(&what, patience, find)?;
    let name = own.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let below = index(&own)?;
    let failed = |doing: &str| format!("{what}, {name}: {doing}");
    let up = links.bring_up(below);
    up.context(failed("bringing it up"))?;
    let over = format!("net{number}");
    let made = links.make_macvtap(&over, below);
    made.context(failed("making a macvtap on it"))?;
    let above = index(&interfaces.join(&over))?;
    let up = links.bring_up_for_all(above);
    up.context(failed("bringing its macvtap up"))?;
    let device = format!("/dev/tap{above}");
    let end = open(&device).context(&device)?;
    let address = fs::read_to_string(own.join("address")).unwrap_or_default();
    let address = address.trim();
    info!("{what}: QEMU's {} is {name}, {address}", tap.netdev());
    if let Some(other) = tap
        .mac
        .as_ref()
        .filter(|mac| !mac.eq_ignore_ascii_case(address))
    {
        warn!(
            "{what}: the guest's has another address, {}",
            one_line(other)
        );
    }
    Ok(Port {
        netdev: tap.netdev(),
        end: end.into(),
    })
}

fn open(device: &str) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device)
}

/// The interface of the device `vif-NUMBER`.
fn card(interfaces: &Path, number: u32) -> Option<PathBuf> {
    let wanted = format!("vif-{number}");
    let entries = fs::read_dir(interfaces).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| {
        fs::read_link(path.join("device")).is_ok_and(|device| {
            device
                .file_name()
                .is_some_and(|name| name == wanted.as_str())
        })
    })
}

fn index(interface: &Path) -> Result<u32> {
    let node = interface.join("ifindex");
    let text = fs::read_to_string(&node).context(node.display())?;
    text.trim()
        .parse()
        .map_err(|error| Failure::new(format_args!("{}: {error}", node.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_card_is_found_by_the_toolstacks_number() {
        let dir = tempfile::tempdir().unwrap();
        for (interface, device) in [
            ("eth0", "../../../vif-1"),
            ("eth1", "../../../vif-12"),
            ("eth2", "../../../vif-2"),
        ] {
            let folder = dir.path().join(interface);
            fs::create_dir(&folder).unwrap();
            std::os::unix::fs::symlink(device, folder.join("device")).unwrap();
            fs::write(folder.join("ifindex"), "17\n").unwrap();
        }
        fs::create_dir(dir.path().join("lo")).unwrap();
        let found = card(dir.path(), 2).unwrap();
        assert_eq!(found, dir.path().join("eth2"));
        assert_eq!(index(&found).unwrap(), 17);
        assert_eq!(card(dir.path(), 0), None);
    }

    #[test]
    fn without_cards_nothing_is_asked_for() {
        assert!(join(&[], Patience::of(Duration::ZERO)).unwrap().is_empty());
        let tap = Tap {
            number: 4_000_000_000,
            mac: None,
        };
        let error = join(&[tap], Patience::of(Duration::ZERO))
            .unwrap_err()
            .to_string();
        assert!(error.contains("network card 4000000000"), "{error}");
    }
}
