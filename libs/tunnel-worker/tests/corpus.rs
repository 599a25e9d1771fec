//! The fuzz targets of `libs/tunnel-worker/fuzz-targets` as an ordinary test (`fuzzing::Corpus`).

use fuzzing::Corpus;
use tunnel_worker_fuzz_targets as fuzz;

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
