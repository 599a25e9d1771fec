//! Why a rule is refused, for any tenant.

use std::net::IpAddr;

use super::{DESCRIPTION, NAME};
use crate::{IpPrefix, PortRange};

/// A rule is invalid. Each message names the rule and the field, and says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The name is empty, too long, or has other characters.
    #[error(
        "rule {name:?}: name: write 1 to {NAME} characters of a to z, 0 to 9, '.', '_' and '-'"
    )]
    Name { name: String },
    /// The public port is the management port.
    #[error(
        "rule {name:?}: public_port: 22 is refused: it is reserved for managing the appliance; use \
         another public port, such as 2222, with internal_port = 22 to reach port 22 of the machine"
    )]
    Management { name: String },
    /// The range of public ports contains the management port.
    #[error(
        "rule {name:?}: public_port: {range} contains port 22, which is reserved for managing the \
         appliance: write {rest} instead"
    )]
    ManagementInside {
        name: String,
        range: PortRange,
        /// The range without the management port.
        rest: String,
    },
    /// The internal ports would go beyond 65535.
    #[error(
        "rule {name:?}: internal_port: the {count} ports of public_port would end at {last}, above \
         65535: write {} or lower instead of {internal}",
        65_536 - count
    )]
    InternalPorts {
        name: String,
        /// First internal port.
        internal: u16,
        /// Number of ports.
        count: u32,
        /// Last internal port.
        last: u32,
    },
    /// The internal port is zero.
    #[error(
        "rule {name:?}: internal_port: 0 is not a port: write 1 to 65535, or omit it to use the \
         public port"
    )]
    InternalZero { name: String },
    /// There must be either ports or 1:1.
    #[error(
        "rule {name:?}: write public_port (and internal_port, protocol), or one_to_one = true for \
         the whole address{hint}"
    )]
    Target {
        name: String,
        /// More about it; may be empty.
        hint: &'static str,
    },
    /// Translation does not change the address family.
    #[error(
        "rule {name:?}: public_ip {public} and internal_ip {internal} are of different address \
         families: write two IPv4 or two IPv6 addresses"
    )]
    Families {
        name: String,
        /// The public address.
        public: IpAddr,
        /// The machine's address.
        internal: IpAddr,
    },
    /// No host can have the address.
    #[error(
        "rule {name:?}: {field}: {address} is not a host address: write a unicast address that is \
         neither loopback nor link-local"
    )]
    NoHost {
        name: String,
        field: &'static str,
        address: IpAddr,
    },
    /// A source is of the other address family.
    #[error(
        "rule {name:?}: allow: {net} and public_ip {public} are of different address families: \
         list sources of the public address's family"
    )]
    AllowFamily {
        name: String,
        /// The source.
        net: IpPrefix,
        /// The public address.
        public: IpAddr,
    },
    /// The description is too long, or has control characters.
    #[error("rule {name:?}: description: write at most {DESCRIPTION} characters, on one line")]
    Description { name: String },
    /// The text is not a rule.
    #[error(
        "{line:?} is not a rule: write PUBLIC:PORT/PROTOCOL -> INTERNAL[:PORT], such as \
         203.0.113.20:443/tcp -> 10.1.0.10:8443 ([2001:db8::1]:443/tcp for IPv6), or PUBLIC -> \
         INTERNAL for 1:1"
    )]
    Line {
        /// The text.
        line: String,
    },
}
