//! A console that is served, with a hostile frontend.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/mod.rs"]
mod entry;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::console(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        entry::console(&std::fs::read(file)?);
    }
    Ok(())
}
