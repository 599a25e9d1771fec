//! The NAT log: a line of JSON when a mapping is created, and one when it is removed.
//!
//! ```text
//!   programs ── NAT_EVENTS: created ──────┐
//!   connection sweeper ── queue: removed ─┴─▶ thread nat-log ─▶ file, or the daemon's log
//! ```
//!
//! The thread alone writes. The programs do not wait for it: what does not fit the ring is lost and
//! counted. The sweeper, which may remove a million mappings at once, waits for room in the queue,
//! but not for a log that stands still.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write as _},
    net::SocketAddr,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender, TryRecvError, TrySendError},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use appliance_common::{events::MappingEvent, nat::MappingKey};
use aya::maps::{MapData, RingBuf};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;

use super::{
    clock::monotonic,
    list::{protocol_name, socket},
};
use crate::config::LogTarget;

/// Removed mappings that wait to be written.
const QUEUE: usize = 16_384;
/// Longest time for which the thread does not look at queue and commands, milliseconds.
const WAIT_MS: i32 = 200;
/// Time for which the sweeper waits for a log that takes nothing. Mappings are lost after that,
/// until the log takes one again.
const STALLED: Duration = Duration::from_secs(1);

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "nat.log: cannot open {}: {source}; its folder must exist and be writable", path.display()
)]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

/// Where lines go.
#[derive(Debug)]
pub struct Output(Kind);

#[derive(Debug)]
enum Kind {
    Daemon,
    File(PathBuf, BufWriter<File>),
}

impl Output {
    /// Opens a target; a file for appending, readable by its owner and group.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(target: &LogTarget) -> Result<Self, OpenError> {
        let LogTarget::File(path) = target else {
            return Ok(Self(Kind::Daemon));
        };
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o640).open(path);
        let file = file.map_err(|source| OpenError {
            path: path.clone(),
            source,
        })?;
        Ok(Self(Kind::File(path.clone(), BufWriter::new(file))))
    }

    fn write(&mut self, line: &Line<'_>) -> io::Result<()> {
        match &mut self.0 {
            Kind::Daemon => {
                tracing::info!(
                    event = line.event,
                    time = line.time,
                    tenant = line.tenant,
                    protocol = line.protocol,
                    inside = %line.inside,
                    outside = %line.outside,
                    "NAT mapping"
                );
                Ok(())
            }
            Kind::File(_, file) => {
                serde_json::to_writer(&mut *file, line)?;
                file.write_all(b"\n")
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Daemon => Ok(()),
            Kind::File(_, file) => file.flush(),
        }
    }
}

/// A line. The keys are stable; new ones may be added.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Milliseconds since 1970.
    time: u64,
    /// `opened` or `closed`.
    event: &'static str,
    /// Name of the tenant; empty if the slot has none any more.
    tenant: &'a str,
    /// `tcp`, `udp`, `icmp` or `icmpv6`.
    protocol: &'a str,
    /// The machine's address and port. For ICMP the identifier is the port.
    inside: SocketAddr,
    /// The NAT address and port.
    outside: SocketAddr,
}

/// Names of tenants by slot.
pub type TenantNames = BTreeMap<u32, String>;

/// A removed mapping: its endpoints inside and outside.
type Removed = (MappingKey, MappingKey);

/// Takes removed mappings. Clones share the queue.
#[derive(Clone, Debug)]
pub struct RemovedMappings {
    queue: SyncSender<Removed>,
    /// Wakes the thread.
    wake: Arc<EventFd>,
    /// Lines are written somewhere.
    has_output: Arc<AtomicBool>,
    /// The log took nothing for [`STALLED`].
    is_stalled: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
}

impl RemovedMappings {
    fn new(queue: SyncSender<Removed>) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            queue,
            wake: Arc::new(wake),
            has_output: Arc::default(),
            is_stalled: Arc::default(),
            lost: Arc::default(),
        })
    }

    /// Adds a mapping. Waits for room, at most [`STALLED`]; counts the mapping as lost then.
    pub fn add(&self, inside: MappingKey, outside: MappingKey) {
        if !self.has_output.load(Ordering::Relaxed) {
            return;
        }
        let mut removed = (inside, outside);
        let mut since = None;
        loop {
            match self.queue.try_send(removed) {
                Ok(()) => {
                    self.is_stalled.store(false, Ordering::Relaxed);
                    return;
                }
                Err(TrySendError::Full(back)) => removed = back,
                // The log has ended with the daemon.
                Err(TrySendError::Disconnected(_)) => break,
            }
            let waited = since.get_or_insert_with(Instant::now).elapsed();
            if self.is_stalled.load(Ordering::Relaxed) || waited >= STALLED {
                self.is_stalled.store(true, Ordering::Relaxed);
                break;
            }
            // It fails only if the thread has been woken often enough.
            let _ = self.wake.write(1);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

/// Handle of the thread. Dropping it ends the thread after what was reported until then.
#[derive(Debug)]
pub struct NatLog {
    commands: Option<Sender<Option<Output>>>,
    thread: Option<JoinHandle<()>>,
    removed: RemovedMappings,
    names: Arc<Mutex<TenantNames>>,
}

impl NatLog {
    /// Starts the thread with the ring of new mappings. Nothing is written before
    /// [`NatLog::set_output`].
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub fn spawn(ring: RingBuf<MapData>) -> io::Result<Self> {
        let (commands, commanded) = mpsc::channel();
        let (queue, queued) = mpsc::sync_channel(QUEUE);
        let removed = RemovedMappings::new(queue)?;
        let names = Arc::new(Mutex::new(TenantNames::new()));
        let mut writer = Writer {
            ring,
            queued,
            wake: Arc::clone(&removed.wake),
            output: None,
            names: Arc::clone(&names),
            lost: Arc::clone(&removed.lost),
        };
        let thread = std::thread::Builder::new()
            .name("nat-log".to_owned())
            .spawn(move || writer.run(&commanded))?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
            removed,
            names,
        })
    }

    /// Sets where lines go from now on; `None`: nowhere.
    pub fn set_output(&self, output: Option<Output>) {
        let has_output = output.is_some();
        self.removed.has_output.store(has_output, Ordering::Relaxed);
        if let Some(commands) = &self.commands {
            // It fails only if the thread has panicked, which ends the process.
            let _ = commands.send(output);
        }
    }

    /// Sets the names of the tenants.
    pub fn set_names(&self, names: TenantNames) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Takes removed mappings.
    #[must_use]
    pub fn removed(&self) -> RemovedMappings {
        self.removed.clone()
    }

    /// Lines lost because the log could not keep up or could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.removed.lost.load(Ordering::Relaxed)
    }
}

impl Drop for NatLog {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("NAT log thread panicked");
        }
    }
}

struct Writer {
    ring: RingBuf<MapData>,
    queued: Receiver<Removed>,
    wake: Arc<EventFd>,
    output: Option<Output>,
    names: Arc<Mutex<TenantNames>>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(&mut self, commands: &Receiver<Option<Output>>) {
        loop {
            let ended = loop {
                match commands.try_recv() {
                    Ok(output) => self.output = output,
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Disconnected) => break true,
                }
            };
            self.write_all();
            if ended {
                return;
            }
            let mut polls = [self.ring.as_raw_fd(), self.wake.as_raw_fd()].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: `polls` has two valid elements. An error means a shorter wait.
            unsafe { libc::poll(polls.as_mut_ptr(), 2, WAIT_MS) };
            // An error: it was not woken.
            let _ = self.wake.read();
        }
    }

    /// Writes what ring and queue have.
    fn write_all(&mut self) {
        let names = self
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (wall, clock) = (wall_clock(), monotonic());
        let mut written = Ok(());
        let mut write = |output: &mut Option<Output>, time, event, removed: &Removed| {
            let Some(output) = output else { return };
            let (inside, outside) = removed;
            let slot = u32::from(inside.zone).wrapping_sub(1);
            let line = Line {
                time,
                event,
                tenant: names.get(&slot).map_or("", String::as_str),
                protocol: &protocol_name(inside.protocol),
                inside: socket(&inside.address, inside.port),
                outside: socket(&outside.address, outside.port),
            };
            if written.is_ok() {
                written = output.write(&line);
            }
            if written.is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut taken = 0;
        while taken < QUEUE
            && let Some(record) = self.ring.next()
        {
            taken += 1;
            if let Some(event) = MappingEvent::from_bytes(&record) {
                let age = clock.saturating_sub(Duration::from_nanos(event.at));
                let time = wall.saturating_sub(age.as_millis() as u64);
                write(
                    &mut self.output,
                    time,
                    "opened",
                    &(event.inside, event.outside),
                );
            }
        }
        for removed in self.queued.try_iter().take(QUEUE) {
            write(&mut self.output, wall, "closed", &removed);
        }
        let flushed = self.output.as_mut().map_or(Ok(()), Output::flush);
        if let Err(error) = written.and(flushed)
            && let Some(Output(Kind::File(path, _))) = self.output.take()
        {
            tracing::error!(
                %error,
                path = %path.display(),
                "cannot write the NAT log; its lines are lost until a reload"
            );
        }
    }
}

/// Milliseconds since 1970.
fn wall_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_with_stable_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nat.jsonl");
        let mut output = Output::open(&LogTarget::File(path.clone())).expect("it opens");
        for event in ["opened", "closed"] {
            let line = Line {
                time: 1_700_000_000_123,
                event,
                tenant: "acme",
                protocol: "udp",
                inside: "10.1.0.10:4000".parse().expect("an endpoint"),
                outside: "[2001:db8::1]:5000".parse().expect("an endpoint"),
            };
            output.write(&line).expect("written");
        }
        output.flush().expect("flushed");
        let text = std::fs::read_to_string(path).expect("it is there");
        assert_eq!(
            text.lines().next(),
            Some(
                "{\"time\":1700000000123,\"event\":\"opened\",\"tenant\":\"acme\",\
                 \"protocol\":\"udp\",\"inside\":\"10.1.0.10:4000\",\
                 \"outside\":\"[2001:db8::1]:5000\"}"
            )
        );
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_log_that_stands_still_is_waited_for_once() {
        let (queue, queued) = mpsc::sync_channel(8);
        let removed = RemovedMappings::new(queue).expect("an eventfd");
        let key = MappingKey::default();
        // Without an output there is nothing to wait for.
        removed.add(key, key);
        assert!(queued.try_recv().is_err());
        removed.has_output.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        for _ in 0..1000 {
            removed.add(key, key);
        }
        let waited = begun.elapsed();
        assert!((STALLED..2 * STALLED).contains(&waited), "{waited:?}");
        assert_eq!(removed.lost.load(Ordering::Relaxed), 992);
        assert!(removed.wake.read().is_ok(), "the thread is woken");
        // It is waited for again once it has taken one.
        queued.recv().expect("a mapping");
        removed.add(key, key);
        std::thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                queued.recv().expect("a mapping");
                queued
            });
            removed.add(key, key);
            receiving.join().expect("no panic");
        });
        assert_eq!(removed.lost.load(Ordering::Relaxed), 992);
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let target = LogTarget::File("/nonexistent/nat.jsonl".into());
        let error = Output::open(&target)
            .expect_err("there is no folder")
            .to_string();
        assert!(
            error.contains("nat.log: cannot open /nonexistent/nat.jsonl"),
            "{error}"
        );
    }
}
