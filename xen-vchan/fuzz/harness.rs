//! Random inputs for an entry function, for `VCHAN_FUZZ_SECONDS` (2 unless set).
//! Before them, the inputs kept in `fuzz/seeds/NAME`, with which cargo-fuzz begins.
//! A failing input is printed with its seed, for `VCHAN_FUZZ_SEED`, and as bytes.

use std::panic::{catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime};

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An input of a length up to `longest`, short ones more often.
fn input(seed: u64, longest: u64) -> Vec<u8> {
    let mut state = seed;
    let limit = 1 + random(&mut state) % longest;
    let len = random(&mut state) % limit;
    (0..len)
        .map(|_| random(&mut state).to_le_bytes()[0])
        .collect()
}

pub(crate) fn fuzz(name: &str, entry: fn(&[u8]), longest: u64) {
    let seconds = std::env::var("VCHAN_FUZZ_SECONDS").map_or(2, |text| text.parse().unwrap());
    let given = std::env::var("VCHAN_FUZZ_SEED").ok();
    let first = given.as_ref().map_or_else(
        || {
            SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap()
                .as_nanos()
                .to_le_bytes()[..8]
                .try_into()
                .map(u64::from_le_bytes)
                .unwrap()
        },
        |text| text.parse().unwrap(),
    );
    // Tests run in their crate's folder.
    let kept = std::fs::read_dir(format!("fuzz/seeds/{name}")).unwrap();
    for path in kept.map(|entry| entry.unwrap().path()) {
        let bytes = std::fs::read(&path).unwrap();
        if let Err(panic) = catch_unwind(|| entry(&bytes)) {
            println!("{name}: found with {}", path.display());
            resume_unwind(panic);
        }
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut count = 0u64;
    while Instant::now() < end {
        let seed = first.wrapping_add(count);
        let bytes = input(seed, longest);
        if let Err(panic) = catch_unwind(|| entry(&bytes)) {
            println!("{name}: found with VCHAN_FUZZ_SEED={seed}: {bytes:?}");
            resume_unwind(panic);
        }
        count += 1;
        if given.is_some() {
            break;
        }
    }
    println!("{name}: {count} inputs in {seconds} s, seeds from {first}");
    assert!(count > 0, "no input was tried");
}
