//! An assembler for the few eBPF instructions that the program uses.
//!
//! Only forward jumps: what is not written cannot loop. A map is named, and gets its number when the program
//! is [linked](Program::link).

use std::ops::Neg;

/// `R0` is what a call returns, `R1` to `R5` what it takes and destroys; `R6` to `R9` survive it. `FP` is the
/// end of 512 bytes of stack, and read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Fp,
}

/// One instruction as the kernel reads it: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Insn {
    pub(super) code: u8,
    regs: u8,
    pub(super) off: i16,
    pub(super) imm: i32,
}

impl Insn {
    const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        // Two bit fields, which C lays out by the byte order.
        let regs = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
        Self { code, regs, off, imm }
    }

    #[cfg(test)]
    pub(super) fn dst(self) -> usize {
        usize::from(if cfg!(target_endian = "little") { self.regs & 15 } else { self.regs >> 4 })
    }

    #[cfg(test)]
    pub(super) fn src(self) -> usize {
        usize::from(if cfg!(target_endian = "little") { self.regs >> 4 } else { self.regs & 15 })
    }
}

/// The operation codes, from `linux/bpf.h` and `linux/bpf_common.h`.
pub(super) mod code {
    pub(in crate::steer) const LD_IMM64: u8 = 0x18;
    pub(in crate::steer) const LDX: u8 = 0x61;
    pub(in crate::steer) const ST: u8 = 0x62;
    pub(in crate::steer) const STX: u8 = 0x63;
    pub(in crate::steer) const ATOMIC: u8 = 0xdb;
    pub(in crate::steer) const ALU32: u8 = 0x04;
    pub(in crate::steer) const ALU64: u8 = 0x07;
    pub(in crate::steer) const JMP: u8 = 0x05;
    pub(in crate::steer) const CALL: u8 = 0x85;
    pub(in crate::steer) const EXIT: u8 = 0x95;
    pub(in crate::steer) const TO_BE: u8 = 0xdc;
    /// The second operand is a register.
    pub(in crate::steer) const BY_REG: u8 = 0x08;
    /// `BPF_FETCH`, in the `imm` of an atomic operation. Adding itself is 0.
    pub(in crate::steer) const FETCH: i32 = 1;
    /// In the source register of [`LD_IMM64`]: the map itself, or the memory of its only value.
    pub(in crate::steer) const PSEUDO_MAP: u8 = 1;
    pub(in crate::steer) const PSEUDO_MAP_VALUE: u8 = 2;
}

/// How many bytes a load or store moves; the bits of the operation code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Byte = 0x10,
    Word = 0x00,
    Double = 0x18,
}

/// Arithmetic; the bits of the operation code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Or = 0x40,
    And = 0x50,
    Rsh = 0x70,
    Mod = 0x90,
    Xor = 0xa0,
    Mov = 0xb0,
    Arsh = 0xc0,
}

/// When to jump; the bits of the operation code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum If {
    Always = 0x00,
    Equal = 0x10,
    NotEqual = 0x50,
    AtMost = 0xb0,
    SignedAtMost = 0xd0,
}

/// What the kernel does for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    SkbLoadBytes = 26,
    SocketCookie = 46,
    SkbLoadBytesRelative = 68,
    SelectReuseport = 82,
}

/// The maps of a program, by the names of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    Group,
    Ring,
    Places,
    Sockets,
    Moved,
}

/// The second operand of most instructions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(imm: i32) -> Self {
        Self::Imm(imm)
    }
}

impl Operand {
    /// The bit of the operation code, the register and the constant.
    fn parts(self) -> (u8, u8, i32) {
        match self {
            Self::Reg(reg) => (code::BY_REG, reg as u8, 0),
            Self::Imm(imm) => (0, 0, imm),
        }
    }
}

/// A memory operand: what a register points to, and how far from there.
#[derive(Clone, Copy, Debug)]
pub(super) struct At(pub(super) Reg, pub(super) i16);

/// A place on the stack, counted down from its end.
pub(super) fn stack(below: i16) -> At {
    At(Reg::Fp, below.neg())
}

/// Somewhere to jump to, further down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub(super) struct Asm {
    insns: Vec<Insn>,
    /// The jumps that wait for each label.
    waiting: Vec<Vec<usize>>,
    maps: Vec<(usize, Map)>,
}

impl Asm {
    fn emit(&mut self, code: u8, dst: Reg, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn::new(code, dst as u8, src, off, imm));
    }

    /// `dst = dst op operand`, 64 bits wide.
    pub(super) fn op(&mut self, op: Op, dst: Reg, operand: impl Into<Operand>) {
        let (by, src, imm) = operand.into().parts();
        self.emit(code::ALU64 | op as u8 | by, dst, src, 0, imm);
    }

    /// The same on the lower 32 bits; the upper ones become 0.
    pub(super) fn op32(&mut self, op: Op, dst: Reg, operand: impl Into<Operand>) {
        let (by, src, imm) = operand.into().parts();
        self.emit(code::ALU32 | op as u8 | by, dst, src, 0, imm);
    }

    /// `dst = operand`.
    pub(super) fn mov(&mut self, dst: Reg, operand: impl Into<Operand>) {
        self.op(Op::Mov, dst, operand);
    }

    /// The lower 32 bits of `dst` from the network's byte order to ours.
    pub(super) fn be32(&mut self, dst: Reg) {
        self.emit(code::TO_BE, dst, 0, 0, 32);
    }

    /// `dst = memory`.
    pub(super) fn load(&mut self, size: Size, dst: Reg, from: At) {
        self.emit(code::LDX | size as u8, dst, from.0 as u8, from.1, 0);
    }

    /// `memory = operand`.
    pub(super) fn store(&mut self, size: Size, to: At, operand: impl Into<Operand>) {
        match operand.into() {
            Operand::Reg(reg) => self.emit(code::STX | size as u8, to.0, reg as u8, to.1, 0),
            Operand::Imm(imm) => self.emit(code::ST | size as u8, to.0, 0, to.1, imm),
        }
    }

    /// Adds 1 to a 64-bit word, atomically. Destroys `R1`.
    pub(super) fn count(&mut self, at: At) {
        self.mov(Reg::R1, 1);
        self.emit(code::ATOMIC, at.0, Reg::R1 as u8, at.1, 0);
    }

    /// Adds 1 to a 64-bit word, atomically, and leaves in `dst` what it was before (Linux 5.12).
    pub(super) fn fetch_and_count(&mut self, dst: Reg, at: At) {
        self.mov(dst, 1);
        self.emit(code::ATOMIC, at.0, dst as u8, at.1, code::FETCH);
    }

    /// `dst = the address of a place on the stack`.
    pub(super) fn address(&mut self, dst: Reg, of: At) {
        self.mov(dst, of.0);
        self.op(Op::Add, dst, i32::from(of.1));
    }

    /// `dst = the map`, for a helper.
    pub(super) fn map(&mut self, dst: Reg, map: Map) {
        self.map_reference(dst, map, code::PSEUDO_MAP);
    }

    /// `dst = the address of the only value of the map`.
    pub(super) fn map_value(&mut self, dst: Reg, map: Map) {
        self.map_reference(dst, map, code::PSEUDO_MAP_VALUE);
    }

    fn map_reference(&mut self, dst: Reg, map: Map, pseudo: u8) {
        self.maps.push((self.insns.len(), map));
        self.emit(code::LD_IMM64, dst, pseudo, 0, 0);
        self.insns.push(Insn::new(0, 0, 0, 0, 0));
    }

    /// `R0 = helper(R1, ..)`.
    pub(super) fn call(&mut self, helper: Helper) {
        self.emit(code::CALL, Reg::R0, 0, 0, helper as i32);
    }

    /// A label, to be put somewhere further down.
    pub(super) fn label(&mut self) -> Label {
        self.waiting.push(Vec::new());
        Label(self.waiting.len() - 1)
    }

    /// The label is here.
    pub(super) fn put(&mut self, label: Label) {
        let here = self.insns.len();
        for jump in std::mem::take(&mut self.waiting[label.0]) {
            let distance = here - jump - 1;
            self.insns[jump].off = i16::try_from(distance).expect("a jump longer than eBPF has them");
        }
    }

    /// Goes to `label` if `reg` and the operand compare so.
    pub(super) fn jump(&mut self, when: If, reg: Reg, operand: impl Into<Operand>, label: Label) {
        let (by, src, imm) = operand.into().parts();
        self.waiting[label.0].push(self.insns.len());
        self.emit(code::JMP | when as u8 | by, reg, src, 0, imm);
    }

    /// Goes to `label`.
    pub(super) fn goto(&mut self, label: Label) {
        self.jump(If::Always, Reg::R0, 0, label);
    }

    /// Ends the program with what is in `R0`.
    pub(super) fn exit(&mut self) {
        self.emit(code::EXIT, Reg::R0, 0, 0, 0);
    }

    /// The whole program. Every label has been put somewhere.
    pub(super) fn finish(self) -> Program {
        assert!(self.waiting.iter().all(Vec::is_empty), "a jump to nowhere");
        Program { insns: self.insns, maps: self.maps }
    }
}

/// A program whose maps are names still.
#[derive(Debug)]
pub(super) struct Program {
    insns: Vec<Insn>,
    maps: Vec<(usize, Map)>,
}

impl Program {
    /// The instructions, with an fd for each map. Allocates nothing when called again.
    pub(super) fn link(&mut self, fd: impl Fn(Map) -> i32) -> &[Insn] {
        for (at, map) in &self.maps {
            self.insns[*at].imm = fd(*map);
        }
        &self.insns
    }
}
