//! Checks on a Xen host that its xenstored is as the embedded one: `rules [SOCKET]`, in domain 0.
//!
//! It uses a folder `/xen-store-rules` and leaves nothing behind.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

#[path = "../tests/fidelity/script.rs"]
mod script;

fn main() -> ExitCode {
    let socket = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "/run/xenstored/socket".to_owned());
    let rules = script::rules();
    let mut broken = 0;
    for rule in &rules {
        match script::check(rule, &|| UnixStream::connect(&socket)) {
            Ok(()) => println!("ok      {}", rule.name),
            Err(seen) => {
                broken += 1;
                println!("BROKEN  {}: {seen}", rule.name);
            }
        }
    }
    println!(
        "{} rules hold on this daemon, {broken} are broken",
        rules.len() - broken
    );
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
