//! Detects that the machine was restored from a snapshot of its memory.
//!
//! After a restore every counter in memory is an old one, and a session would use nonces a second
//! time. So every holder of keys compares [`Restores::count`] with the number that it last saw, and
//! wipes its keys when the number differs: workers before each batch of frames, TLS connections
//! before each record, the manager before all other work.
//!
//! ```text
//!   kernel: NEW_VMGENID=1 (uevent) ─┐
//!                                   ├─▶ RestoreDetector ─▶ Restores ─▶ workers, TLS, manager
//!   clocks, every 250 ms ───────────┘
//! ```
//!
//! The uevent is sent when the hypervisor changes the VM generation ID (drivers/virt/vmgenid.c,
//! Linux 6.12). Without such a device, a correction of the wall clock reveals the missing time.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

use crate::clock;

/// Interval at which the clocks are read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// A difference between two clocks that changes by more than this has jumped. Corrections of a
/// clock that goes wrong are far slower: at most 0.5 ms a second (adjtimex(2)).
const CLOCK_JUMP: Duration = Duration::from_secs(1);
/// Multicast group of the kernel's uevents.
const KERNEL_GROUP: u32 = 1;

/// The three clocks at the same moment, since their origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// `CLOCK_MONOTONIC`, which stands still while the machine is suspended.
    pub monotonic: Duration,
    /// `CLOCK_BOOTTIME`, which does not.
    pub boot: Duration,
    /// `CLOCK_REALTIME`.
    pub real: Duration,
}

/// Why the machine counts as restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreSign {
    /// The hypervisor gave the machine another generation ID.
    GenerationId,
    /// The machine was suspended for this long.
    Suspended(Duration),
    /// The wall clock was set by this much, forward or back.
    ClockSet(Duration),
}

/// Distinguishes restores from ordinary time. Pure.
#[derive(Debug, Default)]
pub struct RestoreDetector {
    last: Option<ClockSample>,
}

impl RestoreDetector {
    /// Takes a uevent of the kernel, fields separated by zero bytes.
    #[must_use]
    pub fn uevent(&self, message: &[u8]) -> Option<RestoreSign> {
        let mut fields = message.split(|byte| *byte == 0);
        fields
            .any(|field| field == b"NEW_VMGENID=1")
            .then_some(RestoreSign::GenerationId)
    }

    /// Takes a sample of the clocks.
    pub fn sample(&mut self, now: ClockSample) -> Option<RestoreSign> {
        let last = self.last.replace(now)?;
        let passed = |clock: fn(&ClockSample) -> Duration| clock(&now).abs_diff(clock(&last));
        let suspended = passed(|s| s.boot).abs_diff(passed(|s| s.monotonic));
        if suspended > CLOCK_JUMP {
            return Some(RestoreSign::Suspended(suspended));
        }
        let offset = |sample: &ClockSample| {
            let nanos = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
            nanos(sample.real) - nanos(sample.boot)
        };
        let set = offset(&now).abs_diff(offset(&last));
        let set = Duration::from_nanos(u64::try_from(set).unwrap_or(u64::MAX));
        (set > CLOCK_JUMP).then_some(RestoreSign::ClockSet(set))
    }
}

/// How often the machine was restored while the process ran.
#[derive(Clone, Debug, Default)]
pub struct Restores(Arc<AtomicU64>);

impl Restores {
    /// The number of restores.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(SeqCst)
    }

    /// Notes a restore. Everything that holds keys wipes them.
    pub fn note(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    /// The restores of this process. The first call starts a thread that watches for them.
    #[must_use]
    pub fn watched() -> Self {
        static RESTORES: OnceLock<Restores> = OnceLock::new();
        RESTORES
            .get_or_init(|| {
                let restores = Self::default();
                let noted = restores.clone();
                let started = std::thread::Builder::new()
                    .name("restore-watch".to_owned())
                    .spawn(move || watch(&noted));
                if let Err(error) = started {
                    tracing::error!(%error, "cannot watch for restored snapshots: do not restore \
                        this machine from a snapshot of its memory");
                }
                restores
            })
            .clone()
    }
}

/// Reads uevents and clocks for ever.
fn watch(restores: &Restores) {
    let mut detector = RestoreDetector::default();
    let events = uevents()
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "the kernel sends no uevents; only jumps of clocks detect a restored snapshot"
            );
        })
        .ok();
    let mut buffer = [0; 4096];
    loop {
        let timeout = PollTimeout::from(SAMPLE_INTERVAL.as_millis() as u16);
        let mut fds = events
            .iter()
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<_> = fds.by_ref().collect();
        let _ = poll(&mut fds, timeout);
        let mut sign = None;
        if let Some(events) = &events {
            while let Ok(bytes) = recv(events.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                sign = sign.or(detector.uevent(&buffer[..bytes]));
            }
        }
        let clocks = detector.sample(clock::sample());
        if let Some(sign) = sign.or(clocks) {
            restores.note();
            tracing::warn!(
                ?sign,
                "this machine may have been restored from a snapshot: all sessions were retired"
            );
        }
    }
}

/// A socket that receives the kernel's uevents.
fn uevents() -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(boot: u64, suspended: u64, wall: i64) -> ClockSample {
        let ms = Duration::from_millis;
        ClockSample {
            monotonic: ms(boot - suspended),
            boot: ms(boot),
            real: ms(1_700_000_000_000 + boot).saturating_add_signed(wall),
        }
    }

    trait Signed {
        fn saturating_add_signed(self, ms: i64) -> Self;
    }

    impl Signed for Duration {
        fn saturating_add_signed(self, ms: i64) -> Self {
            let by = Self::from_millis(ms.unsigned_abs());
            if ms < 0 { self - by } else { self + by }
        }
    }

    #[test]
    fn a_changed_generation_id_is_a_restore_and_no_other_uevent_is() {
        let detector = RestoreDetector::default();
        let event = b"change@/devices/LNXSYSTM:00/QEMUVGID:00\0ACTION=change\0\
            DEVPATH=/devices/LNXSYSTM:00/QEMUVGID:00\0SUBSYSTEM=acpi\0NEW_VMGENID=1\0SEQNUM=99\0";
        assert_eq!(detector.uevent(event), Some(RestoreSign::GenerationId));
        let other = b"change@/devices/x\0ACTION=change\0NAME=NEW_VMGENID=1\0SEQNUM=100\0";
        assert_eq!(detector.uevent(other), None);
        assert_eq!(detector.uevent(b""), None);
    }

    #[test]
    fn jumps_of_the_clocks_are_restores_and_corrections_are_not() {
        let mut detector = RestoreDetector::default();
        // Clocks go, are corrected by 500 ppm, and the thread is late by minutes.
        for (step, boot) in [0, 250, 500, 200_000, 200_250].into_iter().enumerate() {
            let corrected = i64::try_from(boot / 2000).unwrap_or_default();
            assert_eq!(
                detector.sample(sample(1000 + boot, 0, corrected)),
                None,
                "{step}"
            );
        }
        let secs = Duration::from_secs;
        assert_eq!(
            detector.sample(sample(210_000, 5000, 100)),
            Some(RestoreSign::Suspended(secs(5)))
        );
        assert_eq!(
            detector.sample(sample(210_250, 5000, 100)),
            None,
            "noticed once"
        );
        assert_eq!(
            detector.sample(sample(210_500, 5000, 3_600_100)),
            Some(RestoreSign::ClockSet(secs(3600)))
        );
        assert_eq!(
            detector.sample(sample(210_750, 5000, -2_399_900)),
            Some(RestoreSign::ClockSet(secs(6000)))
        );
    }

    #[test]
    fn the_kernels_uevents_can_be_received() {
        if let Err(error) = uevents() {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
    }
}
