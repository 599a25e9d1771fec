//! Our end of the circuit to a peer: turns the decisions of `gateway_client::selector` into paths.
//!
//! ```text
//!   gateways' messages ─▶ receive ─┐                     ┌─▶ poll: messages to gateways
//!   time ───────────────▶ drive ───┴▶ gateway_client::selector ─▶ udp_path: the gateway in use
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use appliance_common::wire::{CIRCUIT_ID_LEN, CIRCUIT_MESSAGE_BYTES};
use gateway_client::{
    pool::List,
    selector::{self, GatewayAddress, GatewaySelector, GatewayState, Settings},
    wire::{CircuitId, Datagram, ID_BYTES, Key, MESSAGE_BYTES, Side},
};
use tunnel::{Instant, Now, PeerPath};

use super::tls_connections::TlsSpec;
use crate::clock;

// The programs and the crate agree on the layout of circuit messages.
const _: () = assert!(CIRCUIT_ID_LEN == ID_BYTES && CIRCUIT_MESSAGE_BYTES == MESSAGE_BYTES);

/// A circuit as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitSpec {
    pub id: CircuitId,
    /// Our side.
    pub side: Side,
    /// The key of our side.
    pub key: Key,
    /// Name and addresses of every gateway.
    pub gateways: Vec<(String, Vec<SocketAddr>)>,
    /// The gateways that this end may choose; `None` for an end that is bound at all of them and
    /// follows the other end's choice.
    pub list: Option<List>,
    /// The tunnel over TLS for sites where UDP is blocked.
    pub tls: Option<TlsSpec>,
}

impl CircuitSpec {
    /// The identity of a circuit: a peer whose circuit gets another identity loses its sessions.
    pub(super) const fn identity(&self) -> (CircuitId, Side, &Key, bool) {
        (self.id, self.side, &self.key, self.list.is_some())
    }

    /// The addresses to dial for a tunnel over TLS, in this order: gateways that may be chosen, by
    /// preference, equal ones at random; then the one that failed lately; then the one in use.
    pub(super) fn dial_order(
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
        let address_of = |name: &str| at.iter().find(|at| at.name == name).map(|at| at.address);
        let mut order: Vec<_> = candidates
            .iter()
            .filter_map(|c| address_of(&c.name))
            .collect();
        order.sort_by_key(|address| (Some(*address) == used, Some(*address) == failed));
        order
    }

    /// The address of each gateway to use: its first one of a family that we have.
    fn at(&self, locals: &[IpAddr]) -> Vec<GatewayAddress> {
        let reached = |a: &&SocketAddr| locals.iter().any(|l| l.is_ipv4() == a.is_ipv4());
        let at = |(name, addresses): &(String, Vec<SocketAddr>)| {
            let address = *addresses.iter().find(reached)?;
            let name = name.clone();
            Some(GatewayAddress { name, address })
        };
        self.gateways.iter().filter_map(at).collect()
    }
}

/// A message to a gateway.
#[derive(Debug)]
pub(super) struct GatewayMessage {
    pub to: SocketAddr,
    pub bytes: [u8; MESSAGE_BYTES],
}

/// Our end of a circuit.
#[derive(Debug)]
pub(super) struct CircuitClient {
    selector: GatewaySelector,
    /// None of our addresses is of a gateway's address family.
    no_family: bool,
    /// The lack of a gateway was logged.
    lost_logged: bool,
}

impl CircuitClient {
    pub fn new(spec: &CircuitSpec, locals: &[IpAddr], seed: u64, now: Instant) -> Self {
        let at = spec.at(locals);
        let mut selector = GatewaySelector::new(
            (spec.id, spec.side, spec.key.clone()),
            Settings::default(),
            spec.list.as_ref(),
            &at,
            seed,
            since_boot(now),
        );
        // Without an address of our own nothing can be sent yet.
        while at.is_empty() && selector.poll().is_some() {}
        Self {
            selector,
            no_family: at.is_empty(),
            lost_logged: false,
        }
    }

    /// Sets the gateways, and the address families of our own addresses.
    pub fn update(&mut self, spec: &CircuitSpec, locals: &[IpAddr], now: Instant) {
        let at = spec.at(locals);
        self.no_family = at.is_empty();
        self.selector
            .update(spec.list.as_ref(), &at, since_boot(now));
    }

    pub const fn id(&self) -> CircuitId {
        self.selector.circuit()
    }

    /// The path through the gateway that this end has chosen and that works by UDP.
    pub fn udp_path(&self) -> Option<PeerPath> {
        let gateway = self.selector.used().filter(|_| !self.follows())?.address;
        let id = self.id().number();
        Some(PeerPath::Circuit { gateway, id })
    }

    /// Whether this end follows the other end's choice of a gateway.
    pub const fn follows(&self) -> bool {
        self.selector.awaits()
    }

    /// Whether a path is one of this circuit.
    pub fn owns(&self, path: PeerPath) -> bool {
        path.circuit() == Some(self.id().number())
    }

    /// Data of the other end arrived through this gateway.
    pub fn peer_received_from(&mut self, gateway: SocketAddr) {
        self.selector.peer_received_from(gateway);
    }

    /// The other end is no longer silent.
    pub const fn peer_received(&mut self) {
        self.selector.other_end_received();
    }

    /// Handles a message from a gateway; returns whether it was for this end.
    pub fn receive(&mut self, from: SocketAddr, message: &[u8], now: Now) -> bool {
        let times = (since_boot(now.mono), clock::unix_nanos_increasing());
        self.selector.receive(from, message, times)
    }

    /// Leaves every gateway.
    pub fn close(&mut self, now: Instant) {
        self.selector
            .close(since_boot(now), clock::unix_nanos_increasing());
    }

    /// Name of the gateway at an address, if it is one of this circuit.
    pub fn gateway_name(&self, address: SocketAddr) -> Option<&str> {
        self.selector.at(address).map(|at| at.name.as_str())
    }

    /// Handles expired timers. `silent`: nothing is received from the other end.
    pub fn drive(&mut self, now: Now, silent: bool) {
        let mono = since_boot(now.mono);
        if silent {
            self.selector.other_end_silent(mono);
        }
        if self.selector.next_deadline().is_some_and(|at| at <= mono) {
            self.selector.timeout(mono, clock::unix_nanos_increasing());
        }
    }

    /// The next message to be sent.
    pub fn poll(&mut self) -> Option<GatewayMessage> {
        loop {
            match self.selector.poll()? {
                selector::Action::Send { to, message } => {
                    return Some(GatewayMessage { to, bytes: message });
                }
                selector::Action::Use(at) => {
                    let regained = std::mem::take(&mut self.lost_logged);
                    tracing::info!(circuit = %self.id(), gateway = at.name, regained, "gateway in \
                        use, by UDP");
                }
                selector::Action::Lost(_) if self.no_family => {}
                selector::Action::Lost(why) => {
                    tracing::warn!(circuit = %self.id(), reason = %why, "no gateway is reachable");
                    self.lost_logged = true;
                }
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let at = self.selector.next_deadline()?;
        Some(Instant::from_nanos(
            u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        ))
    }

    /// Addresses of the gateways.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.selector.all().map(|at| at.address.ip())
    }

    /// Why no gateway works, if none does; for the operator.
    pub fn lost_reason(&self) -> Option<String> {
        if self.no_family {
            return Some(
                "the uplink has no address of a gateway's family: add one, or configure an address \
                 of the other family for the gateway"
                    .to_owned(),
            );
        }
        self.selector.lost().map(ToString::to_string)
    }

    pub fn states(&self, now: Instant) -> Vec<GatewayState> {
        self.selector.states(since_boot(now))
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
            let mut order = |failed, used| spec.dial_order(&locals, (failed, used), &mut random);
            assert_eq!(order(None, None)[3], at(3), "the next tier");
            assert_eq!(order(Some(at(0)), None)[2..], [at(3), at(0)]);
            let both = order(Some(at(0)), Some(at(1)));
            assert_eq!(both, [at(2), at(3), at(0), at(1)]);
            let same = order(Some(at(3)), Some(at(3)));
            assert_eq!(same[3], at(3));
        }
    }
}
