//! Distinguishes restores from ordinary time.

use std::{fmt, time::Duration};

/// A difference between two clocks that changes by more than this has jumped. Corrections of a
/// clock that goes wrong are far slower: at most 0.5 ms a second (adjtimex(2)).
const CLOCK_JUMP: Duration = Duration::from_secs(1);

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
    /// The kernel has dropped uevents, or they could not be received: one of them may have been of
    /// another generation ID.
    UeventsLost,
}

impl fmt::Display for RestoreSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GenerationId => f.write_str("the VM generation ID has changed"),
            Self::Suspended(time) => write!(f, "the machine was suspended for {time:.1?}"),
            Self::ClockSet(time) => write!(f, "the wall clock was set by {time:.1?}"),
            Self::UeventsLost => f.write_str(
                "uevents of the kernel were lost, of which one may have been of another VM \
                 generation ID",
            ),
        }
    }
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
}
