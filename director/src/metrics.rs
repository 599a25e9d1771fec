//! Counters of the director.

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
