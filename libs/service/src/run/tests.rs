use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Instant,
};

use serde::Deserialize;
use tokio::time::sleep;

use super::*;
use crate::socket::{Access, Socket, ask};

static TEST_SOCKET: Socket = Socket {
    name: "the test daemon",
    one: "a test daemon",
    setting: "test.control_socket",
    max_request: 64,
    access: Access::RootAndOwner,
};

/// Signals go to the whole process, so that these tests run one at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The watchdog of the unit.
const WATCHDOG: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Status,
    Reload,
    Hang,
    Drain,
    Fail,
    Begin,
    End,
}

#[derive(Default)]
struct TestDaemon {
    reloads: u32,
    /// The reload that is refused.
    refused: Option<u32>,
    drains: bool,
    ended: bool,
    /// The next step finds a fault.
    fails: bool,
    fault: Option<&'static str>,
    /// The next step begins something.
    begins: bool,
    /// Something has begun, and is to be settled.
    begun: bool,
}

impl Daemon for TestDaemon {
    type Request = Request;
    type Reply = u32;
    type Error = Error;

    async fn step(&mut self) -> Result<ControlFlow<()>, Error> {
        if self.ended {
            return Ok(ControlFlow::Break(()));
        }
        if std::mem::take(&mut self.fails) {
            self.fault = Some("a part has failed");
            return Ok(ControlFlow::Continue(()));
        }
        if std::mem::take(&mut self.begins) {
            self.begun = true;
            return Ok(ControlFlow::Continue(()));
        }
        std::future::pending().await
    }

    async fn finish_step(&mut self) {
        if self.begun {
            // Requests and the timer are due meanwhile.
            sleep(WATCHDOG).await;
            self.begun = false;
            self.reloads += 100;
        }
    }

    async fn handle(&mut self, request: Request, responder: Responder<u32>) {
        match request {
            Request::Hang => sleep(WATCHDOG * 10).await,
            Request::Drain => self.drains = true,
            Request::Fail => self.fails = true,
            Request::Begin => self.begins = true,
            Request::End => self.ended = true,
            Request::Status | Request::Reload => {}
        }
        responder.send(Ok(self.reloads));
    }

    fn is_reload(request: &Request) -> bool {
        matches!(request, Request::Reload)
    }

    async fn reload(&mut self) -> Result<u32, RequestRefusal> {
        self.reloads += 1;
        if self.refused == Some(self.reloads) {
            return Err(RequestRefusal::new("invalid", "the file is wrong"));
        }
        Ok(self.reloads)
    }

    fn stop(&mut self) -> ControlFlow<()> {
        if self.drains {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    fn is_draining(&self) -> bool {
        self.drains
    }

    fn fault(&self) -> Option<&'static str> {
        self.fault
    }

    fn status_line(&self) -> Option<String> {
        Some(format!("{} reloads", self.reloads))
    }
}

/// A service manager, and the directory of its socket and the daemon's.
struct Manager {
    dir: tempfile::TempDir,
    messages: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        let messages = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::downgrade(&messages);
        socket.set_read_timeout(Some(WATCHDOG)).expect("a timeout");
        // The kernel queues ten datagrams only (net.unix.max_dgram_qlen).
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Some(kept) = kept.upgrade() {
                if let Ok(length) = socket.recv(&mut bytes) {
                    let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
                    kept.lock().expect("no panic").push(message);
                }
            }
        });
        Self { dir, messages }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("test.sock")
    }

    fn notifier(&self) -> Notifier {
        Notifier::at(&self.dir.path().join("notify"), Some(WATCHDOG))
    }

    /// Runs the daemon until it ends.
    async fn run(&self, daemon: TestDaemon) {
        serve(self.notifier(), async |_: &Context| {
            let control = Control::bind(&TEST_SOCKET, &self.control()).expect("the path is free");
            Ok((daemon, control))
        })
        .await
        .expect("a good end");
    }

    /// The messages since the last call.
    fn messages(&self) -> Vec<String> {
        // The thread may have one in hand.
        std::thread::sleep(WATCHDOG / 20);
        std::mem::take(&mut *self.messages.lock().expect("no panic"))
    }
}

async fn request(path: &Path, request: Request) -> Result<u32, String> {
    let path = path.to_owned();
    let asked = tokio::task::spawn_blocking(move || ask(&TEST_SOCKET, &path, &request));
    let answer = asked.await.expect("no panic in the client");
    answer.map_err(|error: crate::socket::AskError| error.to_string())
}

fn count(messages: &[String], message: &str) -> usize {
    messages.iter().filter(|m| *m == message).count()
}

#[tokio::test]
async fn the_manager_hears_of_start_reload_status_and_stop() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let path = manager.control();
    let daemon = TestDaemon {
        refused: Some(2),
        ..TestDaemon::default()
    };
    let client = async {
        sleep(WATCHDOG).await;
        assert_eq!(request(&path, Request::Reload).await, Ok(1));
        let refused = request(&path, Request::Reload).await;
        assert_eq!(refused, Err("the file is wrong".to_owned()));
        assert_eq!(request(&path, Request::Status).await, Ok(2));
        sleep(WATCHDOG).await;
        assert_eq!(request(&path, Request::End).await, Ok(2));
    };
    tokio::join!(manager.run(daemon), client);
    assert!(!path.exists(), "the control socket is removed");
    let messages = manager.messages();
    assert_eq!(messages[0], "READY=1");
    let reloads: Vec<usize> = (0..messages.len())
        .filter(|n| messages[*n].starts_with("RELOADING=1\nMONOTONIC_USEC="))
        .collect();
    assert_eq!(reloads.len(), 2, "{messages:?}");
    for n in reloads {
        assert_eq!(messages[n + 1], "READY=1", "{messages:?}");
    }
    assert!(count(&messages, "STATUS=2 reloads") == 1, "{messages:?}");
    assert!(count(&messages, "WATCHDOG=1") >= 3, "{messages:?}");
    assert_eq!(messages.last().expect("a message"), "STOPPING=1");
}

#[tokio::test]
async fn what_a_step_has_begun_is_settled_before_the_next_request() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let path = manager.control();
    let client = async {
        sleep(WATCHDOG).await;
        assert_eq!(request(&path, Request::Begin).await, Ok(0));
        assert_eq!(request(&path, Request::Status).await, Ok(100));
        assert_eq!(request(&path, Request::End).await, Ok(100));
    };
    tokio::join!(manager.run(TestDaemon::default()), client);
}

#[tokio::test]
async fn a_loop_that_hangs_sends_no_watchdog() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let path = manager.control();
    let client = async {
        sleep(WATCHDOG * 2).await;
        assert!(count(&manager.messages(), "WATCHDOG=1") >= 3);
        let hanging = tokio::spawn({
            let path = path.clone();
            async move { request(&path, Request::Hang).await }
        });
        sleep(WATCHDOG / 2).await;
        manager.messages();
        sleep(WATCHDOG * 5).await;
        assert_eq!(manager.messages(), Vec::<String>::new());
        assert_eq!(hanging.await.expect("a client"), Ok(0));
        assert_eq!(request(&path, Request::End).await, Ok(0));
    };
    tokio::join!(manager.run(TestDaemon::default()), client);
}

#[tokio::test]
async fn a_request_that_waits_while_the_loop_works_is_no_hang() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let health = Health::new(WATCHDOG / 2);
    health.set(health::State::Ready);
    let pulse = Pulse {
        notifier: Arc::new(manager.notifier()),
        health: health.clone(),
    };
    while health.check() != Err("hanging") {
        sleep(WATCHDOG / 20).await;
    }
    pulse.beat();
    assert_eq!(health.check(), Ok("ready"));
    assert_eq!(manager.messages(), ["WATCHDOG=1"]);
    // Without a watchdog the manager hears nothing.
    let notifier = Notifier::at(&manager.dir.path().join("notify"), None);
    let pulse = Pulse {
        notifier: Arc::new(notifier),
        ..pulse
    };
    pulse.beat();
    assert_eq!(manager.messages(), Vec::<String>::new());
}

#[tokio::test]
async fn a_daemon_that_drains_has_its_timeout_extended_until_the_second_signal() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let daemon = TestDaemon {
        drains: true,
        ..TestDaemon::default()
    };
    let terminate = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).expect("sent");
    let begun = Instant::now();
    let client = async {
        sleep(WATCHDOG).await;
        terminate();
        sleep(WATCHDOG * 2).await;
        terminate();
    };
    tokio::join!(manager.run(daemon), client);
    assert!(begun.elapsed() >= WATCHDOG * 3);
    let messages = manager.messages();
    let extended = format!("EXTEND_TIMEOUT_USEC={}", (WATCHDOG / 2 * 3).as_micros());
    assert!(count(&messages, &extended) >= 3, "{messages:?}");
    assert_eq!(count(&messages, "STOPPING=1"), 1, "{messages:?}");
}

#[tokio::test]
async fn health_tells_a_fault_of_the_daemon() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let path = manager.control();
    let health = std::cell::OnceCell::new();
    let run = serve(manager.notifier(), async |context: &Context| {
        let _ = health.set(context.health.clone());
        let daemon = TestDaemon {
            fault: Some("a part has failed"),
            ..TestDaemon::default()
        };
        let control = Control::bind(&TEST_SOCKET, &path).expect("the path is free");
        Ok::<_, Error>((daemon, control))
    });
    let client = async {
        sleep(WATCHDOG).await;
        let health = health.get().expect("the daemon has started");
        assert_eq!(health.check(), Err("a part has failed"));
        assert_eq!(request(&path, Request::End).await, Ok(0));
    };
    let (run, ()) = tokio::join!(run, client);
    run.expect("a good end");
}

#[tokio::test]
async fn health_follows_a_request_and_a_step_without_a_heartbeat() {
    let _alone = ALONE.lock().await;
    let manager = Manager::new();
    let path = manager.control();
    let health = std::cell::OnceCell::new();
    // Without a watchdog: the next heartbeat comes long after the test.
    let notifier = Notifier::at(&manager.dir.path().join("notify"), None);
    let run = serve(notifier, async |context: &Context| {
        let _ = health.set(context.health.clone());
        let control = Control::bind(&TEST_SOCKET, &path).expect("the path is free");
        Ok::<_, Error>((TestDaemon::default(), control))
    });
    let client = async {
        sleep(WATCHDOG).await;
        let health = health.get().expect("the daemon has started");
        assert_eq!(health.check(), Ok("ready"));
        assert_eq!(request(&path, Request::Drain).await, Ok(0));
        assert_eq!(health.check(), Err("draining"));
        assert_eq!(request(&path, Request::Fail).await, Ok(0));
        sleep(WATCHDOG / 4).await;
        assert_eq!(health.check(), Err("a part has failed"));
        assert_eq!(request(&path, Request::End).await, Ok(0));
    };
    let (run, ()) = tokio::join!(run, client);
    run.expect("a good end");
}

#[test]
fn the_reply_to_the_last_request_arrives() {
    for _ in 0..50 {
        let manager = Manager::new();
        let path = manager.control();
        let client = std::thread::spawn(move || {
            // The path exists before the daemon listens.
            while std::os::unix::net::UnixStream::connect(&path).is_err() {
                std::thread::sleep(WATCHDOG / 100);
            }
            ask::<_, u32>(&TEST_SOCKET, &path, &Request::End)
        });
        // The runtime ends with the daemon, as in a process.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(manager.run(TestDaemon::default()));
        drop(runtime);
        let reply = client.join().expect("no panic in the client");
        assert_eq!(reply.map_err(|error| error.to_string()), Ok(0));
    }
}

#[test]
fn health_follows_the_loop() {
    let health = Health::new(Duration::from_millis(20));
    assert_eq!(health.check(), Err("starting"));
    health.set(State::Ready);
    assert_eq!(health.check(), Ok("ready"));
    std::thread::sleep(Duration::from_millis(80));
    assert_eq!(health.check(), Err("hanging"));
    health.set(State::Draining);
    assert_eq!(health.check(), Err("draining"));
}
