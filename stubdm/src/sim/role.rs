//! The other processes of `stubdm-run sim`: this program again, joined to the simulated host.
//!
//! A simulated host's broker listens at a path; a process that connects sends the domain it belongs
//! to. These processes end when the one that started them does, however that ends.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use xen_store::Store;
use xen_sys::{DomId, Xen};

use crate::consoled::run::{self as consoled, ConsoledOptions};
use crate::guest::{self, InitOptions};
use crate::proxy;
use crate::proxy::options::ProxyOptions;
use crate::rt::error::{Context, Result};
use crate::sim::cleanup;
use crate::supervise::run::{self as supervise, SuperviseOptions};

/// Which process this is to be.
#[derive(Clone, Debug, Subcommand)]
pub enum Role {
    /// The stubdomain's init, without what only a PID 1 has to do
    Stubdomain {
        /// Where it is
        #[command(flatten)]
        place: Place,
        /// Where QEMU's sockets are to be
        #[arg(long, value_name = "DIRECTORY")]
        run: PathBuf,
        /// Options of the init
        #[command(flatten)]
        options: InitOptions,
    },
    /// The host's proxy
    VchanSocketProxy {
        /// Where it is
        #[command(flatten)]
        place: Place,
        /// Its own command line
        #[command(flatten)]
        options: ProxyOptions,
    },
    /// The host's console server
    Consoled {
        /// Where it is
        #[command(flatten)]
        place: Place,
        /// Its own command line
        #[command(flatten)]
        options: ConsoledOptions,
    },
    /// Starts the last two again when they were killed
    Supervise {
        /// Where it is
        #[command(flatten)]
        place: Place,
        /// Its own command line
        #[command(flatten)]
        options: SuperviseOptions,
    },
    /// Removes the others and their files
    Cleanup {
        /// The directory, which it makes
        directory: PathBuf,
    },
}

/// A domain of a simulated host.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// The broker's socket
    #[arg(long, value_name = "PATH")]
    broker: PathBuf,
    /// The domain this process is of
    #[arg(long, value_name = "DOMID")]
    me: u16,
}

impl Place {
    fn join(&self) -> Result<(Xen, Store)> {
        let what = format!("joining the simulated host at {}", self.broker.display());
        let xen = Xen::join_path(&self.broker, DomId::new(self.me)).context(&what)?;
        let store = Store::open(&xen).context("no store")?;
        Ok((xen, store))
    }
}

/// Is that process, to its end.
///
/// # Errors
/// As those of the program it stands for.
pub fn play(role: Role) -> Result<ExitCode> {
    // Those that were started again belong to nobody, nor does a standby.
    let alone = match &role {
        Role::VchanSocketProxy { options, .. } => options.resume.is_some(),
        Role::Consoled { options, .. } => options.resume.is_some(),
        Role::Supervise { options, .. } => options.standby,
        Role::Cleanup { .. } => true,
        Role::Stubdomain { .. } => false,
    };
    if !alone {
        // If the other has already ended, joining its host fails.
        set_pdeathsig(Signal::SIGTERM).context("asking to be told of the end")?;
    }
    match role {
        Role::Stubdomain {
            place,
            run,
            options,
        } => Ok(guest::run_on(&options, &run, || place.join())),
        Role::VchanSocketProxy { place, options } => {
            proxy::run::run_on(&options, || place.join()).map(|()| ExitCode::SUCCESS)
        }
        Role::Consoled { place, options } => {
            consoled::run_on(&options, || place.join()).map(|()| ExitCode::SUCCESS)
        }
        Role::Supervise { place, options } => {
            supervise::run_on(&options, || place.join()).map(|()| ExitCode::SUCCESS)
        }
        Role::Cleanup { directory } => cleanup::play(&directory),
    }
}
