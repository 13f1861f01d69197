//! `stubdm-run policy`: checks a policy, shows it, and decides on a command.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use stubdm_qmp::json::Json;
use stubdm_qmp::learn::{LOG_MAX, learn};
use stubdm_qmp::policy::Policy;
use stubdm_qmp::policy::schema::{Schema, Version};
use stubdm_qmp::text::lines;

use crate::proxy::policy::HostPolicy;
use crate::rt::error::{Context, Failure, Result};

/// Commands on a policy.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Read a policy and report what is wrong with it
    Check {
        /// A TOML file; without it the policy that holds on this host
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show a policy in words, or what becomes of one command
    Explain {
        /// The policy, a TOML file, instead of the one that holds on this host
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// The version of the QEMU that the command is for
        #[arg(long, value_name = "VERSION", default_value = "7.2.0")]
        qemu: Version,
        /// A QMP command's name
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
        /// Its arguments, a JSON object
        #[arg(value_name = "JSON")]
        arguments: Option<String>,
    },
    /// Print a policy for what was seen in a proxy's log, or in QMP messages line by line
    ///
    /// The log is what `vchan-socket-proxy --filter=off --verbose` writes to stderr.
    Learn {
        /// Write rows for all that was seen, not only for what the built-in policy denies
        #[arg(long)]
        all: bool,
        /// The log; - for the standard input
        #[arg(value_name = "LOG")]
        log: PathBuf,
    },
}

/// Does it.
///
/// # Errors
/// The policy cannot be read or is malformed, the arguments are no JSON; and for one command, that
/// it is denied.
pub fn run(command: &PolicyCommand) -> Result<()> {
    let text = match command {
        PolicyCommand::Check { file } => {
            let (policy, source) = of_host(file.as_deref())?;
            format!(
                "{source}: {} rows, {} events\n",
                policy.rows.len(),
                policy.events.len()
            )
        }
        PolicyCommand::Explain {
            policy,
            qemu,
            command,
            arguments,
        } => {
            let (policy, source) = of_host(policy.as_deref())?;
            match command {
                None => table(&policy, &source),
                Some(name) => one(&policy, name, arguments.as_deref(), *qemu)?,
            }
        }
        PolicyCommand::Learn { all, log } => {
            let base = if *all {
                None
            } else {
                Some(Policy::built_in()?)
            };
            learn(&read(log)?, base.as_ref())?
        }
    };
    let written = std::io::stdout().write_all(lines(&text).as_bytes());
    written.context("printing")
}

/// The policy that holds on this host, and where it is from.
fn of_host(named: Option<&Path>) -> Result<(Policy, String)> {
    let found = HostPolicy::find(named)?;
    let source = found.to_string();
    Ok((found.into_policy()?, source))
}

/// A log, of whatever bytes.
fn read(path: &Path) -> Result<String> {
    let what = format!("{}", path.display());
    let mut bytes = Vec::new();
    let count = if path == Path::new("-") {
        std::io::stdin().take(LOG_MAX + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).context(&what)?;
        file.take(LOG_MAX + 1).read_to_end(&mut bytes)
    };
    if count.context(&what)? as u64 > LOG_MAX {
        return Err(Failure::new(format_args!(
            "{what}: longer than {LOG_MAX} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn members(shape: &Schema) -> Vec<String> {
    match shape {
        Schema::Map(members) => members
            .iter()
            .map(|member| {
                let mark = if member.optional { " (optional)" } else { "" };
                format!("    {}{mark}: {}\n", member.key, member.schema)
            })
            .collect(),
        other => vec![format!("    {other}\n")],
    }
}

fn table(policy: &Policy, source: &str) -> String {
    let mut text = format!("policy: {source}\n");
    for row in &policy.rows {
        text += &format!("\n{}\n", row.name);
        if !row.when.is_empty() {
            text += &format!("  sent for: {}\n", row.when);
        }
        let arguments = members(&row.arguments);
        if !arguments.is_empty() {
            text += &format!("  arguments:\n{}", arguments.concat());
        }
        match &row.answer {
            Schema::Nothing => {}
            answer => text += &format!("  answer: {answer}\n"),
        }
    }
    for event in &policy.events {
        text += &format!("\nevent {}\n{}", event.name, members(&event.data).concat());
    }
    text
}

fn one(policy: &Policy, name: &str, arguments: Option<&str>, qemu: Version) -> Result<String> {
    let given = arguments.map(|text| Json::read(text.as_bytes(), &policy.limits.json));
    let given = given.transpose().context("the arguments")?;
    match policy.command(name, given.as_ref(), qemu) {
        Ok(allowed) => {
            let row = policy
                .rows
                .get(allowed.row)
                .map_or("", |row| row.name.as_str());
            let sent = allowed
                .arguments
                .map_or_else(|| "none".to_owned(), |a| a.to_string());
            Ok(format!(
                "allowed by the row: {row}\narguments sent: {sent}\n"
            ))
        }
        Err(denied) => Err(Failure::new(format_args!("{name} is denied: {denied}"))),
    }
}
