//! Generated sequences for the comparison: every kind of connection on every path through the
//! translation. A name is `<event>/<path>`.

use super::{Sequence, Step};

mod datagrams;
mod errors;
mod fragments;
mod packets;
mod path;
mod ports;
mod routing;
mod tcp;

pub use path::{FlowPath, Side, Transport, paths};
use path::{Left, Right};

/// No shortened kernel timeouts.
const NONE: &[&str] = &[];

/// Every sequence.
#[must_use]
pub fn all() -> Vec<Sequence> {
    let mut out = Corpus(Vec::new());
    for path in paths(Transport::Tcp) {
        out.tcp(&path);
        out.tcp_odd(&path);
        out.tcp_timeouts(&path);
    }
    for carrier in [Transport::Tcp, Transport::Udp, Transport::Icmp] {
        for path in paths(carrier) {
            out.datagrams(carrier, &path);
            out.errors(carrier, &path);
            out.fragments(carrier, &path);
            out.routing(carrier, &path);
        }
    }
    for path in paths(Transport::Udp) {
        out.udp(&path);
    }
    for path in paths(Transport::Icmp) {
        out.icmp(&path);
    }
    out.ports();
    out.others();
    out.0
}

struct Corpus(Vec<Sequence>);

impl Corpus {
    fn add(&mut self, what: &str, path: &str, timeouts: &'static [&'static str], steps: Vec<Step>) {
        self.0.push(Sequence {
            name: format!("{what}/{path}"),
            steps,
            timeouts,
        });
    }
}
