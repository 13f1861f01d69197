//! A server that sends back what it gets, and a client that checks it: both ends in one process, on
//! a simulated host.
//!
//! ```text
//! cargo run -p xen-vchan --features sim --example echo
//! ```
//!
//! On a Xen host the two functions are the same; `Xen::open()` and `Store::open()` take the place
//! of the simulation.

use std::io::{Read, Write};
use std::thread;

use xen_store::server::{Config, Server as StoreServer};
use xen_sys::DomId;
use xen_sys::sim::Simulation;
use xen_vchan::{Channel, Client, Server};

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn serve(mut channel: Channel) -> Outcome {
    let mut buf = [0; 4096];
    loop {
        match channel.read(&mut buf)? {
            0 => return Ok(()), // the client left
            len => channel.write_all(&buf[..len])?,
        }
    }
}

fn ask(mut channel: Channel) -> Outcome {
    for question in ["hello", "is anybody there?", "goodbye"] {
        channel.write_all(question.as_bytes())?;
        let mut answer = vec![0; question.len()];
        channel.read_exact(&mut answer)?;
        println!("{}", String::from_utf8(answer)?);
    }
    Ok(())
}

fn main() -> Outcome {
    let host = Simulation::start()?;
    let stored = StoreServer::start(Config::new())?;
    let store = stored.connect(DomId::DOM0)?;
    store.write("domid", "0")?;
    let xen = host.xen(DomId::DOM0)?;

    let server = Server::builder(DomId::DOM0, "data/echo").listen(&xen, &store)?;
    let client = Client::builder(DomId::DOM0, "data/echo").connect(&xen, &store)?;
    let serving = thread::spawn(move || serve(server));
    ask(client)?;
    serving.join().map_err(|_| "the server panicked")??;
    drop(xen);
    host.assert_clean();
    Ok(())
}
