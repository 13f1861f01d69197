mod text;

use super::*;

fn json(text: &str) -> Json {
    Json::read(text.as_bytes(), &Policy::nothing().limits.json).unwrap()
}

fn built_in() -> Policy {
    Policy::built_in().unwrap()
}

/// The row that takes a command, or the refusal.
fn asked(command: &str, arguments: &str, version: Version) -> Result<(String, String), String> {
    let policy = built_in();
    let given = (!arguments.is_empty()).then(|| json(arguments));
    match policy.command(command, given.as_ref(), version) {
        Ok(allowed) => Ok((
            policy.rows[allowed.row].name.clone(),
            allowed
                .arguments
                .map_or_else(String::new, |a| a.to_string()),
        )),
        Err(denied) => Err(denied.to_string()),
    }
}

const OLD: Version = Version(7, 2, 22);
const NEW: Version = Version(9, 2, 0);

/// libxl's commands, to the letter: command, arguments, the row. Every row has at least one.
const SENT: &[(&str, &str, &str)] = &[
    ("cont", "", "cont"),
    ("stop", "", "stop"),
    (
        "xen-save-devices-state",
        r#"{"filename":"/dev/fdset/1","live":true}"#,
        "xen-save-devices-state",
    ),
    (
        "xen-save-devices-state",
        r#"{"filename":"/dev/fdset/1"}"#,
        "xen-save-devices-state",
    ),
    (
        "xen-set-global-dirty-log",
        r#"{"enable":true}"#,
        "xen-set-global-dirty-log",
    ),
    ("system_wakeup", "", "system_wakeup"),
    ("query-version", "", "query-version"),
    ("query-status", "", "query-status"),
    ("query-commands", "", "query-commands"),
    ("query-cpus-fast", "", "query-cpus-fast"),
    ("query-cpus", "", "query-cpus"),
    ("query-hotpluggable-cpus", "", "query-hotpluggable-cpus"),
    (
        "device_add",
        r#"{"id":"cpu-1","driver":"qemu32-i386-cpu","socket-id":1,"core-id":0,"thread-id":0}"#,
        "device_add, processor",
    ),
    ("cpu-add", r#"{"id":1}"#, "cpu-add"),
    (
        "device_add",
        r#"{"driver":"xen-pci-passthrough","id":"pci-pt-03_00.0","hostaddr":"0000:03:00.0","addr":"5.0","permissive":true}"#,
        "device_add, PCI",
    ),
    (
        "device_add",
        r#"{"driver":"xen-pci-passthrough","id":"pci-pt-03_1f.7","hostaddr":"0000:03:1f.7"}"#,
        "device_add, PCI",
    ),
    (
        "device_add",
        r#"{"driver":"xen-pci-passthrough","id":"pci-pt-03_1f.7","hostaddr":"0000:03:1f.7","permissive":true,"power_mgmt":true}"#,
        "device_add, PCI",
    ),
    ("query-pci", "", "query-pci"),
    (
        "device_del",
        r#"{"id":"pci-pt-03_00.0"}"#,
        "device_del, PCI",
    ),
    (
        "device_add",
        r#"{"driver":"nec-usb-xhci","p2":"4","p3":"4","id":"xenusb-0"}"#,
        "device_add, USB controller",
    ),
    (
        "device_add",
        r#"{"driver":"usb-ehci","id":"xenusb-0"}"#,
        "device_add, USB controller",
    ),
    (
        "device_add",
        r#"{"id":"xenusb-1-2","driver":"usb-host","bus":"xenusb-0.0","port":"1","hostbus":"1","hostaddr":"2"}"#,
        "device_add, USB device",
    ),
    (
        "device_del",
        r#"{"id":"xenusb-0"}"#,
        "device_del, USB controller",
    ),
    (
        "device_del",
        r#"{"id":"xenusb-1-2"}"#,
        "device_del, USB device",
    ),
    ("query-fdsets", "", "query-fdsets"),
    ("remove-fd", r#"{"fdset-id":7}"#, "remove-fd"),
    ("eject", r#"{"id":"ide-5632"}"#, "eject"),
    ("eject", r#"{"device":"ide-5632"}"#, "eject, by device"),
    (
        "blockdev-change-medium",
        r#"{"id":"ide-5632","filename":"/dev/fdset/2","format":"host_device"}"#,
        "blockdev-change-medium",
    ),
    (
        "change",
        r#"{"device":"ide-5632","target":"/dev/fdset/2","arg":"host_device"}"#,
        "change",
    ),
    (
        "human-monitor-command",
        r#"{"command-line":"info version"}"#,
        "human-monitor-command",
    ),
];

#[test]
fn all_that_libxl_sends_passes_and_each_row_is_used() {
    let mut used = std::collections::BTreeSet::new();
    for (command, arguments, row) in SENT {
        let (taken, sent) = asked(command, arguments, OLD).unwrap();
        assert_eq!(taken, *row, "{command} {arguments}");
        // The same members; the order is the policy's.
        let sorted = |text: &str| match json(if text.is_empty() { "{}" } else { text }) {
            Json::Map(mut members) => {
                members.sort_by(|a, b| a.0.cmp(&b.0));
                members
            }
            _ => panic!(),
        };
        assert_eq!(sorted(&sent), sorted(arguments));
        used.insert(taken);
    }
    for row in &built_in().rows {
        assert!(used.contains(&row.name), "nothing sends {}", row.name);
    }
}

#[test]
fn what_libxl_never_sends_to_a_stubdomain_is_refused() {
    for (command, arguments, word) in [
        ("quit", "", "not in the policy"),
        ("add-fd", "", "not in the policy"),
        ("qmp_capabilities", "", "not in the policy"),
        ("migrate", r#"{"uri":"exec:id"}"#, "not in the policy"),
        (
            "xen-load-devices-state",
            r#"{"filename":"x"}"#,
            "not in the policy",
        ),
        ("nbd-server-start", "{}", "not in the policy"),
        (
            "change-vnc-password",
            r#"{"password":"x"}"#,
            "not in the policy",
        ),
        ("cont", r#"{"x":1}"#, "x is not expected"),
        ("cont", "[]", "an array"),
        (
            "xen-save-devices-state",
            r#"{"filename":"/etc/passwd"}"#,
            "filename",
        ),
        ("device_add", r#"{"driver":"ivshmem","id":"x"}"#, "driver"),
        (
            "device_add",
            r#"{"driver":"usb-host","id":"xenusb-1-2","bus":"xenusb-0.0","port":"1","hostbus":"1","hostaddr":"2","isobufs":"9"}"#,
            "isobufs",
        ),
        ("device_del", r#"{"id":"nic0"}"#, "id"),
        (
            "human-monitor-command",
            r#"{"command-line":"info version","cpu-index":0}"#,
            "cpu-index",
        ),
        (
            "human-monitor-command",
            r#"{"command-line":"a\nb"}"#,
            "control",
        ),
        ("eject", r#"{"id":"ide-5632","force":true}"#, "force"),
        (
            "blockdev-change-medium",
            r#"{"id":"ide-1","filename":"/dev/fdset/1","format":"raw"}"#,
            "format",
        ),
    ] {
        let why = asked(command, arguments, OLD).unwrap_err();
        assert!(why.contains(word), "{command} {arguments}: {why}");
    }
}

#[test]
fn of_a_pci_device_only_what_libxl_sends_passes() {
    let (id, host) = (r#""id":"pci-pt-03_00.0""#, r#""hostaddr":"0000:03:00.0""#);
    let device = r#""driver":"xen-pci-passthrough""#;
    for (arguments, word) in [
        // Options of pciback and Xen, which QEMU does not get.
        (
            format!(r#"{device},{id},{host},"rdm_policy":"strict""#),
            "rdm_policy",
        ),
        (
            format!(r#"{device},{id},{host},"msitranslate":true"#),
            "msitranslate",
        ),
        (
            format!(r#"{device},{id},{host},"power_mgmt":"on""#),
            "power_mgmt",
        ),
        (
            format!(r#"{device},{id},{host},"power_mgmt":1"#),
            "power_mgmt",
        ),
        (
            format!(r#"{device},{id},{host},"permissive":"true""#),
            "permissive",
        ),
        (
            format!(r#"{device},{id},{host},"romfile":"/etc/shadow""#),
            "romfile",
        ),
        (format!(r#"{device},{id},{host},"addr":"5.10""#), "addr"),
        (format!(r#"{device},{id},{host},"bus":"pci.1""#), "bus"),
        (
            format!(r#"{device},{id},"hostaddr":"../../0000:03:00.0""#),
            "hostaddr",
        ),
        (format!(r#"{device},{id},"hostaddr":"03:00.0""#), "hostaddr"),
        (format!(r#"{device},{id}"#), "hostaddr"),
        (format!(r#"{device},"id":"nic0",{host}"#), "id"),
        (format!(r#"{device},{host}"#), "id"),
        (format!(r#""driver":"vfio-pci",{id},{host}"#), "driver"),
    ] {
        let why = asked("device_add", &format!("{{{arguments}}}"), OLD).unwrap_err();
        assert!(why.contains(word), "{arguments}: {why}");
    }
}

#[test]
fn a_newer_qemu_gets_integers_where_older_libxl_sends_strings() {
    let usb = r#"{"id":"xenusb-1-2","driver":"usb-host","bus":"xenusb-0.0","port":"1","hostbus":"1","hostaddr":"2"}"#;
    let sent = asked("device_add", usb, NEW).unwrap().1;
    assert!(
        sent.contains(r#""hostaddr":2,"hostbus":1"#) && sent.contains(r#""port":"1""#),
        "{sent}"
    );
    let sent = asked("device_add", usb, OLD).unwrap().1;
    assert!(sent.contains(r#""hostaddr":"2","hostbus":"1""#), "{sent}");
}

fn answered(command: &str, value: &str) -> Result<String, String> {
    let policy = built_in();
    let row = policy
        .rows
        .iter()
        .position(|row| row.command == command)
        .unwrap();
    policy
        .answer(row, &json(value))
        .map(|value| value.to_string())
}

#[test]
fn answers_as_qemu_gives_them_pass_with_what_libxl_reads() {
    for (command, value, expected) in [
        ("cont", "{}", "{}"),
        ("cont", r#"{"surprise":[1]}"#, "{}"),
        (
            "query-cpus-fast",
            r#"[{"thread-id":1,"props":{"core-id":0},"qom-path":"/machine","cpu-index":0,"target":"x86_64"}]"#,
            r#"[{"cpu-index":0}]"#,
        ),
        (
            "query-hotpluggable-cpus",
            r#"[{"props":{"core-id":0},"vcpus-count":1,"type":"qemu64-x86_64-cpu"}]"#,
            r#"[{"type":"qemu64-x86_64-cpu"}]"#,
        ),
        (
            "query-pci",
            r#"[{"bus":0,"devices":[{"bus":0,"slot":3,"function":0,"qdev_id":"pci-pt-03_00.0","id":{},"regions":[]},{"bus":0,"slot":4,"function":0,"qdev_id":""}]}]"#,
            r#"[{"bus":0,"devices":[{"function":0,"qdev_id":"pci-pt-03_00.0","slot":3},{"function":0,"qdev_id":"","slot":4}]}]"#,
        ),
        (
            "query-fdsets",
            r#"[{"fds":[{"fd":30,"opaque":"stub-devid:2080"}],"fdset-id":1},{"fds":[{"fd":4}],"fdset-id":2}]"#,
            r#"[{"fds":[{"fd":30,"opaque":"stub-devid:2080"}],"fdset-id":1},{"fds":[{"fd":4}],"fdset-id":2}]"#,
        ),
        (
            "human-monitor-command",
            r#""a\r\nb\u001b[2J""#,
            r#""a\r\nb [2J""#,
        ),
        (
            "query-version",
            r#"{"qemu":{"micro":22,"minor":2,"major":7},"package":"Debian 1:7.2"}"#,
            r#"{"package":"Debian 1:7.2","qemu":{"major":7,"micro":22,"minor":2}}"#,
        ),
        (
            "query-status",
            r#"{"status":"running","singlestep":false,"running":true}"#,
            r#"{"running":true,"status":"running"}"#,
        ),
    ] {
        assert_eq!(
            answered(command, value).as_deref(),
            Ok(expected),
            "{command}"
        );
    }
}

#[test]
fn lies_in_answers_are_refused() {
    for (command, value, word) in [
        ("cont", "[]", "an array"),
        ("cont", "\"\"", "a string"),
        (
            "query-cpus-fast",
            r#"[{"cpu-index":-1}]"#,
            "[0].cpu-index: -1",
        ),
        ("query-cpus-fast", r#"[{"cpu-index":4096}]"#, "4096"),
        ("query-cpus-fast", r#"[{}]"#, "missing"),
        ("query-hotpluggable-cpus", r#"[{"type":"ivshmem"}]"#, "type"),
        (
            "query-pci",
            r#"[{"devices":[{"qdev_id":"x","slot":32,"function":0}]}]"#,
            "slot: 32",
        ),
        ("query-pci", r#"[{"bus":0}]"#, "devices is missing"),
        (
            "query-fdsets",
            r#"[{"fds":[],"fdset-id":-6}]"#,
            "fdset-id: -6",
        ),
        (
            "query-fdsets",
            r#"[{"fds":[],"fdset-id":4294967297}]"#,
            "4294967297",
        ),
        ("human-monitor-command", "{}", "an object"),
    ] {
        let why = answered(command, value).unwrap_err();
        assert!(why.contains(word), "{command}: {why}");
    }
}
