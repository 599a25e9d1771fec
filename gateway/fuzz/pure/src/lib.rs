//! `gateway::hello` and `gateway::circuit::{rate, table}`, from their own files and under their own names.

#[path = "../../../src/hello.rs"]
pub mod hello;

/// As in the gateway, without what has sockets.
#[path = "../../../src/circuit"]
pub mod circuit {
    pub mod rate;
    pub mod table;
}
