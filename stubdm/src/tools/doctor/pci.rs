//! The doctor's checks of PCI devices: those that dom0 has given up for guests, and those that
//! guests' configurations name.
//!
//! All of it is from dom0's sysfs. Xen's IOMMU and its groups are not there: `xl info` shows
//! `hvm_directio`.

use std::fs;

use stubdm_image::elf::resolve;
use xen_sys::PciFunction;

use super::State;
use super::checks::Host;
use super::guests::words;
use crate::guest::pci::devices::address;
use crate::tools::xlcfg::Settings;

/// Where the kernel shows devices, and those of one driver.
const DEVICES: &str = "/sys/bus/pci/devices";
const DRIVERS: &str = "/sys/bus/pci/drivers";
/// The driver of devices that are given up.
const PCIBACK: &str = "pciback";

/// The memory that a stubdomain needs besides, in MiB: its PCI frontend's bounce buffers.
pub(super) const MEMORY: u64 = 64;

/// An objection to a guest's configuration: the finding, its state and the remedy.
type Objection = (String, State, String);

impl Host<'_> {
    /// Each device that dom0 has given up: what it is, and how Linux resets it.
    pub(super) fn pci(&mut self) {
        for device in self.functions_with(PCIBACK) {
            let read = |name: &str| self.of_function(device, name);
            let id = |name: &str| read(name).map(|text| text.trim_start_matches("0x").to_owned());
            let id = |name: &str| id(name).unwrap_or_else(|| "?".to_owned());
            let what = format!(
                "{device}: {}:{}, class {}, is with pciback",
                id("vendor"),
                id("device"),
                id("class")
            );
            let group = match self.link(device, "iommu_group") {
                Some(group) => format!(", IOMMU group {group}"),
                None => String::new(),
            };
            let methods = read("reset_method").filter(|text| !text.is_empty());
            match methods {
                Some(methods) => self.ok(
                    "pci",
                    format!("{what}{group}; reset by {}", methods.replace(' ', ", ")),
                ),
                None if self.has(&format!("{DEVICES}/{device}/reset")) => {
                    self.ok("pci", format!("{what}{group}; Linux can reset it"));
                }
                None => self.report(
                    "pci",
                    State::Note,
                    format!(
                        "{what}{group}; Linux has no way to reset it: the next guest finds it as the last one left it"
                    ),
                    "give it to guests that may know of each other, or restart the host between them",
                ),
            }
        }
    }

    /// Each device of a guest's configuration that the guest does not get, or only in part.
    pub(super) fn pci_of(&self, settings: &Settings) -> Vec<Objection> {
        let mut all = Vec::new();
        let mut report = |state, found: String, mend: String| all.push((found, state, mend));
        for named in words(settings, "pci") {
            let Some(Named {
                devices,
                is_permissive,
                is_seized,
            }) = named_by(&named)
            else {
                continue;
            };
            let found: Vec<PciFunction> = devices
                .iter()
                .copied()
                .filter(|device| self.is_there(*device))
                .collect();
            if found.is_empty() {
                report(
                    State::Wrong,
                    format!("pci={named:?} names a device that is not there"),
                    "lspci -D lists them".to_owned(),
                );
            }
            let seized = is_seized.unwrap_or_else(|| settings.is_on("pci_seize"));
            let is_lacking = |driver: Option<&str>| driver != Some(PCIBACK) && !seized;
            for device in &found {
                let driver = self.link(*device, "driver");
                if !is_lacking(driver.as_deref()) {
                    continue;
                }
                let load = match self.has(&format!("{DRIVERS}/{PCIBACK}")) {
                    true => "",
                    false => "modprobe xen-pciback; ",
                };
                let whose = match driver {
                    Some(driver) => format!("dom0's, with the driver {driver}"),
                    None => "not with pciback".to_owned(),
                };
                report(
                    State::Wrong,
                    format!("pci={named:?}: {device} is {whose}: xl refuses it"),
                    format!("{load}xl pci-assignable-add {device}"),
                );
            }
            if !is_permissive.unwrap_or_else(|| settings.is_on("pci_permissive")) {
                report(
                    State::Note,
                    format!(
                        "pci={named:?}: QEMU cannot write registers that pciback does not know, those of messages among them"
                    ),
                    "permissive=1 for a driver that needs messages".to_owned(),
                );
            }
        }
        all
    }

    fn is_there(&self, device: PciFunction) -> bool {
        self.has(&format!("{DEVICES}/{device}/vendor"))
    }

    /// Returns a file of a device's, without its end of line.
    fn of_function(&self, device: PciFunction, name: &str) -> Option<String> {
        let text = self.text(&format!("{DEVICES}/{device}/{name}"))?;
        Some(text.trim().to_owned())
    }

    /// Returns the last part of the place that a link of a device's leads to.
    fn link(&self, device: PciFunction, name: &str) -> Option<String> {
        let folder = resolve(self.root, &format!("{DEVICES}/{device}")).ok()?;
        let place = fs::read_link(folder.join(name)).ok()?;
        Some(place.file_name()?.to_str()?.to_owned())
    }

    /// Returns the devices of a driver, sorted.
    fn functions_with(&self, driver: &str) -> Vec<PciFunction> {
        let entries = resolve(self.root, &format!("{DRIVERS}/{driver}"))
            .and_then(|folder| Ok(fs::read_dir(folder)?));
        let names = entries.into_iter().flatten().flatten();
        let parsed = |entry: fs::DirEntry| address(entry.file_name().to_str()?);
        let mut all: Vec<PciFunction> = names.filter_map(parsed).collect();
        all.sort_unstable();
        all
    }
}

/// A word of the setting `pci`.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    /// One function, or all that a device may have.
    devices: Vec<PciFunction>,
    /// `permissive` and `seize`, if they are there.
    is_permissive: Option<bool>,
    is_seized: Option<bool>,
}

/// Reads `[DDDD:]BB:DD.F[@VSLOT][,KEY=VALUE...]` (`xl-pci-configuration(5)`). `None` for a name,
/// and for anything that xl refuses.
fn named_by(word: &str) -> Option<Named> {
    let mut parts = word.split(',').map(str::trim);
    let first = parts.next()?;
    let first = first.strip_prefix("bdf=").unwrap_or(first);
    let place = first.split('@').next()?;
    let place = match place.matches(':').count() {
        1 => format!("0000:{place}"),
        _ => place.to_owned(),
    };
    let devices: Vec<PciFunction> = match place.strip_suffix('*') {
        Some(device) => (0..8)
            .map(|function| address(&format!("{device}{function}")))
            .collect::<Option<_>>()?,
        None => vec![address(&place)?],
    };
    let rest: Vec<&str> = parts.collect();
    let switch = |name: &str| {
        let mut pairs = rest.iter().filter_map(|part| part.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map(|(_, value)| value != "0")
    };
    Some(Named {
        devices,
        is_permissive: switch("permissive"),
        is_seized: switch("seize"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_setting_are_read_as_xl_does() {
        let first = PciFunction::new(0, 3, 0, 0).unwrap();
        let other = PciFunction::new(1, 3, 0x1f, 7).unwrap();
        for (word, device, is_permissive, is_seized) in [
            ("0000:03:00.0", first, None, None),
            ("03:00.0", first, None, None),
            ("bdf=03:00.0", first, None, None),
            ("03:00.0@5", first, None, None),
            ("03:00.0, permissive=1", first, Some(true), None),
            (
                "1:3:1f.7,seize=1,permissive=0",
                other,
                Some(false),
                Some(true),
            ),
        ] {
            let named = Named {
                devices: vec![device],
                is_permissive,
                is_seized,
            };
            assert_eq!(named_by(word), Some(named), "{word}");
        }
        let all = named_by("0000:03:00.*").unwrap().devices;
        let functions: Vec<u8> = all.iter().map(|device| device.function()).collect();
        assert_eq!(functions, [0, 1, 2, 3, 4, 5, 6, 7]);
        for word in [
            "",
            "card",
            "03",
            "03:20.0",
            "03:00.8",
            "x:y:00.*",
            "0000:0000:03:00.0",
        ] {
            assert_eq!(named_by(word), None, "{word}");
        }
    }
}
