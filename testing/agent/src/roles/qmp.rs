//! A QMP client that gets to some point of its conversation and waits there to be killed.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::qmp::Qmp;

#[derive(Args, Debug)]
pub(crate) struct Client {
    socket: String,
    #[arg(value_enum)]
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Stage {
    /// Connected; nothing was read.
    Dialled,
    /// The greeting was read.
    Greeted,
    /// Half a command was sent.
    HalfSent,
    /// A command was sent, its answer not read.
    Sent,
    /// A command was sent whose answer is far longer than the rings.
    MuchToCome,
}

impl Client {
    /// Prints `there` when it is.
    pub(crate) fn run(&self) -> Result<()> {
        let mut qmp = Qmp::dial(&self.socket)?;
        if self.stage >= Stage::Greeted {
            qmp.greeting()?;
        }
        if self.stage >= Stage::HalfSent {
            qmp.execute("qmp_capabilities", None)?;
        }
        match self.stage {
            Stage::Dialled | Stage::Greeted => {}
            Stage::HalfSent => qmp.send(b"{\"execute\": \"query-st")?,
            Stage::Sent => qmp.send(b"{\"execute\": \"query-status\", \"id\": 1}\r\n")?,
            Stage::MuchToCome => {
                for id in 0..3 {
                    let line = format!("{{\"execute\": \"query-commands\", \"id\": {id}}}\r\n");
                    qmp.send(line.as_bytes())?;
                }
            }
        }
        println!("there");
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    }
}
