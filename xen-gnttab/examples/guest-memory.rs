//! Prints a range of a guest's memory as `hexdump -C` does.
//!
//! ```text
//! guest-memory 5 0x7c00 512                                    # in domain 0, of domain 5
//! cargo run -p xen-gnttab --features sim --example guest-memory -- --sim 1 0x7c00 64
//! ```
//!
//! Addresses are guest-physical in an HVM guest. A page without memory is printed as such.

use std::error::Error;
use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use xen_gnttab::{PageAccess, foreign};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, PAGE_SIZE, Xen};

/// Prints a range of a guest's memory.
#[derive(Debug, Parser)]
struct Options {
    /// The guest's number.
    domain: DomId,
    /// The first byte: its guest-physical address.
    #[arg(value_parser = number)]
    address: u64,
    /// Bytes to print.
    #[arg(value_parser = number, default_value = "256")]
    len: u64,
    /// Look at a simulated guest, in whose boot sector is a text.
    #[arg(long)]
    sim: bool,
}

/// A number, decimal or after `0x` hexadecimal.
fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

pub(crate) fn main() -> ExitCode {
    let options = Options::parse();
    let printed = match options.sim {
        false => open().and_then(|privcmd| print(&privcmd, &options, &mut stdout().lock())),
        true => simulated(&options, &mut stdout().lock()),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guest-memory: {e}");
            ExitCode::FAILURE
        }
    }
}

fn open() -> Result<Privcmd, Box<dyn Error>> {
    Ok(Privcmd::open(&Xen::open()?)?)
}

#[cfg(feature = "sim")]
fn simulated(options: &Options, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let host = xen_sys::sim::Simulation::start()?;
    host.add_domain_as(options.domain)?;
    host.write_memory(options.domain, 0x7c00, b"written by the guest")?;
    let privcmd = Privcmd::open(&host.xen(DomId::DOM0)?)?;
    print(&privcmd, options, out)?;
    host.assert_clean();
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn simulated(_: &Options, _: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    Err("this was built without the feature `sim`".into())
}

fn print(privcmd: &Privcmd, options: &Options, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    /// Pages mapped at a time.
    const PAGES: u64 = 256;
    let page = PAGE_SIZE as u64;
    let guest = privcmd.guest(options.domain);
    let end = options.address.checked_add(options.len);
    let end = end.ok_or("the range ends beyond the last address")?;
    let mut at = options.address;
    while at < end {
        let first = at / page;
        let frames: Vec<u64> = (first..end.div_ceil(page).min(first + PAGES)).collect();
        let pages = foreign::map_each(guest, &frames, PageAccess::ReadOnly)?;
        for mapped in pages {
            let until = ((at / page + 1) * page).min(end);
            match mapped {
                Ok(region) => {
                    let mut bytes = vec![0; (until - at) as usize];
                    region.copy_out((at % page) as usize, &mut bytes)?;
                    dump(out, at, &bytes)?;
                }
                Err(e) => writeln!(out, "{at:08x}  {e}")?,
            }
            at = until;
        }
    }
    Ok(())
}

/// Sixteen bytes a line: the address, their values, their characters.
fn dump(out: &mut dyn Write, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    for (line, bytes) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let printable = |&b: &u8| {
            if (b' '..=b'~').contains(&b) {
                b as char
            } else {
                '.'
            }
        };
        let text: String = bytes.iter().map(printable).collect();
        writeln!(
            out,
            "{:08x}  {:47}  |{text}|",
            at + 16 * line as u64,
            hex.join(" ")
        )?;
    }
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn printed(address: u64, len: u64) -> String {
        let options = Options {
            domain: DomId::new(3),
            address,
            len,
            sim: true,
        };
        let mut out = Vec::new();
        simulated(&options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_guests_bytes_are_printed_from_any_address() {
        let text = printed(0x7c08, 12);
        assert_eq!(
            text,
            "00007c08  62 79 20 74 68 65 20 67 75 65 73 74              |by the guest|\n"
        );
    }

    #[test]
    fn a_page_without_memory_is_named_and_the_rest_is_printed() {
        let last = (64 << 20) - 16;
        let text = printed(last, 4096);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("03fffff0  00 00"), "{text}");
        assert!(lines[1].contains("frame 0x4000 of domain 3"), "{text}");
    }
}
