//! The table that the kernel's program reads: which place gets the next connection.
//!
//! Rotation, weights and stickiness are all the *content* of this table, so the program stays short and knows
//! no policy.

use crate::policy::bucket;
use crate::{Place, Slot};

/// Buckets of client addresses, in every mechanism.
pub(crate) const BUCKETS: usize = bucket::COUNT;
/// Longest rotation: weights are scaled down to fit.
const LONGEST: u32 = 4096;

/// A place that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) place: Place,
    pub(crate) slot: Slot,
    pub(crate) weight: u32,
}

/// Each place as often as its weight, as evenly spread as can be: the turn goes to whoever has waited longest
/// in proportion to its weight.
pub(crate) fn rotation(choices: &[Choice]) -> Vec<Place> {
    let total: u32 = choices.iter().map(|choice| choice.weight).sum();
    if total == 0 {
        return Vec::new();
    }
    let divisor = choices.iter().map(|choice| choice.weight).filter(|w| *w > 0).fold(0, gcd);
    let length = (total / divisor).min(LONGEST);
    let mut credit = vec![0_i64; choices.len()];
    (0..length)
        .filter_map(|_| {
            for (credit, choice) in credit.iter_mut().zip(choices) {
                *credit += i64::from(choice.weight);
            }
            // The first of the best: equal weights keep their order.
            let best = (0..choices.len()).rev().max_by_key(|&at| credit[at])?;
            credit[best] -= i64::from(total);
            Some(choices[best].place)
        })
        .collect()
}

/// One place for each bucket of client addresses, by rendezvous hashing over the slots: a slot that comes or
/// goes moves only its own clients, and a successor in the same slot inherits them.
pub(crate) fn buckets(choices: &[Choice]) -> Vec<Place> {
    if choices.iter().all(|choice| choice.weight == 0) {
        return Vec::new();
    }
    (0..BUCKETS as u32)
        .filter_map(|bucket| {
            choices
                .iter()
                .filter(|choice| choice.weight > 0)
                .max_by_key(|choice| (bucket::score(bucket, choice.slot, choice.weight), choice.place))
                .map(|choice| choice.place)
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(weights: &[u32]) -> Vec<Choice> {
        weights
            .iter()
            .zip(0..)
            .map(|(&weight, n)| Choice { place: Place(n), slot: Slot(n), weight })
            .collect()
    }

    fn numbers(ring: Vec<Place>) -> Vec<u32> {
        ring.into_iter().map(|place| place.0).collect()
    }

    #[test]
    fn equal_weights_are_a_plain_rotation_of_the_smallest_length() {
        assert_eq!(numbers(rotation(&choices(&[1, 1, 1]))), [0, 1, 2]);
        assert_eq!(numbers(rotation(&choices(&[7, 7]))), [0, 1]);
        assert!(rotation(&[]).is_empty());
    }

    #[test]
    fn weights_are_spread_and_zero_gets_nothing() {
        assert_eq!(numbers(rotation(&choices(&[5, 1, 1]))), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(numbers(rotation(&choices(&[2, 1, 0]))), [0, 1, 0]);
        assert!(rotation(&choices(&[0, 0])).is_empty());
        assert_eq!(rotation(&choices(&[4000, 3999, 1])).len(), 4096);
    }

    #[test]
    fn a_slot_that_goes_moves_only_its_own_buckets() {
        let before = buckets(&choices(&[1, 1, 1, 1]));
        let after = buckets(&choices(&[1, 1, 1]));
        assert_eq!(before.len(), BUCKETS);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == Place(3));
        }
        for n in 0..4 {
            let share = before.iter().filter(|place| place.0 == n).count();
            assert!((850..1200).contains(&share), "{n} has {share} of 4096");
        }
    }

    #[test]
    fn weighted_buckets_follow_their_weights() {
        let ring = buckets(&choices(&[5, 3, 2]));
        let share = |n| ring.iter().filter(|place| place.0 == n).count();
        assert!((1900..2200).contains(&share(0)), "{}", share(0));
        assert!((1100..1350).contains(&share(1)), "{}", share(1));
        assert!((700..950).contains(&share(2)), "{}", share(2));
    }
}
