//! Walks, snapshots and batches, with a daemon that is right or hostile.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/input.rs"]
mod input;
#[path = "../entry/plans.rs"]
mod plans;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| plans::plans(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        plans::plans(&std::fs::read(file)?);
    }
    Ok(())
}
