//! The program: which member of the group gets this packet, or this connection that has lost its listener.
//!
//! The kernel runs it when it looks for a listener: once for a SYN, once more for the last ACK of a handshake
//! that was made with SYN cookies, for every stray packet, for every UDP datagram, and for each connection
//! that moves because its listener was closed. `docs/steering.md` explains it at length.
//!
//! Whoever changes it keeps three things in mind. With CAP_BPF and no CAP_PERFMON the verifier refuses
//! pointers to which different paths have added different numbers. A branch in the middle of a scan doubles
//! its work, hence the arithmetic in [`least`](Source::least). And an ordinary SYN never leaves without a
//! choice: the kernel would choose among all members, disabled ones and strangers included.

use super::asm::{Asm, At, Helper, If, Label, Map, Op, Program, Reg::*, Size::*, stack};
use super::bucket::MULTIPLIER;
use super::layout::{PARK, RING, group, place};
use super::{Rule, Transport};

/// How often another entry of the ring is tried.
const LOOKS: i32 = 8;

/// How many entries of the ring the search for the least load looks at.
pub(super) const SCAN: i32 = 64;

/// `struct sk_reuseport_md`.
mod context {
    pub(super) const ETH_PROTOCOL: i16 = 20;
    pub(super) const HASH: i16 = 32;
    pub(super) const MIGRATING_SK: i16 = 48;
}

/// `struct bpf_sock`.
mod sock {
    pub(super) const FAMILY: i16 = 4;
    pub(super) const DST_IP4: i16 = 52;
    pub(super) const DST_IP6: i16 = 56;
}

/// Where in the headers.
mod header {
    pub(super) const TCP_FLAGS: i32 = 13;
    pub(super) const IP4_SOURCE: i32 = 12;
    pub(super) const IP6_SOURCE: i32 = 8;
    /// `BPF_HDR_START_NET`: counted from the IP header.
    pub(super) const FROM_NETWORK: i32 = 1;
}

/// TCP flags: FIN, SYN, RST and ACK are looked at.
const LOOKED_AT: i32 = 0x17;
const SYN: i32 = 0x02;
const ACK: i32 = 0x10;

/// Why the program runs.
mod kind {
    pub(super) const SYN: i32 = 0;
    pub(super) const ACK: i32 = 1;
    pub(super) const MOVED: i32 = 2;
}

const SK_PASS: i32 = 1;

/// The variables, as bytes below the end of the stack.
mod local {
    pub(super) const KIND: i16 = 8;
    /// The ring in force: how many entries, and which is the first.
    pub(super) const LENGTH: i16 = 16;
    pub(super) const FIRST: i16 = 24;
    /// Keys of 32 bits, for the maps.
    pub(super) const ENTRY: i16 = 28;
    pub(super) const PLACE: i16 = 32;
    /// The best so far, and how good it is.
    pub(super) const BEST_PLACE: i16 = 40;
    pub(super) const BEST: i16 = 48;
    /// The client's address as IPv6, as it travels.
    pub(super) const ADDRESS: i16 = 64;
    pub(super) const FLAGS: i16 = 72;
    pub(super) const COOKIE: i16 = 80;
    pub(super) const TAG: i16 = 88;
}

/// The program for a transport and a rule.
pub(super) fn program(transport: Transport, rule: Rule) -> Program {
    let mut asm = Asm::default();
    let (park, given, pass) = (asm.label(), asm.label(), asm.label());
    let mut source = Source { asm, park, given, pass };
    source.begin();
    match transport {
        Transport::Tcp => source.kind(),
        Transport::Udp => source.datagram(),
    }
    source.table();
    match (transport, rule) {
        (Transport::Tcp, Rule::Rotate) => {
            source.looks(true);
            source.least_over_drawn();
        }
        (Transport::Tcp, Rule::Least) => {
            source.least();
            source.looks(false);
        }
        (_, Rule::Sticky) => {
            source.client();
            source.looks(false);
        }
        (Transport::Udp, Rule::Rotate | Rule::Least) => source.looks(false),
    }
    source.park();
    source.given();
    source.pass();
    source.asm.finish()
}

/// The source. All the way `R6` is the context, `R7` the entry of the ring to begin with (before it is
/// brought into range), `R8` the group's value; after a place was looked up `R9` is its value.
struct Source {
    asm: Asm,
    park: Label,
    given: Label,
    pass: Label,
}

impl Source {
    fn begin(&mut self) {
        let a = &mut self.asm;
        a.mov(R6, R1); // the context survives calls
        a.map_value(R8, Map::Group); // so does the group
    }

    /// TCP: why are we here? Each reason has a cursor of its own; with one for all, cookies (a SYN and an ACK
    /// for each connection) would give every connection to every second place.
    fn kind(&mut self) {
        let a = &mut self.asm;
        let (packet, syn, ack, known) = (a.label(), a.label(), a.label(), a.label());
        a.load(Double, R1, At(R6, context::MIGRATING_SK));
        a.jump(If::Equal, R1, 0, packet); // nobody moves: there is a packet

        a.store(Double, stack(local::KIND), kind::MOVED);
        a.fetch_and_count(R7, At(R8, group::CURSOR_MOVED));
        a.goto(known);

        a.put(packet);
        a.mov(R1, R6);
        a.mov(R2, header::TCP_FLAGS); // the packet begins with the TCP header
        a.address(R3, stack(local::FLAGS));
        a.mov(R4, 1);
        a.call(Helper::SkbLoadBytes);
        a.load(Byte, R1, stack(local::FLAGS)); // 0 if there was no such byte
        a.op(Op::And, R1, LOOKED_AT);
        a.jump(If::Equal, R1, SYN, syn);
        a.jump(If::Equal, R1, ACK, ack);
        a.count(At(R8, group::ODD)); // a port scan: whoever gets it answers with RST
        a.goto(self.pass);

        a.put(syn);
        a.store(Double, stack(local::KIND), kind::SYN);
        a.fetch_and_count(R7, At(R8, group::CURSOR_SYN));
        a.goto(known);

        a.put(ack);
        a.store(Double, stack(local::KIND), kind::ACK);
        a.fetch_and_count(R7, At(R8, group::CURSOR_ACK));

        a.put(known);
    }

    /// UDP: every datagram; those of one flow have one hash.
    fn datagram(&mut self) {
        let a = &mut self.asm;
        a.store(Double, stack(local::KIND), kind::SYN);
        a.load(Word, R7, At(R6, context::HASH));
    }

    /// The ring in force, read once: whatever is swapped meanwhile, length and entries belong together.
    fn table(&mut self) {
        let a = &mut self.asm;
        a.load(Double, R1, At(R8, group::ACTIVE));
        a.op32(Op::Mov, R2, R1); // the length: the lower half
        a.jump(If::Equal, R2, 0, self.park); // nobody is enabled
        a.store(Double, stack(local::LENGTH), R2);
        a.op(Op::Rsh, R1, 32); // the generation: the upper half
        a.op(Op::Mul, R1, RING as i32);
        a.store(Double, stack(local::FIRST), R1);
    }

    /// Sticky: `R7` becomes the [bucket](super::bucket()) of the client's address.
    fn client(&mut self) {
        let a = &mut self.asm;
        let (packet, from4, from6, hash) = (a.label(), a.label(), a.label(), a.label());
        a.store(Double, stack(local::ADDRESS), 0);
        a.store(Word, stack(local::ADDRESS - 8), 0xffff_u32.to_be().cast_signed());
        a.store(Word, stack(local::ADDRESS - 12), 0); // ::ffff:0.0.0.0

        a.load(Double, R1, At(R6, context::MIGRATING_SK));
        a.jump(If::Equal, R1, 0, packet);
        a.load(Word, R2, At(R1, sock::FAMILY)); // who moves knows its client; there may be no packet
        a.jump(If::NotEqual, R2, libc::AF_INET, from6);
        a.load(Word, R2, At(R1, sock::DST_IP4));
        a.store(Word, stack(local::ADDRESS - 12), R2);
        a.goto(hash);
        a.put(from6);
        for word in [0, 4, 8, 12] {
            a.load(Word, R2, At(R1, sock::DST_IP6 + word));
            a.store(Word, stack(local::ADDRESS - word), R2);
        }
        a.goto(hash);

        a.put(packet);
        a.mov(R1, R6);
        a.mov(R5, header::FROM_NETWORK);
        a.load(Word, R2, At(R6, context::ETH_PROTOCOL));
        a.jump(If::Equal, R2, i32::from((libc::ETH_P_IP as u16).to_be()), from4);
        a.mov(R2, header::IP6_SOURCE);
        a.address(R3, stack(local::ADDRESS));
        a.mov(R4, 16);
        a.call(Helper::SkbLoadBytesRelative);
        a.goto(hash);
        a.put(from4);
        a.mov(R2, header::IP4_SOURCE);
        a.address(R3, stack(local::ADDRESS - 12));
        a.mov(R4, 4);
        a.call(Helper::SkbLoadBytesRelative);

        a.put(hash);
        let mapped = a.label();
        a.mov(R7, 0);
        a.load(Word, R3, stack(local::ADDRESS - 12));
        a.be32(R3);
        a.load(Double, R1, stack(local::ADDRESS));
        a.load(Word, R2, stack(local::ADDRESS - 8));
        a.be32(R2);
        a.op(Op::Xor, R2, 0xffff);
        a.op(Op::Or, R2, R1);
        a.jump(If::Equal, R2, 0, mapped); // IPv4: only the last word counts
        for word in [0, 4, 8] {
            let a = &mut self.asm;
            a.load(Word, R1, stack(local::ADDRESS - word));
            a.be32(R1);
            a.op32(Op::Xor, R7, R1);
            self.mix();
        }
        let a = &mut self.asm;
        a.put(mapped);
        a.op32(Op::Xor, R7, R3);
        self.mix();
        self.asm.op(Op::And, R7, RING as i32 - 1);
    }

    /// `R7 = mix(R7)`; see [`bucket`](super::bucket()).
    fn mix(&mut self) {
        let a = &mut self.asm;
        for last in [false, false, true] {
            a.op32(Op::Mov, R1, R7);
            a.op32(Op::Rsh, R1, 16);
            a.op32(Op::Xor, R7, R1);
            if !last {
                a.op32(Op::Mul, R7, MULTIPLIER.cast_signed());
            }
        }
    }

    /// Entry `R7 + look` of the ring: its place into `PLACE`. Leaves for `end` when all entries were seen.
    fn entry(&mut self, look: i32, end: Label) {
        let a = &mut self.asm;
        a.load(Double, R2, stack(local::LENGTH));
        if look > 0 {
            a.jump(If::AtMost, R2, look, end);
        }
        a.mov(R1, R7);
        a.op(Op::Add, R1, look);
        a.op(Op::Mod, R1, R2);
        a.load(Double, R2, stack(local::FIRST));
        a.op(Op::Add, R1, R2);
        a.store(Word, stack(local::ENTRY), R1);
        self.lookup(Map::Ring, local::ENTRY, self.park); // null only if the length were wrong
        let a = &mut self.asm;
        a.load(Double, R1, At(R0, 0));
        a.store(Word, stack(local::PLACE), R1);
    }

    /// `R0 = the value of a key on the stack`, or off to `absent`.
    fn lookup(&mut self, map: Map, key: i16, absent: Label) {
        let a = &mut self.asm;
        a.map(R1, map);
        a.address(R2, stack(key));
        a.call(Helper::MapLookup);
        a.jump(If::Equal, R0, 0, absent);
    }

    /// Gives to `PLACE`, whose value is `R9`, and is done; or counts a failure and goes on.
    fn select(&mut self) {
        let a = &mut self.asm;
        a.mov(R1, R6);
        a.map(R2, Map::Sockets);
        a.address(R3, stack(local::PLACE));
        a.mov(R4, 0);
        a.call(Helper::SelectReuseport);
        a.jump(If::Equal, R0, 0, self.given);
        a.count(At(R8, group::FAILED)); // closed, shut down, or no socket there
    }

    /// One entry after the other, until one takes it. With budgets, those that have had more than theirs are
    /// skipped, and the one that has had the least too much is remembered.
    fn looks(&mut self, budgets: bool) {
        let end = self.asm.label();
        if budgets {
            self.forget_best();
        }
        for look in 0..LOOKS {
            self.entry(look, end);
            self.lookup(Map::Places, local::PLACE, end);
            let a = &mut self.asm;
            a.mov(R9, R0);
            let next = a.label();
            if budgets {
                let within = a.label();
                a.load(Double, R1, At(R9, place::GIVEN));
                a.load(Double, R2, At(R9, place::BASE));
                a.op(Op::Sub, R1, R2);
                a.load(Double, R2, At(R9, place::BUDGET));
                a.op(Op::Sub, R1, R2); // by how much it is over
                a.jump(If::SignedAtMost, R1, 0, within);
                self.keep_the_less();
                let a = &mut self.asm;
                a.goto(next);
                a.put(within);
            }
            self.select();
            self.asm.put(next);
        }
        self.asm.put(end);
    }

    /// All are over their budgets, or could not take it: the one that is over by least.
    fn least_over_drawn(&mut self) {
        self.best();
    }

    /// The least load (given and not yet gone) among the entries; with equal loads the first from the cursor
    /// on, so that ties rotate.
    fn least(&mut self) {
        let end = self.asm.label();
        self.forget_best();
        for look in 0..SCAN {
            self.entry(look, end);
            self.lookup(Map::Places, local::PLACE, end);
            let a = &mut self.asm;
            a.load(Double, R1, At(R0, place::GIVEN));
            a.load(Double, R2, At(R0, place::GONE));
            a.op(Op::Sub, R1, R2);
            a.mov(R2, R1);
            a.op(Op::Arsh, R2, 63); // all ones if more are gone than were given
            a.op(Op::Xor, R2, -1);
            a.op(Op::And, R1, R2); // then the load is 0
            self.keep_the_less();
        }
        self.asm.put(end);
        self.best();
    }

    /// Nobody is the best yet: no place, and as bad as can be.
    fn forget_best(&mut self) {
        let a = &mut self.asm;
        a.store(Double, stack(local::BEST_PLACE), -1);
        a.mov(R1, -1);
        a.op(Op::Rsh, R1, 2);
        a.store(Double, stack(local::BEST), R1);
    }

    /// If `R1` is less than the best so far, it and `PLACE` are the best. Without a branch: with one, the
    /// verifier would follow two to the power of the looks.
    fn keep_the_less(&mut self) {
        let a = &mut self.asm;
        a.load(Double, R2, stack(local::BEST));
        a.mov(R3, R1);
        a.op(Op::Sub, R3, R2);
        a.op(Op::Arsh, R3, 63); // all ones if it is less
        a.op(Op::Xor, R1, R2);
        a.op(Op::And, R1, R3);
        a.op(Op::Xor, R2, R1); // R2 ^ ((R1 ^ R2) & mask)
        a.store(Double, stack(local::BEST), R2);
        a.load(Word, R1, stack(local::PLACE));
        a.load(Double, R2, stack(local::BEST_PLACE));
        a.op(Op::Xor, R1, R2);
        a.op(Op::And, R1, R3);
        a.op(Op::Xor, R2, R1);
        a.store(Double, stack(local::BEST_PLACE), R2);
    }

    /// Gives to the best, if there is one and it takes it.
    fn best(&mut self) {
        let a = &mut self.asm;
        let none = a.label();
        a.load(Double, R1, stack(local::BEST_PLACE));
        a.store(Word, stack(local::PLACE), R1);
        self.lookup(Map::Places, local::PLACE, none); // no place has the number -1
        self.asm.mov(R9, R0);
        self.select();
        self.asm.put(none);
    }

    /// Nobody takes it: it waits at the parking socket.
    fn park(&mut self) {
        let a = &mut self.asm;
        a.put(self.park);
        a.count(At(R8, group::PARKED));
        a.store(Word, stack(local::PLACE), PARK.cast_signed());
        self.lookup(Map::Places, local::PLACE, self.pass);
        self.asm.mov(R9, R0);
        self.select();
        self.asm.goto(self.pass);
    }

    /// The place with the value `R9` has got it.
    fn given(&mut self) {
        let a = &mut self.asm;
        let (syn, ack) = (a.label(), a.label());
        a.put(self.given);
        a.count(At(R9, place::GIVEN));
        a.load(Double, R1, stack(local::KIND));
        a.jump(If::Equal, R1, kind::SYN, syn);
        a.jump(If::Equal, R1, kind::ACK, ack);

        // Moved: the connection's own storage keeps the tag of the listener that it began with.
        a.count(At(R9, place::MOVED_IN));
        a.load(Double, R1, At(R6, context::MIGRATING_SK));
        a.jump(If::Equal, R1, 0, self.pass);
        a.call(Helper::SocketCookie);
        a.store(Double, stack(local::COOKIE), R0);
        a.load(Double, R1, At(R9, place::TAG));
        a.store(Double, stack(local::TAG), R1);
        a.map(R1, Map::Moved);
        a.address(R2, stack(local::COOKIE));
        a.address(R3, stack(local::TAG));
        a.mov(R4, 0);
        a.call(Helper::MapUpdate);
        a.goto(self.pass);

        a.put(syn);
        a.count(At(R9, place::SYN));
        a.goto(self.pass);

        a.put(ack);
        a.count(At(R9, place::ACK));
    }

    fn pass(&mut self) {
        let a = &mut self.asm;
        a.put(self.pass);
        a.mov(R0, SK_PASS);
        a.exit();
    }
}
