//! When counters are written, and which file is accepted.

use super::*;

#[test]
fn what_is_written_is_read_and_goes_with_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("stubdm");
    let mut counter_file = CounterFile::open(&folder, 5, false).unwrap();
    let first = read(&folder, 5).unwrap();
    assert_eq!((first.pid, first.sequence), (std::process::id(), 0));
    let mut counters = Counters {
        sessions: u64::MAX,
        ..Counters::default()
    };
    for (verdict, count) in [
        (Verdict::Denied, 1),
        (Verdict::Answered, 1),
        (Verdict::Dropped, 7),
        (Verdict::Waiting, 3),
    ] {
        counters.decided(verdict, count);
    }
    counters.latency(Duration::from_millis(3));
    counters.latency(Duration::from_millis(1));
    counter_file.update(&counters);
    let page = read(&folder, 5).unwrap();
    assert_eq!((page.sequence, page.counters), (1, counters));
    assert_eq!(
        (counters.denied, counters.answered, counters.dropped),
        (1, 1, 7)
    );
    assert_eq!((counters.latency_us, counters.longest_us), (1000, 3000));
    // Another worker continues where the last one ended.
    counter_file.begin_again();
    let mut since = Counters {
        sessions: 1,
        answered: 2,
        ..Counters::default()
    };
    since.latency(Duration::from_millis(2));
    counter_file.update(&since);
    let page = read(&folder, 5).unwrap().counters;
    assert_eq!(
        (page.sessions, page.answered, page.denied),
        (u64::MAX, 3, 1)
    );
    assert_eq!((page.latency_us, page.longest_us), (2000, 3000));
    assert_eq!(fs::metadata(file(&folder, 5)).unwrap().len(), SIZE as u64);
    drop(counter_file);
    assert_eq!(read(&folder, 5), None);
}

#[test]
fn what_changes_is_reported_once_a_second_and_in_the_end() {
    let (sender, page) = std::sync::mpsc::channel();
    let mut reporter = Reporter::new(move |counters| sender.send(counters.answered).unwrap());
    let (mut counters, now) = (Counters::default(), Instant::now());
    reporter.turn(&counters, now);
    counters.answered = 1;
    reporter.turn(&counters, now);
    reporter.turn(&counters, now + PACE);
    assert_eq!(reporter.deadline(&counters), None);
    counters.answered = 2;
    reporter.turn(&counters, now + PACE / 2);
    assert_eq!(reporter.deadline(&counters), Some(now + PACE));
    counters.answered = 3;
    reporter.turn(&counters, now + PACE);
    assert_eq!(reporter.deadline(&counters), None);
    assert_eq!(page.try_iter().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn the_largest_numbers_fit() {
    let most = u64::MAX;
    let counters = Counters {
        sessions: most,
        answered: most,
        denied: most,
        failed: most,
        refused: most,
        dropped: most,
        latency_us: most,
        longest_us: most,
    };
    let page = CounterPage {
        pid: u32::MAX,
        sequence: most,
        counters,
    };
    assert_eq!(parse(&encode(&page).unwrap()), Some(page));
}

#[test]
fn a_file_that_lies_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), 5);
    let good = encode(&CounterPage::default()).unwrap();
    fs::write(&path, good).unwrap();
    assert_eq!(read(dir.path(), 5), Some(CounterPage::default()));
    // Longer than it may be: what follows is not read.
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert_eq!(read(dir.path(), 5), Some(CounterPage::default()));
    for at in [0, 100, SIZE - 1] {
        let mut bad = good;
        bad[at] ^= 1;
        fs::write(&path, bad).unwrap();
        assert_eq!(read(dir.path(), 5), None, "{at}");
    }
    fs::write(&path, &good[..SIZE - 1]).unwrap();
    assert_eq!(read(dir.path(), 5), None);
    // With the right checksum, and still no such counters.
    for text in [
        "{\"pid\":1}",
        "[]",
        "{\"pid\":-1,\"sequence\":0}",
        "{\"pid\":1,\"sequence\":0,\"counters\":{\"x\":\"\\u001b\"}}",
    ] {
        let mut bad = [b' '; SIZE];
        bad[..text.len()].copy_from_slice(text.as_bytes());
        let sum = format!("{:08x}\n", crc32fast::hash(&bad[..SIZE - SUM]));
        bad[SIZE - SUM..].copy_from_slice(sum.as_bytes());
        assert_eq!(parse(&bad), None, "{text}");
    }
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert_eq!(read(dir.path(), 5), None, "and nobody waits");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert_eq!(read(dir.path(), 5), None);
}
