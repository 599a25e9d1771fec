//! Machines that disturb an address or cannot be reached, for the log and for status: other users
//! of addresses of ours, and hosts with group MAC addresses.

use std::time::Instant;

use appliance_common::{
    addr::{to_ip, v4_mapped},
    maps::Mode,
};

use super::{
    controller::{Controller, InForce},
    engines::Engines,
    kernel_drops::KernelDrops,
};
use crate::{
    config::{Network, Role},
    control::{ConflictStatus, mac_text},
    datapath::reconcile::mode_of,
    engine::conflict::AddressConflict,
};

/// Logs that another machine uses an address of ours.
pub(super) fn begun(controller: &Controller, conflict: &AddressConflict) {
    let status = status_of(controller, conflict, Instant::now());
    tracing::warn!(
        address = %status.address,
        network = status.network,
        interface = status.interface,
        vlan = status.vlan,
        mac = status.mac,
        own_mac = status.own_mac,
        "another machine uses an address that the appliance answers for; shut it down, or end \
         the failover of the address"
    );
}

/// Logs that it does so no longer.
pub(super) fn ended(controller: &Controller, conflict: &AddressConflict) {
    let status = status_of(controller, conflict, Instant::now());
    tracing::info!(
        address = %status.address,
        network = status.network,
        interface = status.interface,
        mac = status.mac,
        "address conflict resolved: the other machine no longer uses the address"
    );
}

/// Logs that conflicts of a network were not logged.
pub(super) fn unreported(controller: &Controller, vni: u32, count: u64) {
    tracing::warn!(
        network = network_name(controller, vni),
        count,
        "address conflicts of this network began, changed or ended without a log line, because \
         there are many; `status` lists those that continue"
    );
}

/// Conflicts that status lists at most: they have about 250 bytes each, and a reply has room for
/// 16 MiB.
const MAX_LISTED: usize = 10_000;

/// Other machines that use addresses of ours, for status.
pub(super) fn status(controller: &Controller, engines: &Engines) -> Vec<ConflictStatus> {
    let now = Instant::now();
    let conflicts = engines.conflicts().take(MAX_LISTED);
    conflicts.map(|c| status_of(controller, c, now)).collect()
}

fn status_of(controller: &Controller, conflict: &AddressConflict, now: Instant) -> ConflictStatus {
    let port = &conflict.port;
    let mut links = controller.snapshot().links.values();
    let link = links.find(|link| link.ifindex == port.ifindex);
    let seconds = |at: Instant| now.saturating_duration_since(at).as_secs();
    ConflictStatus {
        address: to_ip(&conflict.address),
        network: network_name(controller, conflict.vni),
        interface: link.map(|link| link.name.clone()).unwrap_or_default(),
        vlan: match (port.outer, port.inner) {
            (0, _) => "untagged".to_owned(),
            (outer, 0) => outer.to_string(),
            (outer, inner) => format!("{outer}.{inner}"),
        },
        mac: mac_text(conflict.mac),
        own_mac: mac_text(port.mac),
        age_seconds: seconds(conflict.since),
        seen_seconds: seconds(conflict.seen_at),
        claims: conflict.claims,
        defences: conflict.defences,
    }
}

/// Warnings about such machines, about networks whose replicas are not asked for, and about missing
/// counters of the kernel's drops.
pub(super) fn warnings(
    controller: &Controller,
    engines: &Engines,
    kernel_drops: &KernelDrops,
) -> Vec<String> {
    let hosts = engines.group_macs(Instant::now());
    let unreached = hosts.map(|(key, mac)| {
        format!(
            "network {:?}: {} answers with the group MAC address {}, to which the \
                 appliance sends nothing; switch the cluster from multicast to unicast mode",
            network_name(controller, key.vni),
            to_ip(&key.address),
            mac_text(mac),
        )
    });
    let left_out = engines.conflicts().count().saturating_sub(MAX_LISTED);
    let left_out = (left_out > 0).then(|| format!("{left_out} more address conflicts than listed"));
    let warnings = unreached.chain(left_out).chain(kernel_drops.warning());
    warnings.chain(unasked(controller, engines)).collect()
}

/// Networks at the provider whose replicas are not asked for.
fn unasked<'a>(
    controller: &'a Controller,
    engines: &'a Engines,
) -> impl Iterator<Item = String> + 'a {
    let InForce { config, state, .. } = controller.in_force();
    let unasked = move |network: &&Network| {
        let sender = |port| engines.sender_for(&port, &v4_mapped([0; 4]));
        config.role == Role::Provider
            && mode_of(state, &network.tenant) == Mode::Partial
            && network.prefixes.iter().any(|p| p.address().is_ipv4())
            && engines
                .port(network.vni)
                .is_some_and(|port| sender(port).is_none())
    };
    config.networks.iter().filter(unasked).map(|network| {
        format!(
            "network {:?} has no IPv4 gateway, so its replicas are not asked for and are \
             reached once they have sent: give it a `gateway`, any address that no machine has",
            network.name
        )
    })
}

/// The name of a network; empty for a VNI that is not configured, as the uplink's.
fn network_name(controller: &Controller, vni: u32) -> String {
    let mut networks = controller.config().networks.iter();
    let network = networks.find(|network| network.vni == vni);
    network.map(|n| n.name.clone()).unwrap_or_default()
}
