//! Metrics of the director. `docs/metrics.md` lists each; a test compares it with this file.

use std::{fmt, time::Duration};

use control::Revision;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::sync::watch::Receiver;

use crate::machines::Presence;

/// Labels of an answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// The operation of the API; empty if there is none.
    pub operation: String,
    /// Status of HTTP.
    pub status: u16,
}

/// Labels of an agent's call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AgentResult {
    /// `enrol`, `renew` or `connect`.
    pub call: &'static str,
    /// `ok`, `refused` or `unavailable`.
    pub result: &'static str,
}

/// All metrics of the director's own. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Answered requests.
    pub requests: Family<Answered, Counter>,
    /// Committed changes.
    pub commits: Counter,
    /// Seconds from the head of a request to the head of its answer.
    request_seconds: Histogram,
    /// Answered calls of agents.
    pub agent_calls: Family<AgentResult, Counter>,
    agents: Presence,
}

impl Metrics {
    /// Metrics, all zero, with the number of these agents.
    pub fn new(agents: Presence) -> Self {
        Self {
            agent_calls: Family::default(),
            agents,
            requests: Family::default(),
            commits: Counter::default(),
            // 1 ms to 16 s: a commit waits for the disk.
            request_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
        }
    }

    /// An answered request took this time.
    pub fn observe(&self, time: Duration) {
        self.request_seconds.observe(time.as_secs_f64());
    }

    /// Registers the metrics, and the revision of the store.
    pub fn register(&self, registry: &mut Registry, revision: Receiver<Revision>) {
        registry.register(
            "causeway_director_request_seconds",
            "Time from a request of the API to its answer",
            self.request_seconds.clone(),
        );
        registry.register_collector(Box::new(StoreRevision(revision)));
        registry.register(
            "causeway_director_requests",
            "Answered requests of the API",
            self.requests.clone(),
        );
        registry.register(
            "causeway_director_commits",
            "Committed changes",
            self.commits.clone(),
        );
        registry.register(
            "causeway_director_agent_calls",
            "Answered calls of agents",
            self.agent_calls.clone(),
        );
        registry.register_collector(Box::new(ConnectedAgents(self.agents.clone())));
    }
}

/// The number of connected agents.
#[derive(Debug)]
struct ConnectedAgents(Presence);

impl Collector for ConnectedAgents {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let count = u64::try_from(self.0.count()).unwrap_or(u64::MAX);
        let name = "causeway_director_agents_connected";
        let encoder =
            encoder.encode_descriptor(name, "Connected agents", None, MetricType::Gauge)?;
        ConstGauge::new(count).encode(encoder)
    }
}

/// The revision of the last commit.
#[derive(Debug)]
struct StoreRevision(Receiver<Revision>);

impl Collector for StoreRevision {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let revision: Revision = *self.0.borrow();
        let name = "causeway_director_store_revision";
        let help = "Revision of the last commit";
        let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(revision).encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn page_of_metrics_lists_each_metric_with_type_and_labels() {
        let metrics = Metrics::new(Presence::default());
        let call = AgentResult {
            call: "enrol",
            result: "ok",
        };
        metrics.agent_calls.get_or_create(&call).inc();
        let answered = Answered {
            operation: "host.get".to_owned(),
            status: 200,
        };
        metrics.requests.get_or_create(&answered).inc();
        metrics.observe(Duration::from_millis(2));
        let mut registry = Registry::default();
        let (_sender, revision) = tokio::sync::watch::channel(7);
        metrics.register(&mut registry, revision);
        service::run::ProcessMetrics::default().register(&mut registry, "causeway_director");
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("encoded");
        assert!(
            page.contains("causeway_director_store_revision 7"),
            "{page}"
        );
        // Name, type and labels of each series, as a row of the page begins.
        let types: BTreeMap<_, _> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .collect();
        let of_series = |line: &str| {
            let (series, _) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family = |ending| types.get_key_value(name.strip_suffix(ending)?);
            let (name, kind) = match family("_total") {
                Some((_, kind)) => (name, *kind),
                None => {
                    let (family, kind) = ["_sum", "_count", "_bucket", ""]
                        .into_iter()
                        .find_map(family)?;
                    (*family, *kind)
                }
            };
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            let labels = labels.filter(|(label, _)| *label != "le");
            let labels: Vec<_> = labels.map(|(label, _)| format!("`{label}`")).collect();
            let row = format!("`{name}` | {kind} | {}", labels.join(", "));
            Some(row.trim_end().to_owned())
        };
        let served: BTreeSet<_> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(of_series)
            .collect();
        assert!(served.len() > 6, "{served:?}");
        let of_row = |row: &str| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            Some(cells.get(1..4)?.join(" | ").trim_end().to_owned())
        };
        let documented: BTreeSet<_> = include_str!("../../docs/metrics.md")
            .lines()
            .filter(|line| line.starts_with("| `causeway_director_"))
            .filter_map(of_row)
            .collect();
        assert_eq!(documented, served);
    }
}
