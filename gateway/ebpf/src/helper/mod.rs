//! What stages are made of: parsing, rewriting and rate limits. None decides what becomes of a
//! frame.

pub mod admission;
pub mod datagram;
pub mod rate;
pub mod rewrite;
