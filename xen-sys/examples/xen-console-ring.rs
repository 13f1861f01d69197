//! Prints Xen's console ring, as `xl dmesg` does, and follows it.
//!
//! ```text
//! xen-console-ring --follow                                                    # in domain 0
//! cargo run -p xen-interface --features sim --example xen-console-ring -- --sim 3    # anywhere
//! ```
//!
//! Guests can write to the ring, too: control characters but line ends and tabs are printed as `?`.

mod common;

use std::error::Error;
use std::io::{Write as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use common::Host;

/// Prints Xen's console ring.
#[derive(Debug, Parser)]
struct Options {
    /// Go on with what comes, looking once a second.
    #[arg(long)]
    follow: bool,
    /// Empty the ring afterwards, for every reader.
    #[arg(long, conflicts_with = "follow")]
    clear: bool,
    /// Look at a simulated host with that many guests.
    #[arg(long, value_name = "GUESTS")]
    sim: Option<u16>,
}

pub(crate) fn main() -> ExitCode {
    match print(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-console-ring: {e}");
            ExitCode::FAILURE
        }
    }
}

fn print(options: &Options) -> Result<(), Box<dyn Error>> {
    let host = Host::open(options.sim)?;
    // From the start of the ring: nothing was read before.
    let mut chunk = host.privcmd.console_ring_from(0)?;
    loop {
        let text: Vec<u8> = chunk.bytes.iter().map(|&byte| printable(byte)).collect();
        let mut out = stdout().lock();
        out.write_all(&text)?;
        out.flush()?;
        if chunk.bytes.is_empty() {
            if !options.follow {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        chunk = host.privcmd.console_ring_from(chunk.next)?;
    }
    if options.clear {
        host.privcmd.clear_console_ring()?;
    }
    Ok(())
}

fn printable(byte: u8) -> u8 {
    match byte {
        b'\n' | b'\t' | b' '..=b'~' => byte,
        b'\r' => b' ',
        _ => b'?',
    }
}
