//! Rules as scripts: requests that connections send, and what comes back.
//!
//! ```text
//! source: the document that states it, for the rules that follow
//! rule: a name for what holds
//! 1 > WRITE /r/a|value        connection 1 sends this; `|` is a NUL
//! 1 < WRITE OK|               and gets this next
//! 2 ~ EVENT /r/a|token|       connection 2 has got this meanwhile
//! 2 ~                         connection 2 has got nothing (more)
//! 1 < TRANSACTION_START $t|   remember a transaction's id as `t`
//! 1 > READ@t /r/a|            and use it
//! g > READ /g/a|              a connection whose name begins with g is of the guest
//! g ? EVENT /g/a|t|           the guest's next event, which may be on its way
//! g ! 200 WATCH /g/#|t| => ERROR E2BIG|    one of 200 such requests, # counted up, is refused so
//! g ! 200 MKDIR /g/#| => ...               so many requests, whatever comes of them
//! 1 <sim ERROR EINVAL|        this line on the simulated host only
//! 1 <real ERROR ENOENT|       and this on a real one
//! 1 <4.17 ERROR ENOENT|       of Xen before 4.20
//! 1 <4.20 ERROR EINVAL|       of Xen 4.20 or later
//! ```
//!
//! `/r` stands for a folder of the rule's own, `/g` for one of the guest's, `@G` for its number,
//! `{x*9}` for nine times `x`, and `...` at the end of what is expected for anything. Every
//! connection is new for each rule.
//!
//! A guest on a real host has its kernel between itself and the daemon, which passes events on in
//! its own time and answers a refused WATCH by an error of `write`. So for guests events are kept
//! apart from replies.

use std::collections::{BTreeMap, VecDeque};

use xen_store::wire::{Decoder, MsgType, encode};

use crate::Kind;
use crate::end::End;
use crate::handles::Wire;

const FOLDER: &str = "/xen-store-rules";
/// Milliseconds. Nothing takes this long; a rule that waits forever reports less than one that
/// fails.
const PATIENCE: u16 = 60_000;

/// One rule of a script.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    /// With their numbers.
    lines: Vec<(usize, &'static str)>,
}

impl Script {
    /// Whether a guest has a part in it.
    pub(crate) fn needs_guest(&self) -> bool {
        self.lines
            .iter()
            .any(|(_, line)| line.starts_with('g') || line.contains("@G"))
    }
}

/// The rules in a text.
pub(crate) fn parse(text: &'static str) -> Vec<Script> {
    let mut scripts: Vec<Script> = Vec::new();
    let mut source = "";
    let counts = |line: &&str| !line.is_empty() && !line.starts_with('#');
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| counts(line)) {
        if let Some(from) = line.strip_prefix("source: ") {
            source = from;
        } else if let Some(name) = line.strip_prefix("rule: ") {
            scripts.push(Script {
                name,
                source,
                lines: Vec::new(),
            });
        } else if let Some(script) = scripts.last_mut() {
            script.lines.push((number, line));
        }
    }
    scripts
}

struct Conn {
    wire: Wire,
    decoder: Decoder,
    arrived: VecDeque<String>,
    /// Of a guest's connection, which keeps them apart.
    events: VecDeque<String>,
    of_guest: bool,
    next_id: u32,
}

/// Carries out a script; what was seen instead if it does not hold.
pub(crate) fn play(
    script: &Script,
    kind: Kind,
    dom0: &End,
    guest: Option<&End>,
) -> Result<(), String> {
    let mut conns: BTreeMap<&str, Conn> = BTreeMap::new();
    let mut ids: BTreeMap<String, u32> = BTreeMap::new();
    let number = guest.map_or(0, |guest| guest.id.as_u16());
    let mut cleaner = Conn::new(dom0, false)?;
    cleaner.clean(guest)?;
    for (at, line) in &script.lines {
        let mut words = line.splitn(3, ' ');
        let (Some(name), Some(what)) = (words.next(), words.next()) else {
            return Err(format!("not a line of a script: {line}"));
        };
        let Some(what) = here(what, kind) else {
            continue;
        };
        let rest = expand(words.next().unwrap_or_default(), number);
        if !conns.contains_key(name) {
            let conn = match (name.starts_with('g'), guest) {
                (false, _) => Conn::new(dom0, false)?,
                (true, Some(guest)) => Conn::new(guest, true)?,
                (true, None) => return Err("there is no guest".to_owned()),
            };
            conns.insert(name, conn);
        }
        let Some(conn) = conns.get_mut(name) else {
            continue;
        };
        let differs = |got: &str| format!("at line {at}, `{line}`, came `{got}`");
        match what {
            ">" => conn.send(&rest, &ids)?,
            "<" => {
                let got = conn.next()?;
                if let Some((kind, name)) = rest.strip_suffix('|').and_then(|r| r.split_once(" $"))
                {
                    let id = got
                        .strip_prefix(kind)
                        .and_then(|r| r.trim().strip_suffix('|'));
                    let id = id
                        .and_then(|id| id.parse().ok())
                        .ok_or_else(|| differs(&got))?;
                    ids.insert(name.to_owned(), id);
                } else if !matches(&got, &rest) {
                    return Err(differs(&got));
                }
            }
            "?" => {
                let got = conn.event()?;
                if !matches(&got, &rest) {
                    return Err(differs(&got));
                }
            }
            "!" => {
                let got = conn.until_refused(&rest, &ids)?;
                if let Err(got) = got {
                    return Err(differs(&got));
                }
            }
            "~" => {
                conn.sync()?;
                let got = conn.arrived.pop_front().unwrap_or_default();
                if !matches(&got, &rest) {
                    return Err(differs(&got));
                }
            }
            _ => return Err(format!("not a line of a script: {line}")),
        }
    }
    for (name, conn) in &mut conns {
        if let Some(more) = conn.arrived.front() {
            return Err(format!("connection {name} also got `{more}`"));
        }
    }
    drop(conns);
    cleaner.clean(guest)
}

/// A line's sign without the host it is for; `None` if that is another.
fn here(sign: &str, kind: Kind) -> Option<&str> {
    let (real, newer) = (kind == Kind::Real, || minor() >= 20);
    let hosts = [
        ("sim", !real),
        ("real", real),
        ("4.17", real && !newer()),
        ("4.20", real && newer()),
    ];
    let found = hosts
        .iter()
        .find_map(|(host, is)| Some((sign.strip_suffix(host)?, *is)));
    match found {
        Some((sign, is)) => is.then_some(sign),
        None => Some(sign),
    }
}

/// The minor number of this host's Xen 4, as Linux reports it; 0 where it does not.
fn minor() -> u32 {
    let version = std::fs::read_to_string("/sys/hypervisor/version/minor");
    version
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn matches(got: &str, expect: &str) -> bool {
    expect
        .strip_suffix("...")
        .map_or(got == expect, |start| got.starts_with(start))
}

/// `/r`, `/g`, `@G` and `{x*9}` written out.
fn expand(text: &str, guest: u16) -> String {
    let home = format!("/local/domain/{guest}/data/rules");
    let text = text
        .replace("/r/", &format!("{FOLDER}/"))
        .replace("/r|", &format!("{FOLDER}|"))
        .replace("/g/", &format!("{home}/"))
        .replace("/g|", &format!("{home}|"))
        .replace("@G", &guest.to_string());
    repeats(&text)
}

fn repeats(text: &str) -> String {
    let parts = text.split_once('{').and_then(|(before, rest)| {
        let (inside, after) = rest.split_once('}')?;
        let (what, count) = inside.split_once('*')?;
        Some((before, what.repeat(count.parse().ok()?), after))
    });
    match parts {
        Some((before, middle, after)) => format!("{before}{middle}{}", repeats(after)),
        None => text.to_owned(),
    }
}

/// The daemon's word for the kernel's.
fn error_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::E2BIG => "E2BIG",
        libc::EACCES => "EACCES",
        libc::EEXIST => "EEXIST",
        libc::EINVAL => "EINVAL",
        libc::ENOENT => "ENOENT",
        libc::ENOMEM => "ENOMEM",
        libc::ENOSPC => "ENOSPC",
        libc::EPERM => "EPERM",
        _ => return None,
    })
}

impl Conn {
    fn new(end: &End, of_guest: bool) -> Result<Self, String> {
        let wire = end.wire().map_err(|error| format!("connecting: {error}"))?;
        Ok(Self {
            wire,
            decoder: Decoder::new(),
            arrived: VecDeque::new(),
            events: VecDeque::new(),
            of_guest,
            next_id: 1,
        })
    }

    fn send(&mut self, text: &str, ids: &BTreeMap<String, u32>) -> Result<(), String> {
        let (kind, payload) = text.split_once(' ').unwrap_or((text, ""));
        let (kind, tx) = kind.split_once('@').unwrap_or((kind, ""));
        let kind = match kind.parse() {
            Ok(number) => MsgType(number),
            Err(_) => (0..64)
                .map(MsgType)
                .find(|known| known.name() == Some(kind))
                .ok_or_else(|| format!("no message type {kind}"))?,
        };
        let tx = tx
            .parse()
            .ok()
            .or_else(|| ids.get(tx).copied())
            .unwrap_or(0);
        let payload = payload.replace('|', "\0");
        let bytes = encode(kind, self.next_id, tx, &[payload.as_bytes()])
            .map_err(|error| error.to_string())?;
        self.next_id += 1;
        match self.wire.send(&bytes) {
            Ok(()) => Ok(()),
            Err(error) => match error.errno.and_then(error_name) {
                Some(name) if self.of_guest && kind == MsgType::WATCH => {
                    self.arrived.push_back(format!("ERROR {name}|"));
                    Ok(())
                }
                _ => Err(format!("sending {text}: {error}")),
            },
        }
    }

    /// The next message as a script writes it; of a guest's, the next that is no event.
    fn next(&mut self) -> Result<String, String> {
        while self.arrived.is_empty() {
            if !self.receive()? {
                return Ok("closed".to_owned());
            }
        }
        Ok(self.arrived.pop_front().unwrap_or_default())
    }

    /// The next event.
    fn event(&mut self) -> Result<String, String> {
        while self.events.is_empty() {
            if !self.receive()? {
                return Ok("closed".to_owned());
            }
        }
        Ok(self.events.pop_front().unwrap_or_default())
    }

    /// Takes what comes next. `false`: the connection was closed.
    fn receive(&mut self) -> Result<bool, String> {
        let bytes = self.wire.receive(PATIENCE);
        let bytes = bytes.map_err(|error| error.to_string())?;
        let mut input = bytes.as_slice();
        while let Some(m) = self
            .decoder
            .next(&mut input)
            .map_err(|error| error.to_string())?
        {
            let text = String::from_utf8_lossy(&m.payload).replace('\0', "|");
            match m.kind {
                MsgType::WATCH_EVENT if self.of_guest => {
                    self.events.push_back(format!("EVENT {text}"));
                }
                MsgType::WATCH_EVENT => self.arrived.push_back(format!("EVENT {text}")),
                kind => self.arrived.push_back(format!("{kind} {text}")),
            }
        }
        Ok(!bytes.is_empty())
    }

    /// Sends one request after the other until one is refused as it should be; what came instead
    /// otherwise.
    fn until_refused(
        &mut self,
        line: &str,
        ids: &BTreeMap<String, u32>,
    ) -> Result<Result<(), String>, String> {
        let parts = line.split_once(' ').and_then(|(most, rest)| {
            let (request, refusal) = rest.split_once(" => ")?;
            Some((most.parse::<u32>().ok()?, request, refusal))
        });
        let Some((most, request, refusal)) = parts else {
            return Err(format!("not a line of a script: {line}"));
        };
        let mut got = String::new();
        for n in 0..most {
            self.send(&request.replace('#', &n.to_string()), ids)?;
            got = self.next()?;
            if got.starts_with("ERROR") || got == "closed" {
                let as_said = got == refusal;
                return Ok(if as_said { Ok(()) } else { Err(got) });
            }
        }
        if refusal == "..." {
            return Ok(Ok(()));
        }
        Ok(Err(format!("{most} times {got}")))
    }

    /// Collects all that was sent to this connection before now.
    fn sync(&mut self) -> Result<(), String> {
        const MARK: &str = "GET_DOMAIN_PATH /local/domain/4711|";
        self.send("GET_DOMAIN_PATH 4711|", &BTreeMap::new())?;
        let mut before = VecDeque::new();
        loop {
            match self.next()? {
                mark if mark == MARK => break,
                other if other == "closed" => return Err("the connection was closed".to_owned()),
                other => before.push_back(other),
            }
        }
        self.arrived = before;
        Ok(())
    }

    fn clean(&mut self, guest: Option<&End>) -> Result<(), String> {
        let mut folders = vec![FOLDER.to_owned()];
        folders.extend(guest.map(|guest| format!("/local/domain/{}/data/rules", guest.id)));
        for folder in folders {
            self.send(&format!("RM {folder}|"), &BTreeMap::new())?;
            match self.next()?.as_str() {
                "RM OK|" => {}
                other => return Err(format!("cleaning up {folder}: {other}")),
            }
        }
        Ok(())
    }
}
