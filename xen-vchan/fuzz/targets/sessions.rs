//! A server and its clients, one after another, some of them hostile.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/mod.rs"]
mod entry;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::sessions(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        entry::sessions(&std::fs::read(file)?);
    }
    Ok(())
}
