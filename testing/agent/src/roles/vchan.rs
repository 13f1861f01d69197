//! One end of a vchan: the counterpart of `c-vchan-peer.c`, with the same arguments and the same
//! lines.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, RingSize, ServerBuilder};

use crate::stream::Stream;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    Server,
    Client,
}

#[derive(Args, Debug)]
struct Place {
    side: Side,
    domain: DomId,
    path: String,
    /// Least size of the ring the server reads from, in bytes.
    #[arg(long, default_value_t = 0)]
    read_min: usize,
    /// Least size of the ring the server writes to, in bytes.
    #[arg(long, default_value_t = 0)]
    write_min: usize,
    /// Seconds until it gives up.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Also notices the end of the peer's whole domain.
    #[arg(long)]
    watch_peer_domain: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Peer {
    #[command(flatten)]
    place: Place,
    #[arg(long, default_value_t = 0)]
    send: u64,
    #[arg(long, default_value_t = 0)]
    recv: u64,
    #[arg(long, default_value_t = 1)]
    key: u64,
    #[arg(long, default_value_t = 4096)]
    chunk: usize,
    /// How bytes are moved.
    #[arg(long, value_enum, default_value = "poll")]
    style: Style,
    /// Goes on until the peer is gone, which is then the success.
    #[arg(long)]
    until_gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Style {
    /// Both directions in one thread, sleeping in poll(2).
    Poll,
    /// Both directions in one thread, sleeping in the library.
    Wait,
    /// A thread for each direction, in blocking calls.
    Threads,
}

#[derive(Args, Debug)]
pub(crate) struct Pingpong {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    rounds: u64,
}

impl Place {
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.timeout)
    }

    fn open(&self) -> Result<Channel> {
        let xen = Xen::open()?;
        let store = Store::open(&xen)?;
        let mut channel = match self.side {
            Side::Server => ServerBuilder::new(self.domain, &self.path)
                .rings(
                    RingSize::at_least(self.read_min),
                    RingSize::at_least(self.write_min),
                )
                .watch_peer_domain(self.watch_peer_domain)
                .publish(&xen, &store)?,
            Side::Client => ClientBuilder::new(self.domain, &self.path)
                .wait_for_server(true)
                .watch_peer_domain(self.watch_peer_domain)
                .deadline(self.deadline())
                .connect(&xen, &store)?,
        };
        println!("listening");
        channel
            .wait_connected(Some(self.deadline()))
            .context("waiting for the peer")?;
        println!("connected");
        Ok(channel)
    }
}

/// Bytes moved, and the time of the last move.
#[derive(Debug)]
struct Progress {
    send: Stream,
    recv: Stream,
    send_total: u64,
    recv_total: u64,
    last: Instant,
    announced: bool,
}

impl Progress {
    /// Says, once, that bytes have moved both ways and more than the rings hold.
    fn announce(&mut self) {
        let least = self.send.position().min(self.recv.position());
        if !self.announced && least > 64 * 1024 {
            println!("moving");
            self.announced = true;
        }
    }

    fn sending(&self) -> bool {
        self.send.position() < self.send_total
    }

    fn receiving(&self) -> bool {
        self.recv.position() < self.recv_total
    }

    fn sent(&mut self, count: usize) {
        self.send.advance(count);
        self.last = Instant::now();
    }

    fn received(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(wrong) = self.recv.check(bytes) {
            bail!("{wrong}");
        }
        self.last = Instant::now();
        Ok(())
    }
}

impl Peer {
    pub(crate) fn run(&self) -> Result<()> {
        let (send_key, recv_key) = match self.place.side {
            Side::Server => (self.key, self.key + 1),
            Side::Client => (self.key + 1, self.key),
        };
        let channel = self.place.open()?;
        let mut progress = Progress {
            send: Stream::new(send_key),
            recv: Stream::new(recv_key),
            send_total: self.send,
            recv_total: self.recv,
            last: Instant::now(),
            announced: false,
        };
        let result = match self.style {
            Style::Poll | Style::Wait => self.one_thread(channel, &mut progress),
            Style::Threads => self.two_threads(channel, &mut progress),
        };
        let counts = format!(
            "sent={} received={}",
            progress.send.position(),
            progress.recv.position()
        );
        match result {
            Ok(()) if self.until_gone => bail!("{counts}: all moved and the peer is still there"),
            Ok(()) => println!("ok {counts}"),
            Err(error) if self.until_gone && is_gone(&error) => {
                println!(
                    "gone {counts} after {} ms",
                    progress.last.elapsed().as_millis()
                );
            }
            Err(error) => return Err(error.context(format!("FAILED {counts}"))),
        }
        Ok(())
    }

    fn one_thread(&self, mut channel: Channel, progress: &mut Progress) -> Result<()> {
        let deadline = self.place.deadline();
        let mut buffer = vec![0; self.chunk];
        while progress.sending() || progress.receiving() {
            let mut moved = false;
            if progress.sending() {
                let left = progress.send_total - progress.send.position();
                let length = self.chunk.min(usize::try_from(left).unwrap_or(usize::MAX));
                progress.send.peek(&mut buffer[..length]);
                match channel.try_write(&buffer[..length]) {
                    Ok(count) => {
                        ensure!(count > 0, "a write of nothing");
                        progress.sent(count);
                        moved = true;
                    }
                    Err(Error::WouldBlock) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if progress.receiving() {
                let left = progress.recv_total - progress.recv.position();
                let length = self.chunk.min(usize::try_from(left).unwrap_or(usize::MAX));
                match channel.try_read(&mut buffer[..length]) {
                    Ok(count) => {
                        ensure!(count > 0, "a read of nothing");
                        progress.received(&buffer[..count])?;
                        moved = true;
                    }
                    Err(Error::WouldBlock) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if moved {
                progress.announce();
                continue;
            }
            ensure!(Instant::now() < deadline, "timed out");
            if self.style == Style::Wait {
                channel.wait(Some(deadline))?;
            } else {
                readable(&channel, deadline)?;
                channel.acknowledge_events()?;
            }
        }
        Ok(())
    }

    fn two_threads(&self, channel: Channel, progress: &mut Progress) -> Result<()> {
        let (mut reader, mut writer) = channel.split();
        let Progress {
            send,
            recv,
            send_total,
            recv_total,
            ..
        } = progress;
        let (send_total, recv_total) = (*send_total, *recv_total);
        let timeout = Some(Duration::from_secs(self.place.timeout));
        reader.set_timeout(timeout);
        writer.set_timeout(timeout);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| -> Result<()> {
                let mut buffer = vec![0; self.chunk];
                while send.position() < send_total {
                    let left = send_total - send.position();
                    let length = self.chunk.min(usize::try_from(left).unwrap_or(usize::MAX));
                    send.peek(&mut buffer[..length]);
                    send.advance(writer.write(&buffer[..length])?);
                }
                Ok(())
            });
            let received = (|| -> Result<()> {
                let mut buffer = vec![0; self.chunk];
                while recv.position() < recv_total {
                    let left = recv_total - recv.position();
                    let length = self.chunk.min(usize::try_from(left).unwrap_or(usize::MAX));
                    let count = reader.read(&mut buffer[..length])?;
                    if count == 0 {
                        return Err(Error::Closed.into());
                    }
                    if let Err(wrong) = recv.check(&buffer[..count]) {
                        bail!("{wrong}");
                    }
                }
                Ok(())
            })();
            match sender.join() {
                Ok(sent) => sent.and(received),
                Err(_) => bail!("the sending thread panicked"),
            }
        })
    }
}

impl Pingpong {
    /// The client sends a counter of eight bytes, the server sends it back: each round is a sleep
    /// and a wake-up on both sides, so a single lost notification ends it.
    pub(crate) fn run(&self) -> Result<()> {
        let mut channel = self.place.open()?;
        let timeout = Some(Duration::from_secs(self.place.timeout));
        channel.set_read_timeout(timeout);
        channel.set_write_timeout(timeout);
        let began = Instant::now();
        let mut message = [0; 8];
        for round in 0..self.rounds {
            if self.place.side == Side::Client {
                channel.write_all(&round.to_le_bytes())?;
            }
            channel
                .read_exact(&mut message)
                .with_context(|| format!("round {round}"))?;
            ensure!(
                u64::from_le_bytes(message) == round,
                "round {round} came back otherwise"
            );
            if self.place.side == Side::Server {
                channel.write_all(&message)?;
            }
        }
        let micros = began.elapsed().as_micros() / u128::from(self.rounds.max(1));
        println!("ok rounds={} at {micros} us", self.rounds);
        Ok(())
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Error>() {
        Some(error) => matches!(error, Error::Closed),
        None => error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
            )
        }),
    }
}

fn readable(channel: &Channel, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(
        &mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)],
        timeout,
    ) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
