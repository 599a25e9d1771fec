//! Two network namespaces joined by a veth pair, for tests against a real kernel.
//!
//! Both are private to the test and end with its threads.

use std::{
    fs::File,
    process::Command,
    sync::mpsc,
    thread::{Builder, spawn},
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    unistd::{geteuid, gettid},
};
use test_support::{skip, test_name};

/// Two network namespaces; the current thread is in A.
pub struct Pair {
    a: File,
    b: File,
    /// Index of `va`, in A.
    pub va: u32,
    /// Index of `vb`, in B.
    pub vb: u32,
    /// Keeps the thread alive that keeps B alive.
    _hold: mpsc::Sender<()>,
}

fn own_namespace() -> File {
    File::open(format!("/proc/self/task/{}/ns/net", gettid())).expect("namespace")
}

/// Runs a command; returns its output. Fails the test if the command fails.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}{error}");
    text
}

impl Pair {
    /// Both ends of the pair are down.
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        let (hold, held) = mpsc::channel::<()>();
        let (ready, in_b) = mpsc::channel();
        spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            ready.send((own_namespace(), gettid())).expect("the test");
            let _ = held.recv();
        });
        let (b, thread_in_b) = in_b.recv().expect("namespace B");
        run("ip link add va type veth peer name vb");
        run(&format!("ip link set vb netns {thread_in_b}"));
        run("ip link set lo up");
        let mut pair = Self {
            a: own_namespace(),
            b,
            va: if_nametoindex("va").expect("va"),
            vb: 0,
            _hold: hold,
        };
        pair.vb = pair.in_b(|| {
            run("ip link set lo up");
            if_nametoindex("vb").expect("vb")
        });
        pair
    }

    /// Sets both ends up.
    pub fn up(&self) {
        run("ip link set va up");
        self.in_b(|| run("ip link set vb up"));
    }

    /// Runs `body` in B.
    pub fn in_b<T>(&self, body: impl FnOnce() -> T) -> T {
        setns(&self.b, CloneFlags::CLONE_NEWNET).expect("enter B");
        let result = body();
        setns(&self.a, CloneFlags::CLONE_NEWNET).expect("back to A");
        result
    }
}

/// Runs a test in a separate thread with namespaces of its own. Without root, prints that it is
/// skipped, or fails where that is not permitted.
pub fn isolated(body: impl FnOnce(Pair) + Send + 'static) {
    if !geteuid().is_root() {
        skip("needs root");
        return;
    }
    let thread = Builder::new().name(test_name());
    thread
        .spawn(move || body(Pair::new()))
        .expect("a thread")
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
