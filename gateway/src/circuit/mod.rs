//! UDP circuits.
pub mod wire;
