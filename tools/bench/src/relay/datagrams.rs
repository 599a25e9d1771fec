//! Datagrams through a relay: frames made in the client's kernel, counted where they arrive.
//!
//! The generator, an XDP program in long calls, makes more than any relay takes, so it is not the limit. A relay that is
//! flooded may carry less than it can: rates that it is offered are tried as well, and the best counts.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::programs::{XdpMode, xdp::XdpLinkId};
use causeway_tests::packet::{frame, ip, udp};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    around::Around,
    encrypted::{contender::Running, sites::exec},
};

use super::{
    contender::{CLIENT_PORT, Contender, END_PORT, Relayed, carried},
    sites::{BACKEND, C0, C0_INDEX, CLIENT, CLIENT_IP, G0, RELAY, enter, within},
};

/// What is offered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Offer {
    /// As many frames as so many processors can make.
    Flood(usize),
    /// So many a second, made by one.
    Rate(f64),
}

/// Rates that are tried first, frames a second; then what lies above the best of them.
const RATES: [f64; 4] = [1600e3, 800e3, 400e3, 200e3];
/// How far above: less than it carried it cannot carry more of.
const ABOVE: [f64; 2] = [1.2, 1.4];
/// Frames of a call.
const CALL: u32 = 1 << 20;
/// Frames of Ethernet, IPv4 and UDP before the payload, bytes.
const HEADERS: usize = 42;
/// Of IPv4 and UDP, bytes.
const L3_HEADERS: u64 = 28;
/// Before counting begins.
const WARM_UP: Duration = Duration::from_millis(250);
/// While counting.
const COUNTED: Duration = Duration::from_millis(750);

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub struct Best {
    /// Frames a second that arrived.
    pub received: f64,
    /// Of so many a second that were sent.
    pub sent: f64,
}

/// The programs that see what arrives.
pub struct Arrivals {
    sink: Around,
    /// On the backend's link, where the contender sends by XDP.
    far: Option<XdpLinkId>,
}

impl Arrivals {
    /// Makes the links ready for a contender that is not up yet: the gateway asks the kernel but once whether a veth takes what XDP
    /// sends, and it does with a program at its peer. That one passes everything on, for what is established first.
    pub fn prepare(contender: Contender) -> anyhow::Result<Self> {
        let mut sink = Around::load()?;
        let pass = sink.program("pass")?;
        // The generator's, too.
        within(CLIENT, || {
            pass.attach("c0", XdpMode::Driver)?;
            Ok(())
        })?;
        let mut far = None;
        if contender.sends_by_xdp() {
            for (namespace, link) in [(CLIENT, "c0"), (BACKEND, "b0")] {
                // XDP does not finish a checksum that the stack left to the NIC.
                exec(namespace, &format!("ethtool -K {link} tx off"))?;
            }
            let pass = sink.program("pass")?;
            far = Some(within(BACKEND, || Ok(pass.attach("b0", XdpMode::Driver)?))?);
        }
        Ok(Self { sink, far })
    }

    /// From now on what arrives is counted and dropped.
    fn count(&mut self) -> anyhow::Result<()> {
        if let Some(far) = self.far.take() {
            // In one step: never is there no program.
            let link = self.sink.program("pass")?.take_link(far)?;
            self.sink.program("sink")?.attach_to_link(link)?;
            return Ok(());
        }
        // So that the generator's frames wake the receiver; the kernel's stack does the rest.
        within(RELAY, || {
            let pass = self.sink.program("pass")?;
            pass.attach("g0", XdpMode::Driver)?;
            Ok(())
        })?;
        swallow()
    }
}

/// Sends frames of so many bytes from the Ethernet header on, and gives for each the best that arrived of all rates that were offered.
pub fn best<const N: usize>(
    contender: Contender,
    running: &Running,
    mut arrivals: Arrivals,
    sizes: [usize; N],
) -> anyhow::Result<[Best; N]> {
    let relayed = contender.relay()?;
    let mut generator = Around::load()?;
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
        let mut try_it = |what: Offer, best: &mut Best| {
            let found = offer(&mut generator, &packet, what, &arrived)?;
            if let Offer::Rate(rate) = what
                && found.sent < rate * 0.9
            {
                eprintln!(
                    "  {bytes} B: {:.0} a second were sent where {rate:.0} were to be",
                    found.sent
                );
            }
            if found.received > best.received {
                *best = found;
            }
            anyhow::Ok(lab::interrupt::check()?)
        };
        for processors in (1..=processors()?).rev() {
            try_it(Offer::Flood(processors), best)?;
        }
        // What cannot be made at that rate is no offer, and what is less than what was carried neither.
        for rate in RATES {
            if (best.received..best.sent).contains(&rate) {
                try_it(Offer::Rate(rate), best)?;
            }
        }
        let carried = best.received;
        for rate in ABOVE.map(|part| part * carried) {
            if rate < best.sent && rate > best.received {
                try_it(Offer::Rate(rate), best)?;
            }
        }
        ensure!(best.received > 1.0, "of {bytes} B nothing arrived");
    }
    if contender.sends_by_xdp() {
        let (sunk, carried) = (arrivals.sink.sunk()?, carried(running)?);
        // User space sends as well, and slower: it would go unseen.
        ensure!(
            carried >= sunk / 100 * 99,
            "XDP carried {carried} of the {sunk} that arrived"
        );
    }
    Ok(all)
}

/// The client's frame.
fn packet(relayed: &Relayed, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let length = bytes.checked_sub(HEADERS).context("a longer frame")?;
    let mut payload = (relayed.head)(length);
    payload.resize(length, 0x5a);
    let (from, to) = (ip(CLIENT_IP), (*relayed.to.ip()).into());
    let datagram = udp(from, to, CLIENT_PORT, relayed.to.port(), &payload);
    Ok(frame(G0, C0, &[], &datagram))
}

fn offer(
    generator: &mut Around,
    packet: &[u8],
    what: Offer,
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
                    sched_setaffinity(Pid::from_raw(0), &this).context("stay on a processor")?;
                    while !stop.load(Ordering::Relaxed) {
                        match generator.paced(packet, C0_INDEX, CALL) {
                            // A child of the process ended; what was sent is counted.
                            Err(error) if is_interrupted(&error) => {}
                            done => done?,
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let counted = || {
            let read = || Ok::<_, anyhow::Error>((arrived()?, generator.sent()?));
            thread::sleep(WARM_UP);
            let (before, begun) = (read()?, Instant::now());
            thread::sleep(COUNTED);
            let (after, took) = (read()?, begun.elapsed().as_secs_f64());
            Ok::<_, anyhow::Error>(Best {
                received: (after.0 - before.0) as f64 / took,
                sent: (after.1 - before.1) as f64 / took,
            })
        };
        let counted = counted();
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        counted
    })
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::Interrupted)
    })
}

/// How many there are.
fn processors() -> anyhow::Result<usize> {
    Ok(thread::available_parallelism()?.get())
}

/// Drops what arrives at the backend, as early as the kernel can, and counts it.
fn swallow() -> anyhow::Result<()> {
    let text = format!(
        "table netdev t {{ chain c {{ type filter hook ingress device b0 priority 0; policy drop; udp dport {END_PORT} counter drop; }}; }}\n"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    exec(BACKEND, &format!("nft -f {}", file.path().display())).map(drop)
}

/// Datagrams with so many bytes that the backend's link received.
fn received(payload: u64) -> anyhow::Result<u64> {
    let text = exec(BACKEND, "nft -j list table netdev t")?;
    datagrams(&text, payload).context("the counter of nftables")
}

/// Datagrams that a counter counted. It counts packets and the bytes from the IP header on; one packet may be several
/// datagrams that were not split yet.
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
    fn what_was_not_split_yet_counts_as_what_it_is() {
        let text = r#"{"nftables": [{"metainfo": {}}, {"rule": {"expr": [
            {"match": {}}, {"counter": {"packets": 3, "bytes": 1492}}, {"drop": null}]}}]}"#;
        // One of 62, and two alone.
        assert_eq!(datagrams(text, 22), Some(64));
        assert_eq!(datagrams("{}", 22), None);
    }
}
