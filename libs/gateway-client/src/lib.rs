//! What a tenant's end and a gateway agree on, and the end's part of it.
//!
//! For: appliances and redirectors that reach each other through gateways, and the gateway itself.
//! Pure: no socket, no clock, no randomness of its own. Never: what is inside a circuit.
//!
//! ```text
//!   gateways, pools ─▶ pool: which one, and when another
//!                        ▲ │
//!                        │ ▼
//!                      reach: bound at them, and by which one datagrams go now
//!                        │ ▲
//!                        ▼ │
//!                       end: bind ─▶ wire ─▶ gateway ─▶ wire ─▶ bound, or "move"
//!
//!   stream: the same datagrams in a TLS connection, where UDP does not pass; pulse: whether its other end is there
//! ```

pub mod end;
pub mod pool;
pub mod pulse;
pub mod reach;
pub mod stream;
pub mod wire;
