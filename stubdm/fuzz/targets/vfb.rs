//! The cores of a PV frame buffer's and keyboard's backend, with a hostile frontend.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/input.rs"]
mod input;
#[path = "../entry/vfb.rs"]
mod vfb;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| vfb::vfb(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        vfb::vfb(&std::fs::read(file)?);
    }
    Ok(())
}
