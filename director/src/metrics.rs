//! Counters of the director. `docs/metrics.md` lists each; a test compares it with this file.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Labels of an answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// The operation of the API; empty if there is none.
    pub operation: String,
    /// Status of HTTP.
    pub status: u16,
}

/// All counters. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Answered requests.
    pub requests: Family<Answered, Counter>,
    /// Committed changes.
    pub commits: Counter,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
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
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn page_of_metrics_lists_each_counter_with_its_labels() {
        let metrics = Metrics::default();
        let answered = Answered {
            operation: "host.get".to_owned(),
            status: 200,
        };
        metrics.requests.get_or_create(&answered).inc();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("encoded");
        // Name and labels of each series, as a row of the page begins.
        let of_series = |line: &str| {
            let (series, _) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            let labels: Vec<_> = labels.map(|(label, _)| format!("`{label}`")).collect();
            Some(
                format!("`{name}` | counter | {}", labels.join(", "))
                    .trim_end()
                    .to_owned(),
            )
        };
        let served: BTreeSet<_> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(of_series)
            .collect();
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
