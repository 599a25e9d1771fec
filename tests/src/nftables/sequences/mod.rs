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
    for way in paths(Transport::Tcp) {
        out.tcp(&way);
        out.tcp_odd(&way);
        out.tcp_timeouts(&way);
    }
    for carrier in [Transport::Tcp, Transport::Udp, Transport::Icmp] {
        for way in paths(carrier) {
            out.datagrams(carrier, &way);
            out.errors(carrier, &way);
            out.fragments(carrier, &way);
            out.routing(carrier, &way);
        }
    }
    for way in paths(Transport::Udp) {
        out.udp(&way);
    }
    for way in paths(Transport::Icmp) {
        out.icmp(&way);
    }
    out.ports();
    out.others();
    out.0
}

struct Corpus(Vec<Sequence>);

impl Corpus {
    fn add(&mut self, what: &str, way: &str, timeouts: &'static [&'static str], steps: Vec<Step>) {
        self.0.push(Sequence {
            name: format!("{what}/{way}"),
            steps,
            timeouts,
        });
    }
}
