//! An embedded daemon, with hostile clients.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/daemon.rs"]
mod daemon;
#[path = "../entry/input.rs"]
mod input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| daemon::daemon(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        daemon::daemon(&std::fs::read(file)?);
    }
    Ok(())
}
