//! A proxy that filters, with hostile clients and a hostile QEMU.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/ends.rs"]
mod ends;
#[path = "../entry/filter.rs"]
mod filter;
#[path = "../entry/input.rs"]
mod input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| filter::filter(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        filter::filter(&std::fs::read(file)?);
    }
    Ok(())
}
