//! TCP throughput and round trips between the hosts, and the CPU time they take.

use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::rig::{
    command::exec,
    cpu::busy_seconds,
    extent::{Amount, Extent},
    iperf,
    process::Running,
};

use super::sites::{LEFT, Sites};

/// Pings of a run.
const PINGS: Amount<usize> = Amount {
    full: 100,
    smoke: 10,
};

/// Figures of a TCP run.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Gbit/s at the receiver.
    pub gigabits: f64,
    /// CPU seconds of the machine per gigabyte (10⁹ bytes), less what other processes use.
    pub cpu: f64,
    /// CPU seconds of the contender's processes per gigabyte.
    pub own_cpu: f64,
}

/// Runs `streams` TCP streams from the left host to the right one. `others` are the CPUs that other
/// processes use.
pub fn tcp(
    sites: &Sites,
    running: &Running,
    streams: u32,
    others: f64,
    extent: Extent,
) -> anyhow::Result<Tcp> {
    let (busy, own, begun) = (busy_seconds()?, running.cpu_seconds(), Instant::now());
    let received = iperf::run(LEFT, sites.right(), streams, extent)?;
    let took = begun.elapsed().as_secs_f64();
    let busy = busy_seconds()? - busy - others * took;
    let own = running.cpu_seconds() - own;
    Ok(Tcp {
        gigabits: received.gigabits,
        cpu: busy.max(0.0) / received.gigabytes,
        own_cpu: own / received.gigabytes,
    })
}

/// Median round-trip time, milliseconds.
pub fn round_trip(sites: &Sites, extent: Extent) -> anyhow::Result<f64> {
    let pings = PINGS.of(extent);
    let words = format!("ping -n -i 0.01 -W 1 -c {pings} {}", sites.right());
    let text = exec(LEFT, &words)?;
    let mut times = round_trips(&text);
    // Programs that poll may keep a loaded machine from answering in time.
    let fewest = match extent {
        Extent::Full => pings / 2,
        Extent::Smoke => 0,
    };
    ensure!(
        times.len() > fewest,
        "ping: {} of {pings} answered",
        times.len()
    );
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().context("a round trip")
}

fn round_trips(text: &str) -> Vec<f64> {
    text.lines()
        .filter(|line| !line.contains("DUP"))
        .filter_map(|line| line.split_once("time=")?.1.split_once(' ')?.0.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_read_without_duplicates() {
        let text = "PING 10.60.0.20 (10.60.0.20) 56(84) bytes of data.\n\
            64 bytes from 10.60.0.20: icmp_seq=1 ttl=64 time=0.052 ms\n\
            64 bytes from 10.60.0.20: icmp_seq=1 ttl=64 time=0.900 ms (DUP!)\n\
            64 bytes from 10.60.0.20: icmp_seq=2 ttl=64 time=1.25 ms\n";
        assert_eq!(round_trips(text), [0.052, 1.25]);
    }
}
