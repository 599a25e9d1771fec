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

use gateway_client::{
    dial::{DialSettings, Dialler, Race, RaceSettings, Target, interleave},
    pool::{List, Report},
    selector::{self, GatewaySelector, GatewayState, Settings},
    wire::{CircuitId, Datagram, Key, MESSAGE_BYTES, Side},
};
use tunnel::{Instant, Now, PeerPath};

use super::tls_connections::TlsSpec;
use crate::clock;

/// Time for TCP to connect to a gateway while other gateways wait.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A circuit as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitSpec {
    pub id: CircuitId,
    /// Our side.
    pub side: Side,
    /// The key of our side.
    pub key: Key,
    /// Every gateway, with its addresses of both families.
    pub gateways: Vec<Target>,
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

    /// The gateways that we can reach: their addresses of families that we have, in turn. A gateway
    /// whose name has no address yet is kept.
    fn reachable(&self, locals: &[IpAddr]) -> Vec<Target> {
        let reached = |a: &SocketAddr| locals.iter().any(|l| l.is_ipv4() == a.is_ipv4());
        let of_gateway = |gateway: &Target| Target {
            name: gateway.name.clone(),
            addresses: interleave(gateway.addresses.iter().copied().filter(reached)),
            former: gateway.former.iter().copied().filter(reached).collect(),
        };
        self.gateways.iter().map(of_gateway).collect()
    }
}

/// Why no gateway can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unreachable {
    /// None of our addresses is of a gateway's address family.
    NoFamily,
    /// No name of a gateway was resolved yet.
    NoAddress,
}

impl Unreachable {
    fn of(spec: &CircuitSpec, reachable: &[Target]) -> Option<Self> {
        if reachable.iter().any(|g| !g.addresses.is_empty()) {
            return None;
        }
        let unresolved = spec.gateways.iter().any(|g| g.addresses.is_empty());
        Some(if unresolved {
            Self::NoAddress
        } else {
            Self::NoFamily
        })
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
    /// The choice for tunnels over TLS, where this end opens them. It has health of its own: where
    /// UDP is blocked, no gateway answers binds.
    dialler: Option<Dialler>,
    unreachable: Option<Unreachable>,
    /// The lack of a gateway was logged.
    lost_logged: bool,
}

impl CircuitClient {
    pub fn new(spec: &CircuitSpec, locals: &[IpAddr], seed: u64, now: Instant) -> Self {
        let gateways = spec.reachable(locals);
        let mono = since_boot(now);
        let mut selector = GatewaySelector::new(
            (spec.id, spec.side, spec.key.clone()),
            Settings::default(),
            spec.list.as_ref(),
            &gateways,
            seed,
            mono,
        );
        let unreachable = Unreachable::of(spec, &gateways);
        // Nothing can be sent yet.
        while unreachable.is_some() && selector.poll().is_some() {}
        // Another sequence of random numbers than the selector's.
        let settings = DialSettings::gateways();
        let dialler = |list| Dialler::new(settings, list, gateways, !seed, mono);
        Self {
            selector,
            dialler: spec.list.as_ref().map(dialler),
            unreachable,
            lost_logged: false,
        }
    }

    /// Sets the gateways, and the address families of our own addresses.
    pub fn update(&mut self, spec: &CircuitSpec, locals: &[IpAddr], now: Instant) {
        let gateways = spec.reachable(locals);
        let mono = since_boot(now);
        self.unreachable = Unreachable::of(spec, &gateways);
        self.selector.update(spec.list.as_ref(), &gateways, mono);
        if let (Some(dialler), Some(list)) = (&mut self.dialler, &spec.list) {
            dialler.update(list, gateways, mono);
        }
    }

    /// The race of connects for a tunnel over TLS: gateways by preference, the one in use last;
    /// `used` is its address. `None`: this end does not dial, or no address is known.
    pub fn race(&mut self, used: Option<SocketAddr>, now: Instant) -> Option<Race> {
        let dialler = self.dialler.as_mut()?;
        if let Some(chooser) = self.selector.chooser() {
            dialler.adopt_loads(chooser);
        }
        let settings = RaceSettings {
            attempt_timeout: CONNECT_TIMEOUT,
            ..RaceSettings::default()
        };
        let race = dialler.race(used, settings, since_boot(now));
        race.has_more().then_some(race)
    }

    /// A connection at an address was made, failed, or was lost.
    pub fn report_stream(&mut self, address: SocketAddr, report: Report, now: Instant) {
        if let Some(dialler) = &mut self.dialler {
            dialler.report(address, report, since_boot(now));
        }
    }

    /// Whether gateways do not answer: their names may have other addresses now.
    pub fn is_troubled(&self, now: Instant) -> bool {
        self.selector.is_troubled(since_boot(now))
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
        self.selector.at(address)
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
                    tracing::info!(
                        circuit = %self.id(),
                        gateway = at.name,
                        address = %at.address,
                        regained,
                        "gateway in use, by UDP"
                    );
                }
                selector::Action::Lost(_) if self.unreachable.is_some() => {}
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
        self.selector.addresses().map(|address| address.ip())
    }

    /// Why no gateway works, if none does; for the operator.
    pub fn lost_reason(&self) -> Option<String> {
        match self.unreachable {
            Some(Unreachable::NoFamily) => Some(
                "the uplink has no address of a gateway's family: add one, or configure an address \
                 of the other family for the gateway"
                    .to_owned(),
            ),
            Some(Unreachable::NoAddress) => Some(
                "no gateway's name was resolved yet: see gateway names in status".to_owned(),
            ),
            None => self.selector.no_service().map(ToString::to_string),
        }
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
    use gateway_client::{
        dial::RaceAction,
        pool::{Access, Failure, Gateway},
    };

    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
    const SILENT: Report = Report::Failed(Failure::Silent);

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6180))
    }

    fn v6(n: u8) -> SocketAddr {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()], 6180))
    }

    /// Gateways 0, 1 and 2 in a pool, and 3 without one.
    fn spec(addresses: impl Fn(u8) -> Vec<SocketAddr>) -> CircuitSpec {
        let gateways: Vec<Gateway> = ["a", "b", "c", "d"]
            .into_iter()
            .map(|name| Gateway {
                name: name.to_owned(),
                pool: (name != "d").then(|| "gold".to_owned()),
                load: 0,
            })
            .collect();
        let access = Access {
            pools: vec!["gold".to_owned()],
            unpooled: true,
        };
        CircuitSpec {
            id: CircuitId::new(1 << 32 | 1).expect("an id"),
            side: Side::A,
            key: Key::new([7; 32]),
            gateways: (0u8..)
                .zip(&gateways)
                .map(|(n, gateway)| Target {
                    name: gateway.name.clone(),
                    addresses: addresses(n),
                    former: Vec::new(),
                })
                .collect(),
            list: Some(List::of(&gateways, &access).expect("a list")),
            tls: None,
        }
    }

    fn client(spec: &CircuitSpec, locals: &[IpAddr], seed: u64) -> CircuitClient {
        CircuitClient::new(spec, locals, seed, NOW)
    }

    fn dial_order(client: &mut CircuitClient, used: Option<SocketAddr>) -> Vec<SocketAddr> {
        let Some(mut race) = client.race(used, NOW) else {
            return Vec::new();
        };
        let mut order = Vec::new();
        let mut now = Duration::ZERO;
        while race.has_more() {
            match race.poll(now) {
                Some(RaceAction::Connect { attempt, address }) => {
                    order.push(address);
                    race.failed(attempt, now);
                }
                other => panic!("{other:?}"),
            }
            now += Duration::from_millis(1);
        }
        order
    }

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 2));
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2));

    #[test]
    fn the_gateway_in_use_and_those_that_failed_are_dialed_last() {
        let spec = spec(|n| vec![at(n)]);
        for seed in 0..20u64 {
            let mut client = client(&spec, &[V4], seed);
            assert_eq!(dial_order(&mut client, None)[3], at(3), "the next tier");
            client.report_stream(at(0), SILENT, NOW);
            assert_eq!(dial_order(&mut client, None)[2..], [at(3), at(0)]);
            let both = dial_order(&mut client, Some(at(1)));
            assert_eq!(both, [at(2), at(3), at(0), at(1)]);
            let answered = Report::Answered {
                load: None,
                draining: false,
            };
            client.report_stream(at(0), answered, NOW);
            client.report_stream(at(3), SILENT, NOW);
            assert_eq!(dial_order(&mut client, Some(at(3)))[3], at(3));
        }
    }

    #[test]
    fn addresses_of_both_families_are_dialed_in_turn() {
        let spec = spec(|n| vec![at(n), at(100 + n), v6(n)]);
        let order = dial_order(&mut client(&spec, &[V4, V6], 1), None);
        assert_eq!(order[9..], [at(3), v6(3), at(103)]);
        // The address that worked is first the next time.
        let mut both = client(&spec, &[V4, V6], 1);
        let answered = Report::Answered {
            load: None,
            draining: false,
        };
        both.report_stream(at(103), SILENT, NOW);
        both.report_stream(v6(3), answered, NOW);
        assert_eq!(dial_order(&mut both, None)[9..], [v6(3), at(3), at(103)]);
        both.report_stream(v6(3), SILENT, NOW);
        assert_eq!(dial_order(&mut both, None)[9..], [at(3), v6(3), at(103)]);
        let order = dial_order(&mut client(&spec, &[V6], 1), None);
        assert_eq!((order.len(), order[3]), (4, v6(3)));
    }

    #[test]
    fn a_name_without_an_address_is_told_from_a_family_that_is_missing() {
        let resolved = spec(|n| vec![at(n)]);
        let mut one = client(&resolved, &[V6], 1);
        let reason = one.lost_reason().expect("a reason");
        assert!(reason.starts_with("the uplink has no address"), "{reason}");
        let unresolved = spec(|_| vec![]);
        one.update(&unresolved, &[V4], NOW);
        let reason = one.lost_reason().expect("a reason");
        assert!(
            reason.starts_with("no gateway's name was resolved"),
            "{reason}"
        );
        assert_eq!(dial_order(&mut one, None), []);
        one.update(&resolved, &[V4], NOW);
        assert_eq!(one.lost_reason(), None);
        assert_eq!(dial_order(&mut one, None).len(), 4);
        assert_eq!(one.addresses().count(), 8, "each as address and binding");
    }
}
