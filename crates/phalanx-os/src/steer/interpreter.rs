//! An interpreter for the instructions that the [assembler](super::asm) makes, and as much of a kernel as the
//! program can see. It runs the very instructions that are loaded.
//!
//! It is stricter than a processor: what was not written is not read, nothing outside of what a pointer belongs
//! to is touched, and a helper leaves nothing in the registers that it may destroy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::asm::{Helper, Insn, Map, Program, code};
use super::layout::{self, GROUP_SIZE, MAX_PLACES, PARK, PLACE_SIZE, RING};
use super::{Rule, Transport, program};

/// A pointer is a region and an offset.
const REGION: u32 = 32;
const CONTEXT: u64 = 1;
const STACK: u64 = 2;
const SOCKET: u64 = 3;
const GROUP: u64 = 4;
const RINGS: u64 = 5;
const PLACES: u64 = 6;
/// The map itself; nothing can be read there.
const MAP: u64 = 16;

const STACK_SIZE: usize = 512;

/// What the program is run for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    /// A TCP packet with these flags, from this client.
    Packet { flags: u8, client: IpAddr },
    /// A packet that is too short to have flags.
    Stump,
    /// A datagram of a flow with this hash.
    Datagram { hash: u32, client: IpAddr },
    /// A connection with this cookie moves. `family6`: its listener was one for IPv6.
    Moves { cookie: u64, client: IpAddr, family6: bool },
}

/// The program and what it works on.
pub(super) struct Machine {
    insns: Vec<Insn>,
    /// The first is nobody's.
    regions: [Vec<Option<u8>>; 7],
    /// The places with a socket that can be chosen.
    pub(super) selectable: BTreeSet<u32>,
    /// What the program has noted about connections that moved.
    pub(super) moved: BTreeMap<u64, u64>,
    network_header: Vec<u8>,
    transport_header: Vec<u8>,
    cookie: u64,
    chosen: Option<u32>,
    /// Instructions that were executed, in all.
    pub(super) steps: usize,
}

impl Machine {
    /// With everything 0 and no ring; the parking socket can be chosen.
    pub(super) fn new(transport: Transport, rule: Rule) -> Self {
        let mut program: Program = program::program(transport, rule);
        let known = |bytes: usize| vec![Some(0); bytes];
        Self {
            insns: program.link(|map| map as i32).to_vec(),
            regions: [
                Vec::new(),
                known(56),
                Vec::new(),
                Vec::new(),
                known(GROUP_SIZE as usize),
                known(2 * RING * 8),
                known((MAX_PLACES as usize + 1) * PLACE_SIZE as usize),
            ],
            selectable: BTreeSet::from([PARK]),
            moved: BTreeMap::new(),
            network_header: Vec::new(),
            transport_header: Vec::new(),
            cookie: 0,
            chosen: None,
            steps: 0,
        }
    }

    /// Puts a ring in force, as [`Exact::ring`](super::Exact::ring) does.
    pub(super) fn ring(&mut self, places: &[u32]) {
        let generation = 1 - (self.group(layout::group::ACTIVE) >> 32);
        for (entry, place) in places.iter().enumerate() {
            let at = (generation as usize * RING + entry) * 8;
            self.write(RINGS << REGION | at as u64, 8, (*place).into());
        }
        self.write(GROUP << REGION, 8, generation << 32 | places.len() as u64);
    }

    /// A word of the group.
    pub(super) fn group(&self, offset: i16) -> u64 {
        self.read(GROUP << REGION | offset as u64, 8)
    }

    /// A word of a place.
    pub(super) fn place(&self, place: u32, offset: i16) -> u64 {
        self.read(Self::place_address(place, offset), 8)
    }

    pub(super) fn set_place(&mut self, place: u32, offset: i16, value: u64) {
        self.write(Self::place_address(place, offset), 8, value);
    }

    fn place_address(place: u32, offset: i16) -> u64 {
        (PLACES << REGION) + u64::from(place * PLACE_SIZE) + offset as u64
    }

    /// Runs it; the place that was chosen, if any was.
    pub(super) fn run(&mut self, why: Why) -> Option<u32> {
        self.chosen = None;
        self.regions[STACK as usize] = vec![None; STACK_SIZE];
        self.regions[SOCKET as usize] = Vec::new();
        (self.network_header, self.transport_header) = (Vec::new(), Vec::new());
        let (mut protocol, mut hash, mut migrating) = (libc::ETH_P_IP as u16, 0, 0);
        match why {
            Why::Packet { flags, client } => {
                protocol = self.packet(client);
                self.transport_header = vec![0xee; 20];
                self.transport_header[13] = flags;
            }
            Why::Stump => self.transport_header = vec![0; 13],
            Why::Datagram { hash: flow, client } => {
                protocol = self.packet(client);
                self.transport_header = vec![0; 8];
                hash = flow;
            }
            Why::Moves { cookie, client, family6 } => {
                self.cookie = cookie;
                self.socket(client, family6);
                migrating = SOCKET << REGION;
            }
        }
        self.write(CONTEXT << REGION | 20, 4, protocol.to_be().into());
        self.write(CONTEXT << REGION | 32, 4, hash.into());
        self.write(CONTEXT << REGION | 48, 8, migrating);
        assert_eq!(self.execute(), 1, "SK_PASS");
        self.chosen
    }

    fn packet(&mut self, client: IpAddr) -> u16 {
        match client {
            IpAddr::V4(v4) => {
                self.network_header = vec![0xee; 20];
                self.network_header[12..16].copy_from_slice(&v4.octets());
                libc::ETH_P_IP as u16
            }
            IpAddr::V6(v6) => {
                self.network_header = vec![0xee; 40];
                self.network_header[8..24].copy_from_slice(&v6.octets());
                libc::ETH_P_IPV6 as u16
            }
        }
    }

    /// A `struct bpf_sock` as the program may see it.
    fn socket(&mut self, client: IpAddr, family6: bool) {
        let mut socket = vec![0_u8; 80];
        let family = if family6 { libc::AF_INET6 } else { libc::AF_INET };
        socket[4..8].copy_from_slice(&family.to_ne_bytes());
        match client {
            IpAddr::V4(v4) => {
                socket[52..56].copy_from_slice(&v4.octets());
                if family6 {
                    socket[56..72].copy_from_slice(&v4.to_ipv6_mapped().octets());
                }
            }
            IpAddr::V6(v6) => socket[56..72].copy_from_slice(&v6.octets()),
        }
        self.regions[SOCKET as usize] = socket.into_iter().map(Some).collect();
    }

    fn bytes(&self, pointer: u64, len: usize) -> &[Option<u8>] {
        let (region, offset) = ((pointer >> REGION) as usize, pointer as u32 as usize);
        &self.regions[region][offset..offset + len]
    }

    fn read(&self, pointer: u64, len: usize) -> u64 {
        let known = self.bytes(pointer, len).iter().map(|byte| byte.expect("read before it was written"));
        let mut word = [0; 8];
        word.iter_mut().zip(known).for_each(|(to, from)| *to = from);
        // The host's byte order matters only to how the narrower ones are found.
        u64::from_ne_bytes(word) >> if cfg!(target_endian = "big") { 64 - 8 * len } else { 0 }
    }

    fn write(&mut self, pointer: u64, len: usize, value: u64) {
        let bytes = value.to_ne_bytes();
        let skip = if cfg!(target_endian = "big") { 8 - len } else { 0 };
        self.fill(pointer, &bytes[skip..skip + len]);
    }

    fn fill(&mut self, pointer: u64, bytes: &[u8]) {
        let (region, offset) = ((pointer >> REGION) as usize, pointer as u32 as usize);
        let to = &mut self.regions[region][offset..offset + bytes.len()];
        to.iter_mut().zip(bytes).for_each(|(to, from)| *to = Some(*from));
    }

    fn execute(&mut self) -> u64 {
        let mut regs: [Option<u64>; 11] = [None; 11];
        regs[1] = Some(CONTEXT << REGION);
        regs[10] = Some(STACK << REGION | STACK_SIZE as u64);
        let mut at = 0;
        loop {
            let insn = self.insns[at];
            at += 1;
            self.steps += 1;
            let (dst, src) = (insn.dst(), insn.src());
            let known = |reg: usize| regs[reg].unwrap_or_else(|| panic!("r{reg} is unknown at {}", at - 1));
            let near = |base: u64| base.wrapping_add_signed(insn.off.into());
            let size = match insn.code & 0x18 {
                0x00 => 4,
                0x10 => 1,
                _ => 8,
            };
            let operand = || {
                if insn.code & code::BY_REG != 0 { known(src) } else { i64::from(insn.imm).cast_unsigned() }
            };
            match insn.code {
                code::LD_IMM64 => {
                    regs[dst] = Some(match insn.src() as u8 {
                        code::PSEUDO_MAP => MAP << REGION | insn.imm as u64,
                        code::PSEUDO_MAP_VALUE if insn.imm == Map::Group as i32 => GROUP << REGION,
                        other => panic!("pseudo {other}"),
                    });
                    at += 1;
                }
                code::EXIT => return known(0),
                code::CALL => {
                    let arguments = [1, 2, 3, 4, 5].map(|reg| regs[reg]);
                    regs[1..6].fill(None);
                    regs[0] = Some(self.call(insn.imm, arguments));
                }
                code::ATOMIC => {
                    let pointer = near(known(dst));
                    assert!(pointer.is_multiple_of(8) && pointer >> REGION >= GROUP);
                    let old = self.read(pointer, 8);
                    let sum = old.wrapping_add(known(src));
                    if insn.imm & code::FETCH != 0 {
                        regs[src] = Some(old);
                    }
                    self.write(pointer, 8, sum);
                }
                _ => match insn.code & 7 {
                    1 => regs[dst] = Some(self.read(near(known(src)), size)),
                    2 => self.write(near(known(dst)), size, i64::from(insn.imm).cast_unsigned()),
                    3 => {
                        let pointer = near(known(dst));
                        assert_eq!(pointer >> REGION, STACK, "only the stack is written without atomics");
                        self.write(pointer, size, known(src));
                    }
                    4 if insn.code == code::TO_BE => regs[dst] = Some((known(dst) as u32).to_be().into()),
                    4 => {
                        let old = if insn.code & 0xf0 == 0xb0 { 0 } else { known(dst) as u32 };
                        regs[dst] = Some(alu32(insn.code & 0xf0, old, operand() as u32).into());
                    }
                    7 => {
                        let old = if insn.code & 0xf0 == 0xb0 { 0 } else { known(dst) };
                        regs[dst] = Some(alu64(insn.code & 0xf0, old, operand()));
                    }
                    5 => {
                        let taken = match insn.code & 0xf0 {
                            0x00 => true,
                            0x10 => known(dst) == operand(),
                            0x50 => known(dst) != operand(),
                            0xb0 => known(dst) <= operand(),
                            0xd0 => known(dst).cast_signed() <= operand().cast_signed(),
                            other => panic!("jump {other:x}"),
                        };
                        if taken {
                            at += usize::try_from(insn.off).expect("only forward");
                        }
                    }
                    other => panic!("class {other}"),
                },
            }
        }
    }

    fn call(&mut self, helper: i32, arguments: [Option<u64>; 5]) -> u64 {
        let argument = |number: usize| arguments[number - 1].expect("an argument that is not known");
        let is = |each: Helper| each as i32 == helper;
        if is(Helper::MapLookup) {
            let key = self.read(argument(2), 4);
            let (region, size, entries) = match argument(1) {
                map if map == pointer_to(Map::Ring) => (RINGS, 8, 2 * RING as u64),
                map if map == pointer_to(Map::Places) => {
                    (PLACES, PLACE_SIZE.into(), u64::from(MAX_PLACES) + 1)
                }
                other => panic!("lookup in {other:x}"),
            };
            return if key < entries { (region << REGION) + key * size } else { 0 };
        }
        if is(Helper::MapUpdate) {
            assert_eq!((argument(1), argument(4)), (pointer_to(Map::Moved), 0));
            let (key, value) = (self.read(argument(2), 8), self.read(argument(3), 8));
            self.moved.insert(key, value);
            return 0;
        }
        if is(Helper::SelectReuseport) {
            assert_eq!((argument(1), argument(2)), (CONTEXT << REGION, pointer_to(Map::Sockets)));
            assert_eq!(argument(4), 0);
            assert_eq!(self.chosen, None, "chosen twice");
            let place = self.read(argument(3), 4) as u32;
            if !self.selectable.contains(&place) {
                return (-i64::from(libc::ENOENT)).cast_unsigned();
            }
            self.chosen = Some(place);
            return 0;
        }
        if is(Helper::SocketCookie) {
            assert_eq!(argument(1), SOCKET << REGION);
            return self.cookie;
        }
        let header = if is(Helper::SkbLoadBytes) {
            &self.transport_header
        } else if is(Helper::SkbLoadBytesRelative) {
            assert_eq!(argument(5), 1, "BPF_HDR_START_NET");
            &self.network_header
        } else {
            panic!("helper {helper}")
        };
        assert_eq!(argument(1), CONTEXT << REGION);
        let (from, len) = (argument(2) as usize, argument(4) as usize);
        let bytes = header.get(from..from + len).map(<[u8]>::to_vec);
        self.fill(argument(3), bytes.as_deref().unwrap_or(&vec![0; len]));
        if bytes.is_some() { 0 } else { (-i64::from(libc::EFAULT)).cast_unsigned() }
    }
}

fn pointer_to(map: Map) -> u64 {
    MAP << REGION | map as u64
}

fn alu64(op: u8, a: u64, b: u64) -> u64 {
    match op {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x40 => a | b,
        0x50 => a & b,
        0x70 => a >> (b & 63),
        0x90 => a.checked_rem(b).unwrap_or(a),
        0xa0 => a ^ b,
        0xb0 => b,
        0xc0 => (a.cast_signed() >> (b & 63)).cast_unsigned(),
        other => panic!("operation {other:x}"),
    }
}

fn alu32(op: u8, a: u32, b: u32) -> u32 {
    match op {
        0x20 => a.wrapping_mul(b),
        0x70 => a >> (b & 31),
        0xa0 => a ^ b,
        0xb0 => b,
        other => panic!("operation {other:x} on 32 bits"),
    }
}
