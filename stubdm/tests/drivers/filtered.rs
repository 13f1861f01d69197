//! The same under a policy: commands it denies, answers it does not let pass, and one monitor
//! session for all.

use serde_json::json;

use crate::bench::Bench;
use crate::fake;

#[test]
fn two_hundred_clients_in_turn() {
    for ours in [true, false] {
        let mut bench = Bench::filtered(ours, &["allowed"]);
        for _ in 0..200 {
            bench.converse("allowed");
        }
        bench.settle();
        assert_eq!(bench.qemu.accepted, 1, "one monitor session for all");
    }
}

#[test]
fn a_denied_command_is_answered_and_qemu_does_not_get_it() {
    let mut bench = Bench::filtered(true, &["allowed"]);
    let mut client = bench.client();
    let greeting = bench.receive(&mut client);
    let numbers = json!({"micro": 22, "minor": 2, "major": 7});
    let version = json!({"qemu": numbers, "package": ""});
    assert_eq!(
        greeting,
        json!({"QMP": {"version": version, "capabilities": []}}),
        "nothing of QEMU's but the numbers"
    );
    client.send(&json!({"execute": "qmp_capabilities", "id": 1}));
    assert_eq!(bench.receive(&mut client), json!({"return": {}, "id": 1}));
    client.send(&json!({"execute": "quit", "id": 2}));
    let answer = bench.receive(&mut client);
    assert_eq!(answer["error"]["class"], "CommandNotFound");
    assert_eq!(answer["id"], 2);
    assert!(
        answer["error"]["desc"]
            .as_str()
            .unwrap()
            .starts_with("stubdm-run: "),
        "said by the proxy, not by QEMU: {answer}"
    );
    client.send(&json!({"execute": "allowed", "id": 3}));
    assert_eq!(
        bench.receive(&mut client),
        json!({"return": {"asked": "allowed"}, "id": 3}),
        "without what the row does not name"
    );
    assert!(!client.ended);
}

#[test]
fn an_answer_beyond_its_limits_is_an_error_and_the_session_goes_on() {
    let mut bench = Bench::filtered(true, &["big", "allowed"]);
    let mut client = bench.client();
    bench.receive(&mut client);
    client.send(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.receive(&mut client);
    client.send(&json!({"execute": "big", "id": 2}));
    let answer = bench.receive(&mut client);
    assert!(
        answer["error"]["desc"]
            .as_str()
            .unwrap()
            .contains("too long"),
        "{answer}"
    );
    assert_eq!(answer["id"], 2);
    client.send(&json!({"execute": "allowed", "id": 3}));
    assert_eq!(bench.receive(&mut client)["return"]["asked"], "allowed");
}

#[test]
fn a_client_that_leaves_at_any_moment_leaves_nothing_to_the_next() {
    for ours in [true, false] {
        for moment in 0..40 {
            let mut bench = Bench::filtered(ours, &["first", "big", "second"]);
            bench.converse("first");
            bench.leave_after(moment);
            bench.converse("second");
        }
    }
}

#[test]
fn a_lost_server_answers_what_was_asked_before_the_end() {
    let mut bench = Bench::filtered(true, &["allowed"]);
    let mut client = bench.client();
    bench.receive(&mut client);
    client.send(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.receive(&mut client);
    bench.far_runs = false;
    client.send(&json!({"execute": "allowed", "id": 2}));
    bench.settle();
    {
        let page = &mut *bench.page.borrow_mut();
        page.server_live = false;
        fake::ring(&mut page.client_bell);
    }
    let answer = bench.receive(&mut client);
    assert_eq!(answer["id"], 2);
    assert!(
        answer["error"]["desc"]
            .as_str()
            .unwrap()
            .contains("went away"),
        "{answer}"
    );
}
