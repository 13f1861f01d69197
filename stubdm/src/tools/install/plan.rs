//! The plan, decided before the first change: steps, or the obstacle.

use super::dpkg::{self, Diversion, SUFFIX};
use super::record::{Aside, Entry, Put, Record};
use super::root::{Root, There};
use super::step::Step;
use crate::rt::error::{Failure, Result};

/// A part's place, and what belongs there.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    pub(super) part: String,
    pub(super) place: String,
    pub(super) put: Put,
}

/// The work at one place.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) part: String,
    pub(super) place: String,
    pub(super) steps: Vec<Step>,
    /// A note that is no step.
    pub(super) note: Option<String>,
    /// The record's entry of this place once the steps are begun; `None` removes it once they are
    /// done.
    pub(super) entry: Option<Entry>,
}

/// How files are put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Dpkg,
    Rename,
}

/// Everything decisions are made from.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) root: &'a Root,
    pub(super) record: &'a Record,
    pub(super) diversions: Vec<Diversion>,
}

impl Facts<'_> {
    /// Returns whether exactly this lies there.
    pub(super) fn is_put(&self, place: &str, put: &Put) -> Result<bool> {
        Ok(match (self.root.look(place)?, put) {
            (There::Link(to), Put::Link(ours)) => to == *ours,
            (There::File, Put::Text(text)) => self.root.read(place).as_ref() == Some(text),
            _ => false,
        })
    }

    fn diversion(&self, place: &str) -> Option<&Diversion> {
        self.diversions.iter().find(|known| known.place == place)
    }

    /// Returns whether the steps of an entry were taken: it is written first, and the installation
    /// may have been interrupted.
    fn was_done(&self, entry: &Entry) -> Result<bool> {
        let put = self.is_put(&entry.place, &entry.put)?;
        Ok(put
            || match entry.aside {
                Aside::Nothing => {
                    matches!(entry.put, Put::Text(_))
                        && self.root.look(&entry.place)? == There::File
                }
                Aside::Renamed => self.root.look(&aside_of(&entry.place))? != There::Nothing,
                Aside::DivertedLocally | Aside::DivertedByPackage => self
                    .diversion(&entry.place)
                    .is_some_and(|known| known.to == aside_of(&entry.place)),
            })
    }

    /// Plans `install` at one place.
    pub(super) fn install(&self, placement: &Placement, method: Method) -> Result<Work> {
        let place = &placement.place;
        let there = self.root.look(place)?;
        let put = self.is_put(place, &placement.put)?;
        let mut work = Work {
            part: placement.part.clone(),
            place: place.clone(),
            steps: Vec::new(),
            note: None,
            entry: None,
        };
        let known = self.record.entry(place);
        if let Some(entry) = known {
            if self.was_done(entry)? {
                work.entry = Some(Entry {
                    put: placement.put.clone(),
                    ..entry.clone()
                });
                match there {
                    _ if put => work.note = Some(format!("{place} is in place")),
                    There::Nothing => work.steps.push(self.step(placement)),
                    _ if self.is_put(place, &entry.put)? => {
                        work.steps.push(self.remove(place));
                        work.steps.push(self.step(placement));
                    }
                    There::File if matches!(entry.put, Put::Text(_)) => {
                        work.entry = Some(entry.clone());
                        work.note = Some(format!("{place} was changed since and is left"));
                    }
                    _ => return Err(in_the_way(place, "is no longer what install put there")),
                }
                return Ok(work);
            }
        }
        if put {
            work.note = Some(format!("{place} is in place already, and not by install"));
            return Ok(work);
        }
        let folders = self.root.missing_folders(place);
        // A link to nowhere below the root, for one.
        for folder in &folders {
            if self.root.look(folder)? != There::Nothing {
                return Err(in_the_way(folder, "is no folder"));
            }
        }
        work.steps.extend(
            folders
                .iter()
                .map(|folder| Step::MakeFolder(self.root.place(folder))),
        );
        let aside = match (&there, &placement.put) {
            (There::Other, _) => return Err(in_the_way(place, "is no file")),
            (There::Nothing, Put::Text(_)) => Aside::Nothing,
            (_, Put::Text(_)) => {
                work.note = Some(format!("{place} is there already and is left"));
                return Ok(work);
            }
            (_, Put::Link(_)) => self.put_aside(place, &there, method, &mut work.steps)?,
        };
        work.steps.push(self.step(placement));
        work.entry = Some(Entry {
            part: placement.part.clone(),
            place: place.clone(),
            put: placement.put.clone(),
            aside,
            folders,
        });
        Ok(work)
    }

    fn put_aside(
        &self,
        place: &str,
        there: &There,
        method: Method,
        steps: &mut Vec<Step>,
    ) -> Result<Aside> {
        let to = aside_of(place);
        if let Some(other) = self.diversion(place) {
            let whose = other.package.as_deref().unwrap_or("an administrator");
            let what = format!("is diverted to {} already, by {whose}", other.to);
            return Err(in_the_way(place, &what));
        }
        if self.root.look(&to)? != There::Nothing {
            return Err(in_the_way(&to, "is there already"));
        }
        match method {
            Method::Dpkg => {
                let package = dpkg::calling_package();
                let aside = match package {
                    Some(_) => Aside::DivertedByPackage,
                    None => Aside::DivertedLocally,
                };
                let place = place.to_owned();
                let diversion = Diversion { place, to, package };
                steps.push(Step::Divert(dpkg::arguments(
                    self.root, "--add", &diversion,
                )));
                Ok(aside)
            }
            Method::Rename if *there == There::Nothing => Ok(Aside::Nothing),
            Method::Rename => {
                steps.push(Step::Move(self.root.place(place), self.root.place(&to)));
                Ok(Aside::Renamed)
            }
        }
    }

    /// Plans `uninstall` at one place.
    pub(super) fn uninstall(&self, entry: &Entry) -> Result<Work> {
        let place = &entry.place;
        let mut work = Work {
            part: entry.part.clone(),
            place: place.clone(),
            steps: Vec::new(),
            note: None,
            entry: None,
        };
        if !self.was_done(entry)? {
            // With nothing put aside there is nothing to bring back, whatever lies there now.
            work.note = Some(match (entry.aside, self.root.look(place)?) {
                (Aside::Nothing, There::Link(_) | There::File | There::Other) => {
                    format!("{place} is another's by now and is left")
                }
                _ => format!("{place} is as it was"),
            });
            return Ok(work);
        }
        let there = self.root.look(place)?;
        if self.is_put(place, &entry.put)? {
            work.steps.push(self.remove(place));
        } else if there == There::File && matches!(entry.put, Put::Text(_)) {
            work.note = Some(format!("{place} was changed since and is left"));
            return Ok(work);
        } else if there != There::Nothing {
            return Err(in_the_way(place, "is no longer what install put there"));
        }
        let to = aside_of(place);
        match entry.aside {
            Aside::Nothing => {}
            Aside::Renamed if self.root.look(&to)? == There::Nothing => {
                return Err(Failure::new(format_args!(
                    "{to} is gone, and with it what belongs at {place}: bring it back, or install its package anew"
                )));
            }
            Aside::Renamed => {
                let step = Step::Move(self.root.place(&to), self.root.place(place));
                work.steps.push(step);
            }
            Aside::DivertedLocally | Aside::DivertedByPackage => {
                // As the list has it: what took the diversion may have had another name for itself.
                if let Some(known) = self.diversion(place) {
                    work.steps
                        .push(Step::Divert(dpkg::arguments(self.root, "--remove", known)));
                }
            }
        }
        for folder in entry.folders.iter().rev() {
            work.steps.push(Step::RemoveFolder(self.root.place(folder)));
        }
        Ok(work)
    }

    fn step(&self, placement: &Placement) -> Step {
        let at = self.root.place(&placement.place);
        match &placement.put {
            Put::Link(to) => Step::Link(to.clone(), at),
            Put::Text(text) => Step::Write(text.clone(), at),
        }
    }

    fn remove(&self, place: &str) -> Step {
        Step::Remove(self.root.place(place))
    }
}

/// The name a place's own file has while ours is there.
pub(super) fn aside_of(place: &str) -> String {
    format!("{place}{SUFFIX}")
}

fn in_the_way(path: &str, what: &str) -> Failure {
    Failure::new(format_args!("{path} {what}; nothing was changed"))
}
