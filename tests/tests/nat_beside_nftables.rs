//! Beside nftables doing the same translation in the same topology: both sides see the same packets.

use std::collections::{BTreeMap, BTreeSet};

use causeway_tests::{beside::Beside, corpus};

#[test]
fn both_sides_see_the_same_packets_but_for_what_is_listed() {
    let Some(mut beside) = Beside::new() else {
        return;
    };
    let all = corpus::all();
    let only = std::env::var("CAUSEWAY_SEQUENCE").ok();
    let mut differ = BTreeMap::new();
    let mut names = BTreeSet::new();
    for sequence in &all {
        assert!(names.insert(&sequence.name[..]), "{} is there twice", sequence.name);
        if only.as_ref().is_some_and(|only| !sequence.name.contains(&only[..])) {
            continue;
        }
        if let Err(difference) = beside.run(sequence) {
            println!("{}: {}", sequence.name, difference.text());
            differ.insert(sequence.name.clone(), difference);
        }
    }
    println!("{} sequences, {} differ", all.len(), differ.len());
    let mut by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in differ.keys() {
        let (what, way) = name.split_once('/').unwrap_or((name, ""));
        by.entry(what).or_default().push(way);
    }
    for (what, ways) in by {
        println!("DIFF {what}: {ways:?}");
    }
}
