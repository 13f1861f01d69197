//! The example `simulation`, a program of two processes.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn the_simulation_runs_and_leaves_nothing() {
    // Built with the tests, unless they were picked with `--test`.
    let here = std::env::current_exe().unwrap();
    let path = here.parent().unwrap().join("../examples/simulation");
    assert!(
        path.exists(),
        "{} was not built: cargo build --examples",
        path.display()
    );
    let place = std::env::temp_dir().join(format!("simulation-test-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    let output = Command::new(path).env("TMPDIR", &place).output().unwrap();
    let left = std::fs::read_dir(&place).unwrap().count();
    std::fs::remove_dir_all(&place).unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("a process has joined as Some(DomId(1))"),
        "{said}"
    );
    assert_eq!(left, 0);
}
