//! The circuits of this appliance's peers: what the crate `gateway-client` decides, in terms of ways.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    time::Duration,
};

use gateway_client::{
    pool::List,
    reach::{self, At, GatewayState, Reach, Settings},
    wire::{CircuitId, Key, MESSAGE_BYTES, Side},
};
use tunnel::{Instant, Now, Way};

use super::streams::TlsSpec;

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
    pub(super) const fn identity(&self) -> (CircuitId, Side, &Key, bool, Option<&TlsSpec>) {
        let seeks = self.list.is_some();
        (self.id, self.side, &self.key, seeks, self.tls.as_ref())
    }

    /// Where to open a tunnel over TLS: at the gateways that may be chosen, the preferred first.
    pub(super) fn dialed(&self, locals: &[IpAddr]) -> Vec<SocketAddr> {
        let at = self.at(locals);
        let mut candidates = match &self.list {
            Some(list) => list.candidates().to_vec(),
            None => Vec::new(),
        };
        candidates.sort_by_key(|candidate| (candidate.tier, candidate.load));
        let there = |name: &str| at.iter().find(|at| at.name == name).map(|at| at.address);
        candidates.iter().filter_map(|c| there(&c.name)).collect()
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
    id: CircuitId,
    awaits: bool,
    reach: Reach,
    /// None of our addresses is of a gateway's family: not yet, or not at all.
    homeless: bool,
    /// What was said of being without a gateway.
    lost: Option<String>,
}

impl Circuit {
    pub fn new(spec: &CircuitSpec, locals: &[IpAddr], seed: u64, now: Instant) -> Self {
        let at = spec.at(locals);
        let reach = Reach::new(
            (spec.id, spec.side, spec.key.clone()),
            Settings::default(),
            spec.list.as_ref(),
            &at,
            seed,
            since_boot(now),
        );
        Self {
            id: spec.id,
            awaits: spec.list.is_none(),
            reach,
            homeless: at.is_empty(),
            lost: None,
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
        self.id
    }

    /// The way by the gateway that is chosen and works by UDP.
    pub fn udp(&self) -> Option<Way> {
        let gateway = self.reach.used().filter(|_| !self.awaits)?.address;
        let id = NonZeroU64::new(self.id.get())?;
        Some(Way::Circuit { gateway, id })
    }

    /// Whether the other end says by which gateway.
    pub const fn awaits(&self) -> bool {
        self.awaits
    }

    /// Whether a way is one of this circuit.
    pub fn is_by(&self, way: Way) -> bool {
        way.circuit() == NonZeroU64::new(self.id.get())
    }

    /// The other end is heard by this gateway.
    pub fn heard_by(&mut self, gateway: SocketAddr) {
        self.reach.heard_by(gateway);
    }

    /// The other end is heard again.
    pub const fn heard(&mut self) {
        self.reach.heard();
    }

    /// Does what is due; `silent`: whether the other end is not heard.
    pub fn drive(&mut self, now: Now, silent: bool) {
        let mono = since_boot(now.mono);
        if silent {
            self.reach.unheard(mono);
        }
        if self.reach.next_deadline().is_some_and(|at| at <= mono) {
            self.reach.timeout(mono, nanos(now));
        }
    }

    pub fn poll(&mut self) -> Option<Send> {
        loop {
            match self.reach.poll()? {
                reach::Action::Send { to, message } => return Some(Send { to, message }),
                reach::Action::Use(at) => {
                    let again = self.lost.take().is_some();
                    tracing::info!(circuit = %self.id, gateway = at.name, again, "bound by UDP");
                }
                reach::Action::Lost(_) if self.homeless => {}
                reach::Action::Lost(why) => {
                    tracing::warn!(circuit = %self.id, reason = %why, "no gateway");
                    self.lost = Some(why.to_string());
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

/// Gives a gateway's message to the circuit that it is for; whether there is one.
pub(super) fn hear<'c>(
    mut circuits: impl Iterator<Item = &'c mut Circuit>,
    from: SocketAddr,
    message: &[u8],
    now: Now,
) -> bool {
    let times = (since_boot(now.mono), nanos(now));
    circuits.any(|circuit| circuit.reach.hear(from, message, times))
}

/// Whether a handshake message may come this way: directly, or from a gateway by a circuit that is here.
pub(super) fn is_known<'c>(mut circuits: impl Iterator<Item = &'c Circuit>, way: Way) -> bool {
    match way {
        Way::Direct(_) => true,
        Way::Circuit { gateway, .. } => {
            circuits.any(|circuit| circuit.is_by(way) && circuit.reach.at(gateway).is_some())
        }
        Way::Stream(_) => circuits.any(|circuit| circuit.is_by(way)),
    }
}

fn since_boot(now: Instant) -> Duration {
    Duration::from_nanos(now.as_nanos())
}

fn nanos(now: Now) -> u64 {
    u64::try_from(now.unix.as_nanos()).unwrap_or(u64::MAX)
}
