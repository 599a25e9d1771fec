//! The way through the driver: an XDP program carries what circuits with both sides bound send, and the table's threads tell it which
//! these are.
//!
//! ```text
//!   thread: bind, unbind, sweep ─▶ table ─▶ changed ─▶ Publisher ─▶ IDS, CIRCUITS ─▶ the program
//!                                                       (a renewed binding: one store into mapped memory)
//! ```
//!
//! The table stays the only one who decides: the program carries what it was told to and passes everything else up. The maps and the
//! program end with the process: what comes then comes to nobody, and to the next process once ends have bound again.

mod features;
mod links;
mod memory;
mod places;
mod publish;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::{ProgramError, Xdp},
};
use gateway_common::maps::{
    BUCKET_REUSE_DELAY, Bucket, Circuit, MIN_BUCKETS, MIN_CIRCUITS, Outcome, Port,
    SLOT_REUSE_DELAY, SLOTS_PER_CIRCUIT, Stats,
};

pub use links::{Interface, Mode, wanted};
use service::forwarding;

use memory::Memory;
use places::Places;
pub use publish::Publisher;

use super::rate;

/// The program's name in the object.
const PROGRAM: &str = "circuits";

/// Why there is no fast path, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no object file.
    #[error("no BPF object at {}: build it with `cargo xtask build-ebpf`, or name it in circuits.bpf_object", path.display())]
    NoObject {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The object could not be loaded.
    #[error("load {}: {source}; if the kernel says EPERM, run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", path.display())]
    Load {
        /// The object.
        path: PathBuf,
        /// Why.
        source: Box<EbpfError>,
    },
    /// The program was refused.
    #[error(
        "load the program: {0}; if the kernel says EPERM, run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Program(#[source] Box<ProgramError>),
    /// The object is not ours.
    #[error("the BPF object has no {what}: it is not this version's; build it again")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// The object is another version's.
    #[error(
        "the BPF object is of another version (map {map}: {source}): install the one that came with this program"
    )]
    Version {
        /// The map that differs.
        map: &'static str,
        /// How.
        source: Box<MapError>,
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
    /// The system refused something else.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel may not be asked for ways.
    #[error(transparent)]
    Fib(#[from] forwarding::Error),
    /// No interface to put the program on.
    #[error(
        "no interface has an address that is listened on, or a default route: name them in circuits.interfaces"
    )]
    NoInterface,
    /// There is no such interface.
    #[error("there is no interface {interface:?} (circuits.interfaces)")]
    NotThere {
        /// Its name.
        interface: String,
    },
    /// XDP could not be attached.
    #[error("attach XDP to {interface} in {mode} mode: {source}. {remedy}")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode.
        mode: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
        /// What to do.
        remedy: &'static str,
    },
    /// Generic XDP comes after datagrams were joined.
    #[error(
        "{interface} joins datagrams before generic XDP sees them: switch that off (`ethtool -K {interface} gro off`)"
    )]
    Joins {
        /// The interface.
        interface: String,
    },
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

/// What there has to be room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Circuits.
    pub circuits: usize,
    /// Limits of tenants.
    pub buckets: usize,
}

/// The buckets' memory, and which of them are whose.
#[derive(Debug)]
struct Buckets {
    memory: Memory<Bucket>,
    places: Mutex<Places>,
}

/// A bucket that the program draws from, too.
#[derive(Debug)]
pub struct SharedBucket {
    buckets: Arc<Buckets>,
    place: u32,
}

impl SharedBucket {
    /// When it is full again: nanoseconds of the monotonic clock.
    #[must_use]
    pub fn full_at(&self) -> &AtomicU64 {
        let offset = std::mem::offset_of!(Bucket, full_at);
        self.buckets.memory.word(self.place, offset)
    }

    /// Its place in the map.
    #[must_use]
    pub const fn place(&self) -> u32 {
        self.place
    }
}

impl Drop for SharedBucket {
    fn drop(&mut self) {
        lock(&self.buckets.places).give(now(), self.place);
    }
}

/// The program, its maps, and where it is attached.
pub struct Fast {
    object: Mutex<Ebpf>,
    ids: Mutex<HashMap<MapData, u64, u32>>,
    circuits: Memory<Circuit>,
    places: Mutex<Places>,
    buckets: Arc<Buckets>,
    stats: Mutex<PerCpuArray<MapData, Stats>>,
    stats_places: Mutex<Places>,
    counters: PerCpuArray<MapData, u64>,
    ports: Mutex<HashMap<MapData, u32, Port>>,
    links: Mutex<Vec<links::Attached>>,
    /// Circuits that there is room for.
    room: usize,
}

impl std::fmt::Debug for Fast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fast").finish_non_exhaustive()
    }
}

/// The clock of everything here and of the program: nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> u64 {
    u64::try_from(super::clock().as_nanos()).unwrap_or(u64::MAX)
}

/// Nothing that is done under one of these locks panics half way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fast {
    /// Loads the program, with room for twice as much as is asked for. Attaches nothing yet.
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
        let buckets = twice(size.buckets, MIN_BUCKETS);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("IDS", circuits)
            .map_max_entries("CIRCUITS", circuits * SLOTS_PER_CIRCUIT)
            .map_max_entries("STATS", circuits)
            .map_max_entries("BUCKETS", buckets)
            .load_file(object)
            .map_err(|source| Error::Load {
                path: object.to_owned(),
                source: Box::new(source),
            })?;
        program(&mut ebpf)?
            .load()
            .map_err(|source| Error::Program(Box::new(source)))?;
        let fast = Self {
            ids: Mutex::new(typed(&mut ebpf, "IDS")?),
            circuits: mapped(&mut ebpf, "CIRCUITS", circuits * SLOTS_PER_CIRCUIT)?,
            places: Mutex::new(Places::new(circuits * SLOTS_PER_CIRCUIT, SLOT_REUSE_DELAY)),
            buckets: Arc::new(Buckets {
                memory: mapped(&mut ebpf, "BUCKETS", buckets)?,
                places: Mutex::new(Places::new(buckets, BUCKET_REUSE_DELAY)),
            }),
            stats: Mutex::new(typed(&mut ebpf, "STATS")?),
            stats_places: Mutex::new(Places::new(circuits, SLOT_REUSE_DELAY)),
            counters: typed(&mut ebpf, "COUNTERS")?,
            ports: Mutex::new(typed(&mut ebpf, "PORTS")?),
            links: Mutex::new(Vec::new()),
            room: circuits as usize,
            object: Mutex::new(ebpf),
        };
        Ok(fast)
    }

    /// Circuits that there is room for.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.room
    }

    /// A full bucket that the program draws from, too; `None`: there is no room for one more.
    #[must_use]
    pub fn bucket(&self, rate: u64, depth: Duration) -> Option<rate::Bucket> {
        let place = lock(&self.buckets.places).take(now())?;
        let value = Bucket {
            rate,
            depth: u64::try_from(depth.as_nanos()).unwrap_or(u64::MAX),
            ..Bucket::default()
        };
        self.buckets.memory.write(place, &value);
        let shared = SharedBucket {
            buckets: Arc::clone(&self.buckets),
            place,
        };
        Some(rate::Bucket::shared(rate, depth, shared))
    }

    /// What the program did with the datagrams of the circuit that has this place, summed over the processors.
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

    /// What it did with frames, by outcome.
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

    /// Says of which interfaces, by index, frames may be the gateway's, and where they may go out: of these and no others.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_ports(&self, wanted: &BTreeMap<u32, Port>) -> Result<(), Error> {
        let mut ports = lock(&self.ports);
        let there: Vec<u32> = ports.keys().filter_map(Result::ok).collect();
        for ifindex in there.iter().filter(|ifindex| !wanted.contains_key(ifindex)) {
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

    /// Does something with the program: for tests.
    ///
    /// # Errors
    /// When there is none.
    pub fn with_program<T>(&self, what: impl FnOnce(&mut Xdp) -> T) -> Result<T, Error> {
        Ok(what(program(&mut lock(&self.object))?))
    }

    /// A place in STATS, all zero.
    fn take_stats(&self) -> Option<u32> {
        let place = lock(&self.stats_places).take(now())?;
        let mut stats = lock(&self.stats);
        let zero = || -> Result<(), MapError> {
            let cpus = stats.get(&place, 0)?.len();
            let zero = PerCpuValues::try_from(vec![Stats::default(); cpus])?;
            stats.set(place, zero, 0)
        };
        if let Err(error) = { zero }() {
            tracing::warn!(%error, "a circuit's counters could not be cleared");
        }
        Some(place)
    }

    fn give_stats(&self, place: u32) {
        lock(&self.stats_places).give(now(), place);
    }

    /// Has the program carry a circuit: `None` if there is no room.
    fn publish(&self, circuit: &Circuit, before: Option<u32>) -> Option<u32> {
        let taken = lock(&self.places).take(now());
        let Some(place) = taken else {
            if let Some(before) = before {
                self.withdraw(circuit.id, before);
            }
            return None;
        };
        self.circuits.write(place, circuit);
        if let Err(error) = lock(&self.ids).insert(circuit.id, place, 0) {
            tracing::warn!(%error, "a circuit goes through user space: the program could not be told of it");
            lock(&self.places).give(now(), place);
            if let Some(before) = before {
                self.withdraw(circuit.id, before);
            }
            return None;
        }
        if let Some(before) = before {
            self.end(before);
            lock(&self.places).give(now(), before);
        }
        Some(place)
    }

    /// Renews a circuit's bindings.
    fn renew(&self, place: u32, until: [u64; 2]) {
        for (n, until) in until.into_iter().enumerate() {
            let offset = std::mem::offset_of!(Circuit, expires) + n * 8;
            self.circuits
                .word(place, offset)
                .store(until, Ordering::Relaxed);
        }
    }

    /// From now on it is carried no more, whoever has found it.
    fn end(&self, place: u32) {
        self.renew(place, [0; 2]);
    }

    fn withdraw(&self, id: u64, place: u32) {
        self.end(place);
        if let Err(error) = lock(&self.ids).remove(&id) {
            // It has ended all the same.
            tracing::warn!(%error, "a circuit's entry could not be removed");
        }
        lock(&self.places).give(now(), place);
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

fn mapped<T: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    count: u32,
) -> Result<Memory<T>, Error> {
    let Some(Map::Array(map)) = ebpf.take_map(name) else {
        return Err(Error::Missing { what: name });
    };
    Memory::map(&map, count).map_err(|source| Error::System {
        operation: "map the program's memory",
        source,
    })
}
