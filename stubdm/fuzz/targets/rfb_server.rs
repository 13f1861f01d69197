//! The core of the VNC server, with a hostile viewer.
#![cfg_attr(fuzzing, no_main)]

#[path = "../entry/input.rs"]
mod input;
#[path = "../entry/rfb_server.rs"]
mod rfb_server;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| rfb_server::rfb_server(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        rfb_server::rfb_server(&std::fs::read(file)?);
    }
    Ok(())
}
