//! Lists the store below a path, as `xenstore-ls -f` does: `ls [PATH]`.
//!
//! With `XENSTORED_PATH` set it connects there, otherwise to the daemon of this Xen host.

use std::error::Error;
use std::process::ExitCode;

use xen_store::{Result, Store, path};
use xen_sys::Xen;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ls: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::result::Result<(), Box<dyn Error>> {
    let store = match std::env::var_os("XENSTORED_PATH") {
        Some(socket) => Store::connect(socket)?,
        None => Store::open(&Xen::open()?)?,
    };
    let root = std::env::args().nth(1).unwrap_or_else(|| "/".to_owned());
    list(&store, &root)?;
    Ok(())
}

fn list(store: &Store, above: &str) -> Result<()> {
    for name in store.directory(above)? {
        let path = path::join(above, &name)?;
        match store.read(&path) {
            Ok(value) => println!("{path} = \"{}\"", value.escape_ascii()),
            // Nodes may go or be closed to us while we look.
            Err(error) if error.is_not_found() || error.is_denied() => continue,
            Err(error) => return Err(error),
        }
        match list(store, &path) {
            Err(error) if error.is_not_found() || error.is_denied() => {}
            other => other?,
        }
    }
    Ok(())
}
