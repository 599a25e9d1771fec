//! Before a full failover or a rule takes addresses over: asks whether they have an owner, and
//! carries the request out, or refuses it with the owner's MAC address.
//!
//! ```text
//!   request ─▶ new served addresses? ─ none, or --take-over ─▶ carried out
//!                └─▶ Engines: TakeoverCheck ─▶ owners? ─ none ─▶ carried out
//!                                                └─────────────▶ refused
//! ```

use std::time::Instant;

use appliance_common::{
    addr::{as_v4, to_ip},
    maps::Mode,
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV6},
};
use failover::RuleChange;
use service::socket::Responder;

use super::{
    modes::{self, SwitchOptions},
    one_tenant, rules,
};
use crate::{
    control::{Answer, Request, RequestRefusal, mac_text},
    daemon::{
        controller::{Controller, assign_slots},
        engines::Engines,
    },
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

/// The request that takes addresses over: while they are checked, and until it is carried out.
#[derive(Default)]
pub(in crate::daemon) struct Takeover {
    waiting: Option<Waiting>,
    checked: Option<(Request, Responder<Answer>)>,
}

/// A request that waits for the check of the addresses that it takes over.
struct Waiting {
    request: Request,
    responder: Responder<Answer>,
    /// Sockets that receive the packets that XDP passes to the kernel on the uplink, where no
    /// program reports hosts.
    listeners: Vec<PacketSocket>,
}

impl Takeover {
    /// Begins the check of the addresses that a request takes over, and keeps the request for its
    /// end; gives it back where there is nothing to check.
    pub fn check(
        &mut self,
        controller: &mut Controller,
        engines: &mut Engines,
        request: Request,
        responder: Responder<Answer>,
    ) -> Option<(Request, Responder<Answer>)> {
        let Some((state, turned)) = proposed_state(controller, &request) else {
            return Some((request, responder));
        };
        let targets = targets(controller, engines, &state, turned.as_deref());
        if targets.is_empty() {
            return Some((request, responder));
        }
        if self.waiting.is_some() || self.checked.is_some() {
            let message = "another failover is about to begin; try again in a second";
            responder.send(Err(RequestRefusal::new("conflict", message)));
            return None;
        }
        let uplink = controller.uplink_index();
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
        engines.check_takeover(now, targets);
        controller.update_groups(now, engines);
        self.waiting = Some(Waiting {
            request,
            responder,
            listeners,
        });
        None
    }

    /// Reads the answers that came on the uplink.
    pub fn read_answers(&self, engines: &mut Engines) {
        let Some(waiting) = &self.waiting else {
            return;
        };
        let mut frame = [0; MAX_FRAME];
        for socket in &waiting.listeners {
            for _ in 0..BATCH {
                let Ok(length) = socket.receive(&mut frame) else {
                    break;
                };
                if let Some((address, mac)) = frame::claimed_address(&frame[..length]) {
                    let port = (socket.ifindex(), 0, 0);
                    engines.takeover_seen(port, address, mac);
                }
            }
        }
    }

    /// Has the request carried out after this step, or refuses it because addresses have owners.
    pub fn done(&mut self, controller: &mut Controller, engines: &Engines, owners: &[Owner]) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let Waiting {
            request, responder, ..
        } = waiting;
        if owners.is_empty() {
            self.checked = Some((request, responder));
            return;
        }
        controller.update_groups(Instant::now(), engines);
        let refusal = in_use(controller, owners);
        tracing::warn!(
            reason = refusal.message,
            "request refused: an address is in use"
        );
        responder.send(Err(refusal));
    }

    /// The request whose addresses were checked, and have no owners.
    pub const fn take_checked(&mut self) -> Option<(Request, Responder<Answer>)> {
        self.checked.take()
    }
}

fn in_use(controller: &Controller, owners: &[Owner]) -> RequestRefusal {
    let named: Vec<String> = owners
        .iter()
        .take(5)
        .map(|owner| {
            let mut links = controller.snapshot().links.values();
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
fn proposed_state(controller: &Controller, request: &Request) -> Option<(State, Option<String>)> {
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
            let tenant = one_tenant(controller, tenant.as_deref()).ok()?;
            let options = SwitchOptions {
                plan: plan.clone(),
                force: *force,
                promote: *promote,
            };
            let state = modes::propose_switch(controller, &tenant, mode, &options)
                .ok()?
                .state;
            if mode_of(controller.state(), &tenant) == Mode::Partial {
                turned = Some(tenant);
            }
            state
        }
        Request::RuleAdd {
            tenant,
            rules,
            take_over: false,
        } => {
            let tenant = one_tenant(controller, tenant.as_deref()).ok()?;
            let changes = rules.iter().cloned().map(RuleChange::Add).collect();
            rules::with_rules(controller, &tenant, changes).ok()?.state
        }
        _ => return None,
    };
    assign_slots(controller.config(), &mut state);
    Some((state, turned))
}

/// The served addresses of a state that the present one does not have, and the gateways of the
/// tenant `turned`: in partial failover they are served while their router is at the
/// production site.
fn targets(
    controller: &Controller,
    engines: &Engines,
    state: &State,
    turned: Option<&str>,
) -> Vec<Target> {
    let config = controller.config();
    let wanted = controller.served_addresses_with(state, engines);
    let held = engines.served_addresses();
    let uplink = controller.uplink_index();
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
                controller.uplink_sender(as_v4(&address).is_some())
            } else {
                engines.sender_for(&port, &address)
            },
        })
        .collect()
}
