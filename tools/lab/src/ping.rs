//! A precise pinger: a series at a fixed pace, every number accounted for. ICMP echo or UDP,
//! IPv4 or IPv6.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use packet_rules::checksum::checksum;

use crate::{
    error::{During as _, Result},
    netns,
    site::Lab,
};

/// The kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// ICMP or ICMPv6 echo; any stack answers.
    Echo,
    /// UDP to this port, where [`Lab::udp_echo`] answers.
    Udp(u16),
}

/// A pinger at work. Dropping it ends it.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Report>>>,
}

/// The result of a series.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// When each number was sent, by number from 0 on.
    pub sent: Vec<Option<Instant>>,
    /// Time of each number's reply, or `None` without one. Duplicates count once.
    pub received: Vec<Option<Instant>>,
    /// Replies beyond the first to a number.
    pub duplicates: u32,
}

/// The longest time without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last reply before it.
    pub from: Instant,
    /// The first reply after it.
    pub to: Instant,
}

impl Gap {
    #[must_use]
    pub fn length(&self) -> Duration {
        self.to - self.from
    }
}

impl Report {
    /// Numbers without a reply, in order.
    #[must_use]
    pub fn lost(&self) -> Vec<usize> {
        (0..self.sent.len())
            .filter(|n| self.received.get(*n).copied().flatten().is_none())
            .collect()
    }

    /// Number of replies.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.received.iter().flatten().count()
    }

    /// Numbers sent at or after `moment` without a reply.
    #[must_use]
    pub fn lost_since(&self, moment: Instant) -> Vec<usize> {
        self.lost()
            .into_iter()
            .filter(|n| {
                let sent = self.sent.get(*n).copied().flatten();
                sent.is_none_or(|sent| sent >= moment)
            })
            .collect()
    }

    /// The longest time between two replies, or between the last reply and the last probe sent if
    /// that is longer; `None` without a reply.
    #[must_use]
    pub fn longest_gap(&self) -> Option<Gap> {
        let mut times: Vec<_> = self.received.iter().flatten().copied().collect();
        times.sort();
        let last_reply = *times.last()?;
        if let Some(last_sent) = self.sent.iter().flatten().max() {
            times.push(last_reply.max(*last_sent));
        }
        times
            .windows(2)
            .filter_map(|w| match w {
                [from, to] => Some(Gap {
                    from: *from,
                    to: *to,
                }),
                _ => None,
            })
            .max_by_key(Gap::length)
    }

    /// The median round trip; `None` without replies.
    #[must_use]
    pub fn median_rtt(&self) -> Option<Duration> {
        let mut all: Vec<_> = self
            .sent
            .iter()
            .zip(&self.received)
            .filter_map(|(s, r)| Some(r.as_ref()?.duration_since(*s.as_ref()?)))
            .collect();
        all.sort();
        all.get(all.len() / 2).copied()
    }

    /// `998/1000 answered, longest gap 23 ms, lost 17, 18`, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let lost = self.lost();
        let mut text = format!("{}/{} answered", self.answered(), self.sent.len());
        if let Some(gap) = self.longest_gap() {
            text.push_str(&format!(
                ", longest gap {:.1} ms",
                gap.length().as_secs_f64() * 1e3
            ));
        }
        if !lost.is_empty() {
            let shown: Vec<_> = lost.iter().take(8).map(ToString::to_string).collect();
            let more = if lost.len() > 8 { ", …" } else { "" };
            text.push_str(&format!(", lost {}{more}", shown.join(", ")));
        }
        text
    }
}

impl Pinger {
    /// Ends the series, waits `grace` for replies that are under way, and reports.
    ///
    /// # Errors
    /// If the socket failed in a way that is not the network's.
    pub fn stop(mut self) -> Result<Report> {
        self.end()
    }

    fn end(&mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(Report::default()),
        }
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        // The report is dropped.
        let _ = self.end();
    }
}

/// How long the last replies are waited for.
const GRACE: Duration = Duration::from_millis(300);

impl Lab {
    /// Pings `to` from `host`, one probe each `interval`, until stopped. A send that fails (no
    /// route, no neighbour) counts as a lost probe.
    ///
    /// # Errors
    /// If there is no such host, or no socket.
    pub fn ping(&self, host: &str, to: IpAddr, probe: Probe, interval: Duration) -> Result<Pinger> {
        let socket = netns::within(&self.namespace(host)?, || Socket::open(to, probe))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("ping".to_owned())
            .spawn(move || series(&socket, interval, &stopping))
            .during(|| "starting a thread".to_owned())?;
        Ok(Pinger {
            stop,
            thread: Some(thread),
        })
    }

    /// Sends `count` probes and waits for their replies.
    ///
    /// # Errors
    /// As [`Lab::ping`].
    pub fn ping_count(
        &self,
        host: &str,
        to: IpAddr,
        probe: Probe,
        interval: Duration,
        count: u32,
    ) -> Result<Report> {
        let pinger = self.ping(host, to, probe, interval)?;
        let until = Instant::now() + interval * count - interval / 2;
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        pinger.stop()
    }

    /// Answers every UDP datagram to `port` of `host` with itself, until dropped.
    ///
    /// # Errors
    /// If there is no such host, or the port is taken.
    pub fn udp_echo(&self, host: &str, port: u16) -> Result<UdpEcho> {
        let socket = netns::within(&self.namespace(host)?, || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
                .during(|| format!("binding UDP port {port} on {host}"))?;
            socket
                .set_read_timeout(Some(Duration::from_millis(20)))
                .during(|| "setting a timeout".to_owned())?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("udp-echo".to_owned())
            .spawn(move || {
                let mut buffer = [0; 65_536];
                while !stopping.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    // A reply that cannot be sent is a lost probe.
                    let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                }
            })
            .during(|| "starting a thread".to_owned())?;
        Ok(UdpEcho {
            stop,
            thread: Some(thread),
        })
    }
}

/// Answers datagrams until dropped.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Marks our probes among others' (ICMP sockets see every echo reply of the host).
const MARK: &[u8; 8] = b"causeway";

struct Socket {
    fd: OwnedFd,
    probe: Probe,
    v6: bool,
    id: u16,
}

impl Socket {
    fn open(to: IpAddr, probe: Probe) -> Result<Self> {
        let v6 = to.is_ipv6();
        let (fd, id, port) = match probe {
            Probe::Udp(port) => {
                let any: IpAddr = if v6 {
                    Ipv6Addr::UNSPECIFIED.into()
                } else {
                    Ipv4Addr::UNSPECIFIED.into()
                };
                let socket =
                    UdpSocket::bind((any, 0)).during(|| "binding a UDP socket".to_owned())?;
                (OwnedFd::from(socket), 0, port)
            }
            Probe::Echo => {
                let (family, protocol) = if v6 {
                    (libc::AF_INET6, libc::IPPROTO_ICMPV6)
                } else {
                    (libc::AF_INET, libc::IPPROTO_ICMP)
                };
                // SAFETY: no pointer is passed.
                let fd =
                    unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
                if fd < 0 {
                    return Err(io::Error::last_os_error())
                        .during(|| "opening a raw ICMP socket".to_owned());
                }
                // SAFETY: the descriptor was just made and has no other owner.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                // Descriptor numbers are unique among the live pingers of this process.
                let id = (std::process::id() as u16) ^ ((fd.as_raw_fd() as u16) << 9);
                (fd, id, 0)
            }
        };
        let mut attempts = 0;
        // A host that is just coming up may have no route yet.
        while let Err(e) = connect(&fd, SocketAddr::new(to, port)) {
            attempts += 1;
            if attempts > 100 {
                return Err(e).during(|| format!("finding a route to {to}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { fd, probe, v6, id })
    }

    fn send(&self, number: u32) -> bool {
        let mut packet = Vec::with_capacity(56);
        if self.probe == Probe::Echo {
            packet.extend([if self.v6 { 128 } else { 8 }, 0, 0, 0]);
            packet.extend(self.id.to_be_bytes());
            packet.extend((number as u16).to_be_bytes());
        }
        packet.extend(MARK);
        packet.extend(number.to_be_bytes());
        packet.resize(56, 0);
        if self.probe == Probe::Echo && !self.v6 {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_ne_bytes());
        }
        // SAFETY: the buffer is valid for its length for the duration of the call.
        let sent = unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent) == Ok(packet.len())
    }

    /// The number of a received reply, if it is one of ours.
    fn receive(&self) -> Option<Option<u32>> {
        let mut buffer = [0_u8; 2048];
        // SAFETY: the buffer is valid for its length for the duration of the call.
        let got = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let packet = buffer.get(..usize::try_from(got).ok()?)?;
        Some(self.number_in(packet))
    }

    fn number_in(&self, packet: &[u8]) -> Option<u32> {
        let body = match self.probe {
            Probe::Udp(_) => packet,
            Probe::Echo => {
                // Raw IPv4 sockets deliver the IP header too.
                let icmp = if self.v6 {
                    packet
                } else {
                    packet.get(usize::from(packet.first()? & 15) * 4..)?
                };
                let reply = if self.v6 { 129 } else { 0 };
                if *icmp.first()? != reply || icmp.get(4..6)? != self.id.to_be_bytes() {
                    return None;
                }
                icmp.get(8..)?
            }
        };
        if body.get(..8)? != MARK {
            return None;
        }
        Some(u32::from_be_bytes(body.get(8..12)?.try_into().ok()?))
    }
}

fn connect(fd: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    use nix::sys::socket::{SockaddrStorage, connect};
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).map_err(io::Error::from)
}

fn series(socket: &Socket, interval: Duration, stop: &AtomicBool) -> Result<Report> {
    let mut report = Report::default();
    let mut next = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(now + GRACE);
        }
        match end {
            None if now >= next => {
                let number = report.sent.len();
                report.sent.push(Some(now));
                report.received.push(None);
                // A send that fails is a probe that was lost.
                let _ = socket.send(u32::try_from(number).unwrap_or(u32::MAX));
                next += interval;
            }
            Some(end) if now >= end || report.received.iter().all(Option::is_some) => {
                return Ok(report);
            }
            None | Some(_) => {}
        }
        let until = end.map_or(next, |_| now + Duration::from_millis(5));
        await_readable(socket, until.saturating_duration_since(Instant::now()));
        while let Some(reply) = socket.receive() {
            let Some(number) = reply.and_then(|n| usize::try_from(n).ok()) else {
                continue;
            };
            match report.received.get_mut(number) {
                Some(slot @ None) => *slot = Some(Instant::now()),
                Some(Some(_)) => report.duplicates += 1,
                None => {}
            }
        }
    }
}

fn await_readable(socket: &Socket, within: Duration) {
    let mut poll = libc::pollfd {
        fd: socket.fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let wait = libc::timespec {
        tv_sec: libc::time_t::try_from(within.as_secs()).unwrap_or(1),
        tv_nsec: libc::c_long::from(within.subsec_nanos().cast_signed()),
    };
    // SAFETY: the pointers are valid for one `pollfd`, the count, and for a `timespec`.
    unsafe { libc::ppoll(&raw mut poll, 1, &raw const wait, std::ptr::null()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pattern: &[Option<u64>]) -> (Instant, Report) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let report = Report {
            sent: (0..pattern.len() as u64)
                .map(|n| Some(at(n * 10)))
                .collect(),
            received: pattern.iter().map(|ms| ms.map(at)).collect(),
            duplicates: 0,
        };
        (start, report)
    }

    #[test]
    fn lost_numbers_and_the_longest_gap_are_found() {
        let (start, r) = report(&[Some(1), Some(11), None, None, Some(41), Some(51)]);
        assert_eq!(r.lost(), [2, 3]);
        assert_eq!(r.longest_gap().unwrap().length(), Duration::from_millis(30));
        assert_eq!(r.lost_since(start + Duration::from_millis(25)), [3]);
        assert!(
            r.summary()
                .starts_with("4/6 answered, longest gap 30.0 ms, lost 2, 3")
        );
    }

    #[test]
    fn replies_out_of_order_make_no_gap() {
        let (_, r) = report(&[Some(1), Some(31), Some(21), Some(32)]);
        assert_eq!(r.longest_gap().unwrap().length(), Duration::from_millis(20));
    }

    #[test]
    fn a_series_that_ends_in_silence_has_that_gap() {
        let (_, r) = report(&[Some(1), Some(11), None, None, None, None]);
        assert_eq!(r.longest_gap().unwrap().length(), Duration::from_millis(39));
    }

    #[test]
    fn a_silent_series_has_no_gap_and_loses_all() {
        let (_, r) = report(&[None, None]);
        assert_eq!((r.lost().len(), r.longest_gap()), (2, None));
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&data).to_ne_bytes(), (!0xddf2_u16).to_be_bytes());
    }
}
