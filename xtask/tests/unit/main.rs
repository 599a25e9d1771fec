//! Tests of the repository itself: its documentation and its style.

mod dependencies;
mod docs;
mod modules;
mod program_layers;
mod style;
