//! The gateway on loopback, without privileges, on ports that the kernel assigns.

mod circuits;
mod common;
mod daemon;
mod desired;
mod process;
mod relay;
mod scale;
