//! Tests of the repository itself: its documentation and its style.

mod circles;
mod dependencies;
mod docs;
mod imports;
mod modules;
mod program_layers;
mod style;
