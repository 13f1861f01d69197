//! The doctor's checks of libxl, of the programs it starts, and of ours in their places.

use std::fs;
use std::path::Path;

use stubdm_image::elf::{inside, resolve};
use stubdm_image::read;
use stubdm_image::{Qemu, SUFFIXES};

use super::State;
use super::checks::Host;
use crate::consoled::keep_path::{MOUNTS, root_is_shared};
use crate::guest::qemu;
use crate::libxl::places::path;
use crate::tools::install;

/// The default path at which a libxl looks for the program that carries QMP.
const PROXY: &str = "/usr/bin/vchan-socket-proxy";

/// Folders of files that name programs to start, stop, watch or confine.
const IDENTIFIERS: &[&str] = &[
    "/etc/apparmor.d",
    "/etc/default",
    "/etc/init.d",
    "/etc/monit/conf.d",
    "/etc/systemd/system",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/usr/local/lib/systemd/system",
];

/// The remedy.
const INSTALL: &str = "stubdm-run install";

impl Host<'_> {
    pub(super) fn toolstack(&mut self) {
        let releases = self.releases();
        let Some((major, minor)) = releases.last().copied() else {
            return self.report(
                "libxl",
                State::Wrong,
                format!(
                    "no toolstack was found: neither /usr/lib/xen-VERSION/bin nor libxenlight.so in {}",
                    self.searched.join(", ")
                ),
                "install xl (Debian: xen-utils-common with xen-utils-VERSION)",
            );
        };
        let found = format!("Xen {major}.{minor}'s toolstack");
        match (major, minor) {
            (..=3, _) | (4, ..=13) => self.report(
                "libxl",
                State::Wrong,
                format!("{found}, which knows no Linux stubdomains"),
                "Xen 4.14 is the first that does",
            ),
            (4, 14..=20) => self.report(
                "libxl",
                State::Note,
                found,
                "guests with a stubdomain have to say device_model_version=\"qemu-xen\"",
            ),
            _ => self.ok("libxl", found),
        }
    }

    /// The releases whose toolstacks are installed, sorted.
    pub(super) fn releases(&self) -> Vec<(u32, u32)> {
        let folders = resolve(self.root, "/usr/lib").and_then(|dir| Ok(fs::read_dir(dir)?));
        let folders = folders.into_iter().flatten().flatten();
        let names = folders
            .filter(|entry| entry.path().join("bin").is_dir())
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_prefix("xen-")?.to_owned())
            });
        let known = self.libxl.iter().map(|libxl| libxl.version.clone());
        let number = |name: String| {
            let (major, minor) = name.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let mut all: Vec<_> = names.chain(known).filter_map(number).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns where libxl looks for a ramdisk that a guest does not name.
    pub(super) fn ramdisk_places(&self) -> Vec<String> {
        let known = self.libxl.iter().filter_map(|libxl| libxl.boot.clone());
        let usual = self.releases();
        let usual = usual
            .iter()
            .map(|(major, minor)| format!("/usr/lib/xen-{major}.{minor}/boot"));
        let mut all: Vec<_> = known
            .chain(usual)
            .map(|boot| format!("{boot}/qemu-stubdom-linux-rootfs"))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// The program that carries QMP, wherever a libxl looks for it.
    pub(super) fn proxy(&mut self) {
        let mut places: Vec<_> = self.libxl.iter().filter_map(|l| l.proxy.clone()).collect();
        places.dedup();
        if places.is_empty() {
            places.push(PROXY.to_owned());
        }
        let ours = install::state(self.root).unwrap_or_default().places;
        for place in places {
            let by_install = ours.contains(&place);
            match resolve(self.root, &place) {
                Err(_) => self.report(
                    "proxy",
                    State::Wrong,
                    format!("no {place}, which libxl starts for every stubdomain"),
                    INSTALL,
                ),
                Ok(file) if is_ours(&file) => {
                    let how = if by_install {
                        ", put there by install"
                    } else {
                        ""
                    };
                    self.ok("proxy", format!("{place} is stubdm-run{how}"));
                }
                Ok(_) => self.report(
                    "proxy",
                    State::Note,
                    format!("{place} is not stubdm-run"),
                    INSTALL,
                ),
            }
        }
    }

    /// Checks that files which `install` put somewhere are still there.
    pub(super) fn installed(&mut self) {
        match install::state(self.root) {
            Ok(state) if state.lost.is_empty() => {
                let found = match state.places.len() {
                    0 => "nothing was put into libxl's places by install".to_owned(),
                    _ => format!("in place: {}", state.places.join(", ")),
                };
                self.ok("install", found);
            }
            Ok(state) => self.report(
                "install",
                State::Wrong,
                format!(
                    "no longer what install put there: {}",
                    state.lost.join(", ")
                ),
                "move that away, then stubdm-run install; or stubdm-run uninstall",
            ),
            Err(failure) => self.report(
                "install",
                State::Wrong,
                failure.to_string(),
                "bring that file back or remove it, then stubdm-run install",
            ),
        }
    }

    /// QEMU where each libxl looks for it, or behind our launcher there.
    pub(super) fn qemu(&mut self) {
        let nowhere = self.libxl.iter().filter_map(|libxl| {
            let (version, name) = (&libxl.version, libxl.not_on_path.as_ref()?);
            let folders = path();
            Some(format!(
                "libxl {version} looks for {name} on PATH, and none is in {folders}"
            ))
        });
        let nowhere: Vec<_> = nowhere.collect();
        for found in nowhere {
            self.report(
                "qemu",
                State::Wrong,
                found,
                "install QEMU for Xen, or put its folder into the toolstack's PATH",
            );
        }
        for place in self.qemus() {
            let mut behind = SUFFIXES.iter().map(|suffix| format!("{place}{suffix}"));
            let ours = resolve(self.root, &place).map(|file| is_ours(&file));
            match (ours, behind.find(|path| self.has(path))) {
                (Ok(true), Some(real)) => {
                    self.ok(
                        "qemu",
                        format!("{place} is stubdm-run, which serves stubdomains' consoles; QEMU is {real}"),
                    );
                    self.runs_as(&place, &real);
                    self.named_by_others(&place, &real);
                }
                (Ok(true), None) => self.report(
                    "qemu",
                    State::Note,
                    format!("{place} is stubdm-run, and no QEMU is behind it: stubdomains' consoles are served and nothing else"),
                    "install QEMU for Xen (Debian: qemu-system-xen)",
                ),
                (Ok(false), _) => self.ok("qemu", place),
                (Err(_), _) => self.report(
                    "qemu",
                    State::Wrong,
                    format!("no {place}, which ramdisks are made with and dom0 serves consoles with"),
                    "install QEMU for Xen (Debian: qemu-system-xen)",
                ),
            }
        }
    }

    /// Returns whether one of dom0's QEMUs serves a guest's screen; `None` if none shows its
    /// version.
    pub(super) fn serves_screens(&self) -> Option<bool> {
        let found = |place: String| Qemu::at(self.root, &place).ok()?.serves_screens(self.root);
        self.qemus().into_iter().filter_map(found).max()
    }

    /// Returns where each libxl looks for QEMU.
    fn qemus(&self) -> Vec<String> {
        let mut places: Vec<_> = self.libxl.iter().filter_map(|l| l.qemu.clone()).collect();
        places.dedup();
        if places.is_empty() && self.libxl.iter().all(|libxl| libxl.not_on_path.is_none()) {
            places.push(qemu::DEFAULT.to_owned());
        }
        places
    }

    /// Reports dom0's own QEMU if it runs as `real`, which scripts that look for `place` miss: one
    /// that was started before the launcher was installed.
    fn runs_as(&mut self, place: &str, real: &str) {
        let processes = fs::read_dir(self.root.join("proc")).into_iter().flatten();
        let mut numbers: Vec<u32> = processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        numbers.sort_unstable();
        for pid in numbers {
            let folder = self.root.join(format!("proc/{pid}"));
            let program = fs::read_link(folder.join("exe"));
            let line = fs::read(folder.join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            let of_dom0 = words
                .windows(2)
                .any(|pair| pair == [&b"-xen-domid"[..], &b"0"[..]]);
            if of_dom0 && program.is_ok_and(|path| path == Path::new(real)) {
                self.report(
                    "qemu",
                    State::Note,
                    format!("dom0's own QEMU, process {pid}, runs as {real}: scripts that look for {place} do not find it"),
                    &format!("kill {pid}, then start it again (Debian: systemctl restart xen)"),
                );
            }
        }
    }

    /// Reports each file that names dom0's QEMU by its path, where a running QEMU cannot have the
    /// path of the launcher (`consoled/keep_path.rs`) and has `real`.
    fn named_by_others(&mut self, place: &str, real: &str) {
        let mounts = resolve(self.root, MOUNTS).and_then(|path| read::contents(&path));
        if mounts.is_ok_and(|text| root_is_shared(&String::from_utf8_lossy(&text))) {
            return;
        }
        let mut seen = Vec::new();
        for folder in IDENTIFIERS {
            // With a merged /usr, two of them are one.
            let Ok(own) = inside(self.root, folder) else {
                continue;
            };
            if seen.contains(&own) {
                continue;
            }
            let files = fs::read_dir(self.root.join(&own));
            seen.push(own);
            let mut files: Vec<_> = files
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name())
                .filter_map(|name| Some(format!("{folder}/{}", name.to_str()?)))
                .collect();
            files.sort();
            for file in files {
                let text = resolve(self.root, &file).and_then(|path| read::contents(&path));
                if text.is_ok_and(|text| names(&text, place)) {
                    self.report(
                        "qemu",
                        State::Note,
                        format!("{file} names {place}; dom0's own QEMU runs as {real}, and is not found by the first name"),
                        &format!("let it name {real}; or stubdm-run uninstall"),
                    );
                }
            }
        }
    }

    pub(super) fn folders(&mut self) {
        let missing: Vec<_> = ["/run/xen", "/var/lib/xen", "/var/log/xen"]
            .into_iter()
            .filter(|path| !self.has(path))
            .collect();
        match missing.is_empty() {
            true => self.ok("folders", "/run/xen, /var/lib/xen and /var/log/xen"),
            false => {
                let mend = format!("mkdir -p {}", missing.join(" "));
                let found = format!("no {}", missing.join(", "));
                self.report("folders", State::Wrong, found, &mend);
            }
        }
    }
}

/// Returns whether a file has the path as a whole word.
fn names(text: &[u8], path: &str) -> bool {
    let joins = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/".contains(byte);
    text.split(|byte| !joins(byte))
        .any(|word| word == path.as_bytes())
}

/// Returns whether a program is this one, by its name or by the prefix of its errors.
fn is_ours(file: &Path) -> bool {
    let named = file.file_name().is_some_and(|name| name == "stubdm-run");
    let mark = b"stubdm-run: ";
    named
        || read::contents(file).is_ok_and(|data| data.windows(mark.len()).any(|part| part == mark))
}
