//! The hypervisor's version where it may be asked for, and the refusal where not.

use anyhow::{Result, bail, ensure};

use crate::host::{Place, Privcmd, TestHost, command, soon};
use crate::suite::{Needs, Test};

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    tests.push(Test::new("sys/version_dom0", Needs::Dom0, |host| {
        asks(host, Place::Dom0)
    }));
}

pub(super) fn add_unrestricted(tests: &mut Vec<Test>) {
    let needs = Needs::DomU(Privcmd::Unrestricted);
    tests
        .push(Test::new("sys/version_domu", needs, |host| asks(host, Place::DomU)).opens_privcmd());
}

pub(super) fn add_refusing(tests: &mut Vec<Test>) {
    let needs = Needs::DomU(Privcmd::Refusing);
    // Opening it here also shows that an opening is seen: the tests after this one rely on that.
    tests.push(Test::new("sys/privcmd_refuses_in_domu", needs, refused).opens_privcmd());
}

fn asks(host: &TestHost, place: Place) -> Result<()> {
    let mut job = host.role(place, &["version"])?;
    let version = job.expect("version ", soon())?;
    job.succeed(soon())?;
    let info = command(&["xl", "info"])?;
    let expected = info.iter().find_map(|line| {
        let value = line
            .strip_prefix("xen_version")?
            .trim_start()
            .strip_prefix(':')?;
        let mut parts = value.trim().split('.');
        Some(format!("{}.{}", parts.next()?, parts.next()?))
    });
    ensure!(
        expected.as_ref() == Some(&version),
        "{version}; xl says {expected:?}"
    );
    Ok(())
}

fn refused(host: &TestHost) -> Result<()> {
    let mut job = host.role(Place::DomU, &["version"])?;
    job.succeed(soon())?;
    let lines = job.lines()?;
    match lines.iter().find_map(|line| line.strip_prefix("refused ")) {
        Some(errno) if errno.contains("EPERM") => Ok(()),
        _ => bail!("privcmd answered otherwise in a domU: {lines:?}"),
    }
}
