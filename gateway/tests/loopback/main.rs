//! The gateway on loopback, without privileges, on ports that the kernel assigns.

mod circuits;
mod common;
mod daemon;
mod relay;
mod scale;
