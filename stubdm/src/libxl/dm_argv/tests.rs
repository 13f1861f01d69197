//! Argument vectors in libxl's spelling and in spellings that break naive readers.

use super::*;

fn argv(args: &[&str]) -> DmArgv {
    DmArgv::new(args.iter().map(|a| a.as_bytes().to_vec()).collect()).unwrap()
}

fn names(numbers: &[&str]) -> Vec<String> {
    numbers.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn names_sort_as_numbers_past_three_digits() {
    let shuffled: Vec<String> = (1..=1001).rev().map(|n| format!("{n:03}")).collect();
    let sorted = in_order(shuffled).unwrap();
    assert_eq!(sorted.first().unwrap(), "001");
    assert_eq!(&sorted[998..], ["999", "1000", "1001"]);
}

#[test]
fn a_lost_argument_is_not_passed_over() {
    assert_eq!(in_order(names(&["001", "003"])), Err(ArgvError::Gap(2)));
    assert_eq!(in_order(names(&["1", "001"])), Err(ArgvError::Twice(1)));
    for bad in ["", "x", "+1", "1 ", "99999999999"] {
        let error = in_order(names(&[bad])).unwrap_err();
        assert_eq!(error, ArgvError::NotANumber(bad.to_owned()));
    }
    assert_eq!(in_order(Vec::new()), Ok(Vec::new()));
}

#[test]
fn empty_and_odd_arguments_stay_as_they_are() {
    let raw = vec![b"".to_vec(), b"a\nb\\".to_vec(), vec![0xff, 0xfe]];
    let argv = DmArgv::new(raw.clone()).unwrap();
    assert_eq!(argv.args(), raw);
    let os: Vec<Vec<u8>> = argv.into_os().into_iter().map(OsString::into_vec).collect();
    assert_eq!(os, raw);
    assert_eq!(
        DmArgv::new(vec![b"a".to_vec(), vec![0]]),
        Err(ArgvError::Nul(2))
    );
    assert_eq!(
        DmArgv::new(Vec::new()),
        Err(ArgvError::Empty { mini_os: false })
    );
}

#[test]
fn only_a_whole_argument_is_the_placeholder() {
    let mut argv = argv(&[
        "-name",
        "x$STUBDOM_RESTORE_INCOMING_ARG",
        "-incoming",
        "$STUBDOM_RESTORE_INCOMING_ARG",
    ]);
    assert!(argv.wants_incoming());
    argv.set_incoming("fd:7");
    assert_eq!(argv.args()[1], b"x$STUBDOM_RESTORE_INCOMING_ARG");
    assert_eq!(argv.args()[3], b"fd:7");
    assert!(!argv.wants_incoming());
}

#[test]
fn devices_are_found_in_libxls_own_spelling() {
    let argv = argv(&[
        "-xen-domid",
        "7",
        "-serial",
        "/dev/hvc3",
        "-device",
        "rtl8139,id=nic0,netdev=net0,mac=00:16:3e:00:00:01",
        "-netdev",
        "type=tap,id=net0,ifname=vif7.0-emu,br=xenbr0,script=no,downscript=no",
        "-drive",
        "file=/dev/xvda,if=ide,index=0,media=disk,format=host_device,cache=writeback",
        "-drive",
        "if=none,readonly=on,id=ide-5632,file=/dev/xvdc,format=host_device",
        "-device",
        "ide-cd,id=ide-5632,drive=ide-5632,bus=ide.1,unit=0",
        "-name",
        "-drive",
        "file=/dev/xvdz",
    ]);
    // A guest *named* `-drive` has no disk more.
    assert_eq!(argv.disks(), ["/dev/xvda", "/dev/xvdc"]);
    let tap = Tap {
        number: 0,
        mac: Some("00:16:3e:00:00:01".into()),
    };
    assert_eq!(argv.taps(), [tap]);
    assert_eq!(argv.serial_ttys(), ["/dev/hvc3"]);
    assert_eq!(argv.nic_models(), ["rtl8139"]);
    assert_eq!(argv.cd_drives(), [5632]);
}

#[test]
fn each_tap_becomes_the_descriptor_that_is_meant_for_it() {
    let net = |id: &str| format!("tap,id={id},ifname=vif7.{id}-emu,script=no");
    let (one, two) = (net("net1"), net("net10"));
    let mut argv = argv(&[
        "-netdev",
        &one,
        "-netdev",
        &two,
        "-netdev",
        "user,id=net1",
        "-name",
        "-netdev",
        &one,
    ]);
    let numbers: Vec<u32> = argv.taps().iter().map(|tap| tap.number).collect();
    assert_eq!(numbers, [1, 10]);
    argv.set_tap("net1", 7);
    let text: Vec<_> = argv
        .args()
        .iter()
        .map(|a| String::from_utf8_lossy(a))
        .collect();
    assert_eq!(text[1], "type=tap,id=net1,fd=7");
    assert_eq!(text[3], two);
    assert_eq!(text[5], "user,id=net1");
    assert_eq!(text[8], one, "the value of no option");
    for other in [
        "tap,id=net",
        "tap,id=net+1",
        "tap,id=other0",
        "tap",
        "user,id=net0",
    ] {
        assert_eq!(tap_number(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn a_doubled_comma_is_a_comma() {
    let pairs = pairs(b"file=/a,,b,id=x,,");
    assert_eq!(
        pairs,
        [("file".into(), "/a,b".into()), ("id".into(), "x,".into())]
    );
}

#[test]
fn mini_os_is_named_in_the_complaint() {
    let line = ArgvError::Missing { mini_os: true }.to_string();
    assert!(
        line.contains("dmargs") && line.contains("qemu-xen"),
        "{line}"
    );
    assert!(
        !ArgvError::Empty { mini_os: false }
            .to_string()
            .contains("Mini-OS")
    );
}
