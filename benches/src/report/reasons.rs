//! Why a target cannot be reached on this machine: what was measured in the same run that shows it.

use super::targets::{other, stream};
use super::{C, CORE, OURS, RTRB, Rows, UNIX, WE_READ, WE_WRITE, digits};
use crate::plan::{Maker, Task, Variant, Work};

fn figure(rows: Rows<'_>, task: &Task, variant: Variant) -> String {
    digits(rows.find(task, variant).map_or(f64::NAN, |row| row.median))
}

/// A write and a read in one thread.
pub(super) fn pair(rows: Rows<'_>) -> String {
    let task = other(Work::Pair, 64);
    let of = |maker| figure(rows, &task, Variant::of(maker, maker));
    let goal = rows.find(&task, C).map_or(f64::NAN, |row| row.median / 2.2);
    format!(
        "The target is {} ns here. Two copies and the check, with no ring at all, take {} ns, rtrb, which needs no barrier, {} ns, our bare \
         ring {} ns. libxenvchan's eight locked instructions, which make it slow on the machine the target was set on (62 ns), cost next \
         to nothing on this one ({} ns).",
        digits(goal),
        of(Maker::Memcpy),
        of(Maker::Rtrb),
        of(Maker::Core),
        of(Maker::C)
    )
}

/// What two processors can pass to each other.
pub(super) fn limit(rows: Rows<'_>) -> String {
    let each = [64, 1 << 10, 4 << 10, 64 << 10].map(|size| {
        let task = stream(64, size, 0);
        let of = |variant| figure(rows, &task, variant);
        format!(
            "{}: {} / {} / {} / {}",
            super::bytes(size),
            of(OURS),
            of(CORE),
            of(RTRB),
            of(UNIX)
        )
    });
    format!(
        "This is what the two processors can pass to each other. GB/s of ours / our bare ring between two threads that never sleep \
         / rtrb in the same way, without notifications and barriers / a UNIX socket: {}. Every cache line must come from the other \
         processor before it can be read or written; one there and back took {}. Taken apart with a probe while \
         that was 340 ns, 64 B writes ran at 0.36 GB/s; when the reader looked at the cursor only, at 6.6; when the writer moved the \
         cursor only, at 12; without the check of the bytes as before. Full barriers, the cursor's line and the check are not what costs. \
         (Fetching lines ahead with `prefetchw` changed nothing; writing a byte to each, which ours does now, makes it 0.9.) The targets \
         were set on an Ice Lake server, where libxenvchan moved 0.29 GB/s of 64 B writes; here it moves {}.",
        each.join("; "),
        lines(rows),
        figure(rows, &stream(64, 64, 0), C),
    )
}

/// The emulator.
pub(super) fn emulator(rows: Rows<'_>) -> String {
    let task = |task: Task| Task { xen: true, ..task };
    let (kib, large) = (
        task(stream(64, 1 << 10, 0)),
        task(stream(1024, 64 << 10, 0)),
    );
    let packets = task(other(Work::Packets, 32));
    let notifies = |variant| {
        digits(
            rows.find(&large, variant)
                .map_or(f64::NAN, |row| row.notifies),
        )
    };
    // So many bytes take so many nanoseconds.
    let takes = |task: &Task, variant, bytes: f64| {
        digits(
            rows.find(task, variant)
                .map_or(f64::NAN, |row| bytes / row.median),
        )
    };
    format!(
        "The testbed's clock counts instructions, and its two processors take turns: what is measured is how many instructions a byte needs, \
         the hypervisor's and the kernels' included. To copy 64 KiB twice and compare them takes 90 µs whoever does it: of 64 KiB in writes of \
         1 KiB, which take {} µs of C's and {} µs of ours; and in writes of 64 KiB through 1 MiB, where C sleeps seldom ({} notifications per MB, \
         ours {} and, writing to C, {}), of {} µs of C's and {} and {} µs of ours: no ring can be much faster than another there, and a few in a hundred is what C \
         varies by from run to run. With less than that in a message, its own work decides: a packet of 32 B takes {} ns of C's and {} ns of ours, \
         sent, received and compared, which is 117 instructions for the sender and 108 for the receiver, their loops included. Cache lines \
         fetched ahead are work without use there, up to five instructions a line (C needs 48 in all, through 1 MiB); natively 64 KiB writes through 1 MiB run at 8.7 and \
         11 GB/s without, at 14 and 17 with it. (The 90 µs, the instructions and the figures without fetching were measured by hand; no row has \
         them.)",
        takes(&kib, C, 65.536),
        takes(&kib, OURS, 65.536),
        notifies(C),
        notifies(OURS),
        notifies(WE_WRITE),
        takes(&large, C, 65.536),
        takes(&large, OURS, 65.536),
        takes(&large, WE_WRITE, 65.536),
        takes(&packets, C, 32.0),
        takes(&packets, OURS, 32.0),
    )
}

/// A round trip of ends that search.
pub(super) fn round_trip(rows: Rows<'_>) -> String {
    let row = rows.find(&other(Work::Pingpong, 64), OURS);
    let line = row.and_then(|row| row.line).unwrap_or(f64::NAN);
    format!(
        "A message crosses with two cache lines, its bytes and its cursor, one after the other; a single line took {} ns there and back \
         during this group, because the host had placed the processors that far apart: ours is {} of that.",
        digits(line),
        digits(row.map_or(f64::NAN, |row| row.median / line)),
    )
}

/// How far the processors were from each other, at the least and at the most.
pub(super) fn lines(rows: Rows<'_>) -> String {
    let all = || rows.0.iter().filter_map(|row| row.line);
    let (low, high) = (
        all().fold(f64::INFINITY, f64::min),
        all().fold(0.0, f64::max),
    );
    format!("{} to {} ns", digits(low), digits(high))
}

/// A stream that C writes cannot be faster than C.
pub(super) fn c_writes(rows: Rows<'_>) -> String {
    let task = stream(64, 64, 0);
    let row = |variant| rows.find(&task, variant);
    let per_write = row(WE_READ).map_or(f64::NAN, |row| 64.0 / row.median);
    format!(
        "C's writer sets the pace: it takes {} ns for each write of 64 B, and it is never asked for a notification nor kept waiting ({} \
         notifications per MB). It fetches every cache line by itself and waits for it, which nothing at the reader's end can change.",
        digits(per_write),
        row(WE_READ).map_or_else(|| "–".into(), |row| digits(row.notifies)),
    )
}

/// Sleeps of the C end.
pub(super) fn c_sleeps(rows: Rows<'_>) -> String {
    let task = stream(4, 64 << 10, 0);
    let of = |variant| {
        rows.find(&task, variant).map_or_else(
            || "–".into(),
            |row| {
                format!(
                    "{} notifications and {} system calls",
                    digits(row.notifies),
                    digits(row.syscalls)
                )
            },
        )
    };
    format!(
        "The C end goes to sleep whenever it finds the ring empty or full, whatever ours does, and a woken process takes {} µs to \
         answer (half a round trip of C's). 4 KiB ring, 64 KiB writes, per MB: C at both ends {}; ours writing {}; ours reading {}; one \
         in 4096 bytes is 244. Ours removes its own sleep of the two in each ringful, so two is the limit where C cannot be kept \
         awake. It can be where our answer comes before C looks again, which is a matter of some hundred nanoseconds and so of the \
         placement of the processors: these cells vary most from run to run.",
        rows.find(&other(Work::Pingpong, 64), C)
            .map_or_else(|| "–".into(), |row| digits(row.median / 2e3)),
        of(C),
        of(WE_WRITE),
        of(WE_READ),
    )
}

/// Round trips of ends that sleep.
pub(super) fn asleep(rows: Rows<'_>) -> String {
    let task = other(Work::Pingpong, 64);
    let of = |variant: Variant| {
        rows.find(&task, variant)
            .map_or(f64::NAN, |row| row.cpu * 64.0 / 1e6)
    };
    let calls = |variant| {
        rows.find(&task, variant)
            .map_or(f64::NAN, |row| row.syscalls)
    };
    format!(
        "Two wake-ups of the operating system are the round trip: a UNIX socket takes {} µs. Ours makes {} system calls for event channels \
         in it, C {}, in {} and {} µs of processor time.",
        digits(
            rows.find(&task, UNIX)
                .map_or(f64::NAN, |row| row.median / 1e3)
        ),
        digits(calls(OURS.asleep())),
        digits(calls(C)),
        digits(of(OURS.asleep())),
        digits(of(C)),
    )
}
