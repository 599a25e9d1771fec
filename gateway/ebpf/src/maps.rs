//! All maps of the gateway: key, value, writer, size. `CIRCUITS` and `BUCKETS` are mapped into the
//! gateway's memory. The configuration sets all sizes but those of `COUNTERS` and `PORTS`.
//!
//! For: the one definition of each map. Never: a lookup, a decision; imports nothing of this crate.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use gateway_common::maps::{
    Admission, Bucket, Circuit, Known, MAX_PORTS, MIN_BUCKETS, MIN_CIRCUITS, Outcome, Port,
    SLOTS_PER_CIRCUIT, SOURCE_BUCKETS, Stats,
};

/// Circuit ID, as on the wire, to slot in [`CIRCUITS`]. Written by user space.
#[map]
pub static IDS: HashMap<u64, u32> = HashMap::with_max_entries(MIN_CIRCUITS, 0);

/// Circuits with both sides bound. Written by user space.
#[map]
pub static CIRCUITS: Array<Circuit> =
    Array::with_max_entries(SLOTS_PER_CIRCUIT * MIN_CIRCUITS, BPF_F_MMAPABLE);

/// Rate limits of tenants. Written by user space and by the program.
#[map]
pub static BUCKETS: Array<Bucket> = Array::with_max_entries(MIN_BUCKETS, BPF_F_MMAPABLE);

/// Traffic by circuit. Written by the program.
#[map]
pub static STATS: PerCpuArray<Stats> = PerCpuArray::with_max_entries(MIN_CIRCUITS, 0);

/// Configured circuits, by ID as on the wire, with the addresses of bound sides and the buckets of
/// what is not forwarded. Written by user space; the buckets by the program.
#[map]
pub static KNOWN: HashMap<u64, Known> = HashMap::with_max_entries(MIN_CIRCUITS, 0);

/// Bounds on the datagrams that are not forwarded and pass to user space. Written by user space.
#[map]
pub static ADMISSION: Array<Admission> = Array::with_max_entries(1, 0);

/// When the bucket of a source that is not bound is full again, nanoseconds; the last one is that
/// of all of them. Written by the program.
#[map]
pub static SOURCES: Array<u64> = Array::with_max_entries(SOURCE_BUCKETS + 1, 0);

/// Frames by [`Outcome`]. Written by the program.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Outcome::SLOTS, 0);

/// Interfaces by index. Written by user space.
#[map]
pub static PORTS: HashMap<u32, Port> = HashMap::with_max_entries(MAX_PORTS, 0);
