//! The kernel's figures for each program: instructions, stack, and memory of the maps. Printed, and
//! held to budgets, so that a change that doubles one is seen in review.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use appliance_common::limits::{DEFAULT_CONNECTIONS, DEFAULT_MAPPINGS};
use aya::programs::Xdp;
use causeway_tests::{
    harness::{Harness, Program, map_memory},
    world::World,
};

/// Most instructions of a program after the verifier, and most it may walk through in checking it.
/// The kernel's own limit for the second is one million.
const XLATED_BUDGET: usize = 28_000;
const VERIFIED_BUDGET: u32 = 240_000;
/// Most bytes that a program may copy by `memmove`, which BPF has as a loop over bytes.
const MAX_BYTE_COPY: i32 = 16;
/// Most bytes of stack of a program along any chain of calls. The kernel's limit is 512, which
/// `full` reaches: what is added to it must go to `SCRATCH`.
const fn stack_budget(program: Program) -> u32 {
    match program {
        Program::Uplink => 384,
        Program::NatOut => 432,
        Program::Access | Program::Combined | Program::NatIn => 480,
        Program::Full => 512,
    }
}
/// All maps (`appliance-ebpf/src/maps/`), as far as the kernel keeps names: 15 bytes.
const MAPS: [&str; 47] = [
    ".rodata",
    "ATTACHMENTS",
    "AYA_LOGS",
    "BUDGETS",
    "CLAIM_BUDGETS",
    "CONFIG",
    "COUNTERS",
    "ENDPOINTS",
    "FLOWS",
    "FRAGMENTS",
    "HANDSHAKE_BUDGE",
    "HANDSHAKE_SOURC",
    "JUMPS",
    "LAST_LOGGED",
    "MAPPINGS",
    "NAT",
    "NAT_ADDRESSES",
    "NAT_EVENTS",
    "NAT_FULL",
    "NEIGHBOURS",
    "NEIGHBOUR_EVENT",
    "NETWORKS",
    "NETWORK_STATS",
    "ONE_TO_ONE",
    "OPENING",
    "OPENING_EXCESS",
    "PAIRS",
    "PASSED",
    "PEERS",
    "PEER_ADDRESSES",
    "POLICIES",
    "PUBLIC",
    "QUOTAS",
    "ROUTES",
    "RULES",
    "RULE_PORTS",
    "RULE_SOURCES",
    "SCRATCH",
    "SESSIONS",
    "SLOW_PACKETS",
    "TENANTS",
    "TRACE",
    "TRACED",
    "TRACE_EVENTS",
    "TUNNELS",
    "USAGE",
    "XSKS",
];
/// Most memory of all maps, bytes, on a machine of up to 64 CPUs: the per-CPU maps take 128 KiB for
/// each.
const MEMORY_BUDGET: u64 = 136 << 20;

#[test]
fn programs_stay_within_their_budgets() {
    let Some(mut h) = Harness::new(World::provider()) else {
        return;
    };
    println!(
        "{:<10} {:>12} {:>10} {:>10} {:>11} {:>6} functions (bytes of stack)",
        "program", "instructions", "jited, B", "verified", "subprograms", "stack"
    );
    for program in Program::EVERY {
        let name = program.name();
        let xdp: &mut Xdp = h
            .ebpf()
            .program_mut(name)
            .expect("the harness loaded it")
            .try_into()
            .expect("an XDP program");
        let info = xdp.info().expect("program info");
        let code = translated(
            xdp.fd().expect("loaded").as_fd_number(),
            info.size_translated(),
        );
        let functions = functions(&code);
        for (size, at) in byte_copies(&code, &functions) {
            assert!(
                size.is_some_and(|size| size <= MAX_BYTE_COPY),
                "{name}, instruction {at}: {size:?} bytes are copied one by one; use \
                 `helper::words::copy`"
            );
        }
        let stack = deepest(&functions, 0, 0);
        let verified = info.verified_instruction_count().expect("Linux 5.16");
        println!(
            "{name:<10} {:>12} {:>10} {verified:>10} {:>11} {stack:>6} {:?}",
            code.len(),
            info.size_jitted(),
            functions.len(),
            functions.values().map(|f| f.stack).collect::<Vec<_>>(),
        );
        assert!(
            code.len() <= XLATED_BUDGET,
            "{name} has {} instructions, over {XLATED_BUDGET}",
            code.len()
        );
        assert!(
            verified <= VERIFIED_BUDGET,
            "{name} costs the verifier {verified} instructions, over {VERIFIED_BUDGET}"
        );
        assert!(
            stack <= stack_budget(program),
            "{name} uses {stack} bytes of stack, over {}",
            stack_budget(program)
        );
    }
}

#[test]
fn maps_stay_within_their_memory_budget() {
    let Some(h) = Harness::new(World::provider()) else {
        return;
    };
    let mut total = 0;
    let mut seen = Vec::new();
    println!("{:<18} {:>10} {:>12}", "map", "entries", "bytes");
    for info in aya::maps::loaded_maps().flatten() {
        let Some(map) = h.raw_maps().iter().find(|map| map.id() == info.id()) else {
            continue;
        };
        let bytes = map_memory(map.as_fd()).expect("procfs");
        let name = info.name_as_str().unwrap_or("?").to_owned();
        println!("{name:<18} {:>10} {bytes:>12}", info.max_entries());
        total += bytes;
        seen.push(name);
    }
    println!("{:<18} {:>10} {total:>12}", "all", "");
    seen.sort();
    assert_eq!(seen, MAPS, "each map is there, once, and no other");
    assert!(
        total <= MEMORY_BUDGET,
        "the maps take {total} bytes, over {MEMORY_BUDGET}"
    );
}

/// Bytes as the documentation gives them: rounded to KiB or MiB.
fn amount(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0).replace(".0 MiB", " MiB"),
    }
}

/// The columns "element" and "memory" of the table of maps in the documentation, as the kernel
/// reports the loaded maps.
#[test]
fn the_documented_sizes_of_maps_are_true() {
    const PAGE: &str = "../docs/architecture/data-path.md";
    let Some(h) = Harness::new(World::provider()) else {
        return;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(path).expect("the page");
    let rows: BTreeMap<String, Vec<&str>> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            // The kernel keeps 15 bytes of a name.
            Some((name.chars().take(15).collect(), cells))
        })
        .collect();
    let mut wrong = Vec::new();
    for info in aya::maps::loaded_maps().flatten() {
        if h.raw_maps().iter().all(|map| map.id() != info.id()) {
            continue;
        }
        let name = info.name_as_str().unwrap_or("?");
        let Some(cells) = rows.get(name) else {
            // The compiler makes the map of constants.
            assert_eq!(name, ".rodata", "no row in {PAGE}");
            continue;
        };
        // The key of an array is an index, which is not stored.
        let is_per_cpu = cells[2] == "per-CPU array";
        let is_array = is_per_cpu || cells[2] == "array";
        let key = if is_array { 0 } else { info.key_size() };
        let element = u64::from(key + info.value_size());
        // The tests' tables are smaller than the default.
        let entries = match name {
            "FLOWS" => 2 * DEFAULT_CONNECTIONS,
            "MAPPINGS" => 2 * DEFAULT_MAPPINGS,
            _ => info.max_entries(),
        };
        let memory = element.max(1) * u64::from(entries);
        let expected = (
            if element == 0 {
                "\u{2013}".to_owned()
            } else {
                element.to_string()
            },
            amount(memory) + if is_per_cpu { " a CPU" } else { "" },
        );
        let documented = (cells[6], cells[7]);
        if documented != (expected.0.as_str(), expected.1.as_str()) {
            wrong.push(format!("{name}: {} | {}", expected.0, expected.1));
        }
    }
    assert!(wrong.is_empty(), "{PAGE}: write\n{}", wrong.join("\n"));
}

trait FdNumber {
    fn as_fd_number(&self) -> i32;
}

impl FdNumber for aya::programs::ProgramFd {
    fn as_fd_number(&self) -> i32 {
        self.as_fd().as_raw_fd()
    }
}

/// One instruction, as the kernel gives it back (struct bpf_insn).
#[derive(Clone, Copy, Debug)]
struct Insn {
    code: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

/// The program after the verifier, by BPF_OBJ_GET_INFO_BY_FD. aya gives its size but not its text.
fn translated(fd: i32, size: Option<u32>) -> Vec<Insn> {
    let size = size.expect("the kernel gives the program's text to root");
    let mut bytes = vec![0u8; size as usize];
    // struct bpf_prog_info up to xlated_prog_insns (include/uapi/linux/bpf.h): type, id, tag[8],
    // jited_prog_len, xlated_prog_len, jited_prog_insns, xlated_prog_insns.
    let mut info = [0u8; 40];
    info[20..24].copy_from_slice(&size.to_ne_bytes());
    info[32..40].copy_from_slice(&(bytes.as_mut_ptr() as u64).to_ne_bytes());
    // union bpf_attr, `info`: bpf_fd, info_len, info.
    let mut attr = [0u8; 16];
    attr[..4].copy_from_slice(&fd.to_ne_bytes());
    attr[4..8].copy_from_slice(&(info.len() as u32).to_ne_bytes());
    attr[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
    // SAFETY: `attr`, `info` and `bytes` live through the call and have the sizes given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            attr.as_mut_ptr(),
            attr.len(),
        )
    };
    assert_eq!(
        result,
        0,
        "BPF_OBJ_GET_INFO_BY_FD: {}",
        std::io::Error::last_os_error()
    );
    bytes
        .chunks_exact(8)
        .map(|b| Insn {
            code: b[0],
            dst: b[1] & 0xf,
            src: b[1] >> 4,
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect()
}

/// A function of a program: its stack in bytes and where the functions it calls begin.
#[derive(Debug, Default)]
struct Function {
    stack: u32,
    calls: Vec<usize>,
}

const PSEUDO_CALL: u8 = 1;

impl Insn {
    /// Where the function begins that the instruction, the one at `at`, calls.
    fn called(&self, at: usize) -> Option<usize> {
        let is_call = self.code == 0x85 && self.src == PSEUDO_CALL;
        is_call.then(|| (at as i64 + 1 + i64::from(self.off)) as usize)
    }
}

/// The calls of functions that copy byte by byte: the third argument, if it is a constant, and
/// where the call is.
fn byte_copies(code: &[Insn], functions: &BTreeMap<usize, Function>) -> Vec<(Option<i32>, usize)> {
    const LOAD_BYTE: u8 = 0x71;
    const STORE_BYTE: u8 = 0x73;
    const MOV_K: u8 = 0xb7;
    const LONGEST: usize = 40;
    let copies_bytes = |start: usize| {
        let end = functions
            .range(start + 1..)
            .next()
            .map_or(code.len(), |(end, _)| *end);
        let body = &code[start..end];
        let memory = |insn: &&Insn| matches!(insn.code & 7, 1..=3);
        body.len() <= LONGEST
            && [LOAD_BYTE, STORE_BYTE]
                .iter()
                .all(|code| body.iter().any(|i| i.code == *code))
            && body
                .iter()
                .filter(memory)
                .all(|i| [LOAD_BYTE, STORE_BYTE].contains(&i.code))
    };
    let calls = code
        .iter()
        .enumerate()
        .filter_map(|(at, insn)| Some((at, insn.called(at)?)));
    calls
        .filter(|(_, target)| copies_bytes(*target))
        .map(|(at, _)| {
            let before = code[..at].iter().rev();
            let size = before.take(20).find(|i| i.dst == 3 && i.code & 7 != 3);
            (size.filter(|i| i.code == MOV_K).map(|i| i.imm), at)
        })
        .collect()
}

/// The functions by where they begin. Stack is the lowest address below the frame pointer that is
/// loaded, stored or taken, rounded up to 16 as the verifier does for programs that are compiled to
/// machine code (kernel/bpf/verifier.c, round_up_stack_depth, Linux 6.18).
fn functions(code: &[Insn]) -> BTreeMap<usize, Function> {
    const MOV_X: u8 = 0xbf;
    const ADD_K: u8 = 0x07;
    let mut all: BTreeMap<usize, Function> = BTreeMap::from([(0, Function::default())]);
    for (at, insn) in code.iter().enumerate() {
        if let Some(target) = insn.called(at) {
            all.entry(target).or_default();
        }
    }
    let starts: Vec<usize> = all.keys().copied().collect();
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(code.len());
        let mut lowest = 0i32;
        let mut calls = Vec::new();
        // Registers that hold the frame pointer plus a constant.
        let mut frame: [Option<i32>; 16] = [None; 16];
        let mut at = *start;
        while at < end {
            let insn = &code[at];
            frame[10] = Some(0);
            let class = insn.code & 7;
            let (base, offset) = match class {
                1 => (insn.src, i32::from(insn.off)),
                2 | 3 => (insn.dst, i32::from(insn.off)),
                _ => (0, 0),
            };
            if matches!(class, 1..=3)
                && let Some(known) = frame[usize::from(base)]
            {
                lowest = lowest.min(known + offset);
            }
            match insn.code {
                MOV_X if insn.off == 0 => {
                    frame[usize::from(insn.dst)] = frame[usize::from(insn.src)]
                }
                ADD_K => {
                    let moved = frame[usize::from(insn.dst)].map(|known| known + insn.imm);
                    frame[usize::from(insn.dst)] = moved;
                    lowest = lowest.min(moved.unwrap_or(0));
                }
                _ if matches!(class, 0 | 1 | 4 | 7) => frame[usize::from(insn.dst)] = None,
                _ => {}
            }
            calls.extend(insn.called(at));
            // A 64-bit constant takes two instructions.
            at += if insn.code == 0x18 { 2 } else { 1 };
        }
        let function = all.get_mut(start).expect("a key of the map");
        function.stack = lowest.unsigned_abs().next_multiple_of(16);
        function.calls = calls;
    }
    all
}

/// Stack along the deepest chain of calls from the function at `start`.
fn deepest(functions: &BTreeMap<usize, Function>, start: usize, depth: usize) -> u32 {
    assert!(depth < 16, "BPF has no recursion");
    let function = &functions[&start];
    let below = function
        .calls
        .iter()
        .map(|c| deepest(functions, *c, depth + 1))
        .max()
        .unwrap_or(0);
    function.stack + below
}
