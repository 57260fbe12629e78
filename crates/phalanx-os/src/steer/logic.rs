//! The program's logic, run on the [interpreter](super::interpreter).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::interpreter::{Machine, Why};
use super::layout::{PARK, UNLIMITED, group, place};
use super::program::SCAN;
use super::{RING, Rule, Transport, bucket};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RULES: [Rule; 3] = [Rule::Rotate, Rule::Sticky, Rule::Least];
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn packet(flags: u8) -> Why {
    Why::Packet { flags, client: CLIENT }
}

fn moves(cookie: u64) -> Why {
    Why::Moves { cookie, client: CLIENT, family6: false }
}

/// A machine whose places below `places` have sockets, no budgets and tags.
fn machine(transport: Transport, rule: Rule, places: u32) -> Machine {
    let mut machine = Machine::new(transport, rule);
    for each in (0..places).chain([PARK]) {
        machine.selectable.insert(each);
        machine.set_place(each, place::BUDGET, UNLIMITED);
        machine.set_place(each, place::TAG, u64::from(each) + 1000);
    }
    machine
}

fn chosen(machine: &mut Machine, why: Why, times: usize) -> Vec<Option<u32>> {
    (0..times).map(|_| machine.run(why)).collect()
}

fn some(places: &[u32]) -> Vec<Option<u32>> {
    places.iter().copied().map(Some).collect()
}

#[test]
fn rotation_goes_around_the_ring() {
    let mut machine = machine(Transport::Tcp, Rule::Rotate, 4);
    machine.ring(&[2, 0, 3]);
    assert_eq!(chosen(&mut machine, packet(SYN), 7), some(&[2, 0, 3, 2, 0, 3, 2]));
    // The next ring begins where the cursor is.
    machine.ring(&[1, 2]);
    assert_eq!(chosen(&mut machine, packet(SYN), 3), some(&[2, 1, 2]));
}

#[test]
fn each_kind_has_a_cursor_and_a_count_of_its_own() {
    let mut machine = machine(Transport::Tcp, Rule::Rotate, 2);
    machine.ring(&[0, 1]);
    // With one cursor the ACKs, which are the connections, would all go to one place.
    for turn in [0, 1, 0, 1] {
        assert_eq!(machine.run(packet(SYN)), Some(turn));
        assert_eq!(machine.run(packet(ACK)), Some(turn));
    }
    assert_eq!(chosen(&mut machine, moves(77), 3), some(&[0, 1, 0]));
    let counts =
        |each| [place::SYN, place::ACK, place::MOVED_IN, place::GIVEN].map(|at| machine.place(each, at));
    assert_eq!(counts(0), [2, 2, 2, 6]);
    assert_eq!(counts(1), [2, 2, 1, 5]);
    assert_eq!(machine.moved, BTreeMap::from([(77, 1000)]));
}

#[test]
fn other_flags_do_not_matter_to_what_a_packet_is() {
    for (flags, is_choice) in [
        (0x02, true),  // SYN
        (0xc2, true),  // SYN with ECN
        (0x10, true),  // ACK
        (0x18, true),  // ACK with data
        (0x00, false), // NULL
        (0x01, false), // FIN
        (0x03, false), // SYN, FIN
        (0x04, false), // RST
        (0x06, false), // SYN, RST
        (0x11, false), // FIN, ACK
        (0x12, false), // SYN, ACK
        (0x14, false), // RST, ACK
        (0x29, false), // XMAS
    ] {
        for rule in RULES {
            let mut machine = machine(Transport::Tcp, rule, 2);
            machine.ring(&[0, 1]);
            assert_eq!(machine.run(packet(flags)).is_some(), is_choice, "{flags:x}");
            assert_eq!(machine.group(group::ODD), u64::from(!is_choice), "{flags:x}");
            assert_eq!(machine.run(Why::Stump), None);
            assert_eq!(machine.group(group::ODD), u64::from(!is_choice) + 1);
        }
    }
}

#[test]
fn odd_packets_move_no_cursor() {
    let mut machine = machine(Transport::Tcp, Rule::Rotate, 2);
    machine.ring(&[0, 1]);
    assert_eq!(machine.run(packet(SYN)), Some(0));
    for flags in [0x00, 0x01, 0x04, 0x12, 0x29] {
        assert_eq!(machine.run(packet(flags)), None);
    }
    assert_eq!(machine.run(packet(ACK)), Some(0));
    assert_eq!(machine.run(packet(SYN)), Some(1));
}

#[test]
fn an_empty_ring_parks() {
    for rule in RULES {
        for why in [packet(SYN), packet(ACK), moves(5)] {
            let mut machine = machine(Transport::Tcp, rule, 2);
            assert_eq!(machine.run(why), Some(PARK));
            assert_eq!(machine.group(group::PARKED), 1);
            assert_eq!(machine.place(PARK, place::GIVEN), 1);
        }
    }
}

#[test]
fn budgets_are_kept_while_anybody_is_within_his() {
    let mut machine = machine(Transport::Tcp, Rule::Rotate, 3);
    machine.ring(&[0, 1, 2]);
    machine.set_place(1, place::BUDGET, 1);
    // given - base may be as much as the budget before it is too much: two go there.
    let all = chosen(&mut machine, packet(SYN), 30);
    assert_eq!(all.iter().filter(|each| **each == Some(1)).count(), 2);
    // More were taken: it may have more.
    machine.set_place(1, place::BASE, 2);
    let all = chosen(&mut machine, packet(SYN), 30);
    assert_eq!(all.iter().filter(|each| **each == Some(1)).count(), 2);
    // All are over: who is so by least.
    for (each, budget) in [(0, 0), (1, 1), (2, 0)] {
        machine.set_place(each, place::BASE, 0);
        machine.set_place(each, place::BUDGET, budget);
        machine.set_place(each, place::GIVEN, 10);
    }
    assert_eq!(machine.run(packet(SYN)), Some(1));
    assert_eq!(machine.group(group::FAILED), 0);
    // If that one cannot take it, it waits.
    machine.selectable.remove(&0);
    machine.set_place(0, place::BUDGET, 9);
    assert_eq!(machine.group(group::PARKED), 0);
    machine.set_place(0, place::GIVEN, 10);
    assert_eq!(machine.run(packet(SYN)), Some(PARK));
    assert_eq!((machine.group(group::FAILED), machine.group(group::PARKED)), (1, 1));
}

#[test]
fn who_cannot_be_chosen_is_passed_over() {
    for rule in RULES {
        let mut machine = machine(Transport::Tcp, rule, 4);
        machine.ring(&[0, 1, 2, 3].repeat(RING / 4));
        machine.selectable.retain(|each| [2, PARK].contains(each));
        assert_eq!(chosen(&mut machine, packet(SYN), 8), some(&[2; 8]));
        machine.selectable.remove(&2);
        assert_eq!(machine.run(packet(SYN)), Some(PARK));
        // Not even that: the kernel has to know itself. It never drops.
        machine.selectable.clear();
        assert_eq!(machine.run(packet(SYN)), None);
    }
}

#[test]
fn the_least_load_gets_it_and_ties_rotate() {
    let mut machine = machine(Transport::Tcp, Rule::Least, 4);
    machine.ring(&[0, 1, 2, 3]);
    assert_eq!(chosen(&mut machine, packet(SYN), 6), some(&[0, 1, 2, 3, 0, 1]));
    machine.set_place(1, place::GONE, 2);
    // Loads 2, 0, 1, 1.
    assert_eq!(machine.run(packet(SYN)), Some(1));
    // More gone than were given is nothing, not a lot.
    machine.set_place(3, place::GONE, 100);
    assert_eq!(chosen(&mut machine, packet(SYN), 3), some(&[3; 3]));
}

#[test]
fn the_search_for_the_least_load_is_bounded_and_begins_at_the_cursor() {
    let places = SCAN as u32 * 2;
    let mut machine = machine(Transport::Tcp, Rule::Least, places);
    machine.ring(&(0..places).collect::<Vec<_>>());
    for each in 0..places {
        machine.set_place(each, place::GIVEN, 10);
    }
    machine.set_place(places - 1, place::GIVEN, 0);
    assert_eq!(machine.run(packet(SYN)), Some(0), "too far away");
    for _ in 1..SCAN {
        machine.run(packet(SYN));
    }
    assert_eq!(machine.run(packet(SYN)), Some(places - 1));
}

#[test]
fn datagrams_of_one_flow_go_to_one_place() {
    for rule in [Rule::Rotate, Rule::Least] {
        let mut machine = machine(Transport::Udp, rule, 3);
        machine.set_place(1, place::BUDGET, 0);
        machine.ring(&[0, 1, 2]);
        for hash in [0, 1, 2, 3, 100, u32::MAX] {
            let why = Why::Datagram { hash, client: CLIENT };
            assert_eq!(chosen(&mut machine, why, 3), some(&[hash % 3; 3]));
        }
        assert_eq!(machine.place(0, place::SYN), machine.place(0, place::GIVEN));
    }
    let mut machine = machine(Transport::Udp, Rule::Sticky, 2);
    machine.ring(&[0, 1].repeat(RING / 2));
    let why = Why::Datagram { hash: 5, client: CLIENT };
    assert_eq!(machine.run(why), Some(bucket(CLIENT) % 2));
}

#[test]
fn the_hash_of_an_address_is_what_it_was() {
    let vectors = [
        ("0.0.0.0", 0),
        ("127.0.0.1", 3851),
        ("192.0.2.1", 690),
        ("255.255.255.255", 2127),
        ("::", 0),
        ("::1", 2983),
        ("2001:db8::1", 1992),
        ("::ffff:192.0.2.1", 690),
    ];
    let got: Vec<u32> = vectors.iter().map(|(address, _)| bucket(address.parse().unwrap())).collect();
    assert_eq!(got, vectors.map(|(_, bucket)| bucket));
}

/// What is to be chosen, in plain words.
fn model(rule: Rule, machine: &Machine, ring: &[u32], start: usize, failed: &mut u64) -> u32 {
    let mut take = |each: u32| {
        let taken = machine.selectable.contains(&each);
        *failed += u64::from(!taken);
        taken
    };
    let load = |each: u32, less: i16| {
        machine.place(each, place::GIVEN).wrapping_sub(machine.place(each, less)).cast_signed()
    };
    let from_start = |looks: usize| (0..looks.min(ring.len())).map(|look| ring[(start + look) % ring.len()]);
    let looks = if rule == Rule::Least { 64 } else { 0 };
    let best = from_start(looks).min_by_key(|each| load(*each, place::GONE).max(0));
    if let Some(best) = best.filter(|each| take(*each)) {
        return best;
    }
    let mut least: Option<(i64, u32)> = None;
    for each in from_start(8) {
        let over = load(each, place::BASE).wrapping_sub_unsigned(machine.place(each, place::BUDGET));
        if rule == Rule::Rotate && over > 0 {
            least = least.filter(|(best, _)| *best <= over).or(Some((over, each)));
        } else if take(each) {
            return each;
        }
    }
    match least {
        Some((_, each)) if take(each) => each,
        _ => PARK,
    }
}

proptest! {
    /// Whatever the ring, the sockets, the loads: the choice is the model's, nobody goes without one, and the
    /// counters add up.
    #[test]
    fn the_choice_is_the_models(
        rule in prop::sample::select(&RULES[..]),
        ring in prop::collection::vec(0..12_u32, 0..100),
        selectable in prop::collection::btree_set(0..12_u32, 0..12),
        loads in prop::collection::vec((0..20_u64, 0..20_u64, prop::option::of(0..10_u64), 0..30_u64), 12),
        whys in prop::collection::vec((0..4_u32, any::<u32>()), 1..60),
    ) {
        let mut machine = machine(Transport::Tcp, rule, 0);
        machine.selectable.extend(&selectable);
        for (each, (given, base, budget, gone)) in (0..).zip(&loads) {
            machine.set_place(each, place::GIVEN, *given);
            machine.set_place(each, place::BASE, *base);
            machine.set_place(each, place::BUDGET, budget.unwrap_or(UNLIMITED));
            machine.set_place(each, place::GONE, *gone);
        }
        machine.ring(&ring);
        let (mut cursors, mut failed, mut parked) = ([0; 3], 0, 0);
        for (cookie, (kind, client)) in (1..).zip(whys) {
            let client = IpAddr::from(client.to_be_bytes());
            let (why, cursor) = match kind {
                0 => (Why::Packet { flags: SYN, client }, 0),
                1 => (Why::Packet { flags: ACK, client }, 1),
                2 => (Why::Moves { cookie, client, family6: client.to_string().len() % 2 == 0 }, 2),
                _ => {
                    prop_assert_eq!(machine.run(Why::Packet { flags: 0x12, client }), None);
                    continue;
                }
            };
            let start = if rule == Rule::Sticky { bucket(client) as usize } else { cursors[cursor] };
            let wanted = model(rule, &machine, &ring, start, &mut failed);
            cursors[cursor] += 1;
            parked += u64::from(wanted == PARK);
            let before = machine.place(wanted, place::GIVEN);
            prop_assert_eq!(machine.run(why), Some(wanted));
            prop_assert_eq!(machine.place(wanted, place::GIVEN), before + 1);
        }
        prop_assert_eq!(machine.group(group::FAILED), failed);
        prop_assert_eq!(machine.group(group::PARKED), parked);
        let sum = |at| (0..12).chain([PARK]).map(|each| machine.place(each, at)).sum::<u64>();
        let given = sum(place::GIVEN) - loads.iter().map(|load| load.0).sum::<u64>();
        prop_assert_eq!(given, sum(place::SYN) + sum(place::ACK) + sum(place::MOVED_IN));
        prop_assert_eq!(given, cursors.iter().sum::<usize>() as u64);
        prop_assert_eq!(machine.moved.len(), cursors[2]);
    }

    /// One client, one bucket: at the SYN, at a cookie's ACK, and when its connection moves.
    #[test]
    fn a_client_has_one_bucket_however_it_comes(v4: u32, v6: u128) {
        let mut machine = machine(Transport::Tcp, Rule::Sticky, 1024);
        // Each bucket at a place of its own, as far as there are places.
        machine.ring(&(0..RING as u32).map(|bucket| bucket % 1024).collect::<Vec<_>>());
        let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
        for (client, family6) in [(v4.into(), false), (v4.into(), true), (v6.into(), true), (v4.to_ipv6_mapped().into(), true)] {
            let wanted = Some(bucket(client) % 1024);
            prop_assert_eq!(machine.run(Why::Packet { flags: SYN, client }), wanted);
            prop_assert_eq!(machine.run(Why::Packet { flags: ACK, client }), wanted);
            prop_assert_eq!(machine.run(Why::Moves { cookie: 1, client, family6 }), wanted);
        }
    }
}
