//! The things the doctor looks at, in the order in which a person would mend them; here, those of
//! the machine itself.

use std::fs;
use std::path::Path;

use stubdm_image::elf::resolve;

use super::{Check, DoctorOptions, State};
use crate::libxl::places::Libxl;

/// The least memory that dom0 should have left, in KiB.
const SPARE: u64 = 128 << 10;

/// The host, and what was reported about it.
pub(super) struct Host<'a> {
    pub(super) root: &'a Path,
    /// Every libxl there is.
    pub(super) libxl: Vec<Libxl>,
    /// The folders that were searched for it.
    pub(super) searched: Vec<String>,
    checks: Vec<Check>,
}

pub(super) fn all(options: &DoctorOptions) -> Vec<Check> {
    let search = Libxl::search(&options.root);
    let mut host = Host {
        root: &options.root,
        libxl: search.found,
        searched: search.searched,
        checks: Vec::new(),
    };
    host.xen();
    host.hvm();
    host.devices();
    host.store();
    host.toolstack();
    host.proxy();
    host.installed();
    host.qemu();
    host.folders();
    host.privcmd();
    host.images(options.image.as_deref());
    host.pci();
    host.guests();
    host.services();
    host.memory();
    host.checks
}

impl Host<'_> {
    pub(super) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(resolve(self.root, path).ok()?).ok()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        resolve(self.root, path).is_ok()
    }

    pub(super) fn report(
        &mut self,
        name: &'static str,
        state: State,
        found: impl Into<String>,
        mend: &str,
    ) {
        self.checks.push(Check {
            name,
            state,
            found: found.into(),
            mend: mend.to_owned(),
        });
    }

    pub(super) fn ok(&mut self, name: &'static str, found: impl Into<String>) {
        self.report(name, State::Ok, found, "");
    }

    fn xen(&mut self) {
        let number = |part: &str| self.text(&format!("/sys/hypervisor/version/{part}"));
        let version = match (number("major"), number("minor")) {
            (Some(major), Some(minor)) => format!("Xen {}.{}", major.trim(), minor.trim()),
            _ => "Xen".to_owned(),
        };
        let control = self
            .text("/proc/xen/capabilities")
            .is_some_and(|text| text.contains("control_d"));
        if control {
            return self.ok("xen", format!("{version}, and this is its control domain"));
        }
        match self.text("/sys/hypervisor/type").as_deref().map(str::trim) {
            Some("xen") => self.report(
                "xen",
                State::Wrong,
                "Xen, but /proc/xen/capabilities does not say control_d",
                "guests are started from dom0; there, mount xenfs: mount -t xenfs xenfs /proc/xen",
            ),
            _ => self.report(
                "xen",
                State::Wrong,
                "this machine does not run under Xen",
                "install a hypervisor (Debian: xen-system-amd64) and boot its entry",
            ),
        }
    }

    fn hvm(&mut self) {
        match self.text("/sys/hypervisor/properties/capabilities") {
            Some(text) if text.contains("hvm-") => {
                self.ok("hvm", "this processor can run HVM guests");
            }
            Some(_) => self.report(
                "hvm",
                State::Wrong,
                "Xen offers no HVM guests",
                "switch on virtualisation (VT-x, AMD-V) in the machine's firmware",
            ),
            // Without Xen that is reported already.
            None => {}
        }
    }

    fn devices(&mut self) {
        let needed = [
            ("evtchn", "xen-evtchn"),
            ("gntdev", "xen-gntdev"),
            ("privcmd", "xen-privcmd"),
        ];
        let missing: Vec<_> = needed
            .iter()
            .filter(|(device, _)| !self.has(&format!("/dev/xen/{device}")))
            .collect();
        if missing.is_empty() {
            return self.ok("devices", "/dev/xen/evtchn, gntdev and privcmd");
        }
        let paths: Vec<_> = missing
            .iter()
            .map(|(d, _)| format!("/dev/xen/{d}"))
            .collect();
        let modules: Vec<_> = missing.iter().map(|(_, module)| *module).collect();
        let found = format!("no {}", paths.join(", "));
        let mend = format!("modprobe -a {}", modules.join(" "));
        self.report("devices", State::Wrong, found, &mend);
    }

    fn store(&mut self) {
        let ways = [
            "/run/xenstored/socket",
            "/var/run/xenstored/socket",
            "/dev/xen/xenbus",
        ];
        match ways.iter().find(|path| self.has(path)) {
            Some(way) => self.ok("store", format!("xenstore at {way}")),
            None => self.report(
                "store",
                State::Wrong,
                "no xenstore",
                "start xenstored (Debian: systemctl start xen; its package is xen-utils-common)",
            ),
        }
    }

    fn memory(&mut self) {
        let text = self.text("/proc/meminfo").unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        match kib {
            Some(kib) if kib < SPARE => self.report(
                "memory",
                State::Note,
                format!("{} MiB are left for dom0 itself", kib >> 10),
                "give dom0 more (dom0_mem= on Xen's command line): it builds every guest",
            ),
            Some(kib) => self.ok(
                "memory",
                format!("{} MiB are left for dom0 itself", kib >> 10),
            ),
            None => {}
        }
    }
}
