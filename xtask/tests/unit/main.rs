//! Tests of the repository itself: its documentation and its style.

mod docs;
mod modules;
mod program_layers;
mod repository;
mod style;
