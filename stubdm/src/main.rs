//! The `stubdm-run` program; everything it does is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    stubdm::cli::main(std::env::args_os().collect())
}
