//! Judges the gathered arguments and prints them, for a person or as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use stubdm_image::{PACKED_LEAST, firmware};
use stubdm_qmp::text::one_line;

use super::Gathered;
use crate::libxl::dm_argv::rewrite::{Finding, Verdict};
use crate::libxl::dm_argv::{DmArgv, mini_os};

/// The judged arguments of one guest.
#[derive(Debug)]
pub(super) struct Report<'a> {
    all: &'a Gathered,
    /// Of either protocol; empty if there is neither.
    args: &'a [Vec<u8>],
    protocol: &'static str,
    findings: Vec<Finding>,
    /// Why the guest cannot start so.
    problems: Vec<String>,
    /// Notes for a person.
    notes: Vec<String>,
}

impl<'a> Report<'a> {
    pub(super) fn of(all: &'a Gathered, exists: &dyn Fn(&str) -> bool) -> Self {
        let (args, protocol) = match (&all.linux, &all.mini_os) {
            (Ok(args), _) => (args.as_slice(), "linux"),
            (Err(_), Some(words)) => (words.as_slice(), "mini-os"),
            (Err(_), None) => (&[][..], "none"),
        };
        let mut report = Self {
            all,
            args,
            protocol,
            findings: Vec::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        };
        match &all.linux {
            Ok(args) => report.judge(args.clone(), exists),
            Err(_) if all.mini_os.is_some() => report.problems.push(mini_os::MISMATCH.to_owned()),
            Err(_) if all.stubdomain.is_none() => report.problems.push(format!(
                "domain {} has no stubdomain: its device model, if any, is a process of the host's",
                all.guest
            )),
            Err(why) => report.problems.push(why.clone()),
        }
        if all.linux.is_ok() && all.mini_os.is_some() {
            report.notes.push(
                "Mini-OS's `dmargs` string is there as well; a Linux stubdomain passes it over"
                    .to_owned(),
            );
        }
        if let (Some(stub), Some(false)) = (all.stubdomain, all.readable) {
            let line = format!("domain {stub}, the stubdomain, may not read its dm-argv");
            report.problems.push(line);
        }
        report
    }

    fn judge(&mut self, args: Vec<Vec<u8>>, exists: &dyn Fn(&str) -> bool) {
        let argv = match DmArgv::new(args) {
            Ok(argv) => argv,
            Err(error) => return self.problems.push(error.to_string()),
        };
        self.findings = argv.judge(exists);
        for finding in &self.findings {
            let Some(line) = finding.line() else { continue };
            let line = format!("argument {}: {}", finding.number, one_line(&line));
            match finding.is_refusal() {
                true => self.problems.push(line),
                false => self.notes.push(line),
            }
        }
        let named = self.findings.iter().find(|f| f.option == "-xen-domid");
        match named.and_then(|finding| finding.value.as_deref()) {
            Some(value) if value == self.all.guest.to_string() => {}
            Some(value) => self.problems.push(format!(
                "-xen-domid says {}, but the guest is domain {}",
                one_line(value),
                self.all.guest
            )),
            None => self.problems.push("there is no -xen-domid".to_owned()),
        }
        if self.all.stubdomain.is_none() {
            return;
        }
        for disk in argv.disks() {
            let there = |number: &u32| {
                disk_letters(*number).is_some_and(|l| disk == format!("/dev/xvd{l}"))
            };
            if !self.all.disks.iter().any(there) {
                self.problems.push(format!(
                    "{} is not among the stubdomain's block devices: it will wait for it and give up",
                    one_line(&disk)
                ));
            }
        }
        self.defaults(&argv);
        for model in argv.nic_models() {
            if let Some((_, rom)) = firmware::card_rom(&model)
                && !exists(&format!("/{}/{rom}", firmware::FOLDER))
            {
                self.notes.push(format!(
                    "the image has no {rom}: the network card {model} works, and no guest boots by it"
                ));
            }
        }
        let taps = argv.taps().len();
        if taps > self.all.cards {
            self.notes.push(format!(
                "{taps} emulated network cards, but the stubdomain has {} to reach a network by",
                self.all.cards
            ));
        }
    }

    /// Adds notes about xl's defaults that the configuration does not override.
    fn defaults(&mut self, argv: &DmArgv) {
        if self.all.screen {
            self.notes.push(
                "a QEMU stays in dom0 for the guest's screen: set vnc=0 where nobody looks at it"
                    .to_owned(),
            );
        }
        for number in &self.all.qdisks {
            let name = disk_letters(*number).map_or(number.to_string(), |l| format!("/dev/xvd{l}"));
            self.notes.push(format!(
                "{name} is a qdisk, for which a QEMU stays in dom0: give a raw block device in disk=[...]"
            ));
        }
        if let Some(kib) = self.all.memory.filter(|kib| *kib < PACKED_LEAST << 10) {
            self.notes.push(format!(
                "the stubdomain has {} MiB; with less than {PACKED_LEAST} one that image build makes does not start: set stubdomain_memory",
                kib >> 10
            ));
        }
        if argv.values_of("-serial").next().is_none() {
            self.notes.push(
                "there is no serial port, and the screen stays black: set serial=\"pty\" for xl console"
                    .to_owned(),
            );
        }
    }

    /// Returns whether a Linux stubdomain can start with these arguments.
    pub(super) fn usable(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn show(&self) -> String {
        let mut text = self.heading();
        for (at, arg) in self.args.iter().enumerate() {
            let _ = writeln!(text, "{:03}  {}", at + 1, quoted(arg));
        }
        if self.protocol != "linux" {
            for problem in &self.problems {
                let _ = writeln!(text, "problem: {problem}");
            }
        }
        text
    }

    pub(super) fn check(&self) -> String {
        let mut text = self.heading();
        for problem in &self.problems {
            let _ = writeln!(text, "problem: {problem}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let doubtful = |finding: &Finding| matches!(finding.verdict, Verdict::Noted(_));
        match self.findings.iter().any(doubtful) {
            _ if !self.usable() => {}
            true => text
                .push_str("a stubdomain can start with these, unless QEMU ends on what is noted\n"),
            false => text.push_str("a stubdomain can start with these\n"),
        }
        text
    }

    pub(super) fn explain(&self) -> String {
        let mut text = self.heading();
        for finding in &self.findings {
            let value = finding.value.as_deref().unwrap_or_default();
            let line = format!("{} {}", finding.option, one_line(value));
            let about = finding.about.unwrap_or("not known here: passed on");
            let _ = writeln!(text, "{:03}  {}", finding.number, line.trim_end());
            let _ = writeln!(text, "       {about}");
            if let Some(what) = fate(&finding.verdict) {
                let _ = writeln!(text, "       {}", one_line(&what));
            }
        }
        for problem in self.problems.iter().filter(|p| !p.starts_with("argument ")) {
            let _ = writeln!(text, "problem: {problem}");
        }
        for note in self.notes.iter().filter(|n| !n.starts_with("argument ")) {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }

    fn heading(&self) -> String {
        let stub = match self.all.stubdomain {
            Some(stub) => format!("stubdomain {stub}"),
            None => "no stubdomain".to_owned(),
        };
        let protocol = match self.protocol {
            "linux" => "dm-argv (Linux)",
            "mini-os" => "dmargs (Mini-OS; an argument with a space in it shows as several)",
            _ => "no device-model arguments",
        };
        let count = self.args.len();
        format!(
            "guest {}, {stub}: {protocol}, {count} arguments\n",
            self.all.guest
        )
    }

    /// The documented shape: `docs/commands.md`.
    pub(super) fn json(&self) -> String {
        let arguments: Vec<Value> = self.args.iter().map(|arg| argument(arg)).collect();
        let options: Vec<Value> = self.findings.iter().map(option).collect();
        let value = json!({
            "guest": self.all.guest.as_u16(),
            "stubdomain": self.all.stubdomain.map(|stub| stub.as_u16()),
            "vm": self.all.vm,
            "protocol": self.protocol,
            "arguments": arguments,
            "options": options,
            "problems": self.problems,
            "notes": self.notes,
            "usable": self.usable(),
        });
        stubdm_qmp::text::json(&value)
            + "
"
    }
}

/// An argument as JSON: its text, or its bytes in hexadecimal if it is none.
fn argument(arg: &[u8]) -> Value {
    match std::str::from_utf8(arg) {
        Ok(text) => json!(text),
        Err(_) => {
            let hex: String = arg.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

fn option(finding: &Finding) -> Value {
    let verdict = match &finding.verdict {
        Verdict::Kept => "kept",
        Verdict::Noted(_) => "noted",
        Verdict::Changed { .. } => "changed",
        Verdict::Dropped(_) => "dropped",
        Verdict::Refused(_) => "refused",
    };
    let (to, why) = match &finding.verdict {
        Verdict::Kept => (None, None),
        Verdict::Noted(why) | Verdict::Dropped(why) | Verdict::Refused(why) => (None, Some(why)),
        Verdict::Changed { to, why } => (Some(to), Some(why)),
    };
    json!({
        "number": finding.number,
        "option": finding.option,
        "value": finding.value,
        "verdict": verdict,
        "to": to,
        "why": why,
    })
}

fn fate(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Kept => None,
        Verdict::Noted(what) => Some(what.clone()),
        Verdict::Changed { to, why } => Some(format!("changed to {to}, for {why}")),
        Verdict::Dropped(why) => Some(format!("left out, for {why}")),
        Verdict::Refused(why) => Some(format!("impossible in a stubdomain: {why}")),
    }
}

/// The letters of the disk that Linux makes of one of Xen's numbers, `a` for the first.
/// (`docs/man/xen-vbd-interface.7`.)
fn disk_letters(number: u32) -> Option<String> {
    let index = match number {
        _ if number & (1 << 28) != 0 => (number & 0x0fff_ffff) >> 8,
        _ => match number >> 8 {
            202 | 8 => (number & 0xff) >> 4,
            3 => (number & 0xff) >> 6,
            22 => 2 + ((number & 0xff) >> 6),
            _ => return None,
        },
    };
    let letter = |n: u32| u8::try_from(n).ok().map(|n| char::from(b'a' + n));
    match index {
        0..=25 => letter(index).map(String::from),
        26..=701 => {
            let (first, second) = (letter(index / 26 - 1)?, letter(index % 26)?);
            Some(format!("{first}{second}"))
        }
        _ => None,
    }
}

/// An argument as a shell would take it, on one line.
pub(in crate::tools) fn quoted(arg: &[u8]) -> String {
    let text = String::from_utf8_lossy(arg);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
    let intact = std::str::from_utf8(arg).is_ok();
    match intact && !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false if intact && !text.contains(stubdm_qmp::text::is_active) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        false => {
            let escaped: String = arg
                .iter()
                .flat_map(|&byte| byte.escape_ascii())
                .map(char::from)
                .collect();
            format!("$'{escaped}'")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_disks_are_the_letters_linux_gives_them() {
        for (number, letters) in [
            (768, "a"),
            (832, "b"),
            (5632, "c"),
            (5696, "d"),
            (2048, "a"),
            (2080, "c"),
            (51712, "a"),
            (51744, "c"),
            (51712 + 15 * 16, "p"),
            ((1 << 28) | (26 << 8), "aa"),
            ((1 << 28) | (701 << 8), "zz"),
        ] {
            assert_eq!(disk_letters(number).as_deref(), Some(letters), "{number}");
        }
        assert_eq!(disk_letters(7 << 8), None);
        assert_eq!(disk_letters(u32::MAX), None);
    }

    #[test]
    fn an_argument_is_shown_so_that_a_shell_takes_it_for_what_it_is() {
        assert_eq!(quoted(b"-drive"), "-drive");
        assert_eq!(quoted(b""), "''");
        assert_eq!(quoted(b"a b'c"), r"'a b'\''c'");
        assert_eq!(quoted(b"a\nb\xff\\"), r"$'a\nb\xff\\'");
        assert_eq!(quoted("a\u{202e}".as_bytes()), r"$'a\xe2\x80\xae'");
    }
}
