//! Counters of the engines, for status and metrics.

use super::Engines;

impl Engines {
    /// Counters of the engines, by stable name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let n = self.neighbours.counters();
        let c = self.conflicts.counters();
        [
            ("neighbour_probes_sent", n.probes_sent),
            ("neighbour_without_sender", n.without_sender),
            ("neighbour_failed", n.failed),
            ("neighbour_mac_changed", n.mac_changed),
            ("neighbour_conflicts", n.conflicts),
            ("neighbour_flaps_damped", n.flaps_damped),
            ("neighbour_not_overridden", n.not_overridden),
            ("address_conflicts", c.conflicts),
            ("address_claims_seen", c.claims),
            ("address_defences_sent", c.defences),
            ("address_conflicts_refused_full", c.refused_full),
            ("address_conflicts_unreported", c.unreported),
            ("neighbour_evicted", n.evicted),
            ("neighbour_refused_full", n.refused_full),
            ("neighbour_throttled", n.throttled),
            ("neighbour_ignored_invalid", n.ignored_invalid),
            ("neighbour_ignored_own", n.ignored_own),
            ("neighbour_ignored_port", n.ignored_port),
        ]
        .into_iter()
        .chain(self.slow_path.counters())
        .chain([
            ("fragments_buffered", self.fragments.buffered),
            ("fragments_released", self.fragments.released),
            ("fragments_dropped", self.fragments.dropped),
            ("gateway_echo_answered", self.gateway_echo.answered),
            ("gateway_echo_dropped", self.gateway_echo.dropped),
        ])
        .collect()
    }
}
