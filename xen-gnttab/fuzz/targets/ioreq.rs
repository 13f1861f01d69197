//! A guest's requests to its device model, in pages that are written to without a rule.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/mod.rs"]
mod entry;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::ioreq(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        entry::ioreq(&std::fs::read(file)?);
    }
    Ok(())
}
