//! Finds the shared libraries that ELF files of a tree need, where the tree's own dynamic linker
//! looks for them (`ld.so(8)`; musl's `ldso/dynlink.c` for facts).
//!
//! ```text
//!   DT_RPATH of the file and its loaders, or DT_RUNPATH ─▶ folders that were named
//!     ─▶ ld.so.conf, or musl's path file ─▶ the linker's own folders ─▶ where distributions differ
//! ```
//!
//! A library that only the linker's cache leads to needs a link in the ramdisk, which has no cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::elf::{Needs, inside, needs, resolve};

/// Where distributions keep shared libraries, after all that the tree itself says.
const USUAL: &[&str] = &[
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "lib64",
    "usr/lib64",
    "lib",
    "usr/lib",
    "usr/local/lib/x86_64-linux-gnu",
    "usr/local/lib64",
    "usr/local/lib",
];

/// What `$LIB` may stand for.
const LIB: &[&str] = &["lib/x86_64-linux-gnu", "lib64", "lib"];

/// Names that musl's linker answers itself, whatever follows the dot.
const OF_MUSL: &[&str] = &[
    "libc.",
    "libpthread.",
    "librt.",
    "libm.",
    "libdl.",
    "libutil.",
    "libxnet.",
];

/// The files that others need, by path in the tree: whether the ramdisk needs a link to it where
/// any linker looks.
pub type Closure = BTreeMap<String, bool>;

/// The folders a tree's dynamic linker looks in.
#[derive(Clone, Debug)]
pub struct Linker<'a> {
    tree: &'a Path,
    /// Named by the caller, then by the tree's configuration.
    configured: Vec<String>,
}

/// A file whose needs are looked for.
#[derive(Clone, Debug)]
struct Todo {
    /// In the tree; empty for a file from elsewhere.
    place: String,
    file: PathBuf,
    /// DT_RPATH of those that lead here, expanded.
    inherited: Vec<String>,
    program: Program,
    /// Whether its own folder is not where it will be loaded from.
    linked: bool,
}

/// What a program's interpreter says.
#[derive(Clone, Debug, Default)]
struct Program {
    musl: bool,
    /// The folders compiled into it.
    folders: Vec<String>,
    /// Its own.
    own: Option<String>,
}

impl<'a> Linker<'a> {
    /// Reads a tree's configuration; `more` folders are looked in before it.
    pub fn new(tree: &'a Path, more: &[String]) -> Self {
        let mut configured: Vec<String> = more.iter().filter_map(|dir| plain(dir)).collect();
        read_conf(tree, "etc/ld.so.conf", &mut configured, 0);
        // A tree of unpacked packages has the parts, and no file that names them.
        for path in matching(tree, "etc/ld.so.conf.d/*.conf") {
            read_conf(tree, &path, &mut configured, 0);
        }
        for path in matching(tree, "etc/ld-musl-*.path") {
            let text = text(tree, &path);
            configured.extend(text.split([':', '\n']).filter_map(plain));
        }
        let mut seen = BTreeSet::new();
        configured.retain(|dir| seen.insert(dir.clone()));
        Self { tree, configured }
    }

    /// The folders where any of its programs would look, but for those a file names itself.
    pub fn folders(&self) -> Vec<String> {
        let mut all = self.configured.clone();
        for dir in USUAL {
            if !all.iter().any(|known| known == dir) {
                all.push((*dir).to_owned());
            }
        }
        all
    }

    /// What files of the tree need, and the files themselves are not in the answer.
    ///
    /// # Errors
    /// A library is missing; the error names it, who needs it, and where it was looked for.
    pub fn closure(&self, roots: &[String]) -> Result<Closure> {
        let todo: Result<Vec<_>> = roots
            .iter()
            .map(|root| Ok((root.clone(), resolve(self.tree, root)?)))
            .collect();
        self.follow(todo?)
    }

    /// The same for one file, wherever it is, that will be at `place`.
    ///
    /// # Errors
    /// As [`Linker::closure`].
    pub fn closure_of(&self, place: &str, file: &Path) -> Result<Closure> {
        self.follow(vec![(place.to_owned(), file.to_owned())])
    }

    /// The library of that name that a file loads: its path in the tree.
    ///
    /// # Errors
    /// The file cannot be read, or needs no such library, or it is missing.
    pub fn library(&self, place: &str, name: &str) -> Result<String> {
        let file = resolve(self.tree, place)?;
        let closure = self.closure_of(place, &file)?;
        let found = closure.into_keys().find(|path| {
            let own = path.rsplit('/').next().unwrap_or_default();
            own.starts_with(name)
        });
        found.with_context(|| format!("{} needs no {name}", file.display()))
    }

    fn follow(&self, roots: Vec<(String, PathBuf)>) -> Result<Closure> {
        let mut found = Closure::new();
        let mut seen = BTreeSet::new();
        let mut todo: Vec<Todo> = Vec::new();
        for (place, file) in roots {
            let program = Program::default();
            todo.push(Todo {
                place,
                file,
                inherited: Vec::new(),
                program,
                linked: false,
            });
        }
        while let Some(mut one) = todo.pop() {
            if !seen.insert((one.file.clone(), one.linked)) {
                continue;
            }
            let Some(needs) = needs(&one.file)? else {
                continue;
            };
            if let Some(path) = &needs.interpreter {
                let path = path.trim_start_matches('/').to_owned();
                one.program = self.program(&one.file, &path)?;
                found.entry(path).or_insert(false);
            }
            for (place, file, linked, inherited) in self.needed(&one, &needs)? {
                let linked = linked || one.linked;
                *found.entry(place.clone()).or_insert(false) |= linked;
                let program = one.program.clone();
                todo.push(Todo {
                    place,
                    file,
                    inherited,
                    program,
                    linked,
                });
            }
        }
        Ok(found)
    }

    fn program(&self, file: &Path, interpreter: &str) -> Result<Program> {
        let asked = || format!("{} asks for the interpreter /{interpreter}", file.display());
        let real = resolve(self.tree, interpreter).with_context(asked)?;
        let bytes = fs::read(real).with_context(asked)?;
        let name = interpreter.rsplit('/').next().unwrap_or_default();
        let musl = name.starts_with("ld-musl");
        Ok(Program {
            musl,
            folders: own_folders(&bytes, musl),
            own: interpreter.rsplit_once('/').and_then(|(dir, _)| plain(dir)),
        })
    }

    /// Each library a file needs: its place, its file, whether it needs a link, and the DT_RPATH
    /// that goes on from it.
    #[allow(clippy::type_complexity)]
    fn needed(
        &self,
        one: &Todo,
        needs: &Needs,
    ) -> Result<Vec<(String, PathBuf, bool, Vec<String>)>> {
        let origin = one.place.rsplit_once('/').map_or("", |(dir, _)| dir);
        let expand = |list: &[String]| -> Vec<String> {
            list.iter().flat_map(|dir| expanded(dir, origin)).collect()
        };
        let (rpath, runpath) = (expand(&needs.rpath), expand(&needs.runpath));
        // With a DT_RUNPATH all of DT_RPATH is out, but for musl, which makes no difference.
        let all_go_on = one.program.musl;
        let by_itself: Vec<String> = match (runpath.is_empty(), all_go_on) {
            (true, _) => rpath.iter().chain(&one.inherited).cloned().collect(),
            (false, true) => runpath.iter().chain(&one.inherited).cloned().collect(),
            (false, false) => runpath.clone(),
        };
        let goes_on: Vec<String> = match all_go_on {
            true => by_itself.clone(),
            false => rpath.iter().chain(&one.inherited).cloned().collect(),
        };
        let mut all = Vec::new();
        for library in &needs.libraries {
            let usual = USUAL.iter().map(|dir| (*dir).to_owned());
            let others = self.configured.iter().cloned();
            let others = others.chain(one.program.folders.iter().cloned());
            let others = others.chain(one.program.own.iter().cloned()).chain(usual);
            let dirs: Vec<(String, bool)> = by_itself
                .iter()
                .map(|dir| (dir.clone(), false))
                .chain(others.map(|dir| {
                    let own = one
                        .program
                        .folders
                        .iter()
                        .any(|own| merged(own) == merged(&dir));
                    (dir, !own)
                }))
                .collect();
            let found = dirs.iter().find_map(|(dir, link)| {
                let place = plain(&format!("{dir}/{library}"))?;
                let file = resolve(self.tree, &place).ok()?;
                fits(&file, needs.machine).then_some((place, file, *link))
            });
            match found {
                Some((place, file, link)) => all.push((place, file, link, goes_on.clone())),
                None if one.program.musl && OF_MUSL.iter().any(|own| library.starts_with(own)) => {}
                None => {
                    let mut looked: Vec<String> = Vec::new();
                    for (dir, _) in dirs {
                        if !looked.contains(&dir) {
                            looked.push(dir);
                        }
                    }
                    bail!(
                        "{} needs {library}, which was not found below {} in {}",
                        one.file.display(),
                        self.tree.display(),
                        looked.join(", ")
                    )
                }
            }
        }
        Ok(all)
    }
}

/// Whether a file is a 64-bit ELF file for that processor: the linker passes over others, such as
/// 32-bit libraries and linker scripts.
fn fits(file: &Path, machine: u16) -> bool {
    let mut head = [0; 20];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head.starts_with(b"\x7fELF\x02") && head[18..20] == machine.to_le_bytes()
}

/// The folders compiled into a dynamic linker: glibc has strings that end with a slash, musl one
/// with colons.
fn own_folders(interpreter: &[u8], musl: bool) -> Vec<String> {
    let words = interpreter.split(|&byte| byte == 0);
    let words = words.filter(|word| word.len() < 256 && word.starts_with(b"/"));
    let mut all = Vec::new();
    for word in words.filter_map(|word| std::str::from_utf8(word).ok()) {
        match musl {
            true if word.contains(':') => all.extend(word.split(':').filter_map(plain)),
            false if word.len() > 1 && word.ends_with('/') => all.extend(plain(word)),
            _ => {}
        }
    }
    all
}

/// Replaces `$ORIGIN`, `$LIB` and `$PLATFORM`; paths that stay relative are left out.
fn expanded(dir: &str, origin: &str) -> Vec<String> {
    let mut dir = dir.replace("${", "$").replace('}', "");
    dir = dir.replace("$ORIGIN", &format!("/{origin}"));
    dir = dir.replace("$PLATFORM", "x86_64");
    let all: Vec<String> = match dir.contains("$LIB") {
        true => LIB.iter().map(|lib| dir.replace("$LIB", lib)).collect(),
        false => vec![dir],
    };
    let absolute = all.iter().filter(|dir| dir.starts_with('/'));
    absolute.filter_map(|dir| plain(dir)).collect()
}

/// A path without leading slash, `.` and `..`; `None` for an empty one.
fn plain(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.trim().split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A folder's name in a root with a merged `/usr`.
fn merged(dir: &str) -> &str {
    dir.strip_prefix("usr/").unwrap_or(dir)
}

fn text(tree: &Path, path: &str) -> String {
    let bytes = resolve(tree, path).and_then(|file| Ok(fs::read(file)?));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Adds the folders of an `ld.so.conf`, and of those it includes.
fn read_conf(tree: &Path, path: &str, into: &mut Vec<String>, depth: usize) {
    if depth > 4 {
        return;
    }
    for line in text(tree, path).lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("include"), Some(pattern)) => {
                let pattern = match pattern.starts_with('/') {
                    true => pattern.trim_start_matches('/').to_owned(),
                    false => format!("etc/{pattern}"),
                };
                for path in matching(tree, &pattern) {
                    read_conf(tree, &path, into, depth + 1);
                }
            }
            (Some(dir), _) if dir.starts_with('/') => {
                // `DIR=TYPE` is of old.
                into.extend(plain(dir.split('=').next().unwrap_or_default()));
            }
            _ => {}
        }
    }
}

/// The files of a tree that a pattern names, with one `*` in its last part; sorted.
fn matching(tree: &Path, pattern: &str) -> Vec<String> {
    let (folder, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    let Some((start, end)) = name.split_once('*') else {
        return Vec::from([pattern.to_owned()]);
    };
    let entries = inside(tree, folder).and_then(|dir| Ok(fs::read_dir(tree.join(dir))?));
    let names = entries.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let fits = |name: &String| {
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let mut all: Vec<_> = names.filter(fits).collect();
    all.sort();
    all.iter().map(|name| format!("{folder}/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_run_path_are_replaced() {
        assert_eq!(expanded("$ORIGIN/../lib", "usr/x/bin"), ["usr/x/lib"]);
        assert_eq!(expanded("${ORIGIN}", "opt/q"), ["opt/q"]);
        assert_eq!(
            expanded("/usr/$LIB/xen", ""),
            [
                "usr/lib/x86_64-linux-gnu/xen",
                "usr/lib64/xen",
                "usr/lib/xen"
            ]
        );
        assert!(expanded("", "x").is_empty() && expanded("lib", "x").is_empty());
        assert_eq!(plain("/a/./b//../c/"), Some("a/c".into()));
        assert_eq!(plain("/../.."), None);
    }

    #[test]
    fn the_linkers_folders_are_read_from_it() {
        let glibc = b"\x7fELF\0\x09\0/lib64/\0/usr/lib64/\0/proc/self/exe\0x/\0/\0";
        assert_eq!(own_folders(glibc, false), ["lib64", "usr/lib64"]);
        let musl = b"\x7fELF\0/lib:/usr/local/lib:/usr/lib\0/etc/ld-musl-\0";
        assert_eq!(own_folders(musl, true), ["lib", "usr/local/lib", "usr/lib"]);
    }

    #[test]
    fn a_configuration_is_read_with_what_it_includes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("etc/ld.so.conf.d")).unwrap();
        let loops = "# x\ninclude ld.so.conf.d/*.conf\n/opt/one # here\ninclude /etc/ld.so.conf\n";
        fs::write(tree.join("etc/ld.so.conf"), loops).unwrap();
        fs::write(tree.join("etc/ld.so.conf.d/b.conf"), "/opt/b\n").unwrap();
        fs::write(tree.join("etc/ld.so.conf.d/a.conf"), "hwcap 1 x\n/opt/a\n").unwrap();
        fs::write(tree.join("etc/ld.so.conf.d/a.conf~"), "/opt/not\n").unwrap();
        let linker = Linker::new(tree, &["/opt/named".into()]);
        assert_eq!(
            linker.configured,
            ["opt/named", "opt/a", "opt/b", "opt/one"]
        );
    }
}
