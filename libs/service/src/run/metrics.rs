//! Metrics that every daemon has: version, uptime, reloads.

use std::{
    fmt,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Label `version`, after `name` for a daemon that has one.
type InfoLabels = Vec<(&'static str, String)>;

/// Metrics of the process. Clones share them. The runtime counts reloads.
#[derive(Clone, Debug, Default)]
pub struct ProcessMetrics {
    reloads: Family<ResultLabel, Counter>,
    /// Seconds since 1970.
    configured: Gauge,
    info: Family<InfoLabels, Gauge>,
}

impl ProcessMetrics {
    /// Registers them below the prefix of a daemon, such as `causeway_director`.
    pub fn register(&self, registry: &mut Registry, prefix: &str) {
        let registry = registry.sub_registry_with_prefix(prefix);
        self.set_info(InfoLabels::new());
        registry.register(
            "info",
            "Always 1: version, and the name of a daemon that has one",
            self.info.clone(),
        );
        self.register_reloads(registry);
        registry.register_collector(Box::new(Uptime(Instant::now())));
    }

    /// Registers only those of reloads, for a daemon that has more to say in `info`. The registry
    /// has the prefix.
    pub fn register_reloads(&self, registry: &mut Registry) {
        for result in ["applied", "refused"] {
            drop(self.reloads.get_or_create(&ResultLabel { result }));
        }
        registry.register(
            "reloads",
            "Reloads, by `result`: `applied` or `refused`",
            self.reloads.clone(),
        );
        registry.register(
            "configured_timestamp_seconds",
            "When the configuration in force was applied, seconds since 1970",
            self.configured.clone(),
        );
    }

    /// Adds the configured name of the daemon to the version. After [`register`](Self::register).
    pub fn set_name(&self, name: &str) {
        self.set_info(vec![("name", name.to_owned())]);
    }

    fn set_info(&self, mut labels: InfoLabels) {
        labels.push(("version", env!("CARGO_PKG_VERSION").to_owned()));
        self.info.clear();
        self.info.get_or_create(&labels).set(1);
    }

    /// A configuration is in force from now on. The runtime calls it when the start is complete and
    /// after a reload, the daemon after other changes of its configuration.
    pub fn applied(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        self.configured.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub(super) fn count_reload(&self, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create(&ResultLabel { result }).inc();
        if applied {
            self.applied();
        }
    }
}

/// Seconds since the metrics were registered, which a daemon does at its start.
#[derive(Debug)]
struct Uptime(Instant);

impl Collector for Uptime {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let value = ConstGauge::new(self.0.elapsed().as_secs_f64());
        let help = "Seconds since the daemon started";
        let encoder = encoder.encode_descriptor("uptime_seconds", help, None, MetricType::Gauge)?;
        value.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn reloads_are_counted_by_result() {
        let metrics = ProcessMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry, "causeway_test");
        metrics.applied();
        metrics.count_reload(true);
        metrics.count_reload(false);
        metrics.count_reload(false);
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("encoded");
        for line in [
            "causeway_test_info{version=",
            "causeway_test_reloads_total{result=\"applied\"} 1",
            "causeway_test_reloads_total{result=\"refused\"} 2",
            "causeway_test_uptime_seconds 0.",
            "causeway_test_configured_timestamp_seconds 1",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
        metrics.set_name("gw1");
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("encoded");
        assert!(
            page.contains("causeway_test_info{name=\"gw1\",version="),
            "{page}"
        );
        assert!(!page.contains("causeway_test_info{version="), "{page}");
    }
}
