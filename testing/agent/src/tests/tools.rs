//! The commands a person runs in dom0, on a host with a guest and a stubdomain.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::{Guest, LOG, diagnosis};
use crate::host::{TestHost, command, soon};
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut on_guest = |name: &str, body: fn(&TestHost, &mut Guest) -> Result<()>| {
        tests.push(Test::new(name, Needs::Guest, move |host| {
            host.with_guest(body)
        }));
    };
    on_guest("tools/dmargs_of_a_running_guest", dmargs);
    on_guest("tools/status_of_a_running_guest", status);
    tests.push(Test::new(
        "tools/doctor_finds_dom0_well",
        Needs::Package,
        |_| doctor(),
    ));
    tests.push(Test::new(
        "tools/package_removed_and_installed_again",
        Needs::Package,
        |_| {
            let removed = removed();
            // Also for the tests after this one.
            installed_again().and(removed)
        },
    ));
    tests.push(Test::new(
        "tools/arguments_that_cannot_work_are_mended",
        Needs::Package,
        mended,
    ));
}

/// `dmargs` finds libxl's arguments usable, by the guest's number and by the stubdomain's.
fn dmargs(_: &TestHost, guest: &mut Guest) -> Result<()> {
    let domid = guest.id.to_string();
    let said = command(&["stubdm-run", "dmargs", "check", &domid])?.join("\n");
    ensure!(
        said.contains("a stubdomain can start with these") && !said.contains("note:"),
        "{said}"
    );
    let stub = guest.stub.to_string();
    let json = command(&["stubdm-run", "dmargs", "show", "--json", &stub])?.join("\n");
    let json: Value = serde_json::from_str(&json).context(json)?;
    ensure!(
        json["guest"] == guest.id.as_u16() && json["protocol"] == "linux",
        "{json}"
    );
    let args = json["arguments"].as_array().context("no arguments")?;
    ensure!(
        args.first().is_some_and(|first| first == "-xen-domid"),
        "{json}"
    );
    let explained = command(&["stubdm-run", "dmargs", "explain", &domid])?.join("\n");
    ensure!(
        explained.contains("the guest's domain id") && !explained.contains("not known here"),
        "{explained}"
    );
    Ok(())
}

/// `status` shows the proxy's counters a second later, and the console server.
fn status(_: &TestHost, guest: &mut Guest) -> Result<()> {
    let shown = || -> Result<Value> {
        let json = command(&["stubdm-run", "status", "--json"])?.join("\n");
        let mut all: Value = serde_json::from_str(&json).context(json)?;
        ensure!(all["guests"][0]["guest"] == guest.id.as_u16(), "{all}");
        Ok(all["guests"][0].take())
    };
    let count = |row: &Value, name: &str| row["qmp"][name].as_u64().unwrap_or_default();
    let before = shown()?;
    let mut qmp = Qmp::connect(guest.socket())?;
    qmp.execute("query-status", None)?;
    ensure!(qmp.execute("quit", None).is_err(), "quit was not denied");
    let deadline = soon();
    let mut after = shown()?;
    while count(&after, "denied") == count(&before, "denied") {
        ensure!(Instant::now() < deadline, "{after}");
        thread::sleep(Duration::from_millis(200));
        after = shown()?;
    }
    for name in ["sessions", "answered", "denied"] {
        let (before, after) = (count(&before, name), count(&after, name));
        // Events of earlier commands may have arrived in between.
        ensure!(after > before, "{name}: {before}, then {after}");
    }
    ensure!(
        count(&after, "latency_us") > 0 && after["consoles"]["alive"] == true,
        "{after}"
    );
    let table = command(&["stubdm-run", "status"])?;
    println!("    {}", table.join("\n    "));
    ensure!(
        table.len() == 2 && table[1].ends_with("running"),
        "{table:?}"
    );
    Ok(())
}

/// The testbed's dom0 has everything, the guests' ramdisk included.
fn doctor() -> Result<()> {
    let said = command(&["stubdm-run", "doctor"])?.join("\n");
    for part in [
        "this is its control domain",
        "vchan-socket-proxy is stubdm-run, put there by install",
        "QEMU is /usr/libexec/xen-qemu-system-i386.distrib",
        "/boot/stub.img: ",
        "guests with stubdomains can be started here",
    ] {
        ensure!(said.contains(part), "no `{part}` in:\n{said}");
    }
    Ok(())
}

/// Where libxl looks for what ours takes the place of.
const PLACES: [&str; 2] = [
    "/usr/bin/vchan-socket-proxy",
    "/usr/libexec/xen-qemu-system-i386",
];

/// Whether both places lead to our program, or neither does; and the files put aside are there only
/// with ours.
fn places_are(ours: bool) -> Result<()> {
    for place in PLACES {
        let file = fs::canonicalize(place).context(place)?;
        ensure!(
            (file == Path::new("/usr/bin/stubdm-run")) == ours,
            "{place} leads to {}",
            file.display()
        );
        let aside = format!("{place}.distrib");
        ensure!(fs::symlink_metadata(&aside).is_ok() == ours, "{aside}");
    }
    Ok(())
}

/// The files that dom0 had before the package are back in their places.
fn removed() -> Result<()> {
    places_are(true)?;
    command(&["/usr/bin/dpkg", "-r", "stubdm"])?;
    places_are(false)?;
    ensure!(
        !fs::exists("/usr/bin/stubdm-run")?,
        "the program is still there"
    );
    let diversions = fs::read_to_string("/var/lib/dpkg/diversions")?;
    ensure!(diversions.is_empty(), "diversions are left: {diversions}");
    Ok(())
}

/// As dom0's init does it.
fn installed_again() -> Result<()> {
    command(&["/usr/bin/dpkg", "-i", "/root/stubdm.deb"])?;
    command(&["stubdm-run", "install", "device-model"])?;
    places_are(true)?;
    doctor()
}

/// Each of these would keep QEMU from starting in the stubdomain, or from being watched over there.
fn mended(host: &TestHost) -> Result<()> {
    // Not device_model_args: the QEMU that libxl starts in dom0 for the stubdomain gets those as
    // well.
    let args =
        "device_model_args_hvm=[\"-display\",\"gtk\",\"-pidfile\",\"/srv/x/pid\",\"-daemonize\"]";
    let guest = Guest::create_with(&host.store, &[args])
        .with_context(|| format!("creating the guest{}", diagnosis()))?;
    let checked = (|| -> Result<()> {
        let log = fs::read_to_string(LOG).with_context(|| format!("reading {LOG}"))?;
        for part in [
            "-display gtk: changed to \"none\"",
            "-pidfile /srv/x/pid: left out",
            "-daemonize: left out",
        ] {
            ensure!(log.contains(part), "no `{part}` in {LOG}:\n{log}");
        }
        Ok(())
    })();
    guest.destroy()?;
    checked
}
