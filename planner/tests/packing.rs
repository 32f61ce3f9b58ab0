//! Packings against independent references: the validator, a search through all
//! orders, instances cut from a full rectangle, and other people's instances.

use std::path::Path;

use proptest::prelude::*;
use sstep_planner::pack::{ALIGN, Fit, Flaw, Packing, Request, check, fit, load, pack};

fn requests(largest: u64, ticks: u32, count: usize) -> impl Strategy<Value = Vec<Request>> {
    let one = (1..=largest, 0..ticks, 0..ticks / 2);
    prop::collection::vec(one, 1..=count).prop_map(|raw| {
        let request = |(bytes, from, more): (u64, u32, u32)| Request {
            bytes,
            live: (from, from + more),
        };
        raw.into_iter().map(request).collect()
    })
}

/// Least peak of any packing: every order, each buffer as low as it can lie. Some
/// order gives a best packing, since a best one can be pushed down.
fn least_peak(requests: &[Request]) -> u64 {
    fn go(requests: &[Request], placed: &mut Vec<(usize, u64)>, best: &mut u64, peak: u64) {
        if peak >= *best {
            return;
        }
        if placed.len() == requests.len() {
            *best = peak;
            return;
        }
        for i in 0..requests.len() {
            if placed.iter().any(|p| p.0 == i) {
                continue;
            }
            let r = &requests[i];
            let mut blocks: Vec<(u64, u64)> = (placed.iter())
                .map(|&(j, at)| (&requests[j], at))
                .filter(|(o, _)| o.live.0 <= r.live.1 && r.live.0 <= o.live.1)
                .map(|(o, at)| (at, at + o.bytes))
                .collect();
            blocks.sort_unstable();
            let mut at = 0;
            for (from, to) in blocks {
                if at + r.bytes <= from {
                    break;
                }
                at = at.max(to);
            }
            placed.push((i, at));
            go(requests, placed, best, peak.max(at + r.bytes));
            placed.pop();
        }
    }
    let mut best = u64::MAX;
    go(requests, &mut Vec::new(), &mut best, 0);
    best
}

/// Cuts a rectangle of time and memory into `count` buffers without a gap.
fn cut(ticks: u32, bytes: u64, count: usize, choices: &[u64]) -> Vec<Request> {
    let mut parts = vec![((0, ticks), (0, bytes))];
    for &choice in choices {
        if parts.len() >= count {
            break;
        }
        // The largest part, so that all stay of a size.
        let area = |p: &((u32, u32), (u64, u64))| u64::from(p.0.1 - p.0.0) * (p.1.1 - p.1.0);
        let at = (0..parts.len())
            .max_by_key(|&i| area(&parts[i]))
            .expect("there is always a part");
        let (time, memory) = parts[at];
        let (wide, high) = (u64::from(time.1 - time.0), memory.1 - memory.0);
        if choice % 2 == 0 && wide > 1 {
            let middle = time.0 + 1 + ((choice / 2) % (wide - 1)) as u32;
            parts[at] = ((time.0, middle), memory);
            parts.push(((middle, time.1), memory));
        } else if high > 1 {
            let middle = memory.0 + 1 + (choice / 2) % (high - 1);
            parts[at] = (time, (memory.0, middle));
            parts.push((time, (middle, memory.1)));
        }
    }
    let request = |(time, memory): ((u32, u32), (u64, u64))| Request {
        bytes: memory.1 - memory.0,
        live: (time.0, time.1 - 1),
    };
    parts.into_iter().map(request).collect()
}

/// Packs within `capacity`, and has it checked.
fn packed(requests: &[Request], align: u64, capacity: u64, nodes: u64) -> Option<Packing> {
    let Fit::Packed(packing) = fit(requests, align, capacity, nodes) else {
        return None;
    };
    assert_eq!(check(requests, align, &packing), Ok(()));
    assert!(packing.peak_bytes <= capacity);
    Some(packing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn planning_packs_between_the_bound_and_the_sum(requests in requests(2000, 40, 60)) {
        let packing = pack(&requests);
        prop_assert_eq!(check(&requests, ALIGN, &packing), Ok(()));
        let sum: u64 = requests.iter().map(|r| r.bytes.next_multiple_of(ALIGN)).sum();
        prop_assert!((load(&requests, ALIGN)..=sum).contains(&packing.peak_bytes));
        prop_assert_eq!(pack(&requests), packing);
    }

    #[test]
    fn the_search_finds_the_least_capacity_and_proves_it(requests in requests(6, 8, 7)) {
        let least = least_peak(&requests);
        prop_assert!(packed(&requests, 1, least, 200_000).is_some());
        prop_assert_eq!(fit(&requests, 1, least - 1, 200_000), Fit::Impossible);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn what_is_cut_from_a_full_rectangle_fills_it_again(
        choices in prop::collection::vec(any::<u64>(), 200),
        count in 10usize..50,
    ) {
        let requests = cut(200, 1000, count, &choices);
        prop_assert_eq!(load(&requests, 1), 1000);
        prop_assert!(packed(&requests, 1, 1000, 2_000_000).is_some());
    }
}

/// A thousand packings with one thing changed are all rejected, each for what is
/// wrong with it.
#[test]
fn mutated_packings_are_rejected() {
    let mut seed: u64 = 7;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    let choices: Vec<u64> = (0..400).map(|_| next()).collect();
    let mut requests = cut(500, 1 << 12, 60, &choices);
    for r in &mut requests {
        r.bytes *= ALIGN;
    }
    let whole = packed(&requests, ALIGN, ALIGN << 12, 5_000_000);
    let whole = whole.expect("the parts fill their rectangle");
    for mutation in 0..1000 {
        let pick = next() as usize % requests.len();
        let by = 1 + next() % 20;
        let (mut asked, mut packing) = (requests.clone(), whole.clone());
        // A full rectangle has no free place: what moves or grows hits another or
        // the rim.
        let is_expected: fn(&Flaw) -> bool = match mutation % 4 {
            0 => {
                packing.offsets[pick] = (packing.offsets[pick] + ALIGN * by) % (ALIGN << 12);
                |flaw| matches!(flaw, Flaw::Overlap { .. } | Flaw::Beyond { .. })
            }
            1 => {
                packing.offsets[pick] += by;
                |flaw| matches!(flaw, Flaw::Misaligned { .. })
            }
            2 => {
                asked[pick].bytes += by;
                |flaw| matches!(flaw, Flaw::Overlap { .. } | Flaw::Beyond { .. })
            }
            _ => {
                packing.peak_bytes -= by;
                |flaw| matches!(flaw, Flaw::Beyond { .. })
            }
        };
        let flaw = check(&asked, ALIGN, &packing).expect_err("every mutation breaks something");
        assert!(is_expected(&flaw), "mutation {mutation}: {flaw}");
    }
    let offsets = whole.offsets[1..].to_vec();
    let short = Packing { offsets, ..whole };
    let flaw = check(&requests, ALIGN, &short);
    assert!(matches!(flaw, Err(Flaw::Count { .. })));
}

/// Instances of MiniMalloc at their capacity, and those with slack at their load.
#[test]
fn instances_of_others_are_packed() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/planning/minimalloc");
    if !folder.is_dir() {
        eprintln!("skipped: there is no {}", folder.display());
        return;
    }
    let cases = [
        ("A", 1 << 20),
        ("B", 1 << 20),
        ("C", 1_039_360),
        ("D", 986_112),
        ("E", 1 << 20),
    ];
    for (name, capacity) in cases {
        let path = folder.join(format!("{name}.1048576.csv"));
        let text = std::fs::read_to_string(&path).expect("the instance can be read");
        let requests: Vec<Request> = (text.lines().skip(1))
            .map(|line| {
                let cells: Vec<u64> = (line.split(','))
                    .map(|c| c.trim().parse().expect("a number"))
                    .collect();
                Request {
                    bytes: cells[3],
                    live: (cells[1] as u32, cells[2] as u32 - 1),
                }
            })
            .collect();
        assert!(
            packed(&requests, 1, capacity, 5_000_000).is_some(),
            "{name} at {capacity}"
        );
    }
}
