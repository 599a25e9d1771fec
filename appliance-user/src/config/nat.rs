//! Address translation of full failover.

use std::path::PathBuf;

use appliance_common::{
    limits::{DEFAULT_CONNECTIONS, DEFAULT_MAPPINGS},
    nat::{TenantQuota, Timeouts},
};
use failover::PortRange;

use super::{Config, Role};

/// The file in which the kernel says which ports it uses itself.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Address translation of full failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Connections that the table has room for.
    pub connections: u32,
    /// Mappings that the table has room for.
    pub mappings: u32,
    /// How long connections may be silent.
    pub timeouts: Timeouts,
    /// Ports for translation on the uplink's own address.
    pub own_ports: PortRange,
    /// Whether public addresses of rules answer pings.
    pub answer_ping: bool,
    /// Where mappings are logged, if they are.
    pub log: Option<LogTarget>,
}

/// Where mappings are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The daemon's own log.
    Daemon,
    /// Lines of JSON, appended.
    File(PathBuf),
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            connections: DEFAULT_CONNECTIONS,
            mappings: DEFAULT_MAPPINGS,
            timeouts: Timeouts::default(),
            own_ports: PortRange::new(10_000, 32_767).unwrap_or(PortRange::ALL),
            answer_ping: false,
            log: None,
        }
    }
}

/// Ports that the kernel also uses itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nat.own_ports: {own} overlaps the kernel's own ports {local} ({LOCAL_PORTS}) in {both}: \
     write another range, or set the kernel's with `sysctl -w net.ipv4.ip_local_port_range`"
)]
pub struct PortsInUse {
    own: PortRange,
    local: PortRange,
    both: PortRange,
}

impl Nat {
    /// Checks that the kernel uses none of our ports; `local` is the text of `ip_local_port_range`.
    ///
    /// # Errors
    /// [`PortsInUse`]. A range that cannot be read is taken as empty.
    pub fn check_ports(&self, local: &str) -> Result<(), PortsInUse> {
        let mut numbers = local.split_ascii_whitespace().map(str::parse::<u16>);
        let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else {
            return Ok(());
        };
        let Some(local) = PortRange::new(first, last) else {
            return Ok(());
        };
        match self.own_ports.intersection(local) {
            Some(both) => Err(PortsInUse {
                own: self.own_ports,
                local,
                both,
            }),
            None => Ok(()),
        }
    }
}

/// Room of tables that nothing is written to: the least that the configuration admits.
const UNUSED: TenantQuota = TenantQuota {
    connections: 1024,
    mappings: 1024,
};

impl Config {
    /// Room of the NAT tables. An appliance on the tenant's side never translates.
    #[must_use]
    pub const fn nat_room(&self) -> TenantQuota {
        match self.role {
            Role::Provider => TenantQuota {
                connections: self.nat.connections,
                mappings: self.nat.mappings,
            },
            Role::Tenant => UNUSED,
        }
    }

    /// Checks that the kernel does not use the ports for translation on the uplink's own address,
    /// where full failover is possible.
    ///
    /// # Errors
    /// [`PortsInUse`].
    pub fn check_ports(&self) -> Result<(), PortsInUse> {
        let dedicated = |v4: bool| {
            let mut tenants = self.tenants.iter();
            tenants.all(|t| t.nat.iter().any(|a| a.is_ipv4() == v4))
        };
        if self.role != Role::Provider || (dedicated(true) && dedicated(false)) {
            return Ok(());
        }
        let local = std::fs::read_to_string(LOCAL_PORTS).unwrap_or_default();
        self.nat.check_ports(&local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_kernel_are_refused() {
        let nat = Nat::default();
        assert_eq!(nat.check_ports("32768\t60999\n"), Ok(()));
        assert_eq!(nat.check_ports("what?"), Ok(()));
        let error = nat
            .check_ports("32000\t60999\n")
            .expect_err("they overlap")
            .to_string();
        assert!(error.contains("10000-32767"), "{error}");
        assert!(error.contains("in 32000-32767"), "{error}");
    }
}
