//! The store by both ways to it, and its rights and watches across domains.

use anyhow::{Context, Result, ensure};
use xen_store::Permissions;
use xen_sys::DomId;

use super::named;
use crate::roles::store::Large;
use crate::suite::{Needs, Test};
use crate::world::{Place, World, soon};

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    for (name, role) in ROLES {
        let name = format!("store/{name}_dom0_by_socket");
        tests.push(Test::new(name, Needs::Dom0, move |world| {
            alone(world, Place::Dom0, role)
        }));
    }
}

pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    for (name, role) in ROLES {
        let name = named(&format!("store/{name}_domu_by_device"), needs);
        tests.push(Test::new(name, needs, move |world| {
            alone(world, Place::DomU, role)
        }));
    }
    tests.push(Test::new(
        named("store/rights_across_domains", needs),
        needs,
        rights,
    ));
    for waiter in [Place::Dom0, Place::DomU] {
        let name = format!(
            "store/{}_sees_what_{}_writes",
            waiter.name(),
            waiter.other().name()
        );
        tests.push(Test::new(named(&name, needs), needs, move |world| {
            watch(world, waiter)
        }));
    }
}

const ROLES: [(&str, &str); 3] = [
    ("basics", "store-basics"),
    ("large_folder", "store-large"),
    ("threads", "store-threads"),
];

fn alone(world: &World, place: Place, role: &str) -> Result<()> {
    let domain = world.domid(place)?.to_string();
    // A domU uses relative paths, as its drivers do.
    let folder = match place {
        Place::Dom0 => "/xen-testbed/store",
        Place::DomU | Place::Second => "data/test/store",
    };
    world.store.mkdir(&world.folder(place)?)?;
    match role {
        "store-basics" => {
            // The role compares with the paths of watch events, which come back as the watch was
            // set.
            world.run_role(place, &[role, &domain, folder])?;
        }
        "store-large" => {
            let all = format!("{}/store", world.folder(place)?);
            for name in Large::names(300) {
                world.store.write(&format!("{all}/{name}"), "")?;
            }
            world.run_role(place, &[role, folder, "300"])?;
        }
        _ => world.run_role(place, &[role, folder])?,
    }
    world.store.rm(&world.folder(place)?)?;
    Ok(())
}

fn rights(world: &World) -> Result<()> {
    let folder = world.folder(Place::Dom0)?;
    let domu = world.domid(Place::DomU)?;
    let secret = format!("{folder}/secret");
    world.store.write(&secret, "for some only")?;
    let answer = |role: &[&str]| -> Result<String> {
        let mut job = world.role(Place::DomU, role)?;
        job.succeed(soon())?;
        job.lines()?
            .first()
            .cloned()
            .context("the role printed nothing")
    };

    let nobody = Permissions::owner_none(DomId::DOM0);
    world.store.set_permissions(&secret, &nobody)?;
    let refused = answer(&["store-read", &secret])?;
    ensure!(
        refused.starts_with("error EACCES"),
        "read without the right: {refused}"
    );
    world
        .store
        .set_permissions(&secret, &nobody.clone().grant_read(domu))?;
    let read = answer(&["store-read", &secret])?;
    ensure!(read == "value for some only", "read with the right: {read}");
    let refused = answer(&["store-write", &secret, "forged"])?;
    ensure!(
        refused.starts_with("error EACCES"),
        "written without the right: {refused}"
    );
    world
        .store
        .set_permissions(&secret, &nobody.grant_write(domu).grant_read(domu))?;
    let written = answer(&["store-write", &secret, "by the domU"])?;
    ensure!(written == "ok", "written with the right: {written}");
    ensure!(world.store.read_str(&secret)? == "by the domU");
    world.store.rm(&folder)?;
    Ok(())
}

fn watch(world: &World, waiter: Place) -> Result<()> {
    // In the domU's own folder, which both may write to.
    let folder = world.folder(Place::DomU)?;
    let node = format!("{folder}/signal");
    world.store.mkdir(&folder)?;
    let mut wait = world.role(waiter, &["store-await", &node, "now"])?;
    wait.expect("watching", soon())?;
    let mut write = world.role(waiter.other(), &["store-write", &node, "now"])?;
    write.succeed(soon())?;
    wait.expect("seen", soon())?;
    wait.succeed(soon())?;
    world.store.rm(&folder)?;
    Ok(())
}
