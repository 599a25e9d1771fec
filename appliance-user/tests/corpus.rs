//! The fuzz targets of `appliance-user/fuzz-targets` as an ordinary test (`fuzzing::Corpus`).

use appliance_fuzz_targets as fuzz;
use fuzzing::Corpus;

fn all() -> Corpus {
    Corpus {
        folder: concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz").into(),
        findings: env!("CARGO_TARGET_TMPDIR").into(),
    }
}

fn corpus(name: &str, runs: u64) {
    let target = fuzz::TARGETS.iter().find(|target| target.name == name);
    all().replay(*target.expect("a target of that name"), runs);
}

#[test]
fn updates_of_the_objects_do_as_json_in_maps() {
    corpus("objects", 1_000);
}

#[test]
fn a_stored_state_is_read_as_it_was_written() {
    corpus("state", 2_000);
}

#[test]
fn seeds_equal_the_generated_ones() {
    all().check_seeds(&fuzz::TARGETS, &fuzz::seeds::all());
}
