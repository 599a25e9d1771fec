//! The fuzz targets of `tunnel/fuzz` as an ordinary test (`fuzzing::Corpus`).

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

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
fn messages_read_as_they_are_written_down() {
    corpus("message", 100_000);
}

#[test]
fn keys_have_one_text_each() {
    corpus("keys", 20_000);
}

#[test]
fn segments_rejoin_as_the_model_does() {
    corpus("segment", 20_000);
}

#[test]
fn a_session_yields_what_was_sealed_and_nothing_twice() {
    corpus("receiver", 300);
}

#[test]
fn handshakes_take_nothing_forged() {
    corpus("handshake", 150);
}

#[test]
fn the_state_machine_stays_bounded() {
    corpus("control", 200);
}

#[test]
fn seeds_are_what_is_generated() {
    all().check_seeds(&fuzz::TARGETS, &fuzz::seeds::all());
}
