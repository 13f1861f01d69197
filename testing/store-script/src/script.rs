//! Random scripts: the operations of several connections, one after the other.

use std::fmt::{self, Write as _};

use xen_store::wire::REL_PATH_MAX;

/// The connections: two of domain 0, then one of each guest; on [`Host::Live`] all are domain 0's.
pub const CONNECTIONS: usize = 4;
/// The first connection that is a guest's.
pub const FIRST_GUEST: usize = 2;
/// The guests' domains.
pub const GUESTS: [u16; CONNECTIONS - FIRST_GUEST] = [1, 2];
/// A domain that exists, and whose ring is not in use. Scripts introduce and release it.
pub const IDLE: u16 = 3;
/// A domain that does not exist.
const MISSING: u16 = 9;
/// Slots for transactions and for watches of each connection. Slot 0 of transactions is none.
pub(crate) const SLOTS: usize = 13;
/// Slots that are in use outside a burst.
const USUAL_SLOTS: usize = 4;

/// One line of a script. `tx` and `slot` count from 1; `tx` 0 is no transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the store's operation of that name")]
pub enum Op {
    Read {
        tx: usize,
        paths: Vec<String>,
    },
    Write {
        tx: usize,
        nodes: Vec<(String, Vec<u8>)>,
    },
    Mkdir {
        tx: usize,
        path: String,
    },
    Rm {
        tx: usize,
        path: String,
    },
    Directory {
        tx: usize,
        path: String,
    },
    Permissions {
        tx: usize,
        path: String,
    },
    SetPermissions {
        tx: usize,
        path: String,
        entries: String,
    },
    Tree {
        tx: usize,
        path: String,
    },
    Begin {
        slot: usize,
    },
    Commit {
        slot: usize,
    },
    Abort {
        slot: usize,
    },
    Watch {
        slot: usize,
        path: String,
    },
    Unwatch {
        slot: usize,
    },
    DomainPath {
        domain: u16,
    },
    IsIntroduced {
        domain: u16,
    },
    Introduce {
        domain: u16,
        port: u32,
    },
    Release {
        domain: u16,
    },
    SetTarget {
        domain: u16,
        target: u16,
    },
    Resume {
        domain: u16,
    },
    /// The events of every watch of every connection since the last time.
    Events,
}

/// An operation, and the connection that it is sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The connection's number.
    pub on: usize,
    /// The operation.
    pub op: Op,
}

impl Line {
    /// Returns how many answers it has.
    #[must_use]
    pub fn answers(&self) -> usize {
        match &self.op {
            Op::Read { paths, .. } => paths.len(),
            Op::Write { nodes, .. } => nodes.len(),
            _ => 1,
        }
    }

    /// Returns the path of each of its answers that is about a node.
    #[must_use]
    pub fn paths(&self) -> Vec<&str> {
        match &self.op {
            Op::Read { paths, .. } => paths.iter().map(String::as_str).collect(),
            Op::Write { nodes, .. } => nodes.iter().map(|(path, _)| path.as_str()).collect(),
            Op::Mkdir { path, .. }
            | Op::Rm { path, .. }
            | Op::Directory { path, .. }
            | Op::Permissions { path, .. }
            | Op::SetPermissions { path, .. }
            | Op::Tree { path, .. }
            | Op::Watch { path, .. } => vec![path],
            _ => Vec::new(),
        }
    }
}

/// As the C program reads it.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self.on;
        match &self.op {
            Op::Read { tx, paths } => {
                write!(f, "r {on} {tx} {}", paths.len())?;
                paths
                    .iter()
                    .try_for_each(|path| write!(f, " {}", hex(path.as_bytes())))
            }
            Op::Write { tx, nodes } => {
                write!(f, "w {on} {tx} {}", nodes.len())?;
                nodes.iter().try_for_each(|(path, value)| {
                    write!(f, " {} {}", hex(path.as_bytes()), hex(value))
                })
            }
            Op::Mkdir { tx, path } => write!(f, "m {on} {tx} {}", hex(path.as_bytes())),
            Op::Rm { tx, path } => write!(f, "x {on} {tx} {}", hex(path.as_bytes())),
            Op::Directory { tx, path } => write!(f, "d {on} {tx} {}", hex(path.as_bytes())),
            Op::Permissions { tx, path } => write!(f, "g {on} {tx} {}", hex(path.as_bytes())),
            Op::SetPermissions { tx, path, entries } => {
                write!(f, "p {on} {tx} {} {entries}", hex(path.as_bytes()))
            }
            Op::Tree { tx, path } => write!(f, "t {on} {tx} {}", hex(path.as_bytes())),
            Op::Begin { slot } => write!(f, "b {on} {slot}"),
            Op::Commit { slot } => write!(f, "c {on} {slot}"),
            Op::Abort { slot } => write!(f, "a {on} {slot}"),
            Op::Watch { slot, path } => write!(f, "o {on} {slot} {}", hex(path.as_bytes())),
            Op::Unwatch { slot } => write!(f, "u {on} {slot}"),
            Op::DomainPath { domain } => write!(f, "D {on} {domain}"),
            Op::IsIntroduced { domain } => write!(f, "I {on} {domain}"),
            Op::Introduce { domain, port } => write!(f, "N {on} {domain} {port}"),
            Op::Release { domain } => write!(f, "L {on} {domain}"),
            Op::SetTarget { domain, target } => write!(f, "S {on} {domain} {target}"),
            Op::Resume { domain } => write!(f, "Z {on} {domain}"),
            Op::Events => write!(f, "E"),
        }
    }
}

/// Returns bytes as hexadecimal digits; `-` for none.
pub(crate) fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Returns `true` once in that many times.
    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// The longest value by the kernel's device, which takes 4096 bytes with header and path.
const MOST_BY_DEVICE: usize = 2000;

/// Folders in which scripts work: of all domains, of those that may read, of domain 0, and the
/// guests' own.
const FOLDERS: &[&str] = &[
    "/t/open",
    "/t/open",
    "/t/read",
    "/t/shut",
    "/local/domain/1/data",
    "/local/domain/2/data",
];
/// Paths that are refused, name nothing, or name more than nodes.
const ODD: &[&str] = &[
    "",
    "/",
    "//",
    "/t//a",
    "/t/a/",
    "a/",
    "/t/a b",
    "/t/ä",
    "/t/.",
    "/t",
    "/local",
    "/local/domain",
    "/local/domain/1",
    "/none/of/these",
    "none",
    "@releaseDomain",
    "@introduceDomain",
    "@none",
    "@",
];
/// The same in `/t`.
const ODD_IN_T: &[&str] = &[
    "//", "/t//a", "/t/a/", "a/", "/t/a b", "/t/ä", "/t/.", "/t", "@none", "@",
];
const LENGTHS: &[usize] = &[
    0, 0, 1, 1, 2, 3, 5, 8, 13, 40, 200, 1000, 2047, 2048, 2049, 3500, 4090, 4096, 5000,
];
const ENTRIES: &[&str] = &[
    "n0",
    "r0",
    "b0",
    "n1",
    "r1",
    "b1",
    "n2",
    "n0,r1",
    "n0,r1,w2",
    "n1,r2",
    "n1,b0,b2",
    "b2,n1",
    "n0,r9",
    "n9",
    "n3",
    "n0,r3",
    "n0,r1,n1,r1",
];
const DOMAINS: &[u16] = &[0, 1, 2, IDLE, IDLE, MISSING];

/// The daemon that a script is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// A fresh xenstored, or the embedded daemon.
    Xenstored,
    /// A fresh oxenstored.
    Oxenstored,
    /// The daemon of a host at work: scripts change nothing outside `/t`, and have no guests.
    Live,
}

struct Writer {
    random: Random,
    lines: Vec<Line>,
    transactions: [[bool; SLOTS]; CONNECTIONS],
    watches: [[bool; SLOTS]; CONNECTIONS],
    host: Host,
}

/// Makes a script of about `length` lines.
///
/// Left out is everything that makes a daemon hang, end, or depend on anything but the script:
///
/// * xenstored sets no errno for SET_PERMS on an `@name` that is unknown or not the caller's, and
///   for INTRODUCE of a domain that does not exist. They fail with the last errno of the process. If
///   that is 0 they are not answered at all, and the client's next message ends the daemon.
/// * By the kernel's device there are no watches: a thread of the kernel's passes events on, so they
///   come before or after the reply to a later request. And nothing that the device refuses by an
///   error of `write`, after which libxenstore has closed its connection: more than 4096 bytes with
///   the header, or a watch that the daemon refuses.
/// * xenstored of Xen 4.20 takes a path of domain 0 that is longer than the protocol's limit, which
///   ours refuses and 4.17 refuses beyond 2048 bytes: none on a live host is longer than these.
/// * xenstored keeps a domain that was released, as long as it is the target of a domain.
/// * oxenstored sends a list longer than a message in one all the same, lets a path that is too
///   long be watched, and by RELEASE of domain 0 takes all nodes of domain 0 away from it.
#[must_use]
pub fn script(seed: u64, length: usize, host: Host) -> Vec<Line> {
    let mut writer = Writer {
        random: Random(seed),
        lines: Vec::new(),
        transactions: [[false; SLOTS]; CONNECTIONS],
        watches: [[false; SLOTS]; CONNECTIONS],
        host,
    };
    writer.furnish();
    while writer.lines.len() < length {
        writer.step();
    }
    writer.push(0, Op::Events);
    let trees = match host {
        Host::Live => &["/t"][..],
        _ => &["/t", "/local"],
    };
    for &path in trees {
        let (tx, path) = (0, path.to_owned());
        writer.push(0, Op::Tree { tx, path });
    }
    writer.lines
}

impl Writer {
    fn push(&mut self, on: usize, op: Op) {
        self.lines.push(Line { on, op });
    }

    /// The folders with their permissions.
    fn furnish(&mut self) {
        let nodes = [
            ("/t", "r0"),
            ("/t/open", "b0"),
            ("/t/read", "r0"),
            ("/t/shut", "n0"),
            ("/local/domain/1", "n0,r1"),
            ("/local/domain/1/data", "n1"),
            ("/local/domain/2", "n0,r2"),
            ("/local/domain/2/data", "n2"),
        ];
        let is_live = self.is_live();
        let nodes = nodes.into_iter();
        for (path, entries) in nodes.filter(|(path, _)| !is_live || path.starts_with("/t")) {
            let (tx, path, entries) = (0, path.to_owned(), entries.to_owned());
            self.push(
                0,
                Op::Mkdir {
                    tx,
                    path: path.clone(),
                },
            );
            self.push(0, Op::SetPermissions { tx, path, entries });
        }
    }

    fn is_live(&self) -> bool {
        self.host == Host::Live
    }

    fn is_guest(&self, on: usize) -> bool {
        on >= FIRST_GUEST && !self.is_live()
    }

    fn path(&mut self, on: usize) -> String {
        if self.random.one_in(25) {
            let odd = if self.is_live() { ODD_IN_T } else { ODD };
            return self.random.pick(odd).to_owned();
        }
        if self.random.one_in(300) {
            let (start, length) =
                self.random
                    .pick(&[("/", 3072), ("/", 3073), ("", 2048), ("", 2049)]);
            let (start, length) = if self.is_live() {
                ("/t/open/", REL_PATH_MAX)
            } else {
                (start, length)
            };
            return format!("{start}{}", "x".repeat(length - start.len()));
        }
        let is_guest = self.is_guest(on);
        let mut path = if is_guest && self.random.one_in(2) {
            "data".to_owned()
        } else {
            let folders = if self.is_live() {
                &FOLDERS[..4]
            } else {
                FOLDERS
            };
            self.random.pick(folders).to_owned()
        };
        if self.host != Host::Oxenstored && !is_guest && self.random.one_in(12) {
            let number = self.random.below(24);
            return format!("/t/open/many/{number}{}", "-".repeat(200));
        }
        for _ in 0..self.random.pick(&[0, 1, 1, 1, 2, 2, 3]) {
            path.push('/');
            path.push_str(self.random.pick(&["a", "b", "c", "D-_", "4"]));
        }
        path
    }

    fn value(&mut self, on: usize) -> Vec<u8> {
        let mut length = self.random.pick(LENGTHS);
        if self.is_live() && on >= FIRST_GUEST {
            length = length.min(MOST_BY_DEVICE);
        }
        (0..length)
            .map(|_| self.random.next().to_le_bytes()[0])
            .collect()
    }

    /// A transaction of this connection, or none.
    fn transaction(&mut self, on: usize) -> usize {
        let open = in_use(&self.transactions[on]);
        if open.is_empty() || self.random.one_in(3) {
            return 0;
        }
        self.random.pick(&open)
    }

    fn step(&mut self) {
        // Guests write less: xenstored lets them make 200 changes a second.
        let on = self.random.pick(&[0, 0, 0, 1, 1, 1, 2, 3]);
        match self.random.below(100) {
            0..58 => self.about_nodes(on),
            58..70 => self.about_transactions(on),
            70..80 => self.about_watches(on),
            80..90 => self.push(0, Op::Events),
            90..97 => self.about_domains(on),
            97 => {
                if self.random.one_in(4) {
                    self.furnish();
                }
            }
            98 => {
                let tx = self.transaction(on);
                let path = self.path(on);
                self.push(on, Op::Tree { tx, path });
            }
            _ => {
                if self.random.one_in(4) {
                    self.burst(on);
                }
            }
        }
    }

    fn about_nodes(&mut self, on: usize) {
        let tx = self.transaction(on);
        let path = self.path(on);
        let op = match self.random.below(24) {
            0..7 => Op::Read {
                tx,
                paths: vec![path],
            },
            7 => {
                let count = 1 + self.random.below(12);
                let paths = (0..count).map(|_| self.path(on)).collect();
                Op::Read { tx, paths }
            }
            8..13 => {
                let nodes = vec![(path, self.value(on))];
                Op::Write { tx, nodes }
            }
            13 => {
                let count = 1 + self.random.below(6);
                let nodes = (0..count)
                    .map(|_| (self.path(on), self.value(on)))
                    .collect();
                Op::Write { tx, nodes }
            }
            14 | 15 => Op::Mkdir { tx, path },
            16 | 17 if !is_furniture(&path) => Op::Rm { tx, path },
            18..20 => Op::Directory { tx, path },
            20 | 21 => Op::Permissions { tx, path },
            _ if path.starts_with('@') && (self.is_guest(on) || !path.ends_with("Domain")) => {
                Op::Permissions { tx, path }
            }
            _ => {
                let entries = self.random.pick(ENTRIES).to_owned();
                Op::SetPermissions { tx, path, entries }
            }
        };
        self.push(on, op);
    }

    fn about_transactions(&mut self, on: usize) {
        let open = in_use(&self.transactions[on]);
        if open.len() < USUAL_SLOTS && self.random.one_in(2) {
            self.begin(on);
        } else if !open.is_empty() {
            let slot = self.random.pick(&open);
            let commit = !self.random.one_in(4);
            self.end(on, slot, commit);
        }
    }

    fn begin(&mut self, on: usize) {
        let free = (1..SLOTS).find(|slot| !self.transactions[on][*slot]);
        if let Some(slot) = free {
            self.transactions[on][slot] = true;
            self.push(on, Op::Begin { slot });
        }
    }

    fn end(&mut self, on: usize, slot: usize, commit: bool) {
        self.transactions[on][slot] = false;
        self.push(
            on,
            if commit {
                Op::Commit { slot }
            } else {
                Op::Abort { slot }
            },
        );
    }

    /// As many transactions as there are slots, which is more than a guest may have.
    fn burst(&mut self, on: usize) {
        while in_use(&self.transactions[on]).len() < SLOTS - 1 {
            self.begin(on);
        }
        for slot in in_use(&self.transactions[on]) {
            self.end(on, slot, slot % 2 == 0);
        }
    }

    fn about_watches(&mut self, on: usize) {
        let on = if self.is_live() { on % FIRST_GUEST } else { on };
        let used = in_use(&self.watches[on]);
        if used.len() < 2 * USUAL_SLOTS && !self.random.one_in(3) {
            let free = (1..SLOTS).find(|slot| !self.watches[on][*slot]);
            if let Some(slot) = free {
                let mut path = self.path(on);
                if self.host == Host::Oxenstored && path.len() > REL_PATH_MAX {
                    path = "@releaseDomain".to_owned();
                }
                self.watches[on][slot] = true;
                self.push(on, Op::Watch { slot, path });
            }
        } else if !used.is_empty() {
            let slot = self.random.pick(&used);
            self.watches[on][slot] = false;
            self.push(on, Op::Unwatch { slot });
        }
    }

    fn about_domains(&mut self, on: usize) {
        if self.is_live() {
            let domain = self.random.pick(&[0, MISSING]);
            let op = if self.random.one_in(2) {
                Op::DomainPath { domain }
            } else {
                Op::IsIntroduced { domain }
            };
            return self.push(on, op);
        }
        let domain = self.random.pick(DOMAINS);
        let changed = self.random.pick(&[IDLE, IDLE, IDLE, MISSING, 0]);
        let op = match self.random.below(12) {
            0..3 => Op::DomainPath { domain },
            3..6 => Op::IsIntroduced { domain },
            6 | 7 => {
                let domain = self.random.pick(&[IDLE, IDLE, 0]);
                let port = u32::from(!self.random.one_in(8));
                Op::Introduce { domain, port }
            }
            8 | 9 if changed == 0 && self.host == Host::Oxenstored => Op::Resume { domain: 0 },
            8 | 9 => Op::Release { domain: changed },
            10 => {
                let others = DOMAINS
                    .iter()
                    .filter(|other| ![changed, IDLE].contains(other));
                let target = self.random.pick(&others.copied().collect::<Vec<_>>());
                Op::SetTarget {
                    domain: changed,
                    target,
                }
            }
            _ => Op::Resume { domain: changed },
        };
        self.push(on, op);
    }
}

/// Nodes that stay, so that there is something to work on.
fn is_furniture(path: &str) -> bool {
    path == "/t" || path.starts_with("/local") && path.len() <= "/local/domain/1/data".len()
}

fn in_use(slots: &[bool; SLOTS]) -> Vec<usize> {
    (1..SLOTS).filter(|slot| slots[*slot]).collect()
}
