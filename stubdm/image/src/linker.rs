//! Finds the shared libraries that ELF files of a tree need, where the tree's own dynamic linker
//! looks for them (`ld.so(8)`; musl's `ldso/dynlink.c` for facts).
//!
//! ```text
//!   DT_RPATH of the file and its loaders, or DT_RUNPATH ─▶ folders the caller names
//!     ─▶ ld.so.conf, or musl's path file ─▶ the linker's own folders ─▶ where distributions differ
//! ```
//!
//! A library that only the linker's cache leads to needs a link in the ramdisk, which has no cache.
//!
//! The tree may be anything: each library is followed at most twice, each configuration is read
//! once, links and folders have limits, and only plain files are opened.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

use crate::elf::{Needs, inside, needs, plain, resolve};
use crate::read;

/// Distributions' folders of shared libraries, searched after those the tree itself names.
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

/// The values of `$LIB` in different builds of the linker.
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

/// The most folders that the files on the way to a library may name.
const FOLDERS_LIMIT: usize = 1024;

/// Needed files by path in the tree. The value is `true` if the ramdisk needs a link to the file
/// where any linker looks.
pub type Closure = BTreeMap<String, bool>;

/// The folders a tree's dynamic linker looks in.
#[derive(Clone, Debug)]
pub struct Linker<'a> {
    tree: &'a Path,
    /// The caller's folders, then those of the tree's configuration.
    configured: Vec<String>,
}

/// A file whose libraries are to be found.
#[derive(Clone, Debug)]
struct Todo {
    /// Its path in the tree.
    place: String,
    file: PathBuf,
    /// The expanded DT_RPATH of the files that lead here.
    inherited: Rc<Vec<String>>,
    program: Rc<Program>,
    /// The ramdisk's linker finds the file by a link in another folder, so its own is not searched.
    linked: bool,
}

/// A program's dynamic linker, which ELF calls its interpreter.
#[derive(Clone, Debug, Default)]
struct Program {
    musl: bool,
    /// The folders compiled into it.
    folders: Vec<String>,
    /// The folder it is in.
    own: Option<String>,
}

impl<'a> Linker<'a> {
    /// Reads a tree's configuration. The folders in `more` are searched first.
    pub fn new(tree: &'a Path, more: &[String]) -> Self {
        let mut configured: Vec<String> = more.iter().filter_map(|dir| plain(dir)).collect();
        let mut seen = BTreeSet::new();
        read_conf(tree, "etc/ld.so.conf", &mut configured, &mut seen, 0);
        // A tree of unpacked packages has the parts, and no file that names them.
        for path in matching(tree, "etc/ld.so.conf.d/*.conf") {
            read_conf(tree, &path, &mut configured, &mut seen, 0);
        }
        for path in matching(tree, "etc/ld-musl-*.path") {
            let text = text(tree, &path);
            configured.extend(text.split([':', '\n']).filter_map(plain));
        }
        let configured = unique(configured.iter());
        Self { tree, configured }
    }

    /// Returns the folders that every program of the tree searches.
    pub fn folders(&self) -> Vec<String> {
        let usual: Vec<String> = USUAL.iter().map(|dir| (*dir).to_owned()).collect();
        unique(self.configured.iter().chain(&usual))
    }

    /// Finds the libraries and interpreters of files of the tree. The files themselves are in the
    /// result only if another one needs them.
    ///
    /// # Errors
    /// A library is missing; the error names it, the file that needs it, and the folders searched.
    /// A file cannot be read, or names too many folders.
    pub fn closure(&self, roots: &[String]) -> Result<Closure> {
        let todo: Result<Vec<_>> = roots
            .iter()
            .map(|root| Ok((root.clone(), resolve(self.tree, root)?)))
            .collect();
        self.follow(todo?)
    }

    /// As [`Linker::closure`], for one file anywhere that will be at `place`.
    ///
    /// # Errors
    /// As [`Linker::closure`].
    pub fn closure_of(&self, place: &str, file: &Path) -> Result<Closure> {
        self.follow(vec![(place.to_owned(), file.to_owned())])
    }

    /// Finds the library that a file of the tree loads and whose name starts with `name`. Returns
    /// its path in the tree.
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
            todo.push(Todo {
                place,
                file,
                inherited: Rc::default(),
                program: Rc::default(),
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
                let path = plain(path).with_context(|| {
                    format!("{} asks for an empty interpreter", one.file.display())
                })?;
                one.program = Rc::new(self.program(&one.file, &path)?);
                found.entry(path).or_insert(false);
            }
            for library in self.needed(&one, &needs)? {
                *found.entry(library.place.clone()).or_insert(false) |= library.linked;
                todo.push(library);
            }
        }
        Ok(found)
    }

    fn program(&self, file: &Path, interpreter: &str) -> Result<Program> {
        let asked = || format!("{} asks for the interpreter /{interpreter}", file.display());
        let real = resolve(self.tree, interpreter).with_context(asked)?;
        let bytes = read::contents(&real).with_context(asked)?;
        let name = interpreter.rsplit('/').next().unwrap_or_default();
        let musl = name.starts_with("ld-musl");
        Ok(Program {
            musl,
            folders: own_folders(&bytes, musl),
            own: interpreter.rsplit_once('/').and_then(|(dir, _)| plain(dir)),
        })
    }

    /// Finds each library a file needs.
    fn needed(&self, one: &Todo, needs: &Needs) -> Result<Vec<Todo>> {
        let origin = one.place.rsplit_once('/').map_or("", |(dir, _)| dir);
        let expand = |list: &[String]| -> Vec<String> {
            list.iter().flat_map(|dir| expanded(dir, origin)).collect()
        };
        let (rpath, runpath) = (expand(&needs.rpath), expand(&needs.runpath));
        // With a DT_RUNPATH all of DT_RPATH is out, but for musl, which makes no difference.
        let all_go_on = one.program.musl;
        let inherited = one.inherited.iter();
        let by_itself: Vec<String> = match (runpath.is_empty(), all_go_on) {
            (true, _) => unique(rpath.iter().chain(inherited)),
            (false, true) => unique(runpath.iter().chain(inherited)),
            (false, false) => unique(runpath.iter()),
        };
        let goes_on = Rc::new(match all_go_on {
            true => by_itself.clone(),
            false => unique(rpath.iter().chain(one.inherited.iter())),
        });
        ensure!(
            by_itself.len().max(goes_on.len()) <= FOLDERS_LIMIT,
            "{} and the files that need it name more than {FOLDERS_LIMIT} folders",
            one.file.display()
        );
        let program = &one.program;
        let compiled_in: BTreeSet<&str> = program.folders.iter().map(|dir| merged(dir)).collect();
        let usual = USUAL.iter().map(|dir| (*dir).to_owned());
        let others = self.configured.iter().chain(&program.folders);
        let others = others.chain(&program.own).cloned().chain(usual);
        let dirs: Vec<(String, bool)> = by_itself
            .into_iter()
            .map(|dir| (dir, false))
            .chain(others.map(|dir| {
                let link = !compiled_in.contains(merged(&dir));
                (dir, link)
            }))
            .collect();
        let mut all = Vec::new();
        for library in unique(needs.libraries.iter()) {
            let found = dirs.iter().find_map(|(dir, link)| {
                let place = plain(&format!("{dir}/{library}"))?;
                let file = resolve(self.tree, &place).ok()?;
                fits(&file, needs.machine).then_some((place, file, *link))
            });
            match found {
                Some((place, file, link)) => all.push(Todo {
                    place,
                    file,
                    inherited: Rc::clone(&goes_on),
                    program: Rc::clone(program),
                    linked: link || one.linked,
                }),
                None if program.musl && OF_MUSL.iter().any(|own| library.starts_with(own)) => {}
                None => bail!(
                    "{} needs {library}, which was not found below {} in {}",
                    one.file.display(),
                    self.tree.display(),
                    unique(dirs.iter().map(|(dir, _)| dir)).join(", ")
                ),
            }
        }
        Ok(all)
    }
}

/// Copies strings, each once, in their order.
fn unique<'a>(all: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    all.filter(|one| seen.insert(*one)).cloned().collect()
}

/// Returns whether a file is a 64-bit ELF file for `machine`. The linker passes over others, such
/// as 32-bit libraries and linker scripts.
fn fits(file: &Path, machine: u16) -> bool {
    let head = read::head(file, 20).unwrap_or_default();
    head.starts_with(b"\x7fELF\x02") && head.get(18..20) == Some(&machine.to_le_bytes())
}

/// Returns the folders compiled into a dynamic linker: glibc has strings that end with a slash, musl
/// one with colons. A linker has few; at most [`FOLDERS_LIMIT`] are taken.
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
    let mut all = unique(all.iter());
    all.truncate(FOLDERS_LIMIT);
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

/// Returns a folder's path in a root with a merged `/usr`.
fn merged(dir: &str) -> &str {
    dir.strip_prefix("usr/").unwrap_or(dir)
}

fn text(tree: &Path, path: &str) -> String {
    let bytes = resolve(tree, path).and_then(|file| read::contents(&file));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Adds the folders of an `ld.so.conf`, and of those it includes. `seen` has the files that were
/// read, so that files that include each other are read once.
fn read_conf(
    tree: &Path,
    path: &str,
    into: &mut Vec<String>,
    seen: &mut BTreeSet<String>,
    depth: usize,
) {
    let Ok(file) = inside(tree, path) else {
        return;
    };
    if depth > 4 || !seen.insert(file) {
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
                    read_conf(tree, &path, into, seen, depth + 1);
                }
            }
            (Some(dir), _) if dir.starts_with('/') => {
                // `DIR=TYPE` is an old form.
                into.extend(plain(dir.split('=').next().unwrap_or_default()));
            }
            _ => {}
        }
    }
}

/// Returns the files of a tree that match a pattern with one `*` in its last part, sorted.
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

    #[test]
    fn configurations_that_include_each_other_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("etc/c")).unwrap();
        // Read again at each include, these would be 8^5 readings.
        for n in 0..8 {
            let text = format!("include /etc/c/*.conf\ninclude ../etc/./c/*.conf\n/opt/{n}\n");
            fs::write(tree.join(format!("etc/c/{n}.conf")), text).unwrap();
        }
        let mut folders = Vec::new();
        read_conf(tree, "etc/c/0.conf", &mut folders, &mut BTreeSet::new(), 0);
        folders.sort();
        let each: Vec<_> = (0..8).map(|n| format!("opt/{n}")).collect();
        assert_eq!(folders, each);
    }
}
