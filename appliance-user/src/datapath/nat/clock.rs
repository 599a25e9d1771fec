//! Clocks of the kernel, by which programs and sweeper tell the age of an entry.

use std::time::Duration;

use appliance_common::nat::ticks;

/// The current time in the programs' ticks.
#[must_use]
pub fn ticks_now() -> u32 {
    ticks(monotonic().as_nanos() as u64)
}

/// The clock of bpf_ktime_get_coarse_ns, within a tick of the kernel.
pub fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// The time of a clock of the kernel.
pub fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
