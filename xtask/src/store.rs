//! The fetched packages: downloaded once, verified on every run, unpacked once.
//!
//! ```text
//!   target/xen/debs/*.deb               the packages, as downloaded
//!   target/xen/NAME/packages.lock       what was chosen: SHA-256, size and file of each
//!   target/xen/NAME/tree/               all of them unpacked into one tree
//!   target/xen/NAME/tree.stamp          the hash of the lock the tree was unpacked from
//! ```
//!
//! With the lock and the packages there, nothing is asked of the network.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::apt::{Apt, Package, Request};
use crate::progress::Step;

/// A set of packages unpacked into one tree.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The tree's root.
    pub(crate) root: PathBuf,
    /// A hash of everything in it.
    pub(crate) stamp: String,
}

/// Fetches (if need be), verifies and unpacks (if need be) one set of packages.
pub(crate) fn prepare(
    state: &Path,
    name: &str,
    suite: &str,
    mirror: Option<&str>,
    request: &Request<'_>,
) -> Result<Tree> {
    let (packages, stamp) = fetch(state, name, suite, mirror, request)?;
    unpack(state, name, &packages, stamp)
}

/// Fetches what is missing and verifies everything; gives the packages and the hash of their list.
pub(crate) fn fetch(
    state: &Path,
    name: &str,
    suite: &str,
    mirror: Option<&str>,
    request: &Request<'_>,
) -> Result<(Vec<Package>, String)> {
    let dir = state.join(name);
    let debs = state.join("debs");
    fs::create_dir_all(&dir)?;
    fs::create_dir_all(&debs)?;
    let lock_path = dir.join("packages.lock");
    let head = format!("# {suite} {request:?}");
    let locked = fs::read_to_string(&lock_path)
        .ok()
        .and_then(|text| parse_lock(&text, &head));
    let packages = match locked {
        Some(packages) => packages,
        None => {
            let apt = Apt::new(state, suite, request.arch, mirror)?;
            apt.update()?;
            let packages = apt.resolve(request)?;
            write_atomically(&lock_path, format_lock(&packages, &head).as_bytes())?;
            packages
        }
    };
    let bad: Vec<_> = packages
        .iter()
        .filter(|p| !is_intact(&debs.join(&p.file), p))
        .collect();
    if !bad.is_empty() {
        for package in &bad {
            let _ = fs::remove_file(debs.join(&package.file));
        }
        let apt = Apt::new(state, suite, request.arch, mirror)?;
        if let Err(first) = apt.download(&bad, &debs) {
            // A version on the list may have left the archive since: choose again, once.
            fs::remove_file(&lock_path)?;
            return Err(first.context(
                "a package could not be fetched; its version may be gone: run the same again",
            ));
        }
        for package in &bad {
            ensure!(
                is_intact(&debs.join(&package.file), package),
                "{} is not what the package list says (size or SHA-256)",
                package.file
            );
        }
    }
    let stamp = hex(&Sha256::digest(format_lock(&packages, &head)));
    Ok((packages, stamp))
}

/// Unpacks packages into one tree, or keeps the tree that is already theirs.
fn unpack(state: &Path, name: &str, packages: &[Package], stamp: String) -> Result<Tree> {
    let dir = state.join(name);
    let (root, mark) = (dir.join("tree"), dir.join("tree.stamp"));
    if root.is_dir() && fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
        return Ok(Tree { root, stamp });
    }
    let fresh = dir.join("tree.new");
    for old in [&fresh, &root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    let mut step = Step::items(
        format!("unpacking {} packages", packages.len()),
        packages.len() as u64,
    );
    fs::create_dir_all(&fresh)?;
    for (done, package) in packages.iter().enumerate() {
        step.note(&package.name);
        extract(&state.join("debs").join(&package.file), &fresh)
            .with_context(|| format!("unpacking {}", package.file))?;
        step.at(done as u64 + 1);
    }
    fs::rename(&fresh, &root)?;
    write_atomically(&mark, stamp.as_bytes())?;
    step.done();
    Ok(Tree { root, stamp })
}

/// Unpacks one package. Owners and special permissions are left out, which a root that is none (in
/// a container) could not give.
fn extract(deb: &Path, into: &Path) -> Result<()> {
    let mut packed = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting dpkg-deb")?;
    let stream = packed.stdout.take().context("dpkg-deb's output")?;
    let out = Command::new("tar")
        .args([
            "-x",
            "--no-same-owner",
            "--no-same-permissions",
            "--keep-directory-symlink",
            "-C",
        ])
        .arg(into)
        .stdin(stream)
        .output()
        .context("starting tar")?;
    let status = packed.wait()?;
    ensure!(status.success(), "dpkg-deb: {status}");
    ensure!(
        out.status.success(),
        "tar: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr).trim_end()
    );
    Ok(())
}

/// Returns whether a file has a package's size and hash.
fn is_intact(path: &Path, package: &Package) -> bool {
    fs::metadata(path).is_ok_and(|m| m.len() == package.size)
        && hash_file(path).is_ok_and(|hash| hash == package.sha256)
}

/// A file's SHA-256 in hexadecimal.
pub(crate) fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let n = file
            .read(&mut buffer)
            .with_context(|| format!("reading {}", path.display()))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a file so that it is there whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    fs::write(&part, bytes).with_context(|| format!("writing {}", path.display()))?;
    fs::rename(&part, path).with_context(|| format!("writing {}", path.display()))
}

fn format_lock(packages: &[Package], head: &str) -> String {
    let mut text = format!("{head}\n");
    for p in packages {
        text.push_str(&format!(
            "{} {} {} {} {}\n",
            p.sha256, p.size, p.name, p.version, p.file
        ));
    }
    text
}

/// A lock's packages, if it was written for the same request and is whole.
fn parse_lock(text: &str, head: &str) -> Option<Vec<Package>> {
    let mut lines = text.lines();
    if lines.next()? != head {
        return None;
    }
    let packages: Option<Vec<_>> = lines
        .map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let sha256 = words.next()?;
            let size = words.next()?.parse().ok()?;
            let (name, version, file) = (words.next()?, words.next()?, words.next()?);
            words.next().is_none().then_some(Package {
                name,
                version,
                file,
                size,
                sha256,
            })
        })
        .collect();
    packages.filter(|p| !p.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_back_for_the_same_request_only() {
        let one = Package {
            name: "a".into(),
            version: "1:2".into(),
            file: "a_1%3a2_all.deb".into(),
            size: 3,
            sha256: "ab".into(),
        };
        let text = format_lock(std::slice::from_ref(&one), "# head");
        assert_eq!(parse_lock(&text, "# head"), Some(vec![one]));
        assert_eq!(parse_lock(&text, "# other"), None);
        assert_eq!(parse_lock("# head\nab x a 1 f\n", "# head"), None);
        assert_eq!(parse_lock("# head\n", "# head"), None);
    }

    #[test]
    fn a_damaged_file_is_not_intact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "abc").unwrap();
        let mut package = Package {
            name: "x".into(),
            version: "1".into(),
            file: "x".into(),
            size: 3,
            sha256: hash_file(&path).unwrap(),
        };
        assert!(is_intact(&path, &package));
        fs::write(&path, "abd").unwrap();
        assert!(!is_intact(&path, &package));
        package.size = 4;
        assert!(!is_intact(&path, &package));
    }
}
