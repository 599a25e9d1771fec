//! The fuzz targets of `gateway/fuzz-targets` as an ordinary test (`fuzzing::Corpus`).

use fuzzing::Corpus;
use gateway_fuzz_targets as fuzz;

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
fn hellos_read_the_same_in_any_pieces() {
    corpus("hello", 2_000);
}

#[test]
fn streams_give_the_same_frames_in_any_pieces() {
    corpus("stream", 1_000);
}

#[test]
fn proxy_headers_read_as_a_simple_parser_reads_them() {
    corpus("proxy", 2_000);
}

#[test]
fn circuits_forward_only_their_datagrams_and_answer_no_attacker() {
    corpus("circuit", 1_000);
}

#[test]
fn only_valid_new_binds_move_an_end() {
    corpus("bind", 1_000);
}

#[test]
fn updates_of_the_desired_state_do_as_objects_in_maps() {
    corpus("updates", 2_000);
}

#[test]
fn a_stored_state_is_read_whole_or_to_its_last_good_line() {
    corpus("stored", 2_000);
}

#[test]
fn addresses_of_services_and_stored_names_read_as_simple_parsers_read_them() {
    corpus("names", 4_000);
}

#[test]
fn seeds_equal_the_generated_ones() {
    all().check_seeds(&fuzz::TARGETS, &fuzz::seeds::all());
}
