//! Before a full failover or a rule takes addresses over: asks whether they have an owner, and
//! carries the request out, or refuses it with the owner's MAC address.
//!
//! ```text
//!   request ─▶ newly claimed addresses? ─ none, or --take-over ─▶ carried out
//!                └─▶ Engines: TakeoverCheck ─▶ owners? ─ none ─▶ carried out
//!                                                └─────────────▶ refused
//! ```

use std::time::Instant;

use appliance_common::{
    addr::{as_v4, from_ip, to_ip},
    maps::Mode,
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV6},
};
use failover::RuleChange;
use service::socket::Responder;

use super::{
    Daemon, claims, controller::assign_slots, engines::Claims, requests::modes::SwitchOptions,
};
use crate::{
    control::{Answer, Request, RequestRefusal, mac_text},
    datapath::reconcile::mode_of,
    engine::takeover::{Owner, Target},
    frame,
    kernel::raw_socket::PacketSocket,
    state::State,
};

/// Longest frame that is read of an answer.
const MAX_FRAME: usize = 256;
/// Frames read from a socket before other work gets its turn.
const BATCH: usize = 1024;

/// A request that waits for the check of the addresses that it takes over.
pub(super) struct Takeover {
    request: Request,
    responder: Responder<Answer>,
    /// Sockets that receive the packets that XDP passes to the kernel on the uplink, where no
    /// program reports hosts.
    listeners: Vec<PacketSocket>,
}

impl Daemon {
    /// Begins the check of the addresses that a request takes over, and keeps the request for its
    /// end; gives it back where there is nothing to check.
    pub(super) fn check_takeover(
        &mut self,
        request: Request,
        responder: Responder<Answer>,
    ) -> Option<(Request, Responder<Answer>)> {
        let Some((state, turned)) = self.proposed_state(&request) else {
            return Some((request, responder));
        };
        let targets = self.takeover_targets(&state, turned.as_deref());
        if targets.is_empty() {
            return Some((request, responder));
        }
        if self.takeover.is_some() || self.checked.is_some() {
            let message = "another failover is about to begin; try again in a second";
            responder.send(Err(RequestRefusal::new("conflict", message)));
            return None;
        }
        let uplink = self.uplink_index();
        let listens = targets.iter().any(|t| Some(t.port.ifindex) == uplink);
        let mut listeners = Vec::new();
        for protocol in [ETHERTYPE_ARP, ETHERTYPE_IPV6] {
            let Some(ifindex) = uplink.filter(|_| listens) else {
                break;
            };
            match PacketSocket::listen(ifindex, protocol) {
                Ok(socket) => listeners.push(socket),
                Err(error) => {
                    let message = format!("cannot check whether addresses are in use: {error}");
                    responder.send(Err(RequestRefusal::new("internal", message)));
                    return None;
                }
            }
        }
        let now = Instant::now();
        self.engines.check_takeover(now, targets);
        self.update_groups(now);
        self.takeover = Some(Takeover {
            request,
            responder,
            listeners,
        });
        None
    }

    /// Reads the answers that came on the uplink.
    pub(super) fn read_takeover_answers(&mut self) {
        let Some(takeover) = &self.takeover else {
            return;
        };
        let mut frame = [0; MAX_FRAME];
        for socket in &takeover.listeners {
            for _ in 0..BATCH {
                let Ok(length) = socket.receive(&mut frame) else {
                    break;
                };
                if let Some((address, mac)) = frame::claimed_address(&frame[..length]) {
                    let port = (socket.ifindex(), 0, 0);
                    self.engines.takeover_seen(port, address, mac);
                }
            }
        }
    }

    /// Has the request carried out after this step, or refuses it because addresses have owners.
    pub(super) fn takeover_checked(&mut self, owners: &[Owner]) {
        let Some(takeover) = self.takeover.take() else {
            return;
        };
        let Takeover {
            request, responder, ..
        } = takeover;
        if owners.is_empty() {
            self.checked = Some((request, responder));
            return;
        }
        self.update_groups(Instant::now());
        let refusal = self.in_use(owners);
        tracing::warn!(
            reason = refusal.message,
            "request refused: an address is in use"
        );
        responder.send(Err(refusal));
    }

    fn in_use(&self, owners: &[Owner]) -> RequestRefusal {
        let named: Vec<String> = owners
            .iter()
            .take(5)
            .map(|owner| {
                let mut links = self.snapshot.links.values();
                let link = links.find(|link| link.ifindex == owner.port.ifindex);
                let interface = link.map_or("?", |link| link.name.as_str());
                let vlan = match owner.port.outer {
                    0 => String::new(),
                    vlan => format!(" VLAN {vlan}"),
                };
                let (address, mac) = (to_ip(&owner.address), mac_text(owner.mac));
                format!("{address} by {mac} on {interface}{vlan}")
            })
            .collect();
        let more = match owners.len() {
            0..=5 => String::new(),
            n => format!(" and {} more", n - 5),
        };
        RequestRefusal::new(
            "conflict",
            format!(
                "addresses to take over are in use: {}{more}; switch the owner off, or take the \
                 addresses over in spite of it with --take-over; nothing was changed",
                named.join(", ")
            ),
        )
    }

    /// The state that a request proposes, where it may take addresses over, and the tenant whose
    /// partial failover it turns into a full one. `None` also where it will be refused.
    fn proposed_state(&self, request: &Request) -> Option<(State, Option<String>)> {
        let mut turned = None;
        let mut state = match request {
            Request::Mode {
                tenant,
                mode: Some(mode),
                plan,
                force,
                promote,
                take_over: false,
            } if mode == "full" => {
                let tenant = self.one_tenant(tenant.as_deref()).ok()?;
                let options = SwitchOptions {
                    plan: plan.clone(),
                    force: *force,
                    promote: *promote,
                };
                let state = self.propose_switch(&tenant, mode, &options).ok()?.state;
                if mode_of(&self.in_force.state, &tenant) == Mode::Partial {
                    turned = Some(tenant);
                }
                state
            }
            Request::RuleAdd {
                tenant,
                rules,
                take_over: false,
            } => {
                let tenant = self.one_tenant(tenant.as_deref()).ok()?;
                let changes = rules.iter().cloned().map(RuleChange::Add).collect();
                self.with_rules(&tenant, changes).ok()?.state
            }
            _ => return None,
        };
        assign_slots(&self.in_force.config, &mut state);
        Some((state, turned))
    }

    /// The addresses that a state claims and the present one does not, and the gateways of the
    /// tenant `turned`: in partial failover they are claimed while their router is at the
    /// production site.
    fn takeover_targets(&self, state: &State, turned: Option<&str>) -> Vec<Target> {
        let config = &self.in_force.config;
        let tables = self.wanted(config, state);
        let (snapshot, engines) = (&self.snapshot, &self.engines);
        let wanted: Claims = claims::claims((config, state), snapshot, engines, &tables);
        let held = self.engines.claims();
        let uplink = self.uplink_index();
        let of_turned = |port| {
            let networks = config.networks.iter();
            let mut networks = networks.filter(|n| Some(n.tenant.as_str()) == turned);
            networks.any(|n| engines.port(n.vni) == Some(port))
        };
        wanted
            .into_iter()
            .filter(|((port, address), router)| {
                !held.contains_key(&(*port, *address)) || (*router && of_turned(*port))
            })
            .map(|((port, address), _)| Target {
                port,
                address,
                sender: if Some(port.ifindex) == uplink && port.outer == 0 {
                    self.uplink_sender(as_v4(&address).is_some())
                } else {
                    self.engines.sender_for(&port, &address)
                },
            })
            .collect()
    }

    pub(super) fn uplink_index(&self) -> Option<u32> {
        let uplink = &self.in_force.config.uplink.interface;
        self.snapshot.links.get(uplink).map(|link| link.ifindex)
    }

    /// The uplink's own address of a family; of IPv6 ones the link-local one, where there is one.
    pub(super) fn uplink_sender(&self, v4: bool) -> Option<appliance_common::addr::Address> {
        let link = self
            .snapshot
            .links
            .get(&self.in_force.config.uplink.interface)?;
        let addresses = link.addresses.iter().map(|(address, _)| *address);
        let mut of_family: Vec<_> = addresses.filter(|a| a.is_ipv4() == v4).collect();
        of_family
            .sort_by_key(|a| !matches!(a, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()));
        of_family.first().copied().map(from_ip)
    }
}
