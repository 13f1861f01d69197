//! The core of the screen's process, with a hostile QEMU.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/screen.rs"]
mod screen;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| screen::screen(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        screen::screen(&std::fs::read(file)?);
    }
    Ok(())
}
