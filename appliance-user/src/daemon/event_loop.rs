//! The loop: waits for the next event, hands it to the part whose it is, and polls the engines.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use appliance_common::{
    events::{NeighbourEvent, SlowHeader, SlowReason},
    maps::neighbour_flags,
};
use service::{Notifier, socket};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::{Daemon, engines::Output};
use crate::{control::Request, datapath::Rings, kernel::underlay::Snapshot};

/// Records taken from a ring before other work gets its turn.
const BATCH: usize = 1024;
/// Outputs of the engines carried out before other work gets its turn.
const MAX_OUTPUTS: usize = 20_000;
/// Longest delay of an answer to a router solicitation (RFC 4861 section 6.2.6), milliseconds.
const MAX_ROUTER_DELAY: u64 = 500;

/// Waits for a record of a ring and takes up to [`BATCH`] of them.
macro_rules! records {
    ($guard:expr, $name:literal, $take:expr) => {{
        let mut guard = $guard.context($name)?;
        let ring = guard.get_inner_mut();
        let mut take = $take;
        let mut taken = 0;
        while taken < BATCH {
            let Some(record) = ring.next() else { break };
            taken += 1;
            take(&*record);
        }
        if taken < BATCH {
            guard.clear_ready();
        }
    }};
}

impl Daemon {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When an event source is lost.
    pub(super) async fn serve(
        &mut self,
        rings: Rings,
        mut snapshots: watch::Receiver<Snapshot>,
        mut requests: mpsc::Receiver<socket::Call<Request, serde_json::Value>>,
    ) -> anyhow::Result<()> {
        // SAFETY: a ring owns its descriptor, always returns the same one, and is dropped with the
        // AsyncFd.
        let neighbours = unsafe { AsyncFd::register(rings.neighbours) };
        let mut neighbours = neighbours.context("wait on the neighbour ring")?;
        // SAFETY: as above.
        let slow = unsafe { AsyncFd::register(rings.slow) };
        let mut slow = slow.context("wait on the slow-path ring")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let notifier = Notifier::from_env();
        let mut watchdog = interval(Notifier::watchdog().unwrap_or(Duration::from_secs(3600)));
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        notifier.send("READY=1");
        tracing::info!("ready");
        loop {
            self.poll_engines();
            self.work_tunnels();
            let deadline = self.next_deadline();
            tokio::select! {
                guard = neighbours.readable_mut() => {
                    let now = Instant::now();
                    records!(guard, "neighbour ring", |record: &[u8]| self.heard(now, record));
                }
                guard = slow.readable_mut() => {
                    let now = Instant::now();
                    records!(guard, "slow-path ring", |record: &[u8]| self.slow(now, record));
                }
                changed = snapshots.changed() => {
                    changed.context("the netlink watcher ended")?;
                    self.snapshot = snapshots.borrow_and_update().clone();
                    if let Err(error) = self.apply_snapshot() {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "cannot apply a change of links or routes; retrying every second"
                        );
                    }
                }
                Some((request, reply)) = requests.recv() => self.handle(request, reply),
                () = self.tunnels.ready() => {}
                () = sleep_until(deadline) => {}
                _ = second.tick() => self.each_second(),
                _ = watchdog.tick() => notifier.send("WATCHDOG=1"),
                _ = hangup.recv() => self.reload_on_signal(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        notifier.send("STOPPING=1");
        tracing::info!("stopping; the data path goes on forwarding");
        Ok(())
    }

    fn heard(&mut self, now: Instant, record: &[u8]) {
        if let Some(event) = NeighbourEvent::from_bytes(record) {
            self.engines.heard(now, &event);
        }
    }

    fn slow(&mut self, now: Instant, record: &[u8]) {
        let Some((header, frame)) = SlowHeader::from_bytes(record) else {
            return;
        };
        let jitter = match SlowReason::from_u16(header.reason) {
            Some(SlowReason::RouterSolicitation) => {
                let mut random = [0; 1];
                let delay = getrandom::fill(&mut random).map_or(0, |()| u64::from(random[0]) * 2);
                Duration::from_millis(delay.min(MAX_ROUTER_DELAY))
            }
            _ => Duration::ZERO,
        };
        let tables = self.forwarding.tables();
        self.engines
            .slow_packet(now, &header, frame, tables, jitter);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.engines.next_deadline(), self.tunnels.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Does what is due in the engines.
    fn poll_engines(&mut self) {
        let now = Instant::now();
        let (datapath, ticks) = (
            &self.forwarding.datapath,
            crate::datapath::connections::ticks_now(),
        );
        let is_known = |key: &_| datapath.has_fragment_state(key, ticks);
        for (ifindex, frame) in self.engines.poll_fragments(now, is_known) {
            if let Err(error) = self.forwarding.datapath.reinject(ifindex, &frame) {
                self.sender.count_error();
                tracing::debug!(%error, ifindex, "cannot run a waiting fragment through XDP");
            }
        }
        for _ in 0..MAX_OUTPUTS {
            let Some(output) = self.engines.poll(now) else {
                return;
            };
            match output {
                Output::Send { ifindex, frame } => self.sender.send(ifindex, &frame),
                Output::SendOutside { packet } => {
                    let uplink = &self.in_force.config.uplink.interface;
                    let link = self.snapshot.links.get(uplink);
                    self.sender.send_outside(link, &packet);
                }
                Output::InstallNeighbour { key, neighbour } => {
                    self.forwarding
                        .install_neighbour(&mut self.tunnels, key, neighbour)
                }
                Output::RemoveNeighbour { key } => {
                    self.forwarding.remove_neighbour(&mut self.tunnels, key);
                }
            }
        }
    }

    /// Does what is due in the tunnels.
    fn work_tunnels(&mut self) {
        let config = &self.in_force.config;
        let worked = self
            .tunnels
            .work(&mut self.forwarding.datapath, &self.files.store, |name| {
                config.peer(name).is_some()
            });
        let now = Instant::now();
        for key in worked.hosts.used {
            self.engines.observed(now, key, neighbour_flags::USED);
        }
        let tables = self.forwarding.tables();
        for waiting in &worked.hosts.unresolved {
            self.engines
                .waiting_packet(now, &waiting.header, waiting.packet(), tables);
        }
        if worked.moved {
            self.watch_paths();
        }
        if worked.mtu_changed
            && let Err(error) = self.reconcile()
        {
            self.incomplete = true;
            tracing::error!(%error, "cannot apply a change of path MTU; retrying every second");
        }
    }

    fn each_second(&mut self) {
        let now = Instant::now();
        self.end_stale_trace();
        self.check_sending();
        // Where a change failed half way, the watched paths may be those of before.
        self.watch_paths();
        self.engines.expire_corrections(now);
        for key in self.engines.next_to_sweep(now) {
            match self.forwarding.take_flags(&key) {
                Ok(0) => {}
                Ok(flags) => self.engines.observed(now, key, flags),
                Err(error) => {
                    tracing::error!(%error, "cannot read the neighbour table");
                    break;
                }
            }
        }
        // An interface may have become usable, a map may have room again.
        if (self.interfaces.incomplete() || self.incomplete)
            && let Err(error) = self.apply_snapshot()
        {
            tracing::error!(error = format!("{error:#}"), "the data path is incomplete");
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
