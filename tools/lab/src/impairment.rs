//! Delay, jitter, loss, reordering and a rate limit on a link, as a long or crowded WAN has them.
//!
//! The kernel that tests run on may lack `sch_netem`, so this is a queue in user space. On the link
//! where traffic arrives, `nft` drops UDP and TCP at ingress; a packet socket receives the same
//! frames before that, with the kernel's offload metadata (`PACKET_VNET_HDR`). After their delay
//! they enter the same namespace again through a veth pair. ARP and neighbour discovery are not
//! delayed. A namespace that forwards by addresses is required: a rule that names the arrival
//! interface does not match any more.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fuzzing::Seeded;

use crate::{
    addr::{fixed_mac, mac_text},
    capture::{packet_socket, send, set_option},
    error::{During as _, Result},
    netns,
    site::Lab,
};

/// Time for a command that should be quick.
const COMMAND: Duration = Duration::from_secs(10);

/// Bytes of the `virtio_net_hdr` before each frame.
const METADATA: usize = 10;
/// Longest frame with its metadata, bytes: a super-frame of 64 KiB.
const MAX_FRAME_LEN: usize = METADATA + 14 + 65_536;
/// How long the thread sleeps at most before it looks whether it is to end.
const POLL: Duration = Duration::from_millis(20);

/// Effects of a link on the UDP and TCP packets that arrive on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairment {
    /// Added to each packet.
    pub delay: Duration,
    /// At most this much more, uniformly distributed for each packet. Packets overtake each other
    /// if it exceeds their distance in time.
    pub jitter: Duration,
    /// Lost packets per million.
    pub loss_ppm: u32,
    /// Bits per second, 0 for no limit. Counted over the frame from its Ethernet header on.
    pub rate: u64,
    /// Bytes that wait for the rate limit; more are dropped.
    pub queue: usize,
    /// Seed of losses and jitter.
    pub seed: u64,
}

/// Packets by their fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impaired {
    /// Packets that passed, late or not.
    pub passed: u64,
    /// Packets that were lost by chance.
    pub lost: u64,
    /// Packets that were dropped because the queue of the rate limit was full.
    pub overflowed: u64,
    /// Packets that left before one that had arrived earlier.
    pub reordered: u64,
}

/// The decisions for one link, without I/O.
#[derive(Debug)]
struct Queue {
    impairment: Impairment,
    random: Seeded,
    /// When the rate limit has sent all it has accepted.
    free_at: Option<Instant>,
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    arrived: u64,
    highest_sent: Option<u64>,
    counts: Impaired,
}

impl Queue {
    fn new(impairment: Impairment) -> Self {
        Self {
            impairment,
            random: Seeded::new(impairment.seed),
            free_at: None,
            waiting: BinaryHeap::new(),
            arrived: 0,
            highest_sent: None,
            counts: Impaired::default(),
        }
    }

    /// Accepts a frame with its metadata, loses it, or drops it.
    fn push(&mut self, now: Instant, frame: &[u8]) {
        let Impairment {
            delay,
            jitter,
            loss_ppm,
            rate,
            queue,
            ..
        } = self.impairment;
        if self.random.next_u64() % 1_000_000 < u64::from(loss_ppm) {
            self.counts.lost += 1;
            return;
        }
        let sent = if rate == 0 {
            now
        } else {
            let start = self.free_at.map_or(now, |free| free.max(now));
            let transmission = |bytes: usize| {
                Duration::from_nanos((bytes as u64).saturating_mul(8_000_000_000) / rate)
            };
            if start.duration_since(now) > transmission(queue) {
                self.counts.overflowed += 1;
                return;
            }
            let end = start + transmission(frame.len().saturating_sub(METADATA));
            self.free_at = Some(end);
            end
        };
        let more = match u64::try_from(jitter.as_nanos()) {
            Ok(nanos) if nanos > 0 => Duration::from_nanos(self.random.next_u64() % nanos),
            _ => Duration::ZERO,
        };
        let at = sent + delay + more;
        self.waiting
            .push(Reverse((at, self.arrived, frame.to_vec())));
        self.arrived += 1;
    }

    /// When the next frame is due.
    fn due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next frame that is due at `now`.
    fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        let Reverse((_, number, frame)) = self.waiting.pop()?;
        self.counts.passed += 1;
        match self.highest_sent {
            Some(highest) if number < highest => self.counts.reordered += 1,
            _ => self.highest_sent = Some(number),
        }
        Some(frame)
    }
}

/// An impairment in force. Dropping it ends it: waiting packets are lost, later ones pass at once.
#[derive(Debug)]
pub struct ImpairedLink<'lab> {
    lab: &'lab Lab,
    host: String,
    table: String,
    entry: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Impaired>>>,
}

impl ImpairedLink<'_> {
    /// Ends it.
    ///
    /// # Errors
    /// If reading or sending frames failed, or the kernel refuses to remove the queue.
    pub fn stop(mut self) -> Result<Impaired> {
        self.end()
    }

    fn end(&mut self) -> Result<Impaired> {
        let Some(thread) = self.thread.take() else {
            return Ok(Impaired::default());
        };
        self.stop.store(true, Ordering::Relaxed);
        let counts = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let table = ["nft", "delete", "table", "netdev", &self.table];
        self.lab.must(&self.host, &table, COMMAND)?;
        let link = ["ip", "link", "delete", &self.entry];
        self.lab.must(&self.host, &link, COMMAND)?;
        counts
    }
}

impl Drop for ImpairedLink<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            service::errln!("impairment of {}: {e}", self.host);
        }
    }
}

impl Lab {
    /// Impairs UDP and TCP that arrive on `link` of `host`, a router.
    ///
    /// # Errors
    /// If there is no such host or link, it is impaired already, or the kernel refuses a step.
    pub fn impair(
        &self,
        host: &str,
        link: &str,
        impairment: Impairment,
    ) -> Result<ImpairedLink<'_>> {
        let namespace = self.namespace(host)?;
        // Named by the link's index: a name of an interface has at most 15 bytes.
        let index = netns::within(&namespace, || netns::index(link))?;
        let (sender, entry) = (format!("imp-out{index}"), format!("imp-in{index}"));
        let mac = mac_text(fixed_mac(host, link));
        let run = |words: &str| -> Result<()> {
            let words: Vec<_> = words.split(' ').collect();
            self.must(host, &words, COMMAND).map(drop)
        };
        run(&format!(
            "ip link add {sender} mtu 65535 type veth peer name {entry} address {mac} mtu 65535"
        ))?;
        let table = format!("impair{index}");
        let prepare = || {
            for end in [&sender, &entry] {
                run(&format!("ip link set {end} addrgenmode none up"))?;
            }
            let sockets = netns::within(&namespace, || {
                let (from, to) = (packet_socket(link)?, packet_socket(&sender)?);
                for (socket, option) in [
                    (&from, libc::PACKET_VNET_HDR),
                    (&to, libc::PACKET_VNET_HDR),
                    (&from, libc::PACKET_IGNORE_OUTGOING),
                ] {
                    set_option(socket, libc::SOL_PACKET, option, 1)
                        .during(|| format!("setting option {option} of a packet socket"))?;
                }
                Ok((from, to))
            })?;
            let rules = format!(
                "table netdev {table} {{\nchain ingress {{\n\
                 type filter hook ingress device {link} priority 0;\n\
                 meta l4proto {{ tcp, udp }} drop\n}}\n}}\n"
            );
            self.must(host, &["nft", &rules], COMMAND)?;
            Ok(sockets)
        };
        let (from, to) = prepare().inspect_err(|_| {
            // The first error is the one to report.
            drop(run(&format!("ip link delete {entry}")));
        })?;
        let stop = Arc::<AtomicBool>::default();
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("impairment".to_owned())
            .spawn(move || carry(&from, &to, Queue::new(impairment), &stopping))
            .during(|| "starting a thread".to_owned())?;
        Ok(ImpairedLink {
            lab: self,
            host: host.to_owned(),
            table,
            entry,
            stop,
            thread: Some(thread),
        })
    }
}

/// Moves frames from one socket to the other, through the queue, until `stop`.
fn carry(from: &OwnedFd, to: &OwnedFd, mut queue: Queue, stop: &AtomicBool) -> Result<Impaired> {
    let mut buffer = vec![0_u8; MAX_FRAME_LEN];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some(frame) = queue.pop(now) {
            send(to, &frame).during(|| "sending a delayed frame".to_owned())?;
        }
        let wait = queue.due().map_or(POLL, |due| {
            due.saturating_duration_since(Instant::now()).min(POLL)
        });
        if !readable(from, wait)? {
            continue;
        }
        loop {
            // SAFETY: the buffer is valid for its length for the duration of the call.
            let got = unsafe {
                libc::recv(
                    from.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(length) = usize::try_from(got) else {
                match std::io::Error::last_os_error() {
                    e if matches!(
                        e.raw_os_error(),
                        Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN)
                    ) =>
                    {
                        break;
                    }
                    e => return Err(e).during(|| "receiving frames to delay".to_owned()),
                }
            };
            let frame = buffer.get(..length).unwrap_or_default();
            if is_delayed(frame) {
                queue.push(Instant::now(), frame);
            }
        }
    }
    Ok(queue.counts)
}

/// Waits for a frame. Returns whether there is one.
fn readable(socket: &OwnedFd, wait: Duration) -> Result<bool> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let wait = libc::timespec {
        tv_sec: 0,
        tv_nsec: wait.subsec_nanos().into(),
    };
    // SAFETY: the pointers are valid for the call: one `pollfd`, one `timespec`, no signal mask.
    let ready = unsafe { libc::ppoll(&raw mut poll, 1, &raw const wait, std::ptr::null()) };
    match ready {
        0 => Ok(false),
        1 => Ok(true),
        _ => match std::io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINTR) => Ok(false),
            e => Err(e).during(|| "waiting for frames to delay".to_owned()),
        },
    }
}

/// Whether `nft` drops this frame, so that the queue has to carry it: UDP and TCP in untagged IPv4
/// or IPv6, the latter without extension headers. `frame` begins with its metadata.
fn is_delayed(frame: &[u8]) -> bool {
    let Some((ethertype, packet)) = frame
        .get(METADATA + 12..)
        .and_then(|rest| rest.split_first_chunk::<2>())
    else {
        return false;
    };
    let protocol = match ethertype {
        [0x08, 0x00] => packet.get(9),
        [0x86, 0xdd] => packet.get(6),
        _ => None,
    };
    matches!(protocol, Some(6 | 17))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn frame(number: u8) -> Vec<u8> {
        let mut frame = vec![0; METADATA + 100];
        frame[METADATA] = number;
        frame
    }

    /// Pushes one frame each millisecond and returns the numbers in order of departure.
    fn run(impairment: Impairment, frames: u8) -> (Vec<(u8, Duration)>, Impaired) {
        let start = Instant::now();
        let mut queue = Queue::new(impairment);
        let mut left = Vec::new();
        for tick in 0..1000 {
            let now = start + MS * tick;
            while let Some(frame) = queue.pop(now) {
                left.push((frame[METADATA], now - start));
            }
            if let Ok(number) = u8::try_from(tick)
                && number < frames
            {
                queue.push(now, &frame(number));
            }
        }
        (left, queue.counts)
    }

    #[test]
    fn a_delay_is_added_to_each_packet_in_order() {
        let (left, counts) = run(
            Impairment {
                delay: 40 * MS,
                ..Impairment::default()
            },
            100,
        );
        assert_eq!(left.len(), 100);
        for (expected, (number, at)) in (0..).zip(left) {
            assert_eq!((number, at), (expected, MS * (40 + u32::from(expected))));
        }
        assert_eq!((counts.passed, counts.reordered, counts.lost), (100, 0, 0));
    }

    #[test]
    fn jitter_reorders_and_loss_loses_the_same_packets_for_the_same_seed() {
        let impairment = Impairment {
            delay: 10 * MS,
            jitter: 20 * MS,
            loss_ppm: 200_000,
            seed: 7,
            ..Impairment::default()
        };
        let (left, counts) = run(impairment, 200);
        assert_eq!(counts.passed + counts.lost, 200);
        assert!((20..60).contains(&counts.lost), "{counts:?}");
        assert!(counts.reordered > 20, "{counts:?}");
        assert_eq!(run(impairment, 200), (left, counts));
    }

    #[test]
    fn a_rate_limit_spaces_packets_and_its_queue_overflows() {
        // 100 bytes in 2 ms; one packet arrives each millisecond; 10 packets wait at most.
        let (left, counts) = run(
            Impairment {
                rate: 400_000,
                queue: 1000,
                ..Impairment::default()
            },
            100,
        );
        assert!(
            left.windows(2).all(|w| w[1].1 - w[0].1 >= 2 * MS),
            "{left:?}"
        );
        assert_eq!(counts.passed + counts.overflowed, 100);
        assert!((35..45).contains(&counts.overflowed), "{counts:?}");
    }

    #[test]
    fn only_udp_and_tcp_are_delayed() {
        let packet = |ethertype: [u8; 2], at: usize, protocol: u8| {
            let mut frame = vec![0; METADATA + 14 + 40];
            frame[METADATA + 12..METADATA + 14].copy_from_slice(&ethertype);
            frame[METADATA + 14 + at] = protocol;
            frame
        };
        for protocol in [6, 17] {
            assert!(is_delayed(&packet([0x08, 0], 9, protocol)));
            assert!(is_delayed(&packet([0x86, 0xdd], 6, protocol)));
        }
        assert!(!is_delayed(&packet([0x08, 0], 9, 1)));
        assert!(!is_delayed(&packet([0x86, 0xdd], 6, 58)));
        assert!(!is_delayed(&packet([0x08, 6], 9, 6)));
        assert!(!is_delayed(&[0; METADATA + 13]));
    }
}
