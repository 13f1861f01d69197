//! Bytes that are to be messages and paths.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/codec.rs"]
mod codec;
#[path = "../entry/input.rs"]
mod input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| codec::codec(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        codec::codec(&std::fs::read(file)?);
    }
    Ok(())
}
