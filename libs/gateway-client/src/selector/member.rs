//! One gateway of an end: its addresses, and the binding there.

use std::{net::SocketAddr, time::Duration};

use super::{Action, GatewayAddress};
use crate::{dial::Target, end::End};

/// A gateway and the state of the end there.
#[derive(Debug)]
pub(super) struct Member {
    /// The name, and the address that the binding is at; without one, the first to be asked.
    pub at: GatewayAddress,
    /// The addresses to bind at, in order of preference.
    addresses: Vec<SocketAddr>,
    /// Addresses that a binding may stay at while it lasts.
    former: Vec<SocketAddr>,
    /// Where the next bind goes.
    target: SocketAddr,
    /// Time of the oldest unanswered bind to the target.
    tried: Option<Duration>,
    /// An end that follows the other end leaves the binding at this address when that is forgotten.
    pub retired: bool,
    pub end: End,
    /// Time of the next bind, where the selector and not the chooser decides it.
    pub next: Duration,
    /// Time at which the present interval began.
    pub interval_since: Duration,
    /// Time of the oldest unanswered bind.
    pub unanswered_since: Option<Duration>,
    pub received_at: Option<Duration>,
    pub round_trip: Option<Duration>,
    pub bound_until: Option<Duration>,
    pub lifetime: Duration,
    pub draining: bool,
    /// Time of the unbind at a gateway that this end leaves.
    pub unbind_at: Option<Duration>,
    /// End of the time in which a challenge of the unbind counts at a removed gateway; `None`
    /// before the unbind.
    pub left_until: Option<Duration>,
}

impl Member {
    /// A gateway that was not asked yet; `None`: it has no address.
    pub fn new(spec: &Target, end: End, next: Duration, now: Duration) -> Option<Self> {
        let first = *spec.addresses.first()?;
        Some(Self {
            at: GatewayAddress {
                name: spec.name.clone(),
                address: first,
            },
            addresses: spec.addresses.clone(),
            former: spec.former.clone(),
            target: first,
            tried: None,
            retired: false,
            end,
            next,
            interval_since: now,
            unanswered_since: None,
            received_at: None,
            round_trip: None,
            bound_until: None,
            lifetime: Duration::ZERO,
            draining: false,
            unbind_at: None,
            left_until: None,
        })
    }

    pub fn is_bound(&self, now: Duration) -> bool {
        self.bound_until.is_some_and(|until| until > now)
    }

    /// Whether the binding is at an address that the gateway has no longer, and may stay there.
    pub fn is_at_former(&self, spec: &Target, now: Duration) -> bool {
        let address = &self.at.address;
        self.is_bound(now) && !spec.addresses.contains(address) && spec.former.contains(address)
    }

    /// Applies new addresses; false: there are none. A binding at an address that is neither an
    /// address nor a former one lasts until another address answers.
    pub fn update(&mut self, spec: &Target, now: Duration) -> bool {
        let Some(first) = spec.addresses.first() else {
            return false;
        };
        self.addresses.clone_from(&spec.addresses);
        self.former.clone_from(&spec.former);
        if !self.is_bound(now) && !self.addresses.contains(&self.at.address) {
            self.at.address = *first;
        }
        if !self.addresses.contains(&self.target) && !self.is_at_former(spec, now) {
            self.target = *first;
            self.tried = None;
            // The end is asked for at the new address at once.
            self.next = now;
        }
        true
    }

    /// Keeps the binding at a former address and nothing else.
    pub fn retire(&mut self) {
        self.retired = true;
        self.addresses = vec![self.at.address];
        self.target = self.at.address;
    }

    /// Whether datagrams of this gateway may come from an address.
    pub fn has(&self, address: SocketAddr) -> bool {
        self.addresses().any(|own| own == address)
    }

    /// All addresses, former ones and perhaps repeated ones included.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let all = self.addresses.iter().chain(&self.former).copied();
        all.chain([self.at.address])
    }

    /// Number of addresses that an unanswered gateway is tried at.
    pub const fn choices(&self) -> u32 {
        self.addresses.len() as u32
    }

    /// The next bind, and where it goes: to the next address if this one has not answered for
    /// `delay` (as RFC 8305 section 5 delays connections; the first answer decides).
    pub fn bind(&mut self, delay: Duration, (now, clock): (Duration, u64)) -> Action {
        let delay = self.round_trip.map_or(delay, |time| delay.max(time * 2));
        let unanswered = self.tried.is_some_and(|since| now >= since + delay);
        if unanswered {
            let place = self.addresses.iter().position(|a| *a == self.target);
            let next = place.map_or(0, |place| place + 1) % self.addresses.len();
            if self.addresses[next] != self.target {
                self.target = self.addresses[next];
                self.tried = None;
            }
        }
        self.tried.get_or_insert(now);
        self.unanswered_since.get_or_insert(now);
        Action::Send {
            to: self.target,
            message: self.end.bind(clock),
        }
    }

    /// An address answered: the gateway has the end there.
    pub fn answered(&mut self, from: SocketAddr, is_bound: bool, now: Duration) {
        if is_bound {
            self.at.address = from;
            self.target = from;
        }
        self.tried = None;
        self.received_at = Some(now);
    }

    /// The end is bound here no longer. The action that tells the gateway.
    pub fn unbind(&mut self, clock: u64) -> Action {
        self.unbind_at = None;
        self.bound_until = None;
        Action::Send {
            to: self.at.address,
            message: self.end.unbind(clock),
        }
    }
}
