//! The gateway on loopback: no privilege, no port of its own.

mod circuits;
mod common;
mod daemon;
mod relay;
