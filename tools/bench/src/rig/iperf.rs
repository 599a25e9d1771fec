//! TCP streams by iperf3.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::{
    command::command,
    extent::{Amount, Extent},
    process::Daemon,
};

const PORT: u16 = 5201;

/// An iperf3 server; it ends when dropped.
pub struct Server(#[expect(dead_code, reason = "the process runs until it is dropped")] Daemon);

impl Server {
    /// Starts a server in a namespace, and waits until it listens. Its output goes to `log`.
    pub fn start(namespace: &str, log: PathBuf) -> anyhow::Result<Self> {
        let daemon = Daemon::start(
            command(namespace, "iperf3").args(["-s", "-p", &PORT.to_string()]),
            log,
        )?;
        let until = Instant::now() + Duration::from_secs(5);
        let tables = ["tcp", "tcp6"].map(|f| format!("/proc/{}/net/{f}", daemon.pid()));
        loop {
            // State 0A is LISTEN.
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

/// The receiver's result.
pub struct Received {
    /// Gbit/s.
    pub gigabits: f64,
    /// Gigabytes, of 10⁹ bytes.
    pub gigabytes: f64,
}

/// When a run of TCP streams ends.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// After this time, seconds.
    Seconds(u32),
    /// When all streams together have sent this many kibibytes.
    Kibibytes(u32),
}

/// Length of the runs of every benchmark.
const LENGTH: Amount<Length> = Amount {
    full: Length::Seconds(3),
    smoke: Length::Kibibytes(4096),
};
/// Longest time of a run whose length is an amount, seconds.
const LONGEST: u32 = 10;

/// Runs `streams` TCP streams from a namespace to the server at `address`.
pub fn run(
    namespace: &str,
    address: &str,
    streams: u32,
    extent: Extent,
) -> anyhow::Result<Received> {
    let (length, seconds) = match LENGTH.of(extent) {
        Length::Seconds(seconds) => (format!("-t {seconds}"), seconds),
        // The client ends the run when it has written all. More than half has arrived then: 8
        // streams have 2 MiB in their windows and send buffers at most.
        Length::Kibibytes(amount) => {
            let words = format!("-n {amount}K -w 64K");
            (words, LONGEST)
        }
    };
    let words =
        format!("iperf3 -J --connect-timeout 5000 -c {address} -p {PORT} {length} -P {streams}");
    let mut client = Command::new("ip");
    client
        .args(["netns", "exec", namespace])
        .args(words.split_whitespace());
    let output = lab::run(&mut client, Duration::from_secs(u64::from(seconds) + 20))?;
    let json: serde_json::Value =
        serde_json::from_str(&output.stdout).context("read iperf3's JSON")?;
    let received = &json["end"]["sum_received"];
    let (Some(bits), Some(bytes)) = (
        received["bits_per_second"].as_f64(),
        received["bytes"].as_f64(),
    ) else {
        bail!("iperf3: {}", json["error"]);
    };
    ensure!(bytes > 0.0, "iperf3: nothing arrived in {seconds} s");
    Ok(Received {
        gigabits: bits / 1e9,
        gigabytes: bytes / 1e9,
    })
}
