//! The doctor's checks of stubdomains: their kernels, and their ramdisks.

use std::path::{Path, PathBuf};

use stubdm_image::elf::resolve;
use stubdm_image::modules::Modules;
use stubdm_image::read;

use super::State;
use super::checks::Host;

impl Host<'_> {
    /// XSA-482: kernels from 2026 on refuse plain hypercalls to every domU's userspace. QEMU in a
    /// stubdomain needs them.
    pub(super) fn privcmd(&mut self) {
        for version in Modules::versions(self.root) {
            let config = self
                .text(&format!("/boot/config-{version}"))
                .unwrap_or_default();
            if config.lines().any(|line| line == "CONFIG_XEN_PRIVCMD=y") {
                self.say(
                    "privcmd",
                    State::Note,
                    format!("Linux {version} has xen-privcmd built in; if it restricts it (XSA-482), QEMU cannot start"),
                    "add xen_privcmd.unrestricted=1 to stubdomain_cmdline",
                );
                continue;
            }
            let module = Modules::find(self.root, &version)
                .and_then(|modules| modules.parameters("xen-privcmd"));
            match module {
                Ok(names) if names.iter().any(|name| name == "unrestricted") => self.ok(
                    "privcmd",
                    format!("Linux {version} restricts it in domUs (XSA-482); the stubdomain's init lifts that for QEMU"),
                ),
                Ok(_) => self.ok("privcmd", format!("Linux {version} does not restrict it (before XSA-482)")),
                Err(error) => self.say(
                    "privcmd",
                    State::Note,
                    format!("Linux {version}: {error:#}"),
                    "a stubdomain cannot use this kernel",
                ),
            }
        }
    }

    /// The ramdisks that guests are configured with, libxl's own place for one, and one that was
    /// named.
    pub(super) fn images(&mut self, named: Option<&Path>) {
        let mut all: Vec<(String, Option<PathBuf>)> = Vec::new();
        if let Some(path) = named {
            all.push((path.display().to_string(), Some(path.to_owned())));
        }
        let mut add = |path: String| {
            if !all.iter().any(|(known, _)| *known == path) {
                let file = resolve(self.root, &path).ok();
                all.push((path, file));
            }
        };
        for (_, settings) in self.configured() {
            if let Some(path) = settings.text("stubdomain_ramdisk") {
                add(path.to_owned());
            }
        }
        for default in self.ramdisk_places() {
            if self.has(&default) {
                add(default);
            }
        }
        let build =
            "stubdm-run image build -o /var/lib/stubdm/stubdom.img, then stubdm-run install image";
        if all.is_empty() {
            return self.say(
                "image",
                State::Wrong,
                "no guest in /etc/xen/*.cfg names a stubdomain_ramdisk, and none is in libxl's own place",
                build,
            );
        }
        for (path, file) in all {
            let Some(file) = file else {
                self.say("image", State::Wrong, format!("there is no {path}"), build);
                continue;
            };
            match look_into(&file) {
                Ok(found) => self.ok("image", format!("{path}: {found}")),
                Err(why) => self.say("image", State::Wrong, format!("{path}: {why}"), build),
            }
        }
    }
}

/// Whether a ramdisk has what a stubdomain needs.
fn look_into(file: &Path) -> Result<String, String> {
    let data = read::contents(file).map_err(|error| error.to_string())?;
    let listing = read::listing(&data).map_err(|error| format!("{error:#}"))?;
    let has = |end: &str| {
        listing
            .entries
            .iter()
            .any(|entry| entry.path.ends_with(end))
    };
    for (end, what) in [
        ("init", "an init"),
        ("bin/stubdm-run", "stubdm-run"),
        ("xen-qemu-system-i386", "QEMU"),
        ("dev/null", "the node /dev/null"),
        ("xen-privcmd.ko", "the module xen-privcmd"),
        ("xen-gntalloc.ko", "the module xen-gntalloc"),
        ("xen-evtchn.ko", "the module xen-evtchn"),
    ] {
        if !has(end) {
            return Err(format!("it lacks {what}"));
        }
    }
    let (count, size) = (listing.entries.len(), data.len() as f64 / 1_048_576.0);
    Ok(format!(
        "{count} entries, {size:.1} MiB, all that a stubdomain needs"
    ))
}
