//! Budgets of tenants and networks: effects of packets that have a bounded rate.

/// Reports of hosts with an address of the appliance, for each network and for the uplink: tokens
/// for each second, and at once. A part of the tenant's [`Budget::Claims`], so that a machine that
/// claims many addresses does not hide a conflict on another network of its tenant.
pub const CLAIMS_PER_NETWORK: (u64, u64) = (25, 16);

/// Effects of packets that are bounded for each tenant, on all CPUs together. Each tenant has a
/// bucket for each in `BUDGETS`, so that a flood of one kind takes nothing from other kinds or
/// tenants.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// ICMP errors other than path MTU errors.
    IcmpError = 0,
    /// Packets to be split by the daemon.
    Split = 1,
    /// Packets that wait in the daemon until their host is resolved.
    Unresolved = 2,
    /// Translated packets that the kernel sends, because it has to resolve their next hop.
    UplinkUnresolved = 3,
    /// Router solicitations, which the daemon answers.
    RouterSolicitation = 4,
    /// Fragments that wait in the daemon for the first one of their datagram.
    Fragment = 5,
    /// Fragments of echo requests to a gateway, which the daemon answers.
    GatewayEcho = 6,
    /// TCP resets to hosts inside.
    Reply = 7,
    /// Reports of hosts to the daemon.
    Neighbours = 8,
    /// Reports of hosts with an address of the appliance.
    Claims = 9,
    /// Echo replies from public addresses: strangers take nothing from the hosts inside.
    OutsideReply = 10,
    /// ICMP errors about packets from outside.
    OutsideError = 11,
    /// Connections that hosts inside open, and that the other end has not agreed to yet: those
    /// within the budget are kept apart from those beyond it.
    Opening = 12,
    /// The same for connections from outside.
    OutsideOpening = 13,
}

impl Budget {
    /// Buckets of one owner: a power of two, so that an index is a shift.
    pub const SLOTS: u32 = 16;
    /// All budgets.
    pub const ALL: [Self; 14] = [
        Self::IcmpError,
        Self::Split,
        Self::Unresolved,
        Self::UplinkUnresolved,
        Self::RouterSolicitation,
        Self::Fragment,
        Self::GatewayEcho,
        Self::Reply,
        Self::Neighbours,
        Self::Claims,
        Self::OutsideReply,
        Self::OutsideError,
        Self::Opening,
        Self::OutsideOpening,
    ];

    /// Its index in `BUDGETS` for an owner: a tenant's slot plus one, or zero for packets of no
    /// single tenant.
    #[inline(always)]
    #[must_use]
    pub const fn index(self, owner: u32) -> u32 {
        owner.wrapping_mul(Self::SLOTS) | self as u32
    }

    /// Tokens for each second, and at once. The bursts of the slow path, of one tenant together,
    /// are less than three quarters of its ring; those of reports less than a fifth of theirs.
    #[inline(always)]
    #[must_use]
    pub const fn rate(self) -> (u64, u64) {
        match self {
            Self::IcmpError => (1000, 50),
            Self::Split => (10_000, 256),
            Self::Unresolved => (2000, 256),
            Self::UplinkUnresolved => (1000, 64),
            Self::RouterSolicitation => (50, 16),
            Self::Fragment => (2000, 128),
            Self::GatewayEcho => (1000, 128),
            Self::Reply | Self::OutsideReply => (1000, 100),
            Self::Neighbours => (2000, 512),
            Self::Claims => (250, 128),
            Self::OutsideError => (1000, 50),
            Self::Opening | Self::OutsideOpening => (2048, 2048),
        }
    }
}
