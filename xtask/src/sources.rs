//! The machine's own Debian sources, converted to another suite.
//!
//! The testbed has no mirror of its own: it reads the entries that this machine's administrator
//! configured, keeps the Debian archive's and its security archive's, and puts the wanted suite's
//! code name in place of the machine's. `--mirror` replaces all of that by one address.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::release::Arch;

/// The code names Debian uses where a suite is meant; an entry with none of these is not Debian's.
const CODE_NAMES: &[&str] = &[
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// One entry of a sources list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

impl Source {
    /// The entry for `suite`, if this is a Debian archive: same place, same key, another code name.
    fn for_suite(&self, suite: &str) -> Option<Self> {
        if !self.components.iter().any(|c| c == "main") {
            return None;
        }
        let mut suites = Vec::new();
        for have in &self.suites {
            let Some(code) = CODE_NAMES.iter().find(|c| is_suite_of(have, c)) else {
                continue;
            };
            let rest = &have[code.len()..];
            // Backports would bring newer packages than the suite's own.
            if !rest.contains("backports") && !rest.contains("proposed") {
                suites.push(format!("{suite}{rest}"));
            }
        }
        suites.dedup();
        (!suites.is_empty()).then(|| Self {
            uris: self.uris.clone(),
            suites,
            components: vec!["main".to_owned()],
            signed_by: self.signed_by.clone(),
        })
    }

    /// The entry in the deb822 format, for packages of one architecture.
    fn to_deb822(&self, arch: Arch) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nArchitectures: {}\n",
            self.uris.join(" "),
            self.suites.join(" "),
            self.components.join(" "),
            arch.debian()
        );
        if let Some(key) = &self.signed_by {
            text.push_str(&format!("Signed-By: {key}\n"));
        }
        text
    }
}

/// Returns whether `have` is `code` itself or one of its companions (`-updates`, `-security`,
/// `/updates`).
fn is_suite_of(have: &str, code: &str) -> bool {
    have.strip_prefix(code)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '/']))
}

/// Returns the sources file for `suite` and `arch`: from `mirror` if given, else from the machine's
/// own entries below `etc_apt`.
pub(crate) fn for_suite(
    suite: &str,
    arch: Arch,
    mirror: Option<&str>,
    etc_apt: &Path,
) -> Result<String> {
    if let Some(mirror) = mirror {
        let source = Source {
            uris: vec![mirror.to_owned()],
            suites: vec![suite.to_owned(), format!("{suite}-updates")],
            components: vec!["main".to_owned()],
            signed_by: None,
        };
        return Ok(source.to_deb822(arch));
    }
    let mut texts = Vec::new();
    for source in read_all(etc_apt)? {
        if let Some(source) = source.for_suite(suite) {
            let text = source.to_deb822(arch);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
    }
    if texts.is_empty() {
        bail!(
            "no Debian archive among this machine's apt sources ({}); name one with --mirror URL",
            etc_apt.display()
        );
    }
    Ok(texts.join("\n"))
}

/// Every entry of `sources.list` and `sources.list.d`.
fn read_all(etc_apt: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(dir) = fs::read_dir(etc_apt.join("sources.list.d")) {
        for entry in dir {
            files.push(entry?.path());
        }
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let kind = file.extension().and_then(|e| e.to_str());
        let parse: fn(&str) -> Vec<Source> = match kind {
            Some("list") => parse_one_line,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        match fs::read_to_string(&file) {
            Ok(text) => all.extend(parse(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }
    Ok(all)
}

/// The one-line format: `deb [options] uri suite component…`.
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ") else {
            continue;
        };
        let mut rest = rest.trim_start();
        let mut signed_by = None;
        if let Some(after) = rest.strip_prefix('[') {
            let Some((options, after)) = after.split_once(']') else {
                continue;
            };
            for option in options.split_whitespace() {
                if let Some(key) = option.strip_prefix("signed-by=") {
                    signed_by = Some(key.to_owned());
                }
            }
            rest = after.trim_start();
        }
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        all.push(Source {
            uris: vec![uri],
            suites: vec![suite],
            components: words.collect(),
            signed_by,
        });
    }
    all
}

/// The deb822 format: stanzas of `Field: value`, a continued value indented.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            all.extend(source_of(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                // A lone dot stands for an empty line, as in an embedded key.
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    all
}

/// One deb822 stanza as a source, unless it is disabled or holds no binary packages.
fn source_of(fields: &[(String, String)]) -> Option<Source> {
    let get = |name: &str| {
        fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    };
    let words = |name: &str| -> Vec<String> {
        get(name)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    if get("enabled").is_some_and(|v| v.eq_ignore_ascii_case("no")) {
        return None;
    }
    words("types").iter().any(|t| t == "deb").then(|| Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: get("signed-by").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_entries_are_kept_and_turned_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        fs::write(
            dir.path().join("sources.list"),
            "# deb http://old.example/debian buster main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm main contrib # x\n\
             deb-src http://one.example/debian bookworm main\n\
             deb http://tool.example/apt tool-bookworm main\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("sources.list.d/debian.sources"),
            "Types: deb\n# a remark\nURIs: http://two.example/security\nSuites: bookworm-security\n  \
             bookworm-backports\nComponents: main\nSigned-By: /s.gpg\n\nTypes: deb\nEnabled: no\n\
             URIs: http://off.example/\nSuites: bookworm\nComponents: main\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("sources.list.d/x.list.disabled"),
            "deb http://no/ sid main\n",
        )
        .unwrap();
        let text = for_suite("trixie", Arch::Amd64, None, dir.path()).unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: http://one.example/debian\nSuites: trixie\nComponents: main\n\
             Architectures: amd64\nSigned-By: /k.gpg\n\n\
             Types: deb\nURIs: http://two.example/security\nSuites: trixie-security\n\
             Components: main\nArchitectures: amd64\nSigned-By: /s.gpg\n"
        );
    }

    #[test]
    fn without_a_debian_entry_the_error_names_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let error = for_suite("bookworm", Arch::Amd64, None, dir.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("--mirror"), "{error}");
        let mirror = Some("http://m.example/d");
        let text = for_suite("bookworm", Arch::Arm64, mirror, dir.path()).unwrap();
        assert!(text.contains("\nArchitectures: arm64\n"), "{text}");
        assert!(
            text.contains("URIs: http://m.example/d\nSuites: bookworm bookworm-updates"),
            "{text}"
        );
    }

    #[test]
    fn an_embedded_key_keeps_its_lines() {
        let text = "Types: deb\nURIs: u\nSuites: sid\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n";
        let source = &parse_deb822(text)[0];
        assert_eq!(source.signed_by.as_deref(), Some("\n -----BEGIN\n .\n abc"));
    }
}
