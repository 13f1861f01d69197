//! The command line's options, and a store that disappears.

use std::ffi::OsString;

use stubdm_qmp::policy::Policy;
use xen_store_server::{Config, Server as Daemon};
use xen_sys::sim::Simulation;

use super::*;
use crate::rt::poll::sleep;
use std::time::Instant;

fn filtering(extra: &[&str], node: &str) -> Result<Option<Policy>> {
    let rest = ["5", node, "/run/s"];
    let args = ["vchan-socket-proxy"].iter().chain(extra).chain(&rest);
    let options = crate::cli::proxy_options(args.map(OsString::from).collect())?;
    policy_for(&options.unwrap())?
        .map(HostPolicy::into_policy)
        .transpose()
}

#[test]
fn a_filter_is_there_when_asked_for_and_a_wrong_option_is_one_line() {
    let qmp = "/local/domain/5/device-model/4/qmp-vchan";
    let on = filtering(&["--filter=on", "--policy=/dev/null"], qmp);
    assert!(
        on.unwrap_err().to_string().contains("policy /dev/null"),
        "read, and empty"
    );
    assert_eq!(filtering(&["--filter=off"], qmp).unwrap(), None);
    assert!(
        filtering(&[], qmp).unwrap().is_some(),
        "as libxl starts it, it filters"
    );
    let other = "/local/domain/5/data/x";
    assert_eq!(filtering(&[], other).unwrap(), None, "no QMP");
    assert_eq!(filtering(&["--mode=server"], qmp).unwrap(), None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, "version = 1\nbase = \"nothing\"").unwrap();
    let named = format!("--policy={}", path.display());
    assert_eq!(filtering(&[&named], qmp).unwrap(), Some(Policy::nothing()));
    for (extra, node, word) in [
        (&["--filter=off", named.as_str()][..], qmp, "--filter=off"),
        (&["--filter=on", "--mode=server"], qmp, "client mode"),
        (&[named.as_str()], "/local/domain/5/data/x", "qmp-vchan"),
        (
            &["--policy=/nonexistent/p.toml"],
            qmp,
            "/nonexistent/p.toml",
        ),
    ] {
        let failure = filtering(extra, node).unwrap_err().to_string();
        assert!(
            failure.contains(word) && !failure.contains('\n'),
            "{failure}"
        );
    }
}
#[test]
fn a_store_that_is_lost_does_not_keep_the_proxy_awake() {
    let simulation = Simulation::start().unwrap();
    let daemon = Daemon::start(Config::new()).unwrap();
    let domid = simulation.add_domain().unwrap();
    daemon.add_domain(domid);
    daemon.introduce(domid);
    let open = || {
        let xen = simulation.xen(DomId::DOM0).context("xen")?;
        Ok((xen, daemon.connect(DomId::DOM0).context("store")?))
    };
    let mut target = Target::open(domid, open).unwrap();
    assert!(target.lifetime.reason().unwrap().is_none());
    assert_eq!(target.lifetime.interests().len(), 1);
    daemon.drop_connections(DomId::DOM0);
    sleep(
        &target.lifetime.interests(),
        Some(Instant::now() + std::time::Duration::from_secs(30)),
    )
    .unwrap();
    assert!(target.lifetime.reason().unwrap().is_none());
    assert!(target.lifetime.interests().is_empty());
}
