//! Sockets on a real kernel: a veth pair between two network namespaces, copy mode.
//!
//! ```text
//!   namespace xsk-<test>-near                      namespace xsk-<test>-far
//!     sender thread ─► Tx ┐                          ┌► Rx ─► echo thread ─┐
//!                         ├─ v0 ═══════════════ v0 ──┤                     │
//!     main thread  ◄─ Rx ─┘  (XDP: redirect to XSKMAP, both ends)  Tx ◄────┘
//! ```
//!
//! Needs root; without, the tests print that they are skipped, and fail if
//! `CAUSEWAY_REQUIRE_PRIVILEGED` is `1`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
};
use test_support::{StopOnDrop, skip};
use xsk::{BusyPoll, Config, Error, Memory, Rx, Sent, Tx, bind, bind_within};

const FRAMES: u32 = 4096;

#[test]
fn a_hundred_thousand_frames_are_echoed_byte_for_byte_and_in_order() {
    const COUNT: u64 = 100_000;
    // Frames under way; below the 256 that a veth queues.
    const WINDOW: u64 = 128;
    let Some(pair) = Pair::make("echo") else {
        return;
    };
    let (mut near_rx, mut near_tx) = pair.near.socket();
    let (mut far_rx, mut far_tx) = pair.far.socket();
    let _links = [pair.near.redirect(&near_rx), pair.far.redirect(&far_rx)];
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));

    let (mut near_tx, far_rx, mut far_tx) = thread::scope(|scope| {
        let _stop = StopOnDrop(&done);
        let sender = scope.spawn(|| {
            let mut next = 0;
            while next < COUNT && !done.load(Ordering::Relaxed) {
                let limit = COUNT.min(received.load(Ordering::Relaxed) + WINDOW);
                while next < limit {
                    match near_tx.transmit(|frame| Some(write_frame(frame, next))) {
                        Sent::Queued => next += 1,
                        Sent::Full => break,
                        Sent::Abandoned => unreachable!(),
                    }
                }
                near_tx.flush().unwrap();
                thread::yield_now();
            }
            drain(&mut near_tx);
            near_tx
        });
        let echo = scope.spawn(|| {
            let mut next = 0;
            while !done.load(Ordering::Relaxed) {
                wait(far_rx.fd(), 10);
                far_rx.receive(64, |bytes| {
                    assert_eq!(bytes[..], frame(next)[..], "on the way there");
                    // Both halves in one closure, and in place.
                    let sent = far_tx.transmit(|to| {
                        to[..bytes.len()].copy_from_slice(bytes);
                        Some(bytes.len())
                    });
                    assert_eq!(sent, Sent::Queued);
                    next += 1;
                });
                far_tx.flush().unwrap();
            }
            drain(&mut far_tx);
            (far_rx, far_tx)
        });
        let mut next = 0;
        let mut last = Instant::now();
        while next < COUNT && last.elapsed() < Duration::from_secs(10) {
            wait(near_rx.fd(), 10);
            let count = near_rx.receive(64, |bytes| {
                assert_eq!(bytes[..], frame(next)[..], "on the way back");
                next += 1;
            });
            if count > 0 {
                last = Instant::now();
            }
            received.store(next, Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
        let near_tx = sender.join().unwrap();
        let (far_rx, far_tx) = echo.join().unwrap();
        let statistics = [&near_rx, &far_rx].map(|rx| rx.statistics().unwrap());
        assert_eq!(next, COUNT, "near, far: {statistics:?}");
        assert_eq!(statistics.map(|s| s.rx_dropped), [0, 0]);
        assert_eq!(statistics.map(|s| s.rx_invalid_descs), [0, 0]);
        assert_eq!(statistics.map(|s| s.tx_invalid_descs), [0, 0]);
        assert_eq!(near_rx.skipped() + far_rx.skipped(), 0);
        (near_tx, far_rx, far_tx)
    });
    // No half has lost a frame: as many arrive unread, and can be queued, as it has, and no more.
    for (tx, rx) in [(&mut near_tx, far_rx), (&mut far_tx, near_rx)] {
        assert_eq!(tx.outstanding(), 0);
        assert_eq!(tx.skipped(), 0);
        receives_as_many_as_it_has(tx, rx);
        queues_as_many_as_it_has(tx);
    }
}

/// Sends more frames than the receiver has: as many arrive as it has, the others are counted.
fn receives_as_many_as_it_has(tx: &mut Tx, mut rx: Rx) {
    let before = rx.statistics().unwrap();
    for number in 0..u64::from(FRAMES) + 100 {
        assert_eq!(
            tx.transmit(|frame| Some(write_frame(frame, number))),
            Sent::Queued
        );
        if number % 32 == 31 {
            drain(tx);
        }
    }
    drain(tx);
    let after = rx.statistics().unwrap();
    assert!(
        after.fill_ring_empty > before.fill_ring_empty,
        "{before:?} {after:?}"
    );
    assert_eq!(after.rx_dropped - before.rx_dropped, 100, "{after:?}");
    let mut next = 0;
    while rx.receive(100, |bytes| {
        assert_eq!(bytes[..], frame(next)[..]);
        next += 1;
    }) > 0
    {}
    assert_eq!(next, u64::from(FRAMES));
    // And it recovers.
    assert_eq!(
        tx.transmit(|frame| Some(write_frame(frame, 7))),
        Sent::Queued
    );
    drain(tx);
    assert!(wait(rx.fd(), 1000));
    assert_eq!(
        rx.receive(9, |bytes| assert_eq!(bytes[..], frame(7)[..])),
        1
    );
}

/// Queues until the half is full, and shows that it recovers.
fn queues_as_many_as_it_has(tx: &mut Tx) {
    for _ in 0..2 {
        for number in 0..FRAMES.into() {
            assert_eq!(
                tx.transmit(|frame| Some(write_frame(frame, number))),
                Sent::Queued,
                "frame {number}"
            );
        }
        assert_eq!(tx.outstanding(), FRAMES as usize);
        assert_eq!(tx.transmit(|_| unreachable!()), Sent::Full);
        drain(tx);
    }
    assert_eq!(tx.transmit(|_| None), Sent::Abandoned);
    assert_eq!(tx.transmit(|_| Some(0)), Sent::Abandoned);
    assert_eq!(tx.transmit(|frame| Some(frame.len() + 1)), Sent::Abandoned);
    assert_eq!(tx.outstanding(), 0);
}

#[test]
fn a_full_sender_recovers_and_a_link_that_is_down_is_an_error() {
    let Some(pair) = Pair::make("full") else {
        return;
    };
    let (rx, mut tx) = pair.near.socket();
    queues_as_many_as_it_has(&mut tx);

    assert_eq!(
        tx.transmit(|frame| Some(write_frame(frame, 0))),
        Sent::Queued
    );
    pair.near.ip(&["link", "set", "v0", "down"]);
    let error = tx.flush().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN), "{error}");
    assert_eq!(rx.wake().unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
    assert_eq!(tx.outstanding(), 1);
    pair.near.ip(&["link", "set", "v0", "up"]);
    drain(&mut tx);
    rx.wake().unwrap();
}

#[test]
fn a_failed_bind_names_the_reason() {
    let Some(pair) = Pair::make("refuse") else {
        return;
    };
    let config = pair.near.config();
    let (rx, tx) = pair.near.socket();
    assert_eq!((rx.ifindex(), rx.queue()), (config.ifindex, 0));
    assert_eq!((tx.ifindex(), tx.queue()), (config.ifindex, 0));
    assert!(!rx.zero_copy());
    let flags = nix::fcntl::fcntl(rx.fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    let refused = |pair: &Pair, change: &dyn Fn(&mut Config)| {
        let mut config = pair.near.config();
        change(&mut config);
        pair.near.within(|| bind(&config)).unwrap_err()
    };

    let error = refused(&pair, &|_| ());
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert!(error.to_string().starts_with("another AF_XDP socket is"));

    // As long as a socket is bound to the queue, that goes first; so on the other end.
    let far = Config {
        memory: Memory::ZeroCopy,
        ..pair.far.config()
    };
    let error = pair.far.within(|| bind(&far)).unwrap_err();
    assert!(matches!(error, Error::ZeroCopy { .. }), "{error}");
    assert!(error.to_string().ends_with("write memory = \"copy\""));

    for memory in [Memory::Copy, Memory::ZeroCopy] {
        let error = refused(&pair, &|c| (c.queue, c.memory) = (99, memory));
        assert!(matches!(error, Error::NoQueue { queue: 99, .. }), "{error}");
        assert!(error.to_string().contains("has no queue 99"), "{error}");
    }
    let error = refused(&pair, &|c| c.ifindex = 9999);
    assert!(
        matches!(error, Error::NoInterface { ifindex: 9999 }),
        "{error}"
    );
}

#[test]
fn one_half_keeps_the_socket_and_the_queue_is_free_after_both() {
    let Some(pair) = Pair::make("drop") else {
        return;
    };
    let config = pair.near.config();
    for _ in 0..5 {
        let (rx, mut tx) = pair.near.socket();
        drop(rx);
        assert_eq!(
            tx.transmit(|frame| Some(write_frame(frame, 0))),
            Sent::Queued
        );
        drain(&mut tx);
        assert!(matches!(
            pair.near.within(|| bind(&config)),
            Err(Error::Busy { .. })
        ));
    }
}

#[test]
fn busy_polling_and_large_frames_are_available() {
    let Some(pair) = Pair::make("busy") else {
        return;
    };
    let config = Config {
        frame_size: 4096,
        rx_frames: 256,
        tx_frames: 64,
        busy_poll: Some(BusyPoll {
            micros: 20,
            budget: 64,
        }),
        ..pair.near.config()
    };
    let (mut rx, mut tx) = pair.near.within(|| bind(&config)).unwrap();
    let _link = pair.near.redirect(&rx);
    let (far_rx, mut far_tx) = pair.far.socket();
    let _far_link = pair.far.redirect(&far_rx);
    assert_eq!(
        far_tx.transmit(|frame| Some(write_frame(frame, 1))),
        Sent::Queued
    );
    drain(&mut far_tx);
    rx.wake().unwrap();
    assert!(wait(rx.fd(), 1000));
    assert_eq!(
        rx.receive(9, |bytes| assert_eq!(bytes[..], frame(1)[..])),
        1
    );
    assert!(!rx.needs_wakeup(), "copy mode never asks");
    assert_eq!(
        tx.transmit(|frame| {
            assert_eq!(frame.len(), 4096);
            Some(write_frame(frame, 2))
        }),
        Sent::Queued
    );
    drain(&mut tx);
}

/// Frame `number` of a test: 60 and 1514 bytes in turn, each different.
fn frame(number: u64) -> Vec<u8> {
    let mut frame = vec![0; 2048];
    let len = write_frame(&mut frame, number);
    frame.truncate(len);
    frame
}

fn write_frame(to: &mut [u8], number: u64) -> usize {
    let len = if number.is_multiple_of(2) { 60 } else { 1514 };
    to[..6].fill(0x02);
    to[6..12].fill(0x06);
    // IEEE 802 local experimental.
    to[12..14].copy_from_slice(&[0x88, 0xb5]);
    to[14..22].copy_from_slice(&number.to_be_bytes());
    for (i, byte) in to[22..len].iter_mut().enumerate() {
        *byte = (number as usize).wrapping_mul(31).wrapping_add(i) as u8;
    }
    len
}

/// Flushes until nothing is outstanding.
fn drain(tx: &mut Tx) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        tx.flush().unwrap();
        if tx.outstanding() == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{tx:?}");
        thread::yield_now();
    }
}

/// Whether `fd` becomes readable within `millis`.
fn wait(fd: BorrowedFd<'_>, millis: u16) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(millis)).unwrap() > 0
}

/// Two namespaces with a veth between them.
struct Pair {
    near: End,
    far: End,
}

/// One namespace, with an interface `v0` that is up.
struct End {
    namespace: String,
}

impl Pair {
    /// `None`, after printing the reason, if namespaces cannot be made here. Removes remains of an
    /// earlier run.
    fn make(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("needs root");
            return None;
        }
        let end = |side| {
            let namespace = format!("xsk-{test}-{side}");
            let end = End { namespace };
            end.remove();
            run(&["netns", "add", &end.namespace]);
            // Or the kernel's own packets would arrive between the test's.
            end.within(|| {
                std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            });
            end
        };
        let (near, far) = (end("near"), end("far"));
        run(&[
            "link",
            "add",
            "v0",
            "netns",
            &near.namespace,
            "type",
            "veth",
            "peer",
            "name",
            "v0",
            "netns",
            &far.namespace,
        ]);
        for end in [&near, &far] {
            end.ip(&["link", "set", "v0", "up"]);
        }
        Some(Self { near, far })
    }
}

impl End {
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, args: &[&str]) {
        run(&[&["-n", &self.namespace], args].concat());
    }

    fn config(&self) -> Config {
        Config {
            ifindex: self.within(|| if_nametoindex("v0")).unwrap(),
            queue: 0,
            rx_frames: FRAMES,
            tx_frames: FRAMES,
            frame_size: 2048,
            memory: Memory::Copy,
            busy_poll: None,
        }
    }

    /// Binds; waits until the kernel has released the socket before.
    fn socket(&self) -> (Rx, Tx) {
        let config = self.config();
        self.within(|| bind_within(&config, Duration::from_secs(10)))
            .unwrap()
    }

    /// Redirects everything that arrives to `rx`, by native XDP, until the links are dropped.
    fn redirect(&self, rx: &Rx) -> [OwnedFd; 3] {
        let map = bpf::xskmap().unwrap();
        bpf::set(&map, rx.queue(), rx.fd()).unwrap();
        let program = bpf::redirect_program(&map).unwrap();
        let ifindex = rx.ifindex();
        let link = self.within(|| bpf::attach(&program, ifindex)).unwrap();
        [link, program, map]
    }

    fn remove(&self) {
        if std::path::Path::new("/run/netns")
            .join(&self.namespace)
            .exists()
        {
            run(&["netns", "del", &self.namespace]);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Not by `run`: a panic here would hide the test's own.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.namespace])
            .status();
    }
}

fn run(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {stderr}", args.join(" "));
}

/// The part of bpf(2) that these tests need.
mod bpf {
    use super::*;

    const MAP_CREATE: libc::c_long = 0;
    const MAP_UPDATE_ELEM: libc::c_long = 2;
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;

    const MAP_TYPE_XSKMAP: u32 = 17;
    const PROG_TYPE_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

    /// An XSKMAP for 64 queues.
    pub(super) fn xskmap() -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
        }
        let attributes = Attributes {
            map_type: MAP_TYPE_XSKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: 64,
        };
        fd(call(MAP_CREATE, &attributes)?)
    }

    pub(super) fn set(map: &OwnedFd, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            map: u64,
            key: u64,
            value: u64,
            flags: u64,
        }
        let socket = socket.as_raw_fd();
        let attributes = Attributes {
            map: map.as_raw_fd() as u64,
            key: &raw const queue as u64,
            value: &raw const socket as u64,
            flags: 0,
        };
        call(MAP_UPDATE_ELEM, &attributes).map(drop)
    }

    /// `return bpf_redirect_map(map, ctx->rx_queue_index, XDP_PASS)`.
    pub(super) fn redirect_program(map: &OwnedFd) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
        }
        // Code, registers (source in the high half), offset, immediate.
        let instruction = |code: u64, registers: u64, offset: u64, immediate: u64| {
            code | registers << 8 | offset << 16 | immediate << 32
        };
        let program = [
            instruction(0x61, 0x12, 16, 0), // r2 = *(u32 *)(r1 + 16)
            instruction(0x18, 0x11, 0, map.as_raw_fd() as u64), // r1 = map
            0,                              //
            instruction(0xb7, 0x03, 0, 2),  // r3 = XDP_PASS
            instruction(0x85, 0x00, 0, 51), // call bpf_redirect_map
            instruction(0x95, 0x00, 0, 0),  // exit
        ];
        let attributes = Attributes {
            prog_type: PROG_TYPE_XDP,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
        };
        fd(call(PROG_LOAD, &attributes)?)
    }

    /// Attaches natively, in the namespace of this thread, until the link is dropped.
    pub(super) fn attach(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attributes {
            program: u32,
            ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        let attributes = Attributes {
            program: program.as_raw_fd() as u32,
            ifindex,
            attach_type: ATTACH_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        fd(call(LINK_CREATE, &attributes)?)
    }

    fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
        // SAFETY: the attributes of that command, whose pointers live as long as the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                &raw const *attributes,
                size_of::<T>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }

    fn fd(result: libc::c_long) -> io::Result<OwnedFd> {
        // SAFETY: a new descriptor, which bpf(2) opens close-on-exec.
        Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
    }
}
