//! The store: every operation, by the socket in dom0 and by the kernel's device in a domU.

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xen_store::{Access, Permissions, Store, Watch, WatchEvent};
use xen_sys::{DomId, Xen};

use super::patience;

#[derive(Args, Debug)]
pub(crate) struct Basics {
    /// This domain.
    domain: DomId,
    /// A folder of its own, below which everything happens.
    folder: String,
}

#[derive(Args, Debug)]
pub(crate) struct Large {
    folder: String,
    count: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Threads {
    folder: String,
}

#[derive(Args, Debug)]
pub(crate) struct Read {
    path: String,
}

#[derive(Args, Debug)]
pub(crate) struct Write {
    path: String,
    value: String,
}

#[derive(Args, Debug)]
pub(crate) struct Surrender {
    folder: String,
    domain: DomId,
}

#[derive(Args, Debug)]
pub(crate) struct Await {
    path: String,
    value: String,
}

fn open() -> Result<Store> {
    Ok(Store::open(&Xen::open()?)?)
}

impl Basics {
    pub(crate) fn run(&self) -> Result<()> {
        let store = open()?;
        let at = |name: &str| format!("{}/{name}", self.folder);
        store.mkdir(&self.folder)?;
        self.values(&store, &at).context("values")?;
        self.folders(&store, &at).context("folders")?;
        self.permissions(&store, &at).context("permissions")?;
        self.watches(&store, &at).context("watches")?;
        self.transactions(&store, &at).context("transactions")?;
        ensure!(store.domain_path(self.domain)? == format!("/local/domain/{}", self.domain));
        store.rm(&self.folder)?;
        ensure!(!store.exists(&self.folder)?, "the folder is still there");
        println!("ok");
        Ok(())
    }

    fn values(&self, store: &Store, at: &dyn Fn(&str) -> String) -> Result<()> {
        let every_byte: Vec<u8> = (0..=255).collect();
        for value in [
            &b""[..],
            b"text",
            b"two\nlines \\ and a NUL \0 inside",
            &every_byte,
        ] {
            store.write(&at("value"), value)?;
            ensure!(
                store.read(&at("value"))? == value,
                "{value:?} came back otherwise"
            );
        }
        // As long as fits one message, and one byte more, which has to be refused and to harm
        // nothing.
        let room = (0..=4096)
            .rev()
            .find(|&length| store.write(&at("long"), vec![b'x'; length]).is_ok())
            .context("no length can be written")?;
        // xenstored lets a domU have nodes of 2048 bytes at most; for dom0 a message is the limit.
        let least = if self.domain == DomId::DOM0 {
            3900
        } else {
            1900
        };
        ensure!(room > least, "only {room} bytes fit a message");
        ensure!(
            store.read(&at("long"))? == vec![b'x'; room],
            "the long value came back otherwise"
        );
        match store.read(&at("missing")) {
            Err(error) if error.is_not_found() => {}
            other => bail!("reading a missing node: {other:?}"),
        }
        Ok(())
    }

    fn folders(&self, store: &Store, at: &dyn Fn(&str) -> String) -> Result<()> {
        store.mkdir(&at("dir/deep/deeper"))?;
        store.mkdir(&at("dir"))?;
        store.write(&at("dir/leaf"), "1")?;
        let children: BTreeSet<String> = store.directory(&at("dir"))?.into_iter().collect();
        ensure!(
            children == ["deep", "leaf"].map(String::from).into(),
            "{children:?}"
        );
        ensure!(
            store.directory(&at("dir/leaf"))?.is_empty(),
            "a leaf has children"
        );
        ensure!(
            store.read(&at("dir/deep"))?.is_empty(),
            "a new folder has a value"
        );
        store.rm(&at("dir"))?;
        ensure!(!store.exists(&at("dir/leaf"))?, "removed with its folder");
        store.rm(&at("dir")).context("removing what is gone")?;
        match store.directory(&at("dir")) {
            Err(error) if error.is_not_found() => Ok(()),
            other => bail!("listing a missing folder: {other:?}"),
        }
    }

    fn permissions(&self, store: &Store, at: &dyn Fn(&str) -> String) -> Result<()> {
        let other = DomId::new(9999);
        store.write(&at("perms"), "")?;
        let mine = Permissions::owner_none(self.domain);
        store.set_permissions(&at("perms"), &mine)?;
        ensure!(store.permissions(&at("perms"))? == mine);
        // Xen may drop or refuse an entry for a domain that does not exist, so dom0 stands in for
        // it there.
        let reader = if self.domain == DomId::DOM0 {
            other
        } else {
            DomId::DOM0
        };
        let shared = mine.grant_read(reader);
        store
            .set_permissions(&at("perms"), &shared)
            .context("granting")?;
        let found = store.permissions(&at("perms"))?;
        if self.domain != DomId::DOM0 {
            ensure!(found.access_of(reader) == Access::Read, "{found}");
        }
        ensure!(found.owner() == self.domain, "{found}");
        Ok(())
    }

    fn watches(&self, store: &Store, at: &dyn Fn(&str) -> String) -> Result<()> {
        let watch = store.watch(&at("watched"))?;
        let second = store.watch(&at("watched"))?;
        let elsewhere = store.watch(&at("elsewhere"))?;
        ensure!(
            *next(&watch)?.path == *at("watched"),
            "the first event is for the path itself"
        );
        next(&second)?;
        next(&elsewhere)?;

        // Events of one path that were not taken yet are one event: each path is returned once, in
        // the order of the first.
        store.write(&at("watched"), "1")?;
        store.write(&at("watched/child"), "2")?;
        store.rm(&at("watched/child"))?;
        for expected in ["watched", "watched/child"] {
            let event = next(&watch)?;
            ensure!(
                *event.path == *at(expected),
                "{event:?} instead of {expected}"
            );
        }
        drop(watch);
        // The other watch of the same path lives on.
        store.write(&at("watched"), "3")?;
        store.read(&at("watched"))?;
        for expected in ["watched", "watched/child"] {
            let event = next(&second)?;
            ensure!(
                *event.path == *at(expected),
                "{event:?} instead of {expected}"
            );
        }
        ensure!(second.try_next()?.is_none(), "an event too many");
        ensure!(elsewhere.try_next()?.is_none(), "an event for another path");
        Ok(())
    }

    fn transactions(&self, store: &Store, at: &dyn Fn(&str) -> String) -> Result<()> {
        store.write(&at("count"), "0")?;
        let transaction = store.transaction()?;
        transaction.write(&at("count"), "1")?;
        transaction.write(&at("new/node"), "x")?;
        ensure!(
            transaction.read_str(&at("count"))? == "1",
            "it does not see its own change"
        );
        ensure!(
            store.read_str(&at("count"))? == "0",
            "it is seen outside before its end"
        );
        ensure!(transaction.commit()?, "a conflict with nobody");
        ensure!(store.read_str(&at("count"))? == "1" && store.exists(&at("new/node"))?);

        let dropped = store.transaction()?;
        dropped.write(&at("count"), "dropped")?;
        drop(dropped);
        let aborted = store.transaction()?;
        aborted.rm(&at("count"))?;
        aborted.abort()?;
        ensure!(
            store.read_str(&at("count"))? == "1",
            "given up and still carried out"
        );

        // Of two that read and write the same node one has to give way.
        let loser = store.transaction()?;
        loser.read(&at("count"))?;
        store.write(&at("count"), "2")?;
        loser.write(&at("count"), "lost")?;
        ensure!(!loser.commit()?, "a lost update");
        ensure!(store.read_str(&at("count"))? == "2");
        store.with_transaction(|t| {
            let count: u32 = t.read_str(&at("count"))?.parse().unwrap_or(0);
            t.write(&at("count"), (count + 1).to_string())
        })?;
        ensure!(store.read_str(&at("count"))? == "3");

        // More than the daemon allows at a time, one after the other: none may stay open.
        for _ in 0..40 {
            drop(store.transaction()?);
        }
        Ok(())
    }
}

impl Large {
    /// The names of the children of a folder that is large.
    pub(crate) fn names(count: usize) -> BTreeSet<String> {
        (0..count)
            .map(|k| format!("child-{k:06}-{}", "n".repeat(60)))
            .collect()
    }

    /// Lists a folder that dom0 has filled: xenstored lets no domU make one this large.
    pub(crate) fn run(&self) -> Result<()> {
        let names = Self::names(self.count);
        let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
        ensure!(
            bytes > 2 * 4096,
            "{bytes} bytes of names are no large folder"
        );
        let found: BTreeSet<String> = open()?.directory(&self.folder)?.into_iter().collect();
        ensure!(
            found == names,
            "{} of {} names were listed",
            found.len(),
            names.len()
        );
        println!("ok");
        Ok(())
    }
}

impl Threads {
    pub(crate) fn run(&self) -> Result<()> {
        const THREADS: usize = 4;
        const ROUNDS: usize = 25;
        let store = open()?;
        let count = format!("{}/count", self.folder);
        store.write(&count, "0")?;
        let watch = store.watch(&count)?;
        thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..THREADS)
                .map(|number| {
                    let (store, count) = (store.clone(), count.as_str());
                    let own = format!("{}/own-{number}", self.folder);
                    scope.spawn(move || -> Result<()> {
                        for round in 0..ROUNDS {
                            let value = format!("{number} {round}");
                            store.write(&own, &value)?;
                            ensure!(store.read_str(&own)? == value, "another thread's answer");
                        }
                        for _ in 0..3 {
                            store.with_transaction(|t| {
                                let now: usize = t.read_str(count)?.parse().unwrap_or(0);
                                t.write(count, (now + 1).to_string())
                            })?;
                        }
                        Ok(())
                    })
                })
                .collect();
            // Meanwhile this thread sleeps in a watch and must not keep the others from their
            // answers.
            let last = (THREADS * 3).to_string();
            let watched = (|| -> Result<()> {
                while store.read_str(&count)? != last {
                    next(&watch)?;
                }
                Ok(())
            })();
            for worker in workers {
                match worker.join() {
                    Ok(result) => result.context("a worker")?,
                    Err(_) => bail!("a thread panicked"),
                }
            }
            watched.context("the watcher")?;
            Ok(())
        })?;
        store.rm(&self.folder)?;
        println!("ok");
        Ok(())
    }
}

impl Read {
    /// Prints `value TEXT` or `error ERRNO`.
    pub(crate) fn run(&self) -> Result<()> {
        match open()?.read(&self.path) {
            Ok(value) => println!("value {}", String::from_utf8_lossy(&value)),
            Err(error) => println!(
                "error {}",
                nix::errno::Errno::from_raw(error.errno().unwrap_or_default())
            ),
        }
        Ok(())
    }
}

impl Surrender {
    pub(crate) fn run(&self) -> Result<()> {
        let store = open()?;
        let perms = store.permissions(&self.folder)?;
        Ok(store.set_permissions(&self.folder, &perms.grant_write(self.domain))?)
    }
}

impl Write {
    /// Prints `ok` or `error ERRNO`.
    pub(crate) fn run(&self) -> Result<()> {
        match open()?.write(&self.path, &self.value) {
            Ok(()) => println!("ok"),
            Err(error) => println!(
                "error {}",
                nix::errno::Errno::from_raw(error.errno().unwrap_or_default())
            ),
        }
        Ok(())
    }
}

impl Await {
    /// Prints `watching`, and `seen` once the node has the value.
    pub(crate) fn run(&self) -> Result<()> {
        let store = open()?;
        let watch = store.watch(&self.path)?;
        next(&watch)?;
        println!("watching");
        loop {
            match store.read(&self.path) {
                Ok(value) if value == self.value.as_bytes() => break,
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => drop(next(&watch)?),
            }
        }
        println!("seen");
        Ok(())
    }
}

fn next(watch: &Watch) -> Result<WatchEvent> {
    watch
        .next(Some(patience()))?
        .context("no event of the watch")
}
