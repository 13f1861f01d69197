//! Several clients on one session with QEMU.

use super::*;

#[test]
fn clients_share_one_session_and_get_their_own_answers() {
    let (mut bench, first) = Bench::talking();
    let second = bench.another();
    assert_eq!(
        bench.sent(),
        None,
        "QEMU does not learn of a further client"
    );
    // The ids that libxl always uses.
    for client in [first, second] {
        bench.send_line(client, r#"{"execute":"query-status","id":2020371712}"#);
    }
    for (client, running) in [(first, true), (second, false)] {
        let id = bench.id();
        assert_eq!(bench.sent(), None, "one command at a time");
        bench.qemu(&format!(
            r#"{{"return":{{"running":{running},"status":"x"}},"id":"{id}"}}"#
        ));
        assert_eq!(
            bench.output(client),
            format!(
                "{{\"return\":{{\"running\":{running},\"status\":\"x\"}},\"id\":2020371712}}\r\n"
            )
        );
    }
    assert_eq!(bench.output(first) + &bench.output(second), "");
}

#[test]
fn turns_go_round() {
    let (mut bench, first) = Bench::talking();
    let others = [bench.another(), bench.another()];
    for _ in 0..3 {
        bench.send_line(first, r#"{"execute":"stop","id":1}"#);
    }
    bench.send_line(others[0], r#"{"execute":"cont","id":2}"#);
    bench.send_line(others[1], r#"{"execute":"system_wakeup","id":3}"#);
    let mut order = Vec::new();
    while let Some((command, id)) = bench.sent() {
        order.push(command);
        bench.qemu(&format!(r#"{{"return":{{}},"id":"{id}"}}"#));
    }
    assert_eq!(order, ["stop", "cont", "system_wakeup", "stop", "stop"]);
}

#[test]
fn who_leaves_takes_along_what_qemu_has_not() {
    let (mut bench, first) = Bench::talking();
    let second = bench.another();
    bench.send_line(first, r#"{"execute":"stop","id":1}"#);
    bench.send_line(first, r#"{"execute":"system_wakeup","id":2}"#);
    let late = bench.id();
    bench.multiplexer.handle_client_gone(first, bench.now);
    bench.send_line(second, r#"{"execute":"cont","id":2020371712}"#);
    assert_eq!(bench.sent(), None);
    bench.qemu(&format!(r#"{{"return":{{}},"id":"{late}"}}"#));
    assert_eq!(bench.output(second), "", "a late answer is nobody's");
    let (command, id) = bench.sent().unwrap();
    assert_eq!(command, "cont");
    bench.qemu(&format!(r#"{{"return":{{}},"id":"{id}"}}"#));
    assert_eq!(
        bench.output(second),
        "{\"return\":{},\"id\":2020371712}\r\n"
    );
    assert_eq!(
        bench.sent(),
        None,
        "the rest of the first client's is not sent"
    );
    assert!(
        bench
            .audit()
            .iter()
            .any(|line| line.contains("system_wakeup") && line.contains("before its turn"))
    );
}

#[test]
fn an_answer_that_never_comes_does_not_hold_up_others_for_ever() {
    let (mut bench, first) = Bench::talking();
    bench.send_line(first, r#"{"execute":"stop","id":1}"#);
    bench.id();
    bench.wait(Duration::from_secs(3600));
    assert_eq!(
        bench.multiplexer.poll_connection(),
        VchanAction::Keep,
        "its client waits"
    );
    bench.multiplexer.handle_client_gone(first, bench.now);
    bench.wait(Duration::from_secs(3600));
    assert_eq!(
        bench.multiplexer.poll_connection(),
        VchanAction::Keep,
        "nobody else waits"
    );
    let second = bench.another();
    bench.send_line(second, r#"{"execute":"cont","id":1}"#);
    bench.wait(Duration::ZERO);
    assert!(matches!(
        bench.multiplexer.poll_connection(),
        VchanAction::Connect(_)
    ));
    bench.connect();
    assert_eq!(bench.sent().unwrap().0, "cont");
    assert_eq!(bench.output(second), "");
}

#[test]
fn a_monitor_that_greets_again_is_a_new_session() {
    let (mut bench, client) = Bench::talking();
    bench.send_line(client, r#"{"execute":"stop","id":1}"#);
    bench.id();
    bench.qemu(GREETING);
    let output = bench.output(client);
    assert!(
        output.contains("went away") && !output.contains("QMP"),
        "{output}"
    );
    bench.send_line(client, r#"{"execute":"cont","id":2}"#);
    bench.connect();
    assert_eq!(bench.sent().unwrap().0, "cont");
}

#[test]
fn there_are_only_so_many_seats() {
    let (mut bench, first) = Bench::talking();
    while bench.multiplexer.has_free_slot() {
        bench.another();
    }
    assert_eq!(bench.multiplexer.slots.len(), CLIENTS);
    bench.multiplexer.handle_client_gone(first, bench.now);
    assert!(bench.multiplexer.has_free_slot());
}

#[test]
fn a_client_that_reads_nothing_gets_no_turns() {
    let (mut bench, first) = Bench::talking();
    let second = bench.another();
    let text = "x".repeat(100_000);
    let hmp = r#"{"execute":"human-monitor-command","arguments":{"command-line":"info x"},"id":1}"#;
    for _ in 0..8 {
        let line = format!("{hmp}\r\n");
        bench
            .multiplexer
            .handle_client_bytes(first, line.as_bytes(), bench.now);
    }
    let mut answers = 0;
    while let Some((_, id)) = bench.sent() {
        bench.qemu(&format!(r#"{{"return":"{text}","id":"{id}"}}"#));
        answers += 1;
    }
    assert_eq!(answers, 1, "until it has read the first");
    bench.send_line(second, r#"{"execute":"cont","id":2}"#);
    assert_eq!(bench.sent().unwrap().0, "cont", "others go on");
    assert_eq!(
        bench.output(first).len(),
        text.len() + "{\"return\":\"\",\"id\":1}\r\n".len()
    );
}
