//! Writes the manual pages and the shells' completions of `stubdm-run`: `stubdm-man FOLDER`, with
//! the pages in `FOLDER/man` and the completions in `FOLDER/completions`.
//!
//! Not a part of `stubdm-run`, which would carry the generators to every host and into every
//! stubdomain.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The program they describe.
const PROGRAM: &str = "stubdm-run";

/// The end of every page.
const EXIT_STATUS: &str = "\
.SH \"EXIT STATUS\"
.TP
\\fB0\\fR
Done; for a check: nothing is wrong.
.TP
\\fB1\\fR
It could not be done; for a check: something is wrong.
.TP
\\fB2\\fR
The command line is wrong.
.PP
What went wrong is one line on standard error.
";

/// A file by its name.
type Named = (String, Vec<u8>);

/// Every page of section 1: one for the program, one for each command.
fn manual() -> Result<Vec<Named>> {
    let mut pages = Vec::new();
    for command in commands() {
        let man = Man::new(command).manual("stubdm").source("stubdm");
        let mut text = Vec::new();
        man.render(&mut text)?;
        text.extend_from_slice(EXIT_STATUS.as_bytes());
        pages.push((man.get_filename(), text));
    }
    Ok(pages)
}

/// The program and all its commands, each with its full name, without hidden ones.
fn commands() -> Vec<Command> {
    fn walk(command: &Command, all: &mut Vec<Command>) {
        all.push(command.clone());
        for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            walk(inner, all);
        }
    }
    let mut program = stubdm::cli::definition().disable_help_subcommand(true);
    program.build();
    let mut all = Vec::new();
    walk(&program, &mut all);
    all
}

/// One file for each shell, under the name the shell looks for.
fn completions() -> Vec<Named> {
    [
        (Shell::Bash, PROGRAM.to_owned()),
        (Shell::Zsh, format!("_{PROGRAM}")),
        (Shell::Fish, format!("{PROGRAM}.fish")),
    ]
    .map(|(shell, name)| {
        let mut text = Vec::new();
        let mut program = stubdm::cli::definition();
        clap_complete::generate(shell, &mut program, PROGRAM, &mut text);
        (name, text)
    })
    .into()
}

fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: stubdm-man FOLDER")?;
    let folder = PathBuf::from(folder);
    for (kind, files) in [("man", manual()?), ("completions", completions())] {
        let folder = folder.join(kind);
        // Pages of commands that are gone do not stay.
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        for (name, text) in &files {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("{}", file.display()))?;
        }
        println!("{}: {} files", folder.display(), files.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_option_a_sentence() {
        let pages = manual().unwrap();
        let commands = commands();
        assert_eq!(pages.len(), commands.len());
        for (command, (name, page)) in commands.iter().zip(&pages) {
            let page = String::from_utf8(page.clone()).unwrap();
            assert!(command.get_about().is_some(), "{name} says nothing");
            assert!(page.contains("EXIT STATUS") && !page.contains("panicked"));
            // As roff writes a hyphen.
            let plain = page.replace("\\-", "-");
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let help = arg.get_help().or(arg.get_long_help());
                let help = help.map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 3, "{name}: {} says nothing", arg.get_id());
                if let Some(long) = arg.get_long() {
                    assert!(
                        plain.contains(&format!("--{long}")),
                        "{name} lacks --{long}"
                    );
                }
            }
        }
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "stubdm-run.1",
            "stubdm-run-install.1",
            "stubdm-run-image-build.1",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
    }

    #[test]
    fn every_command_stands_in_the_document() {
        let text = include_str!("../../../docs/commands.md");
        for command in commands().iter().skip(1) {
            let name = command.get_bin_name().unwrap_or_default();
            // `stubdm-run dmargs show` stands as `stubdm-run dmargs show|check|explain`.
            let outer: Vec<_> = name.split(' ').take(2).collect();
            assert!(
                text.contains(&outer.join(" ")),
                "docs/commands.md lacks {name}"
            );
        }
    }

    #[test]
    fn every_shell_is_told_of_every_command() {
        for (name, text) in completions() {
            let text = String::from_utf8(text).unwrap();
            for word in ["install", "doctor", "dry-run", "build"] {
                assert!(text.contains(word), "{name} lacks {word}");
            }
        }
    }
}
