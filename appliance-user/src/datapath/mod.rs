//! The data path: the XDP programs, their links and their maps, pinned so that they outlive this
//! process.
//!
//! For: loading the programs, attaching them to interfaces, and reading and writing the maps.
//! Never: a decision about the contents of the maps; `reconcile` computes them.
//!
//! ```text
//!   config, state, underlay ─▶ reconcile ─ MapUpdate ─▶ maps ─▶ ┌ maps ┐ ◀─ load ── BPF object
//!   counters, rings, trace ◀──────────────────────────────────── │ XDP  │
//!   NAT entries ◀── connections (sweeper thread, list) ────────▶ └ links┘ ◀─ links ── interfaces
//! ```
//!
//! The pins, by schema version:
//!
//! ```text
//!   <pin_dir>/v<schema>/maps/<MAP>                          every map
//!   <pin_dir>/v<schema>/programs/<program>-<digest>         every program, by the object's SHA-256
//!   <pin_dir>/v<schema>/links/<ifname>-<ifindex>-<mode>     the link of each interface
//! ```
//!
//! A daemon that finds pins adopts the maps. It uses the pinned programs again if they were loaded
//! from the same object file, else it loads its own with the maps. It replaces the program of each
//! link in one step (`BPF_LINK_UPDATE`), so that an interface is never without a program.

mod contents;
mod error;
mod links;
mod load;
mod log;
mod maps;
pub mod nat;
mod pins;
mod programs;
pub mod reconcile;
mod resize;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use appliance_common::{
    counters::Counter,
    events::{TraceEvent, TraceFilter, Traced},
    maps::{HostKey, Neighbour, NetworkStats},
    nat::{
        FRAGMENT_TICKS, Flow, FlowKey, MachineKey, Nat, NatAddress, PublicAddress, Rule, RuleKey,
        RuleSlot, SourceKey, TenantQuota,
    },
};
use aya::{
    maps::{
        Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, PerCpuValues, ProgramArray,
        RingBuf, XskMap,
    },
    programs::{TestRun as _, TestRunAttrs, TestRunOptions},
};

use crate::config::Kind;
use error::{map_error, program_error};
use load::{load, set_tail_calls, typed};
use log::ProgramLog;
use programs::Programs;
use resize::Resize;

pub use contents::{MapContents, MapUpdate};
pub use error::Error;
pub use links::Attached;
pub use pins::{detach, root};

/// The loaded programs, the open maps and the attached interfaces.
pub struct Datapath {
    root: PathBuf,
    /// Path of the BPF object.
    path: PathBuf,
    /// Room of the maps of translation.
    room: TenantQuota,
    programs: Programs,
    log: ProgramLog,
    adopted: bool,
    fragments: HashMap<MapData, FlowKey, Flow>,
    trace: Array<MapData, TraceFilter>,
    traced: PerCpuArray<MapData, Traced>,
    trace_events: RingBuf<MapData>,
    config: Array<MapData, appliance_common::maps::Config>,
    attachments:
        HashMap<MapData, appliance_common::maps::AttachmentKey, appliance_common::maps::Attachment>,
    networks: Array<MapData, appliance_common::maps::Network>,
    tenants: Array<MapData, appliance_common::maps::Tenant>,
    peers: Array<MapData, appliance_common::maps::Peer>,
    tunnels: HashMap<MapData, appliance_common::maps::TunnelKey, appliance_common::maps::Tunnel>,
    endpoints: HashMap<MapData, HostKey, appliance_common::maps::Endpoint>,
    neighbours: HashMap<MapData, HostKey, Neighbour>,
    counters: PerCpuArray<MapData, u64>,
    network_stats: PerCpuArray<MapData, NetworkStats>,
    sockets: XskMap<MapData>,
    sessions: HashMap<MapData, appliance_common::maps::SessionKey, appliance_common::maps::Session>,
    peer_addresses:
        HashMap<MapData, appliance_common::addr::Address, appliance_common::maps::PeerAddress>,
    routes: LpmTrie<MapData, appliance_common::maps::RouteKey, appliance_common::maps::Route>,
    policies: HashMap<MapData, appliance_common::maps::PolicyKey, appliance_common::maps::Policy>,
    nat: Array<MapData, Nat>,
    nat_addresses: Array<MapData, NatAddress>,
    quotas: Array<MapData, TenantQuota>,
    public: HashMap<MapData, appliance_common::addr::Address, PublicAddress>,
    rules: Array<MapData, Rule>,
    rule_ports: LpmTrie<MapData, RuleKey, RuleSlot>,
    rule_sources: LpmTrie<MapData, SourceKey, RuleSlot>,
    one_to_one: HashMap<MapData, MachineKey, RuleSlot>,
    /// Kept open: the kernel empties a program array that is neither open nor pinned.
    _tail_calls: ProgramArray<MapData>,
    attached: BTreeMap<String, Attached>,
}

/// The ring buffers, for the event loop.
pub struct Rings {
    /// `NEIGHBOUR_EVENTS`: ARP and neighbour discovery messages of hosts.
    pub neighbours: RingBuf<MapData>,
    /// `SLOW_PACKETS`: packets for the slow path.
    pub slow: RingBuf<MapData>,
}

impl Datapath {
    /// Loads the programs with the maps pinned below `pin_dir`. Missing maps are created and
    /// pinned; the maps of NAT connections and mappings get the `room`. Attaches no program.
    ///
    /// Pinned maps of another size are replaced, and their entries are copied. The last ring is
    /// `NAT_EVENTS`, of new mappings.
    ///
    /// # Errors
    /// When an operation fails. Pins of an earlier process are then unchanged.
    pub fn open(
        pin_dir: &Path,
        object: &Path,
        room: TenantQuota,
    ) -> Result<(Self, Rings, RingBuf<MapData>), Error> {
        if !object.is_file() {
            return Err(Error::NoObject {
                path: object.to_owned(),
            });
        }
        let root = root(pin_dir);
        for dir in pins::DIRECTORIES {
            pins::make_dir(&root.join(dir))?;
        }
        let adopted = root.join("maps").join("CONFIG").exists();
        let resized = Resize::begin(&root, room)?;
        let mut loaded = load(&root, object, room, false)?;
        let log = ProgramLog::open(&mut loaded.object)?;
        resized.copy()?;
        // From now on the attached programs translate with the new maps, too.
        let tail_calls = set_tail_calls(&mut loaded)?;
        resized.finish()?;
        let o = &mut loaded.object;
        let rings = Rings {
            neighbours: typed(o, "NEIGHBOUR_EVENTS")?,
            slow: typed(o, "SLOW_PACKETS")?,
        };
        let nat_ring = typed(o, "NAT_EVENTS")?;
        let mut this = Self {
            sockets: typed(o, "XSKS")?,
            sessions: typed(o, "SESSIONS")?,
            peer_addresses: typed(o, "PEER_ADDRESSES")?,
            config: typed(o, "CONFIG")?,
            attachments: typed(o, "ATTACHMENTS")?,
            networks: typed(o, "NETWORKS")?,
            tenants: typed(o, "TENANTS")?,
            peers: typed(o, "PEERS")?,
            tunnels: typed(o, "TUNNELS")?,
            endpoints: typed(o, "ENDPOINTS")?,
            neighbours: typed(o, "NEIGHBOURS")?,
            counters: typed(o, "COUNTERS")?,
            network_stats: typed(o, "NETWORK_STATS")?,
            routes: typed(o, "ROUTES")?,
            policies: typed(o, "POLICIES")?,
            nat: typed(o, "NAT")?,
            nat_addresses: typed(o, "NAT_ADDRESSES")?,
            quotas: typed(o, "QUOTAS")?,
            public: typed(o, "PUBLIC")?,
            rules: typed(o, "RULES")?,
            rule_ports: typed(o, "RULE_PORTS")?,
            rule_sources: typed(o, "RULE_SOURCES")?,
            one_to_one: typed(o, "ONE_TO_ONE")?,
            _tail_calls: tail_calls,
            fragments: typed(o, "FRAGMENTS")?,
            trace: typed(o, "TRACE")?,
            traced: typed(o, "TRACED")?,
            trace_events: typed(o, "TRACE_EVENTS")?,
            root,
            path: object.to_owned(),
            room,
            programs: loaded.programs,
            log,
            adopted,
            attached: BTreeMap::new(),
        };
        this.check_shape()?;
        // A packet trace of an earlier process has ended.
        this.set_trace_filter(&TraceFilter::default())?;
        // Sessions end with their process, which alone has the keys.
        this.remove_sessions()?;
        Ok((this, rings, nat_ring))
    }

    /// Whether the maps of an earlier process were adopted.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether the programs of an earlier process are used again.
    #[must_use]
    pub const fn programs_adopted(&self) -> bool {
        self.programs.adopted()
    }

    /// Directory of the pins of this schema version.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Interfaces with an attached program, by name.
    #[must_use]
    pub const fn attached(&self) -> &BTreeMap<String, Attached> {
        &self.attached
    }

    /// The kernel's ids of the programs that interfaces run, which its tracepoints name.
    ///
    /// # Errors
    /// When the kernel does not report them.
    pub fn program_ids(&self) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        for kind in [Kind::Access, Kind::Uplink, Kind::Combined] {
            let name = kind.program();
            let info = self.programs.get(name)?.info();
            ids.push(info.map_err(|source| program_error(name, source))?.id());
        }
        Ok(ids)
    }

    /// Replaces the programs by those with packet tracing, or by those without. Each link changes
    /// in one step, so that an interface is never without a program.
    ///
    /// # Errors
    /// When the programs cannot be loaded or replaced. Replaced ones are then restored.
    pub fn set_tracing(&mut self, tracing: bool) -> Result<(), Error> {
        let mut loaded = load(&self.root, &self.path, self.room, tracing)?;
        let log = ProgramLog::open(&mut loaded.object)?;
        // Clear the mark of the last traced packet: until all programs are replaced, programs
        // without tracing tail-call programs with tracing.
        self.clear_traced()?;
        let tail_calls = set_tail_calls(&mut loaded)?;
        if let Err(error) = self.replace_programs(&mut loaded.programs) {
            let mut before = load(&self.root, &self.path, self.room, !tracing)?;
            self.log = ProgramLog::open(&mut before.object)?;
            self._tail_calls = set_tail_calls(&mut before)?;
            self.replace_programs(&mut before.programs)?;
            self.programs = before.programs;
            return Err(error);
        }
        self._tail_calls = tail_calls;
        self.flush_program_log();
        self.log = log;
        self.programs = loaded.programs;
        Ok(())
    }

    /// Forwards what the programs have logged since the last call to the daemon's log. They log at
    /// most one line a second from each CPU and reason; what they log meanwhile waits in a ring.
    pub fn flush_program_log(&mut self) {
        self.log.flush();
    }

    /// Whether `FRAGMENTS` has a fresh entry of the datagram's first fragment at `now`, in ticks,
    /// so that its other fragments can be translated.
    #[must_use]
    pub fn has_fragment_state(&self, key: &FlowKey, now: u32) -> bool {
        self.fragments.get(key, 0).is_ok_and(|flow| {
            let age = now.wrapping_sub(flow.last_seen) as i32;
            flow.entry_hash == key.entry_hash() && age <= FRAGMENT_TICKS as i32
        })
    }

    /// Runs a frame through the program of the interface `ifindex`, as if it had just been
    /// received. The kernel carries out the program's verdict (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux
    /// 5.18).
    ///
    /// # Errors
    /// When the interface has no program, or the kernel refuses.
    pub fn reinject(&mut self, ifindex: u32, frame: &[u8]) -> Result<(), Error> {
        let kind = self
            .attached
            .values()
            .find(|attached| attached.ifindex == ifindex)
            .map(|attached| attached.kind)
            .ok_or(Error::Missing {
                what: "program on the interface",
            })?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        };
        self.programs
            .entry(kind)?
            .test_run(options)
            .map(drop)
            .map_err(|source| program_error(kind.program(), source))
    }

    fn clear_traced(&mut self) -> Result<(), Error> {
        let failed = |e: MapError| map_error("write", "TRACED", e);
        let cpus = self.traced.get(&0, 0).map_err(failed)?.len();
        let none = PerCpuValues::try_from(vec![Traced::default(); cpus])
            .map_err(|e| failed(MapError::from(e)))?;
        self.traced.set(0, none, 0).map_err(failed)
    }

    /// Sets the filter of packets to trace.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_trace_filter(&mut self, filter: &TraceFilter) -> Result<(), Error> {
        self.trace
            .set(0, *filter, 0)
            .map_err(|e| map_error("write", "TRACE", e))
    }

    /// The next event of a traced packet, if there is one.
    pub fn next_trace_event(&mut self) -> Option<TraceEvent> {
        let record = self.trace_events.next()?;
        TraceEvent::from_bytes(&record)
    }

    /// Packets by counter, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        let all = Counter::ALL.iter();
        all.map(|counter| Ok((*counter, self.counter(*counter)?)))
            .collect()
    }

    /// A counter of the programs, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counter(&self, counter: Counter) -> Result<u64, Error> {
        let values = self
            .counters
            .get(&(counter as u32), 0)
            .map_err(|e| map_error("read", "COUNTERS", e))?;
        Ok(values.iter().sum())
    }

    /// Traffic of the network in `slot`, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn network_stats(&self, slot: u32) -> Result<NetworkStats, Error> {
        let values = self
            .network_stats
            .get(&slot, 0)
            .map_err(|e| map_error("read", "NETWORK_STATS", e))?;
        Ok(values
            .iter()
            .fold(NetworkStats::default(), |a, b| NetworkStats {
                tx_packets: a.tx_packets + b.tx_packets,
                tx_bytes: a.tx_bytes + b.tx_bytes,
                rx_packets: a.rx_packets + b.rx_packets,
                rx_bytes: a.rx_bytes + b.rx_bytes,
            }))
    }
}
