//! The common part of every daemon of Causeway, towards its operator, its service manager and its
//! kernel.
//!
//! For: the runtime with its loop, signals and watchdog; the control socket; metrics and health
//! over HTTP; log output; configuration files that are checked whole; secrets as text, and
//! permissions of files with them; revisions of desired states; addresses of DNS names and
//! connections to them; restores of the machine from a snapshot; support bundles; output of
//! commands; settings and errors of the kernel that XDP programs depend on. Never: the work of a
//! daemon, or the meaning of its requests.
//!
//! ```text
//!   systemd ◀── READY, RELOADING, WATCHDOG, STOPPING, STATUS ──┐
//!   signals ──▶ run::serve: one loop ──▶ Daemon::{step, handle, reload, stop}
//!   operator ─▶ socket::ask ─ a line of JSON each way ─▶ socket::serve ─▶ the same loop
//!   Prometheus, load balancer ─▶ http::Server: /metrics, /health
//!   kernel, clocks ─▶ restore::Restores: a machine that was restored repeats no nonce
//!   file ─────▶ config::parse ─ Checker ─▶ configuration, or every problem of the file
//! ```

pub mod cli;
pub mod config;
mod core_dumps;
pub mod desired;
pub mod dial;
mod error_chain;
pub mod forwarding;
pub mod http;
mod logging;
pub mod names;
pub mod netlink;
mod notify;
mod panic;
mod redact;
pub mod render;
pub mod replace;
pub mod restore;
pub mod run;
pub mod secret_file;
mod secret_text;
pub mod socket;
pub mod stdout;
pub mod support_bundle;
pub mod xdp;

pub use error_chain::error_chain;
pub use logging::{LogFormat, init as init_logging};
pub use notify::Notifier;
pub use panic::abort_on_panic;
pub use run::{Context, Daemon, Health, run};
pub use secret_text::SecretText;
