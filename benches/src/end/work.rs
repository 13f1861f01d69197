//! The work itself: the loops that are timed.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use xen_vchan::Channel;

use super::pipe::Pipe;
use super::{Arguments, BUFFER, PERIOD, Sample, check, pattern};

/// The reader's byte that reports it ready, the work, and the byte that reports that everything has
/// arrived.
pub(super) fn timed(
    args: &Arguments<'_>,
    mut pipe: impl Pipe,
    pattern: &[u8],
    counts: impl Fn() -> (u64, u64),
) -> Result<Sample> {
    let work = args.work.trim_start_matches("unix-");
    let rounds = args.total / args.size as u64;
    let mut byte = [1];
    if matches!(work, "read" | "recv" | "pong") {
        pipe.put_all(&byte)?;
        pipe.flush()?;
    } else {
        pipe.recv(&mut byte)?;
    }
    let mut times = Vec::new();
    let clock = Clock::start(&counts)?;
    match work {
        "write" | "send" => write(args, &mut pipe, work == "send", pattern)?,
        "read" => read(args, &mut pipe, pattern)?,
        "recv" => recv(args, &mut pipe, pattern)?,
        "ping" => times = ping(args, &mut pipe, rounds, pattern)?,
        "pong" => pong(args, &mut pipe, rounds)?,
        _ => bail!("unknown work"),
    }
    let mut seen = clock.stop(&counts, args.total)?;
    if matches!(work, "read" | "recv" | "ping") {
        pipe.put_all(&byte)?;
        pipe.flush()?;
    } else {
        pipe.recv(&mut byte)?;
    }
    if !times.is_empty() {
        times.sort_unstable();
        seen.p50 = times[times.len() / 2].into();
        seen.p99 = times[times.len() * 99 / 100].into();
    }
    Ok(seen)
}

struct Clock {
    began: Instant,
    cpu: u64,
    counts: (u64, u64),
}

impl Clock {
    fn start(counts: &impl Fn() -> (u64, u64)) -> Result<Self> {
        Ok(Self {
            counts: counts(),
            cpu: cpu_time()?,
            began: Instant::now(),
        })
    }

    fn stop(&self, counts: &impl Fn() -> (u64, u64), bytes: u64) -> Result<Sample> {
        let ns = self.began.elapsed().as_nanos() as u64;
        let (cpu, now) = (cpu_time()? - self.cpu, counts());
        Ok(Sample {
            ns,
            bytes,
            cpu,
            notifies: now.0 - self.counts.0,
            syscalls: now.1 - self.counts.1,
            ..Sample::default()
        })
    }
}

fn cpu_time() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
    Ok((micros(usage.user_time()) + micros(usage.system_time())) * 1000)
}

fn write(args: &Arguments<'_>, pipe: &mut impl Pipe, packets: bool, pattern: &[u8]) -> Result<()> {
    let (mut done, mut at) = (0, 0);
    while done < args.total {
        let bytes = &pattern[at..at + args.size];
        if packets {
            pipe.send(bytes)?;
        } else {
            pipe.put_all(bytes)?;
        }
        done += args.size as u64;
        at = (at + args.size) % PERIOD;
    }
    pipe.flush()
}

fn read(args: &Arguments<'_>, pipe: &mut impl Pipe, pattern: &[u8]) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    while done < args.total {
        let count = pipe.get(&mut buffer)?;
        ensure!(count != 0, "the end came early, at {done}");
        check(&buffer[..count], done, pattern)?;
        done += count as u64;
    }
    Ok(())
}

fn recv(args: &Arguments<'_>, pipe: &mut impl Pipe, pattern: &[u8]) -> Result<()> {
    let mut buffer = vec![0; args.size];
    let mut done = 0;
    while done < args.total {
        if args.cork {
            pipe.recv_many(&mut buffer, &mut |bytes| {
                check(bytes, done, pattern)?;
                done += bytes.len() as u64;
                Ok(())
            })?;
        } else {
            pipe.recv(&mut buffer)?;
            check(&buffer, done, pattern)?;
            done += args.size as u64;
        }
    }
    Ok(())
}

fn get_all(pipe: &mut impl Pipe, into: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < into.len() {
        let count = pipe.get(&mut into[done..])?;
        ensure!(count != 0, "the end came early");
        done += count;
    }
    Ok(())
}

fn ping(
    args: &Arguments<'_>,
    pipe: &mut impl Pipe,
    rounds: u64,
    pattern: &[u8],
) -> Result<Vec<u32>> {
    let mut buffer = vec![0; args.size];
    let mut times = Vec::with_capacity(rounds as usize);
    for _ in 0..rounds {
        let began = Instant::now();
        pipe.put_all(&pattern[..args.size])?;
        get_all(pipe, &mut buffer)?;
        times.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
        check(&buffer, 0, pattern)?;
    }
    Ok(times)
}

fn pong(args: &Arguments<'_>, pipe: &mut impl Pipe, rounds: u64) -> Result<()> {
    let mut buffer = vec![0; args.size];
    for _ in 0..rounds {
        get_all(pipe, &mut buffer)?;
        pipe.put_all(&buffer)?;
    }
    Ok(())
}

pub(super) fn pair(
    args: &Arguments<'_>,
    mut tx: Channel,
    mut rx: Channel,
    counts: impl Fn() -> (u64, u64),
) -> Result<Sample> {
    let pattern = pattern();
    let clock = Clock::start(&counts)?;
    if args.chunks {
        pairs(args.size, args.total, &pattern, |bytes, into| {
            let mut chunk = tx.halves().1.write_chunk(bytes.len(), None)?;
            ensure!(chunk.put_whole(bytes));
            chunk.commit();
            ensure!(rx.halves().0.read_chunk(None)?.get_exact(into));
            Ok(())
        })?;
    } else {
        pairs(args.size, args.total, &pattern, |bytes, into| {
            tx.put_all(bytes)?;
            get_all(&mut rx, into)
        })?;
    }
    clock.stop(&counts, args.total)
}

/// Writes and reads `size` bytes at a time through `through`, and checks them.
///
/// # Errors
///
/// If a byte is wrong, and those of `through`.
#[inline]
pub fn pairs(
    size: usize,
    total: u64,
    pattern: &[u8],
    mut through: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; size];
    let (mut done, mut at) = (0, 0);
    while done < total {
        through(&pattern[at..at + size], &mut buffer)?;
        check(&buffer, at as u64, pattern)?;
        done += size as u64;
        at = (at + size) % PERIOD;
    }
    Ok(())
}
