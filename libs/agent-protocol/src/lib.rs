//! Messages between the director and its agents in appliances and gateways: gRPC over HTTP/2.
//!
//! For: both ends, which share `proto/agent.proto`. Never: what a message causes.

#[expect(clippy::allow_attributes, reason = "generated code")]
mod generated {
    tonic::include_proto!("causeway.agent.v1");
}

pub use generated::*;

/// Longest message of an agent, bytes.
pub const MAX_FROM_AGENT: usize = 64 << 10;
/// Most reasons of a report.
pub const MAX_REASONS: usize = 16;
/// Longest reason of a report, bytes.
pub const MAX_REASON_LEN: usize = 256;
