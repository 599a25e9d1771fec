//! The benchmark `encrypted` still works: see `lab/benchmarks.rs`. Its busy workers need the CPUs.

use crate::benchmarks::smoke;

#[test]
fn encrypted() {
    smoke("causeway-bench", &["encrypted"]);
}
