//! Versions, passwords and violations.

use super::*;

#[test]
fn every_version_is_spoken_without_a_password() {
    let picture = Picture::new(3, 2);
    // The versions; the offer; the choice, the result.
    let versions: [[&[u8]; 4]; 6] = [
        [b"RFB 003.003\n", &[0, 0, 0, 1], &[], &[]],
        [b"RFB 003.005\n", &[0, 0, 0, 1], &[], &[]],
        [b"RFB 003.007\n", &[1, 1], &[1], &[]],
        [b"RFB 003.008\n", &[1, 1], &[1], &[0; 4]],
        [b"RFB 003.009\n", &[1, 1], &[1], &[0; 4]],
        [b"RFB 003.889\n", &[1, 1], &[1], &[0; 4]],
    ];
    for [version, offer, choice, result] in versions {
        let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
        output(&mut viewer, &picture);
        send(&mut viewer, version);
        assert_eq!(output(&mut viewer, &picture), offer);
        send(&mut viewer, choice);
        assert_eq!(output(&mut viewer, &picture), result, "{version:?}");
        send(&mut viewer, &[0]);
        assert!(viewer.is_authenticated());
        Decoder::new(NATIVE).init(&output(&mut viewer, &picture));
    }
}

#[test]
fn a_password_is_checked_in_every_version() {
    let picture = Picture::new(3, 2);
    let challenge = [0x5a; 16];
    let options = options(Some(*b"secret\0\0"));
    assert!(!format!("{options:?}").contains("secret") && format!("{options:?}").contains('…'));
    let refusal = [&[0, 0, 0, 1, 0, 0, 0, 21][..], b"the password is wrong"].concat();
    let versions: [[&[u8]; 4]; 3] = [
        [b"RFB 003.003\n", &[0, 0, 0, 2], &[], &refusal[..4]],
        [b"RFB 003.007\n", &[1, 2], &[2], &refusal[..4]],
        [b"RFB 003.008\n", &[1, 2], &[2], &refusal],
    ];
    for [version, offer, choice, refused] in versions {
        for right in [true, false] {
            let mut viewer = Viewer::new(&options, challenge, Instant::now());
            output(&mut viewer, &picture);
            send(&mut viewer, version);
            let mut expected = offer.to_vec();
            if choice.is_empty() {
                expected.extend(challenge);
            }
            assert_eq!(output(&mut viewer, &picture), expected);
            send(&mut viewer, choice);
            if !choice.is_empty() {
                assert_eq!(output(&mut viewer, &picture), challenge);
            }
            let password: &[u8] = if right { b"secret" } else { b"Secret" };
            let response = crate::auth::respond(password, &challenge);
            if right {
                send(&mut viewer, &response);
                assert_eq!(output(&mut viewer, &picture), [0; 4]);
                assert!(!viewer.is_authenticated());
                send(&mut viewer, &[1]);
                assert!(viewer.is_authenticated());
                continue;
            }
            for _ in 0..2 {
                let result = viewer.handle_bytes(&response);
                assert_eq!(result, Err(ViewerError::Password));
            }
            assert!(!viewer.is_authenticated());
            assert_eq!(output(&mut viewer, &picture), refused);
            assert_eq!(
                viewer.handle_timeout(Instant::now()),
                Err(ViewerError::Password)
            );
        }
    }
}

#[test]
fn no_type_of_security_but_the_offered_one_is_taken() {
    for (password, wrong) in [(None, 2), (Some([7; 8]), 1), (None, 0), (None, 16)] {
        let mut viewer = Viewer::new(&options(password), [0; 16], Instant::now());
        send(&mut viewer, b"RFB 003.008\n");
        assert_eq!(
            viewer.handle_bytes(&[wrong]),
            Err(ViewerError::Security(wrong))
        );
        assert!(!viewer.is_authenticated());
    }
}

#[test]
fn the_handshake_has_a_deadline_and_the_rest_has_none() {
    let start = Instant::now();
    let mut viewer = Viewer::new(&options(None), [0; 16], start);
    assert_eq!(viewer.poll_timeout(), Some(start + HANDSHAKE));
    send(&mut viewer, b"RFB 003.008\n\x01");
    let nearly = start + HANDSHAKE - Duration::from_millis(1);
    assert_eq!(viewer.handle_timeout(nearly), Ok(()));
    assert_eq!(
        viewer.handle_timeout(start + HANDSHAKE),
        Err(ViewerError::TimedOut)
    );
    assert_eq!(viewer.handle_bytes(&[1]), Err(ViewerError::TimedOut));
    assert!(!viewer.is_authenticated());

    let (mut viewer, _) = joined(&Picture::new(1, 1), NATIVE, &[RAW]);
    assert_eq!(viewer.handle_timeout(start + 100 * HANDSHAKE), Ok(()));
}

#[test]
fn a_violation_is_named_and_ends_the_connection() {
    let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
    let error = ViewerError::Version("GET / HTTP/1".into());
    assert_eq!(viewer.handle_bytes(b"GET / HTTP/1.1\r\n"), Err(error));
    for version in [
        b"RFB 003.002\n",
        b"RFB 004.001\n",
        b"RFB 003.+08\n",
        b"RFB 003.008 ",
    ] {
        let mut viewer = Viewer::new(&options(None), [0; 16], Instant::now());
        let result = viewer.handle_bytes(version);
        assert!(
            matches!(result, Err(ViewerError::Version(_))),
            "{version:?}"
        );
    }
    let picture = Picture::new(64, 64);
    let bad: [(&[u8], ViewerError); 6] = [
        (&[1], ViewerError::Message(1)),
        (&[7], ViewerError::Message(7)),
        (&[255, 1], ViewerError::Message(255)),
        (
            &[
                0, 0, 0, 0, 24, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
            ],
            ViewerError::Format { bits: 24 },
        ),
        (&[6, 0, 0, 0, 0, 16, 0, 1], ViewerError::Text(TEXT_MAX + 1)),
        (&[248, 0, 0, 0, 128, 0, 0, 0, 65], ViewerError::Fence(65)),
    ];
    for (bytes, error) in bad {
        let (mut viewer, _) = joined(&picture, NATIVE, &[RAW]);
        send(&mut viewer, &request(false, ALL));
        assert!(piece(&mut viewer, &picture, &mut Vec::new()));
        send(&mut viewer, &[248, 0, 0, 0, 128, 0, 0, 0, 0]);
        for _ in 0..2 {
            assert_eq!(viewer.handle_bytes(bytes), Err(error.clone()));
        }
        viewer.handle_damage(ALL);
        assert_eq!(output(&mut viewer, &picture), [], "after {error}");
    }
}
