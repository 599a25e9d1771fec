//! The command `trace`: asks the daemon for steps and prints them until interrupted.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use appliance_user::{
    control::{Done, Request},
    trace::{PacketFilter, Step},
};
use nix::sys::signal::{SigHandler, Signal, signal};
use service::{outln, socket::Client};

use super::args::TraceArgs;

/// Pause after a request that returned no steps.
const IDLE_PAUSE: Duration = Duration::from_millis(100);

/// Set by the signal handler.
static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: i32) {
    STOPPED.store(true, Ordering::SeqCst);
}

/// Traces until interrupted, or until the counts of `args` are reached.
///
/// # Errors
/// The daemon's refusal.
pub fn run(client: &Client, args: TraceArgs) -> anyhow::Result<()> {
    for interrupt in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { signal(interrupt, SigHandler::Handler(stop)) }.context("handle the interrupt")?;
    }
    let filter = PacketFilter {
        interface: args.interface.clone(),
        vlan: args.vlan,
        protocol: args.protocol,
        address: args.address,
        port: args.port,
    };
    let _: Done = client.ask(&Request::TraceStart(filter))?;
    let printed = print_steps(client, &args);
    let _: Done = client.ask(&Request::TraceStop {})?;
    printed
}

fn print_steps(client: &Client, args: &TraceArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let duration = args.seconds.map(Duration::from_secs);
    let mut packets = 0;
    while !STOPPED.load(Ordering::SeqCst) && duration.is_none_or(|d| started.elapsed() < d) {
        let steps: Vec<Step> = client.ask(&Request::TraceNext {})?;
        if steps.is_empty() {
            std::thread::sleep(IDLE_PAUSE);
        }
        for step in steps {
            let printed = if args.json {
                outln!("{}", serde_json::to_string(&step)?)
            } else {
                outln!("{}", step.render())
            };
            packets += usize::from(step.step == "verdict");
            if !printed || args.count.is_some_and(|count| packets >= count) {
                return Ok(());
            }
        }
    }
    Ok(())
}
