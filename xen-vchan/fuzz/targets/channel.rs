//! A whole channel on a simulated host, with a hostile peer.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/mod.rs"]
mod entry;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::channel(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        entry::channel(&std::fs::read(file)?);
    }
    Ok(())
}
