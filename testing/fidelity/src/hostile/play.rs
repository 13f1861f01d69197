//! Plays a behaviour over a vchan until it is stopped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Error, PeerState, ServerBuilder};

use super::page;
use super::{Act, Behaviour, Script};

/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Offers a vchan to `client` at `path` and behaves as stated to each client, one after another,
/// until `stop` is set. `flood` is how many bytes a flood is.
///
/// # Errors
/// The host's; none of a client's doing.
pub fn play(
    xen: &Xen,
    store: &Store,
    client: DomId,
    path: &str,
    behaviour: Behaviour,
    flood: usize,
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    if let Some(fault) = page::Fault::of(behaviour) {
        return page::play(xen, store, client, path, fault, stop);
    }
    while !stop() {
        let channel = ServerBuilder::new(client, path).publish(xen, store);
        let mut channel = channel.context("offering the vchan")?;
        while !stop() {
            if channel
                .peer()
                .is_ok_and(|peer| peer == PeerState::Connected)
            {
                let script = Script::new(behaviour, flood);
                if converse(&mut channel, script, stop) == End::Left {
                    break;
                }
                if channel.next_client().is_err() {
                    break;
                }
            } else if channel.wait(Some(Instant::now() + LOOK)).is_err() {
                break;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client is gone, or it is time to stop.
    Over,
    /// Close the vchan and offer it again.
    Left,
}

fn converse(channel: &mut Channel, mut script: Script, stop: &dyn Fn() -> bool) -> End {
    let mut acts: VecDeque<Act> = script.handle_client().into();
    let mut received = Vec::new();
    let mut quiet_until = Instant::now();
    while !stop() {
        let _ = channel.acknowledge_events();
        let mut moved = false;
        let mut buffer = [0; 4096];
        match channel.try_read(&mut buffer) {
            Ok(0) | Err(Error::Closed) => return End::Over,
            Ok(count) => {
                received.extend_from_slice(buffer.get(..count).unwrap_or_default());
                moved = true;
            }
            Err(Error::WouldBlock) => {}
            Err(_) => return End::Left,
        }
        while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            acts.extend(script.handle_line(&line));
        }
        let now = Instant::now();
        if acts.is_empty() && now >= quiet_until {
            acts.extend(script.poll_act());
            if let Some(pause) = script.pace() {
                quiet_until = now + pause;
            }
        }
        match acts.front_mut() {
            Some(Act::Send(bytes)) => match channel.try_write(bytes) {
                Ok(count) => {
                    bytes.drain(..count);
                    moved = true;
                    if bytes.is_empty() {
                        acts.pop_front();
                    }
                }
                Err(Error::WouldBlock) => {}
                Err(_) => return End::Over,
            },
            Some(Act::Pause(pause)) => {
                quiet_until = now + *pause;
                acts.pop_front();
            }
            Some(Act::Leave) => {
                // The peer must still read the last bytes.
                if channel.wait(Some(now + 2 * LOOK)).is_err() {
                    return End::Over;
                }
                return End::Left;
            }
            None => {}
        }
        if !moved {
            let until = match quiet_until > now {
                true => quiet_until.min(now + LOOK),
                false => now + LOOK,
            };
            let _ = channel.wait(Some(until));
        }
    }
    End::Over
}
