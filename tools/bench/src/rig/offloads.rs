//! Offloads of the hosts' NICs.

use super::extent::Extent;
use crate::report::figures::Role;

/// Whether super-frames cross the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// "Wire-like": TSO, GSO and GRO are off, and checksums are complete, as on a wire. The main
    /// figure.
    Off,
    /// The default of Linux: super-frames of up to 64 KB cross the veths.
    On,
}

impl Offloads {
    /// Both, the main figure first.
    pub const ALL: [Self; 2] = [Self::Off, Self::On];

    /// Whether contenders of this role are measured with these offloads: a smoke run takes the main
    /// figure of those that are not Causeway.
    pub fn includes(self, role: Role, extent: Extent) -> bool {
        self == Self::Off || role == Role::Causeway || extent == Extent::Full
    }

    /// As in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "wire-like",
            Self::On => "host offloads on",
        }
    }
}
