//! Paths through the translation: both endpoints of a connection, and the translated endpoints.

use std::net::IpAddr;

use super::super::Node;

use crate::nat::{End, end};
use crate::packet::ip;
use crate::world::{
    LISTED, LISTED6, NAT4, NAT6, ONE_TO_ONE4, ONE_TO_ONE6, PUBLIC4, PUBLIC6, REMOTE, REMOTE6,
};

/// A path through the translation: both endpoints, untranslated and translated. The left side opens
/// the connection.
#[derive(Clone, Debug)]
pub struct FlowPath {
    /// Direction and IP version, as in the names of sequences.
    pub name: String,
    /// The host that opens the connection.
    pub left: Node,
    /// Its own endpoint.
    pub l: End,
    /// The endpoint that it sends to.
    pub l_peer: End,
    /// The host that answers.
    pub right: Node,
    /// Its own endpoint.
    pub r: End,
    /// The endpoint that it answers to.
    pub r_peer: End,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that opens the connection.
    Left,
    /// The other side.
    Right,
}

pub(super) use Side::{Left, Right};

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Left => Right,
            Right => Left,
        }
    }
}

impl FlowPath {
    pub(super) fn node(&self, side: Side) -> Node {
        match side {
            Left => self.left,
            Right => self.right,
        }
    }

    /// Source and destination of packets that a side sends.
    pub(super) const fn sends(&self, side: Side) -> (End, End) {
        match side {
            Left => (self.l, self.l_peer),
            Right => (self.r, self.r_peer),
        }
    }

    /// Source and destination of packets that a side receives.
    pub(super) const fn receives(&self, side: Side) -> (End, End) {
        match side {
            Left => (self.l_peer, self.l),
            Right => (self.r_peer, self.r),
        }
    }

    pub(super) fn is_v4(&self) -> bool {
        self.l.0.is_ipv4()
    }

    /// A router on a side, and the host that forwards its packets.
    pub(super) fn router(&self, side: Side) -> (Node, IpAddr) {
        match (self.node(side), self.is_v4()) {
            (Node::Remote, true) => (Node::Remote, ip("198.18.0.1")),
            (Node::Remote, false) => (Node::Remote, ip("2001:db8:ab::1")),
            (_, v4) => (Node::D, ip(Node::D.addresses()[usize::from(!v4)])),
        }
    }
}

/// Protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    /// Echoes.
    Icmp,
}

/// All paths of a carrier, both families.
#[must_use]
pub fn paths(carrier: Transport) -> Vec<FlowPath> {
    let mut all = Vec::new();
    for (family, remote, listed, seen, public, own) in [
        (0, REMOTE, LISTED, NAT4, PUBLIC4, ONE_TO_ONE4),
        (1, REMOTE6, LISTED6, NAT6, PUBLIC6, ONE_TO_ONE6),
    ] {
        let at = |who: Node| who.addresses()[family];
        let (a, b, c) = (at(Node::A), at(Node::B), at(Node::C));
        let icmp = carrier == Transport::Icmp;
        // Destination port of the left side, and the rule's port.
        let port = if icmp { 0 } else { 80 };
        let (rule, internal) = if carrier == Transport::Tcp {
            (443, 8443)
        } else {
            (5000, 6000)
        };
        let mut add = |name: &str, left, l: End, l_peer: End, right, r: End, r_peer: End| {
            let name = format!("{name}{}", if family == 0 { 4 } else { 6 });
            all.push(FlowPath {
                name,
                left,
                l,
                l_peer,
                right,
                r,
                r_peer,
            });
        };
        let (c1, b1) = (end(c, 40_000), end(b, 40_000));
        let (seen_c, seen_b) = (end(seen, 40_000), end(own, 40_000));
        let (far, client) = (end(remote, port), end(remote, 50_000));
        use Node::{A, B, C, Remote};
        add("out", C, c1, far, Remote, far, seen_c);
        add("own-out", B, b1, far, Remote, far, seen_b);
        let port = if icmp { 0 } else { 3389 };
        add(
            "own-in",
            Remote,
            client,
            end(own, port),
            B,
            end(b, port),
            client,
        );
        add(
            "hairpin-own",
            C,
            c1,
            end(own, port),
            B,
            end(b, port),
            seen_c,
        );
        if icmp {
            continue;
        }
        let (to, inner) = (end(public, rule), end(a, internal));
        add("in", Remote, client, to, A, inner, client);
        add("hairpin", C, c1, to, A, inner, seen_c);
        add("hairpin-from-own", B, b1, to, A, inner, seen_b);
        add("hairpin-self", A, end(a, 40_000), to, A, inner, seen_c);
        let (to, inner) = (end(public, 5009), end(a, 6009));
        add("range", Remote, client, to, A, inner, client);
        if carrier == Transport::Tcp {
            let client = end(listed, 50_000);
            add(
                "listed",
                Remote,
                client,
                end(public, 8080),
                A,
                end(a, 80),
                client,
            );
            add(
                "to-22",
                Remote,
                client,
                end(public, 2222),
                A,
                end(a, 22),
                client,
            );
        }
    }
    all
}
