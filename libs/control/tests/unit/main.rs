//! The rules of the control plane, by example and by a reference model.

mod addresses;
mod claims;
mod model;
mod operations;
mod refusals;
mod state;
mod store;
mod subscriptions;
