//! What must wait for what: calls on three streams, ordered by the bytes that
//! they touch.
//!
//! Kernels, copies to the device and copies to the host each have a stream, which
//! keeps its own order. Two calls on different streams that touch the same byte of
//! the arena or of page-locked memory, one of them writing, must keep theirs: the
//! later waits for the earlier, and for nothing that its stream was given since. Who
//! has waited for a call has waited for all before it, and for all that these waited
//! for, so that most calls need no wait.

use std::ops::Range;

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Kernels.
    Compute,
    /// Copies to the device.
    ToDevice,
    /// Copies to the host.
    ToHost,
}

impl Lane {
    /// All of them.
    pub(super) const ALL: [Lane; 3] = [Lane::Compute, Lane::ToDevice, Lane::ToHost];
}

/// Bytes of the arena or of page-locked memory, by address: the two never share one.
pub(super) type Bytes = Range<u64>;

/// A call by its stream and its number there, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) lane: Lane,
    pub(super) number: u64,
}

/// A call's use of some bytes, as long as a later call may have to wait for it.
#[derive(Clone, Debug)]
struct Access {
    lane: usize,
    number: u64,
    /// Calls of each stream that come before it.
    known: [u64; 3],
    bytes: Bytes,
    writes: bool,
}

/// Accesses that are kept apart; beyond, those of a stream are taken as one.
const MOST_ACCESSES: usize = 1024;

/// What the streams were given, and what each knows of the others.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Calls given to each stream.
    given: [u64; 3],
    /// How many calls of another stream come before whatever a stream is given next.
    seen: [[u64; 3]; 3],
    accesses: Vec<Access>,
}

impl Schedule {
    /// Gives a call to `lane`; the calls of others that it must wait for first.
    pub(super) fn give(&mut self, lane: Lane, reads: &[Bytes], writes: &[Bytes]) -> Vec<Given> {
        let me = lane as usize;
        // Of each other stream, the last call that must come first.
        let last_of = |other: Lane| {
            let it = other as usize;
            let seen = self.seen[me][it];
            let clash = |a: &&Access| {
                let with = |bytes: &Bytes| a.bytes.start < bytes.end && bytes.start < a.bytes.end;
                a.lane == it
                    && a.number > seen
                    && (writes.iter().any(with) || (a.writes && reads.iter().any(with)))
            };
            let last = (self.accesses.iter().filter(clash)).max_by_key(|a| a.number)?;
            let number = last.number;
            Some((
                Given {
                    lane: other,
                    number,
                },
                last.known,
            ))
        };
        let others = Lane::ALL.into_iter().filter(|&other| other != lane);
        let last: Vec<(Given, [u64; 3])> = others.filter_map(last_of).collect();
        let mut waits = Vec::new();
        for &(call, known) in &last {
            // The other may have waited for this one itself.
            let implied = |(_, known): &(Given, [u64; 3])| known[call.lane as usize] >= call.number;
            if !last
                .iter()
                .filter(|(c, _)| c.lane != call.lane)
                .any(implied)
            {
                waits.push(call);
            }
            self.learn(me, call.lane as usize, call.number, known);
        }
        self.given[me] += 1;
        let number = self.given[me];
        let known = self.seen[me];
        let uses = (reads.iter().map(|b| (b, false))).chain(writes.iter().map(|b| (b, true)));
        self.accesses.extend(uses.map(|(bytes, writes)| Access {
            lane: me,
            number,
            known,
            bytes: bytes.clone(),
            writes,
        }));
        self.forget();
        waits
    }

    /// The last call given to `lane`; 0 before the first.
    pub(super) fn last(&self, lane: Lane) -> u64 {
        self.given[lane as usize]
    }

    /// The first call of `lane` that another may yet have to wait for.
    pub(super) fn oldest_open(&self, lane: Lane) -> u64 {
        let of_lane = self.accesses.iter().filter(|a| a.lane == lane as usize);
        (of_lane.map(|a| a.number).min()).unwrap_or(self.given[lane as usize] + 1)
    }

    /// Notes that the host has waited for all of `lane`.
    pub(super) fn drained(&mut self, lane: Lane) {
        let it = lane as usize;
        for me in 0..3 {
            self.learn(me, it, self.given[it], self.seen[it]);
        }
        self.forget();
    }

    /// What comes after call `number` of stream `it`, and after all that came before
    /// that.
    fn learn(&mut self, me: usize, it: usize, number: u64, mut known: [u64; 3]) {
        known[it] = number;
        for (mine, known) in self.seen[me].iter_mut().zip(known) {
            *mine = (*mine).max(known);
        }
    }

    /// Drops what no stream will wait for any more.
    fn forget(&mut self) {
        let seen = self.seen;
        let open = |a: &Access| (0..3).any(|me| me != a.lane && seen[me][a.lane] < a.number);
        self.accesses.retain(open);
        if self.accesses.len() <= MOST_ACCESSES {
            return;
        }
        let one = |lane: usize| {
            let of_lane = || self.accesses.iter().filter(move |a| a.lane == lane);
            let last = of_lane().max_by_key(|a| a.number)?;
            Some(Access {
                bytes: of_lane().map(|a| a.bytes.start).min()?
                    ..of_lane().map(|a| a.bytes.end).max()?,
                writes: true,
                ..last.clone()
            })
        };
        self.accesses = (0..3).filter_map(one).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A call: its stream, a read and a write.
    type Call = (usize, (u64, u64), (u64, u64));

    /// For each call, how many calls of each stream are done before it begins if
    /// it waits as `waits` says.
    fn clocks(calls: &[Call], waits: &[Vec<Given>]) -> Vec<[u64; 3]> {
        // Of each stream, what is done before each of its calls begins.
        let mut begun: [Vec<[u64; 3]>; 3] = Default::default();
        let one = |((lane, ..), waits): (&Call, &Vec<Given>)| {
            let mut at = begun[*lane].last().copied().unwrap_or_default();
            at[*lane] = begun[*lane].len() as u64;
            for wait in waits {
                let other = wait.lane as usize;
                let mut known = begun[other][wait.number as usize - 1];
                known[other] = wait.number;
                for (mine, known) in at.iter_mut().zip(known) {
                    *mine = (*mine).max(known);
                }
            }
            begun[*lane].push(at);
            at
        };
        calls.iter().zip(waits).map(one).collect()
    }

    /// Whether every call begins after those before it that touch its bytes.
    fn is_safe(calls: &[Call], waits: &[Vec<Given>]) -> bool {
        let clocks = clocks(calls, waits);
        let number = |i: usize| calls[..=i].iter().filter(|c| c.0 == calls[i].0).count() as u64;
        let touch = |a: (u64, u64), b: (u64, u64)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
        (0..calls.len()).all(|j| {
            (0..j).all(|i| {
                let ((_, ri, wi), (_, rj, wj)) = (calls[i], calls[j]);
                let clash = touch(wi, rj) || touch(wi, wj) || touch(ri, wj);
                !clash || clocks[j][calls[i].0] >= number(i)
            })
        })
    }

    fn schedule(calls: &[Call]) -> Vec<Vec<Given>> {
        let mut schedule = Schedule::default();
        let bytes = |(at, len): (u64, u64)| at..at + len;
        let one = |&(lane, read, write): &Call| {
            schedule.give(Lane::ALL[lane], &[bytes(read)], &[bytes(write)])
        };
        calls.iter().map(one).collect()
    }

    proptest! {
        #[test]
        fn conflicts_keep_their_order_and_no_call_waits_for_nothing(
            calls in prop::collection::vec((0usize..3, (0u64..40, 1u64..8), (0u64..40, 1u64..8)), 1..60),
        ) {
            let waits = schedule(&calls);
            prop_assert!(is_safe(&calls, &waits));
            for i in 0..calls.len() {
                for at in 0..waits[i].len() {
                    let mut fewer = waits.clone();
                    fewer[i].remove(at);
                    prop_assert!(!is_safe(&calls, &fewer), "call {} need not wait", i);
                    // Nor for a later one than it must.
                    let mut sooner = waits.clone();
                    sooner[i][at].number -= 1;
                    let is_wait = sooner[i][at].number > 0;
                    prop_assert!(!is_wait || !is_safe(&calls, &sooner), "call {} waits too long", i);
                }
            }
        }
    }

    #[test]
    fn many_accesses_are_taken_as_one_and_stay_safe() {
        let calls: Vec<Call> = (0..3000)
            .map(|i| (usize::from(i % 700 == 699), (i * 8, 8), (i * 8 + 4, 4)))
            .collect();
        assert!(is_safe(&calls, &schedule(&calls)));
    }

    #[test]
    fn what_the_host_has_waited_for_needs_no_event() {
        let (first, second, both): (Bytes, Bytes, Bytes) = (0..8, 8..16, 0..16);
        let (first, second, both) = ([first], [second], [both]);
        let mut schedule = Schedule::default();
        assert!(schedule.give(Lane::ToDevice, &[], &first).is_empty());
        let waits = schedule.give(Lane::Compute, &first, &second);
        assert_eq!(
            waits,
            [Given {
                lane: Lane::ToDevice,
                number: 1
            }]
        );
        schedule.drained(Lane::Compute);
        assert!(schedule.give(Lane::ToHost, &both, &[]).is_empty());
    }
}
