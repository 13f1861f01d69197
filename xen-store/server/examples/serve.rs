//! A store daemon on a socket, for trying clients without Xen:
//!
//! ```text
//! cargo run -p xen-store-server --example serve -- /tmp/store.sock
//! XENSTORED_PATH=/tmp/store.sock xenstore-ls -f
//! ```
//!
//! It serves until its standard input ends.

use xen_store_server::{Config, Server};

fn main() -> std::io::Result<()> {
    let Some(path) = std::env::args_os().nth(1).map(std::path::PathBuf::from) else {
        eprintln!("usage: serve SOCKET");
        std::process::exit(2);
    };
    let server = Server::start(Config::new())?;
    server.listen(&path)?;
    println!("serving on {}", path.display());
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}
