use proptest::prelude::*;

use super::*;

/// As seen with Xen 4.17 and 4.20.
const LINE: &str = "-xen-domid 2 -no-shutdown \
    -chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-2,server=on,wait=off -mon chardev=libxl-cmd,mode=control \
    -chardev socket,id=libxenstat-cmd,path=/var/run/xen/qmp-libxenstat-2,server=on,wait=off \
    -mon chardev=libxenstat-cmd,mode=control -nodefaults -no-user-config -xen-attach -name hvm-dm -vnc none -display none \
    -nographic -machine xenpv -m 408";

fn line(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

#[test]
fn libxls_line_is_known_in_the_spellings_of_its_releases() {
    let wanted = recognise(&line(LINE)).unwrap();
    assert_eq!(wanted.domain, DomId::new(2));
    assert_eq!(wanted.libxl, PathBuf::from("/var/run/xen/qmp-libxl-2"));
    let stat = PathBuf::from("/var/run/xen/qmp-libxenstat-2");
    assert_eq!(wanted.libxenstat, Some(stat));
    let old = LINE.replace("server=on,wait=off", "server,nowait");
    assert_eq!(recognise(&line(&old)), Some(wanted.clone()));
    assert_eq!(
        recognise(&line(&LINE.replace(" -nographic", ""))),
        Some(wanted)
    );
}

#[test]
fn a_screen_over_vnc_is_known() {
    let words = "127.0.0.1:0,password=on,to=99";
    let text = LINE.replace("-vnc none", &format!("-vnc {words}"));
    let wanted = recognise(&line(&text.replace(" -nographic", ""))).unwrap();
    assert_eq!(wanted.vnc, words.parse().ok());
    assert_eq!(recognise(&line(LINE)).unwrap().vnc, None);
}

#[test]
fn what_asks_for_more_is_qemus() {
    for (from, to) in [
        ("-vnc none", "-vnc localhost:0,to=99"),
        ("-vnc none", "-vnc 127.0.0.1:0,to=99,websocket=on"),
        ("-vnc none", "-vnc 127.0.0.1:0,to=99 -k en-us"),
        ("-vnc none", "-vnc 127.0.0.1:0,to=99 -vnc none"),
        ("-display none", "-display sdl"),
        ("-display none", ""),
        ("-machine xenpv", "-machine xenfv"),
        ("-machine xenpv", "-machine xenpv,foo=on"),
        ("-machine xenpv", ""),
        ("-xen-attach", ""),
        ("-xen-domid 2", ""),
        ("-xen-domid 2", "-xen-domid 0"),
        ("-xen-domid 2", "-xen-domid 32752"),
        ("-xen-domid 2", "-xen-domid 2x"),
        ("-m 408", "-m"),
        ("-m 408", "-m 4G"),
        ("-name hvm-dm", "-name hvm-dm,process=x"),
        ("path=/var/run/xen/qmp-libxl-2", "fd=5"),
        ("path=/var/run/xen/qmp-libxl-2", "path=qmp"),
        ("path=/var/run/xen/qmp-libxl-2", "path=/a,reconnect=1"),
        ("libxl-cmd,path", "other-cmd,path"),
        ("-mon chardev=libxl-cmd,mode=control", ""),
        ("-mon chardev=libxenstat-cmd,mode=control", ""),
        (
            "-mon chardev=libxl-cmd,mode=control",
            "-mon chardev=libxl-cmd,mode=readline",
        ),
        ("-no-shutdown", "-S"),
        ("-m 408", "-m 408 -m 408"),
        ("-m 408", "-m 408 -k en-us"),
        ("-m 408", "-m 408 -drive file=x"),
        ("-m 408", "-m 408 -chardev pty,id=libxl-channel0"),
    ] {
        let changed = LINE.replacen(from, to, 1);
        assert_ne!(changed, LINE, "{from}");
        assert_eq!(recognise(&line(&changed)), None, "{from} as {to:?}");
    }
    // libxl 4.20's first start, to learn of QEMU's options, and the one for dom0's own disks.
    let probe = "-S -no-user-config -nodefaults -nographic -machine none,accel=xen \
        -chardev socket,id=libxl-cmd,fd=7,server=on,wait=off -mon chardev=libxl-cmd,mode=control";
    let qdisk =
        "-xen-domid 0 -xen-attach -name dom0 -nographic -M xenpv -daemonize -monitor /dev/null";
    for other in [probe, qdisk, ""] {
        assert_eq!(recognise(&line(other)), None, "{other}");
    }
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = line(LINE);
    bytes.push(OsString::from_vec(vec![0xff]));
    assert_eq!(recognise(&bytes), None);
}

/// Words libxl uses elsewhere, QEMU's, and any.
fn word() -> impl Strategy<Value = OsString> {
    let known = LINE.split_whitespace().collect::<Vec<_>>();
    prop_oneof![
        proptest::sample::select(known).prop_map(OsString::from),
        "-[a-z]{1,8}".prop_map(OsString::from),
        "[a-z=,/0-9:]{0,12}".prop_map(OsString::from),
        proptest::collection::vec(1u8..=255, 0..12).prop_map(|bytes| {
            use std::os::unix::ffi::OsStringExt;
            OsString::from_vec(bytes)
        }),
    ]
}

proptest! {
    /// One word more, wherever it stands: only a second `-nographic` passes.
    #[test]
    fn a_word_more_is_qemus(at in 0..25usize, more in word()) {
        let mut args = line(LINE);
        let at = at.min(args.len());
        args.insert(at, more.clone());
        prop_assert!(recognise(&args).is_none() || more == "-nographic", "{args:?}");
    }

    /// Another word in the place of one: only the names and numbers may be others.
    #[test]
    fn another_word_is_qemus(at in 0..24usize, other in word()) {
        let mut args = line(LINE);
        let at = at.min(args.len() - 1);
        let was = std::mem::replace(&mut args[at], other.clone());
        let free = ["2", "hvm-dm", "408"].iter().any(|word| was == *word) || was == other;
        // `-nographic` has no effect: it may be left out, or stand in the place of another word.
        let idle = was == "-nographic" || other == "-nographic";
        prop_assert!(recognise(&args).is_none() || free || idle, "{args:?}");
    }

    #[test]
    fn no_words_of_chance_are_served(args in proptest::collection::vec(word(), 0..30)) {
        if let Some(wanted) = recognise(&args) {
            prop_assert!(args.iter().any(|a| a == "-xen-attach") && args.iter().any(|a| a == "xenpv"));
            prop_assert!(wanted.domain != DomId::DOM0);
        }
    }
}
