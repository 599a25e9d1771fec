//! Runs the fuzz targets on seeds, regressions and mutations (`fuzzing::Corpus`).

use fuzzing::Corpus;
use tunnel_fuzz_targets as fuzz;

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
fn messages_are_parsed_by_their_layout() {
    corpus("message", 100_000);
}

#[test]
fn a_key_has_one_text() {
    corpus("keys", 20_000);
}

#[test]
fn reassembly_equals_the_model() {
    corpus("segment", 20_000);
}

#[test]
fn a_session_delivers_what_was_sealed_once() {
    corpus("receiver", 300);
}

#[test]
fn handshakes_accept_nothing_forged() {
    corpus("handshake", 150);
}

#[test]
fn the_state_machine_stays_bounded() {
    corpus("control", 200);
}

#[test]
fn seed_files_equal_the_generated_seeds() {
    all().check_seeds(&fuzz::TARGETS, &fuzz::seeds::all());
}
