//! A client, with a daemon that is right or hostile.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/client.rs"]
mod client;
#[path = "../entry/input.rs"]
mod input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| client::client(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        client::client(&std::fs::read(file)?);
    }
    Ok(())
}
