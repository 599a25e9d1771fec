//! Other machines that use an address of the appliance: seen, reported, and answered.
//!
//! For: a production machine that comes back while its replica serves, a second gateway, a second
//! owner of a public address. Each is a conflict with a beginning and an end, and the address is
//! defended by announcements as RFC 5227 section 2.4 allows: at most one in ten seconds. Reports
//! for the log are bounded for each network, and for each machine of one, so that a machine that
//! claims many addresses neither fills the log nor hides another machine's conflict. Never: input,
//! output or a clock; frames and changes come out of [`ConflictTable::poll`].
//!
//! ```text
//!   claim seen ─▶ new: Begun ─▶ defend now ─▶ further claims: defend after 10 s, 20 s, ...
//!                                 └─ no claim for two minutes: Ended
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use appliance_common::addr::{Address, as_v4};

use super::pacing::RateLimiter;
use crate::frame::{self, Port};

/// Limits and timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Shortest time between two defences of an address (RFC 5227 `DEFEND_INTERVAL`).
    pub defend_interval: Duration,
    /// Time without a claim after which a conflict is over. Longer than the interval at which
    /// machines with one of the appliance's addresses are asked for.
    pub quiet: Duration,
    /// Conflicts of one network (VNI) known at once; further ones are counted only. A tenant's
    /// machine can claim each of its tenant's addresses, and must not hide the conflicts of others.
    pub max_per_network: usize,
    /// Those of them that one machine began.
    pub max_per_machine: usize,
    /// Reports of one network at once; then one for each `report_interval`. Those beyond are
    /// counted.
    pub reports_per_network: u32,
    /// Those of them about one machine.
    pub reports_per_machine: u32,
    /// See [`reports_per_network`](Self::reports_per_network).
    pub report_interval: Duration,
    /// Defences per second, of all addresses of one network.
    pub defences_per_second: u32,
    /// Machines of one conflict that are reported. Anyone can send claims from any number of MAC
    /// addresses.
    pub reported_machines: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            defend_interval: Duration::from_secs(10),
            quiet: Duration::from_secs(120),
            max_per_network: 256,
            max_per_machine: 128,
            reports_per_network: 32,
            reports_per_machine: 8,
            report_interval: Duration::from_secs(10),
            defences_per_second: 25,
            reported_machines: 4,
        }
    }
}

/// Where an address is the appliance's: the port, and the address.
pub type ServedKey = (Port, Address);

/// Another machine that uses an address of the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressConflict {
    /// The port on which it was seen, with our MAC address.
    pub port: Port,
    /// The network's VNI; zero on the uplink.
    pub vni: u32,
    pub address: Address,
    /// The other machine's MAC address.
    pub mac: [u8; 6],
    /// When it was first seen.
    pub since: Instant,
    /// When it was last seen.
    pub seen_at: Instant,
    /// Its messages.
    pub claims: u64,
    /// Our announcements in reply.
    pub defences: u64,
}

/// An action of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame.
    Send {
        /// Interface to send it on.
        ifindex: u32,
        /// The frame, from the Ethernet header on, without FCS.
        frame: Vec<u8>,
    },
    /// Report a conflict that began, or that has another machine.
    Begun(AddressConflict),
    /// Report a conflict that is over.
    Ended(AddressConflict),
    /// Report that this many conflicts of a network began, changed or ended without a report.
    Unreported {
        /// The network's VNI; zero on the uplink.
        vni: u32,
        /// How many since the last report of this kind.
        count: u64,
    },
}

/// Counts since the table was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages of other machines with an address of the appliance.
    pub claims: u64,
    /// Conflicts that began.
    pub conflicts: u64,
    /// Announcements in defence.
    pub defences: u64,
    /// Claims not followed because their network or machine has too many conflicts.
    pub refused_full: u64,
    /// Conflicts that began, changed or ended without a report.
    pub unreported: u64,
}

/// The conflicts. See the [module](self).
#[derive(Debug)]
pub struct ConflictTable {
    settings: Settings,
    networks: BTreeMap<u32, Network>,
    conflicts: BTreeMap<ServedKey, Entry>,
    /// When each conflict is to be looked at.
    deadlines: BTreeSet<(Instant, ServedKey)>,
    ready: VecDeque<Output>,
    counters: Counters,
}

/// The conflicts of one network.
#[derive(Debug)]
struct Network {
    conflicts: usize,
    limiter: RateLimiter,
    reports: RateLimiter,
    /// Changes without a report since the last [`Output::Unreported`].
    unreported: u64,
    /// The machines that began its conflicts.
    machines: BTreeMap<[u8; 6], Machine>,
}

/// The conflicts that one machine of a network began.
#[derive(Debug)]
struct Machine {
    conflicts: usize,
    reports: RateLimiter,
}

#[derive(Debug)]
struct Entry {
    conflict: AddressConflict,
    /// The machine that began it.
    began: [u8; 6],
    /// The machines that were reported.
    reported: Vec<[u8; 6]>,
    router: bool,
    /// A claim was seen that is not answered yet.
    unanswered: bool,
    defended_at: Option<Instant>,
    deadline: Instant,
}

impl ConflictTable {
    /// A table without conflicts.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            networks: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ready: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// A machine at `mac` uses an address of ours. `router` is whether it is a router's address.
    pub fn claimed(&mut self, now: Instant, key: ServedKey, vni: u32, mac: [u8; 6], router: bool) {
        self.counters.claims += 1;
        let (port, address) = key;
        if let Some(entry) = self.conflicts.get_mut(&key) {
            let conflict = &mut entry.conflict;
            conflict.seen_at = now;
            conflict.claims += 1;
            entry.unanswered = true;
            entry.router = router;
            conflict.mac = mac;
            let is_new = !entry.reported.contains(&mac);
            if is_new && entry.reported.len() < self.settings.reported_machines {
                entry.reported.push(mac);
                let (conflict, began) = (*conflict, entry.began);
                self.report(now, vni, began, Output::Begun(conflict));
            }
            self.schedule(now, key);
            return;
        }
        let settings = self.settings;
        let rate = settings.defences_per_second.max(1);
        let reports = |burst| RateLimiter::with_interval(settings.report_interval, burst);
        let network = self.networks.entry(vni).or_insert_with(|| Network {
            conflicts: 0,
            limiter: RateLimiter::new(rate, rate),
            reports: reports(settings.reports_per_network),
            unreported: 0,
            machines: BTreeMap::new(),
        });
        let machine = network.machines.get(&mac);
        if network.conflicts >= settings.max_per_network
            || machine.is_some_and(|machine| machine.conflicts >= settings.max_per_machine)
        {
            self.counters.refused_full += 1;
            return;
        }
        network.conflicts += 1;
        let machine = network.machines.entry(mac).or_insert_with(|| Machine {
            conflicts: 0,
            reports: reports(settings.reports_per_machine),
        });
        machine.conflicts += 1;
        let conflict = AddressConflict {
            port,
            vni,
            address,
            mac,
            since: now,
            seen_at: now,
            claims: 1,
            defences: 0,
        };
        self.counters.conflicts += 1;
        self.report(now, vni, mac, Output::Begun(conflict));
        let entry = Entry {
            conflict,
            began: mac,
            reported: vec![mac],
            router,
            unanswered: true,
            defended_at: None,
            deadline: now,
        };
        self.conflicts.insert(key, entry);
        self.deadlines.insert((now, key));
    }

    /// Sets the time after which a silent conflict is over.
    pub const fn set_quiet(&mut self, quiet: Duration) {
        self.settings.quiet = quiet;
    }

    /// Ends the conflicts about addresses that are not the appliance's any more.
    pub fn retain(&mut self, now: Instant, is_ours: impl Fn(&ServedKey) -> bool) {
        let gone: Vec<ServedKey> = self.conflicts.keys().copied().collect();
        for key in gone.into_iter().filter(|key| !is_ours(key)) {
            self.end(now, key);
        }
    }

    /// The next thing to do, or `None` until [`next_deadline`](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Some(output);
            }
            let (at, key) = *self.deadlines.first()?;
            if at > now {
                return None;
            }
            self.look_at(now, key);
        }
    }

    /// When [`poll`](Self::poll), having returned `None`, has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The conflicts, sorted by port and address.
    pub fn conflicts(&self) -> impl Iterator<Item = &AddressConflict> {
        self.conflicts.values().map(|entry| &entry.conflict)
    }

    /// Counts since [`new`](Self::new).
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// A conflict's deadline has come: it is over, or the address is defended.
    fn look_at(&mut self, now: Instant, key: ServedKey) {
        let Some(entry) = self.conflicts.get_mut(&key) else {
            return;
        };
        if entry.conflict.seen_at + self.settings.quiet <= now {
            self.end(now, key);
            return;
        }
        if entry.unanswered {
            if let Some(network) = self.networks.get_mut(&entry.conflict.vni) {
                let slot = network.limiter.next_slot(now);
                if slot > now {
                    self.set_deadline(key, slot);
                    return;
                }
                network.limiter.reserve(now);
            }
            entry.unanswered = false;
            entry.defended_at = Some(now);
            entry.conflict.defences += 1;
            self.counters.defences += 1;
            let (port, address) = key;
            // RFC 5227 section 2.4: an announcement, broadcast once.
            let frame = match as_v4(&address) {
                Some(v4) => frame::arp_announcement(&port, v4, port.mac, false),
                None => frame::unsolicited_advertisement(&port, &address, port.mac, entry.router),
            };
            let ifindex = port.ifindex;
            self.ready.push_back(Output::Send { ifindex, frame });
        }
        self.schedule(now, key);
    }

    /// Sets the deadline: the next defence, or the end.
    fn schedule(&mut self, now: Instant, key: ServedKey) {
        let Some(entry) = self.conflicts.get(&key) else {
            return;
        };
        let end = entry.conflict.seen_at + self.settings.quiet;
        let defence = entry
            .defended_at
            .map_or(now, |at| (at + self.settings.defend_interval).max(now));
        self.set_deadline(key, if entry.unanswered { defence } else { end });
    }

    fn set_deadline(&mut self, key: ServedKey, deadline: Instant) {
        if let Some(entry) = self.conflicts.get_mut(&key) {
            self.deadlines.remove(&(entry.deadline, key));
            entry.deadline = deadline;
            self.deadlines.insert((deadline, key));
        }
    }

    fn end(&mut self, now: Instant, key: ServedKey) {
        let Some(entry) = self.conflicts.remove(&key) else {
            return;
        };
        self.deadlines.remove(&(entry.deadline, key));
        let vni = entry.conflict.vni;
        self.report(now, vni, entry.began, Output::Ended(entry.conflict));
        let Some(network) = self.networks.get_mut(&vni) else {
            return;
        };
        network.conflicts -= 1;
        if let Some(machine) = network.machines.get_mut(&entry.began) {
            machine.conflicts -= 1;
            if machine.conflicts == 0 {
                network.machines.remove(&entry.began);
            }
        }
        if network.conflicts == 0 {
            let count = network.unreported;
            self.networks.remove(&vni);
            if count > 0 {
                self.ready.push_back(Output::Unreported { vni, count });
            }
        }
    }

    /// Reports a change of a conflict that the machine `began` began, or counts it if the network
    /// or the machine is beyond its limit. What was counted is reported before the next report.
    fn report(&mut self, now: Instant, vni: u32, began: [u8; 6], report: Output) {
        let Some(network) = self.networks.get_mut(&vni) else {
            return;
        };
        let machine = network.machines.get_mut(&began);
        let machine = machine.filter(|machine| machine.reports.next_slot(now) <= now);
        let Some(machine) = machine.filter(|_| network.reports.next_slot(now) <= now) else {
            network.unreported += 1;
            self.counters.unreported += 1;
            return;
        };
        machine.reports.reserve(now);
        network.reports.reserve(now);
        let count = std::mem::take(&mut network.unreported);
        if count > 0 {
            self.ready.push_back(Output::Unreported { vni, count });
        }
        self.ready.push_back(report);
    }
}

#[cfg(test)]
mod tests {
    use appliance_common::addr::v4_mapped;

    use super::*;
    use crate::frame::testing::UNTAGGED as PORT;

    const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

    fn key(last: u8) -> ServedKey {
        (PORT, v4_mapped([10, 1, 0, last]))
    }

    fn poll_all(table: &mut ConflictTable, now: Instant) -> Vec<Output> {
        std::iter::from_fn(|| table.poll(now)).collect()
    }

    /// Times of the defences in seconds, with a claim at each of the given times, also in seconds.
    fn defences(table: &mut ConflictTable, start: Instant, claims: &[u64], end: u64) -> Vec<u64> {
        let mut sent = Vec::new();
        for second in 0..=end {
            let now = start + Duration::from_secs(second);
            if claims.contains(&second) {
                table.claimed(now, key(7), 1001, OTHER_MAC, false);
            }
            for output in poll_all(table, now) {
                if matches!(output, Output::Send { .. }) {
                    sent.push(second);
                }
            }
        }
        sent
    }

    #[test]
    fn a_claim_is_reported_and_the_address_announced_at_our_mac_address() {
        let now = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        table.claimed(now, key(7), 1001, OTHER_MAC, false);
        let outputs = poll_all(&mut table, now);
        let [Output::Begun(begun), Output::Send { ifindex: 3, frame }] = &outputs[..] else {
            panic!("{outputs:?}");
        };
        assert_eq!(
            (begun.vni, begun.mac, begun.port.mac),
            (1001, OTHER_MAC, PORT.mac)
        );
        assert_eq!(frame[22..28], PORT.mac);
        assert_eq!(frame[28..32], [10, 1, 0, 7]);
        assert_eq!(frame[38..42], [10, 1, 0, 7]);
        assert_eq!(table.conflicts().count(), 1);
    }

    #[test]
    fn an_address_is_defended_at_most_once_in_ten_seconds() {
        let start = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        let every_second: Vec<u64> = (0..60).collect();
        let sent = defences(&mut table, start, &every_second, 100);
        assert_eq!(sent, [0, 10, 20, 30, 40, 50, 60]);
        let mut table = ConflictTable::new(Settings::default());
        assert_eq!(defences(&mut table, start, &[0, 3, 30], 100), [0, 10, 30]);
    }

    #[test]
    fn a_conflict_ends_two_minutes_after_the_last_claim() {
        let start = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        defences(&mut table, start, &[0, 50], 169);
        assert_eq!(table.conflicts().count(), 1);
        let outputs = poll_all(&mut table, start + Duration::from_secs(170));
        assert!(matches!(outputs[..], [Output::Ended(c)] if c.claims == 2));
        assert_eq!(
            (table.conflicts().count(), table.next_deadline()),
            (0, None)
        );
    }

    #[test]
    fn a_conflict_ends_with_the_claim_to_the_address() {
        let now = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        for last in [7, 8] {
            table.claimed(now, key(last), 1001, OTHER_MAC, false);
        }
        poll_all(&mut table, now);
        table.retain(now, |key| key.1 == v4_mapped([10, 1, 0, 8]));
        assert!(matches!(poll_all(&mut table, now)[..], [Output::Ended(c)]
            if c.address == v4_mapped([10, 1, 0, 7])));
        assert_eq!(table.conflicts().count(), 1);
    }

    #[test]
    fn each_machine_is_reported_once_and_few_of_one_conflict() {
        let now = Instant::now();
        let begun = |table: &mut ConflictTable| {
            let outputs = poll_all(table, now).into_iter();
            let mac = |output| match output {
                Output::Begun(conflict) => Some(conflict.mac),
                Output::Send { .. } | Output::Ended(_) | Output::Unreported { .. } => None,
            };
            outputs.filter_map(mac).collect::<Vec<_>>()
        };
        let mut table = ConflictTable::new(Settings::default());
        // Two machines with one address speak in turns.
        for _ in 0..10_000 {
            for mac in [OTHER_MAC, [2; 6]] {
                table.claimed(now, key(7), 1001, mac, false);
            }
        }
        assert_eq!(begun(&mut table), [OTHER_MAC, [2; 6]]);
        // One machine speaks from ever another MAC address.
        for n in 0..10_000u16 {
            let [high, low] = n.to_be_bytes();
            table.claimed(now, key(7), 1001, [2, 9, 9, 9, high, low], false);
        }
        assert_eq!(begun(&mut table).len(), 2);
        let conflict = table.conflicts().next().expect("one");
        assert_eq!(
            (conflict.claims, conflict.mac),
            (30_000, [2, 9, 9, 9, 0x27, 0x0f])
        );
    }

    #[test]
    fn the_conflicts_of_one_network_hide_none_of_another() {
        let now = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        for n in 0..5000u16 {
            let [high, low] = n.to_be_bytes();
            table.claimed(
                now,
                (PORT, v4_mapped([10, 1, high, low])),
                1001,
                OTHER_MAC,
                false,
            );
        }
        poll_all(&mut table, now);
        let other = (Port { outer: 7, ..PORT }, v4_mapped([10, 1, 0, 7]));
        table.claimed(now, other, 2002, OTHER_MAC, false);
        let outputs = poll_all(&mut table, now);
        assert!(
            matches!(outputs[..], [Output::Begun(c), Output::Send { .. }] if c.vni == 2002),
            "{outputs:?}"
        );
        // Room again once they have ended.
        table.retain(now, |key| key.0 != PORT);
        poll_all(&mut table, now);
        table.claimed(now, key(7), 1001, OTHER_MAC, false);
        assert_eq!(table.conflicts().count(), 2);
    }

    #[test]
    fn a_machine_with_many_conflicts_neither_fills_the_log_nor_hides_others() {
        const PEST: [u8; 6] = [2, 6, 6, 6, 6, 6];
        let start = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        let (mut lines, mut told) = (Vec::new(), 0);
        let mut poll = |table: &mut ConflictTable, now| {
            for output in poll_all(table, now) {
                match output {
                    Output::Begun(c) | Output::Ended(c) => lines.push((c.vni, c.mac, c.address)),
                    Output::Unreported { vni: 1001, count } => told += count,
                    Output::Unreported { .. } => panic!("{output:?}"),
                    Output::Send { .. } => {}
                }
            }
        };
        // For an hour, it begins with ever other addresses.
        for minute in 0..60u16 {
            let now = start + Duration::from_secs(60) * u32::from(minute);
            for n in 0..1000u16 {
                let [high, low] = (minute * 1000 + n).to_be_bytes();
                let key = (PORT, v4_mapped([10, 1, high, low]));
                table.claimed(now, key, 1001, PEST, false);
            }
            if minute == 30 {
                table.claimed(
                    now,
                    (PORT, v4_mapped([10, 9, 9, 9])),
                    1001,
                    OTHER_MAC,
                    false,
                );
                let other = (Port { outer: 7, ..PORT }, v4_mapped([10, 1, 0, 7]));
                table.claimed(now, other, 2002, PEST, false);
            }
            poll(&mut table, now);
        }
        let end = start + Duration::from_secs(2 * 3600);
        table.retain(end, |_| false);
        poll(&mut table, end);
        let of_others = lines
            .iter()
            .filter(|(vni, mac, _)| (*vni, *mac) != (1001, PEST));
        assert_eq!(of_others.count(), 4, "both, begun and over");
        // Its burst, and one in ten seconds while it has conflicts.
        assert!(lines.len() < 8 + 4 + 6 * 60, "{} lines", lines.len());
        assert!(told > 1000, "{told}");
        assert_eq!(told, table.counters().unreported);
        assert_eq!(table.networks.len(), 0);
    }

    #[test]
    fn a_flood_of_claims_is_bounded_in_memory_and_frames() {
        let start = Instant::now();
        let mut table = ConflictTable::new(Settings::default());
        let mut sent = 0;
        for n in 0..5000u16 {
            let [high, low] = n.to_be_bytes();
            let key = (PORT, v4_mapped([10, 1, high, low]));
            table.claimed(start, key, 1001, [2, 9, 9, 9, 9, low & 3], false);
        }
        assert_eq!(table.conflicts().count(), 256);
        assert_eq!(table.counters().refused_full, 5000 - 256);
        let mut now = start;
        while now < start + Duration::from_secs(1) {
            for output in poll_all(&mut table, now) {
                sent += u32::from(matches!(output, Output::Send { .. }));
            }
            now = table.next_deadline().expect("unanswered claims");
        }
        assert!(
            (45..=55).contains(&sent),
            "a burst of 25 and 25 a second: {sent}"
        );
    }
}
