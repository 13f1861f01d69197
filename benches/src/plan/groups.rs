//! The groups of a full comparison, of a glance, and of one on Xen.

use super::{Group, Maker, Task, Variant, Work};

pub(super) const KIB: usize = 1 << 10;
/// Rounds of each group: with fewer, differences are rarely significant.
pub(super) const ROUNDS: usize = 25;
/// The same for a glance, and in an emulator, where all takes long: fewer show no spread.
const FEW_ROUNDS: usize = 5;
const OURS: Variant = Variant::of(Maker::Ours, Maker::Ours);
const LIBXENVCHAN: Variant = Variant::of(Maker::C, Maker::C);
const WE_READ: Variant = Variant::of(Maker::C, Maker::Ours);
const WE_WRITE: Variant = Variant::of(Maker::Ours, Maker::C);
const UNIX: Variant = Variant::of(Maker::Unix, Maker::Unix);
const CORE: Variant = Variant::of(Maker::Core, Maker::Core);
const RTRB: Variant = Variant::of(Maker::Rtrb, Maker::Rtrb);

/// The ways of a write and a read in one thread that are compared.
pub const PAIR: [Maker; 7] = [
    Maker::C,
    Maker::Ours,
    Maker::Chunks,
    Maker::Core,
    Maker::Rtrb,
    Maker::Ringbuf,
    Maker::Memcpy,
];

pub(super) fn stream(ring: usize, size: usize, notify_ns: u64) -> Group {
    let mut variants = vec![LIBXENVCHAN, OURS, WE_READ, WE_WRITE];
    if size <= 4 * KIB {
        variants.extend([OURS.corked(), WE_WRITE.corked()]);
    }
    if notify_ns == 0 && ring == 64 * KIB {
        variants.extend([UNIX, CORE, RTRB]);
    }
    let task = Task {
        work: Work::Stream,
        ring,
        size,
        notify_ns,
        xen: false,
    };
    Group {
        task,
        variants,
        runs: ROUNDS,
    }
}

fn others() -> Vec<Group> {
    let task = |work, size| Task {
        work,
        ring: 64 * KIB,
        size,
        notify_ns: 0,
        xen: false,
    };
    let pingpong = vec![
        LIBXENVCHAN,
        OURS,
        WE_READ,
        WE_WRITE,
        OURS.asleep(),
        WE_READ.asleep(),
        WE_WRITE.asleep(),
        UNIX,
    ];
    let same = |maker| Variant::of(maker, maker);
    vec![
        Group {
            task: task(Work::Pair, 64),
            variants: PAIR.map(same).into(),
            runs: ROUNDS,
        },
        Group {
            task: task(Work::Pingpong, 64),
            variants: pingpong,
            runs: ROUNDS,
        },
        Group {
            task: task(Work::Packets, 32),
            variants: vec![
                LIBXENVCHAN,
                OURS,
                WE_READ,
                WE_WRITE,
                OURS.corked(),
                WE_WRITE.corked(),
            ],
            runs: ROUNDS,
        },
    ]
}

/// Everything on a simulated host.
#[must_use]
pub fn full() -> Vec<Group> {
    let mut groups = others();
    for notify_ns in [0, 1000, 3000] {
        for ring in [4 * KIB, 64 * KIB, 1024 * KIB] {
            for size in [64, KIB, 4 * KIB, 64 * KIB] {
                groups.push(stream(ring, size, notify_ns));
            }
        }
    }
    groups
}

/// A glance at the same.
#[must_use]
pub fn quick() -> Vec<Group> {
    let mut groups = others();
    for (ring, size) in [(4, 4), (64, 1), (64, 4), (64, 64), (1024, 64)] {
        groups.push(stream(ring * KIB, size * KIB, 0));
    }
    groups.push(stream(64 * KIB, 64, 0));
    groups.push(stream(64 * KIB, 64, 1000));
    groups.push(stream(64 * KIB, 64 * KIB, 1000));
    for group in &mut groups {
        group.runs = FEW_ROUNDS;
    }
    groups
}

/// Returns the groups between domains on Xen.
#[must_use]
pub fn xen() -> Vec<Group> {
    let mut groups = Vec::new();
    for (ring, size) in [
        (4, 64),
        (4, 4 * KIB),
        (64, 64),
        (64, KIB),
        (64, 4 * KIB),
        (64, 64 * KIB),
        (1024, 64 * KIB),
    ] {
        groups.push(stream(ring * KIB, size, 0));
    }
    groups.extend(
        others()
            .into_iter()
            .filter(|group| group.task.work != Work::Pair),
    );
    for group in &mut groups {
        group.task.xen = true;
        group.runs = FEW_ROUNDS;
        group.variants.retain(|v| ![UNIX, CORE, RTRB].contains(v));
    }
    groups
}
