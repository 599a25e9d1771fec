//! Base of the lab's servers: a TCP port of a host, a thread for each client, and the clients'
//! addresses.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    error::{During as _, Result},
    netns,
    site::Lab,
};

/// A TCP port that is served until dropped. Open connections continue.
#[derive(Debug)]
pub(crate) struct Listener {
    stop: Arc<AtomicBool>,
    clients: Arc<Mutex<Vec<IpAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Serves `port` of every address of `host`, those it gets later included.
    ///
    /// # Errors
    /// If there is no such host, or the port is taken.
    pub(crate) fn open(
        lab: &Lab,
        host: &str,
        port: u16,
        serve: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = netns::within(&lab.namespace(host)?, || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .during(|| format!("listening on port {port} of {host}"))?;
            listener
                .set_nonblocking(true)
                .during(|| "setting a listener up".to_owned())?;
            Ok(listener)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let clients = Arc::new(Mutex::new(Vec::new()));
        let (stopping, seen) = (Arc::clone(&stop), Arc::clone(&clients));
        let serve = Arc::new(serve);
        let thread = std::thread::Builder::new()
            .name(format!("tcp-{port}"))
            .spawn(move || {
                while !stopping.load(Ordering::Relaxed) {
                    let Ok((stream, from)) = listener.accept() else {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(from.ip().to_canonical());
                    let serve = Arc::clone(&serve);
                    // A client that disconnects ends its thread.
                    std::thread::spawn(move || {
                        stream.set_nonblocking(false)?;
                        serve(&stream)
                    });
                }
            })
            .during(|| "starting a thread".to_owned())?;
        Ok(Self {
            stop,
            clients,
            thread: Some(thread),
        })
    }

    /// Addresses of clients, in the order in which they connected; IPv4 not in mapped form.
    pub(crate) fn clients(&self) -> Vec<IpAddr> {
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
