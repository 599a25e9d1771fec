//! `gateway::hello` and `gateway::circuit::{rate, table}`, from their own files and under their own names.

#[path = "../../../src/hello/mod.rs"]
pub mod hello;

/// As in the gateway, without what has sockets or an XDP program.
#[path = "../../../src/circuit"]
pub mod circuit {
    /// In the place of the gateway's: no program draws from any bucket.
    #[path = "../../fuzz/pure/src/fast.rs"]
    mod fast;
    #[expect(dead_code, reason = "what makes a bucket that is shared")]
    pub mod rate;
    pub mod table;
}
