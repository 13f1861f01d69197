//! Hostile stubdomains: QMP servers that each do one thing no QEMU does, for tests of their
//! clients.
//!
//! ```text
//!   libxl, or a client like it ── proxy ══ vchan ══ [`play`]: a behaviour in QEMU's place
//! ```
//!
//! A behaviour is a script that takes commands and sends bytes, without I/O; or, for what is wrong
//! with the vchan itself, a hand in the shared page. Most are honest until the first command after
//! the negotiation, so that nothing but the stated fault stands between a client and its answer.
//! The same corpus runs on the simulated host against a client written like libxl, and on a real
//! one against libxl.

mod page;
mod play;
mod script;

pub use play::play;
pub use script::{Act, Script};

/// A behaviour of a hostile stubdomain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Nothing wrong; the others are measured against it.
    Honest,
    /// Sends nothing.
    Silent,
    /// Greets over and over.
    GreetingFlood,
    /// Greets with a string of many bytes.
    GreetingLong,
    /// Greets with numbers out of all bounds, with none, and with what is no greeting.
    GreetingLies,
    /// Leaves as soon as it has greeted, and comes back.
    LeavesAfterGreeting,
    /// Leaves with half an answer sent, and comes back.
    LeavesMidAnswer,
    /// Answers what was not asked yet under the ids libxl is going to use.
    GuessesIds,
    /// Sends every answer a hundred times.
    AnswersTwice,
    /// Answers with one long string.
    LongString,
    /// Answers with a string that does not end.
    EndlessString,
    /// Answers with arrays in arrays.
    NestedArrays,
    /// Answers with objects in objects, each key twice.
    NestedObjects,
    /// Answers with control characters, escape sequences, NUL and bytes that are no UTF-8.
    ControlCharacters,
    /// Says many events before each answer.
    EventFlood,
    /// Answers a byte at a time, with pauses.
    SlowDrip,
    /// Lies about file descriptor sets, and in the same way about whatever else is asked.
    FdsetLies,
    /// Hears a command and does not answer it.
    NeverAnswers,
    /// Answers with a value of another shape.
    WrongShape,
    /// Answers with success and failure at once, and with its id twice.
    BothAnswers,
    /// Fails with an explanation that plays tricks on a terminal and on a log.
    ErrorTricks,
    /// Answers with numbers no type holds.
    HugeNumbers,
    /// Says a line of a megabyte before its greeting, and as its answer, in which every seven bytes
    /// are an object.
    WideLine,
    /// Answers as QEMU does what it cannot parse: with an error without an id.
    IdlessError,
    /// Rings without a pause, and reads nothing.
    BellStorm,
    /// Claims to have written more than the ring holds.
    RingProducer,
    /// Claims to have read what was not written.
    RingConsumer,
    /// Changes the sizes of the rings under way.
    RingOrders,
    /// Connects and leaves in the page without a pause.
    RingLives,
}

impl Behaviour {
    /// All of them, with their names, the honest one first.
    pub const ALL: &[(&'static str, Self)] = &[
        ("honest", Self::Honest),
        ("silent", Self::Silent),
        ("greeting-flood", Self::GreetingFlood),
        ("greeting-long", Self::GreetingLong),
        ("greeting-lies", Self::GreetingLies),
        ("leaves-after-greeting", Self::LeavesAfterGreeting),
        ("leaves-mid-answer", Self::LeavesMidAnswer),
        ("guesses-ids", Self::GuessesIds),
        ("answers-twice", Self::AnswersTwice),
        ("long-string", Self::LongString),
        ("endless-string", Self::EndlessString),
        ("nested-arrays", Self::NestedArrays),
        ("nested-objects", Self::NestedObjects),
        ("control-characters", Self::ControlCharacters),
        ("event-flood", Self::EventFlood),
        ("slow-drip", Self::SlowDrip),
        ("fdset-lies", Self::FdsetLies),
        ("never-answers", Self::NeverAnswers),
        ("wrong-shape", Self::WrongShape),
        ("both-answers", Self::BothAnswers),
        ("error-tricks", Self::ErrorTricks),
        ("huge-numbers", Self::HugeNumbers),
        ("wide-line", Self::WideLine),
        ("idless-error", Self::IdlessError),
        ("bell-storm", Self::BellStorm),
        ("ring-producer", Self::RingProducer),
        ("ring-consumer", Self::RingConsumer),
        ("ring-orders", Self::RingOrders),
        ("ring-lives", Self::RingLives),
    ];

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|one| one.0 == name);
        found.map(|one| one.1)
    }

    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|one| one.1 == self);
        found.map_or("", |one| one.0)
    }
}
