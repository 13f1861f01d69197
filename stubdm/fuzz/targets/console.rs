//! A console that is served, with a hostile frontend.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/console.rs"]
mod console;
#[path = "../entry/input.rs"]
mod input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| console::console(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        console::console(&std::fs::read(file)?);
    }
    Ok(())
}
