//! The file as dom0's QEMU and `consoled` write it, libxl removes it, and a full disk leaves it.

use super::*;
use crate::libxl::state_record::tests::record;
use std::io::Write;

/// The console's server and its file.
struct Server {
    dir: tempfile::TempDir,
    file: File,
    saved: SavedFile,
}

impl Server {
    /// As dom0's QEMU: one open file from the beginning to the end.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu-save.7");
        let file = File::create(&path).unwrap();
        let mut saved = SavedFile::new(path);
        saved.hold();
        Self { dir, file, saved }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("qemu-save.7")
    }

    fn writes(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap();
    }

    /// Returns the bytes that libxl takes.
    fn taken(&self) -> Vec<u8> {
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 1);
        fs::read(self.path()).unwrap()
    }

    /// The state is in place, and nothing else with it but filler.
    fn assert_taken(&mut self, number: u32, state: &[u8]) {
        self.saved.stored().unwrap();
        let whole = record(number, state);
        let taken = self.taken();
        assert!(
            taken.len() >= HEADER + state.len() && whole.starts_with(&taken),
            "{} bytes",
            taken.len()
        );
    }

    fn refused(&mut self) -> String {
        let why = self.saved.stored().unwrap_err();
        // As libxl does when it gets the error.
        let _ = fs::remove_file(self.path());
        why
    }
}

#[test]
fn each_save_leaves_its_own_record_only_and_the_rest_takes_no_room() {
    let mut server = Server::new();
    for number in 1..6 {
        let state = vec![number as u8; 300_000];
        server.writes(&record(number, &state));
        server.assert_taken(number, &state);
    }
    assert!(server.file.metadata().unwrap().len() > 1_500_000);
    let blocks = server.file.metadata().unwrap().blocks();
    assert!(blocks * 512 < 400_000, "{blocks} blocks");
}

#[test]
fn a_name_that_libxl_removed_is_there_again_for_the_next_save() {
    let mut server = Server::new();
    // QEMU refused: nothing was written, and nobody checked.
    fs::remove_file(server.path()).unwrap();
    server.writes(&record(1, b"QEVM one"));
    server.assert_taken(1, b"QEVM one");
    fs::remove_file(server.path()).unwrap();
    server.writes(&record(2, b"QEVM two"));
    server.assert_taken(2, b"QEVM two");
}

#[test]
fn a_file_that_begins_anew_with_each_save_is_left_as_it_is() {
    let mut server = Server::new();
    for number in 1..9 {
        if number % 3 == 0 {
            let _ = fs::remove_file(server.path());
        }
        // The same file, emptied first, if it is there.
        let kept = &record(number, b"QEVM x")[..HEADER + 6];
        fs::write(server.path(), kept).unwrap();
        let before = fs::metadata(server.path()).unwrap().ino();
        server.assert_taken(number, b"QEVM x");
        assert_eq!(fs::metadata(server.path()).unwrap().ino(), before);
    }
}

#[test]
fn a_record_that_a_full_disk_cut_is_refused_and_the_next_one_is_found() {
    let state = vec![3; 9000];
    for cut in [0, 5, 20, HEADER, 4096, HEADER + 8999] {
        let mut server = Server::new();
        let first = record(1, &state);
        server.writes(&first[..cut]);
        let why = server.refused();
        assert!(why.contains("qemu-save.7: the state "), "{why}");
        // dom0's QEMU writes what it still has when there is room again, part of it for the second
        // time.
        server.writes(&first[cut / 2..]);
        server.writes(&record(2, b"QEVM two"));
        server.assert_taken(2, b"QEVM two");
    }
}

#[test]
fn a_record_that_was_kept_back_is_not_taken_for_the_next() {
    let mut server = Server::new();
    let why = server.refused();
    assert!(why.contains("has not arrived"), "{why}");
    // Only now the first is written, and the second is not.
    server.writes(&record(1, b"QEVM one"));
    server.refused();
    server.writes(&record(3, b"QEVM three"));
    server.assert_taken(3, b"QEVM three");
    // The same once more is no new state.
    server.refused();
}

#[test]
fn an_altered_record_is_refused() {
    let good = record(1, b"QEVM state");
    for bit in 0..(HEADER + 10) * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut server = Server::new();
        server.writes(&bad);
        // Without its first word it is a stream of an unknown kind.
        let result = server.saved.stored();
        assert_eq!(result.is_ok(), bit < 64, "bit {bit}: {result:?}");
    }
    let mut server = Server::new();
    server.writes(&good);
    server.assert_taken(1, b"QEVM state");
    let mut bad = record(2, b"QEVM state");
    bad[3] ^= 1;
    server.writes(&bad);
    server.refused();
}

#[test]
fn a_record_inside_a_state_is_part_of_the_state() {
    let mut server = Server::new();
    let inner = record(9, b"QEVM the guest's own words");
    let outer = [b"QEVM".to_vec(), inner].concat();
    server.writes(&record(1, &outer));
    server.assert_taken(1, &outer);
    let whole = record(2, &outer);
    for cut in (0..HEADER + outer.len()).step_by(7) {
        let mut server = Server::new();
        server.writes(&record(1, b"QEVM"));
        server.assert_taken(1, b"QEVM");
        server.writes(&whole[..cut]);
        server.refused();
    }
}

#[test]
fn a_stream_without_records_is_libxls_to_judge_but_an_empty_one_is_no_state() {
    let mut server = Server::new();
    assert!(server.saved.stored().is_err());
    for stream in [&b"QEVM and so on s"[..], b"QEVM stubdmS1 stub"] {
        let mut server = Server::new();
        server.writes(stream);
        server.saved.stored().unwrap();
        assert_eq!(server.taken(), stream);
    }
}

#[test]
fn what_is_no_file_or_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), "/dev/zero".into(), "/dev/tty".into()] {
        let mut saved = SavedFile::new(path);
        saved.hold();
        assert!(saved.stored().is_err());
    }
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    assert!(SavedFile::new(link).stored().is_err());
    let mut server = Server::new();
    server.file.set_len(NEW_MAX + 1).unwrap();
    let why = server.refused();
    assert!(why.contains("more has come"), "{why}");
}
