//! The fuzz targets of `libs/tunnel-worker/fuzz` as an ordinary test (`fuzzing::Corpus`).

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use fuzzing::Corpus;

fn all() -> Corpus {
    Corpus {
        folder: concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz").into(),
        findings: env!("CARGO_TARGET_TMPDIR").into(),
    }
}

#[test]
fn the_pipeline_keeps_its_rules() {
    all().replay(fuzz::TARGET, 60);
}
