//! The record of a service: a file that is locked while the process lives.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::rt::error::{Context, Result};

/// The folder of the records, below that of the counters.
const FOLDER: &str = "services";
/// The largest record that is read, in bytes: two command lines of the kernel's limit for one word.
const SIZE_MAX: u64 = 256 << 10;
/// The version of the format.
const VERSION: u32 = 1;
/// The longest wait for a record's lock, which each reader holds for a moment.
const LOOKS: Duration = Duration::from_secs(1);
/// The option by which a service is started again; its own, so it is in no record.
pub const RESUME: &str = "--resume";

/// A kind of process that libxl starts for a guest with a stubdomain.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The QMP proxy.
    Proxy,
    /// The console server.
    Consoled,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Consoled => "consoled",
        }
    }

    /// libxl's node of its process number, below the stubdomain's folder.
    pub fn node(self) -> &'static str {
        match self {
            Self::Proxy => "image/qmp-proxy-pid",
            Self::Consoled => "image/device-model-pid",
        }
    }
}

/// How a service was started.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    version: u32,
    /// The kind.
    pub kind: Kind,
    /// The stubdomain that is served.
    pub stubdomain: u16,
    /// The UUID of that domain, by which another one of the same number is distinguished.
    pub uuid: String,
    /// The process.
    pub pid: u32,
    /// The program's file.
    pub program: PathBuf,
    /// Its command line, name first.
    pub arguments: Vec<OsString>,
    /// The file that is its stderr, if it is one.
    pub log: Option<PathBuf>,
    /// The socket at which libxl asks, and the number of its descriptor.
    pub listener: Option<(PathBuf, RawFd)>,
}

impl Record {
    /// Describes this process.
    ///
    /// # Errors
    /// The kernel does not show this program's file.
    pub fn of_this_process(kind: Kind, stubdomain: u16, uuid: String) -> Result<Self> {
        let program = this_program().context("/proc/self/exe")?;
        let resumed = |word: &OsString| word.as_encoded_bytes().starts_with(RESUME.as_bytes());
        Ok(Self {
            version: VERSION,
            kind,
            stubdomain,
            uuid,
            pid: std::process::id(),
            program,
            arguments: std::env::args_os().filter(|word| !resumed(word)).collect(),
            log: link("/proc/self/fd/2").ok().filter(|path| {
                // A pipe's, a socket's and a terminal's name lead nowhere else.
                path.is_absolute() && !path.starts_with("/dev")
            }),
            listener: None,
        })
    }

    fn file_name(&self) -> String {
        format!("{}-{}", self.kind.name(), self.stubdomain)
    }
}

/// The path that this program was started from.
///
/// # Errors
/// The kernel does not show it.
pub fn this_program() -> io::Result<PathBuf> {
    link("/proc/self/exe")
}

/// The target of one of `/proc`'s links, though the file has been replaced or removed since.
fn link(path: &str) -> io::Result<PathBuf> {
    let target = fs::read_link(path)?;
    let text = target.to_str().and_then(|t| t.strip_suffix(" (deleted)"));
    Ok(text.map(PathBuf::from).unwrap_or(target))
}

/// The record of this process, locked. Dropping it removes the file.
#[derive(Debug)]
pub struct Claim {
    file: Flock<File>,
    path: PathBuf,
    record: Record,
    stays: bool,
}

impl Claim {
    /// Writes `record` below `folder`; returns `None` if a living process has that record.
    ///
    /// # Errors
    /// The folder or the file cannot be made or written.
    pub fn take(folder: &Path, record: Record) -> Result<Option<Self>> {
        let folder = prepare(folder)?;
        let path = folder.join(record.file_name());
        let what = path.display();
        let deadline = Instant::now() + LOOKS;
        loop {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).mode(0o600);
            let file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
            let file = match Flock::lock(file.context(&what)?, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EAGAIN)) if Instant::now() < deadline => {
                    std::thread::sleep(LOOKS / 100);
                    continue;
                }
                Err((_, Errno::EAGAIN)) => return Ok(None),
                Err((_, errno)) => return Err(errno).context(&what),
            };
            // The last holder may have removed it between the two calls.
            if !is_at(&file, &path) {
                continue;
            }
            let claim = Self {
                file,
                path,
                record,
                stays: false,
            };
            claim.write()?;
            return Ok(Some(claim));
        }
    }

    /// Returns what was recorded.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Records the socket at which libxl asks, and the number of its descriptor.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_listener(&mut self, path: PathBuf, number: RawFd) -> Result<()> {
        self.record.listener = Some((path, number));
        self.write()
    }

    fn write(&self) -> Result<()> {
        let what = self.path.display();
        let text = serde_json::to_vec(&self.record).context(&what)?;
        // Not cut first: killed between the two, this process would leave an empty record.
        self.file.write_all_at(&text, 0).context(&what)?;
        self.file.set_len(text.len() as u64).context(&what)
    }

    /// Releases the lock and leaves the record, as a kill does: the service is started again.
    pub fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.stays && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let there = fs::symlink_metadata(path).map(identity);
    matches!((there, file.metadata().map(identity)), (Ok(a), Ok(b)) if a == b)
}

/// Makes the folders, and returns that of the records.
fn prepare(folder: &Path) -> Result<PathBuf> {
    let records = folder.join(FOLDER);
    for (folder, mode) in [(folder, 0o755), (&records, 0o700)] {
        match DirBuilder::new().mode(mode).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).context(folder.display());
            }
            _ => {}
        }
    }
    Ok(records)
}

/// The folder of the records below `folder`, made if it is not there.
///
/// # Errors
/// The folder cannot be made.
pub fn folder(folder: &Path) -> Result<PathBuf> {
    prepare(folder)
}

/// The state of a record's process.
#[derive(Debug)]
pub enum Liveness {
    /// It holds the lock.
    Alive,
    /// No process holds the lock. While this value lives, none can take it.
    Gone(Orphan),
}

/// A record without a process. This process shares its lock with others that read the record.
#[derive(Debug)]
pub struct Orphan {
    file: Flock<File>,
    path: PathBuf,
}

impl Orphan {
    /// Removes the record.
    pub fn remove(self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Reads a record and its process's state. Returns `None` for what is no record of root's or this
/// user's.
pub fn read(path: &Path) -> Option<(Record, Liveness)> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits()).open(path);
    let file = file.ok()?;
    let meta = file.metadata().ok()?;
    let trusted = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
    if !meta.is_file() || !trusted || meta.len() > SIZE_MAX {
        return None;
    }
    // The lock first: what is read after it is what the holder wrote, or the last one left. It is
    // shared, so another reader is not taken for the process.
    let life = match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(file) => {
            let record = parse(&file)?;
            let path = path.to_owned();
            return is_at(&file, &path).then_some((record, Liveness::Gone(Orphan { file, path })));
        }
        Err((file, Errno::EAGAIN)) => (file, Liveness::Alive),
        Err(_) => return None,
    };
    Some((parse(&life.0)?, life.1))
}

#[allow(clippy::disallowed_methods)] // A file of root's or our own, of limited length.
fn parse(mut file: &File) -> Option<Record> {
    let mut text = Vec::new();
    file.by_ref().take(SIZE_MAX).read_to_end(&mut text).ok()?;
    // The rest of a longer one may follow, if its writer was killed before it cut the file.
    let mut records = serde_json::Deserializer::from_slice(&text).into_iter::<Record>();
    let record = records.next()?.ok()?;
    (record.version == VERSION).then_some(record)
}

/// The records below `folder`, in order of their names.
pub fn all(folder: &Path) -> Vec<(PathBuf, Record, Liveness)> {
    let entries = fs::read_dir(folder.join(FOLDER)).into_iter().flatten();
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: PathBuf| read(&path).map(|(record, life)| (path, record, life));
    paths.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::of_this_process(Kind::Proxy, 7, "uuid".to_owned()).unwrap()
    }

    #[test]
    fn a_record_is_alive_as_long_as_its_lock_and_gone_in_good_order_with_its_claim() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(dir.path(), record()).unwrap().unwrap();
        assert!(Claim::take(dir.path(), record()).unwrap().is_none());
        let found = all(dir.path());
        assert!(matches!(&found[..], [(_, r, Liveness::Alive)] if *r == record()));
        // As a kill leaves it.
        let path = claim.path.clone();
        let left = fs::read(&path).unwrap();
        drop(claim);
        assert!(all(dir.path()).is_empty());
        fs::write(&path, left).unwrap();
        let found = all(dir.path());
        assert!(matches!(&found[..], [(_, _, Liveness::Gone(_))]));
        drop(found);
        let (_, life) = read(&path).unwrap();
        let Liveness::Gone(orphan) = life else {
            panic!()
        };
        assert!(
            Claim::take(dir.path(), record()).unwrap().is_none(),
            "no two start it"
        );
        orphan.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_record_that_others_read_is_not_taken_for_a_living_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder(dir.path()).unwrap().join(record().file_name());
        fs::write(&path, serde_json::to_vec(&record()).unwrap()).unwrap();
        let reading = all(dir.path());
        assert!(matches!(&reading[..], [(_, _, Liveness::Gone(_))]));
        assert!(matches!(read(&path), Some((_, Liveness::Gone(_)))));
    }

    #[test]
    fn a_writer_killed_at_any_step_leaves_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut longer = record();
        longer.log = Some("/var/log/a-long-name".into());
        let claim = Claim::take(dir.path(), longer).unwrap().unwrap();
        let path = claim.path.clone();
        claim.leave();
        let before = fs::read(&path).unwrap();
        let after = serde_json::to_vec(&record()).unwrap();
        let rest = before.get(after.len()..).unwrap();
        fs::write(&path, [&after, rest].concat()).unwrap();
        let found = all(dir.path());
        assert!(matches!(&found[..], [(_, r, Liveness::Gone(_))] if *r == record()));
    }

    #[test]
    fn what_is_no_record_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path()).unwrap();
        fs::write(folder.join("proxy-1"), "{}").unwrap();
        fs::write(folder.join("proxy-2"), vec![b' '; SIZE_MAX as usize + 1]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("proxy-3")).unwrap();
        fs::create_dir(folder.join("proxy-4")).unwrap();
        let mut later = record();
        later.version += 1;
        fs::write(folder.join("proxy-5"), serde_json::to_vec(&later).unwrap()).unwrap();
        assert!(all(dir.path()).is_empty());
    }
}
