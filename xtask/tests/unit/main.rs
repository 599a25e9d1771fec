//! Tests of the repository itself: its documentation and its style.

mod docs;
mod repository;
mod style;
