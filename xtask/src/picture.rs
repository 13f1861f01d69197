//! `cargo xtask picture`: the README's picture of a guest's screen, as `stubdm-run screenshot` saw
//! it in dom0 of a fresh Xen host.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::host::{Host, Job, Options};
use crate::store::write_atomically;
use crate::workspace::Workspace;

/// The line after which the file's digits come.
const MARK: &str = "@@picture";

/// The beginning of each PNG file.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Boots a host, starts a guest in it and writes the picture to `file`.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    file: &Path,
    timeout: Duration,
) -> Result<ExitCode> {
    let host = Host::prepare(workspace, options)?;
    let job = Job {
        command: Some(include_str!("../assets/picture.sh").to_owned()),
        timeout,
        ..Job::default()
    };
    let mut output = Vec::new();
    let status = host.run(&job, &mut |bytes| {
        output.extend_from_slice(bytes);
        Ok(())
    })?;
    let text = String::from_utf8_lossy(&output);
    ensure!(status == 0, "its job ended with status {status}:\n{text}");
    let picture = picture(&text).with_context(|| format!("in what dom0 printed:\n{text}"))?;
    write_atomically(&workspace.root().join(file), &picture)?;
    println!("{}: {} bytes", file.display(), picture.len());
    Ok(ExitCode::SUCCESS)
}

/// Returns the file whose digits follow the mark.
fn picture(text: &str) -> Result<Vec<u8>> {
    let (_, digits) = text.split_once(MARK).context("no picture")?;
    let bytes = digits.split_ascii_whitespace().map(|byte| {
        let byte = u8::from_str_radix(byte, 16);
        byte.context("something other than a picture's digits")
    });
    let picture = bytes.collect::<Result<Vec<u8>>>()?;
    ensure!(picture.starts_with(PNG), "it is no PNG file");
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pictures_digits_behind_the_mark_are_taken() {
        let digits = " 89 50 4e 47 0d 0a 1a 0a\r\n 00 ff\r\n";
        let found = picture(&format!("Parsing config\r\n{MARK}\r\n{digits}"));
        assert_eq!(found.unwrap(), [PNG, &[0, 0xff]].concat());
        for bad in [
            digits.to_owned(),
            format!("{MARK}\n"),
            format!("{MARK}\n 00{digits}"),
            format!("{MARK}{digits} od: no such file"),
        ] {
            picture(&bad).unwrap_err();
        }
    }
}
