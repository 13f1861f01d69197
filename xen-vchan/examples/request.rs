//! Requests and responses: a server for many clients, and a client that dials again when the server
//! goes away in the middle.
//!
//! ```text
//! cargo run -p xen-vchan --features sim --example request
//! ```
//!
//! A message is four bytes of length and then that many bytes. Both are put into one publish
//! (`reserve` … `commit`), and every wait has a deadline, so neither side hangs on a peer that
//! sends half a message.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_store_server::Config;
use xen_sys::{DomId, Xen, sim::Simulation};
use xen_vchan::{Channel, ClientBuilder, Error, Listener, Reconnecting, Result, service_path};

/// The longest message; what a peer announces beyond it is not waited for.
const LONGEST: usize = 1000;

fn deadline() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

fn send(channel: &mut Channel, message: &str) -> Result<()> {
    let (_, tx) = channel.halves();
    let mut loan = tx.write_chunk(4 + message.len(), deadline())?;
    loan.put_whole(&u32::try_from(message.len()).unwrap_or(0).to_le_bytes());
    loan.put_whole(message.as_bytes());
    loan.commit();
    Ok(())
}

fn receive(channel: &mut Channel) -> Result<String> {
    let (rx, _) = channel.halves();
    let mut len = [0; 4];
    rx.recv(&mut len, deadline())?;
    let mut message = vec![0; (u32::from_le_bytes(len) as usize).min(LONGEST)];
    rx.recv(&mut message, deadline())?;
    Ok(String::from_utf8_lossy(&message).into_owned())
}

/// Serves clients until `requests` were answered; then ends, even with clients connected.
fn serve(xen: &Xen, store: &Store, requests: u32) -> Result<()> {
    let mut listener = Listener::builder().listen(xen, store)?;
    listener.bind(
        DomId::DOM0,
        service_path(DomId::DOM0, DomId::DOM0, "upper")?,
    )?;
    let answered = AtomicU32::new(0);
    thread::scope(|scope| {
        while answered.load(Ordering::Relaxed) < requests {
            let soon = Instant::now() + Duration::from_millis(50);
            let mut channel = match listener.accept(Some(soon)) {
                Ok(channel) => channel,
                Err(Error::TimedOut) => continue,
                Err(error) => return Err(error),
            };
            let answered = &answered;
            scope.spawn(move || {
                while answered.load(Ordering::Relaxed) < requests {
                    let Ok(request) = receive(&mut channel) else {
                        return;
                    };
                    answered.fetch_add(1, Ordering::Relaxed);
                    if send(&mut channel, &request.to_uppercase()).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(())
    })
}

/// Asks until there is an answer. A request whose session ended is asked again in the next.
fn ask(line: &mut Reconnecting, question: &str) -> Result<String> {
    let give_up = deadline();
    loop {
        let channel = line.session(give_up)?;
        match send(channel, question).and_then(|()| receive(channel)) {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                println!("session {}: {error}; once more", line.sessions());
                line.disconnect();
            }
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let host = Simulation::start()?;
    let _stored = xen_store_server::sim::start(&host, Config::new())?;
    let xen = host.xen(DomId::DOM0)?;
    let store = Store::open(&xen)?;
    thread::scope(|scope| {
        // Two servers, one after the other; the first leaves after three answers.
        let servers = scope.spawn(|| serve(&xen, &store, 3).and_then(|()| serve(&xen, &store, 2)));
        let path = service_path(DomId::DOM0, DomId::DOM0, "upper")?;
        let mut line = ClientBuilder::new(DomId::DOM0, path).reconnecting(&xen, &store);
        for question in ["one", "two", "three", "four", "five"] {
            let answer = ask(&mut line, question)?;
            writeln!(std::io::stdout(), "{question} -> {answer}")?;
            assert_eq!(answer, question.to_uppercase());
        }
        assert!(line.sessions() >= 2, "the second server is another session");
        drop(line);
        servers.join().map_err(|_| "a server panicked")??;
        Ok(())
    })
}

#[test]
fn it_runs() {
    main().unwrap();
}
