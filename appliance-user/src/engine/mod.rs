//! The engines: state machines of the appliance that touch no socket, no clock and no map.
//!
//! For: resolving hosts, announcing addresses, advertising routers, and holding the packets that
//! XDP cannot finish. Never: input, output or a clock of their own. Events and the current time go
//! in, frames and actions come out; `daemon` does the input and output.
//!
//! ```text
//!   NEIGHBOUR_EVENTS ─▶ neighbour ────────┐ resolved, failed
//!   SLOW_PACKETS ──┬──▶ slow_path ◀───────┘        ┌─▶ packet sockets
//!                  ├──▶ fragment_buffer ─▶ programs │
//!                  └──▶ gateway_echo ──────────────┤
//!   switch-over ──────▶ announce ──────────────────┤
//!   NEIGHBOUR_EVENTS ─▶ conflict ──────────────────┤
//!   full failover ────▶ router_advert ─────────────┤
//!   mode full, rule add ▶ takeover ────────────────┤
//!   groups to answer in ▶ group_reports ───────────┘
//! ```
//!
//! Every engine has the same three parts:
//!
//! - methods for events, each of which takes `now`;
//! - `poll(now)`, which is called after every event and at every deadline until it returns nothing;
//! - `next_deadline()`, when `poll` has something to do although no event comes.

pub mod announce;
pub mod conflict;
pub mod fragment_buffer;
pub mod gateway_echo;
pub mod group_reports;
pub mod neighbour;
mod pacing;
pub mod router_advert;
pub mod slow_path;
pub mod takeover;
