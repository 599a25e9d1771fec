//! Offloads of the hosts' NICs.

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

    /// As in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "wire-like",
            Self::On => "host offloads on",
        }
    }
}
