//! Programs by name, and the actions that they return.

/// Largest packet a program without fragments can be given: a page less the headroom for XDP and the
/// tail the kernel keeps for its own structure (net/bpf/test_run.c, Linux 6.18).
pub const MAX_PACKET: usize = 3520;

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A tenant-only port.
    Access,
    /// The tunnels' port.
    Uplink,
    /// One interface that is both.
    Combined,
    /// Where the others go on with a tenant in full failover.
    Full,
    /// Where that goes on with what leaves the tenant's networks.
    NatOut,
    /// Where [`Program::Uplink`] goes on with what is to a public address.
    NatIn,
}

impl Program {
    /// Those that are attached to interfaces.
    pub const ALL: [Self; 3] = [Self::Access, Self::Uplink, Self::Combined];
    /// And those that they go on in.
    pub const EVERY: [Self; 6] = [
        Self::Access,
        Self::Uplink,
        Self::Combined,
        Self::Full,
        Self::NatOut,
        Self::NatIn,
    ];

    /// As the object names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Uplink => "uplink",
            Self::Combined => "combined",
            Self::Full => "full",
            Self::NatOut => "nat_out",
            Self::NatIn => "nat_in",
        }
    }
}

/// What a program said to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The program failed.
    Aborted,
    /// Gone.
    Drop,
    /// To the kernel's stack.
    Pass,
    /// Back out of the interface.
    Tx,
    /// Out of another interface.
    Redirect,
    /// No XDP action.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(value: u32) -> Self {
        match value {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

impl Action {
    /// Whether the packet leaves the appliance.
    #[must_use]
    pub const fn sends(self) -> bool {
        matches!(self, Self::Tx | Self::Redirect)
    }
}
