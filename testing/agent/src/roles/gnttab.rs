//! Grants: pages shared by one domain and mapped by another, and how each learns that the other is
//! gone.
//!
//! ```text
//! page(s):  stream with key K by the sharer, in the first half overwritten with K + 1 by the mapper
//! last byte:      1 until the mapper's pages are released, then cleared by the kernel in its stead
//! byte before it: 1 until the sharer's pages are released, likewise
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{PageAccess, Region, UnmapNotify, map, share};
use xen_sys::{DomId, GrantRef, Port, Xen};

use super::patience;
use crate::stream::Stream;

#[derive(Args, Debug)]
pub(crate) struct Share {
    to: DomId,
    pages: usize,
    key: u64,
}

#[derive(Args, Debug)]
pub(crate) struct Map {
    from: DomId,
    #[arg(value_delimiter = ',')]
    refs: Vec<u32>,
    #[arg(long)]
    port: u32,
    #[arg(long)]
    key: u64,
    #[arg(long, value_enum)]
    then: Then,
}

/// The mapper's action after it has seen and written the pages.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Then {
    /// Releases them.
    Leave,
    /// Waits until the sharer is gone.
    Stay,
}

#[derive(Args, Debug)]
pub(crate) struct MapRefused {
    /// The domain whose read-only share is mapped for writing.
    from: DomId,
    #[arg(value_delimiter = ',')]
    refs: Vec<u32>,
}

impl Share {
    /// Prints `refs R,R` and `port P`, `written` once the mapper wrote what it should, `mapper
    /// gone` with the time since then. Waits for the mapper's end forever: until that or a signal.
    pub(crate) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let channels = EventChannels::open(&xen)?;
        let port = channels.bind_unbound(self.to)?;
        let mut pages = share(&xen, self.to, self.pages, PageAccess::ReadWrite)?;
        let mut region = pages.take_region();
        ensure!(
            region.len() == self.pages * 4096,
            "{} bytes are shared",
            region.len()
        );
        let (mine, theirs) = (region.len() - 2, region.len() - 1);
        let mut bytes = vec![0; region.len()];
        region.copy_out(0, &mut bytes)?;
        ensure!(
            bytes.iter().all(|&byte| byte == 0),
            "shared pages are not zeroed"
        );
        Stream::new(self.key).peek(&mut bytes[..mine]);
        region.copy_in(0, &bytes[..mine])?;
        region.copy_in(mine, &[1, 1])?;
        pages.set_unmap_notify(UnmapNotify {
            clear_byte: Some(mine),
            event: Some(port.port()),
        })?;

        let refs: Vec<String> = pages.refs().iter().map(GrantRef::to_string).collect();
        println!("refs {}", refs.join(","));
        println!("port {}", port.port());
        // A read-only share of its own, for the mapper that tries to write.
        let read_only = share(&xen, self.to, 1, PageAccess::ReadOnly)?;
        println!("read-only {}", read_only.refs()[0]);

        event(&channels, &port, None).context("waiting for the mapper's message")?;
        let half = region.len() / 2;
        let mut found = vec![0; mine];
        region.copy_out(0, &mut found)?;
        let mut expected = Stream::new(self.key + 1);
        expected
            .check(&found[..half])
            .map_err(|wrong| anyhow::anyhow!("mapper's half: {wrong}"))?;
        let mut expected = Stream::new(self.key);
        expected.advance(half);
        expected
            .check(&found[half..])
            .map_err(|wrong| anyhow::anyhow!("own half: {wrong}"))?;
        ensure!(
            byte(&region, theirs)? == 1,
            "the mapper's byte is clear though it lives"
        );
        println!("written");
        port.notify()?;

        event(&channels, &port, None).context("waiting for the mapper's end")?;
        // The kernel clears the byte before it sends the event.
        ensure!(
            byte(&region, theirs)? == 0,
            "an event without the byte cleared"
        );
        println!("mapper gone");
        Ok(())
    }
}

impl Map {
    /// Prints `mapped`, then `left` or `sharer gone`.
    pub(crate) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let channels = EventChannels::open(&xen)?;
        let port = channels.bind_interdomain(self.from, Port::new(self.port))?;
        event(&channels, &port, Some(patience())).context("the event of the connection itself")?;
        let refs: Vec<GrantRef> = self.refs.iter().copied().map(GrantRef::new).collect();
        let mut pages = map(&xen, self.from, &refs, PageAccess::ReadWrite)?;
        let mut region = pages.take_region();
        ensure!(
            region.len() == refs.len() * 4096,
            "{} bytes are mapped",
            region.len()
        );
        let (theirs, mine) = (region.len() - 2, region.len() - 1);

        let mut bytes = vec![0; theirs];
        region.copy_out(0, &mut bytes)?;
        Stream::new(self.key)
            .check(&bytes)
            .map_err(|wrong| anyhow::anyhow!("{wrong}"))?;
        let half = region.len() / 2;
        Stream::new(self.key + 1).peek(&mut bytes[..half]);
        region.copy_in(0, &bytes[..half])?;
        ensure!(
            byte(&region, mine)? == 1 && byte(&region, theirs)? == 1,
            "the two bytes are not set"
        );
        pages.set_unmap_notify(UnmapNotify {
            clear_byte: Some(mine),
            event: Some(port.port()),
        })?;
        port.notify()?;
        event(&channels, &port, Some(patience())).context("waiting for the sharer's answer")?;
        println!("mapped");

        match self.then {
            Then::Leave => {
                // The pages are held by the handle and each part of their region.
                drop(pages);
                let kept = region.split_off(mine)?;
                drop(region);
                ensure!(
                    byte(&kept, 0)? == 1,
                    "the pages were released with a part of them still there"
                );
                drop(kept);
                println!("left");
            }
            Then::Stay => {
                event(&channels, &port, None).context("waiting for the sharer's end")?;
                ensure!(
                    byte(&region, theirs)? == 0,
                    "an event without the byte cleared"
                );
                // The pages that the sharer left are still there.
                let mut still = vec![0; half];
                region.copy_out(0, &mut still)?;
                ensure!(
                    still == bytes[..half],
                    "the pages changed when the sharer went"
                );
                println!("sharer gone");
            }
        }
        Ok(())
    }
}

impl MapRefused {
    pub(crate) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let refs: Vec<GrantRef> = self.refs.iter().copied().map(GrantRef::new).collect();
        map(&xen, self.from, &refs, PageAccess::ReadOnly)
            .context("mapping read-only for reading")?;
        if map(&xen, self.from, &refs, PageAccess::ReadWrite).is_ok() {
            bail!("a read-only share was mapped for writing");
        }
        // The first of a refused set must not stay mapped, nor one that was never granted be found.
        let wrong = [refs[0], GrantRef::new(0x7fff_0000)];
        if map(&xen, self.from, &wrong, PageAccess::ReadOnly).is_ok() {
            bail!("a reference that does not exist was mapped");
        }
        println!("ok");
        Ok(())
    }
}

fn byte(region: &Region, offset: usize) -> Result<u8> {
    let mut byte = [0];
    region.copy_out(offset, &mut byte)?;
    Ok(byte[0])
}

/// Waits for an event; without a deadline for longer than any test lasts.
fn event(channels: &EventChannels, port: &BoundPort, deadline: Option<Instant>) -> Result<()> {
    let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(120));
    match channels.wait(Some(deadline))? {
        Some(_) => Ok(port.unmask()?),
        None => bail!("no event"),
    }
}
