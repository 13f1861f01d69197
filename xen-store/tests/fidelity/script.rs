//! Rules as scripts: requests that connections of domain 0 send, and what comes back.
//!
//! ```text
//! rule: a name for what holds
//! 1 > WRITE /r/a|value        connection 1 sends this; `|` is a NUL
//! 1 < WRITE OK|               and gets this next
//! 2 ~ EVENT /r/a|token|       connection 2 has got this meanwhile
//! 2 ~                         connection 2 has got nothing (more)
//! 1 < TRANSACTION_START $t|   remember a transaction's id as `t`
//! 1 > READ@t /r/a|            and use it
//! ```
//!
//! `/r` stands for a folder of the rule's own, `{x*9}` for nine times `x`, and `...` at the end of
//! what is expected for anything. Every connection is new for each rule.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use xen_store::wire::{Decoder, MsgType, encode};

const SCRIPTS: &str = include_str!("rules.txt");
const FOLDER: &str = "/xen-store-rules";

/// One rule of the script.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    /// With their numbers.
    lines: Vec<(usize, &'static str)>,
}

/// All rules.
pub(crate) fn rules() -> Vec<Rule> {
    parse(SCRIPTS)
}

/// The rules in a script.
pub(crate) fn parse(scripts: &'static str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let text = |line: &&str| !line.is_empty() && !line.starts_with('#');
    for (number, line) in (1..).zip(scripts.lines()).filter(|(_, line)| text(line)) {
        if let Some(name) = line.strip_prefix("rule: ") {
            rules.push(Rule {
                name,
                lines: Vec::new(),
            });
        } else if let Some(rule) = rules.last_mut() {
            rule.lines.push((number, line));
        }
    }
    rules
}

struct Conn {
    stream: UnixStream,
    decoder: Decoder,
    arrived: VecDeque<String>,
    next_id: u32,
}

/// Carries out a rule on connections made by `connect`; what it saw instead if it does not hold.
pub(crate) fn check(
    rule: &Rule,
    connect: &dyn Fn() -> io::Result<UnixStream>,
) -> Result<(), String> {
    let mut conns: BTreeMap<&str, Conn> = BTreeMap::new();
    let mut ids: BTreeMap<String, u32> = BTreeMap::new();
    let mut cleaner = Conn::new(connect).map_err(|error| error.to_string())?;
    cleaner.clean()?;
    for (number, line) in &rule.lines {
        let mut words = line.splitn(3, ' ');
        let (Some(name), Some(what)) = (words.next(), words.next()) else {
            return Err(format!("not a line of a script: {line}"));
        };
        let rest = expand(words.next().unwrap_or_default());
        if !conns.contains_key(name) {
            conns.insert(name, Conn::new(connect).map_err(|error| error.to_string())?);
        }
        let Some(conn) = conns.get_mut(name) else {
            continue;
        };
        let told = |got: &str| format!("at line {number}, `{line}`, came `{got}`");
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
                        .ok_or_else(|| told(&got))?;
                    ids.insert(name.to_owned(), id);
                } else if !matches(&got, &rest) {
                    return Err(told(&got));
                }
            }
            _ => {
                conn.sync()?;
                let got = conn.arrived.pop_front().unwrap_or_default();
                if !matches(&got, &rest) {
                    return Err(told(&got));
                }
            }
        }
    }
    for (name, conn) in &mut conns {
        if let Some(more) = conn.arrived.front() {
            return Err(format!("connection {name} also got `{more}`"));
        }
    }
    drop(conns);
    cleaner.clean()
}

fn matches(got: &str, expect: &str) -> bool {
    expect
        .strip_suffix("...")
        .map_or(got == expect, |start| got.starts_with(start))
}

/// `/r` and `{x*9}` written out.
fn expand(text: &str) -> String {
    let text = text
        .replace("/r/", &format!("{FOLDER}/"))
        .replace("/r|", &format!("{FOLDER}|"));
    let Some((before, rest)) = text.split_once('{') else {
        return text;
    };
    let Some((inside, after)) = rest.split_once('}') else {
        return text;
    };
    let Some((what, count)) = inside.split_once('*') else {
        return text;
    };
    format!(
        "{before}{}{}",
        what.repeat(count.parse().unwrap_or(0)),
        expand(after)
    )
}

impl Conn {
    fn new(connect: &dyn Fn() -> io::Result<UnixStream>) -> io::Result<Self> {
        let stream = connect()?;
        // Nothing takes this long; a rule that waits for ever says less than one that fails.
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self {
            stream,
            decoder: Decoder::new(),
            arrived: VecDeque::new(),
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
        self.stream
            .write_all(&bytes)
            .map_err(|error| error.to_string())
    }

    /// The next message as a script writes it.
    fn next(&mut self) -> Result<String, String> {
        while self.arrived.is_empty() {
            let mut buf = [0; 8192];
            let count = self
                .stream
                .read(&mut buf)
                .map_err(|error| error.to_string())?;
            if count == 0 {
                return Ok("closed".to_owned());
            }
            let mut input = &buf[..count];
            while let Some(m) = self
                .decoder
                .next(&mut input)
                .map_err(|error| error.to_string())?
            {
                let kind = match m.kind {
                    MsgType::WATCH_EVENT => "EVENT".to_owned(),
                    kind => kind.to_string(),
                };
                let text = String::from_utf8_lossy(&m.payload).replace('\0', "|");
                self.arrived.push_back(format!("{kind} {text}"));
            }
        }
        Ok(self.arrived.pop_front().unwrap_or_default())
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

    fn clean(&mut self) -> Result<(), String> {
        self.send(&format!("RM {FOLDER}|"), &BTreeMap::new())?;
        match self.next()?.as_str() {
            "RM OK|" => Ok(()),
            other => Err(format!("cleaning up: {other}")),
        }
    }
}
