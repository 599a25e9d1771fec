//! Two tunnels over a path that loses, reorders, duplicates, delays, corrupts and replays
//! datagrams, rebinds addresses and fails, with ends that restart and keys that rotate often.
//!
//! At every step: nothing is delivered twice, nothing is delivered that was not sent, no (key,
//! counter) is used twice, no timer stays expired. After every storm: traffic flows both ways
//! within a stated bound. `TUNNEL_MODEL_STEPS` and `TUNNEL_MODEL_SEED` set steps and seed; the seed
//! is printed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use tunnel::testing::Seeded;
use tunnel::{
    Cipher, InitiationPolicy, Instant, LoadLimits, Now, Payload, PayloadKind, PeerConfig, PeerId,
    PeerPath, PmtuConfig, ReassemblyLimits, SecretKey, TimerConfig, Tunnel,
};

const MS: u64 = 1_000_000;
/// Longest datagram the simulated path carries, UDP payload.
const PATH: usize = 1400;

/// Random decisions of the simulation.
trait Draw {
    /// A number below `bound`, which must not be zero.
    fn draw(&mut self, bound: u64) -> u64;

    /// True in `percent` of 100 calls.
    fn percent(&mut self, percent: u64) -> bool {
        self.draw(100) < percent
    }
}

impl Draw for Seeded {
    fn draw(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Side {
    Tenant,
    Provider,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Tenant => Self::Provider,
            Self::Provider => Self::Tenant,
        }
    }
}

/// How the path behaves, in per cent and milliseconds.
#[derive(Clone, Copy, Debug)]
struct PathConditions {
    loss: u64,
    duplicate: u64,
    corrupt: u64,
    replay: u64,
    delay: (u64, u64),
    down: bool,
}

const CALM: PathConditions = PathConditions {
    loss: 0,
    duplicate: 0,
    corrupt: 0,
    replay: 0,
    delay: (10, 12),
    down: false,
};
/// One round trip in calm conditions.
const ROUND_TRIP: Duration = Duration::from_millis(24);

struct End {
    tunnel: Tunnel,
    peer: PeerId,
}

struct Flight {
    to: PeerPath,
    from: PeerPath,
    bytes: Vec<u8>,
}

struct World {
    seed: u64,
    random: Seeded,
    now: u64,
    secrets: [SecretKey; 2],
    cipher: Cipher,
    tenant: End,
    provider: End,
    tenant_address: PeerPath,
    provider_addresses: [PeerPath; 2],
    /// Which of the provider's paths (gateways) works.
    open_gateway: usize,
    conditions: PathConditions,
    /// By time of arrival and a serial number.
    flying: BTreeMap<(u64, u64), Flight>,
    serial: u64,
    recorded: Vec<Flight>,
    next_id: u64,
    outstanding: [HashMap<u64, usize>; 2],
    delivered: HashSet<u64>,
    /// Counters used, by sender and the receiver's index.
    nonces: HashMap<(Side, u32), HashSet<u64>>,
    counts: Counts,
}

#[derive(Default, Debug)]
struct Counts {
    steps: u64,
    sent: u64,
    delivered: u64,
    fragments: u64,
    handshakes: u64,
    refused: u64,
    restarts: u64,
    storms: u64,
    worst_recovery_ms: u64,
}

fn timers() -> TimerConfig {
    TimerConfig {
        // Keys rotate by count and by age many times in a run.
        rekey_after: Duration::from_secs(20),
        reject_after: Duration::from_secs(30),
        rekey_after_messages: Some(3000),
        reject_after_messages: Some(6000),
        ..TimerConfig::causeway()
    }
}

/// The bound on recovery: silence, a pause for every path, and three round trips.
fn bound(paths: u32) -> Duration {
    let timers = timers();
    timers.silence + timers.backoff.longest() * paths + ROUND_TRIP * 3
}

/// A packet that can be checked: its id, its length, and bytes that follow from the id.
fn packet(id: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len.max(16)];
    let mut fill = Seeded(id ^ 0x5bd1);
    fill.fill(&mut out);
    out[..8].copy_from_slice(&id.to_be_bytes());
    out
}

impl World {
    fn new(seed: u64, cipher: Cipher) -> Self {
        let mut random = Seeded(seed);
        let secrets = [
            SecretKey::generate(&mut random),
            SecretKey::generate(&mut random),
        ];
        let provider_addresses = [
            PeerPath::from(SocketAddr::from(([203, 0, 113, 5], 6180))),
            PeerPath::from(SocketAddr::from(([203, 0, 113, 6], 6180))),
        ];
        let tenant = Self::end(
            Side::Tenant,
            &secrets,
            cipher,
            &provider_addresses,
            Instant::ORIGIN,
        );
        let provider = Self::end(
            Side::Provider,
            &secrets,
            cipher,
            &provider_addresses,
            Instant::ORIGIN,
        );
        Self {
            seed,
            random,
            now: 0,
            secrets,
            cipher,
            tenant,
            provider,
            tenant_address: tenant_at(40_000),
            provider_addresses,
            open_gateway: 0,
            conditions: CALM,
            flying: BTreeMap::new(),
            serial: 0,
            recorded: Vec::new(),
            next_id: 1,
            outstanding: [HashMap::new(), HashMap::new()],
            delivered: HashSet::new(),
            nonces: HashMap::new(),
            counts: Counts::default(),
        }
    }

    fn end(
        side: Side,
        secrets: &[SecretKey; 2],
        cipher: Cipher,
        gateways: &[PeerPath; 2],
        now: Instant,
    ) -> End {
        let (own, other) = match side {
            Side::Tenant => (&secrets[0], &secrets[1]),
            Side::Provider => (&secrets[1], &secrets[0]),
        };
        let mut tunnel = Tunnel::new(
            own.clone(),
            LoadLimits::default(),
            ReassemblyLimits::default(),
        );
        let dial = if side == Side::Tenant {
            InitiationPolicy::Always
        } else {
            InitiationPolicy::Never
        };
        let peer = tunnel.add_peer(
            now,
            PeerConfig {
                paths: if side == Side::Tenant {
                    gateways.to_vec()
                } else {
                    Vec::new()
                },
                cipher,
                timers: timers(),
                pmtu: Some(PmtuConfig {
                    ceiling: 1472,
                    ..PmtuConfig::default()
                }),
                ..PeerConfig::causeway(other.public(), dial)
            },
        );
        End { tunnel, peer }
    }

    fn clock(&self) -> Now {
        Now {
            mono: Instant::from_nanos(self.now),
            unix: Duration::from_secs(1_700_000_000) + Duration::from_nanos(self.now),
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!(
            "{what}\nseed {} at {} ms, {:?}\nweather {:?}\ntenant {:?}\nprovider {:?}",
            self.seed,
            self.now / MS,
            self.counts,
            self.conditions,
            self.tenant
                .tunnel
                .status(self.clock().mono, self.tenant.peer),
            self.provider
                .tunnel
                .status(self.clock().mono, self.provider.peer),
        )
    }

    /// A datagram leaves `side`.
    fn transmit(&mut self, side: Side, to: PeerPath, bytes: &[u8]) {
        let index = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        match bytes[0] {
            // An end that chooses an index again starts a new session: the other end's counters
            // restart.
            1 | 2 => {
                self.nonces.remove(&(side.other(), index(4)));
                self.counts.handshakes += u64::from(bytes[0] == 2);
            }
            4 => {
                let counter = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                if !self
                    .nonces
                    .entry((side, index(4)))
                    .or_default()
                    .insert(counter)
                {
                    self.fail(&format!(
                        "{side:?} used counter {counter} of {:#x} twice",
                        index(4)
                    ));
                }
            }
            _ => {}
        }
        let from = match side {
            Side::Tenant => self.tenant_address,
            Side::Provider => self.provider_addresses[self.open_gateway],
        };
        let flight = Flight {
            to,
            from,
            bytes: bytes.to_vec(),
        };
        if self.random.percent(2) {
            if self.recorded.len() >= 300 {
                let at = self.random.draw(300) as usize;
                self.recorded.swap_remove(at);
            }
            self.recorded.push(Flight {
                to,
                from,
                bytes: bytes.to_vec(),
            });
        }
        if self.random.percent(self.conditions.duplicate) {
            self.fly(Flight {
                to,
                from,
                bytes: bytes.to_vec(),
            });
        }
        self.fly(flight);
        if self.random.percent(self.conditions.replay) && !self.recorded.is_empty() {
            let at = self.random.draw(self.recorded.len() as u64) as usize;
            let old = &self.recorded[at];
            // The attacker may send recorded datagrams from any address to where the ends are now.
            let to_tenant = !self.provider_addresses.contains(&old.to);
            let to = if to_tenant {
                self.tenant_address
            } else {
                self.provider_addresses[self.open_gateway]
            };
            let replay = Flight {
                to,
                from: old.from,
                bytes: old.bytes.clone(),
            };
            self.fly(replay);
        }
    }

    fn fly(&mut self, mut flight: Flight) {
        let conditions = self.conditions;
        if conditions.down || self.random.percent(conditions.loss) || flight.bytes.len() > PATH {
            return;
        }
        if self.random.percent(conditions.corrupt) {
            match self.random.draw(3) {
                0 => {
                    let at = self.random.draw(flight.bytes.len() as u64) as usize;
                    flight.bytes[at] ^= 1 << self.random.draw(8);
                }
                1 => {
                    let len = self.random.draw(flight.bytes.len() as u64 + 1) as usize;
                    flight.bytes.truncate(len);
                }
                _ => {
                    let mut random = self.random.clone();
                    random.fill(&mut flight.bytes[1..]);
                    self.random = random;
                }
            }
        }
        let (least, most) = conditions.delay;
        let at = self.now + (least * MS) + self.random.draw((most - least) * MS + 1);
        self.serial += 1;
        self.flying.insert((at, self.serial), flight);
    }

    fn poll(&mut self, side: Side) {
        let clock = self.clock();
        let mut out = Vec::new();
        let end = match side {
            Side::Tenant => &mut self.tenant,
            Side::Provider => &mut self.provider,
        };
        let transmit = &mut |to: PeerPath, bytes: &[u8]| out.push((to, bytes.to_vec()));
        end.tunnel
            .poll(clock, &mut self.random, transmit, &mut |_, _| {});
        for (to, bytes) in out {
            self.transmit(side, to, &bytes);
        }
    }

    /// Sends a packet. Yields its id if there was a session.
    fn send(&mut self, side: Side, len: usize) -> Option<u64> {
        let clock = self.clock();
        let id = self.next_id;
        self.next_id += 1;
        let body = packet(id, len);
        let mut out = Vec::new();
        let end = match side {
            Side::Tenant => &mut self.tenant,
            Side::Provider => &mut self.provider,
        };
        let transmit = &mut |to: PeerPath, bytes: &[u8]| out.push((to, bytes.to_vec()));
        let sent = end.tunnel.send(
            clock.mono,
            end.peer,
            0,
            PayloadKind::Ip,
            77,
            &body,
            transmit,
        );
        self.counts.sent += 1;
        self.counts.fragments += out.len() as u64;
        if sent.is_ok() {
            self.outstanding[side as usize].insert(id, body.len());
        }
        for (to, bytes) in out {
            self.transmit(side, to, &bytes);
        }
        self.poll(side);
        sent.is_ok().then_some(id)
    }

    /// A datagram arrives.
    fn arrive(&mut self, mut flight: Flight) {
        let side = if flight.to == self.tenant_address {
            Side::Tenant
        } else if flight.to == self.provider_addresses[self.open_gateway] {
            Side::Provider
        } else {
            return;
        };
        let clock = self.clock();
        let mut got = Vec::new();
        let end = match side {
            Side::Tenant => &mut self.tenant,
            Side::Provider => &mut self.provider,
        };
        let deliver = &mut |_: PeerId, payload: Payload<'_>| match payload {
            Payload::Packet {
                kind,
                network,
                bytes,
            } => got.push((kind, network, bytes.to_vec())),
            Payload::Invalid(bad) => panic!("an honest peer sent invalid content: {bad}"),
            _ => {}
        };
        let taken = end.tunnel.receive(
            clock,
            flight.from,
            &mut flight.bytes,
            &mut self.random,
            deliver,
        );
        self.counts.refused += u64::from(taken.is_err());
        for (kind, network, bytes) in got {
            let id = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            if kind != PayloadKind::Ip || network != 77 || bytes != packet(id, bytes.len()) {
                self.fail("a packet was delivered that was not sent");
            }
            if !self.delivered.insert(id) {
                self.fail(&format!("packet {id} was delivered twice"));
            }
            match self.outstanding[side.other() as usize].remove(&id) {
                Some(len) if len == bytes.len() => {}
                _ => self.fail(&format!(
                    "packet {id} was never sent by the other end, or with another length"
                )),
            }
            self.counts.delivered += 1;
        }
        self.poll(side);
    }

    /// Runs until `until`, arrivals and timers in order.
    fn run(&mut self, until: u64) {
        loop {
            let arrival = self.flying.first_key_value().map(|(&(at, _), _)| at);
            let timer = [&self.tenant, &self.provider]
                .into_iter()
                .filter_map(|end| end.tunnel.next_deadline())
                .map(Instant::as_nanos)
                .min();
            let next = arrival.into_iter().chain(timer).min().unwrap_or(u64::MAX);
            if next > until {
                break;
            }
            // After one poll no timer may be expired: that would be a busy loop.
            self.now = self.now.max(next);
            if arrival == Some(next) {
                if let Some((_, flight)) = self.flying.pop_first() {
                    self.arrive(flight);
                }
            } else {
                for side in [Side::Tenant, Side::Provider] {
                    self.poll(side);
                }
                let stuck = [&self.tenant, &self.provider]
                    .into_iter()
                    .filter_map(|end| end.tunnel.next_deadline())
                    .any(|at| at.as_nanos() <= self.now);
                if stuck {
                    self.fail("a timer stays expired");
                }
            }
        }
        self.now = self.now.max(until);
    }

    fn restart(&mut self, side: Side) {
        self.counts.restarts += 1;
        let end = Self::end(
            side,
            &self.secrets,
            self.cipher,
            &self.provider_addresses,
            self.clock().mono,
        );
        match side {
            Side::Tenant => self.tenant = end,
            Side::Provider => self.provider = end,
        }
        self.poll(side);
    }

    /// One random act.
    fn step(&mut self) {
        self.counts.steps += 1;
        let len = match self.random.draw(10) {
            0 => 1 + self.random.draw(8000),
            1 | 2 => 1400 + self.random.draw(200),
            _ => 16 + self.random.draw(200),
        } as usize;
        match self.random.draw(1000) {
            0 => self.tenant_address = tenant_at(40_000 + self.random.draw(20_000) as u16),
            1 => self.conditions.down = !self.conditions.down,
            2 if self.random.percent(20) => self.open_gateway = 1 - self.open_gateway,
            3 if self.random.percent(20) => self.restart(Side::Tenant),
            4 if self.random.percent(20) => self.restart(Side::Provider),
            5..=499 => {
                self.send(Side::Tenant, len);
            }
            _ => {
                self.send(Side::Provider, len);
            }
        }
        let pause = self.random.draw(8 * MS);
        let until = self.now + pause;
        self.run(until);
    }

    /// Measures, after a storm, how long it takes until a packet arrives each way.
    fn recover(&mut self) {
        self.conditions = CALM;
        self.open_gateway = 0;
        let start = self.now;
        let limit = bound(2).as_nanos() as u64;
        let mut mine: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
        let mut through = [false; 2];
        while through != [true; 2] {
            if self.now - start > limit {
                self.fail(&format!(
                    "not recovered {} ms after the storm: {through:?}",
                    limit / MS
                ));
            }
            for side in [Side::Tenant, Side::Provider] {
                if let Some(id) = self.send(side, 100) {
                    mine[side as usize].push(id);
                }
            }
            let until = self.now + 10 * MS;
            self.run(until);
            for side in 0..2 {
                through[side] |= mine[side].iter().any(|id| self.delivered.contains(id));
            }
        }
        self.counts.worst_recovery_ms = self.counts.worst_recovery_ms.max((self.now - start) / MS);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn storms(cipher: Cipher, seed: u64, steps: u64) {
    eprintln!("model: {cipher}, seed {seed}, {steps} steps");
    let mut world = World::new(seed, cipher);
    while world.counts.steps < steps {
        let random = &mut world.random;
        let least = random.draw(60);
        world.conditions = PathConditions {
            loss: random.draw(40),
            duplicate: random.draw(20),
            corrupt: random.draw(20),
            replay: random.draw(20),
            delay: (least, least + 1 + random.draw(400)),
            down: false,
        };
        world.counts.storms += 1;
        for _ in 0..2000.min(steps - world.counts.steps) {
            world.step();
        }
        world.recover();
    }
    eprintln!("model: {:?}", world.counts);
    assert!(
        world.counts.handshakes > world.counts.steps / 10_000,
        "keys rotated"
    );
    assert!(
        world.counts.delivered > world.counts.sent / 10,
        "traffic flowed"
    );
}

#[test]
fn storms_break_no_invariant_with_aes() {
    storms(
        Cipher::Aes256Gcm,
        setting("TUNNEL_MODEL_SEED", 1),
        setting("TUNNEL_MODEL_STEPS", 120_000),
    );
}

#[test]
fn storms_break_no_invariant_with_chacha() {
    storms(
        Cipher::ChaCha20Poly1305,
        setting("TUNNEL_MODEL_SEED", 2),
        setting("TUNNEL_MODEL_STEPS", 120_000),
    );
}

/// On a calm path no packet is lost while keys rotate by count and by age.
#[test]
fn rotation_loses_no_packet() {
    let mut world = World::new(3, Cipher::Aes256Gcm);
    world.recover();
    for n in 0..20_000_u64 {
        for side in [Side::Tenant, Side::Provider] {
            assert!(
                world.send(side, 64 + (n % 1500) as usize).is_some(),
                "packet {n} of {side:?}"
            );
        }
        let until = world.now + 2 * MS;
        world.run(until);
    }
    let until = world.now + 100 * MS;
    world.run(until);
    assert!(world.counts.handshakes >= 10, "{:?}", world.counts);
    assert!(
        world.outstanding.iter().all(HashMap::is_empty),
        "{:?}",
        world.outstanding
    );
}

/// After five minutes without a path, an idle tunnel is up within a second of its return.
#[test]
fn a_path_that_returns_is_used_within_a_second() {
    for seed in 10..20 {
        let mut world = World::new(seed, Cipher::Aes256Gcm);
        world.recover();
        world.conditions.down = true;
        let until = world.now + 300_000 * MS;
        world.run(until);
        let start = world.now;
        world.conditions = CALM;
        let mut ids = Vec::new();
        while !ids.iter().any(|id| world.delivered.contains(id)) {
            ids.extend(world.send(Side::Provider, 100));
            let until = world.now + 5 * MS;
            world.run(until);
            assert!(
                world.now - start <= 1000 * MS,
                "seed {seed}: {:?}",
                world.counts
            );
        }
    }
}

fn tenant_at(port: u16) -> PeerPath {
    PeerPath::from(SocketAddr::from(([198, 51, 100, 2], port)))
}
