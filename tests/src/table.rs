//! Fixtures as tables: packet in; action, packet out and counters expected.

use std::{collections::BTreeMap, fmt::Write as _};

use appliance_common::counters::Counter;

use crate::{
    dump,
    harness::{Action, Harness, Program, Record, counter_name, describe},
    oracle,
};

pub type PacketCheck<'a> = Box<dyn Fn(&[u8]) -> Result<(), String> + 'a>;
/// A check of the records a packet left in the rings.
pub type RecordCheck<'a> = Box<dyn Fn(&[Record]) -> Result<(), String> + 'a>;

/// The packet a case expects.
pub enum Out<'a> {
    /// Unchanged.
    Same,
    /// These bytes.
    Is(Vec<u8>),
    /// A packet that the check accepts.
    Check(PacketCheck<'a>),
    /// No packet: dropped.
    Nothing,
}

/// One line of a table.
pub struct Case<'a> {
    what: String,
    program: Program,
    ifindex: u32,
    packet: Vec<u8>,
    action: Action,
    out: Out<'a>,
    counters: Vec<(Counter, u64)>,
    records: Option<RecordCheck<'a>>,
}

impl<'a> Case<'a> {
    /// A packet on a port. By default it is to be dropped and to move no counter.
    #[must_use]
    pub fn new(what: impl Into<String>, program: Program, ifindex: u32, packet: Vec<u8>) -> Self {
        Self {
            what: what.into(),
            program,
            ifindex,
            packet,
            action: Action::Drop,
            out: Out::Nothing,
            counters: Vec::new(),
            records: None,
        }
    }

    /// Expects a drop for this reason.
    #[must_use]
    pub fn dropped(mut self, reason: Counter) -> Self {
        self.action = Action::Drop;
        self.out = Out::Nothing;
        self.counters.push((reason, 1));
        self
    }

    /// Expects the packet to reach the kernel untouched.
    #[must_use]
    pub fn passed(mut self) -> Self {
        self.action = Action::Pass;
        self.out = Out::Same;
        self.counters.push((Counter::Passed, 1));
        self
    }

    /// Expects an action and a packet.
    #[must_use]
    pub fn gives(mut self, action: Action, out: Out<'a>) -> Self {
        self.action = action;
        self.out = out;
        self
    }

    /// Expects this counter to rise by one more; counters not named must not move.
    #[must_use]
    pub fn counts(mut self, counter: Counter) -> Self {
        self.counters.push((counter, 1));
        self
    }

    /// Expects these records in the rings; without it there must be none that is not a neighbour's.
    #[must_use]
    pub fn records(mut self, check: impl Fn(&[Record]) -> Result<(), String> + 'a) -> Self {
        self.records = Some(Box::new(check));
        self
    }
}

/// Runs a table, and fails with every line that did not hold.
///
/// # Panics
///
/// When a case does not hold; the message has the packets and the maps.
pub fn run(harness: &mut Harness, cases: Vec<Case<'_>>) {
    let total = cases.len();
    let mut failures = String::new();
    let mut failed = 0;
    for case in cases {
        if let Err(why) = run_one(harness, &case) {
            failed += 1;
            let _ = writeln!(
                failures,
                "---- {}\n{why}\nprogram {} on interface {}, packet in ({} bytes):\n{}",
                case.what,
                case.program.name(),
                case.ifindex,
                case.packet.len(),
                dump::hex(&case.packet)
            );
        }
    }
    assert!(
        failed == 0,
        "{failed} of {total} cases do not hold\n{failures}maps:\n{}",
        harness.describe()
    );
    println!("{total} cases hold");
}

fn run_one(harness: &mut Harness, case: &Case<'_>) -> Result<(), String> {
    harness.records();
    let before = harness.counters();
    let (action, out) = match harness.run(case.program, case.ifindex, &case.packet) {
        Ok((action, out)) => (action, out.to_vec()),
        Err(e) => return Err(describe(&e)),
    };
    let after = harness.counters();
    let mut moved: BTreeMap<u32, i128> = BTreeMap::new();
    for (number, value) in &after {
        let delta = i128::from(*value) - i128::from(before.get(number).copied().unwrap_or(0));
        if delta != 0 {
            moved.insert(*number, delta);
        }
    }
    let mut expected: BTreeMap<u32, i128> = BTreeMap::new();
    for (counter, n) in &case.counters {
        *expected.entry(*counter as u32).or_default() += i128::from(*n);
    }
    let mut wrong = String::new();
    if action != case.action {
        let _ = writeln!(wrong, "action: expected {:?}, got {action:?}", case.action);
    }
    if moved != expected {
        let _ = writeln!(
            wrong,
            "counters: expected {}, got {}",
            names(&expected),
            names(&moved)
        );
    }
    if action == case.action {
        match &case.out {
            Out::Nothing => {}
            Out::Same => {
                if out != case.packet {
                    let _ = writeln!(wrong, "changed: {}", dump::difference(&case.packet, &out));
                }
            }
            Out::Is(packet) => {
                if out != *packet {
                    let _ = writeln!(wrong, "{}", dump::difference(packet, &out));
                }
            }
            Out::Check(check) => {
                if let Err(why) = check(&out) {
                    let _ = writeln!(wrong, "packet out: {why}\n{}", dump::hex(&out));
                }
            }
        }
        // In every case the oracle must permit the packet sent.
        if let Err(why) = oracle::check(&harness.world, case.ifindex, &case.packet, action, &out) {
            let _ = writeln!(wrong, "reference: {why}\npacket out:\n{}", dump::hex(&out));
        }
    }
    let records = harness.records();
    match &case.records {
        Some(check) => {
            if let Err(why) = check(&records) {
                let _ = writeln!(wrong, "records: {why}: {records:x?}");
            }
        }
        None => {
            if records.iter().any(|r| !matches!(r, Record::Neighbour(_))) {
                let _ = writeln!(wrong, "unexpected records: {records:x?}");
            }
        }
    }
    for record in &records {
        if let Err(why) = oracle::check_record(&harness.world, record) {
            let _ = writeln!(wrong, "record: {why}: {record:x?}");
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn names(counters: &BTreeMap<u32, i128>) -> String {
    let list: Vec<String> = counters
        .iter()
        .map(|(number, n)| format!("{} {n:+}", counter_name(*number)))
        .collect();
    format!("[{}]", list.join(", "))
}

/// Expects an encapsulated packet, byte for byte.
#[must_use]
pub fn tunnelled<'a>(from: &'a str, to: &'a str, vni: u32, l3: Vec<u8>) -> Out<'a> {
    Out::Check(Box::new(move |got| {
        let expected = crate::world::expect_tunnelled(got, from, to, vni, &l3);
        if expected == got {
            Ok(())
        } else {
            Err(dump::difference(&expected, got))
        }
    }))
}

/// Expects one packet handed to the slow path: its reason, next hop and IP packet.
pub fn slow<'a>(
    reason: appliance_common::events::SlowReason,
    vni: u32,
    next_hop: &'a str,
    l3: Vec<u8>,
) -> impl Fn(&[Record]) -> Result<(), String> + 'a {
    move |records| {
        let slow: Vec<_> = records
            .iter()
            .filter_map(|r| match r {
                Record::Slow(header, frame) => Some((header, frame)),
                _ => None,
            })
            .collect();
        let [(header, frame)] = slow[..] else {
            return Err(format!("{} slow packets", slow.len()));
        };
        if header.reason != reason as u16 || header.vni != vni {
            return Err(format!("reason {} vni {}", header.reason, header.vni));
        }
        if reason == appliance_common::events::SlowReason::Unresolved
            && header.next_hop != crate::world::address(next_hop)
        {
            return Err(format!("next hop {:02x?}", header.next_hop));
        }
        let at = usize::from(header.l3);
        if frame.get(at..).is_none_or(|got| !got.starts_with(&l3)) {
            return Err(format!("another packet:\n{}", dump::hex(frame)));
        }
        Ok(())
    }
}
