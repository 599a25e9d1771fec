//! Functions that the stages call: parsing, rewriting and rate limits. None decides the verdict on
//! a frame.

pub mod admission;
pub mod datagram;
pub mod local_delivery;
pub mod rate;
pub mod rewrite;
