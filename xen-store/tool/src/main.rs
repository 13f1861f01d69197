//! The `xstore` program; everything it does is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    xen_store_tool::main(std::env::args_os().collect())
}
