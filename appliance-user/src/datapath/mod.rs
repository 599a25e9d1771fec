//! The programs, their links and their maps, pinned so that they outlive this process.
//!
//! ```text
//!   <pin_dir>/v<schema>/maps/<MAP>                     every map
//!   <pin_dir>/v<schema>/links/<ifname>-<ifindex>-<mode>   a link per interface
//! ```
//!
//! A daemon that finds pins adopts the maps, loads its own programs over them, and replaces the program
//! on each link in one step (BPF_LINK_UPDATE): no packet goes without a program.

pub mod connections;
mod links;
mod maps;
pub mod reconcile;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use appliance_common::{
    counters::Counter,
    events::{TraceEvent, TraceFilter, Traced},
    maps::{HostKey, Jump, Neighbour, NetworkStats, SCHEMA_VERSION},
    nat,
    nat::{FRAGMENT_TICKS, Flow, FlowKey},
};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, ProgramArray,
        RingBuf, XskMap,
    },
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, links::LinkError},
};

use self::reconcile::{MapContents, MapUpdate};
use crate::config::Kind;

pub use links::{Attached, Mode};

/// Every map, by its name in the object, but for `SCRATCH`: that is a program's own, of the same version.
const MAPS: [&str; 39] = [
    "CONFIG",
    "ATTACHMENTS",
    "NETWORKS",
    "TENANTS",
    "PEERS",
    "TUNNELS",
    "ENDPOINTS",
    "NEIGHBOURS",
    "COUNTERS",
    "NETWORK_STATS",
    "NEIGHBOUR_EVENTS",
    "SLOW_PACKETS",
    "XSKS",
    "SESSIONS",
    "HANDSHAKE_SOURCES",
    "HANDSHAKE_BUDGET",
    "PEER_ADDRESSES",
    "JUMPS",
    "ROUTES",
    "POLICIES",
    "ICMP_BUDGET",
    "NAT",
    "NAT_ADDRESSES",
    "SHARES",
    "TALLIES",
    "PUBLIC",
    "RULES",
    "RULE_PORTS",
    "RULE_SOURCES",
    "ONE_TO_ONE",
    "FLOWS",
    "OPENING",
    "MAPPINGS",
    "FRAGMENTS",
    // Of no use to anybody else, and shared all the same: while programs are replaced, those of before go on in
    // those of after.
    "SCRATCH",
    "PASSED",
    "TRACE",
    "TRACED",
    "TRACE_EVENTS",
];

/// What failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no object file.
    #[error("no BPF object at {}: build it with `cargo xtask build-ebpf`, or name it in appliance.bpf_object", path.display())]
    NoObject {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The pin directory is not on a BPF file system.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or set appliance.pin_dir below it", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("load {}: {source}; if the kernel says EPERM, run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", path.display())]
    Load {
        /// The object.
        path: PathBuf,
        /// Why.
        source: Box<EbpfError>,
    },
    /// A program of the object is missing or was refused.
    #[error("program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object is not ours.
    #[error("the BPF object has no {what}: it is not this version's; build it again")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// A map could not be read or written.
    #[error("{operation} map {map}: {source}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// Its name.
        map: &'static str,
        /// Why it failed.
        source: Box<MapError>,
    },
    /// A map that was found pinned has another shape.
    #[error(
        "the pinned map {map} is of another shape than this version's: stop traffic and remove it with `causeway-appliance detach --config FILE`"
    )]
    Shape {
        /// Its name.
        map: &'static str,
    },
    /// A link operation failed.
    #[error("{operation} on {interface}: {source}")]
    Link {
        /// What was tried.
        operation: &'static str,
        /// On which interface.
        interface: String,
        /// Why it failed.
        source: Box<LinkError>,
    },
    /// XDP could not be attached.
    #[error("attach XDP to {interface} in {mode} mode: {source}. {remedy}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode asked for.
        mode: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
        /// What to do.
        remedy: &'static str,
    },
}

/// The data path of this appliance.
pub struct Datapath {
    root: PathBuf,
    path: PathBuf,
    connections: u32,
    object: Ebpf,
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
    nat: Array<MapData, nat::Nat>,
    nat_addresses: Array<MapData, nat::NatAddress>,
    shares: Array<MapData, nat::TenantQuota>,
    public: HashMap<MapData, appliance_common::addr::Address, nat::PublicAddress>,
    rules: Array<MapData, nat::Rule>,
    rule_ports: LpmTrie<MapData, nat::RuleKey, nat::RuleSlot>,
    rule_sources: LpmTrie<MapData, nat::SourceKey, nat::RuleSlot>,
    one_to_one: HashMap<MapData, nat::MachineKey, nat::RuleSlot>,
    /// The kernel empties it when it is neither open nor pinned.
    _jumps: ProgramArray<MapData>,
    attached: BTreeMap<String, Attached>,
}

/// The rings, for the loop that waits on them.
pub struct Rings {
    /// Hosts heard.
    pub neighbours: RingBuf<MapData>,
    /// Packets of the slow path.
    pub slow: RingBuf<MapData>,
}

/// Where this layout's pins are.
#[must_use]
pub fn root(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{SCHEMA_VERSION}"))
}

impl Datapath {
    /// Loads the programs over the maps pinned below `pin_dir`, which are made where they are
    /// missing, with room for that many connections. Attaches nothing yet.
    ///
    /// # Errors
    /// [`Error`]; what was pinned before is as it was.
    pub fn open(pin_dir: &Path, object: &Path, connections: u32) -> Result<(Self, Rings), Error> {
        if !object.is_file() {
            return Err(Error::NoObject {
                path: object.to_owned(),
            });
        }
        let root = root(pin_dir);
        let maps = root.join("maps");
        let links = root.join("links");
        for dir in [&maps, &links] {
            make_dir(dir)?;
        }
        let adopted = maps.join("CONFIG").exists();
        let mut object_loaded = load(&root, object, connections, false)?;
        let jumps = jumps(&mut object_loaded)?;
        let o = &mut object_loaded;
        let rings = Rings {
            neighbours: typed(o, "NEIGHBOUR_EVENTS")?,
            slow: typed(o, "SLOW_PACKETS")?,
        };
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
            shares: typed(o, "SHARES")?,
            public: typed(o, "PUBLIC")?,
            rules: typed(o, "RULES")?,
            rule_ports: typed(o, "RULE_PORTS")?,
            rule_sources: typed(o, "RULE_SOURCES")?,
            one_to_one: typed(o, "ONE_TO_ONE")?,
            _jumps: jumps,
            fragments: typed(o, "FRAGMENTS")?,
            trace: typed(o, "TRACE")?,
            traced: typed(o, "TRACED")?,
            trace_events: typed(o, "TRACE_EVENTS")?,
            root,
            path: object.to_owned(),
            connections,
            object: object_loaded,
            adopted,
            attached: BTreeMap::new(),
        };
        this.check_shape(connections)?;
        // Whoever followed packets through the programs of before is gone.
        this.set_trace_filter(&TraceFilter::default())?;
        // Sessions end with the process that made them: their keys are nowhere else.
        this.forget_sessions()?;
        Ok((this, rings))
    }

    /// Whether maps of an earlier process were found.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Where the pins are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Interfaces with a program, by name.
    #[must_use]
    pub const fn attached(&self) -> &BTreeMap<String, Attached> {
        &self.attached
    }

    /// Puts programs that follow packets in the place of those that do not, or these back: each in one step, and no
    /// packet goes without a program.
    ///
    /// # Errors
    /// When they cannot be loaded or put in place; those of before are then put back where they were not replaced.
    pub fn set_tracing(&mut self, following: bool) -> Result<(), Error> {
        let mut object = load(&self.root, &self.path, self.connections, following)?;
        // What the last packet of an earlier time left: until every program is replaced, those that do not follow go
        // on in those that do.
        self.forget_traced()?;
        let jumps = jumps(&mut object)?;
        if let Err(error) = self.put_in_place(&mut object) {
            let mut before = load(&self.root, &self.path, self.connections, !following)?;
            self._jumps = self::jumps(&mut before)?;
            self.put_in_place(&mut before)?;
            self.object = before;
            return Err(error);
        }
        self._jumps = jumps;
        self.object = object;
        Ok(())
    }

    /// Whether the first fragment of a datagram was translated not long before `now`, in ticks, so that the others can
    /// be.
    #[must_use]
    pub fn has_fragment_state(&self, key: &FlowKey, now: u32) -> bool {
        self.fragments.get(key, 0).is_ok_and(|flow| {
            let age = now.wrapping_sub(flow.last_seen) as i32;
            flow.tag == key.tag() && age <= FRAGMENT_TICKS as i32
        })
    }

    /// Runs a frame through the program of the interface it came in on, as if it came just now, and does with it what
    /// the program says (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18).
    ///
    /// # Errors
    /// When no program is there, or the kernel refuses.
    pub fn reinject(&mut self, ifindex: u32, frame: &[u8]) -> Result<(), Error> {
        let kind = self
            .attached
            .values()
            .find(|attached| attached.ifindex == ifindex)
            .map(|attached| attached.kind)
            .ok_or(Error::Missing {
                what: "program on the interface",
            })?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::default()
        };
        program(&mut self.object, kind)?
            .test_run(options)
            .map(drop)
            .map_err(|source| Error::Program {
                program: kind.program(),
                source: Box::new(source),
            })
    }

    fn forget_traced(&mut self) -> Result<(), Error> {
        let failed = |e: MapError| map_error("write", "TRACED", e);
        let cpus = self.traced.get(&0, 0).map_err(failed)?.len();
        let none = PerCpuValues::try_from(vec![Traced::default(); cpus])
            .map_err(|e| failed(MapError::from(e)))?;
        self.traced.set(0, none, 0).map_err(failed)
    }

    /// Says which packets are followed.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_trace_filter(&mut self, filter: &TraceFilter) -> Result<(), Error> {
        self.trace
            .set(0, *filter, 0)
            .map_err(|e| map_error("write", "TRACE", e))
    }

    /// The next step of a packet that is followed, if there is one.
    pub fn next_trace_event(&mut self) -> Option<TraceEvent> {
        let record = self.trace_events.next()?;
        TraceEvent::from_bytes(&record)
    }

    /// Packets by counter, summed over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self
                    .counters
                    .get(&(*counter as u32), 0)
                    .map_err(|e| map_error("read", "COUNTERS", e))?;
                Ok((*counter, values.iter().sum()))
            })
            .collect()
    }

    /// Traffic of the network in a slot, summed over the CPUs.
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

/// The bits that the maps and links of an appliance were pinned as are removed: forwarding ends.
///
/// # Errors
/// When a pin cannot be removed; what is left can be removed by calling again.
pub fn detach(pin_dir: &Path) -> Result<usize, Error> {
    let root = root(pin_dir);
    let mut removed = 0;
    for root in other_roots(&root).into_iter().chain([root]) {
        removed += remove_root(&root)?;
    }
    Ok(removed)
}

/// Where versions with other layouts keep theirs, beside `root`.
fn other_roots(root: &Path) -> Vec<PathBuf> {
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix('v'))
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    root.parent()
        .and_then(|dir| fs::read_dir(dir).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path != root && is_version(path))
        .collect()
}

/// Removes one version's pins; how many there were.
fn remove_root(root: &Path) -> Result<usize, Error> {
    let mut removed = 0;
    for dir in ["links", "maps"] {
        let dir = root.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(io_error("list", &dir, source)),
        };
        for entry in entries.flatten() {
            fs::remove_file(entry.path())
                .map_err(|source| io_error("remove", &entry.path(), source))?;
            removed += 1;
        }
        fs::remove_dir(&dir).map_err(|source| io_error("remove", &dir, source))?;
    }
    if root.exists() {
        fs::remove_dir(root).map_err(|source| io_error("remove", root, source))?;
    }
    Ok(removed)
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn map_error(operation: &'static str, map: &'static str, source: MapError) -> Error {
    Error::Map {
        operation,
        map,
        source: Box::new(source),
    }
}

/// Makes a directory of pins and sees that it is on a BPF file system.
fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| {
        // On sysfs, where no bpffs is mounted, mkdir says EPERM.
        if source.kind() == io::ErrorKind::PermissionDenied {
            Error::NotBpffs {
                path: dir.to_owned(),
            }
        } else {
            io_error("make", dir, source)
        }
    })?;
    let stat =
        nix::sys::statfs::statfs(dir).map_err(|source| io_error("look at", dir, source.into()))?;
    if stat.filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC {
        return Err(Error::NotBpffs {
            path: dir.to_owned(),
        });
    }
    Ok(())
}

/// Loads the programs over the maps of `root`, ready to be put in place; those that follow packets, or those that
/// do not.
fn load(root: &Path, object: &Path, connections: u32, following: bool) -> Result<Ebpf, Error> {
    let maps = root.join("maps");
    let paths: Vec<PathBuf> = MAPS.iter().map(|name| maps.join(name)).collect();
    let following = u8::from(following);
    let mut loader = EbpfLoader::new();
    for (name, path) in MAPS.iter().zip(&paths) {
        loader.map_pin_path(name, path.as_path());
    }
    loader.map_max_entries(self::maps::CONNECTIONS, 2 * connections);
    loader.override_global("TRACING", &following, true);
    let mut loaded = loader.load_file(object).map_err(|source| Error::Load {
        path: object.to_owned(),
        source: Box::new(source),
    })?;
    verify(&mut loaded)?;
    Ok(loaded)
}

/// Has the kernel take all programs, beside each other: to verify one takes it some tenths of a second, and after a crash nothing encrypted
/// goes on before.
fn verify(object: &mut Ebpf) -> Result<(), Error> {
    let entries = [Kind::Access, Kind::Uplink, Kind::Combined].map(Kind::program);
    let wanted = entries.into_iter().chain(Jump::ALL.map(|(_, name)| name));
    let mut missing: Vec<&'static str> = wanted.collect();
    std::thread::scope(|scope| {
        let mut loading = Vec::new();
        for (name, program) in object.programs_mut() {
            let Some(at) = missing.iter().position(|wanted| *wanted == name) else {
                continue;
            };
            let load = move || <&mut Xdp>::try_from(program)?.load();
            loading.push((missing.swap_remove(at), scope.spawn(load)));
        }
        for (program, thread) in loading {
            let loaded = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            loaded.map_err(|source| Error::Program {
                program,
                source: Box::new(source),
            })?;
        }
        Ok(())
    })?;
    match missing.first() {
        Some(what) => Err(Error::Missing { what }),
        None => Ok(()),
    }
}

/// A program of the object.
fn program(object: &mut Ebpf, kind: Kind) -> Result<&mut Xdp, Error> {
    let name = kind.program();
    object
        .program_mut(name)
        .ok_or(Error::Missing { what: name })?
        .try_into()
        .map_err(|source| Error::Program {
            program: name,
            source: Box::new(source),
        })
}

/// Puts the programs that others go on in where those find them. The programs of an earlier
/// process go on in them as well, from here on: both are of one layout.
fn jumps(object: &mut Ebpf) -> Result<ProgramArray<MapData>, Error> {
    let failed = |program, source| Error::Program {
        program,
        source: Box::new(source),
    };
    let mut jumps: ProgramArray<MapData> = typed(object, "JUMPS")?;
    for (jump, name) in Jump::ALL {
        let program: &mut Xdp = object
            .program_mut(name)
            .ok_or(Error::Missing { what: name })?
            .try_into()
            .map_err(|source| failed(name, source))?;
        let fd = program.fd().map_err(|source| failed(name, source))?;
        jumps
            .set(jump as u32, fd, 0)
            .map_err(|e| map_error("write", "JUMPS", e))?;
    }
    Ok(jumps)
}

/// A map of the object, as what it holds.
fn typed<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = object.take_map(name).ok_or(Error::Missing { what: name })?;
    T::try_from(map).map_err(|source| map_error("open", name, source))
}

impl Datapath {
    /// Does writes of the reconciler, in order; the first that fails ends it.
    ///
    /// # Errors
    /// Which map refused. `tables` then says what the maps hold.
    pub fn write(&mut self, tables: &mut MapContents, writes: &[MapUpdate]) -> Result<(), Error> {
        for write in writes {
            self.write_one(write)?;
            tables.apply(write);
        }
        Ok(())
    }
}
