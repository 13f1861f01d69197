//! The links between the tree's documents: each leads to a file that is there, and a link with a
//! fragment to a heading of that file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, ensure};
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use crate::tidy;

/// A document's links and headings.
#[derive(Debug, Default, PartialEq, Eq)]
struct Document {
    /// The links to files, as they are written.
    links: Vec<String>,
    /// The fragments that lead to the headings.
    headings: BTreeSet<String>,
}

/// Fails, naming each link that leads nowhere.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut documents = BTreeMap::new();
    tidy::each_file(root, ".md", &mut |path, text| {
        documents.insert(path.to_owned(), read(text));
    })?;
    let mut broken = Vec::new();
    for (path, document) in &documents {
        let leads = |link: &&String| leads(path, link, &documents);
        for link in document.links.iter().filter(|link| !leads(link)) {
            let path = path.strip_prefix(root).unwrap_or(path);
            broken.push(format!("{}: {link}", path.display()));
        }
    }
    ensure!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    Ok(())
}

/// Returns whether a link of the document at `path` leads to a file, and to a heading of it.
fn leads(path: &Path, link: &str, documents: &BTreeMap<PathBuf, Document>) -> bool {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => path.to_owned(),
        file => beside(path, file),
    };
    match documents.get(&target) {
        Some(document) => heading.is_empty() || document.headings.contains(heading),
        None => target.exists(),
    }
}

/// Returns the path that `file` is relative to the document at `path`.
fn beside(path: &Path, file: &str) -> PathBuf {
    let mut target = path.parent().unwrap_or(path).to_owned();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => drop(target.pop()),
            part => target.push(part),
        }
    }
    target
}

/// Finds a document's links to files, and its headings.
fn read(text: &str) -> Document {
    let mut document = Document::default();
    let mut heading = None;
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. })
                if !dest_url.contains(':') =>
            {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                document
                    .headings
                    .extend(heading.take().as_deref().map(fragment));
            }
            _ => {}
        }
    }
    document
}

/// Returns the fragment that leads to a heading, as code forges make it.
fn fragment(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter(|c| kept(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_and_headings_are_read() {
        let text = "# A `doc(alias)`, and more\n[a](b.md#c) ![d](e.png) <https://f>\n\n\
                    ```\n# no heading\n[g](h)\n```\n[i]\n\n[i]: j.md\n[k](mailto:l)\n";
        let expected = Document {
            links: ["b.md#c", "e.png", "j.md"].map(String::from).into(),
            headings: BTreeSet::from(["a-docalias-and-more".to_owned()]),
        };
        assert_eq!(read(text), expected);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("docs")).unwrap();
        fs::write(
            root.join("docs/a.md"),
            "# One two\n[up](../README.md#top)\n",
        )
        .unwrap();
        let good = "# Top\n[a](docs/a.md) [b](docs/a.md#one-two) [c](docs) [d](#top)\n";
        fs::write(root.join("README.md"), good).unwrap();
        check(root).unwrap();
        for bad in ["docs/b.md", "docs/a.md#three", "#bottom", "../README.md"] {
            fs::write(root.join("README.md"), format!("{good}[e]({bad})\n")).unwrap();
            let expected = format!("broken links:\nREADME.md: {bad}");
            assert_eq!(check(root).unwrap_err().to_string(), expected);
        }
    }
}
