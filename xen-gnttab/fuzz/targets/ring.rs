//! One end of a ring of requests and responses, on memory that a hostile peer writes to.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/mod.rs"]
mod entry;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::ring(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        entry::ring(&std::fs::read(file)?);
    }
    Ok(())
}
