//! Running programs in a domU for dom0: the agent's side of the exchange that rpc.rs describes.
//!
//! ```text
//! main thread     watches data/agent/jobs: starts, kills, forgets
//! one per job     takes the job's lines as they come, writes them and then the end to xenstore
//! ```

use std::collections::HashMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use xen_store::Store;

use crate::job::{Exit, LocalJob};
use crate::rpc::{AGENT, MAX_LINE, MAX_LINES, Request};

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(3600);

/// Reports ready and serves dom0 until xenstore fails.
pub(crate) fn serve(store: &Store, boot_report: &str) -> Result<()> {
    let jobs = format!("{AGENT}/jobs");
    store.mkdir(&jobs)?;
    let watch = store.watch(&jobs)?;
    store.write(&format!("{AGENT}/ready"), boot_report.as_bytes())?;
    let mut running: HashMap<String, LocalJob> = HashMap::new();
    loop {
        let Some(event) = watch.next(None)? else {
            continue;
        };
        let path = &*event.path;
        let Some((number, what)) = path
            .strip_prefix(&jobs)
            .and_then(|rest| rest.strip_prefix('/'))
            .map(|rest| rest.split_once('/').unwrap_or((rest, "")))
        else {
            continue;
        };
        match what {
            "request" if !running.contains_key(number) => {
                if let Some(job) = begin(store, &format!("{jobs}/{number}")) {
                    running.insert(number.to_owned(), job);
                }
            }
            "kill" => {
                let signal = store.read_str(&format!("{jobs}/{number}/kill")).ok();
                let signal = signal
                    .and_then(|text| text.parse::<i32>().ok())
                    .and_then(|number| Signal::try_from(number).ok());
                if let (Some(job), Some(signal)) = (running.get(number), signal) {
                    if let Err(error) = job.kill(signal) {
                        println!("agent: sending {signal}: {error:#}");
                    }
                }
            }
            // Dropping a job kills what still runs.
            "" if !store.exists(path).unwrap_or(true) => drop(running.remove(number)),
            _ => {}
        }
    }
}

/// Starts the job that is asked for in `base` and the thread that reports on it. `None`: it did not
/// start, which was reported.
fn begin(store: &Store, base: &str) -> Option<LocalJob> {
    let job = match start(store, base) {
        Ok(job) => job,
        Err(error) => {
            let exit = Exit::NotStarted(format!("{error:#}"));
            println!("agent: {base}: {exit}");
            let _ = store.write(&format!("{base}/exit"), exit.to_string().as_bytes());
            return None;
        }
    };
    let watcher = job.watcher();
    let store = store.clone();
    let base = base.to_owned();
    thread::spawn(move || {
        let deadline = Instant::now() + LONG;
        for index in 0..MAX_LINES {
            let Ok(Some(mut line)) = watcher.line(index, deadline) else {
                break;
            };
            println!("agent: {base}: {line}");
            while line.len() > MAX_LINE {
                line.pop();
            }
            if store
                .write(&format!("{base}/lines/{index}"), line.as_bytes())
                .is_err()
            {
                break;
            }
        }
        let exit = watcher
            .exit(deadline)
            .unwrap_or_else(|error| Exit::NotStarted(format!("{error:#}")));
        println!("agent: {base}: ended with {exit}");
        let _ = store.write(&format!("{base}/exit"), exit.to_string().as_bytes());
    });
    Some(job)
}

fn start(store: &Store, base: &str) -> Result<LocalJob> {
    let request = store.read(&format!("{base}/request"))?;
    let request: Request = serde_json::from_slice(&request)?;
    println!("agent: {base}: {:?}", request.argv);
    let (program, arguments) = request.argv.split_first().context("no program is named")?;
    let program = if program == "self" {
        "/proc/self/exe"
    } else {
        program
    };
    LocalJob::start(Command::new(program).args(arguments))
}
