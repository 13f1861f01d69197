//! Saved states that were altered on their way: each is refused with its reason, and nothing is
//! restored in its place.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result, bail, ensure};
use xen_store::Store;

use super::outcomes::does_not_run;
use super::save::IMAGE;
use crate::guest::{LOG, destroy_leftover, diagnosis};

/// Changes libxl's record, in which the state begins at that byte.
type Alteration = fn(&mut Vec<u8>, usize);

/// Restores the unaltered image with each alteration, and leaves it as it was.
pub(super) fn states_are_refused(store: &Store) -> Result<()> {
    let image = Image::open()?;
    let alterations: [(&str, Alteration); 3] = [
        ("altered on its way", |body, state| body[state + 1000] ^= 4),
        ("cut short", |body, state| body.truncate(state + 1000)),
        // An older one behind it.
        ("save 1 follows save 1", |body, _| {
            let record = body[ID..].to_vec();
            let filler = usize::from(u16::from_le_bytes([record[24], record[25]]));
            body.resize(ID + HEADER + length(&record) + filler, 0);
            body.extend(record);
        }),
    ];
    for (why, alter) in alterations {
        image.write(|body| alter(body, ID + HEADER))?;
        let refused = refused(store, why)
            .with_context(|| format!("a state that is to be refused as `{why}`{}", diagnosis()));
        destroy_leftover();
        refused?;
    }
    image.write(|_| ())
}

fn refused(store: &Store, why: &str) -> Result<()> {
    let said = does_not_run(store, &["xl", "restore", IMAGE])?;
    ensure!(
        said.starts_with("error: restoring: ") && said.contains(why),
        "the store says {said}"
    );
    let log = fs::read_to_string(LOG).context(LOG)?;
    ensure!(log.contains(&said), "the log does not say `{said}`");
    Ok(())
}

/// A saved image, and libxl's record with the device model's state in it: type and length, 4 bytes
/// each, then as many bytes and up to 7 more (docs/specs/libxl-migration-stream.pandoc of Xen).
struct Image {
    file: File,
    at: u64,
    /// From there to the image's end.
    rest: Vec<u8>,
}

const EMULATOR_CONTEXT: u32 = 3;
/// The emulator's kind and index, which precede its state.
const ID: usize = 8;
/// Our record begins with that (`stubdm::libxl::state_record` has its layout).
pub(super) const MAGIC: &[u8] = b"stubdmS1";
pub(super) const HEADER: usize = 32;

impl Image {
    fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(IMAGE)?;
        let size = file.metadata()?.len();
        // Everything of the device model's is at the end, behind the memory.
        let begin = size.saturating_sub(1 << 20);
        let mut tail = vec![0; usize::try_from(size - begin)?];
        file.read_exact_at(&mut tail, begin)?;
        let found: Vec<usize> = (0..tail.len().saturating_sub(MAGIC.len()))
            .filter(|&at| tail[at..].starts_with(MAGIC))
            .collect();
        let [only] = found[..] else {
            bail!("{} states of ours in the image", found.len());
        };
        let at = only.checked_sub(8 + ID).context("no record of libxl's")?;
        ensure!(word(&tail, at)? == EMULATOR_CONTEXT, "no record of libxl's");
        Ok(Self {
            rest: tail.split_off(at),
            at: begin + at as u64,
            file,
        })
    }

    /// Writes the image again with what `alter` makes of the record's body.
    fn write(&self, alter: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let size = word(&self.rest, 4)? as usize;
        let (own, after) = self.rest.split_at(8 + size.next_multiple_of(8));
        let mut body = own[8..8 + size].to_vec();
        alter(&mut body);
        let mut whole = EMULATOR_CONTEXT.to_le_bytes().to_vec();
        whole.extend(u32::try_from(body.len())?.to_le_bytes());
        whole.extend(body);
        whole.resize(whole.len().next_multiple_of(8), 0);
        whole.extend(after);
        self.file.write_all_at(&whole, self.at)?;
        Ok(self.file.set_len(self.at + whole.len() as u64)?)
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("cut short")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

/// How long the state is in a record of ours.
pub(super) fn length(record: &[u8]) -> usize {
    word(record, 16).map_or(0, |length| length as usize)
}
