//! The store by both ways to it, and its rights and watches across domains.

use anyhow::{Context, Result, ensure};
use xen_store::Permissions;
use xen_sys::DomId;

use super::named;
use crate::host::{Place, TestHost, soon};
use crate::roles::store::Large;
use crate::suite::{Needs, Test};

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    for (name, role) in ROLES {
        let name = format!("store/{name}_dom0_by_socket");
        tests.push(Test::new(name, Needs::Dom0, move |host| {
            alone(host, Place::Dom0, role)
        }));
    }
}

pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    for (name, role) in ROLES {
        let name = named(&format!("store/{name}_domu_by_device"), needs);
        tests.push(Test::new(name, needs, move |host| {
            alone(host, Place::DomU, role)
        }));
    }
    tests.push(Test::new(
        named("store/rights_across_domains", needs),
        needs,
        permissions,
    ));
    for waiter in [Place::Dom0, Place::DomU] {
        let name = format!(
            "store/{}_sees_what_{}_writes",
            waiter.name(),
            waiter.other().name()
        );
        tests.push(Test::new(named(&name, needs), needs, move |host| {
            watch(host, waiter)
        }));
    }
}

const ROLES: [(&str, &str); 3] = [
    ("basics", "store-basics"),
    ("large_folder", "store-large"),
    ("threads", "store-threads"),
];

fn alone(host: &TestHost, place: Place, role: &str) -> Result<()> {
    let domain = host.domid(place)?.to_string();
    // A domU uses relative paths, as its drivers do.
    let folder = match place {
        Place::Dom0 => "/xen-testbed/store",
        Place::DomU | Place::Second => "data/test/store",
    };
    host.store.mkdir(&host.folder(place)?)?;
    match role {
        "store-basics" => {
            // The role compares with the paths of watch events, which come back as the watch was
            // set.
            host.run_role(place, &[role, &domain, folder])?;
        }
        "store-large" => {
            let all = format!("{}/store", host.folder(place)?);
            for name in Large::names(300) {
                host.store.write(&format!("{all}/{name}"), "")?;
            }
            host.run_role(place, &[role, folder, "300"])?;
        }
        _ => host.run_role(place, &[role, folder])?,
    }
    host.store.rm(&host.folder(place)?)?;
    Ok(())
}

fn permissions(host: &TestHost) -> Result<()> {
    let folder = host.folder(Place::Dom0)?;
    let domu = host.domid(Place::DomU)?;
    let secret = format!("{folder}/secret");
    host.store.write(&secret, "for some only")?;
    let answer = |role: &[&str]| -> Result<String> {
        let mut job = host.role(Place::DomU, role)?;
        job.succeed(soon())?;
        job.lines()?
            .first()
            .cloned()
            .context("the role printed nothing")
    };

    let nobody = Permissions::owner_none(DomId::DOM0);
    host.store.set_permissions(&secret, &nobody)?;
    let refused = answer(&["store-read", &secret])?;
    ensure!(
        refused.starts_with("error EACCES"),
        "read without the right: {refused}"
    );
    host.store
        .set_permissions(&secret, &nobody.clone().grant_read(domu))?;
    let read = answer(&["store-read", &secret])?;
    ensure!(read == "value for some only", "read with the right: {read}");
    let refused = answer(&["store-write", &secret, "forged"])?;
    ensure!(
        refused.starts_with("error EACCES"),
        "written without the right: {refused}"
    );
    host.store
        .set_permissions(&secret, &nobody.grant_write(domu).grant_read(domu))?;
    let written = answer(&["store-write", &secret, "by the domU"])?;
    ensure!(written == "ok", "written with the right: {written}");
    ensure!(host.store.read_str(&secret)? == "by the domU");
    host.store.rm(&folder)?;
    Ok(())
}

fn watch(host: &TestHost, waiter: Place) -> Result<()> {
    // In the domU's own folder, which both may write to.
    let folder = host.folder(Place::DomU)?;
    let node = format!("{folder}/signal");
    host.store.mkdir(&folder)?;
    let mut wait = host.role(waiter, &["store-await", &node, "now"])?;
    wait.expect("watching", soon())?;
    let mut write = host.role(waiter.other(), &["store-write", &node, "now"])?;
    write.succeed(soon())?;
    wait.expect("seen", soon())?;
    wait.succeed(soon())?;
    host.store.rm(&folder)?;
    Ok(())
}
