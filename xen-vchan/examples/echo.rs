//! A server that sends back what it gets, and a client: both ends in one process, on a simulated
//! host.
//!
//! ```text
//! cargo run -p xen-vchan --features sim --example echo
//! ```
//!
//! On a Xen host `Xen::open()` takes the place of the first three lines, and each end is a program
//! of its own.

use std::io::{Read, Write, copy};
use std::thread;

use xen_store::Store;
use xen_store_server::Config;
use xen_sys::{DomId, sim::Simulation};
use xen_vchan::{ClientBuilder, ServerBuilder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Simulation::start()?;
    let _stored = xen_store_server::sim::start(&host, Config::new())?;
    let xen = host.xen(DomId::DOM0)?;
    let store = Store::open(&xen)?;
    let mut server = ServerBuilder::new(DomId::DOM0, "data/echo").publish(&xen, &store)?;
    let mut client = ClientBuilder::new(DomId::DOM0, "data/echo").connect(&xen, &store)?;
    let serving = thread::spawn(move || {
        let (rx, tx) = server.halves();
        copy(rx, tx)
    });
    client.write_all(b"is anybody there?")?;
    let mut answer = [0; 17];
    client.read_exact(&mut answer)?;
    println!("{}", String::from_utf8_lossy(&answer));
    drop(client); // the server's `copy` ends
    let copied = serving.join().map_err(|_| "the server panicked")??;
    assert_eq!((copied, &answer), (17, b"is anybody there?"));
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
