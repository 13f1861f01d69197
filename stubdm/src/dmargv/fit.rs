//! What becomes of the toolstack's arguments inside a stubdomain.
//!
//! libxl writes QEMU's arguments as if QEMU ran on the host; `device_model_args` adds what a person
//! thought of there. Inside the stubdomain the host's files, displays and networks do not exist. Each
//! option gets one of four verdicts, each with its reason:
//!
//! | verdict | meaning |
//! |---|---|
//! | kept | as it came |
//! | changed | another value that does what was meant |
//! | dropped | without it the guest is the same |
//! | refused | the guest would not be what was asked for: the stubdomain does not start |
//!
//! Whether a path exists in the stubdomain is asked of the caller: the init looks at its own root, the host's
//! `dmargs check` at an image's list of contents.

use super::words::{Word, words};
use super::{DmArgv, INCOMING_PLACEHOLDER, pairs, tap_number};

/// What becomes of one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on as it came.
    Kept,
    /// Passed on, with something a person should know.
    Noted(String),
    /// Passed on with this value instead.
    Changed {
        /// The value QEMU gets.
        to: String,
        /// Why.
        why: String,
    },
    /// Not passed on.
    Dropped(String),
    /// Nothing can be started with it.
    Refused(String),
}

/// One option and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The number of its first argument, from 1 as in the store.
    pub number: usize,
    /// The option as a person writes it.
    pub option: String,
    /// Its value, as text.
    pub value: Option<String>,
    /// What it is for, if that is known.
    pub about: Option<&'static str>,
    /// What becomes of it.
    pub verdict: Verdict,
}

impl Finding {
    /// One line for a log; `None` for an option that is passed on as it came.
    pub fn line(&self) -> Option<String> {
        let value = self.value.as_deref().unwrap_or_default();
        let subject = format!("{} {value}", self.option);
        let subject = subject.trim_end();
        match &self.verdict {
            Verdict::Kept => None,
            Verdict::Noted(what) => Some(format!("{subject}: {what}")),
            Verdict::Changed { to, why } => {
                Some(format!("{subject}: changed to {to:?}, for {why}"))
            }
            Verdict::Dropped(why) => Some(format!("{subject}: left out, for {why}")),
            Verdict::Refused(why) => Some(format!("{subject}: impossible in a stubdomain: {why}")),
        }
    }

    /// Whether nothing can be started with it.
    pub fn is_refusal(&self) -> bool {
        matches!(self.verdict, Verdict::Refused(_))
    }
}

impl DmArgv {
    /// Judges every option, in order; `exists` says whether a path is there in the stubdomain.
    pub fn judge(&self, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
        let all = words(self.args());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        all.iter()
            .map(|word| Finding {
                number: word.at + 1,
                option: word.shown(),
                value: word.value.map(text),
                about: word.known.map(|known| known.about),
                verdict: judge(word, &all, exists),
            })
            .collect()
    }

    /// The arguments as QEMU can take them in here, with what was found.
    ///
    /// # Errors
    /// The first option nothing can be started with.
    pub fn fit(&self, exists: &dyn Fn(&str) -> bool) -> Result<(Self, Vec<Finding>), Finding> {
        let findings = self.judge(exists);
        let mut args = Vec::with_capacity(self.args.len());
        for (word, finding) in words(self.args()).iter().zip(&findings) {
            let own = self.args.get(word.at..word.at + word.len());
            match &finding.verdict {
                Verdict::Refused(_) => return Err(finding.clone()),
                Verdict::Dropped(_) => {}
                Verdict::Changed { to, .. } => {
                    args.extend(own.into_iter().flatten().take(1).cloned());
                    args.push(to.clone().into_bytes());
                }
                Verdict::Kept | Verdict::Noted(_) => {
                    args.extend(own.into_iter().flatten().cloned());
                }
            }
        }
        Ok((Self { args }, findings))
    }
}

fn dropped(why: &str) -> Verdict {
    Verdict::Dropped(why.to_owned())
}

fn refused(why: impl Into<String>) -> Verdict {
    Verdict::Refused(why.into())
}

fn judge(word: &Word<'_>, all: &[Word<'_>], exists: &dyn Fn(&str) -> bool) -> Verdict {
    let value = word.value.map(String::from_utf8_lossy).unwrap_or_default();
    let value: &str = &value;
    let missing = |path: &str| is_path(path) && !is_device(path) && !exists(path);
    let host_file = |path: &str| match missing(path) {
        true => refused(format!(
            "{path} is a file of the host's, which is not in here"
        )),
        false => Verdict::Kept,
    };
    if word.value.is_none() && word.known.is_some_and(|known| known.takes_value) {
        return refused("its value is missing");
    }
    match word.name {
        b"daemonize" => dropped("the stubdomain's init watches over QEMU as its parent"),
        b"pidfile" | b"D" if missing(value) => dropped("nobody could read that file in here"),
        b"chroot" | b"runas" | b"run-with" => dropped("the stubdomain's init confines QEMU itself"),
        b"xen-domid-restrict" => dropped("the hypervisor ties this domain to its guest already"),
        b"sdl" | b"full-screen" | b"spice" => dropped("a stubdomain has no screen of the host's"),
        b"vnc" if value != "none" && !value.starts_with("unix:") => {
            dropped("a stubdomain has no network of the host's")
        }
        b"display" if !value.starts_with("none") => Verdict::Changed {
            to: "none".to_owned(),
            why: "a stubdomain has no screen of the host's".to_owned(),
        },
        b"k" if !exists(&format!("/usr/share/qemu/keymaps/{value}")) => {
            dropped("there are no keyboard layouts in here, and no screen that needs one")
        }
        b"L" if missing(value) => dropped("there is no such folder in here"),
        b"kernel" | b"initrd" | b"dtb" | b"bios" | b"pflash" | b"option-rom" | b"mem-path"
        | b"readconfig" => host_file(value),
        b"cdrom" | b"hda" | b"hdb" | b"hdc" | b"hdd" | b"fda" | b"fdb" | b"sd" | b"mtdblock"
        | b"" => disk_file(value, &missing),
        b"drive" | b"blockdev" => drive(value, &missing),
        b"acpitable" | b"smbios" | b"device" | b"virtfs" | b"fsdev" => {
            in_pairs(value, &["file", "romfile", "path", "data"], &host_file)
        }
        b"chardev" => chardev(value, all, &missing),
        b"serial" | b"parallel" | b"monitor" | b"qmp" | b"qmp-pretty" => line(value, &missing),
        b"netdev" => netdev(value),
        b"audiodev" => audiodev(value),
        b"incoming" => incoming(word.value.unwrap_or_default(), value),
        b"loadvm" => {
            refused("its state would come from a snapshot inside a disk, not from the toolstack")
        }
        name if name.starts_with(b"qubes-") => {
            dropped("it is a word for the init of QubesOS's stubdomain")
        }
        _ => Verdict::Kept,
    }
}

/// Whether a value is an absolute path at all.
fn is_path(value: &str) -> bool {
    value.starts_with('/')
}

/// Devices come when their backends do, and every stubdomain has the basic ones.
fn is_device(path: &str) -> bool {
    path.starts_with("/dev/")
}

/// A value that names a disk's contents: a device, a file, or a place on a network.
fn disk_file(value: &str, missing: &dyn Fn(&str) -> bool) -> Verdict {
    if missing(value) {
        return refused(format!(
            "{value} is a file of the host's; give it to the guest in `disk=[...]`, and the stubdomain gets it as a device"
        ));
    }
    let scheme = value.split_once(':').map(|(scheme, _)| scheme);
    match scheme {
        Some(
            "nbd" | "rbd" | "iscsi" | "http" | "https" | "ftp" | "ssh" | "gluster" | "sheepdog",
        ) => refused(
            "a stubdomain has no network of the host's; attach the disk on the host, in `disk=[...]`",
        ),
        _ => Verdict::Kept,
    }
}

fn drive(value: &str, missing: &dyn Fn(&str) -> bool) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let files = pairs
        .iter()
        .filter(|(key, _)| matches!(key.as_str(), "file" | "filename" | "file.filename"));
    files
        .map(|(_, file)| disk_file(file, missing))
        .find(|verdict| *verdict != Verdict::Kept)
        .unwrap_or(Verdict::Kept)
}

/// The first objection to a value of one of these keys.
fn in_pairs(value: &str, keys: &[&str], judge: &dyn Fn(&str) -> Verdict) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let mut wanted = pairs.iter().filter(|(key, _)| keys.contains(&key.as_str()));
    wanted
        .find_map(|(_, value)| Some(judge(value)).filter(|v| *v != Verdict::Kept))
        .unwrap_or(Verdict::Kept)
}

/// A channel of libxl's is served on the host, where its console's other end is; here only a
/// character device is left over that nothing refers to.
fn chardev(value: &str, all: &[Word<'_>], missing: &dyn Fn(&str) -> bool) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let find = |key: &str| {
        pairs
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    };
    let id = find("id").unwrap_or_default();
    let referred = || {
        all.iter()
            .filter(|word| word.name != b"chardev")
            .any(|word| {
                let text = String::from_utf8_lossy(word.value.unwrap_or_default());
                text == format!("chardev:{id}")
                    || super::pairs(text.as_bytes())
                        .iter()
                        .any(|(k, v)| k == "chardev" && v == id)
            })
    };
    if id.starts_with("libxl-channel") && !referred() {
        return dropped("channels are served on the host");
    }
    let path = find("path").unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    if !folder.is_empty() && missing(folder) {
        if referred() {
            return refused(format!(
                "{path} is a file of the host's, and something needs this character device"
            ));
        }
        return dropped("its file is the host's, and nothing needs it");
    }
    Verdict::Kept
}

/// A serial port or a monitor: `pty`, `/dev/hvc3`, `file:PATH`, `unix:PATH,…`, `tcp:…`.
fn line(value: &str, missing: &dyn Fn(&str) -> bool) -> Verdict {
    let (kind, rest) = value.split_once(':').unwrap_or((value, ""));
    let nowhere = |why: &str| Verdict::Changed {
        to: "null".to_owned(),
        why: why.to_owned(),
    };
    let path = rest.split(',').next().unwrap_or_default();
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    match kind {
        "tcp" | "udp" | "telnet" | "websocket" => {
            nowhere("a stubdomain has no network of the host's")
        }
        "file" | "unix" | "pipe" if missing(folder) => nowhere("its file would be the host's"),
        "stdio" => nowhere("QEMU's terminal is the stubdomain's log"),
        _ => Verdict::Kept,
    }
}

/// The init joins the taps that libxl names to the stubdomain's cards; scripts of the host's are not in here, nor a shell.
fn netdev(value: &str) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let kind = pairs.first().map(|(key, value)| match key.as_str() {
        "type" => value.as_str(),
        key => key,
    });
    match kind.unwrap_or_default() {
        "bridge" => refused("the host's bridge cannot be reached from here; use `vif=[...]`"),
        "user" | "socket" | "stream" | "dgram" | "l2tpv3" | "vde" | "vhost-user" => {
            Verdict::Noted("reaches nothing outside the stubdomain".to_owned())
        }
        "tap" if tap_number(value.as_bytes()).is_none() => {
            refused("the stubdomain has no card to join it to; use `vif=[...]`")
        }
        "tap" => {
            let script = |key: &str| matches!(key, "script" | "downscript");
            let wrong = pairs.iter().any(|(k, v)| script(k) && v != "no");
            if !wrong {
                return Verdict::Kept;
            }
            let keep = pairs.iter().filter(|(key, _)| !script(key));
            let mut to: Vec<String> = keep.map(joined).collect();
            to.push("script=no,downscript=no".to_owned());
            Verdict::Changed {
                to: to.join(","),
                why: "the host's scripts are not in here".to_owned(),
            }
        }
        _ => Verdict::Kept,
    }
}

/// A pair in QEMU's spelling, where a comma is doubled.
fn joined((key, value): &(String, String)) -> String {
    let comma = |text: &str| text.replace(',', ",,");
    match value.is_empty() {
        true => comma(key),
        false => format!("{}={}", comma(key), comma(value)),
    }
}

fn audiodev(value: &str) -> Verdict {
    let pairs = pairs(value.as_bytes());
    let kind = pairs.first().map(|(key, value)| match key.as_str() {
        "driver" => value.as_str(),
        key => key,
    });
    match kind.unwrap_or_default() {
        "none" | "wav" => Verdict::Kept,
        _ => {
            let id = pairs.iter().find(|(key, _)| key == "id").map(joined);
            Verdict::Changed {
                to: format!("none,{}", id.unwrap_or_default())
                    .trim_end_matches(',')
                    .to_owned(),
                why: "a stubdomain has no sound of the host's".to_owned(),
            }
        }
    }
}

fn incoming(raw: &[u8], value: &str) -> Verdict {
    if raw == INCOMING_PLACEHOLDER || value == "defer" {
        return Verdict::Kept;
    }
    refused("only the toolstack's own way of restoring reaches in here, over console 2")
}
