//! Steering without privilege: at random over the members that are enabled.

use std::io;
use std::os::fd::AsFd;

use crate::sockopt::{self, FilterStep};

/// `SKF_AD_OFF + SKF_AD_RANDOM`: where a classic filter finds a random number.
const RANDOM: u32 = (-0x1000_i32 + 56).cast_unsigned();

/// Operation codes of classic BPF, from `linux/bpf_common.h`, as far as they are needed.
mod code {
    pub(super) const LOAD: u16 = 0x20;
    pub(super) const MOD: u16 = 0x94;
    pub(super) const ADD: u16 = 0x04;
    pub(super) const SUB: u16 = 0x14;
    pub(super) const JUMP_AT_LEAST: u16 = 0x35;
    pub(super) const RETURN: u16 = 0x06;
    pub(super) const RETURN_A: u16 = 0x16;
}

/// The filter of one [`Group`](super::Group): each connection, or datagram, to one of the enabled members,
/// with equal chances.
///
/// A classic filter can only name a member by its number in the kernel's own order. So this must hear of every
/// member that joins or leaves, the parking socket excepted, in the order in which it happens: a newcomer is
/// the last, and when one leaves the last takes its number. A [`flush`](super::flush) is both, leaving and
/// joining.
///
/// There are no counts, and nothing is moved: closing or flushing a member *resets* its queue, unless
/// `net.ipv4.tcp_migrate_req` is on. Whoever has to empty a queue accepts from it.
#[derive(Clone, Debug, Default)]
pub struct Even {
    /// The callers' names of the members; the first has number 1, after the parking socket.
    order: Vec<u32>,
}

impl Even {
    /// A group with nobody but the parking socket.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A member has joined. `place` is the caller's name for it.
    pub fn joined(&mut self, place: u32) {
        self.order.push(place);
    }

    /// A member has left: shut down, or closed by the last who held it.
    pub fn left(&mut self, place: u32) {
        if let Some(number) = self.order.iter().position(|each| *each == place) {
            self.order.swap_remove(number);
        }
    }

    /// From now on these members, and no others, get what comes. With none of them it is the parking socket.
    ///
    /// `member` is any socket of the group. Names of nobody are passed over.
    ///
    /// # Errors
    /// `EINVAL` when the socket is in no group (a group begins with the first member that joins); `EPERM` if
    /// somebody has locked its filter.
    pub fn choose(&self, member: impl AsFd, enabled: &[u32]) -> io::Result<()> {
        sockopt::attach_group_filter(member, &filter(&self.numbers(enabled)))
    }

    /// The kernel's numbers, rising.
    fn numbers(&self, enabled: &[u32]) -> Vec<u32> {
        (1..)
            .zip(&self.order)
            .filter(|(_, place)| enabled.contains(place))
            .map(|(number, _)| number)
            .collect()
    }
}

/// A filter that returns one of these numbers, which rise, at random.
fn filter(numbers: &[u32]) -> Vec<FilterStep> {
    let step = |code, k| FilterStep { code, jt: 0, jf: 0, k };
    let (Some(first), Ok(count)) = (numbers.first(), u32::try_from(numbers.len())) else {
        return vec![step(code::RETURN, 0)];
    };
    let mut steps = vec![step(code::LOAD, RANDOM), step(code::MOD, count)];
    // A = 0..count is the position in the list. Each run of numbers without a gap needs three steps.
    let mut run = *first;
    for (position, number) in (0..).zip(numbers) {
        let gap = numbers.get(position as usize + 1).is_none_or(|next| *next != number + 1);
        if !gap {
            continue;
        }
        let begin = position - (number - run);
        steps.push(FilterStep { code: code::JUMP_AT_LEAST, jt: 2, jf: 0, k: position + 1 });
        steps.push(if run >= begin { step(code::ADD, run - begin) } else { step(code::SUB, begin - run) });
        steps.push(step(code::RETURN_A, 0));
        run = numbers.get(position as usize + 1).copied().unwrap_or(0);
    }
    steps.push(step(code::RETURN, *first)); // never reached; a filter ends with a return
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter returns for a random number.
    fn run(steps: &[FilterStep], random: u32) -> u32 {
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let step = steps[at];
            at += 1;
            match step.code {
                code::LOAD => a = random,
                code::MOD => a %= step.k,
                code::ADD => a += step.k,
                code::SUB => a -= step.k,
                code::JUMP_AT_LEAST => at += usize::from(if a >= step.k { step.jt } else { step.jf }),
                code::RETURN => return step.k,
                code::RETURN_A => return a,
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn every_number_of_the_list_has_the_same_chance() {
        for numbers in [vec![1], vec![1, 2, 3], vec![2, 3, 7], vec![1, 3, 5, 6, 9], vec![1024]] {
            let steps = filter(&numbers);
            let count = numbers.len() as u32;
            let got: Vec<u32> = (0..count * 2).map(|random| run(&steps, random)).collect();
            assert_eq!(got, numbers.repeat(2));
        }
        assert_eq!(run(&filter(&[]), 5), 0);
    }

    #[test]
    fn the_last_takes_the_number_of_who_leaves() {
        let mut even = Even::new();
        for place in [10, 11, 12, 13] {
            even.joined(place);
        }
        assert_eq!(even.numbers(&[11, 13, 99]), [2, 4]);
        even.left(11);
        assert_eq!(even.numbers(&[10, 12, 13]), [1, 2, 3]);
        assert_eq!(even.numbers(&[13]), [2]);
        even.joined(11);
        assert_eq!(even.numbers(&[11]), [4]);
        even.left(99);
        assert_eq!(even.numbers(&[]), []);
    }
}
