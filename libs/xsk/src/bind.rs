//! Binds a socket and splits it into its halves.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Error, Rx, Tx,
    pool::Pool,
    ring::{Consumer, Producer},
    rx::Receiver,
    sys::{self, MappedMemory, Shared},
    tx::Transmitter,
};

/// How frames get between the NIC and the UMEM. Binding fails if this mode is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The kernel copies. Works with every driver.
    Copy,
    /// The NIC reads and writes the UMEM. The driver must support it.
    ZeroCopy,
}

/// Configuration of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The interface, in the network namespace of the calling thread.
    pub ifindex: u32,
    /// The queue, from 0.
    pub queue: u32,
    /// Frames for receiving, and size of the RX and fill rings. A power of two.
    pub rx_frames: u32,
    /// Frames for transmitting, and size of the TX and completion rings. A power of two.
    pub tx_frames: u32,
    /// Bytes of a frame: 2048 or 4096. A received frame has 256 bytes less (XDP headroom).
    pub frame_size: u32,
    /// Copy or zero-copy.
    pub memory: Memory,
    /// Whether [`Rx::wake`] and [`Tx::flush`] poll the NIC themselves, instead of interrupts.
    pub busy_poll: Option<BusyPoll>,
}

/// Preferred busy polling (`SO_PREFER_BUSY_POLL`). It takes effect only if the interface's
/// `napi_defer_hard_irqs` and `gro_flush_timeout` are set too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long a call may poll, microseconds (`SO_BUSY_POLL`).
    pub micros: u32,
    /// How many packets a poll may take (`SO_BUSY_POLL_BUDGET`), at most 65535.
    pub budget: u32,
}

/// Binds a socket to a queue of an interface, and retries for up to `timeout` while another socket
/// is bound to it: the kernel releases the queue of a closed socket later, in a work item
/// (`xdp_umem_release_deferred`), also after the end of a process.
///
/// # Errors
/// [`Error`]; [`Error::Busy`] if another socket is still bound after `timeout`.
pub fn bind_within(config: &Config, timeout: Duration) -> Result<(Rx, Tx), Error> {
    const PAUSE: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        match bind(config) {
            Err(Error::Busy { .. }) if started.elapsed() < timeout => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Binds a socket to a queue of an interface. All memory is allocated here.
///
/// # Errors
/// [`Error`], which says what to do.
pub fn bind(config: &Config) -> Result<(Rx, Tx), Error> {
    config.check()?;
    let (rx_frames, tx_frames) = (config.rx_frames, config.tx_frames);
    let rx_bytes = rx_frames as usize * config.frame_size as usize;
    let bytes = rx_bytes + tx_frames as usize * config.frame_size as usize;
    let failed = |operation| move |e| Error::memory(operation, bytes, e);

    // Before the socket, so that the UMEM is dropped after it, wherever this function returns.
    let umem = MappedMemory::frames(bytes).map_err(failed("mapping the UMEM"))?;
    let fd = sys::socket().map_err(|e| Error::os("opening an AF_XDP socket", e))?;
    // SAFETY: `umem` lives as long as `fd` (the order in `Shared`, and of locals
    // here), and only
    // the two pools below touch it.
    unsafe { sys::register_umem(&fd, umem.address(), bytes, config.frame_size) }
        .map_err(failed("registering the UMEM (XDP_UMEM_REG)"))?;
    for (ring, size) in [
        (libc::XDP_UMEM_FILL_RING, rx_frames),
        (libc::XDP_UMEM_COMPLETION_RING, tx_frames),
        (libc::XDP_RX_RING, rx_frames),
        (libc::XDP_TX_RING, tx_frames),
    ] {
        sys::make_ring(&fd, ring, size).map_err(failed("making a ring"))?;
    }
    let offsets = sys::ring_offsets(&fd)
        .map_err(|e| Error::os("asking for ring offsets (XDP_MMAP_OFFSETS)", e))?
        .ok_or(Error::Kernel {
            operation: "asking for ring offsets (XDP_MMAP_OFFSETS)",
        })?;
    let map = |len: Option<usize>, offset| {
        let len = len.ok_or(RING_LAYOUT_ERROR)?;
        MappedMemory::ring(&fd, len, offset).map_err(failed("mapping a ring"))
    };
    let rx_map = map(
        sys::ring_len::<libc::xdp_desc>(&offsets.rx, rx_frames),
        libc::XDP_PGOFF_RX_RING,
    )?;
    let tx_map = map(
        sys::ring_len::<libc::xdp_desc>(&offsets.tx, tx_frames),
        libc::XDP_PGOFF_TX_RING,
    )?;
    let fill_map = map(
        sys::ring_len::<u64>(&offsets.fr, rx_frames),
        libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
    )?;
    let completion_map = map(
        sys::ring_len::<u64>(&offsets.cr, tx_frames),
        libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
    )?;

    // SAFETY: each mapping is of that ring and used once, for this side's end of it; `Shared`
    // keeps them, and each half has its `Shared` dropped after its rings. Descriptors and
    // addresses are plain integers.
    let rings = unsafe {
        (
            rx_map
                .as_ring(&offsets.rx, rx_frames)
                .ok_or(RING_LAYOUT_ERROR)?,
            fill_map
                .as_ring(&offsets.fr, rx_frames)
                .ok_or(RING_LAYOUT_ERROR)?,
            tx_map
                .as_ring(&offsets.tx, tx_frames)
                .ok_or(RING_LAYOUT_ERROR)?,
            completion_map
                .as_ring(&offsets.cr, tx_frames)
                .ok_or(RING_LAYOUT_ERROR)?,
        )
    };
    // SAFETY: the first `rx_bytes` of the UMEM, and the rest: disjoint, of the right sizes, zeroed
    // by the kernel, and kept by `Shared` longer than the pools.
    let (rx_pool, tx_pool) = unsafe {
        let (first, rest) = (umem.address(), umem.address().add(rx_bytes));
        (
            Pool::new(first, 0, rx_frames, config.frame_size),
            Pool::new(rest, rx_bytes as u64, tx_frames, config.frame_size),
        )
    };
    // Fills the fill ring, because drivers may read it as early as bind.
    let receiver = Receiver::new(
        rx_pool,
        Consumer::new(rings.0),
        Producer::new(rings.1),
        config.memory == Memory::ZeroCopy,
    );
    let transmitter = Transmitter::new(tx_pool, Producer::new(rings.2), Consumer::new(rings.3));

    if let Some(BusyPoll { micros, budget }) = config.busy_poll {
        sys::busy_poll(&fd, micros, budget)
            .map_err(|e| Error::os("turning busy polling on (SO_PREFER_BUSY_POLL)", e))?;
    }
    attach(&fd, config)?;
    let zero_copy =
        sys::is_zero_copy(&fd).map_err(|e| Error::os("asking for the mode (XDP_OPTIONS)", e))?;
    match (config.memory, zero_copy) {
        (Memory::Copy, false) | (Memory::ZeroCopy, true) => (),
        (Memory::ZeroCopy, false) => {
            return Err(Error::ZeroCopy {
                ifindex: config.ifindex,
                reason: "the kernel bound in copy mode".to_owned(),
            });
        }
        (Memory::Copy, true) => {
            return Err(Error::Kernel {
                operation: "asking for the mode (XDP_OPTIONS)",
            });
        }
    }
    let shared = Arc::new(Shared {
        fd,
        _rings: [rx_map, tx_map, fill_map, completion_map],
        _umem: umem,
        ifindex: config.ifindex,
        queue: config.queue,
        zero_copy,
    });
    Ok((
        Rx::new(receiver, Arc::clone(&shared)),
        Tx::new(transmitter, shared),
    ))
}

const RING_LAYOUT_ERROR: Error = Error::Kernel {
    operation: "laying out a ring",
};

impl Config {
    fn check(&self) -> Result<(), Error> {
        let wrong = |field, value, reason| {
            Err(Error::Config {
                field,
                value,
                reason,
            })
        };
        for (field, value) in [("rx_frames", self.rx_frames), ("tx_frames", self.tx_frames)] {
            if !value.is_power_of_two() {
                return wrong(field, value, "must be a power of two");
            }
        }
        if !matches!(self.frame_size, 2048 | 4096) {
            return wrong("frame_size", self.frame_size, "must be 2048 or 4096");
        }
        match self.busy_poll {
            Some(BusyPoll { budget, .. }) if budget == 0 || budget > u16::MAX.into() => {
                wrong("busy_poll.budget", budget, "must be 1 to 65535")
            }
            Some(BusyPoll { micros, .. }) if micros > i32::MAX as u32 => {
                wrong("busy_poll.micros", micros, "must be below 2147483648")
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Binds the prepared socket. Finds out why, if that fails.
fn attach(fd: &OwnedFd, config: &Config) -> Result<(), Error> {
    let (ifindex, queue) = (config.ifindex, config.queue);
    let bind = |mode| sys::bind(fd, ifindex, queue, mode | libc::XDP_USE_NEED_WAKEUP);
    let mode = match config.memory {
        Memory::Copy => libc::XDP_COPY,
        Memory::ZeroCopy => libc::XDP_ZEROCOPY,
    };
    let Err(source) = bind(mode) else {
        return Ok(());
    };
    // EINVAL may concern the queue or the mode: trying copy mode tells. The socket is closed
    // anyway.
    let copy_fails = || bind(libc::XDP_COPY).is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL));
    Err(diagnose(config, source, copy_fails))
}

/// Diagnoses a failed bind. `copy_fails` tells whether copy mode fails with EINVAL too; it is
/// called only after EINVAL from zero-copy.
fn diagnose(config: &Config, source: io::Error, copy_fails: impl FnOnce() -> bool) -> Error {
    let (ifindex, queue) = (config.ifindex, config.queue);
    let zero_copy = config.memory == Memory::ZeroCopy;
    match source.raw_os_error() {
        Some(libc::EBUSY) => Error::Busy { ifindex, queue },
        Some(libc::ENODEV) => Error::NoInterface { ifindex },
        Some(libc::EINVAL) if !zero_copy || copy_fails() => Error::NoQueue { ifindex, queue },
        Some(libc::EINVAL | libc::EOPNOTSUPP) if zero_copy => Error::ZeroCopy {
            ifindex,
            reason: source.to_string(),
        },
        _ => Error::os("binding the AF_XDP socket", source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(memory: Memory) -> Config {
        Config {
            ifindex: 7,
            queue: 3,
            rx_frames: 64,
            tx_frames: 64,
            frame_size: 2048,
            memory,
            busy_poll: None,
        }
    }

    #[test]
    fn a_failed_bind_says_what_to_do() {
        use Memory::{Copy, ZeroCopy};
        let cases = [
            (Copy, libc::EBUSY, true, "another AF_XDP socket is bound"),
            (ZeroCopy, libc::EBUSY, true, "another AF_XDP socket is"),
            (Copy, libc::ENODEV, true, "there is no interface 7"),
            (Copy, libc::EINVAL, true, "interface 7 has no queue 3"),
            (ZeroCopy, libc::EINVAL, true, "interface 7 has no queue 3"),
            (ZeroCopy, libc::EINVAL, false, "write memory = \"copy\""),
            (ZeroCopy, libc::EOPNOTSUPP, false, "of interface 7 cannot"),
            (Copy, libc::EPERM, false, "CAP_NET_RAW"),
            (Copy, libc::ENETDOWN, false, "binding the AF_XDP socket: "),
        ];
        for (memory, errno, copy_fails, expected) in cases {
            let source = io::Error::from_raw_os_error(errno);
            let message = diagnose(&config(memory), source, || copy_fails).to_string();
            assert!(message.contains(expected), "{memory:?} {errno}: {message}");
        }
        let message =
            Error::memory("x", 42, io::Error::from_raw_os_error(libc::ENOBUFS)).to_string();
        assert!(message.contains("RLIMIT_MEMLOCK"), "{message}");
    }

    #[test]
    fn invalid_configurations_are_refused_by_field() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 6] = [
            ("rx_frames = 0", |c| c.rx_frames = 0),
            ("rx_frames = 100", |c| c.rx_frames = 100),
            ("tx_frames = 3", |c| c.tx_frames = 3),
            ("frame_size = 1024", |c| c.frame_size = 1024),
            ("busy_poll.budget = 65536", |c| {
                c.busy_poll = Some(BusyPoll {
                    micros: 20,
                    budget: 65536,
                });
            }),
            ("busy_poll.micros = 2147483648", |c| {
                c.busy_poll = Some(BusyPoll {
                    micros: 1 << 31,
                    budget: 64,
                });
            }),
        ];
        for (expected, change) in cases {
            let mut config = config(Memory::Copy);
            change(&mut config);
            let Err(error) = bind(&config) else {
                panic!("{expected} was accepted");
            };
            let message = error.to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
