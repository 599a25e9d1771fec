//! Circuits in XDP: a program forwards the datagrams of circuits with both sides bound. The threads
//! of the table publish these circuits to it.
//!
//! ```text
//!   thread: bind, unbind, sweep ─▶ table ─▶ changed ─▶ Publisher ─▶ IDS, CIRCUITS ─▶ the program
//!                                                       (a renewed binding: one store into mapped memory)
//! ```
//!
//! Only the table decides: the program forwards published circuits and passes every other frame to
//! the kernel. Maps and program end with the process; the next process forwards once ends have
//! bound again.

mod links;
mod memory;
mod publish;
mod slots;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::{ProgramError, Xdp},
};
use gateway_common::maps::{
    Admission, Bucket, Circuit, Known, Listen, MAX_LISTEN, MIN_BUCKETS, MIN_CIRCUITS, Outcome,
    Port, Remote, SLOT_REUSE_DELAY, SLOTS_PER_CIRCUIT, Stats, source_rate, unbound_rate,
};

pub use links::{Interface, wanted};
use service::forwarding;
pub use service::xdp::Setting;

use memory::Memory;
pub use publish::Publisher;
use slots::Slots;

use super::rate;

/// Name of the program in the object.
const PROGRAM: &str = "circuits";

/// Why circuits cannot use XDP, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object file is missing.
    #[error("no BPF object at {}: build it with `cargo xtask build-ebpf`, or name it in \
        circuits.bpf_object", path.display())]
    NoObject { path: PathBuf },
    /// The object cannot be loaded.
    #[error("load {}: {source}; if the kernel says EPERM, run as root or with CAP_BPF, \
        CAP_NET_ADMIN and CAP_PERFMON", path.display())]
    Load {
        path: PathBuf,
        source: Box<EbpfError>,
    },
    /// The kernel refused the program.
    #[error(
        "load the program: {0}; if the kernel says EPERM, run as root or with CAP_BPF, \
         CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Program(#[source] Box<ProgramError>),
    /// The object has no such program or map.
    #[error(
        "the BPF object has no {what}: it is of another version; install the object of this version"
    )]
    Missing { what: &'static str },
    /// A map of the object has another layout.
    #[error(
        "the BPF object is of another version (map {map}: {source}); install the object of this \
         version"
    )]
    Version {
        map: &'static str,
        source: Box<MapError>,
    },
    /// A map cannot be read or written.
    #[error("{operation} map {map}: {source}")]
    Map {
        operation: &'static str,
        map: &'static str,
        source: Box<MapError>,
    },
    /// Another system call failed.
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
    /// Route lookups cannot be enabled.
    #[error(transparent)]
    Fib(#[from] forwarding::Error),
    /// No interface is configured or found.
    #[error(
        "no interface has a listen address or a default route; name the interfaces in \
         circuits.interfaces"
    )]
    NoInterface,
    /// An interface does not exist.
    #[error("there is no interface {interface:?} (circuits.interfaces)")]
    NotThere { interface: String },
    /// XDP cannot be attached.
    #[error("attach XDP to {interface} in {mode} mode: {source}. {remedy}")]
    Attach {
        interface: String,
        mode: &'static str,
        source: Box<ProgramError>,
        remedy: &'static str,
    },
    /// GRO would join datagrams before generic XDP.
    #[error(
        "GRO of {interface} joins datagrams before generic XDP sees them; disable it: `ethtool -K \
         {interface} gro off`"
    )]
    Joins { interface: String },
}

fn map_error(operation: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| {
        let differs = matches!(
            source,
            MapError::InvalidValueSize { .. } | MapError::InvalidKeySize { .. }
        );
        let source = Box::new(source);
        if differs {
            Error::Version { map, source }
        } else {
            Error::Map {
                operation,
                map,
                source,
            }
        }
    }
}

/// The declared capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub circuits: usize,
    /// Tenants, with two rate limits each.
    pub tenants: usize,
}

/// The map of buckets and its free entries.
#[derive(Debug)]
struct Buckets {
    memory: Memory<Bucket>,
    slots: Mutex<Slots>,
}

/// An entry of the map of buckets; its drop frees the entry.
#[derive(Debug)]
pub struct SharedBucket {
    buckets: Arc<Buckets>,
    place: u32,
}

impl rate::SharedBucket for SharedBucket {
    fn full_at(&self) -> &AtomicU64 {
        let offset = std::mem::offset_of!(Bucket, full_at);
        self.buckets.memory.word(self.place, offset)
    }

    fn index(&self) -> u32 {
        self.place
    }

    fn set_rate(&self, rate: u64) {
        let offset = std::mem::offset_of!(Bucket, rate);
        let word = self.buckets.memory.word(self.place, offset);
        word.store(rate, Ordering::Relaxed);
    }
}

impl Drop for SharedBucket {
    fn drop(&mut self) {
        lock(&self.buckets.slots).free(now(), self.place);
    }
}

/// The XDP program, its maps, and its interfaces.
pub struct Fast {
    object: Mutex<Ebpf>,
    ids: Mutex<HashMap<MapData, u64, u32>>,
    circuits: Memory<Circuit>,
    slots: Mutex<Slots>,
    buckets: Arc<Buckets>,
    stats: Mutex<PerCpuArray<MapData, Stats>>,
    stats_slots: Mutex<Slots>,
    counters: PerCpuArray<MapData, u64>,
    ports: Mutex<HashMap<MapData, u32, Port>>,
    known: Mutex<HashMap<MapData, u64, Known>>,
    admission: Mutex<(Array<MapData, Admission>, Admission)>,
    links: Mutex<Vec<links::Attached>>,
    seen: Mutex<links::LinkSnapshot>,
}

impl std::fmt::Debug for Fast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fast").finish_non_exhaustive()
    }
}

/// The clock of the maps and the program: nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> u64 {
    u64::try_from(super::clock().as_nanos()).unwrap_or(u64::MAX)
}

/// Locks a mutex. No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fast {
    /// Loads the program with maps for twice `size`, without attaching it: entries that are freed
    /// are not reused at once.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(object: &Path, size: Size) -> Result<Self, Error> {
        if !object.is_file() {
            return Err(Error::NoObject {
                path: object.to_owned(),
            });
        }
        let twice = |count: usize, least| {
            let twice = u32::try_from(count.saturating_mul(2)).unwrap_or(u32::MAX / 8);
            twice.clamp(least, u32::MAX / 8)
        };
        let circuits = twice(size.circuits, MIN_CIRCUITS);
        let buckets = twice(size.tenants.saturating_mul(2), MIN_BUCKETS);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("IDS", circuits)
            .map_max_entries("KNOWN", circuits)
            .map_max_entries("CIRCUITS", circuits * SLOTS_PER_CIRCUIT)
            .map_max_entries("STATS", circuits)
            .map_max_entries("BUCKETS", buckets)
            .load_file(object)
            .map_err(|source| Error::Load {
                path: object.to_owned(),
                source: Box::new(source),
            })?;
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)
            .map_err(io::Error::from)
            .map_err(|source| Error::System {
                operation: "get random bytes for the admission of unbound sources",
                source,
            })?;
        let half = |at: usize| {
            secret[at..at + 8]
                .iter()
                .fold(0, |n, byte| n << 8 | u64::from(*byte))
        };
        let admission = Admission {
            secret: [half(0), half(8)],
            source_rate: source_rate(size.circuits),
            unbound_rate: unbound_rate(size.circuits),
            complete: 1,
            ..Admission::default()
        };
        program(&mut ebpf)?
            .load()
            .map_err(|source| Error::Program(Box::new(source)))?;
        let fast = Self {
            ids: Mutex::new(typed(&mut ebpf, "IDS")?),
            circuits: memory_of(&mut ebpf, "CIRCUITS", circuits * SLOTS_PER_CIRCUIT)?,
            slots: Mutex::new(Slots::new(circuits * SLOTS_PER_CIRCUIT, SLOT_REUSE_DELAY)),
            buckets: Arc::new(Buckets {
                memory: memory_of(&mut ebpf, "BUCKETS", buckets)?,
                slots: Mutex::new(Slots::new(buckets, SLOT_REUSE_DELAY)),
            }),
            stats: Mutex::new(typed(&mut ebpf, "STATS")?),
            stats_slots: Mutex::new(Slots::new(circuits, SLOT_REUSE_DELAY)),
            counters: typed(&mut ebpf, "COUNTERS")?,
            ports: Mutex::new(typed(&mut ebpf, "PORTS")?),
            known: Mutex::new(typed(&mut ebpf, "KNOWN")?),
            admission: Mutex::new((typed(&mut ebpf, "ADMISSION")?, admission)),
            links: Mutex::new(Vec::new()),
            seen: Mutex::default(),
            object: Mutex::new(ebpf),
        };
        Ok(fast)
    }

    /// Has the program share a bucket. Returns false if all entries of the map are in use, or were
    /// until a moment ago.
    #[must_use]
    pub fn share(&self, bucket: &rate::Bucket) -> bool {
        let Some(place) = lock(&self.buckets.slots).allocate(now()) else {
            return false;
        };
        let value = Bucket {
            rate: bucket.rate(),
            depth: u64::try_from(bucket.depth().as_nanos()).unwrap_or(u64::MAX),
            ..Bucket::default()
        };
        self.buckets.memory.write(place, &value);
        let shared = SharedBucket {
            buckets: Arc::clone(&self.buckets),
            place,
        };
        bucket.share(Box::new(shared));
        true
    }

    /// The counters at an index of STATS, summed over the processors.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn stats(&self, place: u32) -> Result<Stats, Error> {
        let values = lock(&self.stats)
            .get(&place, 0)
            .map_err(map_error("read", "STATS"))?;
        Ok(values.iter().fold(Stats::default(), |a, b| Stats {
            datagrams: [0, 1].map(|n| a.datagrams[n] + b.datagrams[n]),
            bytes: [0, 1].map(|n| a.bytes[n] + b.bytes[n]),
            rate: a.rate + b.rate,
        }))
    }

    /// Frames by outcome, summed over the processors.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn outcomes(&self) -> Result<Vec<(Outcome, u64)>, Error> {
        let sums = Outcome::ALL.into_iter().map(|outcome| {
            let values = self
                .counters
                .get(&(outcome as u32), 0)
                .map_err(map_error("read", "COUNTERS"))?;
            Ok((outcome, values.iter().sum()))
        });
        sums.collect()
    }

    /// Writes the interfaces, by index, on which the program accepts and sends frames.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_ports(&self, wanted: &BTreeMap<u32, Port>) -> Result<(), Error> {
        let mut ports = lock(&self.ports);
        let present: Vec<u32> = ports.keys().filter_map(Result::ok).collect();
        for ifindex in present
            .iter()
            .filter(|ifindex| !wanted.contains_key(ifindex))
        {
            ports.remove(ifindex).map_err(map_error("write", "PORTS"))?;
        }
        for (ifindex, port) in wanted {
            if ports.get(ifindex, 0).ok() != Some(*port) {
                ports
                    .insert(ifindex, port, 0)
                    .map_err(map_error("write", "PORTS"))?;
            }
        }
        Ok(())
    }

    /// Sets the addresses at which datagrams that are not forwarded are admitted by their circuit
    /// and source. Those to other addresses are all passed.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn admit_at(&self, listen: &[SocketAddr]) -> Result<(), Error> {
        let mut admission = lock(&self.admission);
        let (map, value) = &mut *admission;
        value.listen = [Listen::default(); MAX_LISTEN];
        for (entry, address) in value.listen.iter_mut().zip(listen) {
            *entry = Listen {
                address: publish::address(address.ip()),
                port: address.port().to_be(),
                zero: 0,
                family: if address.is_ipv4() { 4 } else { 6 },
            };
        }
        map.set(0, *value, 0)
            .map_err(map_error("write", "ADMISSION"))
    }

    /// Makes a configured circuit known to the program, with the addresses of its bound sides. Its
    /// buckets stay as full as they are, but for what the program takes between the two system
    /// calls.
    fn insert_known(&self, id: u64, remotes: [Remote; 2]) {
        let inserted = {
            let mut known = lock(&self.known);
            let present = known.get(&id, 0).unwrap_or_default();
            known.insert(id, present.with_remotes(remotes), 0)
        };
        if let Err(error) = inserted {
            let mut admission = lock(&self.admission);
            let (map, value) = &mut *admission;
            if value.complete == 0 {
                return;
            }
            value.complete = 0;
            tracing::warn!(
                %error,
                "the XDP map of circuits is full: datagrams of unbound sources reach user space \
                 without a limit until the gateway restarts"
            );
            if let Err(error) = map.set(0, *value, 0) {
                tracing::error!(%error, "cannot disable the rate limit of unbound sources; some \
                    circuits cannot bind");
            }
        }
    }

    fn forget(&self, id: u64) {
        if let Err(error) = lock(&self.known).remove(&id) {
            tracing::debug!(%error, "cannot remove a circuit from the XDP map");
        }
    }

    /// Gives access to the program.
    ///
    /// # Errors
    /// When the object has no such program.
    pub fn with_program<T>(&self, what: impl FnOnce(&mut Xdp) -> T) -> Result<T, Error> {
        Ok(what(program(&mut lock(&self.object))?))
    }

    /// Takes an index of STATS and clears the counters there.
    fn take_stats(&self) -> Option<u32> {
        let place = lock(&self.stats_slots).allocate(now())?;
        let mut stats = lock(&self.stats);
        let zero = || -> Result<(), MapError> {
            let cpus = stats.get(&place, 0)?.len();
            let zero = PerCpuValues::try_from(vec![Stats::default(); cpus])?;
            stats.set(place, zero, 0)
        };
        if let Err(error) = { zero }() {
            tracing::warn!(%error, "cannot clear the XDP counters of a circuit");
        }
        Some(place)
    }

    fn free_stats(&self, place: u32) {
        lock(&self.stats_slots).free(now(), place);
    }

    /// Publishes a circuit in place of its old entry; returns the new index, or `None` if the map
    /// is full.
    fn publish(&self, circuit: &Circuit, before: Option<u32>) -> Option<u32> {
        let taken = lock(&self.slots).allocate(now());
        let Some(place) = taken else {
            if let Some(before) = before {
                self.withdraw(circuit.id, before);
            }
            return None;
        };
        self.circuits.write(place, circuit);
        if let Err(error) = lock(&self.ids).insert(circuit.id, place, 0) {
            tracing::warn!(%error, "cannot publish a circuit to XDP; it uses user space");
            lock(&self.slots).free(now(), place);
            if let Some(before) = before {
                self.withdraw(circuit.id, before);
            }
            return None;
        }
        if let Some(before) = before {
            self.end(before);
            lock(&self.slots).free(now(), before);
        }
        Some(place)
    }

    /// Writes the expiry times of a circuit.
    fn renew(&self, place: u32, until: [u64; 2]) {
        for (n, until) in until.into_iter().enumerate() {
            let offset = std::mem::offset_of!(Circuit, expires) + n * 8;
            self.circuits
                .word(place, offset)
                .store(until, Ordering::Relaxed);
        }
    }

    /// Ends the forwarding of an entry, even for a program that has just looked it up.
    fn end(&self, place: u32) {
        self.renew(place, [0; 2]);
    }

    fn withdraw(&self, id: u64, place: u32) {
        self.end(place);
        if let Err(error) = lock(&self.ids).remove(&id) {
            // The entry has expired, so that the program does not use it.
            tracing::warn!(%error, "cannot remove the XDP entry of a circuit");
        }
        lock(&self.slots).free(now(), place);
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, Error> {
    let program = ebpf
        .program_mut(PROGRAM)
        .ok_or(Error::Missing { what: PROGRAM })?;
    program
        .try_into()
        .map_err(|source| Error::Program(Box::new(source)))
}

fn typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(Error::Missing { what: name })?;
    T::try_from(map).map_err(map_error("open", name))
}

fn memory_of<T: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    count: u32,
) -> Result<Memory<T>, Error> {
    let Some(Map::Array(map)) = ebpf.take_map(name) else {
        return Err(Error::Missing { what: name });
    };
    Memory::map(&map, count).map_err(|source| Error::System {
        operation: "map the memory of a BPF map",
        source,
    })
}
