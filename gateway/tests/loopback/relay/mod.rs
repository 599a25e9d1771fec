//! The relay on loopback, with TLS clients and others.

mod data;
mod dial;
mod reconfigure;
mod refusals;

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{Arc, mpsc},
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use gateway::relay::{
    Backend, Desired, Error, Limits, Relay, RelayConfig, Times,
    counters::{Reason, TenantDirection},
    route::{Names, Route, Table},
};
use rustls::version::{TLS12, TLS13};
use tokio::runtime::Runtime;

use crate::common::*;

/// A relay with its own threads.
pub struct Gateway {
    pub relay: Relay,
    pub runtime: Runtime,
}

/// A configuration with one backend: tenant `acme` has all subdomains of `acme.example`;
/// `d.example`, and `p.example` for protocol `x/1`, have no tenant.
pub struct Draft {
    pub listen: Vec<SocketAddr>,
    pub limits: Limits,
    pub times: Times,
    pub tenant: u32,
    pub backend: Vec<SocketAddr>,
    pub proxy: bool,
    pub proxy_from: Vec<gateway::relay::Prefix>,
    pub access_log: Option<std::path::PathBuf>,
}

impl Draft {
    pub fn to(backend: SocketAddr) -> Self {
        Self {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            limits: Limits {
                connections: 1000,
                per_source: 1000,
                pipes: 1000,
            },
            times: Times {
                hello: TIMEOUT,
                dial: TIMEOUT,
                idle: TIMEOUT,
                trial: Duration::from_secs(10),
            },
            tenant: 1000,
            backend: vec![backend],
            proxy: false,
            proxy_from: Vec::new(),
            access_log: None,
        }
    }

    pub fn config(&self) -> RelayConfig {
        RelayConfig {
            listen: self.listen.clone(),
            limits: self.limits,
            times: self.times,
            proxy_from: self.proxy_from.clone(),
            access_log: self.access_log.clone(),
            names_file: None,
            desired: self.desired(),
        }
    }

    fn desired(&self) -> Desired {
        let route = |names, tenant: Option<&str>| Route {
            names,
            protocols: Vec::new(),
            tenant: tenant.map(Into::into),
            backend: "b".into(),
        };
        let backend = Backend::new(self.backend.clone(), self.proxy);
        Desired {
            tenants: HashMap::from([("acme".into(), self.tenant)]).into(),
            backends: HashMap::from([("b".into(), backend)]).into(),
            table: Table::new(vec![
                route(Names::Below("acme.example".to_owned()), Some("acme")),
                route(Names::Exact("d.example".to_owned()), None),
                Route {
                    protocols: vec![b"x/1".to_vec()],
                    ..route(Names::Exact("p.example".to_owned()), None)
                },
            ])
            .expect("routes")
            .into(),
        }
    }

    pub fn start(&self) -> Gateway {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let relay = {
            let _in = runtime.enter();
            Relay::start(self.config()).expect("listen")
        };
        Gateway { relay, runtime }
    }
}

impl Gateway {
    pub fn at(&self) -> SocketAddr {
        self.relay.addresses()[0]
    }

    pub fn reconfigure(&self, draft: &Draft) -> Result<(), Error> {
        let _in = self.runtime.enter();
        self.relay.reconfigure(draft.config())
    }

    pub fn refused(&self, reason: &'static str) -> u64 {
        let refused = &self.relay.counters().refused;
        refused.get_or_create(&Reason { reason }).get()
    }

    pub fn ended(&self, reason: &'static str) -> u64 {
        let ended = &self.relay.counters().ended;
        ended.get_or_create(&Reason { reason }).get()
    }

    pub fn bytes(&self, tenant: &str, direction: &'static str) -> u64 {
        let tenant = tenant.to_owned();
        let bytes = &self.relay.counters().bytes;
        bytes
            .get_or_create(&TenantDirection { tenant, direction })
            .get()
    }
}

/// A backend that hands over its connections.
pub fn handing_over() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let (sender, receiver) = mpsc::channel();
    let address = backend(move |stream| {
        // The test may have ended.
        let _ = sender.send(stream);
    });
    (address, receiver)
}

pub fn next(connections: &mpsc::Receiver<TcpStream>) -> TcpStream {
    connections.recv_timeout(TIMEOUT).expect("a connection")
}

pub fn reset(stream: TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&stream.as_fd(), nix::sys::socket::sockopt::Linger, &linger)
        .expect("no lingering");
}
