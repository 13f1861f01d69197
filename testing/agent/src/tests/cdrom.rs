//! A CD-ROM changed under a running guest, by libxl and the stubdomain together. libxl does that
//! since Xen 4.20.

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, diagnosis};
use crate::host::{TestHost, command, host_release};
use crate::medium::Medium;
use crate::suite::{Needs, Test};

pub(super) fn add(tests: &mut Vec<Test>) {
    // Before, libxl refuses to change a CD-ROM where there is a stubdomain.
    if host_release() >= (4, 20) {
        tests.push(Test::new("stubdom/cdrom_changed", Needs::Package, changed));
    }
}

fn changed(host: &TestHost) -> Result<()> {
    let (one, two) = (Medium::make("one", false)?, Medium::make("two", false)?);
    let result = changed_with(host, &one.device, &two.device);
    one.remove().and(two.remove()).and(result)
}

fn changed_with(host: &TestHost, one: &str, two: &str) -> Result<()> {
    let disks = format!(
        "disk=[\"format=raw,vdev=hda,access=rw,backendtype=phy,script=block-testbed,target=/dev/loop0\", \
         \"format=raw,vdev=hdc,access=ro,devtype=cdrom,backendtype=phy,script=block-testbed,target={one}\"]"
    );
    let mut guest = Guest::create_with(&host.store, &[&disks])
        .with_context(|| format!("creating the guest{}", diagnosis()))?;
    let seen = (|| -> Result<()> {
        guest.output_after("xen-guest: alive second=")?;
        holds(host, &mut guest, "holds medium one")?;
        for (step, device, words) in [
            ("another medium", Some(two), "holds medium two"),
            ("none", None, "is not readable"),
            ("none again", None, "is not readable"),
            ("the first again", Some(one), "holds medium one"),
        ] {
            match device {
                Some(device) => command(&["xl", "cd-insert", "hvm", "hdc", device]),
                None => command(&["xl", "cd-eject", "hvm", "hdc"]),
            }
            .and_then(|_| holds(host, &mut guest, words))
            .with_context(|| format!("{step}{}", diagnosis()))?;
        }
        Ok(())
    })();
    guest.destroy()?;
    seen
}

/// Fails unless the guest reads these words from its drive.
pub(super) fn holds(host: &TestHost, guest: &mut Guest, words: &str) -> Result<()> {
    guest.types(&host.store, "#")?;
    let seen = guest.output_after("xen-guest: cd ")?;
    ensure!(seen == words, "the guest says that its drive {seen}");
    Ok(())
}
