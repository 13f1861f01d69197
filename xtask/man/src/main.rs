//! Writes the manual pages and the shells' completions of `stubdm-run` and `xstore`: `stubdm-man
//! FOLDER`. Those of `stubdm-run` are in `FOLDER/man` and `FOLDER/completions`, those of `xstore`
//! in the same folders below `FOLDER/xstore`.
//!
//! Not a part of the programs, which would carry the generators to every host and into every
//! stubdomain.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// A program, and how its pages end.
struct Program {
    name: &'static str,
    /// The title of the manual that the pages are of, and their source.
    manual: &'static str,
    definition: fn() -> Command,
    exit_status: fn() -> String,
    /// Where its files are, below the folder that is named.
    folder: &'static str,
}

const PROGRAMS: [Program; 2] = [
    Program {
        name: "stubdm-run",
        manual: "stubdm",
        definition: stubdm::cli::definition,
        exit_status: || EXIT_STATUS.to_owned(),
        folder: "",
    },
    Program {
        name: xen_store_tool::PROGRAM,
        manual: "xstore",
        definition: xen_store_tool::definition,
        exit_status: xstore_exit_status,
        folder: "xstore",
    },
];

/// The end of every page of `stubdm-run`.
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

/// The end of every page of `xstore`.
fn xstore_exit_status() -> String {
    let mut text = ".SH \"EXIT STATUS\"\n".to_owned();
    for (status, meaning) in xen_store_tool::STATUSES {
        // Writing to a string does not fail.
        let _ = writeln!(text, ".TP\n\\fB{status}\\fR\n{meaning}");
    }
    text
}

/// A file by its name.
type Named = (String, Vec<u8>);

impl Program {
    /// Every page of section 1: one for the program, one for each command.
    fn manual(&self) -> Result<Vec<Named>> {
        let mut pages = Vec::new();
        // Every package has this version.
        let source = format!("{} {}", self.manual, env!("CARGO_PKG_VERSION"));
        for command in self.commands() {
            let man = Man::new(command).manual(self.manual).source(&source);
            let mut text = Vec::new();
            man.render(&mut text)?;
            text.extend_from_slice((self.exit_status)().as_bytes());
            pages.push((man.get_filename(), text));
        }
        Ok(pages)
    }

    /// The program and all its commands, each with its full name, without hidden ones.
    fn commands(&self) -> Vec<Command> {
        fn walk(command: &Command, all: &mut Vec<Command>) {
            all.push(command.clone());
            for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
                walk(inner, all);
            }
        }
        let mut program = (self.definition)().disable_help_subcommand(true);
        program.build();
        let mut all = Vec::new();
        walk(&program, &mut all);
        all
    }

    /// One file for each shell, under the name the shell looks for.
    fn completions(&self) -> Vec<Named> {
        [
            (Shell::Bash, self.name.to_owned()),
            (Shell::Zsh, format!("_{}", self.name)),
            (Shell::Fish, format!("{}.fish", self.name)),
        ]
        .map(|(shell, name)| {
            let mut text = Vec::new();
            let mut program = (self.definition)();
            clap_complete::generate(shell, &mut program, self.name, &mut text);
            (name, text)
        })
        .into()
    }
}

fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: stubdm-man FOLDER")?;
    let folder = PathBuf::from(folder);
    for program in &PROGRAMS {
        let kinds = [
            ("man", program.manual()?),
            ("completions", program.completions()),
        ];
        for (kind, files) in kinds {
            let folder = folder.join(program.folder).join(kind);
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
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_option_a_sentence() {
        for program in &PROGRAMS {
            let pages = program.manual().unwrap();
            let commands = program.commands();
            assert_eq!(pages.len(), commands.len());
            for (command, (name, page)) in commands.iter().zip(&pages) {
                let page = String::from_utf8(page.clone()).unwrap();
                check(command, name, &page);
            }
        }
        let names = |program: &Program| -> Vec<String> {
            let pages = program.manual().unwrap().into_iter();
            pages.map(|(name, _)| name).collect()
        };
        let [stubdm, xstore] = PROGRAMS.each_ref().map(names);
        for name in [
            "stubdm-run.1",
            "stubdm-run-install.1",
            "stubdm-run-image-build.1",
        ] {
            assert!(stubdm.iter().any(|page| page == name), "{stubdm:?}");
        }
        for name in ["xstore.1", "xstore-watch.1"] {
            assert!(xstore.iter().any(|page| page == name), "{xstore:?}");
        }
    }

    fn check(command: &Command, name: &str, page: &str) {
        assert!(command.get_about().is_some(), "{name} says nothing");
        assert!(page.contains("EXIT STATUS") && !page.contains("panicked"));
        let title = page.lines().find(|line| line.starts_with(".TH "));
        assert!(title.unwrap().contains(env!("CARGO_PKG_VERSION")), "{name}");
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

    #[test]
    fn every_command_stands_in_the_document() {
        let pages = [
            (
                "docs/commands.md",
                include_str!("../../../docs/commands.md"),
            ),
            ("docs/xstore.md", include_str!("../../../docs/xstore.md")),
        ];
        for (program, (page, text)) in PROGRAMS.iter().zip(pages) {
            for command in program.commands().iter().skip(1) {
                let name = command.get_bin_name().unwrap_or_default();
                // `stubdm-run dmargs show` stands as `stubdm-run dmargs show|check|explain`.
                let outer: Vec<_> = name.split(' ').take(2).collect();
                assert!(text.contains(&outer.join(" ")), "{page} lacks {name}");
            }
        }
    }

    #[test]
    fn the_statuses_of_xstore_stand_in_its_page() {
        let page = include_str!("../../../docs/xstore.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
        let listed: Vec<u8> = rows
            .filter_map(|row| row.split(' ').next()?.parse().ok())
            .collect();
        assert_eq!(listed, xen_store_tool::STATUSES.map(|(status, _)| status));
    }

    #[test]
    fn every_shell_completes_every_command() {
        let words = [
            &["install", "doctor", "dry-run", "build"][..],
            &["watch", "export", "request-timeout", "tidy"],
        ];
        for (program, words) in PROGRAMS.iter().zip(words) {
            for (name, text) in program.completions() {
                let text = String::from_utf8(text).unwrap();
                for word in words {
                    assert!(text.contains(word), "{name} lacks {word}");
                }
            }
        }
    }
}
