//! The threads that carry connections.
//!
//! ```text
//!   connections ─▶ the kernel, by their addresses ─┬─▶ listener 0 ─▶ thread 0: its own runtime, its connections
//!                  (SO_REUSEPORT)                  ├─▶ listener 1 ─▶ thread 1      │ much busier than another:
//!                                                  └─▶ ...                         └─▶ gives it the next one
//! ```
//!
//! A connection stays with the thread that opens it: that thread reads, writes and counts its
//! bytes, and only the kernel wakes it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{runtime, sync::oneshot, time::timeout};

/// Open files of a thread: the epoll of tokio, its copy, its waker and its signal pipe.
pub(super) const FILES: usize = 4;
/// Longest sleep of a thread: less than the usual deadlines of connections.
const MAX_SLEEP: Duration = Duration::from_millis(250);

/// The threads; they end with the drop.
#[derive(Debug)]
pub(super) struct Threads {
    all: Vec<Thread>,
}

/// A thread with a runtime of its own, on which connections are relayed.
#[derive(Debug)]
struct Thread {
    runtime: runtime::Handle,
    /// Number of its connections.
    busy: Arc<AtomicUsize>,
    /// Its drop ends the thread.
    _stop: oneshot::Sender<()>,
}

/// A connection in the count of its thread.
#[derive(Debug)]
pub(super) struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// When a thread or its files cannot be created.
    pub fn start(count: usize) -> io::Result<Self> {
        let all = (0..count.max(1)).map(|n| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let handle = runtime.handle().clone();
            let (stop, stopped) = oneshot::channel();
            std::thread::Builder::new()
                .name(format!("relay-{n}"))
                .spawn(move || runtime.block_on(run(stopped)))?;
            Ok(Thread {
                runtime: handle,
                busy: Arc::default(),
                _stop: stop,
            })
        });
        Ok(Self {
            all: all.collect::<io::Result<_>>()?,
        })
    }

    /// Number of threads.
    pub const fn count(&self) -> usize {
        self.all.len()
    }

    /// The runtime of thread `n`.
    pub fn runtime(&self, n: usize) -> &runtime::Handle {
        &self.all[n].runtime
    }

    /// Chooses the thread for a connection accepted on thread `n`, and counts the connection there.
    pub fn take(&self, n: usize) -> (usize, Busy) {
        let busy = self.all.iter().map(|t| t.busy.load(Ordering::Relaxed));
        let n = choose(n, busy);
        let busy = Arc::clone(&self.all[n].busy);
        busy.fetch_add(1, Ordering::Relaxed);
        (n, Busy(busy))
    }
}

/// Runs until the sender is dropped. The short timeout spares system calls: tokio writes to the
/// waker for each new deadline that is earlier than the present one.
async fn run(mut stopped: oneshot::Receiver<()>) {
    while timeout(MAX_SLEEP, &mut stopped).await.is_err() {}
}

/// The least busy thread, if thread `own` is much busier: a change of threads costs more than a
/// small imbalance.
fn choose(own: usize, busy: impl ExactSizeIterator<Item = usize> + Clone) -> usize {
    let here = busy.clone().nth(own).unwrap_or(0);
    match busy.enumerate().min_by_key(|(_, busy)| *busy) {
        Some((least, busy)) if here > busy + busy / 4 + 1 => least,
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_changes_threads_only_for_a_much_less_busy_one() {
        let chosen = |own, busy: &[usize]| choose(own, busy.iter().copied());
        assert_eq!(chosen(0, &[0, 0]), 0);
        assert_eq!(chosen(0, &[1, 0]), 0);
        assert_eq!(chosen(0, &[2, 0]), 1);
        assert_eq!(chosen(1, &[3, 5, 2]), 2);
        assert_eq!(chosen(0, &[100, 90]), 0);
        assert_eq!(chosen(0, &[120, 90]), 1);
        assert_eq!(chosen(0, &[7]), 0);
    }

    #[test]
    fn connections_of_one_listener_are_spread_and_counted() {
        let threads = Threads::start(4).expect("threads");
        let mut taken: Vec<_> = (0..40).map(|_| threads.take(0)).collect();
        let of = |n| taken.iter().filter(|(thread, _)| *thread == n).count();
        let all: Vec<usize> = (0..4).map(of).collect();
        assert!(all.iter().all(|count| (8..=13).contains(count)), "{all:?}");
        taken.clear();
        let left = threads.all.iter().map(|t| t.busy.load(Ordering::Relaxed));
        assert_eq!(left.sum::<usize>(), 0);
    }

    #[test]
    fn threads_end_with_their_drop() {
        let threads = Threads::start(0).expect("one thread");
        assert_eq!(threads.count(), 1);
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let runtime = threads.runtime(0).clone();
        runtime.spawn(async move {
            std::future::pending::<()>().await;
            drop(sender);
        });
        drop(threads);
        // The tasks of the thread are dropped with it.
        receiver.recv().expect_err("no message");
    }
}
