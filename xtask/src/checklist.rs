//! `cargo xtask release`: the checklist before a version is published, carried out.
//!
//! Each step is one line: its name, that it passed and what was seen, or FAILED with the error and
//! the next step. A failure does not end the list.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::publish::{self, LIBRARIES, VERSION};
use crate::workspace::Workspace;
use crate::{api, dist, pages, reproducible};

/// A step, and what to do if it fails.
struct Step {
    name: &'static str,
    /// Returns what was seen, in a few words.
    run: fn(&Workspace) -> Result<String>,
    next: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        name: "tree",
        run: committed,
        next: "commit or remove these files",
    },
    Step {
        name: "versions",
        run: versions,
        next: "write the one version everywhere, then build, which mends the lock files",
    },
    Step {
        name: "changelog",
        run: |workspace| changelog(&read(workspace, "CHANGELOG.md")?, VERSION),
        next: "describe the version in CHANGELOG.md",
    },
    Step {
        name: "API",
        run: api_difference,
        next: "type: cargo xtask api; then commit docs/api, or take the change back",
    },
    Step {
        name: "packages",
        run: |workspace| {
            publish::check(workspace)?;
            Ok(format!(
                "a user's crate runs on {} of them",
                LIBRARIES.len()
            ))
        },
        next: "see the compiler's message; cargo package --list -p NAME lists a package's files",
    },
    Step {
        name: "dry run",
        run: |workspace| {
            publish::dry_run(workspace)?;
            Ok(format!("cargo publish, {} libraries", LIBRARIES.len()))
        },
        next: "see cargo's message; it asks the registry, also with CARGO_NET_OFFLINE",
    },
    Step {
        name: "manual",
        run: manual,
        next: "see xtask/man",
    },
    Step {
        name: "reproducible",
        run: |workspace| {
            reproducible::check(workspace)?;
            Ok("two checkouts, the same bytes".to_owned())
        },
        next: "the checkouts stay below target/reproducible until the next run: compare them",
    },
];

/// Carries out the steps whose names contain one of `only`, or all of them.
pub(crate) fn run(workspace: &Workspace, only: &[String]) -> Result<ExitCode> {
    for part in only {
        ensure!(
            STEPS.iter().any(|step| step.name.contains(part.as_str())),
            "no step's name contains {part:?}; there are {:?}",
            STEPS.iter().map(|step| step.name).collect::<Vec<_>>()
        );
    }
    let (lines, passed) = carry_out(STEPS, workspace, only);
    println!("\nrelease {VERSION}:");
    lines.iter().for_each(|line| println!("{line}"));
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Carries out some of the steps. Returns a line for each of them, and whether none has failed.
fn carry_out(steps: &[Step], workspace: &Workspace, only: &[String]) -> (Vec<String>, bool) {
    let mut passed = true;
    let lines = steps.iter().map(|step| {
        if !only.is_empty() && !only.iter().any(|part| step.name.contains(part.as_str())) {
            return format!("{}: NOT RUN", step.name);
        }
        println!("\n== {}", step.name);
        let started = Instant::now();
        let result = (step.run)(workspace);
        passed &= result.is_ok();
        let line = line(step, &result, started.elapsed());
        println!("== {line}");
        line
    });
    (lines.collect(), passed)
}

/// Returns a step's line.
fn line(step: &Step, result: &Result<String>, took: Duration) -> String {
    let (name, seconds) = (step.name, took.as_secs_f64());
    match result {
        Ok(seen) => format!("{name}: passed in {seconds:.1} s: {seen}"),
        Err(error) => {
            let error = format!("{error:#}").replace('\n', " ");
            format!("{name}: FAILED: {error}; next: {}", step.next)
        }
    }
}

fn read(workspace: &Workspace, file: &str) -> Result<String> {
    fs::read_to_string(workspace.root().join(file)).with_context(|| file.to_owned())
}

/// Returns what git prints.
fn git(workspace: &Workspace, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(workspace.root())
        .output()
        .context("starting git")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "git {arguments:?}: {}",
        error.trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Fails if a file is not committed.
fn committed(workspace: &Workspace) -> Result<String> {
    let files = git(workspace, &["status", "--porcelain"])?;
    let files: Vec<&str> = files.lines().map(str::trim).collect();
    ensure!(files.is_empty(), "not committed: {}", files.join(", "));
    let commit = git(workspace, &["rev-parse", "--short", "HEAD"])?;
    Ok(format!("commit {}", commit.trim()))
}

/// Fails unless manifests, lock files and the Debian package's changelog have the one version.
fn versions(workspace: &Workspace) -> Result<String> {
    let root = read(workspace, "Cargo.toml")?;
    let members = members(&root)?;
    for (count, at) in versions_of(&root).enumerate() {
        let expected = if count == 0 {
            VERSION.to_owned()
        } else {
            format!("={VERSION}")
        };
        ensure!(at == expected, "Cargo.toml: {at}, not {expected}");
    }
    let mut names = Vec::new();
    for member in &members {
        let file = format!("{member}/Cargo.toml");
        let manifest = read(workspace, &file)?;
        ensure!(
            manifest.contains("\nversion.workspace = true\n"),
            "{file} has no line version.workspace = true"
        );
        names.push(package_name(&manifest).context(file)?.to_owned());
    }
    let locks = git(workspace, &["ls-files", "*Cargo.lock"])?;
    for file in locks.lines() {
        let lock = read(workspace, file)?;
        if let Some((name, version)) = strangers(&lock, &names).first() {
            bail!("{file}: {name} {version}, not {VERSION}");
        }
    }
    let debian = include_str!("../assets/deb/changelog");
    let head = debian.lines().next().unwrap_or_default();
    ensure!(
        head.contains(&format!("({VERSION})")),
        "xtask/assets/deb/changelog begins with {head:?}, not version {VERSION}"
    );
    Ok(format!(
        "{VERSION} in {} packages, {} lock files",
        names.len(),
        locks.lines().count()
    ))
}

/// Returns the folders of the workspace's packages.
pub(crate) fn members(manifest: &str) -> Result<Vec<&str>> {
    let (_, list) = manifest.split_once("members = [").context("no members")?;
    let list = list.split(']').next().unwrap_or_default();
    Ok(list.split('"').skip(1).step_by(2).collect())
}

/// Returns the name of a manifest's package.
pub(crate) fn package_name(manifest: &str) -> Result<&str> {
    let name = manifest.split("\nname = \"").nth(1);
    name.and_then(|rest| rest.split('"').next())
        .context("the manifest has no name")
}

/// Returns the workspace's own version, then those by which its packages depend on each other.
fn versions_of(manifest: &str) -> impl Iterator<Item = &str> {
    let own = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = "));
    let siblings = manifest.lines().filter(|line| line.contains("path = \""));
    let siblings = siblings.map(|line| line.split("version = ").nth(1).unwrap_or_default());
    let versions = own.into_iter().chain(siblings);
    versions.map(|rest| rest.split('"').nth(1).unwrap_or("none"))
}

/// Returns the packages of a lock file that are the workspace's and have another version.
fn strangers<'a>(lock: &'a str, names: &[String]) -> Vec<(&'a str, &'a str)> {
    let field = |text: &'a str, name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.strip_prefix(" = \"")?.strip_suffix('"')
    };
    let packages = lock.split("[[package]]\n").skip(1);
    packages
        .filter(|package| field(package, "source").is_none())
        .filter_map(|package| Some((field(package, "name")?, field(package, "version")?)))
        .filter(|(name, version)| names.iter().any(|own| own == name) && *version != VERSION)
        .collect()
}

/// Fails unless the version has a section, with an entry for each library and the program.
fn changelog(text: &str, version: &str) -> Result<String> {
    // A date may follow the version.
    let mut sections = text.split("\n## ").skip(1);
    let place = sections
        .clone()
        .position(|section| section.split_whitespace().next() == Some(version))
        .with_context(|| format!("CHANGELOG.md has no section {version}"))?;
    let section = sections.nth(place).unwrap_or_default();
    let missing: Vec<&str> = LIBRARIES
        .iter()
        .copied()
        .chain([crate::deb::NAME])
        .filter(|name| !section.contains(&format!("\n* **{name}**")))
        .collect();
    ensure!(
        missing.is_empty(),
        "nothing of {version} about {}",
        missing.join(", ")
    );
    ensure!(place == 0, "a section stands before that of {version}");
    Ok(format!("{} entries for {version}", LIBRARIES.len() + 1))
}

/// Prints the difference of the public items to those of the version before, which has a tag, and
/// fails if the listings in the tree are not those of the code.
fn api_difference(workspace: &Workspace) -> Result<String> {
    api::check(workspace)?;
    let tags = git(
        workspace,
        &["tag", "--list", "v*", "--sort=-version:refname"],
    )?;
    let own = format!("v{VERSION}");
    let Some(before) = tags.lines().find(|tag| *tag != own) else {
        return Ok("docs/api is the code's; there is no version before".to_owned());
    };
    let mut changed = 0;
    let listings = git(workspace, &["ls-files", "docs/api"])?;
    for file in listings.lines() {
        let name = Path::new(file)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        // A library that the version before had not is new as a whole.
        let old = git(workspace, &["show", &format!("{before}:{file}")]).unwrap_or_default();
        for line in api::difference(&old, &read(workspace, file)?) {
            println!("{name}: {line}");
            changed += 1;
        }
    }
    Ok(format!("{changed} items differ from {before}"))
}

/// Writes the manual pages, and fails if one has another version.
fn manual(workspace: &Workspace) -> Result<String> {
    pages::write(workspace)?;
    let mut count = 0;
    for folder in ["man", "xstore/man"] {
        for (name, page) in pages::read(&workspace.dist().join(folder))? {
            let page = String::from_utf8_lossy(&page);
            ensure!(of_this_version(&page), "{name} is not of version {VERSION}");
            count += 1;
        }
    }
    let program = dist::STUBDM_RUN;
    Ok(format!("{count} pages of {program} and xstore"))
}

/// Returns whether a page's title line has this version.
fn of_this_version(page: &str) -> bool {
    let title = page.lines().find(|line| line.starts_with(".TH "));
    title.is_some_and(|title| title.contains(VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step {
        name: "a step",
        run: |_| Ok(String::new()),
        next: "mend it",
    };

    #[test]
    fn a_step_is_one_line() {
        let took = Duration::from_millis(1_260);
        let line = |result| line(&STEP, &result, took);
        assert_eq!(line(Ok("two".to_owned())), "a step: passed in 1.3 s: two");
        let error = Err(anyhow::anyhow!("b\nc").context("a"));
        assert_eq!(line(error), "a step: FAILED: a: b c; next: mend it");
    }

    #[test]
    fn a_changelog_has_an_entry_for_each() {
        let entries = |names: &[&str]| -> String {
            names
                .iter()
                .map(|name| format!("* **{name}**: new\n"))
                .collect()
        };
        let all = [LIBRARIES, &["stubdm"]].concat();
        let good = format!("# Changes\n\n## 1.2.3\n\n{}", entries(&all));
        assert_eq!(changelog(&good, "1.2.3").unwrap(), "7 entries for 1.2.3");
        let error = |text: &str, version| changelog(text, version).unwrap_err().to_string();
        assert!(error(&good, "1.2.4").contains("no section 1.2.4"));
        let short = format!("# Changes\n\n## 1.2.3\n\n{}", entries(&all[1..]));
        assert!(error(&short, "1.2.3").ends_with("about xen-interface"));
        // Entries of the version before do not count.
        let old = good.replace("## 1.2.3", "## 1.3.0\n\n## 1.2.3");
        assert!(error(&old, "1.3.0").contains("about xen-interface, "));
        assert!(error(&good, "1.2").contains("no section 1.2"));
        let dated = good.replace("## 1.2.3", "## 1.2.3 (2026-12-01)");
        changelog(&dated, "1.2.3").unwrap();
        let newer = good.replace("## 1.2.3", "## Unreleased\n\n## 1.2.3");
        assert!(error(&newer, "1.2.3").contains("stands before"));
    }

    #[test]
    fn this_version_is_in_the_changelog() {
        changelog(include_str!("../../CHANGELOG.md"), VERSION).unwrap();
    }

    #[test]
    fn a_manifest_and_a_lock_name_versions() {
        let manifest = "members = [\n    \"a\",\n    \"b/c\",\n]\n[workspace.package]\n\
                        version = \"0.1.0\"\na = { path = \"a\", version = \"=0.1.0\" }\n\
                        b = { path = \"b/c\" }\nlibc = \"0.2\"\n";
        assert_eq!(members(manifest).unwrap(), ["a", "b/c"]);
        let versions: Vec<_> = versions_of(manifest).collect();
        assert_eq!(versions, ["0.1.0", "=0.1.0", "none"]);
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"9.9.9\"\n\n\
                    [[package]]\nname = \"b\"\nversion = \"9.9.9\"\nsource = \"registry\"\n";
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(strangers(lock, &names), [("a", "9.9.9")]);
        assert_eq!(strangers(&lock.replace("9.9.9", VERSION), &names), []);
    }

    #[test]
    fn the_tree_has_one_version() {
        let workspace = Workspace::find().unwrap();
        versions(&workspace).unwrap();
    }

    #[test]
    fn each_place_of_a_version_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(dir.path().to_owned());
        git(&workspace, &["init", "--quiet"]).unwrap();
        let write = |file: &str, text: &str| {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let root = format!(
            "members = [\n    \"a\",\n]\nversion = \"{VERSION}\"\n\
             a = {{ path = \"a\", version = \"={VERSION}\" }}\n"
        );
        let manifest = "[package]\nname = \"a\"\nversion.workspace = true\n";
        let lock = format!("[[package]]\nname = \"a\"\nversion = \"{VERSION}\"\n");
        let good = [
            ("Cargo.toml", root.as_str()),
            ("a/Cargo.toml", manifest),
            ("a/fuzz/Cargo.lock", &lock),
        ];
        good.iter().for_each(|(file, text)| write(file, text));
        assert!(committed(&workspace).is_err(), "nothing is committed");
        git(&workspace, &["add", "."]).unwrap();
        let seen = versions(&workspace).unwrap();
        assert_eq!(seen, format!("{VERSION} in 1 packages, 1 lock files"));
        let version = format!("\"{VERSION}\"");
        for (file, from, to) in [
            ("Cargo.toml", version.as_str(), "\"9.9.9\""),
            ("Cargo.toml", &format!("\"={VERSION}\""), "\"=9.9.9\""),
            ("a/Cargo.toml", ".workspace = true", " = \"9.9.9\""),
            ("a/fuzz/Cargo.lock", &version, "\"9.9.9\""),
        ] {
            let (_, text) = good.iter().find(|(name, _)| *name == file).unwrap();
            write(file, &text.replace(from, to));
            let error = versions(&workspace).unwrap_err().to_string();
            assert!(error.starts_with(file), "{error}");
            write(file, text);
        }
        versions(&workspace).unwrap();
    }

    #[test]
    fn a_step_that_fails_does_not_end_the_list() {
        let workspace = Workspace::find().unwrap();
        let steps = [
            Step {
                name: "first",
                run: |_| bail!("broken"),
                ..STEP
            },
            STEP,
        ];
        let (lines, passed) = carry_out(&steps, &workspace, &[]);
        assert!(!passed);
        assert_eq!(lines[0], "first: FAILED: broken; next: mend it");
        assert!(lines[1].starts_with("a step: passed in "), "{}", lines[1]);
        let (lines, passed) = carry_out(&steps, &workspace, &["step".to_owned()]);
        assert!(passed);
        assert_eq!(lines[0], "first: NOT RUN");
        assert!(run(&workspace, &["no such step".to_owned()]).is_err());
    }

    #[test]
    fn a_page_is_of_a_version() {
        assert!(of_this_version(&format!(
            ".ie a\n.TH x 1  \"x {VERSION}\"\n"
        )));
        assert!(!of_this_version(&format!(
            ".TH x 1  \"x 9.9.9\"\n{VERSION}\n"
        )));
        assert!(!of_this_version(VERSION));
    }
}
