//! The circuits of this appliance's peers: what the crate `gateway-client` decides, in terms of ways.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use appliance_common::wire::{CIRCUIT_ID_LEN, CIRCUIT_MESSAGE_BYTES};
use gateway_client::{
    pool::List,
    reach::{self, At, GatewayState, Reach, Settings},
    wire::{CircuitId, Datagram, ID_BYTES, Key, MESSAGE_BYTES, Side},
};
use tunnel::{Instant, Now, PeerPath};

use super::streams::TlsSpec;
use crate::clock;

// What the programs know of circuits is what the crate says.
const _: () = assert!(CIRCUIT_ID_LEN == ID_BYTES && CIRCUIT_MESSAGE_BYTES == MESSAGE_BYTES);

/// A circuit as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitSpec {
    /// Its id.
    pub id: CircuitId,
    /// Which side we are.
    pub side: Side,
    /// Our side's key.
    pub key: Key,
    /// Every gateway, and its addresses.
    pub gateways: Vec<(String, Vec<SocketAddr>)>,
    /// Those that may be chosen; `None` for an end that awaits the other at all of them.
    pub list: Option<List>,
    /// What to do where UDP does not get through.
    pub tls: Option<TlsSpec>,
}

impl CircuitSpec {
    /// What makes it this circuit and no other.
    pub(super) const fn identity(&self) -> (CircuitId, Side, &Key, bool) {
        (self.id, self.side, &self.key, self.list.is_some())
    }

    /// Where to open a tunnel over TLS: at the gateways that may be chosen, the preferred first, of equal ones any, and last of all the
    /// one that failed just now and the one that is used.
    pub(super) fn dialed(
        &self,
        locals: &[IpAddr],
        (failed, used): (Option<SocketAddr>, Option<SocketAddr>),
        mut random: impl FnMut() -> u64,
    ) -> Vec<SocketAddr> {
        let at = self.at(locals);
        let mut candidates = match &self.list {
            Some(list) => list.candidates().to_vec(),
            None => Vec::new(),
        };
        candidates.sort_by_cached_key(|candidate| (candidate.tier, candidate.load, random()));
        let there = |name: &str| at.iter().find(|at| at.name == name).map(|at| at.address);
        let mut dialed: Vec<_> = candidates.iter().filter_map(|c| there(&c.name)).collect();
        dialed.sort_by_key(|address| (Some(*address) == used, Some(*address) == failed));
        dialed
    }

    /// Where the gateways are from here: at the first address of a family that we have.
    fn at(&self, locals: &[IpAddr]) -> Vec<At> {
        let reached = |a: &&SocketAddr| locals.iter().any(|l| l.is_ipv4() == a.is_ipv4());
        let at = |(name, addresses): &(String, Vec<SocketAddr>)| {
            let address = *addresses.iter().find(reached)?;
            let name = name.clone();
            Some(At { name, address })
        };
        self.gateways.iter().filter_map(at).collect()
    }
}

/// A message to be sent.
#[derive(Debug)]
pub(super) struct Send {
    /// A gateway.
    pub to: SocketAddr,
    /// A message to it.
    pub message: [u8; MESSAGE_BYTES],
}

/// A circuit to a peer.
#[derive(Debug)]
pub(super) struct Circuit {
    reach: Reach,
    /// None of our addresses is of a gateway's family: not yet, or not at all.
    homeless: bool,
    /// It was said that there is no gateway.
    lost: bool,
}

impl Circuit {
    pub fn new(spec: &CircuitSpec, locals: &[IpAddr], seed: u64, now: Instant) -> Self {
        let at = spec.at(locals);
        let mut reach = Reach::new(
            (spec.id, spec.side, spec.key.clone()),
            Settings::default(),
            spec.list.as_ref(),
            &at,
            seed,
            since_boot(now),
        );
        // Without an address of our own there is nothing to say yet.
        while at.is_empty() && reach.poll().is_some() {}
        Self {
            reach,
            homeless: at.is_empty(),
            lost: false,
        }
    }

    /// Takes other gateways, or addresses of our own of other families.
    pub fn update(&mut self, spec: &CircuitSpec, locals: &[IpAddr], now: Instant) {
        let at = spec.at(locals);
        self.homeless = at.is_empty();
        self.reach.update(spec.list.as_ref(), &at, since_boot(now));
    }

    /// Its id.
    pub const fn id(&self) -> CircuitId {
        self.reach.circuit()
    }

    /// The way by the gateway that is chosen and works by UDP.
    pub fn udp(&self) -> Option<PeerPath> {
        let gateway = self.reach.used().filter(|_| !self.awaits())?.address;
        let id = self.id().number();
        Some(PeerPath::Circuit { gateway, id })
    }

    /// Whether the other end says by which gateway.
    pub const fn awaits(&self) -> bool {
        self.reach.awaits()
    }

    /// Whether a way is one of this circuit.
    pub fn is_by(&self, way: PeerPath) -> bool {
        way.circuit() == Some(self.id().number())
    }

    /// The other end is heard by this gateway.
    pub fn heard_by(&mut self, gateway: SocketAddr) {
        self.reach.heard_by(gateway);
    }

    /// The other end is heard again.
    pub const fn heard(&mut self) {
        self.reach.heard();
    }

    /// Takes a message from a gateway; whether it was one to this end.
    pub fn hear(&mut self, from: SocketAddr, message: &[u8], now: Now) -> bool {
        let times = (since_boot(now.mono), clock::grown());
        self.reach.hear(from, message, times)
    }

    /// Leaves every gateway.
    pub fn close(&mut self, now: Instant) {
        self.reach.close(since_boot(now), clock::grown());
    }

    /// Whether the gateway at an address is one of this circuit's; its name.
    pub fn gateway(&self, address: SocketAddr) -> Option<&str> {
        self.reach.at(address).map(|at| at.name.as_str())
    }

    /// Does what is due; `silent`: whether the other end is not heard.
    pub fn drive(&mut self, now: Now, silent: bool) {
        let mono = since_boot(now.mono);
        if silent {
            self.reach.unheard(mono);
        }
        if self.reach.next_deadline().is_some_and(|at| at <= mono) {
            self.reach.timeout(mono, clock::grown());
        }
    }

    pub fn poll(&mut self) -> Option<Send> {
        loop {
            match self.reach.poll()? {
                reach::Action::Send { to, message } => return Some(Send { to, message }),
                reach::Action::Use(at) => {
                    let again = std::mem::take(&mut self.lost);
                    tracing::info!(circuit = %self.id(), gateway = at.name, again, "bound by UDP");
                }
                reach::Action::Lost(_) if self.homeless => {}
                reach::Action::Lost(why) => {
                    tracing::warn!(circuit = %self.id(), reason = %why, "no gateway");
                    self.lost = true;
                }
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let at = self.reach.next_deadline()?;
        Some(Instant::from_nanos(
            u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        ))
    }

    /// Where the gateways are.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.reach.all().map(|at| at.address.ip())
    }

    /// Why no gateway works, if none does.
    pub fn lost(&self) -> Option<String> {
        if self.homeless {
            return Some(
                "the uplink has no address of a gateway's family yet: give it one, or the gateway one of another"
                    .to_owned(),
            );
        }
        self.reach.lost().map(ToString::to_string)
    }

    pub fn states(&self, now: Instant) -> Vec<GatewayState> {
        self.reach.states(since_boot(now))
    }
}

/// The circuit that a gateway's message is about.
pub(super) fn of_message(message: &[u8]) -> Option<CircuitId> {
    match gateway_client::wire::parse(message) {
        Ok(Datagram::Message(sealed)) => Some(sealed.circuit()),
        Ok(Datagram::Tunnel(_)) | Err(_) => None,
    }
}

fn since_boot(now: Instant) -> Duration {
    Duration::from_nanos(now.as_nanos())
}

#[cfg(test)]
mod tests {
    use gateway_client::pool::{Access, Gateway};

    use super::*;

    #[test]
    fn the_gateway_in_use_and_the_one_that_failed_are_dialed_last() {
        let gateway = |name: &str, pool: Option<&str>| Gateway {
            name: name.to_owned(),
            pool: pool.map(str::to_owned),
            load: 0,
        };
        let gateways = [
            gateway("a", Some("gold")),
            gateway("b", Some("gold")),
            gateway("c", Some("gold")),
            gateway("d", None),
        ];
        let access = Access {
            pools: vec!["gold".to_owned()],
            unpooled: true,
        };
        let at = |n: u8| SocketAddr::from(([192, 0, 2, n], 6180));
        let spec = CircuitSpec {
            id: CircuitId::new(1 << 32 | 1).expect("an id"),
            side: Side::A,
            key: Key::new([7; 32]),
            gateways: (0u8..)
                .zip(&gateways)
                .map(|(n, gateway)| (gateway.name.clone(), vec![at(n)]))
                .collect(),
            list: Some(List::of(&gateways, &access).expect("a list")),
            tls: None,
        };
        let locals = [IpAddr::from([198, 51, 100, 2])];
        for seed in 0..20u64 {
            let mut state = seed;
            let mut random = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                state >> 33
            };
            let mut dialed = |failed, used| spec.dialed(&locals, (failed, used), &mut random);
            assert_eq!(dialed(None, None)[3], at(3), "the next tier");
            assert_eq!(dialed(Some(at(0)), None)[2..], [at(3), at(0)]);
            let both = dialed(Some(at(0)), Some(at(1)));
            assert_eq!(both, [at(2), at(3), at(0), at(1)]);
            let same = dialed(Some(at(3)), Some(at(3)));
            assert_eq!(same[3], at(3));
        }
    }
}
