//! The daemon: connects configuration, control socket and kernel events to the engines.
//!
//! For: one thread with one loop that waits, hands each event to its part, and carries out the
//! actions of the parts. Never: work on the packet path. While the daemon waits, restarts or is
//! stopped, the programs forward by the maps as they are. Workers of encrypted tunnels are separate
//! threads.
//!
//! ```text
//!   netlink, rings, timers ─▶ event_loop ─▶ engines: poll(now) ─▶ sender, neighbours of the maps
//!   control socket, SIGHUP ─▶ requests: Proposal ─▶ change ─▶ Controller ─▶ programs, maps,
//!                                                                           tunnels, engines
//!   worker threads ─────────▶ Controller: tunnels
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `event_loop` | the loop |
//! | `disk` | work that waits for the disk, beside the loop |
//! | `engines` | pure: neighbours, announcements, advertisements, slow path, fragments |
//! | `controller` | configuration and state in force, what follows them, and their one change |
//! | `requests` | the operator's requests, checked; refusals |
//! | `keys` | the keys that a configuration names |
//! | `sender` | raw sockets |
//! | `packet_health` | counters that must not rise |
//! | `kernel_drops` | counts of frames that the kernel drops after the programs |
//! | `conflicts` | other users of our addresses, in the log and in status |
//! | `status`, `metrics` | the daemon's reports of itself |
//! | `stored` | the objects that were in force last, at a start and for a check |

mod conflicts;
mod controller;
mod disk;
mod engines;
mod event_loop;
mod kernel_drops;
mod keys;
mod metrics;
mod packet_health;
mod requests;
mod sender;
mod status;
mod stored;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use service::{Context, cli::RunArgs, socket::Control};
use tokio::sync::watch;

pub use self::stored::{StoredCheck, check};
use self::{
    controller::{Controller, Files, GatewayNames, InForce, Tables, Tunnels},
    disk::DiskWait,
    engines::Engines,
    event_loop::Events,
    kernel_drops::KernelDrops,
    keys::Keys,
    metrics::Metrics,
    packet_health::PacketHealth,
    requests::{Requests, flows},
    sender::FrameSender,
    status::Reports,
};
use crate::{
    config::{Config, Role},
    control,
    datapath::Datapath,
    datapath::nat::{
        ConnectionSweeper,
        log::{NatLog, Output},
    },
    kernel::underlay::{Snapshot, Watcher},
};

/// How long a start waits for the kernel's view of links and routes.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3);

/// The loop, with what it polls and what it hands events to.
struct Daemon {
    events: Events,
    engines: Engines,
    controller: Controller,
    sender: FrameSender,
    requests: Requests,
    reports: Reports,
    disk_wait: DiskWait,
    /// Thread that removes connections; dropping it ends the thread.
    connection_sweeper: Option<ConnectionSweeper>,
    /// Thread that logs mappings; dropping it ends the thread.
    nat_log: NatLog,
    agent: Option<agent::Handle>,
}

/// Runs the appliance until it is told to stop. The data path goes on forwarding after that.
///
/// # Errors
/// When it cannot start. The data path of an earlier process is then unchanged.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    service::run(args.log_format, async |context: &Context| {
        start(&args.config, context).await
    })
}

async fn start(config_path: &Path, context: &Context) -> anyhow::Result<(Daemon, Control)> {
    let config = Config::load(config_path)?;
    let files = Files::new(config_path, &config.state_dir);
    let mut state = files.store.load()?;
    let stored = state.desired.clone();
    let config = stored::with_objects(config, &mut state)?;
    let has_other_objects = state.desired != stored;
    let keys = Keys::load(&config)?;
    config.check_ports()?;
    // Early: a second daemon is refused before it touches anything.
    let control = Control::bind(&control::SOCKET, &config.control_socket)?;
    // The routers are watched from the start: no public address of theirs may become ours, however
    // shortly.
    let full = state
        .modes
        .values()
        .any(|mode| mode.failover.plan().is_some());
    let paths = config.plain_peers();
    let paths = paths
        .chain(controller::watched_outside(&config, full))
        .collect();
    let (watcher, mut snapshots) = Watcher::spawn(paths, controller::interface_names(&config))
        .context("watch links and routes")?;
    let seeded = state.nat_seed.is_some();
    if !seeded {
        let mut seed = [0; 4];
        getrandom::fill(&mut seed).context("a seed for the ports of NAT")?;
        state.nat_seed = Some(u32::from_ne_bytes(seed));
    }
    if controller::assign_slots(&config, &mut state) || !seeded || has_other_objects {
        files.store.save(&state)?;
    }
    let object = object_path(&config);
    let (datapath, rings, nat_ring) = Datapath::open(&config.pin_dir, &object, config.nat_room())?;
    let tables = Tables::new(datapath)?;
    tracing::info!(
        name = config.name,
        role = config.role.name(),
        adopted = tables.datapath.adopted(),
        programs_adopted = tables.datapath.programs_adopted(),
        object = %object.display(),
        pins = %tables.datapath.root().display(),
        "data path loaded"
    );
    let output = config.nat.log.as_ref().map(Output::open).transpose()?;
    let nat_log = NatLog::spawn(nat_ring).context("start the NAT log")?;
    nat_log.set_output(output);
    let connection_sweeper = match config.role {
        Role::Provider => {
            let root = tables.datapath.root();
            let sweeper = ConnectionSweeper::spawn(root, Some(nat_log.removed()));
            Some(sweeper.context("start the connection sweeper")?)
        }
        Role::Tenant => None,
    };
    let metrics = Metrics::new(context.metrics.clone());
    let http = metrics::serve(&metrics, config.metrics, &context.health).await?;
    let tunnels = Tunnels::start(&config, &keys, &files.store)?;
    let gateway_names = GatewayNames::start(&config.state_dir, clock_seed())
        .context("start the lookups of names")?;
    let first = first_snapshot(&mut snapshots).await?;
    let in_force = InForce {
        config,
        keys,
        state,
    };
    let agent = in_force.config.agent.as_ref();
    let agent =
        agent.map(|config| agent::Handle::start(config, env!("CARGO_PKG_VERSION"), clock_seed()));
    let snapshot = first.unwrap_or_default();
    let mut daemon = Daemon {
        events: Events::new(rings, snapshots)?,
        engines: Engines::new(clock_seed()),
        controller: Controller::new(
            files,
            in_force,
            snapshot,
            tables,
            tunnels,
            gateway_names,
            watcher,
        ),
        sender: FrameSender::default(),
        requests: Requests::default(),
        reports: Reports {
            packet_health: PacketHealth::default(),
            kernel_drops: KernelDrops::open(Instant::now()),
            metrics,
            http,
            loop_health: context.health.clone(),
            started: Instant::now(),
        },
        disk_wait: DiskWait::new(context.pulse.clone()),
        connection_sweeper,
        nat_log,
        agent,
    };
    daemon.name_tenants_in_log();
    daemon.controller.start(&mut daemon.engines)?;
    daemon.sample_metrics();
    daemon.report_to_director();
    // From now on the loop has deadlines.
    service::replace::forbid_on_this_thread();
    Ok((daemon, control))
}

impl Daemon {
    /// Tells the NAT log the names of the tenants.
    fn name_tenants_in_log(&self) {
        let names = flows::slot_names(self.controller.state());
        self.nat_log.set_names(names.tenants);
    }
}

/// The kernel's first view of links and routes; `None` if it does not come in time.
async fn first_snapshot(
    snapshots: &mut watch::Receiver<Snapshot>,
) -> anyhow::Result<Option<Snapshot>> {
    let first = snapshots.wait_for(|s| s.generation > 0);
    let first = match tokio::time::timeout(SNAPSHOT_TIMEOUT, first).await {
        Ok(Ok(snapshot)) => Some(snapshot.clone()),
        Ok(Err(_)) => anyhow::bail!("the netlink watcher ended"),
        Err(_) => {
            tracing::warn!(
                "the kernel has not reported its links and routes yet; starting without them"
            );
            None
        }
    };
    snapshots.mark_unchanged();
    Ok(first)
}

fn object_path(config: &Config) -> PathBuf {
    config
        .bpf_object
        .clone()
        .or_else(|| std::env::var_os("CAUSEWAY_BPF_OBJECT").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("/usr/lib/causeway/appliance.bpf.o"))
}

fn clock_seed() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(1, |d| d.as_nanos() as u64)
}
