//! Programs by name, and the actions that they return.

/// Largest packet a program without fragments can be given: a page less the headroom for XDP and
/// the tail the kernel keeps for its own structure (net/bpf/test_run.c, Linux 6.18).
pub const MAX_PACKET: usize = 3520;

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// For a tenant-only port.
    Access,
    /// For the tunnels' port.
    Uplink,
    /// For one interface that is both.
    Combined,
    /// The others jump here for a tenant in full failover.
    Full,
    /// [`Program::Full`] jumps here with packets that leave the tenant's networks.
    NatOut,
    /// [`Program::Uplink`] jumps here with packets to a public address.
    NatIn,
}

impl Program {
    /// The programs that are attached to interfaces.
    pub const ALL: [Self; 3] = [Self::Access, Self::Uplink, Self::Combined];
    /// All programs, those included that the others jump to.
    pub const EVERY: [Self; 6] = [
        Self::Access,
        Self::Uplink,
        Self::Combined,
        Self::Full,
        Self::NatOut,
        Self::NatIn,
    ];

    /// Its name in the object.
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

/// The action that a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// XDP_ABORTED: the program failed.
    Aborted,
    /// XDP_DROP.
    Drop,
    /// XDP_PASS: to the kernel's stack.
    Pass,
    /// XDP_TX: back out of the interface.
    Tx,
    /// XDP_REDIRECT: out of another interface, or to a socket.
    Redirect,
    /// Not an XDP action.
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
