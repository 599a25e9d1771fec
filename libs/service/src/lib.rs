//! What every daemon of ours is towards its operator and its machine.
//!
//! For: the control socket with its requests and refusals, a configuration file that is checked whole, what the
//! service manager is told, an error said once, what a command prints, what XDP programs need of the kernel and why it refuses them. Never: what a
//! daemon does, or what its requests mean.
//!
//! ```text
//!   operator ─▶ socket::ask ── one JSON line each way ──▶ socket::serve ─▶ the daemon's own requests
//!   file ─────▶ config::parse ─ the daemon's own check ─▶ what it is to do, or every problem
//!   daemon ───▶ Notifier ─▶ systemd
//! ```

pub mod config;
mod error_chain;
pub mod forwarding;
mod notify;
mod panic;
pub mod socket;
pub mod stdout;
pub mod xdp;

pub use error_chain::error_chain;
pub use notify::Notifier;
pub use panic::abort_on_panic;
