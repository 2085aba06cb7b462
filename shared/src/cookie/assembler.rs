//! As much of an assembler for the kernel's virtual machine as one small program needs (RFC 9669). Labels become
//! offsets; everything else is one instruction a line.

use std::fmt;

/// `R0` is what a call gave and what the program returns, `R1` to `R5` are a call's arguments and do not survive it, `R6`
/// to `R9` do, `R10` is the end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R10,
}

/// Where in memory: so many bytes from where a register points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(pub Register, pub i16);

/// What is called (`enum bpf_func_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helper {
    MapLookupElem = 1,
    SockOpsCbFlagsSet = 59,
    StoreHdrOpt = 143,
    ReserveHdrOpt = 144,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Label(&'static str),
    Copy(Register, Register),
    Set(Register, i32),
    Add(Register, i32),
    And(Register, i32),
    Or(Register, i32),
    /// Loads 32 bits.
    Load(Register, At),
    /// Stores 32 bits.
    Store(At, Register),
    /// Stores a constant of 32 bits.
    StoreWord(At, i32),
    /// Points to the map.
    Map(Register),
    JumpIf(Register, i32, &'static str),
    JumpUnless(Register, i32, &'static str),
    Jump(&'static str),
    Call(Helper),
    Exit,
}

/// An instruction (`struct bpf_insn`) that does not know the map's descriptor yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u8,
    pub to: u8,
    pub from: u8,
    pub offset: i16,
    pub immediate: i32,
    pub is_map: bool,
}

impl Register {
    const fn number(self) -> u8 {
        match self {
            Self::R0 => 0,
            Self::R1 => 1,
            Self::R2 => 2,
            Self::R3 => 3,
            Self::R4 => 4,
            Self::R6 => 6,
            Self::R7 => 7,
            Self::R10 => 10,
        }
    }
}

impl Line {
    /// How many instructions it is.
    const fn len(self) -> usize {
        match self {
            Self::Label(_) => 0,
            // 64 bits of a constant take two.
            Self::Map(_) => 2,
            _ => 1,
        }
    }
}

/// Assembles a program.
///
/// # Panics
/// When a jump leads to no label: the program is a constant, and a test assembles it.
pub(super) fn assemble(lines: &[Line]) -> Vec<Instruction> {
    let mut code = Vec::new();
    for line in lines {
        let here = code.len();
        let to = |label: &'static str| -> i16 {
            let target = position(lines, label).unwrap_or_else(|| panic!("no label {label}"));
            // Counted from the next instruction; a program of fewer than 32768 has no longer way.
            (target as isize - here as isize - 1) as i16
        };
        let plain = |code, to: Register, immediate| Instruction {
            code,
            to: to.number(),
            from: 0,
            offset: 0,
            immediate,
            is_map: false,
        };
        match *line {
            Line::Label(_) => {}
            Line::Copy(to, from) => code.push(Instruction { from: from.number(), ..plain(0xbf, to, 0) }),
            Line::Set(to, value) => code.push(plain(0xb7, to, value)),
            Line::Add(to, value) => code.push(plain(0x07, to, value)),
            Line::And(to, value) => code.push(plain(0x57, to, value)),
            Line::Or(to, value) => code.push(plain(0x47, to, value)),
            Line::Load(to, At(from, offset)) => {
                code.push(Instruction { from: from.number(), offset, ..plain(0x61, to, 0) });
            }
            Line::Store(At(to, offset), from) => {
                code.push(Instruction { from: from.number(), offset, ..plain(0x63, to, 0) });
            }
            Line::StoreWord(At(to, offset), value) => {
                code.push(Instruction { offset, ..plain(0x62, to, value) });
            }
            Line::Map(to) => {
                // BPF_PSEUDO_MAP_FD: the constant is a map's descriptor.
                code.push(Instruction { from: 1, is_map: true, ..plain(0x18, to, 0) });
                code.push(plain(0, Register::R0, 0));
            }
            Line::JumpIf(register, value, label) => {
                code.push(Instruction { offset: to(label), ..plain(0x15, register, value) });
            }
            Line::JumpUnless(register, value, label) => {
                code.push(Instruction { offset: to(label), ..plain(0x55, register, value) });
            }
            Line::Jump(label) => {
                code.push(Instruction { offset: to(label), ..plain(0x05, Register::R0, 0) });
            }
            Line::Call(helper) => code.push(plain(0x85, Register::R0, helper as i32)),
            Line::Exit => code.push(plain(0x95, Register::R0, 0)),
        }
    }
    code
}

fn position(lines: &[Line], label: &'static str) -> Option<usize> {
    let at = lines.iter().position(|line| *line == Line::Label(label))?;
    Some(lines[..at].iter().map(|line| line.len()).sum())
}

impl Instruction {
    /// As the kernel reads it: the two registers share a byte, whose halves the machine's byte order decides.
    pub(super) fn encode(self, map: i32) -> [u8; 8] {
        let registers =
            if cfg!(target_endian = "little") { self.from << 4 | self.to } else { self.to << 4 | self.from };
        let mut bytes = [self.code, registers, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.offset.to_ne_bytes());
        let immediate = if self.is_map { map } else { self.immediate };
        bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
        bytes
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |register: Register| format!("r{}", register.number());
        let at = |At(register, offset): At| format!("*(u32 *)({} {offset:+})", name(register));
        match *self {
            Self::Label(label) => write!(f, "{label}:"),
            Self::Copy(to, from) => write!(f, "\t{} = {}", name(to), name(from)),
            Self::Set(to, value) => write!(f, "\t{} = {value}", name(to)),
            Self::Add(to, value) => write!(f, "\t{} += {value}", name(to)),
            Self::And(to, value) => write!(f, "\t{} &= {value:#x}", name(to)),
            Self::Or(to, value) => write!(f, "\t{} |= {value:#x}", name(to)),
            Self::Load(to, from) => write!(f, "\t{} = {}", name(to), at(from)),
            Self::Store(to, from) => write!(f, "\t{} = {}", at(to), name(from)),
            Self::StoreWord(to, value) => write!(f, "\t{} = {value:#x}", at(to)),
            Self::Map(to) => write!(f, "\t{} = map", name(to)),
            Self::JumpIf(register, value, to) => write!(f, "\tif {} == {value} goto {to}", name(register)),
            Self::JumpUnless(register, value, to) => {
                write!(f, "\tif {} != {value} goto {to}", name(register))
            }
            Self::Jump(to) => write!(f, "\tgoto {to}"),
            Self::Call(helper) => write!(f, "\tcall {helper:?}"),
            Self::Exit => f.write_str("\texit"),
        }
    }
}
