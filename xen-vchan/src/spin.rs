//! Decides how long to look before sleeping, from the outcome of earlier searches.
//!
//! A sleep costs both sides a system call and the sleeper a wake-up, tens of microseconds; in a
//! stream the next bytes are often less than one microsecond away. So a blocking call looks for a
//! while first, under these rules:
//!
//! * never longer at a time than the limit (50 µs unless set), about what a wake-up costs;
//! * not at all on a machine with one CPU, where the peer could not run meanwhile. A domain with
//!   one CPU has its peer in another domain, mostly on another CPU: there the first search is a
//!   short one, and only those that find something make longer ones;
//! * nor where looking is slow, because the CPU is shared (or emulated) and the peer may be waiting
//!   for it: that search ends, and searches become rare as under the next rule;
//! * a search that finds nothing halves the next one, down to none. Then a short one is tried only
//!   at intervals (every 2nd, 4th, … 64th sleep), so a channel whose peer is slow pays almost
//!   nothing;
//! * a call that sleeps stays asleep: an idle channel costs no CPU.
//!
//! Reading the clock is a system call in some domains and costs more than all the looking. A short
//! search and a [`spin_for`](Spinner::spin_for) do not read it: the time of a look is measured
//! once.

use std::hint::spin_loop;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use xen_sys::{Host, Xen};

/// The longest search by default.
pub(crate) const LIMIT: Duration = Duration::from_micros(50);
/// The upper limit of every search.
const GREATEST_LIMIT: Duration = Duration::from_secs(1);
/// The shortest worthwhile search; also the first one after a pause.
const SHORTEST: Duration = Duration::from_micros(4);
/// At most this many sleeps (as a power of two) without a search.
const MAX_PAUSE: u32 = 6;
/// Looks between two reads of the clock: a microsecond or two of them.
const LOOKS: u32 = 32;

/// [`LOOKS`] take this long only if the CPU does something else meanwhile (another process, another
/// guest, an emulated machine's other CPU). While we look, the peer may be waiting for that CPU.
const SLOW: Duration = Duration::from_micros(12);
/// Consecutive slow rounds before the spinner gives up.
const SLOW_IN_A_ROW: u32 = 4;

/// Where the peer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// On the CPUs that this system counts.
    Here,
    /// In another domain: on CPUs of which nothing is known.
    Elsewhere,
}

impl Peer {
    /// Domains of a simulated host are processes of one system.
    pub(crate) fn of(xen: &Xen) -> Self {
        match xen.host() {
            Host::Dev(_) => Self::Elsewhere,
            _ => Self::Here,
        }
    }
}

/// Whether a search found something in its first microsecond or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundFast(pub(crate) bool);

/// The state of one half's searches.
#[derive(Clone, Debug)]
pub(crate) struct Spinner {
    cpus: Cpus,
    limit: Duration,
    budget: Duration,
    /// Searches in a row that found nothing at the shortest budget.
    failures: u32,
    /// Sleeps before the next search.
    skip: u32,
    /// Consecutive slow looks, see [`SLOW`].
    slow: u32,
}

/// Whether the peer can run while we look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cpus {
    /// There is no CPU for it.
    One,
    /// There may be one.
    Unknown,
    Several,
}

impl Spinner {
    pub(crate) fn new(peer: Peer) -> Self {
        let cpus = match (one_cpu(), peer) {
            (false, _) => Cpus::Several,
            (true, Peer::Elsewhere) => Cpus::Unknown,
            (true, Peer::Here) => Cpus::One,
        };
        Self::with(cpus, LIMIT)
    }

    const fn with(cpus: Cpus, limit: Duration) -> Self {
        let (limit, budget) = match cpus {
            Cpus::One => (Duration::ZERO, Duration::ZERO),
            Cpus::Unknown => (limit, SHORTEST),
            Cpus::Several => (limit, limit),
        };
        Self {
            cpus,
            limit,
            budget,
            failures: 0,
            skip: 0,
            slow: 0,
        }
    }

    /// Sets the limit, at most a second; zero switches searching off. A machine with one CPU never
    /// searches.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        *self = Self::with(self.cpus, limit.min(GREATEST_LIMIT));
    }

    /// Spins for `time`, a microsecond or two, unless spinning is off; returns whether it did.
    pub(crate) fn spin_for(&self, time: Duration) -> bool {
        let on = !self.limit.is_zero();
        if on {
            for _ in 0..Costs::get().looks(time) {
                spin_loop();
            }
        }
        on
    }

    /// Looks until `look` finds something, and returns whether that took only a microsecond or two;
    /// returns `None` when the budget is used up.
    pub(crate) fn search<E>(
        &mut self,
        deadline: Option<Instant>,
        mut look: impl FnMut() -> Result<bool, E>,
    ) -> Result<Option<FoundFast>, E> {
        if self.limit.is_zero() {
            return Ok(None);
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(None);
        }
        let mut found = |looks| -> Result<bool, E> {
            for _ in 0..looks {
                spin_loop();
                if look()? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut times: Option<(Instant, Instant)> = None;
        loop {
            if found(LOOKS)? {
                self.found();
                return Ok(Some(FoundFast(times.is_none())));
            }
            if self.budget <= SHORTEST {
                if found(
                    Costs::get()
                        .looks(self.budget.min(self.limit))
                        .saturating_sub(LOOKS),
                )? {
                    self.found();
                    return Ok(Some(FoundFast(false)));
                }
                break;
            }
            let now = Instant::now();
            let (last, end) = times.unwrap_or_else(|| {
                let end = now + self.budget;
                (now, deadline.map_or(end, |deadline| deadline.min(end)))
            });
            if times.is_some() && self.is_shared(now - last) {
                self.missed_at_the_shortest();
                return Ok(None);
            }
            if now >= end {
                break;
            }
            times = Some((now, end));
        }
        self.missed();
        Ok(None)
    }

    fn found(&mut self) {
        self.budget = (self.budget * 2).min(self.limit);
        self.failures = 0;
        self.slow = 0;
    }

    /// Returns whether this CPU is shared with others, perhaps with the peer: [`LOOKS`] took
    /// `time`, and were as slow several times in a row. A single slow round may be an interrupt.
    fn is_shared(&mut self, time: Duration) -> bool {
        self.slow = if time > SLOW + Costs::get().clock {
            self.slow + 1
        } else {
            0
        };
        let shared = self.slow == SLOW_IN_A_ROW;
        if shared {
            self.slow -= 1;
        }
        shared
    }

    fn missed(&mut self) {
        self.budget = (self.budget / 2).max(SHORTEST.min(self.limit));
        if self.budget <= SHORTEST {
            self.missed_at_the_shortest();
        }
    }

    fn missed_at_the_shortest(&mut self) {
        self.failures = (self.failures + 1).min(MAX_PAUSE);
        self.skip = (1 << self.failures) - 1;
    }
}

/// The time that a look and the clock take.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// [`MEASURED`](Self::MEASURED) times [`spin_loop`].
    looks: Duration,
    clock: Duration,
}

impl Costs {
    const MEASURED: u32 = 128;

    /// Measures once, in about ten microseconds. Takes the best of a few, because anything may
    /// interrupt a measurement.
    fn get() -> Self {
        static COSTS: OnceLock<Costs> = OnceLock::new();
        *COSTS.get_or_init(|| {
            let best = |looks| {
                let time = || {
                    let begin = Instant::now();
                    (0..looks).for_each(|_| spin_loop());
                    begin.elapsed()
                };
                time().min(time()).min(time())
            };
            let clock = best(0);
            let looks = best(Self::MEASURED).saturating_sub(clock);
            Self { looks, clock }
        })
    }

    /// Returns how many looks take about `time`.
    fn looks(self, time: Duration) -> u32 {
        let each = self.looks.as_nanos().max(u128::from(Self::MEASURED));
        let looks = time.as_nanos() * u128::from(Self::MEASURED) / each;
        u32::try_from(looks).unwrap_or(u32::MAX)
    }
}

/// Returns whether this machine or domain has only one CPU. Determined once. A thread that is bound
/// to one of several does not count: its peer can be on another.
pub(crate) fn one_cpu() -> bool {
    static ONE: OnceLock<bool> = OnceLock::new();
    *ONE.get_or_init(|| matches!(sysconf(SysconfVar::_NPROCESSORS_ONLN), Ok(Some(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(spinner: &mut Spinner) -> u32 {
        let mut looks = 0;
        let found = spinner.search(None, || {
            looks += 1;
            Ok::<_, ()>(false)
        });
        assert_eq!(found, Ok(None));
        looks
    }

    fn spinner() -> Spinner {
        Spinner::with(Cpus::Several, LIMIT)
    }

    #[test]
    fn a_limit_of_zero_or_one_cpu_switches_the_short_spin_off_too() {
        let mut spinner = Spinner::with(Cpus::Several, LIMIT);
        assert!(spinner.spin_for(SHORTEST));
        spinner.set_limit(Duration::ZERO);
        assert!(!spinner.spin_for(SHORTEST));
        assert!(!Spinner::with(Cpus::One, LIMIT).spin_for(SHORTEST));
    }

    #[test]
    fn searches_that_find_nothing_become_rare() {
        let mut spinner = spinner();
        let searched = (0..1000).filter(|_| miss(&mut spinner) != 0).count();
        assert!(
            searched < 32,
            "{searched} of 1000 sleeps were preceded by a search"
        );
        let searched = (0..1000).filter(|_| miss(&mut spinner) != 0).count();
        assert!(
            (8..=16).contains(&searched),
            "{searched}: it must go on trying now and then"
        );
    }

    #[test]
    fn a_search_that_finds_brings_the_budget_back() {
        let mut spinner = spinner();
        for _ in 0..1000 {
            miss(&mut spinner);
        }
        while spinner.search(None, || Ok::<_, ()>(true)) == Ok(None) {}
        for _ in 0..8 {
            assert!(
                spinner
                    .search(None, || Ok::<_, ()>(true))
                    .unwrap()
                    .is_some()
            );
        }
        assert_eq!(spinner.budget, LIMIT);
    }

    #[test]
    fn a_shared_cpu_is_not_searched_on() {
        let mut spinner = Spinner {
            budget: Duration::from_secs(1),
            ..spinner()
        };
        let mut slow = |looks: &mut u32| {
            spinner.search(None, || {
                *looks += 1;
                std::thread::sleep(SLOW / LOOKS + Duration::from_micros(1));
                Ok::<_, ()>(false)
            })
        };
        let mut looks = 0;
        assert_eq!(slow(&mut looks), Ok(None));
        let all = LOOKS * (1 + SLOW_IN_A_ROW);
        assert_eq!(looks, all, "the first are not timed");
        assert_eq!(slow(&mut looks), Ok(None));
        assert_eq!(looks, all, "then there is a pause");
    }

    #[test]
    fn no_limit_means_no_look() {
        let mut spinner = spinner();
        spinner.set_limit(Duration::ZERO);
        assert_eq!(miss(&mut spinner), 0);
    }

    #[test]
    fn the_greatest_limit_is_a_second() {
        let mut spinner = spinner();
        spinner.set_limit(Duration::MAX);
        // The clock is read, and a search that finds something doubles the next budget.
        let mut looks = 0;
        let found = spinner.search(None, || {
            looks += 1;
            Ok::<_, ()>(looks > 2 * LOOKS)
        });
        assert_eq!(found, Ok(Some(FoundFast(false))));
        assert_eq!(spinner.budget, GREATEST_LIMIT);
    }

    #[test]
    fn one_cpu_keeps_it_off() {
        let mut spinner = Spinner::with(Cpus::One, LIMIT);
        assert_eq!(miss(&mut spinner), 0);
        spinner.set_limit(LIMIT);
        assert_eq!(miss(&mut spinner), 0);
    }

    #[test]
    fn a_domain_with_one_cpu_begins_with_a_short_search() {
        let mut spinner = Spinner::with(Cpus::Unknown, LIMIT);
        assert_eq!(spinner.budget, SHORTEST);
        let looks = miss(&mut spinner);
        assert!(
            looks >= LOOKS && looks <= Costs::get().looks(SHORTEST).max(LOOKS),
            "{looks}"
        );
        assert_eq!(
            miss(&mut spinner),
            0,
            "a pause after the first that is in vain"
        );
        for _ in 0..10 {
            let _ = spinner.search(None, || Ok::<_, ()>(true));
        }
        assert_eq!(spinner.budget, LIMIT, "what finds may search longer");
    }

    #[test]
    fn a_passed_deadline_ends_the_search_after_the_first_looks() {
        let mut spinner = spinner();
        let mut looks = 0;
        let past = Instant::now();
        let _ = spinner.search(Some(past), || {
            looks += 1;
            Ok::<_, ()>(false)
        });
        assert_eq!(looks, LOOKS);
    }
}
