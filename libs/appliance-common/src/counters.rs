//! Counters of the data path. Numbers are stable: a retired one is never reused, so that graphs and
//! alerts survive an upgrade.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal;)+) => {
        /// A counter; those of dropped packets are the drop reasons. The value is the index in the
        /// per-CPU array `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Counter {
            /// Every counter, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name in status and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// The help text in status and metrics.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

counters! {
    /// Packets that are not for the data path, passed to the kernel's stack.
    Passed = 0, "passed";
    /// Packets passed to the kernel's stack because the data path is not configured yet.
    NotConfigured = 1, "not_configured";
    /// ARP requests answered by the programs.
    ArpAnswered = 2, "arp_answered";
    /// Neighbour solicitations answered by the programs.
    NdAnswered = 3, "nd_answered";
    /// Packets sent into a plain tunnel.
    Encapsulated = 4, "encapsulated";
    /// Packets received from a tunnel and sent to their host.
    Decapsulated = 5, "decapsulated";
    /// Packets forwarded to a host on the same side, whose sender has a stale neighbour cache.
    Hairpinned = 6, "hairpinned";
    /// TCP SYNs whose MSS was lowered to fit the tunnel, the uplink or another network.
    MssClamped = 7, "mss_clamped";
    /// ICMP "fragmentation needed" messages sent to sources of packets with DF.
    FragNeededSent = 8, "frag_needed_sent";
    /// ICMPv6 "packet too big" messages sent.
    PacketTooBigSent = 9, "packet_too_big_sent";
    /// Packets without DF over the MTU of the tunnel, the uplink or their host's port, given to the
    /// slow path to be split.
    SlowSplit = 10, "slow_split";
    /// Packets given to the slow path to wait until their host or next hop is resolved.
    SlowUnresolved = 11, "slow_unresolved";
    /// Neighbours seen on tenant networks, reported to the daemon.
    NeighbourSeen = 12, "neighbour_seen";
    /// Neighbour reports lost because the ring was full.
    NeighbourSeenLost = 13, "neighbour_seen_lost";
    /// Address probes (ARP probe, duplicate address detection) not answered, because only the
    /// prefix and not the address itself is known to be in use.
    ProbeIgnored = 14, "probe_ignored";
    /// ARP and neighbour discovery on a tenant-only port for addresses that are not ours to answer.
    ControlIgnored = 15, "control_ignored";
    /// Packets given to a worker to be encrypted.
    ToSeal = 16, "to_seal";
    /// Datagrams of a known session given to a worker to be decrypted.
    ToOpen = 17, "to_open";
    /// Handshake messages passed to the daemon by the kernel's stack.
    HandshakePassed = 18, "handshake_passed";
    /// Packets encrypted in several fragments because they exceed the path MTU.
    TunnelFragmented = 19, "tunnel_fragmented";
    /// Packets reassembled from the fragments of a tunnel.
    TunnelReassembled = 20, "tunnel_reassembled";
    /// Keep-alives and control messages between the tunnel's ends.
    TunnelControl = 21, "tunnel_control";
    /// TCP segments put into the outage buffer while their tunnel is down, the newest of each flow.
    OutageBuffered = 22, "outage_buffered";
    /// TCP segments of the outage buffer that were sent when their tunnel came back.
    OutageFlushed = 23, "outage_flushed";
    /// Packets passed to the worker that owns their lane.
    HandedOver = 24, "handed_over";
    /// Full failover: packets routed to a host of one of the tenant's networks.
    Routed = 25, "routed";
    /// Full failover: echo requests answered, to the gateway or, if set so, to addresses of rules.
    EchoAnswered = 26, "echo_answered";
    /// Full failover: "time exceeded" messages sent.
    TimeExceededSent = 27, "time_exceeded_sent";
    /// Full failover: "unreachable" messages sent: no route, no such host, prohibited by policy, or
    /// to a port of the gateway.
    UnreachableSent = 28, "unreachable_sent";
    /// Packets translated and sent out of the uplink.
    TranslatedOut = 29, "translated_out";
    /// Packets translated and sent to a host of a tenant's network.
    TranslatedIn = 30, "translated_in";
    /// Packets from a tenant's host to a public address of another host, translated both ways
    /// (RFC 4787 section 6).
    TranslatedHairpin = 31, "translated_hairpin";

    /// Dropped: truncated, or with contradictory lengths.
    DropMalformed = 32, "drop_malformed";
    /// Dropped: no network is attached to this interface and VLAN.
    DropUnknownVlan = 33, "drop_unknown_vlan";
    /// Dropped: more VLAN tags than outer and inner.
    DropTooManyTags = 34, "drop_too_many_tags";
    /// Dropped: the tenant is idle.
    DropIdle = 35, "drop_idle";
    /// Dropped: this port may not send from the source address.
    DropSourceGuard = 36, "drop_source_guard";
    /// Dropped: broadcast, multicast or not IP, which a stretched network does not carry.
    DropNotCarried = 37, "drop_not_carried";
    /// Dropped: our own traffic came back.
    DropLoop = 38, "drop_loop";
    /// Dropped: a tunnel datagram for a network that does not exist here.
    DropUnknownVni = 39, "drop_unknown_vni";
    /// Dropped: a tunnel datagram from an address that is not the network's peer.
    DropUnknownPeer = 40, "drop_unknown_peer";
    /// Dropped: a fragment of a tunnel datagram; RFC 7348 section 4.3 has none.
    DropOuterFragment = 41, "drop_outer_fragment";
    /// Dropped: the inner destination is not on this side, so the packet would go back.
    DropSplitHorizon = 42, "drop_split_horizon";
    /// Dropped: the inner source is an address of this side.
    DropInnerSource = 43, "drop_inner_source";
    /// Dropped: the tunnel's peer has no resolved next hop.
    DropNoPeer = 44, "drop_no_peer";
    /// Dropped: the ring to the slow path is full.
    DropSlowRingFull = 45, "drop_slow_ring_full";
    /// Dropped: the kernel could not grow or shrink the packet.
    DropAdjust = 46, "drop_adjust";
    /// Dropped: sent to a MAC address that is not ours.
    DropForeignMac = 47, "drop_foreign_mac";
    /// Dropped: maps are inconsistent, a network, tenant or peer is missing. The log has details.
    DropInconsistent = 48, "drop_inconsistent";
    /// Dropped: larger than the slow path accepts, or over the MTU of the next network.
    DropTooLarge = 49, "drop_too_large";
    /// Dropped: a link-local or other unroutable address, which never leaves its link.
    DropLinkLocal = 50, "drop_link_local";
    /// Dropped: a tunnel datagram whose VXLAN header has no valid VNI.
    DropBadVxlan = 51, "drop_bad_vxlan";
    /// Dropped: over the MTU with IPv6 and itself an ICMPv6 error, about which no error may be sent
    /// (RFC 4443 section 2.4).
    DropNoErrorAboutError = 52, "drop_no_error_about_error";
    /// Dropped: no worker has a socket on this interface and queue. The daemon is stopped or
    /// starting.
    DropNoWorker = 53, "drop_no_worker";
    /// Dropped: an encrypted datagram of an unknown session.
    DropUnknownSession = 54, "drop_unknown_session";
    /// Dropped: handshake messages over the budget of their source, or of all unknown sources.
    DropHandshakeRate = 55, "drop_handshake_rate";
    /// Dropped: a datagram to the encrypted tunnels' port that is no message of theirs.
    DropBadDatagram = 56, "drop_bad_datagram";
    /// Dropped: an encrypted datagram that failed authentication.
    DropForged = 57, "drop_forged";
    /// Dropped: an encrypted datagram that was received before, or is too old for the replay
    /// window.
    DropReplayed = 58, "drop_replayed";
    /// Dropped: a packet for a tunnel that has no session.
    DropNoSession = 59, "drop_no_session";
    /// Dropped: an interface's TX ring is full.
    DropTxFull = 60, "drop_tx_full";
    /// Dropped: an address outside the WireGuard peer's allowed addresses.
    DropNotAllowed = 61, "drop_not_allowed";
    /// Dropped: a packet of a network that the sending peer does not belong to.
    DropWrongPeer = 62, "drop_wrong_peer";
    /// Dropped: authentic, but with an invalid or contradictory segment header.
    DropBadSegment = 63, "drop_bad_segment";
    /// Dropped: too long for the tunnel even in fragments.
    DropTooLong = 64, "drop_too_long";
    /// Dropped: the ring to the worker that owns the packet's lane is full.
    DropWorkerFull = 65, "drop_worker_full";
    /// Dropped: the tenant's policy does not allow this pair of networks.
    DropPolicy = 66, "drop_policy";
    /// Dropped: no network of the tenant has the destination, and there is no route out.
    DropNoRoute = 67, "drop_no_route";
    /// Dropped: the hop limit is exhausted.
    DropHopLimit = 68, "drop_hop_limit";
    /// Dropped: to the gateway itself, which answers echo requests and has no open ports.
    DropToGateway = 69, "drop_to_gateway";
    /// Dropped: the program of a tail call is not loaded. The daemon is starting or of another
    /// version.
    DropNoProgram = 70, "drop_no_program";
    /// Dropped: to port 22 of a public address, which is reserved for managing the appliance.
    DropManagementPort = 71, "drop_management_port";
    /// Dropped: to a public address without a matching rule, or from inside to another machine's
    /// mapping before that machine has sent.
    DropNoRule = 72, "drop_no_rule";
    /// Dropped: the rule does not list the source.
    DropNotListed = 73, "drop_not_listed";
    /// Dropped: of no known connection, and it does not open one.
    DropNoFlow = 74, "drop_no_flow";
    /// Dropped: the connection table is full.
    DropFlowsFull = 75, "drop_flows_full";
    /// Dropped: the public address has no free port for another inside address and
    /// port.
    DropNoPort = 76, "drop_no_port";
    /// Dropped: another connection uses the same addresses and ports on the other side.
    DropFlowTaken = 77, "drop_flow_taken";
    /// Dropped: a protocol that is not translated, or a source-routed packet.
    DropNatProtocol = 78, "drop_nat_protocol";
    /// Dropped: the kernel has no route to the destination out of the uplink.
    DropNoNextHop = 79, "drop_no_next_hop";
    /// Dropped: a fragment whose first one was not translated.
    DropFragment = 80, "drop_fragment";
    /// Dropped: the tenant's quota of connections or mappings is used up.
    DropQuota = 81, "drop_quota";
    /// Dropped: control messages of a tunnel's peer over its budget.
    DropControlRate = 82, "drop_control_rate";
    /// Dropped: the entry of the port, host or tunnel was deleted, and its place in the map reused,
    /// while the packet was processed.
    DropRecycled = 83, "drop_recycled";
    /// Dropped: the tenant's budget for slow-path packets of this kind is used up.
    DropSlowRate = 84, "drop_slow_rate";
    /// Dropped: the host did not answer when it was last asked for. It is asked for again after a
    /// second.
    DropHostAbsent = 85, "drop_host_absent";

    /// Connections opened, by rule or by mapping.
    FlowOpened = 96, "flow_opened";
    /// Connections established: both ends have sent.
    FlowEstablished = 97, "flow_established";
    /// ICMP errors translated, with the packets they quote.
    ErrorTranslated = 98, "error_translated";
    /// Fragments translated as their first fragment was.
    FragmentTranslated = 99, "fragment_translated";
    /// Full failover: router solicitations given to the slow path, which advertises.
    SlowSolicited = 100, "slow_solicited";
    /// Fragments that arrived before their first one, given to the slow path to wait for it.
    SlowFragment = 101, "slow_fragment";
    /// TCP SYNs of hosts inside whose checksum their sender left to its NIC. Nothing on the way
    /// completes it, so the receiver drops them, and the segments that follow.
    ChecksumPartial = 102, "checksum_partial";
    /// Full failover: TCP resets sent to hosts, for a port of the gateway or a lost connection.
    ResetSent = 103, "reset_sent";
    /// Full failover: fragments of echo requests to the gateway, given to the slow path, which
    /// answers.
    SlowEcho = 104, "slow_echo";
    /// Connections opened beyond their tenant's budget: while a flood lasts, newer ones of this
    /// kind replace them.
    OpeningExcess = 105, "opening_excess";
    /// UDP datagrams of hosts inside, of at most 512 bytes, whose checksum their sender left to its
    /// NIC.
    ChecksumPartialUdp = 106, "checksum_partial_udp";
    /// Mappings that are missing from the NAT log, because the log could not keep up.
    NatLogLost = 110, "nat_log_lost";
    /// SYNs, and UDP datagrams of at most 512 bytes, from the uplink to public addresses, whose
    /// checksum their sender left to its NIC. Anyone outside can send such packets.
    ChecksumPartialOutside = 111, "checksum_partial_outside";
}

impl Counter {
    /// Entries of the per-CPU array. Spare ones let a new counter keep the schema.
    pub const SLOTS: u32 = 128;

    /// Whether it counts dropped packets.
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
