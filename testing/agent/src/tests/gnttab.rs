//! Pages shared and mapped in both directions, and the kernel's word about each end that goes.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use xen_gnttab::{PageAccess, map_from, share as share_pages};
use xen_sys::{DomId, GrantRef, PAGE_SIZE, Xen};

use crate::host::{Place, TestHost, soon};
use crate::job::{Exit, Job};
use crate::stream::Stream;
use crate::suite::{Needs, Test};

const PAGES: &str = "5";
const KEY: &str = "77";

pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    for sharer in [Place::Dom0, Place::DomU] {
        let name = |what: &str| {
            format!(
                "gnttab/{}_shares_{}_maps_{what}",
                sharer.name(),
                sharer.other().name()
            )
        };
        tests.push(Test::new(name("mapper_leaves"), needs, move |host| {
            mapper_leaves(host, sharer)
        }));
        tests.push(Test::new(name("mapper_killed"), needs, move |host| {
            mapper_killed(host, sharer)
        }));
        tests.push(Test::new(name("sharer_killed"), needs, move |host| {
            sharer_killed(host, sharer)
        }));
        tests.push(Test::new(name("refused"), needs, move |host| {
            refused(host, sharer)
        }));
    }
    tests.push(Test::new(
        "gnttab/pages_of_two_domains_at_once",
        needs,
        two_domains,
    ));
}

fn share(host: &TestHost, sharer: Place) -> Result<(Job, String, String)> {
    let mapper = host.domid(sharer.other())?.to_string();
    let mut job = host.role(sharer, &["gnttab-share", &mapper, PAGES, KEY])?;
    let refs = job.expect("refs ", soon())?;
    let port = job.expect("port ", soon())?;
    Ok((job, refs, port))
}

fn map(host: &TestHost, sharer: Place, refs: &str, port: &str, then: &str) -> Result<Job> {
    let from = host.domid(sharer)?.to_string();
    let arguments = [
        "gnttab-map",
        &from,
        refs,
        "--port",
        port,
        "--key",
        KEY,
        "--then",
        then,
    ];
    let mut job = host.role(sharer.other(), &arguments)?;
    job.expect("mapped", soon()).context("the mapper")?;
    Ok(job)
}

fn mapper_leaves(host: &TestHost, sharer: Place) -> Result<()> {
    let (mut share, refs, port) = share(host, sharer)?;
    let mut mapper = map(host, sharer, &refs, &port, "leave")?;
    mapper.succeed(soon()).context("the mapper")?;
    share.expect("mapper gone", soon()).context("the sharer")?;
    share.succeed(soon()).context("the sharer")
}

fn mapper_killed(host: &TestHost, sharer: Place) -> Result<()> {
    let (mut share, refs, port) = share(host, sharer)?;
    let mut mapper = map(host, sharer, &refs, &port, "stay")?;
    share.expect("written", soon()).context("the sharer")?;
    mapper.kill(Signal::SIGKILL)?;
    share.expect("mapper gone", soon()).context("the sharer")?;
    share.succeed(soon()).context("the sharer")?;
    ensure!(
        mapper.exit(soon())? == Exit::Signal(9),
        "the mapper was not killed"
    );
    Ok(())
}

fn sharer_killed(host: &TestHost, sharer: Place) -> Result<()> {
    let (mut share, refs, port) = share(host, sharer)?;
    let mut mapper = map(host, sharer, &refs, &port, "stay")?;
    share.expect("written", soon()).context("the sharer")?;
    share.kill(Signal::SIGKILL)?;
    mapper.expect("sharer gone", soon()).context("the mapper")?;
    mapper.succeed(soon()).context("the mapper")?;
    ensure!(
        share.exit(soon())? == Exit::Signal(9),
        "the sharer was not killed"
    );
    Ok(())
}

fn refused(host: &TestHost, sharer: Place) -> Result<()> {
    let (mut share, ..) = share(host, sharer)?;
    let read_only = share.expect("read-only ", soon())?;
    let from = host.domid(sharer)?.to_string();
    host.run_role(sharer.other(), &["gnttab-map-refused", &from, &read_only])?;
    share.kill(Signal::SIGKILL)?;
    share.exit(soon()).map(drop)
}

/// A page of dom0's own and the domU's pages are mapped by one call, in the order given.
fn two_domains(host: &TestHost) -> Result<()> {
    const KEY: u64 = 77;
    let (mut sharer, refs, _) = share(host, Place::DomU)?;
    let (xen, domu) = (Xen::open()?, host.domid(Place::DomU)?);
    let mut own = share_pages(&xen, DomId::DOM0, 1, PageAccess::ReadWrite)?;
    own.region_mut().copy_in(0, b"of dom0 itself")?;
    let mut pages = vec![(DomId::DOM0, own.refs()[0])];
    for number in refs.split(',') {
        pages.push((domu, GrantRef::new(number.trim().parse()?)));
    }
    let mapped = map_from(&xen, &pages, PageAccess::ReadOnly)?;
    let mut ours = [0; 14];
    mapped.region().copy_out(0, &mut ours)?;
    ensure!(&ours == b"of dom0 itself", "{ours:?}");
    // The last two bytes of the share are flags.
    let mut theirs = vec![0; (pages.len() - 1) * PAGE_SIZE - 2];
    mapped.region().copy_out(PAGE_SIZE, &mut theirs)?;
    let mut expected = vec![0; theirs.len()];
    Stream::new(KEY).peek(&mut expected);
    ensure!(theirs == expected, "the domU's pages hold something else");

    // One that is not granted keeps the other from being mapped.
    let wrong = [pages[0], (DomId::DOM0, GrantRef::new(0x00ff_ffff))];
    ensure!(map_from(&xen, &wrong, PageAccess::ReadOnly).is_err());
    drop(mapped);
    sharer.kill(Signal::SIGKILL)?;
    sharer.exit(soon()).map(drop)
}
