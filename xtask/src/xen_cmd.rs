//! `cargo xtask xen`: a shell, or one command, in dom0 of a fresh Xen host.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::host::{Host, Job, Options};
use crate::shell;
use crate::workspace::Workspace;

/// The requested run.
#[derive(Debug)]
pub(crate) struct Request {
    /// How the host is put together.
    pub(crate) options: Options,
    /// Whether a shell follows the command.
    pub(crate) keep: bool,
    /// How long the command may take.
    pub(crate) timeout: Duration,
    /// The command and its arguments; none for a shell alone.
    pub(crate) command: Vec<String>,
}

/// Boots, does it, and passes the command's status on.
pub(crate) fn run(workspace: &Workspace, request: &Request) -> Result<ExitCode> {
    let mut command = script(&request.command);
    if command.is_none() && !shell::is_possible() {
        let mut text = String::new();
        stdin()
            .read_to_string(&mut text)
            .context("reading a script from the standard input")?;
        ensure!(
            !text.trim().is_empty(),
            "no command, no script, and no terminal for a shell"
        );
        command = Some(text);
    }
    let shell = request.keep || command.is_none();
    ensure!(
        !shell || shell::is_possible(),
        "--keep gives a shell, which needs a terminal"
    );
    let host = Host::prepare(workspace, &request.options)?;
    let job = Job {
        shell,
        command,
        timeout: request.timeout,
        ..Job::default()
    };
    let status = host.run(&job, &mut |bytes| {
        let mut out = stdout().lock();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    })?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

/// The words of a command line as a shell script; one word alone is a script already.
fn script(words: &[String]) -> Option<String> {
    match words {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(many.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ")),
    }
}

/// A word quoted for a POSIX shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_words_are_quoted_and_one_is_a_script() {
        let words = |list: &[&str]| list.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        assert_eq!(script(&[]), None);
        assert_eq!(
            script(&words(&["xl list; true"])).as_deref(),
            Some("xl list; true")
        );
        assert_eq!(
            script(&words(&["a b", "it's", "$x"])).as_deref(),
            Some(r"'a b' 'it'\''s' '$x'")
        );
    }

    #[test]
    fn a_shell_reads_the_quoted_words_back() {
        let script = script(&[
            "printf".into(),
            "%s|".into(),
            "a'b".into(),
            "".into(),
            "*".into(),
        ]);
        let out = std::process::Command::new("sh")
            .arg("-c")
            .arg(script.unwrap())
            .output()
            .unwrap();
        assert_eq!(out.stdout, b"a'b||*|");
    }
}
