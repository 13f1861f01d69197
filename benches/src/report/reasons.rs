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
    let find = |task: &Task, variant| rows.find(task, variant);
    let large = task(stream(64, 64 << 10, 0));
    let packets = task(other(Work::Packets, 32));
    let pingpong = task(other(Work::Pingpong, 64));
    let notifies = |variant| digits(find(&large, variant).map_or(f64::NAN, |row| row.notifies));
    let each = |variant| {
        digits(find(&packets, variant).map_or(f64::NAN, |row| row.task.size as f64 / row.median))
    };
    let trip = |variant| digits(find(&pingpong, variant).map_or(f64::NAN, |row| row.median / 1e3));
    format!(
        "The testbed's clock counts instructions, and its two processors take turns: what is measured is how many instructions a byte needs, \
         the hypervisor's and the kernels' included. Two things decide. Sleeps: a round trip of two is {} µs of C's, {} µs of ours without \
         searching; ours both ends search instead and need {} notifications per MB where C needs {} (64 KiB writes, 64 KiB ring). And the \
         work of each message where no sleep is left to save: a packet of 32 B through 64 KiB takes {} ns to C's {}, sent, received and \
         compared. Fetching cache lines ahead, which the native figures owe much to, is work without use there: a build without it moved 0.68 GB/s of 64 KiB \
         writes, and of 64 B writes 1.1 times as much. With a C end, that end sleeps once a ringful whatever ours does; with C at both ends of a ring of 1 MiB \
         neither ran for two thirds of the time. Copying and comparing 64 KiB \
         takes 90 µs by itself, which is more than a third of what C needs in all: no ring can be three times as fast there. (The build \
         without fetching, the two thirds and the 90 µs were measured once and by hand; no row has them. Why ours is slower than C when it \
         writes to C through 1 MiB was not found.)",
        trip(C),
        trip(OURS.asleep()),
        notifies(OURS),
        notifies(C),
        each(OURS),
        each(C),
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
