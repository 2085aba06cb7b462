//! The encoded bytes, run by a small machine that is written from the kernel's side.

use super::*;
use crate::cookie::{Cookie, address, key};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

const MAP: i32 = 77;
const CONTEXT: u64 = 0x1000;
const STACK_END: u64 = 0x2000;
const VALUE: u64 = 0x3000;

/// What a call asked of the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Flags(u64),
    Reserve(u64),
    Store(Vec<u8>),
}

struct Machine<'a> {
    registers: [u64; 11],
    context: [u8; 216],
    stack: [u8; 512],
    map: &'a BTreeMap<[u8; 16], [u8; 12]>,
    found: Option<[u8; 12]>,
    asked: Vec<Asked>,
}

impl Machine<'_> {
    fn memory(&mut self, at: u64, bytes: usize) -> &mut [u8] {
        let stack = STACK_END - 512;
        match at {
            at if (CONTEXT..CONTEXT + 216).contains(&at) => {
                &mut self.context[(at - CONTEXT) as usize..][..bytes]
            }
            at if (stack..STACK_END).contains(&at) => &mut self.stack[(at - stack) as usize..][..bytes],
            at if (VALUE..VALUE + 12).contains(&at) => {
                &mut self.found.as_mut().expect("a value that was found")[(at - VALUE) as usize..][..bytes]
            }
            other => panic!("address {other:#x}"),
        }
    }

    fn call(&mut self, helper: i32) {
        let [_, r1, r2, r3, r4, ..] = self.registers;
        self.registers[0] = match helper {
            1 => {
                assert_eq!(r1, MAP as u64);
                let wanted: [u8; 16] = self.memory(r2, 16).try_into().unwrap();
                self.found = self.map.get(&wanted).copied();
                if self.found.is_some() { VALUE } else { 0 }
            }
            59 => {
                assert_eq!(r1, CONTEXT);
                self.asked.push(Asked::Flags(r2));
                0
            }
            143 => {
                assert_eq!((r1, r4), (CONTEXT, 0));
                let option = self.memory(r2, r3 as usize).to_vec();
                self.asked.push(Asked::Store(option));
                0
            }
            144 => {
                assert_eq!((r1, r3), (CONTEXT, 0));
                self.asked.push(Asked::Reserve(r2));
                0
            }
            other => panic!("helper {other}"),
        };
        // A call leaves nothing in its arguments.
        self.registers[1..=5].fill(0xdead_dead_dead_dead);
    }

    fn run(&mut self, code: &[Slot]) -> u64 {
        self.registers[1] = CONTEXT;
        self.registers[10] = STACK_END;
        let mut next = 0;
        loop {
            let [code_byte, registers, ..] = code[next];
            let slot = code[next];
            let offset = i16::from_ne_bytes([slot[2], slot[3]]);
            let immediate = i32::from_ne_bytes(slot[4..].try_into().unwrap());
            let (low, high) = (usize::from(registers & 15), usize::from(registers >> 4));
            let (to, from) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
            let value = i64::from(immediate).cast_unsigned();
            let jumped = (next as isize + 1 + isize::from(offset)) as usize;
            next += 1;
            match code_byte {
                0xbf => self.registers[to] = self.registers[from],
                0xb7 => self.registers[to] = value,
                0x07 => self.registers[to] = self.registers[to].wrapping_add(value),
                0x57 => self.registers[to] &= value,
                0x47 => self.registers[to] |= value,
                0x61 => {
                    let at = self.registers[from].wrapping_add_signed(offset.into());
                    let word = self.memory(at, 4).try_into().unwrap();
                    self.registers[to] = u32::from_ne_bytes(word).into();
                }
                0x62 | 0x63 => {
                    let at = self.registers[to].wrapping_add_signed(offset.into());
                    let word = if code_byte == 0x62 { value } else { self.registers[from] } as u32;
                    self.memory(at, 4).copy_from_slice(&word.to_ne_bytes());
                }
                0x18 => {
                    assert_eq!((from, code[next]), (1, [0; 8]), "a map's descriptor, in two slots");
                    self.registers[to] = value;
                    next += 1;
                }
                0x05 => next = jumped,
                0x15 if self.registers[to] == value => next = jumped,
                0x55 if self.registers[to] != value => next = jumped,
                0x15 | 0x55 => {}
                0x85 => self.call(immediate),
                0x95 => return self.registers[0],
                other => panic!("code {other:#x}"),
            }
        }
    }
}

/// Calls the program for a socket that is connected to `remote`.
fn called(op: i32, remote: IpAddr, tcp_flags: u32, cb_flags: u32, map: &[(IpAddr, Cookie)]) -> Vec<Asked> {
    let mut context = [0; 216];
    let mut put = |at: usize, word: u32| context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    put(0, op.cast_unsigned());
    put(84, cb_flags);
    put(212, tcp_flags);
    match remote {
        IpAddr::V4(v4) => {
            put(20, 2);
            put(24, u32::from_ne_bytes(v4.octets()));
        }
        IpAddr::V6(v6) => {
            put(20, 10);
            for (index, word) in v6.octets().chunks(4).enumerate() {
                put(32 + 4 * index, u32::from_ne_bytes(word.try_into().unwrap()));
            }
        }
    }
    let map = map.iter().map(|(ip, cookie)| (key(*ip), cookie.option())).collect();
    let (registers, stack) = ([0; 11], [0xaa; 512]);
    let mut machine = Machine { registers, context, stack, map: &map, found: None, asked: Vec::new() };
    assert_eq!(machine.run(&program(MAP)), 1);
    machine.asked
}

fn pods() -> Vec<(IpAddr, Cookie)> {
    let pods = [("10.0.0.5", 1), ("fd00::5", 2)];
    pods.iter().map(|(ip, secret)| (ip.parse().unwrap(), Cookie::new([*secret; 8]))).collect()
}

#[test]
fn an_opening_syn_to_a_pod_with_a_cookie_carries_it() {
    for (ip, cookie) in pods() {
        let all = pods();
        assert_eq!(called(3, ip, 0, 0b1001, &all), [Asked::Flags(0b100_1001)], "connect");
        assert_eq!(called(14, ip, 0x02, 64, &all), [Asked::Reserve(12)], "length");
        assert_eq!(called(14, ip, 0xc2, 64, &all), [Asked::Reserve(12)], "of a SYN that asks for ECN");
        assert_eq!(called(15, ip, 0x02, 64, &all), [Asked::Store(cookie.option().to_vec())], "write");
        assert_eq!(called(4, ip, 0, 0b100_1001, &all), [Asked::Flags(0b1001)], "established");
    }
    let mapped: IpAddr = "::ffff:10.0.0.5".parse().unwrap();
    let [(_, of_v4), _] = pods()[..] else { panic!("two") };
    assert_eq!(called(15, mapped, 0x02, 64, &pods()), [Asked::Store(of_v4.option().to_vec())]);
}

#[test]
fn nothing_else_is_touched() {
    let pod = pods()[0].0;
    for (ip, _) in pods() {
        for op in 0..20 {
            assert_eq!(called(op, ip, 0x02, 0, &[]), [], "without a cookie, op {op}");
        }
    }
    for other in ["10.0.0.6", "fd00::6", "::10.0.0.5", "::"] {
        assert_eq!(called(15, other.parse().unwrap(), 0x02, 64, &pods()), [], "{other}");
    }
    for flags in [0x00, 0x10, 0x12, 0x18, 0x11, 0x04] {
        assert_eq!(called(14, pod, flags, 64, &pods()), [], "flags {flags:#x}");
        assert_eq!(called(15, pod, flags, 64, &pods()), [], "flags {flags:#x}");
    }
    for op in (0..20).filter(|op| ![3, 4, 14, 15].contains(op)) {
        assert_eq!(called(op, pod, 0x02, 0, &pods()), [], "op {op}");
    }
}

#[test]
fn an_option_is_told_from_others_and_never_printed() {
    let cookie = Cookie::new(*b"\x01secret\xff");
    assert_eq!(cookie.option(), *b"\xfe\x0cSL\x01secret\xff");
    assert_eq!(Cookie::from_option(&cookie.option()), Some(cookie));
    assert_eq!(Cookie::from_option(b"\xfe\x0cXX\x01secret\xff"), None);
    assert_eq!(Cookie::from_option(b"\xfe\x0cSL"), None);
    assert!(!format!("{cookie:?}").contains("secret"));
    for ip in ["10.0.0.5", "fd00::5"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
        assert_eq!(address(key(ip)), ip);
    }
}

/// As blessed: `SLUICE_BLESS=1` writes it anew.
#[test]
fn the_program_is_as_blessed() {
    let mut text: String = PROGRAM.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    });
    for slot in program(MAP) {
        writeln!(text, "{}", slot.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).unwrap();
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cookie.bpf");
    if std::env::var_os("SLUICE_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(path, text).unwrap();
    } else if cfg!(target_endian = "little") {
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), text);
    }
}
