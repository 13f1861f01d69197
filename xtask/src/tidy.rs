//! House rules that no lint checks: the unsafe inventory in `docs/security.md` names exactly the
//! files that allow unsafe code, and every C function that has an equivalent in the tables of
//! `docs/CRATE.md` is a `doc(alias)` there. Each test that `docs/security.md` and the tables of
//! features in `docs/xen-sys.md` and `docs/xen-store.md` name exists. No file uses a syntax newer
//! than the oldest Rust that is promised, which clippy does not check. No sentence of a comment has
//! "What" or "Who" for a subject. And no link from a document to another leads nowhere ([`links`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::links;
use crate::workspace::Workspace;

/// The attribute of a file with unsafe code. Split so that this file does not contain it.
const MARK: &str = concat!("#![allow(", "unsafe_code)]");

/// A `let` in the middle of a condition, which Rust has since 1.88.
const LET_CHAIN: &str = concat!("&", "& let ");

/// The library crates. Each has a page in `docs`, with a table of C functions.
const CRATES: &[&str] = &[
    "xen-sys",
    "xen-evtchn",
    "xen-gnttab",
    "xen-store",
    "xen-vchan",
];

/// The heading of a page's C functions, and the one of those without an equivalent.
const FROM_C: &str = "## From C";
const NOTHING: &str = "### No equivalent";

/// The heading of the faults and their tests in `docs/security.md`.
const LESSONS: &str = "## Lessons";

/// The heading of the features and their tests in `docs/xen-sys.md` and `docs/xen-store.md`.
const FEATURES: &str = "## Tests of each feature";
/// The numbers of the features in `docs/xen-sys.md`.
const FEATURE_COUNT: u32 = 40;
/// The numbers of the features in `docs/xen-store.md`.
const STORE_FEATURES: std::ops::RangeInclusive<u32> = 41..=63;

/// How the names of the C libraries begin.
const LIBRARIES: &[&str] = &[
    "xenevtchn_",
    "xengnttab_",
    "xengntshr_",
    "xenforeignmemory_",
    "xendevicemodel_",
    "xs_",
    "xencall",
    "xc_",
    "libxenvchan_",
];

/// Fails, naming the files, if the inventory and the tree differ, and if a C function leads nowhere
/// or is none.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let root = workspace.root();
    check_inventory(root)?;
    check_syntax(root)?;
    check_lessons(root)?;
    check_sentences(root)?;
    check_features(root)?;
    check_c_functions(root)?;
    links::check(root)
}

/// No sentence in a comment begins with "What" or "Who", unless it is a question.
fn check_sentences(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    each_source(root, &mut |path, text| {
        let sentences = headless(text).into_iter();
        found.extend(sentences.map(|sentence| format!("{}: {sentence}", path.display())));
    })?;
    ensure!(
        found.is_empty(),
        "sentences without a subject:\n{}",
        found.join("\n")
    );
    Ok(())
}

/// Returns the sentences of a source's comments that begin with "What" or "Who" and end with a
/// full stop, each up to the end of its line.
fn headless(text: &str) -> Vec<String> {
    let comment = |line: &str| {
        let rest = line.trim_start().strip_prefix("//")?;
        let rest = rest.strip_prefix(['/', '!']).unwrap_or(rest);
        Some(format!("{} ", rest.trim()))
    };
    // Each comment as one text, so that a sentence may begin in the middle of a line.
    let mut paragraphs = vec![String::new()];
    for line in text.lines() {
        match (comment(line), paragraphs.last_mut()) {
            (Some(words), Some(last)) if words != " " => last.push_str(&words),
            _ => paragraphs.push(String::new()),
        }
    }
    let mut found = Vec::new();
    for paragraph in &paragraphs {
        let ends = paragraph.match_indices(['.', '?']).map(|(at, _)| at);
        let mut start = 0;
        for end in ends.filter(|&end| paragraph[end + 1..].starts_with(' ')) {
            let sentence = paragraph[start..=end].trim_start();
            let begins = ["What ", "Who "].iter().any(|w| sentence.starts_with(w));
            if begins && sentence.ends_with('.') {
                found.push(sentence.to_owned());
            }
            start = end + 1;
        }
    }
    found
}

/// No file needs a Rust that is newer than `rust-version`.
fn check_syntax(root: &Path) -> Result<()> {
    let mut newer = Vec::new();
    each_source(root, &mut |path, text| {
        if text.contains(LET_CHAIN) {
            newer.push(path.display().to_string());
        }
    })?;
    ensure!(newer.is_empty(), "let chains need Rust 1.88: {newer:?}");
    Ok(())
}

/// Each C function with an equivalent is in a `doc(alias)` of a library, and no alias is of a C
/// name that does not exist.
fn check_c_functions(root: &Path) -> Result<()> {
    let mut with = String::new();
    let mut known = BTreeSet::new();
    for library in CRATES {
        let page = root.join(format!("docs/{library}.md"));
        let text = fs::read_to_string(&page).with_context(|| format!("{}", page.display()))?;
        let (_, table) = text
            .split_once(FROM_C)
            .with_context(|| format!("{}: no heading {FROM_C:?}", page.display()))?;
        with.push_str(table.split(NOTHING).next().unwrap_or_default());
        each_source(&root.join(library).join("src"), &mut |_, text| {
            known.extend(aliases(text).map(str::to_owned));
        })?;
    }
    let names: BTreeSet<&str> = with
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next())
        .flat_map(|cell| cell.split(", "))
        .map(|name| name.trim_matches('`'))
        .collect();
    let lost: Vec<_> = names
        .iter()
        .filter(|name| !known.contains(**name))
        .collect();
    ensure!(
        names.len() > 50 && lost.is_empty(),
        "C functions of docs/CRATE.md without a doc(alias): {lost:?}"
    );
    let wrong = unnamed(&with, known.iter().map(String::as_str));
    ensure!(
        wrong.is_empty(),
        "a doc(alias) of a C name that docs/CRATE.md does not have: {wrong:?}"
    );
    println!("{} C functions lead to ours", names.len());
    Ok(())
}

/// The C libraries' names among `aliases` that a text does not have, which are perhaps no C names
/// at all.
fn unnamed<'a>(text: &str, aliases: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    aliases
        .filter(|alias| LIBRARIES.iter().any(|library| alias.starts_with(library)))
        .filter(|alias| !text.contains(&format!("`{alias}`")))
        .collect()
}

fn aliases(text: &str) -> impl Iterator<Item = &str> {
    let after = text.split("doc(alias = \"").skip(1);
    after.filter_map(|rest| rest.split('"').next())
}

/// Fails, naming them, if tests that the lessons of `docs/security.md` name are in no source.
fn check_lessons(root: &Path) -> Result<()> {
    let page = root.join("docs/security.md");
    let text = fs::read_to_string(&page).with_context(|| format!("{}", page.display()))?;
    let (_, lessons) = text
        .split_once(LESSONS)
        .with_context(|| format!("{}: no heading {LESSONS:?}", page.display()))?;
    let named = tests_named(lessons);
    let mut lost: BTreeSet<&str> = named.clone();
    each_source(root, &mut |_, text| {
        let words = words(text);
        lost.retain(|name| !is_test_of(name, text, &words));
    })?;
    ensure!(
        named.len() > 100 && lost.is_empty(),
        "docs/security.md names {} tests, and these are in no source: {lost:?}",
        named.len()
    );
    println!("{} tests are named in the lessons", named.len());
    Ok(())
}

/// Fails if a feature of `docs/xen-sys.md` or `docs/xen-store.md` has no row, or a test of the
/// tables there is in no source. A test of `testing/agent` compares those on real Xen with the
/// suite.
fn check_features(root: &Path) -> Result<()> {
    type Tests = fn(&str) -> Result<BTreeSet<&str>>;
    let pages: [(_, Tests); 2] = [
        ("docs/xen-sys.md", tests_of_features),
        ("docs/xen-store.md", tests_of_store_features),
    ];
    for (name, tests) in pages {
        let page = root.join(name);
        let text = fs::read_to_string(&page).with_context(|| format!("{}", page.display()))?;
        let (_, tables) = text
            .split_once(FEATURES)
            .with_context(|| format!("{}: no heading {FEATURES:?}", page.display()))?;
        let named = tests(tables).with_context(|| format!("{}", page.display()))?;
        let mut lost = named.clone();
        lost.retain(|name| !name.contains('/'));
        each_source(root, &mut |_, text| {
            let words = words(text);
            lost.retain(|name| !is_test_of(name, text, &words));
        })?;
        ensure!(lost.is_empty(), "{name}: tests in no source: {lost:?}");
        println!("{} tests are named for features of {name}", named.len());
    }
    Ok(())
}

/// The tests in the last columns of the tables of features: one row for each number, and rows
/// without a number. Fails unless each numbered row has a test on real Xen or a reason for none.
fn tests_of_features(tables: &str) -> Result<BTreeSet<&str>> {
    let mut next = 1;
    let mut named = BTreeSet::new();
    for row in tables.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let (number, tests) = match cells[..] {
            [number, _, _, tests, ..] => (number.parse::<u32>().ok(), tests),
            [_, tests] => (None, tests),
            _ => continue,
        };
        let quoted = tests.split('`').skip(1).step_by(2);
        let quoted: BTreeSet<&str> = quoted.filter(|name| !name.starts_with('/')).collect();
        if let Some(number) = number {
            ensure!(number == next, "row {number} in the place of {next}");
            let tested = quoted.iter().any(|name| name.contains('/'));
            let reasoned = tests.starts_with("none: ") || tests.starts_with("[reason](");
            ensure!(tested != reasoned, "row {number} has no test on real Xen");
            next += 1;
        }
        named.extend(quoted);
    }
    ensure!(next == FEATURE_COUNT + 1, "there is no row {next}");
    Ok(named)
}

/// The tests in the last column of the table of the store's features, which has one row or more
/// for each number and client. Fails unless each client has a test or a reason for none.
fn tests_of_store_features(table: &str) -> Result<BTreeSet<&str>> {
    let mut missing: BTreeSet<(u32, &str)> = STORE_FEATURES
        .flat_map(|number| [(number, "blocking"), (number, "tokio")])
        .collect();
    let known = missing.clone();
    let mut named = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, client, tests] = cells[..] else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        ensure!(
            known.contains(&(number, client)),
            "a row of {number} and the client {client:?}"
        );
        if tests.starts_with("none: ") {
            missing.remove(&(number, client));
            continue;
        }
        for name in tests.split('`').skip(1).step_by(2) {
            missing.remove(&(number, client));
            named.insert(name);
        }
    }
    ensure!(missing.is_empty(), "features without a test: {missing:?}");
    Ok(named)
}

/// The names after each lesson's middle dot: backquoted, with an underscore, and no file's.
fn tests_named(lessons: &str) -> BTreeSet<&str> {
    lessons
        .split("\n* ")
        .flat_map(|lesson| lesson.split('·').skip(1))
        .flat_map(|names| names.split('`').skip(1).step_by(2))
        .filter(|name| name.contains('_') && !name.contains(['.', ' ', ':', '(']))
        .collect()
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect()
}

/// Returns whether a source with these words has the test: as a function, or by its name as a string. Of a
/// test on real Xen the part after the slash is a word, and an ellipsis is any beginning or end.
fn is_test_of(name: &str, text: &str, words: &BTreeSet<&str>) -> bool {
    let row = name.rsplit('/').next().unwrap_or(name);
    match (row.strip_suffix('…'), row.strip_prefix('…')) {
        (Some(start), _) => words.iter().any(|word| word.starts_with(start)),
        (None, Some(end)) => words.iter().any(|word| word.ends_with(end)),
        (None, None) if row != name => words.contains(row),
        (None, None) => {
            words.contains(name)
                && (text.contains(&format!("fn {name}(")) || text.contains(&format!("\"{name}\"")))
        }
    }
}

fn check_inventory(root: &Path) -> Result<()> {
    let mut found = BTreeSet::new();
    each_source(root, &mut |path, text| {
        if text.contains(MARK) {
            let path = path.strip_prefix(root).unwrap_or(path);
            found.insert(path.to_string_lossy().into_owned());
        }
    })?;
    let inventory = root.join("docs/security.md");
    let text =
        fs::read_to_string(&inventory).with_context(|| format!("{}", inventory.display()))?;
    let listed = listed(&text);
    let unlisted: Vec<_> = found.difference(&listed).collect();
    ensure!(
        unlisted.is_empty(),
        "unsafe code outside the files of docs/security.md: {unlisted:?}"
    );
    let gone: Vec<_> = listed.difference(&found).collect();
    ensure!(
        gone.is_empty(),
        "docs/security.md lists files without unsafe code: {gone:?}"
    );
    println!("{} files may hold unsafe code, all listed", found.len());
    Ok(())
}

/// The files of the inventory's table: the first cell of each row, in backquotes.
fn listed(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split('`').next())
        .filter(|name| name.ends_with(".rs"))
        .map(str::to_owned)
        .collect()
}

/// Every Rust file below a folder, with its text.
fn each_source(folder: &Path, take: &mut impl FnMut(&Path, &str)) -> Result<()> {
    each_file(folder, ".rs", take)
}

/// Every file below a folder with this end of its name, with its text.
pub(crate) fn each_file(
    folder: &Path,
    end: &str,
    take: &mut impl FnMut(&Path, &str),
) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                each_file(&path, end, take)?;
            }
        } else if name.ends_with(end) {
            take(&path, &fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_distinguished_from_prose() {
        let text =
            "`a.rs` in prose\n| file | why |\n|---|---|\n| `x/b.rs` | `c.rs` |\n| `doc.md` | |\n";
        assert_eq!(listed(text), BTreeSet::from(["x/b.rs".to_owned()]));
    }

    #[test]
    fn a_lesson_whose_test_is_gone_is_found() {
        let lessons = "\n* `ring_ref` is read → checked · `it_is_checked`,\n  `stub/one_row`, \
                       `tests/a_b.rs`\n* Nothing · `it_ends…`";
        let named = tests_named(lessons);
        assert_eq!(
            Vec::from_iter(&named),
            [&"it_ends…", &"it_is_checked", &"stub/one_row"]
        );
        let lost = |text: &str| -> Vec<&str> {
            let lost = named.iter().copied();
            lost.filter(|name| !is_test_of(name, text, &words(text)))
                .collect()
        };
        let rest = "one_row it_is_ended";
        let function = format!("fn it_is_checked() {{}} {rest}");
        assert_eq!(lost(&function), ["it_ends…"]);
        assert_eq!(
            lost(&format!("(\"it_is_checked\", it) {rest}")),
            ["it_ends…"]
        );
        // A comment about a test is none.
        let comment = format!("// as it_is_checked {rest}");
        assert_eq!(lost(&comment), ["it_ends…", "it_is_checked"]);
        let all = ["it_ends…", "it_is_checked", "stub/one_row"];
        assert_eq!(lost("fn other() {}"), all);
        assert_eq!(lost("fn it_is_checked() { one_row; it_ends_so; }"), [""; 0]);
    }

    #[test]
    fn a_feature_without_a_row_or_a_test_is_found() {
        let row = |number: u32, tests: &str| format!("| {number} | it | `X::y` | {tests} | |\n");
        let head = "| no. | feature | here | test on real Xen | 4.20 |\n|---|---|---|---|---|\n";
        let table = |tests: &[&str]| {
            let numbered = (1..).zip(tests).map(|(number, tests)| row(number, tests));
            head.to_owned() + &numbered.collect::<String>()
        };
        let mut tests = ["`real/xen`"; FEATURE_COUNT as usize];
        tests[2] = "none: no machine has it";
        let rest = "\nText.\n\n| feature | tests |\n|---|---|\n| it `z` | `a_b`, `c_d` |\n";
        let text = table(&tests) + rest;
        let named = tests_of_features(&text).unwrap();
        assert_eq!(Vec::from_iter(named), ["a_b", "c_d", "real/xen"]);
        let error = |text: &str| tests_of_features(text).unwrap_err().to_string();
        assert_eq!(error(&table(&tests[1..])), "there is no row 40");
        let twice = row(1, tests[0]) + &table(&tests);
        assert_eq!(error(&twice), "row 1 in the place of 2");
        tests[4] = "`a_unit_test`";
        assert_eq!(error(&table(&tests)), "row 5 has no test on real Xen");
    }

    #[test]
    fn a_feature_of_the_store_without_a_test_of_each_client_is_found() {
        let row = |number: u32, client: &str, tests: &str| {
            format!("| {number} | a `thing` | {client} | {tests} |\n")
        };
        let head = "| no. | feature | client | tests |\n|---|---|---|---|\n";
        let all: String = STORE_FEATURES
            .map(|number| {
                row(number, "blocking", &format!("`a_{number}`, `real/xen`"))
                    + &row(number, "tokio", &format!("`b_{number}`"))
            })
            .collect();
        let text = head.to_owned() + &all;
        let named = tests_of_store_features(&text).unwrap();
        assert_eq!(named.len(), 2 * STORE_FEATURES.count() + 1);
        assert!(named.contains("b_63") && !named.contains("thing"));
        let error = |text: &str| tests_of_store_features(text).unwrap_err().to_string();
        let without = text.replace("`b_50`", "later");
        assert_eq!(
            error(&without),
            "features without a test: {(50, \"tokio\")}"
        );
        let reasoned = text.replace("`b_50`", "none: it has no `such_thing`");
        let named = tests_of_store_features(&reasoned).unwrap();
        assert!(!named.contains("such_thing"));
        let another = text.clone() + &row(64, "tokio", "`c`");
        assert_eq!(error(&another), "a row of 64 and the client \"tokio\"");
    }

    #[test]
    fn aliases_are_found() {
        let text = "#[doc(alias = \"a_b\")]\n#[doc(alias = \"c\")] x \"d\"";
        assert_eq!(aliases(text).collect::<Vec<_>>(), ["a_b", "c"]);
    }

    #[test]
    fn an_alias_of_no_c_name_is_found() {
        let aliases = ["xs_read", "xs_reed", "EventChannels", "domid_t"];
        assert_eq!(
            unnamed("| `xs_read` | `read` |", aliases.into_iter()),
            ["xs_reed"]
        );
    }

    #[test]
    fn a_sentence_without_a_subject_is_found() {
        let text = "/// Reads. What is there\n/// is lost.\nlet x = 1; // no\n\n//! Who asks?\n\
                    // Who sleeps.\n/// A row, what it says.\n";
        assert_eq!(headless(text), ["What is there is lost.", "Who sleeps."]);
    }

    #[test]
    fn the_inventory_and_the_table_are_true() {
        check(&Workspace::find().unwrap()).unwrap();
    }
}
