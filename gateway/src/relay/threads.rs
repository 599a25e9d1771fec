//! The threads that carry connections.
//!
//! ```text
//!   connections ─▶ the kernel, by their addresses ─┬─▶ listener 0 ─▶ thread 0: its own runtime, its connections
//!                  (SO_REUSEPORT)                  ├─▶ listener 1 ─▶ thread 1      │ much busier than another:
//!                                                  └─▶ ...                         └─▶ that one has the next
//! ```
//!
//! A connection stays with the thread that opens it: its bytes are read, written and counted there, and nobody wakes that thread but the
//! kernel.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{runtime, sync::oneshot, time::timeout};

/// Open files of a thread: tokio's epoll, its copy, what wakes it and what tells it of signals.
pub(super) const FILES: usize = 4;
/// How long a thread sleeps at most. Less than any deadline that connections usually have.
const LOOK_UP: Duration = Duration::from_millis(250);

/// The threads; they end once nobody has them any more.
#[derive(Debug)]
pub(super) struct Threads {
    all: Vec<Thread>,
}

/// One of them.
#[derive(Debug)]
struct Thread {
    runtime: runtime::Handle,
    /// Connections that it has.
    busy: Arc<AtomicUsize>,
    /// Ends it when it is dropped.
    _stop: oneshot::Sender<()>,
}

/// A connection in the count of its thread's.
#[derive(Debug)]
pub(super) struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// Starts so many, and one at least.
    ///
    /// # Errors
    /// When the machine has no more threads or open files.
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

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.all.len()
    }

    /// The runtime of thread `n`.
    pub fn runtime(&self, n: usize) -> &runtime::Handle {
        &self.all[n].runtime
    }

    /// Which thread takes a connection that came to thread `n`, and its place in that one's count.
    pub fn take(&self, n: usize) -> (usize, Busy) {
        let busy = self.all.iter().map(|t| t.busy.load(Ordering::Relaxed));
        let n = choose(n, busy);
        let busy = Arc::clone(&self.all[n].busy);
        busy.fetch_add(1, Ordering::Relaxed);
        (n, Busy(busy))
    }
}

/// Until it is stopped; nothing is ever sent, the sender's end is its word. It looks up now and then: tokio wakes a thread, by a
/// file, for each deadline before the one that it sleeps until, and so there is none.
async fn run(mut stopped: oneshot::Receiver<()>) {
    while timeout(LOOK_UP, &mut stopped).await.is_err() {}
}

/// The least busy, if `own` is much busier: to change threads costs more than a little imbalance.
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
    fn a_connection_stays_where_it_came_unless_others_have_much_less() {
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
    fn who_comes_to_one_thread_is_spread_and_counted_until_it_ends() {
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
    fn a_thread_ends_when_nobody_has_it() {
        let threads = Threads::start(0).expect("one thread");
        assert_eq!(threads.count(), 1);
        let (said, heard) = std::sync::mpsc::channel::<()>();
        let runtime = threads.runtime(0).clone();
        runtime.spawn(async move {
            std::future::pending::<()>().await;
            drop(said);
        });
        drop(threads);
        // What was going on there is dropped with it.
        heard.recv().expect_err("nothing is said");
    }
}
