//! The loop: waits for the next event, hands it to the part that it concerns, and polls the
//! engines.
//!
//! The runtime (`service::run`) calls `step` again and again; between two steps it takes requests,
//! signals and the watchdog's timer.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use appliance_common::events::{NeighbourEvent, SlowHeader, SlowReason};
use aya::maps::{MapData, RingBuf};
use service::socket::{RequestRefusal, Responder};
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Daemon, conflicts, controller, engines::Output};
use crate::{
    control::{Answer, Done, Request},
    datapath::{Rings, nat},
    kernel::underlay::Snapshot,
};

/// Records taken from a ring before other work gets its turn.
const BATCH: usize = 1024;
/// Outputs of the engines carried out before other work gets its turn.
const MAX_OUTPUTS: usize = 20_000;
/// Longest delay of an answer to a router solicitation (RFC 4861 section 6.2.6), milliseconds.
const MAX_ROUTER_DELAY: u64 = 500;

/// The event sources of the loop, besides deadlines and tunnels.
pub(super) struct Events {
    neighbours: AsyncFd<RingBuf<MapData>>,
    slow: AsyncFd<RingBuf<MapData>>,
    snapshots: watch::Receiver<Snapshot>,
    second: Interval,
}

impl Events {
    /// # Errors
    /// When the rings cannot be waited for.
    pub fn new(rings: Rings, snapshots: watch::Receiver<Snapshot>) -> anyhow::Result<Self> {
        // SAFETY: a ring owns its descriptor, always returns the same one, and is dropped with the
        // AsyncFd.
        let neighbours = unsafe { AsyncFd::register(rings.neighbours) };
        // SAFETY: as above.
        let slow = unsafe { AsyncFd::register(rings.slow) };
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            neighbours: neighbours.context("wait on the neighbour ring")?,
            slow: slow.context("wait on the slow-path ring")?,
            snapshots,
            second,
        })
    }
}

/// Takes up to [`BATCH`] records of a ring that is ready, and hands each to `$take`.
macro_rules! take_records {
    ($ready:expr, $take:expr) => {{
        let mut ready = $ready;
        let ring = ready.get_inner_mut();
        let mut taken = 0;
        while taken < BATCH {
            let Some(record) = ring.next() else { break };
            taken += 1;
            $take(&record);
        }
        if taken < BATCH {
            ready.clear_ready();
        }
    }};
}

impl service::Daemon for Daemon {
    type Request = Request;
    type Reply = Answer;
    type Error = anyhow::Error;

    async fn step(&mut self) -> anyhow::Result<ControlFlow<()>> {
        self.poll_engines();
        self.report_groups();
        self.controller.work_tunnels(&mut self.engines);
        let deadline = self.next_deadline();
        let Self {
            events,
            engines,
            controller,
            ..
        } = self;
        tokio::select! {
            ready = events.neighbours.readable_mut() => {
                let now = Instant::now();
                take_records!(ready.context("neighbour ring")?, |record: &[u8]| {
                    if let Some(event) = NeighbourEvent::from_bytes(record) {
                        engines.receive(now, &event);
                    }
                });
            }
            ready = events.slow.readable_mut() => {
                let now = Instant::now();
                let tables = controller.tables();
                take_records!(ready.context("slow-path ring")?, |record: &[u8]| {
                    if let Some((header, frame)) = SlowHeader::from_bytes(record) {
                        engines.slow_packet(now, &header, frame, tables, jitter(&header));
                    }
                });
            }
            changed = events.snapshots.changed() => {
                changed.context("the netlink watcher ended")?;
                self.take_snapshot();
            }
            event = controller.event() => match event {
                // The next step works on it.
                controller::Event::Tunnels => {}
                controller::Event::GatewaysMoved => controller.gateways_moved(),
            },
            () = sleep_until(deadline) => {}
            _ = events.second.tick() => self.each_second(),
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn handle(&mut self, request: Request, responder: Responder<Answer>) {
        self.handle_request(request, responder).await;
    }

    async fn finish_step(&mut self) {
        if let Some((request, responder)) = self.requests.takeover.take_checked() {
            self.carry_out(request, responder).await;
        }
    }

    fn is_reload(request: &Request) -> bool {
        matches!(request, Request::Reload {})
    }

    async fn reload(&mut self) -> Result<Answer, RequestRefusal> {
        self.reload_file().await?;
        Ok(Answer::Done(Done::Reloaded))
    }

    fn status_line(&self) -> Option<String> {
        let networks = self.controller.config().networks.len();
        let state = if self.is_ready() {
            "ready"
        } else {
            "not ready"
        };
        Some(format!("{state}, {networks} networks"))
    }

    fn shut_down(mut self) {
        // A stop is not a detach: programs, links and maps stay pinned.
        self.controller.close();
        tracing::info!("daemon stops; the XDP programs continue to forward");
    }
}

impl Daemon {
    fn take_snapshot(&mut self) {
        let snapshot = self.events.snapshots.borrow_and_update().clone();
        self.sender.forget_gone(&snapshot);
        if let Err(error) = self.controller.take_snapshot(snapshot, &mut self.engines) {
            tracing::error!(
                error = format!("{error:#}"),
                "cannot apply a change of links or routes; retrying every second"
            );
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.engines.next_deadline(),
            self.controller.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Polls the engines and carries their outputs out.
    fn poll_engines(&mut self) {
        let now = Instant::now();
        let (datapath, ticks) = (self.controller.datapath(), nat::ticks_now());
        let is_known = |key: &_| datapath.has_fragment_state(key, ticks);
        for (ifindex, frame) in self.engines.poll_fragments(now, is_known) {
            let datapath = self.controller.datapath_mut();
            if let Err(error) = datapath.reinject(ifindex, &frame) {
                self.sender.count_error();
                tracing::debug!(%error, ifindex, "cannot run a waiting fragment through XDP");
            }
        }
        self.requests.takeover.read_answers(&mut self.engines);
        for _ in 0..MAX_OUTPUTS {
            let Some(output) = self.engines.poll(now) else {
                return;
            };
            match output {
                Output::Send { ifindex, frame } => self.sender.send(ifindex, &frame),
                Output::SendOutside { packet } => {
                    let uplink = &self.controller.config().uplink.interface;
                    let link = self.controller.snapshot().links.get(uplink);
                    self.sender.send_outside(link, &packet);
                }
                Output::InstallNeighbour { key, neighbour } => {
                    self.controller.install_neighbour(key, neighbour);
                }
                Output::InstallAbsent { key } => self.controller.install_absent(key),
                Output::RemoveNeighbour { key } => self.controller.remove_neighbour(key),
                Output::ConflictBegun(conflict) => conflicts::begun(&self.controller, &conflict),
                Output::ConflictEnded(conflict) => conflicts::ended(&self.controller, &conflict),
                Output::ConflictsUnreported { vni, count } => {
                    conflicts::unreported(&self.controller, vni, count);
                }
                Output::TakeoverChecked(owners) => {
                    let Self {
                        controller,
                        engines,
                        requests,
                        ..
                    } = self;
                    requests.takeover.done(controller, engines, &owners);
                }
            }
        }
    }

    /// Tells snooping switches which multicast groups the ports listen to.
    fn report_groups(&mut self) {
        while let Some((ifindex, frame)) = self.controller.poll_reports(Instant::now()) {
            self.sender.send(ifindex, &frame);
        }
    }

    fn each_second(&mut self) {
        let now = Instant::now();
        self.disk_wait.beat();
        let controller = &mut self.controller;
        self.requests.packet_trace.end_if_stale(controller);
        controller.each_second();
        self.engines.expire_corrections(now);
        for key in self.engines.next_to_sweep(now) {
            match self.controller.take_flags(&key) {
                Ok(0) => {}
                Ok(flags) => self.engines.observed(now, key, flags),
                Err(error) => {
                    tracing::error!(%error, "cannot read the neighbour table");
                    break;
                }
            }
        }
        self.controller.check_interfaces(now);
        self.sample_packet_health(now);
        if self.controller.is_incomplete()
            && let Err(error) = self.controller.apply_snapshot(&mut self.engines)
        {
            tracing::error!(
                error = format!("{error:#}"),
                "cannot complete the data path; retrying each second"
            );
        }
        self.sample_metrics();
        self.report_to_director();
    }
}

/// The delay of an answer to a router solicitation (RFC 4861 section 6.2.6); zero for other
/// records.
fn jitter(header: &SlowHeader) -> Duration {
    if SlowReason::from_u16(header.reason) != Some(SlowReason::RouterSolicitation) {
        return Duration::ZERO;
    }
    let mut random = [0; 1];
    let delay = getrandom::fill(&mut random).map_or(0, |()| u64::from(random[0]) * 2);
    Duration::from_millis(delay.min(MAX_ROUTER_DELAY))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
