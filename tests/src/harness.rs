//! The programs, loaded and fed.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use appliance_common::{
    addr::{Address, to_ip},
    counters::Counter,
    events::{NeighbourEvent, SlowHeader, TraceEvent, TraceFilter},
    limits::{DEFAULT_CONNECTIONS, MAX_NETWORKS, MAX_PEERS, MAX_TENANTS},
    maps::{
        Attachment, AttachmentKey, Bucket, Config, Endpoint, HostKey, Jump, Neighbour, Network,
        NetworkStats, Peer, PeerAddress, Policy, ROUTE_KEY_BITS, Route, RouteKey, Session,
        SessionKey, Tenant, Tunnel, TunnelKey,
    },
    nat::{Flow, FlowKey, Mapping, MappingKey, RuleSlot, TenantUsage},
};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues, ProgramArray, RingBuf, XskMap,
        lpm_trie::Key,
    },
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};

use crate::{
    dump,
    packet::Mac,
    skip,
    world::{
        ACCESS, NEXT_HOP_MAC, PROVIDER, PROVIDER6, STRAY, TRUNK, UPLINK, UPLINK_MAC, World, xsk_of,
    },
};

/// Largest packet a program without fragments can be given: a page less the headroom for XDP and the
/// tail the kernel keeps for its own structure (net/bpf/test_run.c, Linux 6.18).
pub const MAX_PACKET: usize = 3520;

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A tenant-only port.
    Access,
    /// The tunnels' port.
    Uplink,
    /// One interface that is both.
    Combined,
    /// Where the others go on with a tenant in full failover.
    Full,
    /// Where that goes on with what leaves the tenant's networks.
    NatOut,
    /// Where [`Program::Uplink`] goes on with what is to a public address.
    NatIn,
}

impl Program {
    /// Those that are attached to interfaces.
    pub const ALL: [Self; 3] = [Self::Access, Self::Uplink, Self::Combined];
    /// And those that they go on in.
    pub const EVERY: [Self; 6] = [
        Self::Access,
        Self::Uplink,
        Self::Combined,
        Self::Full,
        Self::NatOut,
        Self::NatIn,
    ];

    /// As the object names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Uplink => "uplink",
            Self::Combined => "combined",
            Self::Full => "full",
            Self::NatOut => "nat_out",
            Self::NatIn => "nat_in",
        }
    }
}

/// What a program said to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The program failed.
    Aborted,
    /// Gone.
    Drop,
    /// To the kernel's stack.
    Pass,
    /// Back out of the interface.
    Tx,
    /// Out of another interface.
    Redirect,
    /// No XDP action.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(value: u32) -> Self {
        match value {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

impl Action {
    /// Whether the packet leaves the appliance.
    #[must_use]
    pub const fn sends(self) -> bool {
        matches!(self, Self::Tx | Self::Redirect)
    }
}

/// A ring-buffer record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Of `NEIGHBOUR_EVENTS`.
    Neighbour(NeighbourEvent),
    /// Of `SLOW_PACKETS`: the head and the frame.
    Slow(SlowHeader, Vec<u8>),
    /// Not decodable: the ring's name and the bytes.
    Garbage(&'static str, Vec<u8>),
}

/// Why the programs could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    #[error("cannot make a network namespace: {0}; run the tests as root")]
    Namespace(#[source] nix::Error),
    #[error("`ip -batch` to make the interfaces: {0}; install iproute2")]
    Interfaces(String),
    #[error("loading {path}: {source}")]
    Load {
        path: PathBuf,
        #[source]
        source: Box<aya::EbpfError>,
    },
    #[error("the object has no map {0}, or it is of another type")]
    Map(&'static str),
    #[error("the object has no XDP program {0}")]
    Program(&'static str),
    #[error("loading program {name}: {source}")]
    ProgramLoad {
        name: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("BPF_PROG_TEST_RUN of {name} with {len} bytes: {source}")]
    Run {
        name: &'static str,
        len: usize,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("a socket for interface {ifindex}: {source}")]
    Socket {
        ifindex: u32,
        #[source]
        source: Box<xsk::Error>,
    },
    #[error("map {name}: {source}")]
    Access {
        name: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
}

/// Where the built object is: `CAUSEWAY_BPF_OBJECT`, or `target/bpf/appliance.bpf.o` of the workspace.
#[must_use]
pub fn object_path() -> PathBuf {
    if let Some(path) = std::env::var_os("CAUSEWAY_BPF_OBJECT") {
        return path.into();
    }
    workspace_root().join("target/bpf/appliance.bpf.o")
}

/// The root of the workspace, from what cargo tells a running test.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let tests =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    tests.join("..")
}

/// Why privileged tests cannot run here, if they cannot.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let path = object_path();
    if !path.exists() {
        return Some(format!(
            "{} is missing; run `cargo xtask build-ebpf`",
            path.display()
        ));
    }
    None
}

/// The loaded programs, their maps filled with a [`World`], in a network namespace of this thread.
pub struct Harness {
    ebpf: Ebpf,
    /// The kernel empties it when nobody has it open.
    _jumps: ProgramArray<MapData>,
    counters: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    slow: RingBuf<MapData>,
    out: Vec<u8>,
    sockets: Vec<(xsk::Rx, xsk::Tx)>,
    /// What the maps were filled with.
    pub world: World,
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness").finish_non_exhaustive()
    }
}

impl Harness {
    /// Loads the programs with `world`; `None` after saying why, where that is impossible.
    ///
    /// # Panics
    ///
    /// When loading fails although everything needed is there: that is a failure of the test.
    #[must_use]
    pub fn new(world: World) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        match Self::load(world) {
            Ok(harness) => Some(harness),
            Err(e) => panic!("{}", describe(&e)),
        }
    }

    /// Loads the programs with `world`.
    ///
    /// The calling thread moves to a fresh network namespace, where interfaces exist with the
    /// indices that [`crate::world`] names.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refuses.
    pub fn load(world: World) -> Result<Self, HarnessError> {
        Self::load_sized(world, DEFAULT_CONNECTIONS)
    }

    /// As [`Harness::new`], of programs that follow packets: those that `filter` wants.
    ///
    /// # Panics
    ///
    /// As [`Harness::new`].
    #[must_use]
    pub fn following(world: World, filter: TraceFilter) -> Option<Self> {
        if let Some(why) = missing() {
            skip(&why);
            return None;
        }
        let load = || -> Result<Self, HarnessError> {
            let mut harness = Self::load_as(world, DEFAULT_CONNECTIONS, true)?;
            harness.follow(filter)?;
            Ok(harness)
        };
        match load() {
            Ok(harness) => Some(harness),
            Err(e) => panic!("{}", describe(&e)),
        }
    }

    /// Says which packets are to be followed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn follow(&mut self, filter: TraceFilter) -> Result<(), HarnessError> {
        self.array("TRACE", &[filter], 1)
    }

    /// The steps of packets that were followed since the last call.
    ///
    /// # Panics
    ///
    /// When the ring is not there, or holds something else.
    pub fn followed(&mut self) -> Vec<TraceEvent> {
        let map = self.ebpf.map_mut("TRACE_EVENTS").expect("TRACE_EVENTS");
        let mut ring = RingBuf::try_from(map).expect("a ring");
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            events.push(TraceEvent::from_bytes(&record).expect("a whole record"));
        }
        events
    }

    /// As [`Harness::load`], with room for so many connections.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refuses.
    pub fn load_sized(world: World, connections: u32) -> Result<Self, HarnessError> {
        Self::load_as(world, connections, false)
    }

    fn load_as(world: World, connections: u32, follow: bool) -> Result<Self, HarnessError> {
        namespace()?;
        let path = object_path();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS", 2 * connections)
            .override_global("TRACING", &u8::from(follow), true)
            .load_file(&path)
            .map_err(|source| HarnessError::Load {
                path,
                source: Box::new(source),
            })?;
        for program in Program::EVERY {
            let name = program.name();
            let xdp: &mut Xdp = ebpf
                .program_mut(name)
                .and_then(|p| p.try_into().ok())
                .ok_or(HarnessError::Program(name))?;
            xdp.load().map_err(|source| HarnessError::ProgramLoad {
                name,
                source: Box::new(source),
            })?;
        }
        let mut jumps: ProgramArray<_> = take(&mut ebpf, "JUMPS")?;
        for (jump, name) in Jump::ALL {
            let program: &Xdp = ebpf
                .program(name)
                .and_then(|p| p.try_into().ok())
                .ok_or(HarnessError::Program(name))?;
            program
                .fd()
                .and_then(|fd| Ok(jumps.set(jump as u32, fd, 0)?))
                .map_err(|source| HarnessError::ProgramLoad {
                    name,
                    source: Box::new(source),
                })?;
        }
        let counters = take(&mut ebpf, "COUNTERS")?;
        let events = take(&mut ebpf, "NEIGHBOUR_EVENTS")?;
        let slow = take(&mut ebpf, "SLOW_PACKETS")?;
        let mut harness = Self {
            ebpf,
            _jumps: jumps,
            counters,
            events,
            slow,
            out: vec![0; 4096],
            sockets: Vec::new(),
            world: World::default(),
        };
        harness.fill(world)?;
        Ok(harness)
    }

    /// The loaded object, for what this type does not wrap.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Makes the maps hold `world`, and nothing of what they held before.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn fill(&mut self, world: World) -> Result<(), HarnessError> {
        let old = std::mem::take(&mut self.world);
        self.array("CONFIG", &[world.config], 1)?;
        self.array("NETWORKS", &world.networks, old.networks.len())?;
        self.array("TENANTS", &world.tenants, old.tenants.len())?;
        self.array("PEERS", &world.peers, old.peers.len())?;
        self.hash("ATTACHMENTS", &world.attachments)?;
        self.hash("TUNNELS", &world.tunnels)?;
        let endpoints: Vec<_> = world
            .endpoints
            .iter()
            .map(|k| (*k, Endpoint { flags: 1 }))
            .collect();
        self.hash("ENDPOINTS", &endpoints)?;
        self.hash("NEIGHBOURS", &world.neighbours)?;
        let sessions: Vec<(SessionKey, _)> = world
            .sessions
            .iter()
            .map(|k| (*k, Session { flags: 1 }))
            .collect();
        self.hash("SESSIONS", &sessions)?;
        let peers: Vec<_> = world
            .peer_addresses
            .iter()
            .map(|k| (*k, PeerAddress { flags: 1 }))
            .collect();
        self.hash("PEER_ADDRESSES", &peers)?;
        let policies: Vec<_> = world
            .policies
            .iter()
            .map(|k| (*k, Policy { flags: 1 }))
            .collect();
        self.hash("POLICIES", &policies)?;
        self.routes(&world)?;
        self.translation(&world, &old)?;
        self.world = world;
        Ok(())
    }

    fn translation(&mut self, world: &World, old: &World) -> Result<(), HarnessError> {
        self.array("NAT", &[world.nat], 1)?;
        self.array(
            "NAT_ADDRESSES",
            &world.nat_addresses,
            old.nat_addresses.len(),
        )?;
        self.array("SHARES", &world.shares, old.shares.len())?;
        self.array("TALLIES", &[TenantUsage::default(); 2], 2)?;
        self.hash("PUBLIC", &world.public)?;
        self.rules(world, old)?;
        self.forget_flows()
    }

    fn rules(&mut self, world: &World, old: &World) -> Result<(), HarnessError> {
        self.array("RULES", &world.rules, old.rules.len())?;
        let machines: Vec<_> = world
            .one_to_one
            .iter()
            .map(|(k, slot)| (*k, RuleSlot { slot: *slot }))
            .collect();
        self.hash("ONE_TO_ONE", &machines)?;
        let ports: Vec<_> = world
            .rule_ports
            .iter()
            .map(|(bits, key, slot)| (*bits, *key, *slot))
            .collect();
        self.trie("RULE_PORTS", &ports)?;
        let sources: Vec<_> = world
            .rule_sources
            .iter()
            .map(|(bits, key)| (*bits, *key, key.slot))
            .collect();
        self.trie("RULE_SOURCES", &sources)
    }

    /// Makes tenants, networks and rules those of `world`; connections stay.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn refill_rules(&mut self, world: &World) -> Result<(), HarnessError> {
        let old = self.world.clone();
        self.array("NETWORKS", &world.networks, old.networks.len())?;
        self.array("TENANTS", &world.tenants, old.tenants.len())?;
        self.rules(world, &old)?;
        self.world = world.clone();
        Ok(())
    }

    /// Forgets every connection and mapping.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn forget_flows(&mut self) -> Result<(), HarnessError> {
        self.hash::<FlowKey, Flow>("FLOWS", &[])?;
        self.hash::<FlowKey, Flow>("OPENING", &[])?;
        self.hash::<FlowKey, Flow>("FRAGMENTS", &[])?;
        self.hash::<MappingKey, Mapping>("MAPPINGS", &[])
    }

    /// All entries of a hash map.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn entries<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<Vec<(K, V)>, HarnessError> {
        let map: HashMap<_, K, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        map.iter()
            .collect::<Result<_, _>>()
            .map_err(|e| access(name, e))
    }

    /// Writes an entry of a hash map.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn put<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        key: K,
        value: V,
    ) -> Result<(), HarnessError> {
        let mut map: HashMap<_, K, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        map.insert(key, value, 0).map_err(|e| access(name, e))
    }

    fn trie<K: Pod>(
        &mut self,
        name: &'static str,
        entries: &[(u32, K, u32)],
    ) -> Result<(), HarnessError> {
        let mut map: LpmTrie<_, K, RuleSlot> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        let keys: Vec<_> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key).map_err(|e| access(name, e))?;
        }
        for (bits, key, slot) in entries {
            map.insert(&Key::new(*bits, *key), RuleSlot { slot: *slot }, 0)
                .map_err(|e| access(name, e))?;
        }
        Ok(())
    }

    fn routes(&mut self, world: &World) -> Result<(), HarnessError> {
        let mut map: LpmTrie<_, RouteKey, Route> = self
            .ebpf
            .map_mut("ROUTES")
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map("ROUTES"))?;
        let keys: Vec<_> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key).map_err(|e| access("ROUTES", e))?;
        }
        for (length, key, network) in &world.routes {
            let route = Route {
                network: *network,
                flags: 1,
            };
            map.insert(&Key::new(ROUTE_KEY_BITS + length, *key), route, 0)
                .map_err(|e| access("ROUTES", e))?;
        }
        Ok(())
    }

    /// Binds an AF_XDP socket to each interface that has a place in `XSKS` and puts it there, as workers
    /// do. They stay until [`Harness::close_sockets`].
    ///
    /// # Errors
    ///
    /// Whatever the kernel refuses.
    pub fn bind_sockets(&mut self) -> Result<(), HarnessError> {
        for ifindex in [UPLINK, TRUNK, ACCESS] {
            let bound = xsk::bind_within(
                &xsk::Config {
                    ifindex,
                    queue: 0,
                    rx_frames: 64,
                    tx_frames: 64,
                    frame_size: 4096,
                    memory: xsk::Memory::Copy,
                    busy_poll: None,
                },
                // Of `close_sockets` a moment ago.
                Duration::from_secs(10),
            );
            let (rx, tx) = bound.map_err(|source| HarnessError::Socket {
                ifindex,
                source: Box::new(source),
            })?;
            let mut map: XskMap<_> = self
                .ebpf
                .map_mut("XSKS")
                .and_then(|m| m.try_into().ok())
                .ok_or(HarnessError::Map("XSKS"))?;
            map.set(u32::from(xsk_of(ifindex)), rx.fd(), 0)
                .map_err(|e| access("XSKS", e))?;
            self.sockets.push((rx, tx));
        }
        Ok(())
    }

    /// Closes the sockets; the kernel takes them out of `XSKS`.
    pub fn close_sockets(&mut self) {
        self.sockets.clear();
    }

    /// Runs a packet through a program once and does what the program says, as a driver would
    /// (BPF_F_TEST_XDP_LIVE_FRAMES). Returns what the sockets received: interface and frame.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn live(
        &mut self,
        program: Program,
        ifindex: u32,
        packet: &[u8],
    ) -> Result<Vec<(u32, Vec<u8>)>, HarnessError> {
        let context = context(ifindex, 0, packet);
        self.xdp(program)?
            .test_run(TestRunOptions {
                data_in: Some(packet),
                ctx_in: Some(&context),
                attrs: TestRunAttrs::new().xdp_live_frames(1),
                ..TestRunOptions::default()
            })
            .map_err(|source| run_error(program, packet, source))?;
        let mut received = Vec::new();
        for (rx, _) in &mut self.sockets {
            let from = rx.ifindex();
            rx.receive(64, |frame| received.push((from, frame.to_vec())));
        }
        Ok(received)
    }

    fn xdp(&self, program: Program) -> Result<&Xdp, HarnessError> {
        let name = program.name();
        self.ebpf
            .program(name)
            .and_then(|p| p.try_into().ok())
            .ok_or(HarnessError::Program(name))
    }

    /// Forgets the handshakes of all sources, and fills strangers' budget of every CPU.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map operation.
    pub fn forget_handshakes(&mut self) -> Result<(), HarnessError> {
        self.hash::<Address, Bucket>("HANDSHAKE_SOURCES", &[])?;
        let mut budget: PerCpuArray<_, Bucket> = self
            .ebpf
            .map_mut("HANDSHAKE_BUDGET")
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map("HANDSHAKE_BUDGET"))?;
        let cpus = budget
            .get(&0, 0)
            .map_err(|e| access("HANDSHAKE_BUDGET", e))?
            .len();
        for slot in 0..budget.len() {
            let full = PerCpuValues::try_from(vec![Bucket::default(); cpus])
                .map_err(|e| access("HANDSHAKE_BUDGET", e.into()))?;
            budget
                .set(slot, full, 0)
                .map_err(|e| access("HANDSHAKE_BUDGET", e))?;
        }
        Ok(())
    }

    fn array<V: Pod + Default>(
        &mut self,
        name: &'static str,
        values: &[V],
        used: usize,
    ) -> Result<(), HarnessError> {
        let mut map: Array<_, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        for i in 0..values.len().max(used) {
            let value = values.get(i).copied().unwrap_or_default();
            map.set(i as u32, value, 0).map_err(|e| access(name, e))?;
        }
        Ok(())
    }

    fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        entries: &[(K, V)],
    ) -> Result<(), HarnessError> {
        let mut map: HashMap<_, K, V> = self
            .ebpf
            .map_mut(name)
            .and_then(|m| m.try_into().ok())
            .ok_or(HarnessError::Map(name))?;
        let keys: Vec<K> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key).map_err(|e| access(name, e))?;
        }
        for (key, value) in entries {
            map.insert(key, value, 0).map_err(|e| access(name, e))?;
        }
        Ok(())
    }

    /// Runs a packet that arrives on `ifindex` through a program once. The packet out is that of the
    /// harness's buffer until the next run.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it, as it does for fewer than 14 bytes.
    pub fn run(
        &mut self,
        program: Program,
        ifindex: u32,
        packet: &[u8],
    ) -> Result<(Action, &[u8]), HarnessError> {
        self.run_on(program, ifindex, 0, packet)
    }

    /// As [`Harness::run`], on the receive queue `queue`; the interface must have it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn run_on(
        &mut self,
        program: Program,
        ifindex: u32,
        queue: u32,
        packet: &[u8],
    ) -> Result<(Action, &[u8]), HarnessError> {
        let context = context(ifindex, queue, packet);
        let xdp: &Xdp = self
            .ebpf
            .program(program.name())
            .and_then(|p| p.try_into().ok())
            .ok_or(HarnessError::Program(program.name()))?;
        let result = xdp
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut self.out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .map_err(|source| run_error(program, packet, source))?;
        Ok((
            result.return_value.into(),
            &self.out[..result.data_size_out as usize],
        ))
    }

    /// All counters that are not zero, over all CPUs.
    ///
    /// # Panics
    ///
    /// When the map cannot be read.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<u32, u64> {
        (0..Counter::SLOTS)
            .filter_map(|i| {
                let values = self.counters.get(&i, 0).expect("COUNTERS has all slots");
                let sum: u64 = values.iter().sum();
                (sum != 0).then_some((i, sum))
            })
            .collect()
    }

    /// Takes all records out of both rings.
    pub fn records(&mut self) -> Vec<Record> {
        let mut out = Vec::new();
        self.each_record(|record| out.push(record));
        out
    }

    /// Takes all records out of both rings, one by one.
    pub fn each_record(&mut self, mut each: impl FnMut(Record)) {
        while let Some(item) = self.events.next() {
            each(match NeighbourEvent::from_bytes(&item) {
                Some(event) if item.len() == size_of::<NeighbourEvent>() => {
                    Record::Neighbour(event)
                }
                _ => Record::Garbage("NEIGHBOUR_EVENTS", item.to_vec()),
            });
        }
        while let Some(item) = self.slow.next() {
            each(match SlowHeader::from_bytes(&item) {
                Some((header, frame)) => Record::Slow(header, frame.to_vec()),
                None => Record::Garbage("SLOW_PACKETS", item.to_vec()),
            });
        }
    }

    /// Every map that user space writes, in bytes, so that two states can be compared.
    ///
    /// # Panics
    ///
    /// When a map cannot be read.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            config: self.read_array::<Config>("CONFIG", 1),
            networks: self.read_array::<Network>("NETWORKS", MAX_NETWORKS),
            tenants: self.read_array::<Tenant>("TENANTS", MAX_TENANTS),
            peers: self.read_array::<Peer>("PEERS", MAX_PEERS),
            attachments: self.read_hash::<AttachmentKey, Attachment>("ATTACHMENTS"),
            tunnels: self.read_hash::<TunnelKey, Tunnel>("TUNNELS"),
            endpoints: self.read_hash::<HostKey, Endpoint>("ENDPOINTS"),
            neighbours: self.read_hash::<HostKey, Neighbour>("NEIGHBOURS"),
            sessions: self.read_hash::<SessionKey, Session>("SESSIONS"),
            peer_addresses: self.read_hash::<Address, PeerAddress>("PEER_ADDRESSES"),
        }
    }

    fn read_array<V: Pod>(&self, name: &'static str, len: u32) -> Vec<V> {
        let map: Array<_, V> = self
            .ebpf
            .map(name)
            .and_then(|m| m.try_into().ok())
            .expect("the harness filled it");
        (0..len)
            .map(|i| map.get(&i, 0).expect("an array has all its slots"))
            .collect()
    }

    fn read_hash<K: Pod + Ord, V: Pod>(&self, name: &'static str) -> Vec<(K, V)> {
        let map: HashMap<_, K, V> = self
            .ebpf
            .map(name)
            .and_then(|m| m.try_into().ok())
            .expect("the harness filled it");
        let mut all: Vec<_> = map.iter().map(|e| e.expect("nobody deletes")).collect();
        all.sort_by_key(|e| e.0);
        all
    }

    /// Traffic counts of network `slot`, over all CPUs.
    ///
    /// # Panics
    ///
    /// When the map cannot be read.
    #[must_use]
    pub fn stats(&self, slot: u32) -> NetworkStats {
        let map: PerCpuArray<_, NetworkStats> = self
            .ebpf
            .map("NETWORK_STATS")
            .and_then(|m| m.try_into().ok())
            .expect("the object has NETWORK_STATS");
        let mut sum = NetworkStats::default();
        for value in map.get(&slot, 0).expect("slot").iter() {
            sum.tx_packets += value.tx_packets;
            sum.tx_bytes += value.tx_bytes;
            sum.rx_packets += value.rx_packets;
            sum.rx_bytes += value.rx_bytes;
        }
        sum
    }

    /// All maps for a person.
    #[must_use]
    pub fn describe(&self) -> String {
        let s = self.snapshot();
        let mut out = String::new();
        let _ = writeln!(out, "CONFIG {:?}", s.config[0]);
        for (k, v) in &s.attachments {
            let _ = writeln!(
                out,
                "ATTACHMENTS if {} vlan {}.{} -> slot {} flags {} mac {:02x?} xsk {}",
                k.ifindex, k.outer, k.inner, v.network, v.flags, v.mac, v.xsk
            );
        }
        for (i, n) in s.networks.iter().enumerate().filter(|(_, n)| n.flags != 0) {
            let _ = writeln!(
                out,
                "NETWORKS[{i}] vni {} tenant {} peer {} flags {} mtu {} gateways {} {}",
                n.vni,
                n.tenant,
                n.peer,
                n.flags,
                n.mtu,
                to_ip(&n.gateway_v4),
                to_ip(&n.gateway_v6)
            );
        }
        for (i, t) in s.tenants.iter().enumerate().filter(|(_, t)| t.epoch != 0) {
            let _ = writeln!(out, "TENANTS[{i}] mode {} epoch {}", t.mode, t.epoch);
        }
        for (i, p) in s.peers.iter().enumerate().filter(|(_, p)| p.flags != 0) {
            let _ = writeln!(
                out,
                "PEERS[{i}] if {} flags {} header {:02x?}",
                p.ifindex,
                p.flags,
                &p.header[..usize::from(p.header_len).min(70)]
            );
        }
        for (k, v) in &s.tunnels {
            let _ = writeln!(
                out,
                "TUNNELS vni {} from {} -> slot {}",
                k.vni,
                to_ip(&k.peer),
                v.network
            );
        }
        for (k, _) in &s.endpoints {
            let _ = writeln!(out, "ENDPOINTS vni {} {}", k.vni, to_ip(&k.address));
        }
        for (k, v) in &s.neighbours {
            let _ = writeln!(
                out,
                "NEIGHBOURS vni {} {} -> if {} flags {} {:02x?}",
                k.vni,
                to_ip(&k.address),
                v.ifindex,
                v.flags,
                &v.l2[..usize::from(v.l2_len).min(22)]
            );
        }
        for (k, _) in &s.sessions {
            let _ = writeln!(out, "SESSIONS {k:#010x}");
        }
        for (k, _) in &s.peer_addresses {
            let _ = writeln!(out, "PEER_ADDRESSES {}", to_ip(k));
        }
        for (i, n) in self.counters() {
            let _ = writeln!(out, "COUNTERS {} = {n}", counter_name(i));
        }
        out
    }

    /// A failure's whole story.
    #[must_use]
    pub fn story(&self, program: Program, ifindex: u32, packet: &[u8]) -> String {
        format!(
            "program {} on interface {ifindex}\npacket in, {} bytes:\n{}maps:\n{}",
            program.name(),
            packet.len(),
            dump::hex(packet),
            self.describe()
        )
    }
}

/// The maps that user space writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub config: Vec<Config>,
    pub networks: Vec<Network>,
    pub tenants: Vec<Tenant>,
    pub peers: Vec<Peer>,
    pub attachments: Vec<(AttachmentKey, Attachment)>,
    pub tunnels: Vec<(TunnelKey, Tunnel)>,
    pub endpoints: Vec<(HostKey, Endpoint)>,
    pub neighbours: Vec<(HostKey, Neighbour)>,
    pub sessions: Vec<(SessionKey, Session)>,
    pub peer_addresses: Vec<(Address, PeerAddress)>,
}

impl Snapshot {
    /// The same without the neighbours' bits that programs set.
    #[must_use]
    pub fn without_marks(mut self) -> Self {
        use appliance_common::maps::neighbour_flags::{HEARD, USED};
        for (_, neighbour) in &mut self.neighbours {
            neighbour.flags &= !(HEARD | USED);
        }
        self
    }
}

/// The stable name of counter `number`.
#[must_use]
pub fn counter_name(number: u32) -> String {
    Counter::ALL
        .iter()
        .find(|c| **c as u32 == number)
        .map_or_else(|| format!("#{number}"), |c| c.name().to_owned())
}

/// An error and what caused it.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let _ = write!(out, "\n  because: {e}");
        source = e.source();
    }
    out
}

/// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(ifindex: u32, queue: u32, packet: &[u8]) -> [u8; 24] {
    let mut context = [0u8; 24];
    context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context[16..20].copy_from_slice(&queue.to_ne_bytes());
    context
}

fn run_error(program: Program, packet: &[u8], source: ProgramError) -> HarnessError {
    HarnessError::Run {
        name: program.name(),
        len: packet.len(),
        source: Box::new(source),
    }
}

fn access(name: &'static str, source: aya::maps::MapError) -> HarnessError {
    HarnessError::Access {
        name,
        source: Box::new(source),
    }
}

fn take<T: TryFrom<aya::maps::Map>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, HarnessError> {
    ebpf.take_map(name)
        .and_then(|m| T::try_from(m).ok())
        .ok_or(HarnessError::Map(name))
}

/// Moves this thread to a network namespace with the interfaces that fixtures name. Bridges without
/// ports serve: a test run only needs an index that exists and a receive queue, and a socket one that
/// is up.
fn namespace() -> Result<(), HarnessError> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(HarnessError::Namespace)?;
    let mut batch = String::new();
    for index in [UPLINK, TRUNK, ACCESS, STRAY] {
        let _ = writeln!(
            batch,
            "link add name t{index} index {index} up numrxqueues 70 type bridge"
        );
    }
    // The way out, and the far end of it: what the kernel's FIB says to a program that asks.
    let _ = writeln!(batch, "link set lo up");
    let _ = writeln!(batch, "link set t{UPLINK} address {}", text_of(UPLINK_MAC));
    let _ = writeln!(batch, "addr add {PROVIDER}/24 dev t{UPLINK}");
    let _ = writeln!(batch, "addr add {PROVIDER6}/64 dev t{UPLINK} nodad");
    for router in ["203.0.113.1", "2001:db8:f::1"] {
        let _ = writeln!(
            batch,
            "neigh add {router} dev t{UPLINK} lladdr {} nud permanent",
            text_of(NEXT_HOP_MAC)
        );
    }
    let _ = writeln!(batch, "route add default via 203.0.113.1");
    let _ = writeln!(batch, "route add ::/0 via 2001:db8:f::1");
    let run = || -> std::io::Result<std::process::Output> {
        use std::io::Write as _;
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(batch.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|e| HarnessError::Interfaces(e.to_string()))?;
    if !output.status.success() {
        return Err(HarnessError::Interfaces(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    for family in ["ipv4", "ipv6"] {
        // As the daemon does it: questions to the FIB are asked as if from the loopback.
        let path = format!("/proc/sys/net/{family}/conf/lo/forwarding");
        std::fs::write(&path, "1").map_err(|e| HarnessError::Interfaces(format!("{path}: {e}")))?;
    }
    Ok(())
}

fn text_of(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
