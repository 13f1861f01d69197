//! Debian's packages without installing any: apt with a private configuration below `target/`.
//!
//! ```text
//!   the machine's sources ──▶ target/xen/apt-SUITE/  (lists, cache, an empty dpkg status)
//!                                  │ apt-cache show, apt-get install --print-uris
//!                                  ▼
//!                       names and versions, each with size and SHA-256
//!                                  │ apt-get download NAME=VERSION
//!                                  ▼
//!                            target/xen/debs/*.deb
//! ```
//!
//! apt checks the signed release file, the index against it and each package against the index. The
//! machine's own apt settings (proxies and the like) stay in force; its state is neither read nor
//! written, and no root is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::Step;
use crate::release::Arch;
use crate::sources;

/// One package file, exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    /// The package's name.
    pub(crate) name: String,
    /// Its version, epoch included.
    pub(crate) version: String,
    /// The name that `apt-get download` gives its file.
    pub(crate) file: String,
    /// The file's length in bytes.
    pub(crate) size: u64,
    /// The file's SHA-256 in hexadecimal.
    pub(crate) sha256: String,
}

/// A request for packages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    /// The architecture of all of them.
    pub(crate) arch: Arch,
    /// Packages with everything they depend on.
    pub(crate) whole: &'a [&'a str],
    /// Packages with only the libraries they depend on.
    pub(crate) bare: &'a [&'a str],
    /// A meta-package of which only the first dependency is used.
    pub(crate) kernel: Option<&'a str>,
}

/// apt for one suite and architecture.
#[derive(Debug)]
pub(crate) struct Apt {
    suite: String,
    /// The name of its folder, and of the one below `debs` that it downloads to.
    name: String,
    config: PathBuf,
}

impl Apt {
    /// Lays out the private configuration for `suite` and `arch` below `state`.
    pub(crate) fn new(state: &Path, suite: &str, arch: Arch, mirror: Option<&str>) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(
                on_path(tool).is_some(),
                "{tool} is needed to fetch Debian's packages, and this machine has none \
                 (a Debian or a derivative is assumed)"
            );
        }
        let name = format!("{suite}{}", arch.suffix());
        let dir = state.join(format!("apt-{name}"));
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let text = sources::for_suite(suite, arch, mirror, Path::new("/etc/apt"))?;
        fs::write(dir.join("debian.sources"), text)?;
        let config = dir.join("apt.conf");
        let shown = dir.to_str().context("the workspace's path is not UTF-8")?;
        ensure!(
            !shown.contains('"'),
            "apt cannot be given a path with a double quote: {shown}"
        );
        let text = include_str!("../assets/apt.conf")
            .replace("@DIR@", shown)
            .replace("@ARCH@", arch.debian());
        fs::write(&config, text)?;
        Ok(Self {
            suite: suite.to_owned(),
            name,
            config,
        })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .arg("-c")
            .arg(&self.config)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Fetches the package lists.
    pub(crate) fn update(&self) -> Result<()> {
        let step = Step::begin(format!("package lists of Debian {}", self.suite));
        output(
            self.command("apt-get")
                .args(["-q", "update", "--error-on=any"]),
        )?;
        step.done();
        Ok(())
    }

    /// Names every package that a request resolves to.
    pub(crate) fn resolve(&self, request: &Request<'_>) -> Result<Vec<Package>> {
        let mut roots: BTreeSet<String> = request.whole.iter().map(|&s| s.to_owned()).collect();
        let mut bare: BTreeSet<String> = request.bare.iter().map(|&s| s.to_owned()).collect();
        if let Some(meta) = request.kernel {
            let kernel = self.depends(&[meta.to_owned()])?.into_iter().next();
            bare.insert(kernel.with_context(|| format!("{meta} depends on nothing"))?);
        }
        if !bare.is_empty() {
            let names: Vec<_> = bare.iter().cloned().collect();
            roots.extend(self.depends(&names)?.into_iter().filter(|n| is_library(n)));
        }
        let text = output(
            self.command("apt-get")
                .args(["install", "-qq", "--print-uris", "--no-install-recommends"])
                .args(&roots),
        )?;
        let mut wanted: BTreeSet<String> = bare;
        for line in text.lines() {
            let file = line.split_whitespace().nth(1).unwrap_or_default();
            let mut parts = file.split('_');
            if let (Some(name), Some(version)) = (parts.next(), parts.next()) {
                wanted.insert(format!("{name}={}", version.replace("%3a", ":")));
            }
        }
        let text = self.show(&wanted.into_iter().collect::<Vec<_>>())?;
        let mut packages: Vec<_> = stanzas(&text).map(package_of).collect::<Result<_>>()?;
        packages.sort();
        packages.dedup_by(|a, b| a.file == b.file);
        Ok(packages)
    }

    /// The control stanzas of the named packages.
    fn show(&self, names: &[String]) -> Result<String> {
        output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions"])
                .args(names),
        )
    }

    /// The names of what the given packages depend on, the first alternative of each, in order.
    fn depends(&self, names: &[String]) -> Result<Vec<String>> {
        let text = self.show(names)?;
        let mut all = Vec::new();
        for stanza in stanzas(&text) {
            for field in ["Pre-Depends", "Depends"] {
                for one in get(stanza, field).unwrap_or_default().split(',') {
                    let name = one.split([' ', '|', '(', ':']).find(|w| !w.is_empty());
                    all.extend(name.map(str::to_owned));
                }
            }
        }
        Ok(all)
    }

    /// Downloads packages into `debs`, several at a time.
    pub(crate) fn download(&self, packages: &[&Package], debs: &Path) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let incoming = debs.join(format!("incoming-{}", self.name));
        fs::create_dir_all(&incoming)?;
        let total: u64 = packages.iter().map(|p| p.size).sum();
        let mut step = Step::bytes(
            format!(
                "{} packages, {} MB",
                packages.len(),
                total.div_ceil(1_000_000)
            ),
            total,
        );
        let log = fs::File::create(debs.join("download.log"))?;
        let mut child = self
            .command("apt-get")
            .args(["-q", "download"])
            .args(packages.iter().map(|p| format!("{}={}", p.name, p.version)))
            .current_dir(&incoming)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting apt-get")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            step.at(size_of_dir(&incoming));
            thread::sleep(Duration::from_millis(100));
        };
        if !status.success() {
            step.clear();
            let log = fs::read_to_string(debs.join("download.log")).unwrap_or_default();
            bail!("apt-get download: {status}\n{}", log.trim_end());
        }
        for package in packages {
            let from = incoming.join(&package.file);
            fs::rename(&from, debs.join(&package.file))
                .with_context(|| format!("apt-get left no {}", from.display()))?;
        }
        step.done();
        Ok(())
    }
}

/// Returns whether a dependency is a shared library or what one needs.
fn is_library(name: &str) -> bool {
    name.starts_with("lib")
}

/// The stanzas of a control file.
fn stanzas(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").filter(|s| !s.trim().is_empty())
}

/// One single-line field of a stanza.
fn get<'a>(stanza: &'a str, field: &str) -> Option<&'a str> {
    stanza
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(": "))
}

/// A stanza as a package.
fn package_of(stanza: &str) -> Result<Package> {
    let field = |name: &str| {
        get(stanza, name).with_context(|| format!("a package without {name}:\n{stanza}"))
    };
    let (name, version) = (field("Package")?, field("Version")?);
    Ok(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        file: format!(
            "{name}_{}_{}.deb",
            version.replace(':', "%3a"),
            field("Architecture")?
        ),
        size: field("Size")?.parse().context("a package's size")?,
        sha256: field("SHA256")?.to_owned(),
    })
}

/// Runs a command to its end and returns its standard output; a failure shows what it printed.
fn output(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("{command:?}: {}\n{}", out.status, said.trim_end());
    }
    String::from_utf8(out.stdout).with_context(|| format!("{command:?} printed no UTF-8"))
}

/// Where a program is, by `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The bytes below one folder, as far as they can be seen.
fn size_of_dir(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_becomes_a_package_with_apts_file_name() {
        let text = "Package: a-b\nVersion: 1:2+x\nArchitecture: all\nSize: 7\nSHA256: 00ff\n\n\n";
        let packages: Vec<_> = stanzas(text).map(|s| package_of(s).unwrap()).collect();
        assert_eq!(packages.len(), 1);
        assert_eq!(packages[0].file, "a-b_1%3a2+x_all.deb");
        assert!(package_of("Package: x\nVersion: 1").is_err());
    }
}
