//! Tests of the repository itself: its documentation and its style.

mod docs;
mod modules;
mod repository;
mod style;
