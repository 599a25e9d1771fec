//! The thread that gives back the places of connections that are over.

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

/// Between two passes.
const EVERY: Duration = Duration::from_secs(10);

/// Runs passes until it is dropped.
#[derive(Debug)]
pub struct ConnectionSweeper {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ConnectionSweeper {
    /// Starts it on the maps pinned below `root`.
    ///
    /// # Errors
    /// When the thread cannot be started.
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
            tracing::error!("the thread that clears connections away had panicked");
        }
    }
}

fn run(root: &Path, stopped: &mpsc::Receiver<()>) {
    let mut unused = HashSet::new();
    loop {
        match stopped.recv_timeout(EVERY) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        match pass(root, &mut unused) {
            Ok(Done::Idle) => {}
            Ok(Done::Swept { flows, mappings }) => {
                tracing::debug!(flows, mappings, "connections cleared away");
            }
            Err(error) => {
                tracing::error!(%error, "connections could not be cleared away; trying again in 10 s");
            }
        }
    }
}

/// What a pass did.
enum Done {
    /// Nothing is translated.
    Idle,
    /// So many entries were deleted.
    Swept { flows: usize, mappings: usize },
}

/// Now, in the programs' ticks.
#[must_use]
pub fn ticks_now() -> u32 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is one. The clock is that of bpf_ktime_get_coarse_ns, to a tick of the kernel's.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    ticks(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn pass(root: &Path, unused: &mut HashSet<MappingKey>) -> io::Result<Done> {
    let nat: Nat = read_array_entry(root, "NAT", 0)?;
    let open = io::Error::other::<aya::maps::MapError>;
    let flows = PinnedMap::<FlowKey, Flow>::open(root, "FLOWS").map_err(open)?;
    let opening = PinnedMap::<FlowKey, Flow>::open(root, "OPENING").map_err(open)?;
    let mappings = PinnedMap::<MappingKey, Mapping>::open(root, "MAPPINGS").map_err(open)?;
    if nat.uplink == 0 && unused.is_empty() {
        // One pass more after the last failover, for what it left.
        let mut any = false;
        mappings.each(|_, _| any = true)?;
        flows.each(|_, _| any = true)?;
        if !any {
            return Ok(Done::Idle);
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
    let mut gone = 0;
    let mut tallies: BTreeMap<u16, TenantUsage> = BTreeMap::new();
    flows.each(|key, flow| {
        sweep.flow(key, flow);
        // Whose share it is of, as the programs count it.
        if flow.direction() == Direction::Original {
            let owner = if key.zone == OUTSIDE {
                flow.to_zone
            } else {
                key.zone
            };
            tallies.entry(owner).or_default().connections += 1;
        }
    })?;
    for key in sweep.take_stale() {
        gone += usize::from(flows.remove(&key)?);
    }
    for key in sweep.take_silent() {
        // Looked at again: it may have been heard since.
        let Some(flow) = flows.get(&key)? else {
            continue;
        };
        let (mut other_key, mut other) = (FlowKey::default(), Flow::default());
        flow.inverse(&key, &mut other_key, &mut other);
        let other = flows.get(&other_key)?;
        if sweep.is_over(key.protocol, &flow, other.as_ref()) {
            gone += usize::from(flows.remove(&key)?);
        }
    }
    opening.each(|key, flow| sweep.flow(key, flow))?;
    // Of these, the oldest give way by themselves.
    drop((sweep.take_stale(), sweep.take_silent()));
    mappings.each(|key, mapping| {
        sweep.mapping(key, mapping);
        if key.zone != OUTSIDE {
            tallies.entry(key.zone).or_default().mappings += 1;
        }
    })?;
    // The programs only add. What is deleted below is taken off at the next pass.
    let counts = PinnedMap::<u32, TenantUsage>::open(root, "TALLIES").map_err(open)?;
    for zone in tenants.keys() {
        let tally = tallies.get(zone).copied().unwrap_or_default();
        counts.set(&(u32::from(*zone) - 1), &tally)?;
    }
    let swept = sweep.finish();
    let mut freed = 0;
    let twice = swept.unused.intersection(unused);
    // Inner halves first: without one, nobody begins a connection by the outer.
    let mut all: Vec<_> = twice.chain(&swept.stale).collect();
    all.sort_by_key(|key| key.zone == OUTSIDE);
    for key in all {
        freed += usize::from(mappings.remove(key)?);
    }
    *unused = swept.unused;
    Ok(Done::Swept {
        flows: gone,
        mappings: freed,
    })
}
