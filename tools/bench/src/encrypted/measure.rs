//! TCP by iperf3, round trips by ping, and the CPU time they take.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::{
    contender::{Daemon, Running},
    sites::{LEFT, RIGHT, Sites, command, exec},
};

/// Seconds of each TCP run.
const TCP_SECONDS: u32 = 3;
const PORT: u16 = 5201;
/// How long the machine is watched, for the baseline.
const QUIET: Duration = Duration::from_millis(500);
/// How long to wait until the machine does nothing else.
const PATIENCE: Duration = Duration::from_secs(10);
/// What others may use, CPUs: beyond it the machine's CPU seconds say nothing of a contender.
pub const QUIET_ENOUGH: f64 = 0.1;
/// Pings of a run.
const PINGS: usize = 100;

/// What a TCP run came to.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Gbit/s that the receiver got.
    pub gigabits: f64,
    /// CPU seconds of the machine a gigabyte (10⁹ bytes), less what it uses before the contender is up.
    pub cpu: f64,
    /// CPU seconds of the contender's processes a gigabyte.
    pub own_cpu: f64,
}

/// An iperf3 server on the receiving host.
pub struct Server(#[expect(dead_code, reason = "runs until it is dropped")] Daemon);

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(running: &Running) -> anyhow::Result<Self> {
        let log = running.directory().join("iperf3.log");
        let daemon = Daemon::start(
            command(RIGHT, "iperf3").args(["-s", "-p", &PORT.to_string()]),
            log,
        )?;
        let until = Instant::now() + Duration::from_secs(5);
        let tables = ["tcp", "tcp6"].map(|f| format!("/proc/{}/net/{f}", daemon.pid()));
        loop {
            // A state of 0A is LISTEN.
            let listens = tables.iter().any(|file| {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.lines()
                    .any(|l| l.contains(&format!(":{PORT:04X} ")) && l.contains(" 0A "))
            });
            if listens {
                return Ok(Self(daemon));
            }
            ensure!(Instant::now() < until, "iperf3 does not listen within 5 s");
            lab::interrupt::check()?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Runs `streams` TCP streams from the left host to the right one.
pub fn tcp(sites: &Sites, running: &Running, streams: u32, others: f64) -> anyhow::Result<Tcp> {
    let words = format!(
        "iperf3 -J --connect-timeout 5000 -c {} -p {PORT} -t {TCP_SECONDS} -P {streams}",
        sites.right()
    );
    let (busy, own, begun) = (busy_seconds()?, running.cpu_seconds(), Instant::now());
    let mut client = Command::new("ip");
    client
        .args(["netns", "exec", LEFT])
        .args(words.split_whitespace());
    let output = lab::run(
        &mut client,
        Duration::from_secs(u64::from(TCP_SECONDS) + 20),
    )?;
    let took = begun.elapsed().as_secs_f64();
    let busy = busy_seconds()? - busy - others * took;
    let own = running.cpu_seconds() - own;
    let json: serde_json::Value = serde_json::from_str(&output.stdout).context("iperf3's JSON")?;
    let received = &json["end"]["sum_received"];
    let (Some(bits), Some(bytes)) = (
        received["bits_per_second"].as_f64(),
        received["bytes"].as_f64(),
    ) else {
        bail!("iperf3: {}", json["error"]);
    };
    ensure!(bytes > 0.0, "iperf3: nothing arrived in {TCP_SECONDS} s");
    Ok(Tcp {
        gigabits: bits / 1e9,
        cpu: busy.max(0.0) / (bytes / 1e9),
        own_cpu: own / (bytes / 1e9),
    })
}

/// CPU seconds a second that the machine uses before a contender is up: what others do. Waits a while
/// for them to be done. (Not while it is up: what it uses idle, as one that polls does, is its own.)
pub fn others() -> anyhow::Result<f64> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (busy, begun) = (busy_seconds()?, Instant::now());
        std::thread::sleep(QUIET);
        let others = (busy_seconds()? - busy) / begun.elapsed().as_secs_f64();
        if others < QUIET_ENOUGH || Instant::now() > until {
            return Ok(others);
        }
        lab::interrupt::check()?;
    }
}

/// Median round-trip time, milliseconds.
pub fn round_trip(sites: &Sites) -> anyhow::Result<f64> {
    let words = format!("ping -n -i 0.01 -W 1 -c {PINGS} {}", sites.right());
    let text = exec(LEFT, &words)?;
    let mut times = round_trips(&text);
    ensure!(
        times.len() * 2 > PINGS,
        "ping: {} of {PINGS} answered",
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

/// Seconds that all CPUs were busy since boot: user, nice, system, irq, softirq (proc(5)).
pub fn busy_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = text
        .lines()
        .next()
        .context("cpu")?
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    let ticks: f64 = [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum();
    // USER_HZ is 100 on every architecture that we run on (times(2)).
    Ok(ticks / 100.0)
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
