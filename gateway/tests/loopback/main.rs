//! The gateway on loopback: no privilege, no port of its own.

mod common;
mod daemon;
mod relay;
