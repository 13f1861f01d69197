//! QEMU's argument vector as libxl hands it to the stubdomain, and what it asks for.
//!
//! libxl writes one store node per argument, `/vm/UUID/image/dm-argv/001`, `002`, …; the value is
//! the argument's raw bytes, possibly empty, possibly with line breaks or non-ASCII in it.
//! `%03d` stops sorting as text at 1000, so names are ordered as numbers.
//!
//! Nothing here does I/O: it takes names and values, and returns a checked vector.
//! (`tools/libs/light/libxl_dm.c`, `libxl__write_stub_dmargs`.)

pub mod mini_os;
pub mod rewrite;
pub mod words;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;

use stubdm_qmp::json::{Json, Limits};

/// The value of `-incoming` until the stubdomain has its descriptor. It is replaced only where it
/// is a whole argument: a guest may well be named like this.
pub const INCOMING_PLACEHOLDER: &[u8] = b"$STUBDOM_RESTORE_INCOMING_ARG";

/// Why an argument vector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgvError {
    /// There is no `dm-argv` directory.
    Missing {
        /// The Mini-OS protocol's `dmargs` string is there instead.
        mini_os: bool,
    },
    /// The directory holds no argument.
    Empty {
        /// The Mini-OS protocol's `dmargs` string is there as well.
        mini_os: bool,
    },
    /// A node in the directory is not a number.
    NotANumber(String),
    /// Two nodes name the same argument, e.g. `1` and `001`.
    Twice(u32),
    /// An argument between the first and the last is missing.
    Gap(u32),
    /// An argument holds a NUL byte, which no process can be given.
    Nul(usize),
}

impl fmt::Display for ArgvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = |mini_os: &bool| {
            if *mini_os {
                "; the Mini-OS `dmargs` string is there instead: set \
                 device_model_version=\"qemu-xen\" so that the toolstack uses the Linux protocol"
            } else {
                "; the toolstack could not write it (an argument over 4000 bytes?) or starts \
                 another kind of stubdomain"
            }
        };
        match self {
            Self::Missing { mini_os } => write!(f, "no dm-argv directory{}", hint(mini_os)),
            Self::Empty { mini_os } => write!(f, "the dm-argv directory is empty{}", hint(mini_os)),
            Self::NotANumber(name) => write!(f, "dm-argv holds {name:?}, which is no number"),
            Self::Twice(n) => write!(f, "dm-argv names argument {n} twice"),
            Self::Gap(n) => write!(f, "dm-argv lacks argument {n}"),
            Self::Nul(n) => write!(f, "argument {n} of dm-argv holds a NUL byte"),
        }
    }
}

impl std::error::Error for ArgvError {}

/// Puts the directory's entries in argument order.
///
/// # Errors
/// [`ArgvError::NotANumber`], [`ArgvError::Twice`], [`ArgvError::Gap`]: each means that QEMU would
/// get other arguments than the toolstack meant. An empty list is returned as it is.
pub fn in_order(names: Vec<String>) -> Result<Vec<String>, ArgvError> {
    let mut numbered = Vec::with_capacity(names.len());
    for name in names {
        let digits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        match name.parse::<u32>() {
            Ok(number) if digits => numbered.push((number, name)),
            _ => return Err(ArgvError::NotANumber(name)),
        }
    }
    numbered.sort_by_key(|(number, _)| *number);
    for pair in numbered.windows(2) {
        if let [(a, _), (b, _)] = pair {
            if a == b {
                return Err(ArgvError::Twice(*a));
            }
            if a + 1 != *b {
                return Err(ArgvError::Gap(a + 1));
            }
        }
    }
    Ok(numbered.into_iter().map(|(_, name)| name).collect())
}

/// The network side of an emulated card, as libxl names it: `-netdev type=tap,id=netN,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// libxl's number of the card, which is that of the stubdomain's own as well.
    pub number: u32,
    /// The emulated card's address.
    pub mac: Option<String>,
}

impl Tap {
    /// Its `id`.
    pub fn netdev(&self) -> String {
        format!("net{}", self.number)
    }
}

/// QEMU's arguments, in order, without the program's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmArgv {
    args: Vec<Vec<u8>>,
}

impl DmArgv {
    /// Takes the arguments in order.
    ///
    /// # Errors
    /// [`ArgvError::Empty`] for none, [`ArgvError::Nul`] for one that no process can be given.
    pub fn new(args: Vec<Vec<u8>>) -> Result<Self, ArgvError> {
        if args.is_empty() {
            return Err(ArgvError::Empty { mini_os: false });
        }
        match args.iter().position(|arg| arg.contains(&0)) {
            Some(at) => Err(ArgvError::Nul(at + 1)),
            None => Ok(Self { args }),
        }
    }

    /// Returns the arguments as received.
    pub fn args(&self) -> &[Vec<u8>] {
        &self.args
    }

    /// The arguments as a process takes them.
    pub fn into_os(self) -> Vec<OsString> {
        self.args.into_iter().map(OsString::from_vec).collect()
    }

    /// Returns whether the guest's state is to be loaded: the placeholder is a whole argument.
    pub fn wants_incoming(&self) -> bool {
        self.args.iter().any(|arg| arg == INCOMING_PLACEHOLDER)
    }

    /// Replaces every argument that *is* the placeholder, and no other.
    pub fn set_incoming(&mut self, value: &str) {
        for arg in &mut self.args {
            if arg == INCOMING_PLACEHOLDER {
                *arg = value.as_bytes().to_vec();
            }
        }
    }

    /// The stubdomain's block devices QEMU will open: `/dev/xvd…` in `-drive file=`, each once.
    pub fn disks(&self) -> Vec<String> {
        let mut disks = Vec::new();
        for options in self.values_of("-drive") {
            for (key, value) in pairs(options) {
                let device = value.starts_with("/dev/xvd");
                if key == "file" && device && !disks.contains(&value) {
                    disks.push(value);
                }
            }
        }
        disks
    }

    /// The taps: every `-netdev type=tap,id=netN` (or `tap,…`).
    pub fn taps(&self) -> Vec<Tap> {
        let numbers = self.values_of("-netdev").filter_map(tap_number);
        let tap = |number| {
            let mut tap = Tap { number, mac: None };
            tap.mac = self.mac_of(&tap.netdev());
            tap
        };
        numbers.map(tap).collect()
    }

    /// The address of the emulated card that has this network side.
    fn mac_of(&self, netdev: &str) -> Option<String> {
        self.values_of("-device").find_map(|options| {
            let pairs = pairs(options);
            let own = pairs.iter().any(|(k, v)| k == "netdev" && v == netdev);
            let mac = pairs.into_iter().find(|(key, _)| key == "mac");
            mac.filter(|_| own).map(|(_, mac)| mac)
        })
    }

    /// Lets a tap be the open descriptor `fd` instead of an interface that QEMU makes.
    pub fn set_tap(&mut self, netdev: &str, fd: RawFd) {
        let all = words::words(&self.args).into_iter();
        let taps = all.filter(|word| word.name == b"netdev");
        let own = taps.filter(|word| {
            let number = word.value.and_then(tap_number);
            number.is_some_and(|number| Tap { number, mac: None }.netdev() == netdev)
        });
        let places: Vec<usize> = own.map(|word| word.at + 1).collect();
        for place in places {
            if let Some(arg) = self.args.get_mut(place) {
                *arg = format!("type=tap,id={netdev},fd={fd}").into_bytes();
            }
        }
    }

    /// The consoles QEMU will open as serial ports: `-serial /dev/hvcN`.
    pub fn serial_ttys(&self) -> Vec<String> {
        let text = self
            .values_of("-serial")
            .map(|v| String::from_utf8_lossy(v).into_owned());
        text.filter(|v| v.starts_with("/dev/hvc")).collect()
    }

    /// The models of the emulated network cards: the `MODEL` of each `-device MODEL,…,netdev=…`.
    pub fn nic_models(&self) -> Vec<String> {
        let mut models = Vec::new();
        for options in self.values_of("-device") {
            let pairs = pairs(options);
            let model = rewrite::model_of(&pairs);
            let new = !model.is_empty() && !models.iter().any(|known| known == model);
            if pairs.iter().any(|(key, _)| key == "netdev") && new {
                models.push(model.to_owned());
            }
        }
        models
    }

    /// The CD-ROM drives, by libxl's numbers of their disks: the `id=ide-NUMBER` of each `-device
    /// ide-cd,…`.
    pub fn cd_drives(&self) -> Vec<u32> {
        let mut drives = Vec::new();
        for options in self.values_of("-device") {
            let pairs = pairs(options);
            let cd = rewrite::model_of(&pairs) == "ide-cd";
            let id = pairs.iter().find(|(key, _)| key == "id");
            let number = id.and_then(|(_, id)| id.strip_prefix("ide-")?.parse::<u32>().ok());
            drives.extend(number.filter(|_| cd));
        }
        drives
    }

    /// The value of each occurrence of `option`.
    pub(crate) fn values_of<'a>(&'a self, option: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        let name = option.trim_start_matches('-').as_bytes();
        let all = words::words(&self.args).into_iter();
        all.filter(move |word| word.name == name)
            .filter_map(|word| word.value)
    }
}

/// Returns the number of a `-netdev` that is one of libxl's taps.
pub(crate) fn tap_number(options: &[u8]) -> Option<u32> {
    let pairs = pairs(options);
    let find = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v);
    let tap = find("type").is_some_and(|kind| kind == "tap") || find("tap").is_some();
    let digits = find("id").filter(|_| tap)?.strip_prefix("net")?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// QEMU's `a=1,b=x,,y` syntax: pairs split at single commas, a doubled comma being a literal one. A
/// word without `=` is a key with an empty value. Instead there may be a JSON object, whose inner
/// names are joined by dots.
pub(crate) fn pairs(options: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(options);
    if text.starts_with('{') {
        if let Some(object) = json(options) {
            let mut all = Vec::new();
            flatten("", &object, &mut all);
            return all;
        }
    }
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            words.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    let split = |word: String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (word, String::new()),
    };
    words.into_iter().map(split).collect()
}

/// More than a store's node can hold.
const JSON: Limits = Limits {
    bytes: 16 << 10,
    depth: 16,
    elements: 1000,
    text: 16 << 10,
};

/// A value that is JSON, if it can be read.
pub(crate) fn json(value: &[u8]) -> Option<Json> {
    Json::read(value, &JSON).ok()
}

/// The leaves of a JSON value, each under the names that lead to it. The reader has bounded the
/// depth.
fn flatten(name: &str, value: &Json, all: &mut Vec<(String, String)>) {
    let inner = |key: &str| match name {
        "" => key.to_owned(),
        _ => format!("{name}.{key}"),
    };
    let mut leaf = |text: String| all.push((name.to_owned(), text));
    match value {
        Json::Map(members) => {
            for (key, value) in members {
                flatten(&inner(key), value, all);
            }
        }
        Json::List(items) => {
            for (at, value) in items.iter().enumerate() {
                flatten(&inner(&at.to_string()), value, all);
            }
        }
        Json::Text(text) => leaf(text.clone()),
        Json::Bool(on) => leaf(if *on { "on" } else { "off" }.to_owned()),
        other => leaf(other.to_string()),
    }
}
#[cfg(test)]
mod tests;
