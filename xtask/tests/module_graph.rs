//! No crate has a circle of folders.
//!
//! The nodes of a graph are the modules of one parent: at the top the files and folders of `src/`,
//! below them the files and folders of each folder. A path `crate::a::b`, `super::a::b` or
//! `self::a::b` in module `x` is an edge from `x` to `a`; a re-export is followed to the module
//! that it names. Tests (`#[cfg(test)]`) and paths to a parent's own items do not count. Siblings
//! that reach each other are one circle; it fails if two of them or more are folders.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

type Names = Vec<String>;

/// The contents of one module.
#[derive(Debug, Default)]
struct Module {
    /// Names that `use` imports, with the paths they stand for.
    imports: BTreeMap<String, Names>,
    /// Every path it names, from the crate's root, and the file that contains it.
    paths: BTreeSet<(Names, PathBuf)>,
}

/// A crate's modules.
#[derive(Debug, Default)]
struct Modules {
    /// By their paths; the root has the empty one.
    all: BTreeMap<Names, Module>,
    /// Those with files of their own below them.
    folders: BTreeSet<Names>,
}

impl Modules {
    /// Reads a crate from its `lib.rs` or `main.rs`.
    fn load(root: &Path) -> Self {
        let mut all = Self::default();
        all.file(root, &[], root.parent().unwrap());
        all
    }

    /// Reads a module's file; `folder` is where its children are.
    fn file(&mut self, file: &Path, path: &[String], folder: &Path) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let tokens: TokenStream = text.parse().unwrap();
        self.tokens(tokens, path, file, folder);
    }

    fn tokens(&mut self, tokens: TokenStream, path: &[String], file: &Path, folder: &Path) {
        self.all.entry(path.to_vec()).or_default();
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            at += 1;
            match &rest[0] {
                TokenTree::Punct(mark) if mark.as_char() == '#' && is_outside(rest.get(1)) => {
                    at += item_length(&rest[1..]);
                }
                TokenTree::Ident(word) if word == "mod" => {
                    let Some(TokenTree::Ident(name)) = rest.get(1) else {
                        continue;
                    };
                    let name = name.to_string();
                    let below = [path, std::slice::from_ref(&name)].concat();
                    match rest.get(2) {
                        Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                            self.tokens(body.stream(), &below, file, &folder.join(&name));
                            at += 2;
                        }
                        Some(TokenTree::Punct(end)) if end.as_char() == ';' => {
                            self.folders.insert(path.to_vec());
                            let inner = folder.join(&name);
                            let plain = folder.join(format!("{name}.rs"));
                            let child = Some(plain).filter(|plain| plain.exists());
                            self.file(
                                &child.unwrap_or_else(|| inner.join("mod.rs")),
                                &below,
                                &inner,
                            );
                            at += 2;
                        }
                        _ => {}
                    }
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = rest.iter().position(|token| is_mark(Some(token), ';'));
                    let end = end.unwrap_or(rest.len());
                    for (named, stands_for) in used(&rest[1..end], Vec::new()) {
                        let Some(stands_for) = self.absolute(path, stands_for, folder) else {
                            continue;
                        };
                        let module = self.all.get_mut(path).unwrap();
                        module.imports.insert(named, stands_for.clone());
                        module.paths.insert((stands_for, file.to_owned()));
                    }
                    at += end;
                }
                TokenTree::Ident(word) if word == "crate" || word == "super" || word == "self" => {
                    let names = plain_path(rest);
                    at += (names.len() - 1) * 3;
                    if let Some(names) = self.absolute(path, names, folder) {
                        let module = self.all.get_mut(path).unwrap();
                        module.paths.insert((names, file.to_owned()));
                    }
                }
                TokenTree::Group(group) => self.tokens(group.stream(), path, file, folder),
                _ => {}
            }
        }
    }

    /// A path as written in module `path`, from the crate's root; nothing for another crate's.
    fn absolute(&self, path: &[String], mut names: Names, folder: &Path) -> Option<Names> {
        let mut base = match names.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => path.to_vec(),
            "super" => path.split_last()?.1.to_vec(),
            // A child module, named as such.
            name if folder.join(name).is_dir() || folder.join(format!("{name}.rs")).exists() => {
                names.insert(0, String::new());
                path.to_vec()
            }
            _ => return None,
        };
        for name in names.drain(1..) {
            if name == "super" {
                base.pop()?;
            } else {
                base.push(name);
            }
        }
        Some(base)
    }

    /// The module in which a path ends, with re-exports followed.
    fn module_of(&self, path: &[String], hops: usize) -> Names {
        let mut module = Vec::new();
        for (i, name) in path.iter().enumerate() {
            let below = [module.as_slice(), std::slice::from_ref(name)].concat();
            if self.all.contains_key(&below) {
                module = below;
                continue;
            }
            let import = self.all[&module].imports.get(name);
            if let Some(import) = import.filter(|import| hops > 0 && **import != path[..=i]) {
                let there = [import.as_slice(), &path[i + 1..]].concat();
                return self.module_of(&there, hops - 1);
            }
            break;
        }
        module
    }

    /// The edges between siblings, by their parent: from, to, and a file that contains the path.
    fn edges(&self) -> BTreeMap<Names, BTreeMap<(String, String), String>> {
        let mut edges: BTreeMap<Names, BTreeMap<_, _>> = BTreeMap::new();
        for (from, module) in &self.all {
            for (path, file) in &module.paths {
                let to = self.module_of(path, 8);
                let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(a), Some(b)) = (from.get(same), to.get(same)) {
                    let file = file.file_name().unwrap().to_string_lossy();
                    edges
                        .entry(from[..same].to_vec())
                        .or_default()
                        .entry((a.clone(), b.clone()))
                        .or_insert_with(|| format!("{file}: {}", path.join("::")));
                }
            }
        }
        edges
    }
}

/// Whether a token is this mark.
fn is_mark(token: Option<&TokenTree>, mark: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == mark)
}

/// Whether an attribute leaves its item to tests, or has it in another package's file.
fn is_outside(attribute: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(group)) = attribute else {
        return false;
    };
    let text: String = group.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,") || text.starts_with("path=")
}

/// The tokens of an item, up to its semicolon or its braces.
fn item_length(tokens: &[TokenTree]) -> usize {
    let end = tokens.iter().position(|token| {
        is_mark(Some(token), ';')
            || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    });
    end.map_or(tokens.len(), |end| end + 1)
}

/// Returns whether the tokens begin with `::`.
fn is_separator(tokens: &[TokenTree]) -> bool {
    is_mark(tokens.first(), ':') && is_mark(tokens.get(1), ':')
}

/// The names of a path that begins here.
fn plain_path(tokens: &[TokenTree]) -> Names {
    let mut names = vec![tokens[0].to_string()];
    let mut rest = &tokens[1..];
    while let (true, Some(TokenTree::Ident(name))) = (is_separator(rest), rest.get(2)) {
        names.push(name.to_string());
        rest = &rest[3..];
    }
    names
}

/// Every name that a `use` brings in, with its path.
fn used(tokens: &[TokenTree], mut before: Names) -> Vec<(String, Names)> {
    let mut rest = tokens;
    loop {
        match rest.first() {
            Some(TokenTree::Ident(name)) => {
                if name != "self" || before.is_empty() {
                    before.push(name.to_string());
                }
                rest = &rest[1..];
            }
            Some(TokenTree::Group(group)) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                return inner
                    .split(|token| is_mark(Some(token), ','))
                    .flat_map(|part| used(part, before.clone()))
                    .collect();
            }
            // A glob: the names it imports are unknown.
            _ => return vec![("*".to_owned(), before)],
        }
        if is_separator(rest) {
            rest = &rest[2..];
            continue;
        }
        let name = match rest {
            [TokenTree::Ident(_), TokenTree::Ident(other), ..] => other.to_string(),
            _ => before.last().cloned().unwrap_or_default(),
        };
        return vec![(name, before)];
    }
}

/// The shortest way from `from` to `to` along edges, both ends included.
fn way(edges: &BTreeMap<(String, String), String>, from: &str, to: &str) -> Option<Names> {
    let mut queue = VecDeque::from([vec![from.to_owned()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = queue.pop_front() {
        let last = way.last()?;
        for (_, next) in edges.keys().filter(|(a, _)| a == last) {
            let longer = [way.as_slice(), std::slice::from_ref(next)].concat();
            if next == to {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                queue.push_back(longer);
            }
        }
    }
    None
}

/// The sets of siblings that reach each other.
fn circles(edges: &BTreeMap<(String, String), String>) -> BTreeSet<BTreeSet<String>> {
    let names: BTreeSet<&String> = edges.keys().flat_map(|(a, b)| [a, b]).collect();
    let reach = |a: &str, b: &str| way(edges, a, b).is_some();
    names
        .iter()
        .filter(|name| reach(name, name))
        .map(|name| {
            let others = names.iter().filter(|o| reach(name, o) && reach(o, name));
            others.map(|other| (*other).clone()).collect()
        })
        .collect()
}

/// The circles of one crate, as text.
fn faults(name: &str, modules: &Modules) -> String {
    let mut text = String::new();
    for (parent, edges) in modules.edges() {
        for circle in circles(&edges) {
            let is_folder = |name: &&String| {
                let path = [parent.as_slice(), std::slice::from_ref(*name)].concat();
                modules.folders.contains(&path)
            };
            let folders: Vec<_> = circle.iter().filter(is_folder).collect();
            let [first, _, ..] = folders[..] else {
                continue;
            };
            let module = parent.join("::");
            let _ = writeln!(text, "{name} {module}: {circle:?}");
            // Through two of the folders.
            let mut way = way(&edges, first, folders[1]).unwrap();
            way.extend(
                self::way(&edges, folders[1], first)
                    .unwrap()
                    .into_iter()
                    .skip(1),
            );
            for pair in way.windows(2) {
                let place = &edges[&(pair[0].clone(), pair[1].clone())];
                let _ = writeln!(text, "    {} → {} ({place})", pair[0], pair[1]);
            }
        }
    }
    text
}

/// Every `src/lib.rs` and `src/main.rs` of a crate below a folder, with the crate's folder.
fn crates(folder: &Path, all: &mut Vec<(PathBuf, PathBuf)>) {
    if folder.join("Cargo.toml").exists() {
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| folder.join(root));
        let root = roots.into_iter().find(|root| root.exists());
        all.extend(root.map(|root| (folder.to_owned(), root)));
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "src" {
            crates(&path, all);
        }
    }
}

#[test]
fn no_crate_has_a_circle_of_folders() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut all = Vec::new();
    crates(workspace, &mut all);
    assert!(all.len() >= 12, "crates are missing: {all:?}");
    let mut text = String::new();
    for (folder, root) in all {
        let name = folder
            .strip_prefix(workspace)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        text += &faults(&name, &Modules::load(&root));
    }
    assert!(text.is_empty(), "circles of modules:\n{text}");
}

#[test]
fn a_circle_is_found_through_groups_reexports_and_parents() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    write(
        "lib.rs",
        "mod a; mod b; mod c; mod d; pub use c::Thing; pub fn own() {}",
    );
    // To `c`, by the root's re-export, from inside a macro.
    write("a.rs", "fn f() { println!(\"{}\", crate::Thing::new()); }");
    write(
        "b/mod.rs",
        "mod inner; mod leaf; pub struct B; pub use leaf::L;",
    );
    write(
        "b/inner.rs",
        "use {std::io, super::super::a::{self as other, X}}; use super::L;",
    );
    write("b/leaf.rs", "fn f() { crate::own(); super::B; }");
    write(
        "c.rs",
        "pub struct Thing; // crate::d\n#[cfg(test)] mod tests { use crate::a::Y; }",
    );
    write("d.rs", "use crate::{b::B};");
    let load = || Modules::load(&dir.path().join("lib.rs"));
    assert_eq!(faults("none", &load()), "");
    let edges = load().edges();
    let top: Vec<_> = edges[&Vec::new()]
        .keys()
        .map(|(a, b)| format!("{a}{b}"))
        .collect();
    assert_eq!(top, ["ac", "ba", "db"]);
    assert_eq!(edges[&vec!["b".to_owned()]].len(), 1);
    write("c.rs", "mod below; use crate::b as x; pub struct Thing;");
    write("c/below.rs", "");
    let text = faults("some", &load());
    let ways = "b → a (inner.rs: a)\n    a → c (a.rs: Thing::new)\n    c → b (c.rs: b)\n";
    assert_eq!(text, format!("some : {{\"a\", \"b\", \"c\"}}\n    {ways}"));
}
