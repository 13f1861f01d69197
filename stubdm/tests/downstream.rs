//! The input of each known libxl to the proxy, to QEMU's monitor and to the stubdomain. The
//! fixtures are written from its sources; each names them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde_json::Value;
use stubdm::cli;
use stubdm::libxl::dm_argv::DmArgv;
use stubdm::libxl::dm_argv::rewrite::Verdict;
use stubdm::proxy::options::{Mode, Socket};
use stubdm_qmp::json::Json;
use stubdm_qmp::policy::Policy;
use stubdm_qmp::policy::schema::Version;

/// The fixtures, by name.
fn all() -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/downstream");
    let all: BTreeMap<_, _> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let value = serde_json::from_slice(&fs::read(&path).unwrap());
            (name, value.unwrap_or_else(|e| panic!("{path:?}: {e}")))
        })
        .collect();
    assert_eq!(
        all.keys().collect::<Vec<_>>(),
        ["openxt", "qubes", "upstream"]
    );
    all
}

fn words(value: &Value) -> Vec<String> {
    let words = value.as_array().unwrap().iter();
    words.map(|w| w.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_proxy_takes_each_toolstacks_command_line() {
    for (name, fixture) in all() {
        let line = ["/usr/bin/vchan-socket-proxy".to_owned()];
        let line = line.into_iter().chain(words(&fixture["proxy"]));
        let options = cli::proxy_options(line.map(OsString::from).collect());
        let options = options.unwrap_or_else(|e| panic!("{name}: {e}")).unwrap();
        assert_eq!((options.domid, options.mode), (5, Mode::Client), "{name}");
        assert_eq!(options.node, "/local/domain/5/device-model/4/qmp-vchan");
        assert_eq!(
            Socket::parse(&options.socket),
            Socket::Path("/var/run/xen/qmp-libxl-4".into())
        );
        assert!(options.state_path.is_some(), "{name}");
        let marker = fixture["reconnect_marker"].as_u64();
        assert_eq!(options.reconnect_marker.map(u64::from), marker, "{name}");
    }
}

#[test]
fn the_policy_lets_each_toolstacks_commands_and_answers_pass() {
    let policy = Policy::built_in().unwrap();
    for (name, fixture) in all() {
        let mut version = Version::default();
        for step in fixture["qmp"].as_array().unwrap() {
            let read = |value: &Value| {
                Json::read(value.to_string().as_bytes(), &policy.limits.json).unwrap()
            };
            let command = step["execute"].as_str().unwrap();
            let arguments = step.get("arguments").map(read);
            let allowed = policy
                .command(command, arguments.as_ref(), version)
                .unwrap_or_else(|why| panic!("{name}: {step}: {why}"));
            if let Some(given) = arguments {
                let passed = allowed.arguments.unwrap().to_string();
                let passed: Value = serde_json::from_str(&passed).unwrap();
                let given: Value = serde_json::from_str(&given.to_string()).unwrap();
                assert_eq!(passed, given, "{name}: nothing is taken out");
            }
            let answer = read(&step["answer"]);
            policy
                .answer(allowed.row, &answer)
                .unwrap_or_else(|why| panic!("{name}: {step}: {why}"));
            if command == "query-version" {
                let part = |part: &str| step["answer"]["qemu"][part].as_u64().unwrap() as u16;
                version = Version(part("major"), part("minor"), part("micro"));
            }
        }
    }
}

#[test]
fn a_stubdomain_can_start_with_each_toolstacks_arguments() {
    for (name, fixture) in all() {
        let args = words(&fixture["dm_argv"]);
        let argv = DmArgv::new(args.into_iter().map(String::into_bytes).collect()).unwrap();
        let expected = fixture["not_kept"].as_object().unwrap();
        for finding in argv.judge(&|_| false) {
            let verdict = match &finding.verdict {
                Verdict::Kept => "kept",
                Verdict::Noted(_) => "noted",
                Verdict::Changed { .. } => "changed",
                Verdict::Dropped(_) => "dropped",
                Verdict::Refused(_) => "refused",
            };
            let none = finding.value.as_deref() == Some("none");
            let wanted = expected.get(&finding.option).filter(|_| !none);
            let wanted = wanted.map_or("kept", |verdict| verdict.as_str().unwrap());
            assert_eq!(verdict, wanted, "{name}: {finding:?}");
        }
    }
}
