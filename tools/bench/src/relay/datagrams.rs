//! Datagrams through a relay: an XDP program makes them at the client, and they are counted on
//! arrival.
//!
//! The generator makes more than any relay carries, so it is not the limit. A flooded relay may
//! carry less than it can, so several offered rates are tried, and the best result counts.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aya::programs::xdp::XdpLinkId;
use causeway_tests::packet::{frame, ip, udp};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::rig::{
    command::exec,
    extent::{Amount, Extent, counted},
    netns::{drop_arrivals, enter},
    process::Running,
    programs::BenchPrograms,
};

use super::{
    contender::{CLIENT_PORT, Contender, END_PORT, Relayed, carried},
    sites::{BACKEND, C0, C0_INDEX, CLIENT, CLIENT_IP, G0, RELAY},
};

/// The offered load.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Offer {
    /// As many frames as this number of processors can make.
    Flood(usize),
    /// Frames per second, made by one processor.
    Rate(f64),
}

/// Rates that are tried first, frames per second.
const RATES: Amount<&[f64]> = Amount {
    full: &[1600e3, 800e3, 400e3, 200e3],
    smoke: &[50e3],
};
/// Then rates above the best result, as multiples of it.
const ABOVE: Amount<&[f64]> = Amount {
    full: &[1.2, 1.4],
    smoke: &[],
};
/// Frames per call.
const CALL: Amount<u32> = Amount {
    full: 1 << 20,
    smoke: 1 << 12,
};
/// Headers of Ethernet, IPv4 and UDP, bytes.
const HEADERS: usize = 42;
/// Headers of IPv4 and UDP, bytes.
const L3_HEADERS: u64 = 28;
/// Time before counting starts.
const WARM_UP: Amount<Duration> = Amount {
    full: Duration::from_millis(250),
    smoke: Duration::from_millis(20),
};
/// Time of counting.
const COUNT_TIME: Amount<Duration> = Amount {
    full: Duration::from_millis(750),
    smoke: Duration::from_millis(80),
};

/// The best result.
#[derive(Clone, Copy, Debug)]
pub struct Best {
    /// Frames per second that arrived.
    pub received: f64,
    /// Frames per second that were sent.
    pub sent: f64,
}

/// The programs that count arrivals.
pub struct Arrivals {
    sink: BenchPrograms,
    /// The program on the backend's link, if the contender sends by XDP.
    far: Option<XdpLinkId>,
}

impl Arrivals {
    /// Prepares the links before the contender starts. The gateway asks the kernel once whether a
    /// veth accepts XDP frames, which it does if its peer has a program. That program passes
    /// everything, so that the set-up works.
    pub fn prepare(contender: Contender) -> anyhow::Result<Self> {
        let mut sink = BenchPrograms::load()?;
        // The generator's link needs a program too.
        sink.attach("pass", CLIENT, "c0")?;
        let mut far = None;
        if contender.sends_by_xdp() {
            for (namespace, link) in [(CLIENT, "c0"), (BACKEND, "b0")] {
                // XDP does not complete a checksum that the stack left to the NIC.
                exec(namespace, &format!("ethtool -K {link} tx off"))?;
            }
            far = Some(sink.attach("pass", BACKEND, "b0")?);
        }
        Ok(Self { sink, far })
    }

    /// Counts and drops arrivals from now on.
    fn count(&mut self) -> anyhow::Result<()> {
        if let Some(far) = self.far.take() {
            // Replaces the program atomically, so that the link never lacks one.
            let link = self.sink.program("pass")?.take_link(far)?;
            self.sink.program("sink")?.attach_to_link(link)?;
            return Ok(());
        }
        // The program makes the generator's frames wake the receiver; the kernel's stack does the
        // rest.
        self.sink.attach("pass", RELAY, "g0")?;
        drop_arrivals(
            BACKEND,
            "b0",
            &format!("udp dport {END_PORT} counter drop;"),
        )
    }
}

/// Sends frames of the given sizes (bytes from the Ethernet header on). Returns the best result of
/// all offered rates for each size.
pub fn best<const N: usize>(
    contender: Contender,
    running: &Running,
    mut arrivals: Arrivals,
    sizes: [usize; N],
    extent: Extent,
) -> anyhow::Result<[Best; N]> {
    let relayed = contender.relay()?;
    let mut generator = BenchPrograms::load()?;
    arrivals.count()?;
    let mut all = [Best {
        received: 0.0,
        sent: 0.0,
    }; N];
    for (best, bytes) in all.iter_mut().zip(sizes) {
        let packet = packet(&relayed, bytes)?;
        let payload = (bytes - HEADERS - relayed.spent) as u64;
        let arrived = || {
            if contender.sends_by_xdp() {
                arrivals.sink.sunk()
            } else {
                received(payload)
            }
        };
        generator.templates(std::slice::from_ref(&packet))?;
        let mut attempt = |what: Offer, best: &mut Best| {
            let found = offer(&mut generator, &packet, what, extent, &arrived)?;
            if let Offer::Rate(rate) = what
                && found.sent < rate * 0.9
            {
                eprintln!(
                    "  {bytes} B: {:.0} frames per second were sent instead of {rate:.0}",
                    found.sent
                );
            }
            if found.received > best.received {
                *best = found;
            }
            anyhow::Ok(lab::interrupt::check()?)
        };
        let fewest = match extent {
            Extent::Full => 1,
            Extent::Smoke => processors()?,
        };
        for processors in (fewest..=processors()?).rev() {
            attempt(Offer::Flood(processors), best)?;
        }
        // A rate that the generator cannot make, or that is below the best result, is not offered.
        for &rate in RATES.of(extent) {
            if (best.received..best.sent).contains(&rate) {
                attempt(Offer::Rate(rate), best)?;
            }
        }
        let carried = best.received;
        for rate in ABOVE.of(extent).iter().map(|part| part * carried) {
            if rate < best.sent && rate > best.received {
                attempt(Offer::Rate(rate), best)?;
            }
        }
        ensure!(best.received > 1.0, "no frame of {bytes} B arrived");
    }
    if contender.sends_by_xdp() {
        let (sunk, carried) = (arrivals.sink.sunk()?, carried(running)?);
        // If user space carried them instead, the figure would be of another path.
        ensure!(
            carried >= sunk / 100 * 99,
            "XDP carried only {carried} of the {sunk} frames that arrived"
        );
    }
    Ok(all)
}

/// The client's frame, `bytes` long.
fn packet(relayed: &Relayed, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let length = bytes.checked_sub(HEADERS).context("a longer frame")?;
    let mut payload = (relayed.head)(length);
    payload.resize(length, 0x5a);
    let (from, to) = (ip(CLIENT_IP), (*relayed.to.ip()).into());
    let datagram = udp(from, to, CLIENT_PORT, relayed.to.port(), &payload);
    Ok(frame(G0, C0, &[], &datagram))
}

fn offer(
    generator: &mut BenchPrograms,
    packet: &[u8],
    what: Offer,
    extent: Extent,
    arrived: &dyn Fn() -> anyhow::Result<u64>,
) -> anyhow::Result<Best> {
    let (processors, interval) = match what {
        Offer::Flood(processors) => (processors, 0),
        Offer::Rate(rate) => (1, (1e9 / rate) as u64),
    };
    generator.interval(interval)?;
    let (generator, stop) = (&*generator, &AtomicBool::new(false));
    thread::scope(|scope| {
        let senders: Vec<_> = (0..processors)
            .map(|processor| {
                scope.spawn(move || {
                    enter(CLIENT)?;
                    let mut this = CpuSet::new();
                    this.set(processor)?;
                    sched_setaffinity(Pid::from_raw(0), &this)
                        .context("pin this thread to a processor")?;
                    while !stop.load(Ordering::Relaxed) {
                        match generator.paced(packet, C0_INDEX, CALL.of(extent)) {
                            // SIGCHLD interrupted the call; sent frames are counted.
                            Err(error) if is_interrupted(&error) => {}
                            done => done?,
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let measure = || {
            let read = || Ok::<_, anyhow::Error>((arrived()?, generator.sent()?));
            thread::sleep(WARM_UP.of(extent));
            let before = read()?;
            let (after, took) = counted(COUNT_TIME.of(extent), read, |after| after.0 > before.0)?;
            Ok::<_, anyhow::Error>(Best {
                received: (after.0 - before.0) as f64 / took,
                sent: (after.1 - before.1) as f64 / took,
            })
        };
        let found = measure();
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        found
    })
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::Interrupted)
    })
}

/// Number of processors.
fn processors() -> anyhow::Result<usize> {
    Ok(thread::available_parallelism()?.get())
}

/// Datagrams with `payload` bytes that the backend's link has received.
fn received(payload: u64) -> anyhow::Result<u64> {
    let text = exec(BACKEND, "nft -j list table netdev t")?;
    datagrams(&text, payload).context("read the nftables counter")
}

/// Datagrams by an nftables counter, which counts packets and their bytes from the IP header on.
/// One packet may contain several datagrams that the kernel has not split yet.
fn datagrams(text: &str, payload: u64) -> Option<u64> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let rules = json["nftables"].as_array()?.iter();
    let counter = rules
        .filter_map(|one| one["rule"]["expr"].as_array())
        .flatten()
        .find_map(|expression| expression["counter"].as_object())?;
    let (packets, bytes) = (counter["packets"].as_u64()?, counter["bytes"].as_u64()?);
    Some((bytes - packets * L3_HEADERS) / payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsplit_super_frames_count_as_their_datagrams() {
        let text = r#"{"nftables": [{"metainfo": {}}, {"rule": {"expr": [
            {"match": {}}, {"counter": {"packets": 3, "bytes": 1492}}, {"drop": null}]}}]}"#;
        // One packet of 62 datagrams, and two of one.
        assert_eq!(datagrams(text, 22), Some(64));
        assert_eq!(datagrams("{}", 22), None);
    }
}
