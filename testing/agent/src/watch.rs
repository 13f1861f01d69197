//! The thread that watches while the tests run: it reports that time passes, and ends the suite
//! when a test does not end.
//!
//! Every wait in a test has its own limit. This module fails a test that waits forever all the
//! same, in a system call for example, and prints what every thread and child of the suite waits
//! in. The program that follows from outside could report only that there was no output.

use std::fs;
use std::path::Path;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The first character of a line for the program that follows the suite from outside.
const MARK: char = '\u{1}';
/// How often it reports that this machine's time passes: an emulator can hang.
const BEAT: Duration = Duration::from_secs(5);
/// The longest that a test may take of this machine's time: several times what the longest does
/// take.
const LIMIT: Duration = Duration::from_secs(600);

/// The running test, for the watching thread.
#[derive(Debug)]
pub(crate) struct Watch {
    running: Arc<Mutex<(String, Instant)>>,
    beat: bool,
}

impl Watch {
    /// Watches from now until this process ends; `beat`: reports from time to time that time
    /// passes.
    pub(crate) fn start(beat: bool) -> Self {
        let running = Arc::new(Mutex::new(("the start".to_owned(), Instant::now())));
        let seen = Arc::clone(&running);
        thread::spawn(move || {
            loop {
                thread::sleep(BEAT);
                if beat {
                    println!("{MARK}beat");
                }
                let (name, since) = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if since.elapsed() > LIMIT {
                    println!(
                        "test {name} ... FAILED ({} s, without an end)",
                        LIMIT.as_secs()
                    );
                    print!("{}", waits());
                    exit(1);
                }
            }
        });
        Self { running, beat }
    }

    /// Something begins. Gives the moment.
    pub(crate) fn begin(&self, name: &str) -> Instant {
        if self.beat {
            println!("{MARK}begin {name}");
        }
        let now = Instant::now();
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = (name.to_owned(), now);
        now
    }
}

/// Returns a line for each thread and child of this process: what it waits in.
fn waits() -> String {
    let own = std::process::id().to_string();
    let mut text = String::new();
    for process in folders("/proc") {
        let at = Path::new("/proc").join(&process);
        if process == own || parent(&at).as_deref() == Some(&own) {
            let command = read(&at.join("cmdline")).replace('\0', " ");
            text.push_str(&format!("    {process} {}\n", command.trim()));
            for task in folders(&at.join("task").to_string_lossy()) {
                let task = at.join("task").join(task);
                let [name, place, call] = ["comm", "wchan", "syscall"].map(|file| {
                    let words = read(&task.join(file));
                    words.trim().to_owned()
                });
                text.push_str(&format!("        {name}: {place}, {call}\n"));
            }
        }
    }
    text
}

/// The names in a folder that are numbers.
fn folders(path: &str) -> Vec<String> {
    let number = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(number).collect()
}

/// The number of a process's parent, from its `stat`: `NUMBER (NAME) STATE PARENT ...`.
fn parent(process: &Path) -> Option<String> {
    let stat = read(&process.join("stat"));
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(1).map(str::to_owned)
}

fn read(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_and_what_it_waits_in_are_named() {
        let mut child = Command::new("cat")
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has answered: its command line is its own by now.
        let (stdin, stdout) = (child.stdin.as_mut(), child.stdout.as_mut());
        stdin.unwrap().write_all(b"x").unwrap();
        stdout.unwrap().read_exact(&mut [0]).unwrap();
        let lines = waits();
        let id = child.id();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(lines.contains(&format!("    {id} cat -\n")), "{lines}");
        assert!(lines.contains("        cat: "), "{lines}");
    }
}
