//! A CD-ROM changed under a running guest, by libxl and the stubdomain together. libxl does that since Xen 4.20.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, diagnosis};
use crate::suite::{Needs, Test};
use crate::world::{World, command, host_release};

pub(super) fn add(tests: &mut Vec<Test>) {
    // Before, libxl refuses to change a CD-ROM where there is a stubdomain.
    if host_release() >= (4, 20) {
        tests.push(Test::new("stubdom/cdrom_changed", Needs::Dom0, changed));
    }
}

/// Two media on loop devices of dom0: for the guest's drive libxl wants a block device.
struct Media([String; 2]);

impl Media {
    fn make() -> Result<Self> {
        let device = |name: &str| {
            let file = format!("/tmp/{name}.iso");
            let mut medium = format!("medium {name}").into_bytes();
            medium.resize(64 * 1024, 0);
            fs::write(&file, medium)?;
            let free = command(&["losetup", "-f"])?;
            let device = free.first().context("no loop device")?.trim().to_owned();
            command(&["losetup", "-r", &device, &file])?;
            anyhow::Ok(device)
        };
        Ok(Self([device("one")?, device("two")?]))
    }

    fn remove(&self) -> Result<()> {
        for device in &self.0 {
            command(&["losetup", "-d", device])?;
        }
        fs::remove_file("/tmp/one.iso")?;
        fs::remove_file("/tmp/two.iso")?;
        Ok(())
    }
}

fn changed(world: &World) -> Result<()> {
    let media = Media::make()?;
    let result = changed_with(world, &media);
    media.remove().and(result)
}

fn changed_with(world: &World, media: &Media) -> Result<()> {
    let [one, two] = &media.0;
    let disks = format!(
        "disk=[\"format=raw,vdev=hda,access=rw,backendtype=phy,script=block-testbed,target=/dev/loop0\", \
         \"format=raw,vdev=hdc,access=ro,devtype=cdrom,backendtype=phy,script=block-testbed,target={one}\"]"
    );
    let mut guest = Guest::create_with(&world.store, &[&disks])
        .with_context(|| format!("creating the guest{}", diagnosis()))?;
    let seen = (|| -> Result<()> {
        guest.says("xen-guest: alive second=")?;
        holds(world, &mut guest, "holds medium one")?;
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
            .and_then(|_| holds(world, &mut guest, words))
            .with_context(|| format!("{step}{}", diagnosis()))?;
        }
        Ok(())
    })();
    guest.destroy()?;
    seen
}

/// What the guest itself reads from its drive.
fn holds(world: &World, guest: &mut Guest, words: &str) -> Result<()> {
    guest.types(&world.store, "#")?;
    let seen = guest.says("xen-guest: cd ")?;
    ensure!(seen == words, "the guest says that its drive {seen}");
    Ok(())
}
