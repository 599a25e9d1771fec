//! What the data path counts. The numbers are stable: one that is retired is never used again, so
//! that graphs and alerts survive an upgrade.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// A counter, and for a dropped packet the reason. The value is its index in the per-CPU
        /// array `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Counter {
            /// Every counter, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name, as printed and exported.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means, for a person.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

counters! {
    /// Not ours: handed to the kernel's stack.
    Passed = 0, "passed";
    /// Not configured yet: handed to the kernel's stack.
    NotConfigured = 1, "not_configured";
    /// An ARP request answered in place.
    ArpAnswered = 2, "arp_answered";
    /// A neighbour solicitation answered in place.
    NdAnswered = 3, "nd_answered";
    /// A packet put into a tunnel.
    Encapsulated = 4, "encapsulated";
    /// A packet taken out of a tunnel and sent to its host.
    Decapsulated = 5, "decapsulated";
    /// A packet for a host of the same network, sent to us by a stale neighbour cache, forwarded.
    Hairpinned = 6, "hairpinned";
    /// A TCP SYN whose MSS was lowered to what the tunnel carries.
    MssClamped = 7, "mss_clamped";
    /// An ICMP "fragmentation needed" sent to the source of a packet with DF.
    FragNeededSent = 8, "frag_needed_sent";
    /// An ICMPv6 "packet too big" sent to the source.
    PacketTooBigSent = 9, "packet_too_big_sent";
    /// A packet over the tunnel's MTU and without DF, handed to user space to be split.
    SlowSplit = 10, "slow_split";
    /// A packet whose host is not resolved yet, handed to user space to wait.
    SlowUnresolved = 11, "slow_unresolved";
    /// A neighbour seen on a tenant network, reported to user space.
    NeighbourSeen = 12, "neighbour_seen";
    /// A neighbour seen on a tenant network that could not be reported: the ring was full.
    NeighbourSeenLost = 13, "neighbour_seen_lost";
    /// An address probe (ARP probe, duplicate address detection) left unanswered, because only the
    /// prefix and not the address itself is known to be in use.
    ProbeIgnored = 14, "probe_ignored";
    /// ARP or neighbour discovery for an address that is not ours to answer, on a tenant-only port.
    ControlIgnored = 15, "control_ignored";
    /// A packet handed to a worker to be sealed.
    ToSeal = 16, "to_seal";
    /// A datagram of a known session handed to a worker to be opened.
    ToOpen = 17, "to_open";
    /// A handshake message handed to the kernel's stack for the daemon.
    HandshakePassed = 18, "handshake_passed";
    /// A packet sealed in several pieces, because it is longer than the path takes.
    SplitInTunnel = 19, "split_in_tunnel";
    /// A packet put together again from its pieces.
    Rejoined = 20, "rejoined";
    /// A keep-alive or a word between the tunnel's ends.
    TunnelControl = 21, "tunnel_control";
    /// A TCP segment kept because its tunnel is down: the newest of its flow, for when it is back.
    Parked = 22, "parked";
    /// A TCP segment that was kept, sent when its tunnel came back.
    Released = 23, "released";
    /// A packet of a lane that another worker has, handed over to it.
    HandedOver = 24, "handed_over";
    /// Full failover: a packet routed to a host of one of the tenant's networks.
    Routed = 25, "routed";
    /// Full failover: a ping to the gateway answered.
    EchoAnswered = 26, "echo_answered";
    /// Full failover: "time exceeded" sent to the source of a packet that had come too far.
    TimeExceededSent = 27, "time_exceeded_sent";
    /// Full failover: "unreachable" sent to the source: no route, or not allowed.
    UnreachableSent = 28, "unreachable_sent";
    /// Translated and sent out of the uplink.
    TranslatedOut = 29, "translated_out";
    /// Translated and sent to a host of a tenant's network.
    TranslatedIn = 30, "translated_in";
    /// From a tenant's host to a public address that leads to another, translated both ways (RFC 4787 section 6).
    TranslatedHairpin = 31, "translated_hairpin";

    /// Dropped: truncated, or its lengths contradict each other.
    DropMalformed = 32, "drop_malformed";
    /// Dropped: no network is attached to this interface and VLAN.
    DropUnknownVlan = 33, "drop_unknown_vlan";
    /// Dropped: more VLAN tags than outer and inner.
    DropTooManyTags = 34, "drop_too_many_tags";
    /// Dropped: the tenant is idle.
    DropIdle = 35, "drop_idle";
    /// Dropped: the source address is not one this port may speak for.
    DropSourceGuard = 36, "drop_source_guard";
    /// Dropped: broadcast, multicast or not IP, which a stretched network in proxy mode doesn't carry.
    DropNotCarried = 37, "drop_not_carried";
    /// Dropped: our own traffic came back to us.
    DropLoop = 38, "drop_loop";
    /// Dropped: a tunnel datagram for a network that does not exist here.
    DropUnknownVni = 39, "drop_unknown_vni";
    /// Dropped: a tunnel datagram from an address that is not the network's peer.
    DropStranger = 40, "drop_stranger";
    /// Dropped: a fragment of a tunnel datagram; RFC 7348 section 4.3 has none.
    DropOuterFragment = 41, "drop_outer_fragment";
    /// Dropped: the inner destination is not on this side, so it would go straight back.
    DropSplitHorizon = 42, "drop_split_horizon";
    /// Dropped: the inner source is an address of this side.
    DropInnerSource = 43, "drop_inner_source";
    /// Dropped: the tunnel's peer has no resolved next hop.
    DropNoPeer = 44, "drop_no_peer";
    /// Dropped: the ring to the slow path is full.
    DropSlowRingFull = 45, "drop_slow_ring_full";
    /// Dropped: the kernel could not grow or shrink the packet.
    DropAdjust = 46, "drop_adjust";
    /// Dropped: addressed to somebody else's MAC.
    DropForeignMac = 47, "drop_foreign_mac";
    /// Dropped: a network, tenant or peer that the maps name is missing.
    DropInconsistent = 48, "drop_inconsistent";
    /// Dropped: larger than the slow path takes.
    DropTooLarge = 49, "drop_too_large";
    /// Dropped: a link-local or otherwise unroutable unicast address, which is not stretched.
    DropLinkLocal = 50, "drop_link_local";
    /// Dropped: a tunnel datagram whose VXLAN header has no valid VNI.
    DropBadVxlan = 51, "drop_bad_vxlan";
    /// Dropped: over the MTU with IPv6 and itself an ICMPv6 error, about which no error may be sent
    /// (RFC 4443 section 2.4).
    DropNoErrorAboutError = 52, "drop_no_error_about_error";
    /// Dropped: no worker has a socket on this interface and queue; the daemon is not running, or starting.
    DropNoWorker = 53, "drop_no_worker";
    /// Dropped: an encrypted datagram that names no session known here.
    DropUnknownSession = 54, "drop_unknown_session";
    /// Dropped: handshake messages over the share of their source, or of all strangers.
    DropHandshakeRate = 55, "drop_handshake_rate";
    /// Dropped: a datagram to the encrypted tunnels' port that is none of their messages.
    DropBadDatagram = 56, "drop_bad_datagram";
    /// Dropped: an encrypted datagram that is not authentic.
    DropForged = 57, "drop_forged";
    /// Dropped: an encrypted datagram seen before, or too old to tell.
    DropReplayed = 58, "drop_replayed";
    /// Dropped: a packet for a tunnel that has no session.
    DropNoSession = 59, "drop_no_session";
    /// Dropped: an interface did not take the packets as fast as they came.
    DropTxFull = 60, "drop_tx_full";
    /// Dropped: an address that the WireGuard peer is not allowed.
    DropNotAllowed = 61, "drop_not_allowed";
    /// Dropped: a packet of a network that the peer it came from has no part in.
    DropWrongPeer = 62, "drop_wrong_peer";
    /// Dropped: authentic, but its segment contradicts itself or others.
    DropBadSegment = 63, "drop_bad_segment";
    /// Dropped: longer than the tunnel carries even in pieces.
    DropTooLong = 64, "drop_too_long";
    /// Dropped: the worker that has the packet's lane does not take packets as fast as another hands them over.
    DropWorkerFull = 65, "drop_worker_full";
    /// Dropped: the tenant's policy does not allow the one network to send to the other.
    DropPolicy = 66, "drop_policy";
    /// Dropped: no network of the tenant has the address, and it has no way out.
    DropNoRoute = 67, "drop_no_route";
    /// Dropped: the packet's hops are used up.
    DropHopLimit = 68, "drop_hop_limit";
    /// Dropped: for the gateway itself, which answers pings and nothing else.
    DropToGateway = 69, "drop_to_gateway";
    /// Dropped: the program that goes on with it is not loaded; the daemon is starting or of another version.
    DropNoProgram = 70, "drop_no_program";
    /// Dropped: to port 22 of a public address, over which nothing but the appliance is managed.
    DropManagementPort = 71, "drop_management_port";
    /// Dropped: to a public address, and no rule of it leads anywhere; or from inside to what another endpoint is seen as,
    /// before that one has sent here.
    DropNoRule = 72, "drop_no_rule";
    /// Dropped: from a source that the rule does not list.
    DropNotListed = 73, "drop_not_listed";
    /// Dropped: of no connection that is known, and it does not open one.
    DropNoFlow = 74, "drop_no_flow";
    /// Dropped: the table of connections is full.
    DropFlowsFull = 75, "drop_flows_full";
    /// Dropped: no port is free for another endpoint behind the address.
    DropNoPort = 76, "drop_no_port";
    /// Dropped: another connection has the same addresses and ports on the other side.
    DropFlowTaken = 77, "drop_flow_taken";
    /// Dropped: a protocol that is not translated, or a source route.
    DropNatProtocol = 78, "drop_nat_protocol";
    /// Dropped: the kernel has no way to the destination out of the uplink.
    DropNoNextHop = 79, "drop_no_next_hop";
    /// Dropped: a fragment whose first one was not translated.
    DropFragment = 80, "drop_fragment";
    /// Dropped: the tenant has its share of connections, or of endpoints that are seen outside.
    DropShare = 81, "drop_share";

    /// A connection was begun, by rule or by mapping.
    FlowOpened = 96, "flow_opened";
    /// A connection that both ends want was given its place.
    FlowEstablished = 97, "flow_established";
    /// An error message translated, with what it quotes.
    ErrorTranslated = 98, "error_translated";
    /// A fragment translated as its first one was.
    FragmentTranslated = 99, "fragment_translated";
    /// Full failover: a router solicitation handed to the slow path, which advertises.
    SlowSolicited = 100, "slow_solicited";
    /// A fragment that came before its first one, handed to the slow path, which waits for that one.
    SlowFragment = 101, "slow_fragment";
}

impl Counter {
    /// Entries of the per-CPU array: room to add without a new layout.
    pub const SLOTS: u32 = 128;

    /// Whether a packet ended here.
    #[must_use]
    pub const fn is_drop(self) -> bool {
        self as u32 >= 32 && (self as u32) < 96
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_and_names_are_unique_and_fit() {
        let numbers: BTreeSet<_> = Counter::ALL.iter().map(|c| *c as u32).collect();
        let names: BTreeSet<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(numbers.len(), Counter::ALL.len());
        assert_eq!(names.len(), Counter::ALL.len());
        assert!(numbers.last().is_some_and(|n| *n < Counter::SLOTS));
        for counter in Counter::ALL {
            assert_eq!(
                counter.is_drop(),
                counter.name().starts_with("drop_"),
                "{counter:?}"
            );
            assert_eq!(
                counter.is_drop(),
                counter.help().starts_with("Dropped"),
                "{counter:?}"
            );
        }
    }
}
