//! The public API of each library, one item a line, kept in `docs/api/CRATE.txt`.
//!
//! The nightly rustdoc's JSON lists which items can be reached and by which path; the source shows
//! how each is declared. A change of a public API is thus a change in the tree, which the gate
//! shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::nightly;
use crate::workspace::Workspace;

/// How a machine gets the nightly toolchain.
const INSTALL: &str = "rustup toolchain install nightly --profile minimal";
/// Folders whose crates are no libraries for others.
const OUTSIDE: &[&str] = &["benches", "testing", "xtask"];
/// Traits that derive macros implement for themselves.
const INTERNAL: &[&str] = &["HasField", "HasTag", "ProjectToTag", "StructuralPartialEq"];

/// Types of which a blocking client and tokio's have one each, and the methods that the blocking
/// one has alone: those of poll loops, deadlines and a thread's wait, which are the runtime's.
const TWINS: &[(&str, &str, &[&str])] = &[
    (
        "xen_store::Store",
        "xen_store::tokio::Store",
        &[
            "cancellable",
            "connect_until",
            "process",
            "with_spin",
            "with_timeout",
        ],
    ),
    (
        "xen_store::Transaction",
        "xen_store::tokio::Transaction",
        &[],
    ),
    (
        "xen_store::TrackedReads",
        "xen_store::tokio::TrackedReads",
        &[],
    ),
    ("xen_store::Watch", "xen_store::tokio::Watch", &["poll_fd"]),
    (
        "xen_store::WatchSet",
        "xen_store::tokio::WatchSet",
        &["poll_fd"],
    ),
];

/// Writes the listings.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    let folder = folder(workspace);
    fs::create_dir_all(&folder)?;
    let listings = listings(workspace)?;
    for lag in lags(listings.values()) {
        println!("{lag}");
    }
    for (name, text) in listings {
        let file = folder.join(format!("{name}.txt"));
        fs::write(&file, &text).with_context(|| format!("{}", file.display()))?;
        println!("{}: {} items", Workspace::show(&file), text.lines().count());
    }
    Ok(())
}

/// Compares the listings in the tree with the code; without the nightly toolchain it passes, but not where
/// `CI` is set: see [`nightly::has`].
///
/// # Errors
///
/// They differ, or one of two [`TWINS`] lacks a method of the other. The lines are printed.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    if !nightly::has("rustdoc", "the public APIs were", INSTALL)? {
        return Ok(());
    }
    let mut changed = false;
    let listings = listings(workspace)?;
    let lags = lags(listings.values());
    ensure!(lags.is_empty(), "{}", lags.join("\n"));
    for (name, now) in listings {
        let file = folder(workspace).join(format!("{name}.txt"));
        let kept = fs::read_to_string(&file).unwrap_or_default();
        for line in difference(&kept, &now) {
            println!("{line}");
            changed = true;
        }
    }
    ensure!(
        !changed,
        "docs/api differs from the code; if the change is meant, type: cargo xtask api"
    );
    Ok(())
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root().join("docs/api")
}

/// The lines of either text alone, marked as a diff does.
pub(crate) fn difference(old: &str, new: &str) -> Vec<String> {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) =
        (old.lines().collect(), new.lines().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    let come = new.difference(&old).map(|line| format!("+ {line}"));
    gone.chain(come).collect()
}

/// Names each method that one of two [`TWINS`] has and the other lacks, in a sentence.
fn lags<'a>(listings: impl Iterator<Item = &'a String> + Clone) -> Vec<String> {
    let mut all = Vec::new();
    for (blocking, asynchronous, alone) in TWINS {
        let (ours, theirs) = (
            methods(listings.clone(), blocking),
            methods(listings.clone(), asynchronous),
        );
        let own = |method: &&&str| !alone.contains(method);
        let missing = ours.difference(&theirs).filter(own);
        all.extend(missing.map(|method| format!("{asynchronous} lacks {method}")));
        let missing = theirs.difference(&ours);
        all.extend(missing.map(|method| format!("{blocking} lacks {method}")));
        if ours.is_empty() {
            all.push(format!("{blocking} is in no listing"));
        }
    }
    all
}

/// Returns the names of a type's methods in the listings.
fn methods<'a>(listings: impl Iterator<Item = &'a String>, of: &str) -> BTreeSet<&'a str> {
    let method = |line: &'a str| {
        let (_, rest) = line.split_once(&format!("fn {of}::"))?;
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        Some(&rest[..end.unwrap_or(rest.len())])
    };
    listings
        .flat_map(|text| text.lines())
        .filter_map(method)
        .collect()
}

/// The listing of every library, by its name.
fn listings(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    let libraries = libraries(workspace)?;
    let target = workspace.root().join("target/api");
    let mut command =
        nightly::cargo(&["doc", "--quiet", "--locked", "--no-deps", "--all-features"]);
    for package in libraries.keys() {
        command.args(["-p", package]);
    }
    let status = command
        .arg("--lib")
        // Warnings of a newer compiler do not matter here.
        .env("RUSTFLAGS", "--cap-lints=allow")
        .env("RUSTDOCFLAGS", "-Zunstable-options --output-format json")
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(workspace.root())
        .status()
        .context("starting cargo doc")?;
    ensure!(status.success(), "rustdoc failed");
    let mut all = BTreeMap::new();
    for (package, library) in libraries {
        let file = target.join(format!("doc/{library}.json"));
        let text = fs::read(&file).with_context(|| format!("{}", file.display()))?;
        let json: Value = serde_json::from_slice(&text)?;
        let mut listing = Listing {
            index: &json["index"],
            root: workspace.root(),
            files: BTreeMap::new(),
            lines: BTreeSet::new(),
            open: Vec::new(),
        };
        listing.item(&json["root"], "", None)?;
        ensure!(
            listing.lines.len() > 1,
            "nothing is listed of {package}: rustdoc's format {} is not understood",
            json["format_version"]
        );
        all.insert(package, listing.text());
    }
    Ok(all)
}

/// Packages that are a library and no program, and the library's name.
fn libraries(workspace: &Workspace) -> Result<BTreeMap<String, String>> {
    let output = nightly::cargo(&["metadata", "--no-deps", "--locked", "--format-version", "1"])
        .current_dir(workspace.root())
        .output()
        .context("starting cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut libraries = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = Path::new(text(&package["manifest_path"])?);
        let inside = manifest.strip_prefix(workspace.root())?;
        if OUTSIDE.iter().any(|folder| inside.starts_with(folder)) {
            continue;
        }
        let targets = || package["targets"].as_array().into_iter().flatten();
        let is = |kind: &'static str| move |target: &&Value| target["kind"][0] == kind;
        // The library of a program serves its own tests.
        if let (Some(library), None) = (targets().find(is("lib")), targets().find(is("bin"))) {
            let name = text(&library["name"])?.replace('-', "_");
            libraries.insert(text(&package["name"])?.to_owned(), name);
        }
    }
    Ok(libraries)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("rustdoc or cargo left a text out")
}

/// The items of one crate.
struct Listing<'a> {
    index: &'a Value,
    root: &'a Path,
    /// Source files, by line.
    files: BTreeMap<String, Vec<String>>,
    /// Path and declaration.
    lines: BTreeSet<(String, String)>,
    /// Modules being listed: a crate may re-export a parent.
    open: Vec<&'a Value>,
}

impl<'a> Listing<'a> {
    fn text(&self) -> String {
        self.lines
            .iter()
            .map(|(_, line)| format!("{line}\n"))
            .collect()
    }

    /// Lists an item below `path`, with everything in it; `name` is what a re-export calls it.
    fn item(&mut self, id: &'a Value, path: &str, name: Option<&str>) -> Result<()> {
        let Some(item) = self.index.get(id.to_string()) else {
            return Ok(());
        };
        let Some((kind, inner)) = item["inner"]
            .as_object()
            .and_then(|inner| inner.iter().next())
        else {
            bail!("an item without a kind: {item}");
        };
        if kind == "use" {
            return self.reexport(inner, path);
        }
        let own = item["name"].as_str().unwrap_or_default();
        let name = name.unwrap_or(own);
        let path = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}::{name}")
        };
        let declared = self.declaration(item, kind)?;
        let line = match declared.find(own).filter(|_| !own.is_empty()) {
            Some(at) => format!("{}{path}{}", &declared[..at], &declared[at + own.len()..]),
            None => format!(
                "{} {path}",
                kind.replace("function", "fn").replace("module", "mod")
            ),
        };
        let non_exhaustive = item["attrs"].to_string().contains("non_exhaustive");
        let line = if non_exhaustive {
            format!("#[non_exhaustive] {line}")
        } else {
            line
        };
        let line = format!("{line}{}", self.members(inner)?);
        let traits = self.impls(inner["impls"].as_array().map_or(&[], Vec::as_slice), &path)?;
        let line = if traits.is_empty() {
            line
        } else {
            format!("{line}: {traits}")
        };
        self.lines.insert((path.clone(), line));
        if (kind == "module" && !self.open.contains(&id)) || kind == "trait" {
            self.open.push(id);
            for id in inner["items"].as_array().into_iter().flatten() {
                self.item(id, &path, None)?;
            }
            self.open.pop();
        }
        Ok(())
    }

    /// The public fields of a struct, the variants of an enum.
    fn members(&mut self, inner: &Value) -> Result<String> {
        let kind = &inner["kind"];
        let ids = [&inner["variants"], &kind["plain"]["fields"], &kind["tuple"]];
        let mut all = Vec::new();
        for id in ids.into_iter().filter_map(Value::as_array).flatten() {
            let member = &self.index[id.to_string()];
            if let Some(kind) = member["inner"]
                .as_object()
                .and_then(|inner| inner.keys().next())
            {
                all.push(self.declaration(member, kind)?);
            }
        }
        Ok(if all.is_empty() {
            String::new()
        } else {
            format!(" {{ {} }}", all.join(", "))
        })
    }

    fn reexport(&mut self, inner: &'a Value, path: &str) -> Result<()> {
        let name = text(&inner["name"])?;
        let target = &inner["id"];
        let item = self.index.get(target.to_string());
        match item {
            Some(item) if inner["is_glob"] == true => {
                let items = item["inner"]["module"]["items"].as_array();
                items
                    .into_iter()
                    .flatten()
                    .try_for_each(|id| self.item(id, path, None))
            }
            Some(_) => self.item(target, path, Some(name)),
            None => {
                let line = format!("pub use {path}::{name} = {}", text(&inner["source"])?);
                self.lines.insert((format!("{path}::{name}"), line));
                Ok(())
            }
        }
    }

    /// Lists a type's own functions and returns the traits that it has, without those of every type.
    fn impls(&mut self, ids: &'a [Value], path: &str) -> Result<String> {
        let mut traits = BTreeSet::new();
        for id in ids {
            let item = &self.index[id.to_string()];
            let inner = &item["inner"]["impl"];
            if inner.is_null() || inner["is_synthetic"] == true || !inner["blanket_impl"].is_null()
            {
                continue;
            }
            let Some(name) = inner["trait"]["path"].as_str() else {
                for id in inner["items"].as_array().into_iter().flatten() {
                    self.item(id, path, None)?;
                }
                continue;
            };
            let declared = self.declaration(item, "impl")?;
            let written = declared.split_once(" for ").map(|(written, _)| written);
            let name = written
                .and_then(|written| written.rsplit("impl ").next())
                .unwrap_or(name);
            // The last part of its path, with its arguments.
            let (path, arguments) = name.split_at(name.find('<').unwrap_or(name.len()));
            let name = path.rsplit("::").next().unwrap_or(path);
            if !INTERNAL.contains(&name) {
                traits.insert(format!("{name}{arguments}"));
            }
        }
        let traits: Vec<String> = traits.into_iter().collect();
        Ok(traits.join(", "))
    }

    /// An item's declaration in the source, on one line and without its body; empty if a macro made the item.
    fn declaration(&mut self, item: &Value, kind: &str) -> Result<String> {
        let span = &item["span"];
        let place = |end: &str, part: usize| span[end][part].as_u64().unwrap_or(0) as usize;
        let (Some(file), false) = (span["filename"].as_str(), kind == "module") else {
            return Ok(String::new());
        };
        if !self.files.contains_key(file) {
            let source =
                fs::read_to_string(self.root.join(file)).with_context(|| file.to_owned())?;
            let lines = source.lines().map(str::to_owned).collect();
            self.files.insert(file.to_owned(), lines);
        }
        let (first, last) = (place("begin", 0), place("end", 0));
        let lines = self.files[file]
            .iter()
            .take(last)
            .skip(first.saturating_sub(1));
        let mut source = String::new();
        for (i, line) in lines.enumerate() {
            let from = if i == 0 {
                place("begin", 1).saturating_sub(1)
            } else {
                0
            };
            let line = line.get(from..).unwrap_or_default().trim();
            let line = line.replace("#[from] ", "").replace("#[source] ", "");
            if !line.starts_with("//") && !line.starts_with("#[") {
                source.push_str(&line);
                source.push(' ');
            }
        }
        let starts = |words: &[&str]| words.iter().any(|word| source.starts_with(word));
        let written = match kind {
            "impl" => starts(&["impl", "unsafe impl"]),
            "variant" | "struct_field" => source.contains(item["name"].as_str().unwrap_or("\0")),
            _ => starts(&["pub ", "fn ", "const ", "type ", "unsafe ", "async "]),
        };
        Ok(if written {
            head(&source, kind)
        } else {
            String::new()
        })
    }
}

/// A declaration up to its body or value, with single spaces.
fn head(source: &str, kind: &str) -> String {
    let mut depth = 0usize;
    let end = source.char_indices().find(|(_, c)| {
        match c {
            '(' if kind == "struct" => return true,
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '{' if kind != "variant" => return depth == 0,
            ';' => return depth == 0,
            '=' if kind == "constant" || kind == "assoc_const" => return depth == 0,
            _ => {}
        }
        false
    });
    let head = &source[..end.map_or(source.len(), |(at, _)| at)];
    let words: Vec<&str> = head.split_whitespace().collect();
    let text = words.join(" ").replace("( ", "(").replace(", )", ")");
    text.trim_end_matches([',', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_declaration_ends_before_its_body() {
        let source = "pub fn f(\n  a: [u8; 4],\n  b: impl Fn() -> u8,\n) -> Result<(), E> {\n";
        let head_of = |source: &str, kind| head(source, kind);
        assert_eq!(
            head_of(source, "function"),
            "pub fn f(a: [u8; 4], b: impl Fn() -> u8) -> Result<(), E>"
        );
        assert_eq!(
            head_of("pub const A: [u8; 2] = [1, 2];", "constant"),
            "pub const A: [u8; 2]"
        );
        assert_eq!(head_of("pub struct S(u8);", "struct"), "pub struct S");
        assert_eq!(head_of("V { a: u8, }, ", "variant"), "V { a: u8, }");
    }

    #[test]
    fn what_can_be_reached_is_listed_by_the_path_it_is_reached_by() {
        let dir = tempfile::tempdir().unwrap();
        let source =
            "pub struct Inner(u8);\nimpl Clone for Inner {}\n    pub fn get(&self) -> u8 { 0 }\n";
        fs::write(dir.path().join("a.rs"), source).unwrap();
        let item = |name: &str, line: u32, from: u32, inner: Value| {
            let span = json!({"filename": "a.rs", "begin": [line, from], "end": [line, 99]});
            json!({"name": name, "span": span, "attrs": [], "inner": inner})
        };
        let index = json!({
            "0": {"name": "x", "span": null, "attrs": [], "inner": {"module": {"items": [1, 5]}}},
            "1": {"name": null, "inner": {"use": {"name": "Outer", "id": 2, "is_glob": false, "source": "b::Inner"}}},
            "2": item("Inner", 1, 1, json!({"struct": {"kind": {"tuple": [null]}, "impls": [3, 4, 7]}})),
            "3": item("", 2, 1, json!({"impl": {"trait": {"path": "Clone"}, "blanket_impl": null}})),
            "4": item("", 2, 1, json!({"impl": {"trait": null, "blanket_impl": null, "items": [6]}})),
            "5": {"name": null, "inner": {"use": {"name": "Arc", "id": 9, "is_glob": false, "source": "std::sync::Arc"}}},
            "6": item("get", 3, 5, json!({"function": {}})),
            "7": item("", 2, 1, json!({"impl": {"trait": {"path": "Send"}, "is_synthetic": true, "blanket_impl": null}})),
        });
        let mut listing = Listing {
            index: &index,
            root: dir.path(),
            files: BTreeMap::new(),
            lines: BTreeSet::new(),
            open: Vec::new(),
        };
        let root = json!(0);
        listing.item(&root, "", None).unwrap();
        let lines = "mod x\npub use x::Arc = std::sync::Arc\npub struct x::Outer: Clone\n\
            pub fn x::Outer::get(&self) -> u8\n";
        assert_eq!(listing.text(), lines);
    }

    #[test]
    fn a_method_that_one_of_two_clients_lacks_is_named() {
        let mut listing: String = TWINS
            .iter()
            .map(|(blocking, asynchronous, alone)| {
                let alone = alone.first().unwrap_or(&"both");
                format!("pub fn {blocking}::{alone}(&self)\nfn {blocking}::both\npub async fn {asynchronous}::both(&self)\n")
            })
            .collect();
        assert_eq!(lags([&listing].into_iter()), Vec::<String>::new());
        listing.push_str(
            "fn xen_store::Store::walk\npub fn xen_store::tokio::Watch::try_next(&self)\n",
        );
        assert_eq!(
            lags([&listing].into_iter()),
            [
                "xen_store::tokio::Store lacks walk",
                "xen_store::Watch lacks try_next"
            ]
        );
    }

    /// The listings in the tree, so that it is seen without the nightly toolchain too.
    #[test]
    fn no_client_lacks_a_method_of_its_twin() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api");
        let listing = fs::read_to_string(folder.join("xen-store.txt")).unwrap();
        assert_eq!(lags([&listing].into_iter()), Vec::<String>::new());
    }

    #[test]
    fn a_difference_is_shown_by_line() {
        assert_eq!(difference("a\nb\n", "b\nc\n"), ["- a", "+ c"]);
    }
}
