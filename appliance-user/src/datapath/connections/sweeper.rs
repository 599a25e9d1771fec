//! The thread that removes expired NAT entries from the maps.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::Path,
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use appliance_common::{
    limits::MAX_TENANTS,
    maps::{Mode, Tenant},
    nat::{Direction, Flow, FlowKey, Mapping, MappingKey, Nat, OUTSIDE, TenantUsage, ticks},
};

use super::{PinnedMap, Sweep, read_array_entry};

/// Time between two passes.
const INTERVAL: Duration = Duration::from_secs(10);

/// Handle of the thread. Dropping it stops the thread.
#[derive(Debug)]
pub struct ConnectionSweeper {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ConnectionSweeper {
    /// Starts the thread on the maps pinned below `root`.
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub fn spawn(root: &Path) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let root = root.to_owned();
        let thread = std::thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || run(&root, &stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for ConnectionSweeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("connection sweeper thread panicked");
        }
    }
}

fn run(root: &Path, stopped: &mpsc::Receiver<()>) {
    let mut unused = HashSet::new();
    loop {
        match stopped.recv_timeout(INTERVAL) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        match pass(root, &mut unused) {
            Ok(PassResult::Idle) => {}
            Ok(PassResult::Swept { flows, mappings }) => {
                tracing::debug!(flows, mappings, "removed expired connections");
            }
            Err(error) => {
                tracing::error!(%error, "cannot remove expired connections; retrying in 10 s");
            }
        }
    }
}

enum PassResult {
    /// There are no entries.
    Idle,
    /// Numbers of deleted entries.
    Swept { flows: usize, mappings: usize },
}

/// The current time in the programs' ticks.
#[must_use]
pub fn ticks_now() -> u32 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec. The clock is that of bpf_ktime_get_coarse_ns, within a
    // tick of the kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    ticks(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn pass(root: &Path, unused: &mut HashSet<MappingKey>) -> io::Result<PassResult> {
    let nat: Nat = read_array_entry(root, "NAT", 0)?;
    let open = io::Error::other::<aya::maps::MapError>;
    let flows = PinnedMap::<FlowKey, Flow>::open(root, "FLOWS").map_err(open)?;
    let opening = PinnedMap::<FlowKey, Flow>::open(root, "OPENING").map_err(open)?;
    let mappings = PinnedMap::<MappingKey, Mapping>::open(root, "MAPPINGS").map_err(open)?;
    if nat.uplink == 0 && unused.is_empty() {
        // The entries of the last failover need one more pass.
        let mut any = false;
        mappings.for_each(|_, _| any = true)?;
        flows.for_each(|_, _| any = true)?;
        if !any {
            return Ok(PassResult::Idle);
        }
    }
    let mut tenants = BTreeMap::new();
    let table = PinnedMap::<u32, Tenant>::open(root, "TENANTS").map_err(open)?;
    for slot in 0..MAX_TENANTS {
        if let Some(tenant) = table.get(&slot)?
            && tenant.mode == Mode::Full as u32
        {
            tenants.insert(slot as u16 + 1, tenant);
        }
    }
    let mut sweep = Sweep::new(ticks_now(), nat.timeouts, &tenants);
    let mut deleted_flows = 0;
    let mut usages: BTreeMap<u16, TenantUsage> = BTreeMap::new();
    flows.for_each(|key, flow| {
        sweep.flow(key, flow);
        // Count it for the same tenant as the programs do.
        if flow.direction() == Direction::Original {
            let owner = if key.zone == OUTSIDE {
                flow.to_zone
            } else {
                key.zone
            };
            usages.entry(owner).or_default().connections += 1;
        }
    })?;
    for key in sweep.take_stale() {
        deleted_flows += usize::from(flows.remove(&key)?);
    }
    for key in sweep.take_expired() {
        // Read it again: a packet may have arrived since.
        let Some(flow) = flows.get(&key)? else {
            continue;
        };
        let (mut other_key, mut other) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut other_key, &mut other);
        let other = flows.get(&other_key)?;
        if sweep.is_over(key.protocol, &flow, other.as_ref()) {
            deleted_flows += usize::from(flows.remove(&key)?);
        }
    }
    opening.for_each(|key, flow| sweep.flow(key, flow))?;
    // OPENING is an LRU map, which evicts its oldest entries by itself.
    drop((sweep.take_stale(), sweep.take_expired()));
    mappings.for_each(|key, mapping| {
        sweep.mapping(key, mapping);
        if key.zone != OUTSIDE {
            usages.entry(key.zone).or_default().mappings += 1;
        }
    })?;
    // The programs only increment. Deletions below are counted in the next pass.
    let usage = PinnedMap::<u32, TenantUsage>::open(root, "TALLIES").map_err(open)?;
    for zone in tenants.keys() {
        let count = usages.get(zone).copied().unwrap_or_default();
        usage.set(&(u32::from(*zone) - 1), &count)?;
    }
    let swept = sweep.finish();
    let mut deleted_mappings = 0;
    let twice = swept.unused.intersection(unused);
    // Inner halves first: without the inner half, no connection starts by the outer half.
    let mut all: Vec<_> = twice.chain(&swept.stale).collect();
    all.sort_by_key(|key| key.zone == OUTSIDE);
    for key in all {
        deleted_mappings += usize::from(mappings.remove(key)?);
    }
    *unused = swept.unused;
    Ok(PassResult::Swept {
        flows: deleted_flows,
        mappings: deleted_mappings,
    })
}
