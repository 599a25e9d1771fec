//! The programs compared with nftables doing the same translation in the same topology: both sides
//! see the same packets, except for the sequences listed here, and every listed sequence does
//! differ.
//!
//! `src/nftables/` has the comparison (`compare.rs`), the sequences (`sequences/`), the router and
//! its rules (`router.rs`). `CAUSEWAY_SEQUENCE` runs those whose name contains it and shows every
//! difference. With `CAUSEWAY_LONG=1` all run, else one in ten and all listed ones.

use std::collections::{BTreeMap, BTreeSet};

use causeway_tests::{
    nftables::{
        Comparison, Wait,
        sequences::{self, Transport},
    },
    series,
};

/// The paths on which a listed sequence differs.
#[derive(Clone, Copy)]
enum Paths {
    All,
    V4,
    Hairpin,
    These(&'static [&'static str]),
}
use Paths::{All, Hairpin, These, V4};

/// Sequences whose output differs for a reason.
struct Listed {
    category: &'static str,
    reason: &'static str,
    /// The part of a name before the `/`; `{}` is replaced by tcp, udp and icmp.
    sequences: &'static [(&'static str, Paths)],
}

/// Paths of a machine with a 1:1 rule.
const OWN: &[&str] = &["own-out4", "own-in4", "own-out6", "own-in6"];

const LISTED: &[Listed] = &[
    Listed {
        category: "fragment before its first",
        reason: "dropped: the programs keep no packets. RFC 4787 REQ-14 requires translation: to \
            be done in user space",
        sequences: &[("{} fragments backwards", All)],
    },
    Listed {
        category: "first fragment alone",
        reason: "translated as it comes; the kernel waits for the rest first. A receiver has no \
                 datagram of either (RFC 791 section 3.2)",
        sequences: &[("{} first fragment alone", All)],
    },
    Listed {
        category: "too long, and may be split",
        reason: "handed to user space, which splits it (RFC 4787 REQ-13a)",
        sequences: &[
            (
                "udp too long for the path out, to be split",
                These(&["out4", "own-out4"]),
            ),
            (
                "icmp too long for the path out, to be split",
                These(&["out4", "own-out4"]),
            ),
        ],
    },
    Listed {
        category: "one port for two endpoints",
        reason: "nftables gives two endpoints one port while they speak to different far ends, \
                 which RFC 4787 REQ-1 and REQ-3, RFC 5382 REQ-1 and REQ-7 forbid",
        sequences: &[
            (
                "udp two hosts use one port for two far ends",
                These(&["4", "6"]),
            ),
            (
                "tcp two hosts use one port for two far ends",
                These(&["4", "6"]),
            ),
        ],
    },
    Listed {
        category: "hairpin to a mapping",
        reason: "RFC 4787 REQ-9 and RFC 5382 REQ-8 require it; nftables has no such thing",
        sequences: &[("udp between two by their external ends", These(&["4", "6"]))],
    },
    Listed {
        category: "rule against an unanswered connection",
        reason: "a machine spoke first, as another end than its rule's, and who comes by the rule \
                 takes the place over. nftables changes the port that the machine sees; the \
                 client's own is right (RFC 4787 section 4)",
        sequences: &[("udp silent for too long", These(&["in4", "in6"]))],
    },
    Listed {
        category: "window of TCP",
        reason: "not followed: only the receiver can judge whether a segment is in the window (RFC \
                 9293 section 3.10.7); RFC 5382 REQ-2 requires all valid sequences to pass, and \
                 more may. A reset does not end a connection that continues (RFC 7857 section 2.2)",
        sequences: &[
            ("tcp acknowledges data that was not sent", All),
            ("tcp data outside of the window", All),
            ("tcp reset outside of the window", All),
            ("tcp data before the answer", All),
            ("tcp no flag within a connection", All),
            ("tcp syn and fin within a connection", All),
        ],
    },
    Listed {
        category: "wrong checksum",
        reason: "checksums of TCP, UDP and ICMP are brought up to date, not checked (RFC 3022 \
                 section 4.2): a wrong one stays wrong, and the receiver drops it. RFC 5508 REQ-3 \
                 would rather have errors checked (SHOULD)",
        sequences: &[
            ("tcp with a wrong checksum", All),
            ("udp with a wrong checksum", All),
            (
                "an error with a wrong checksum about {} answers by a router",
                All,
            ),
            (
                "an error with a wrong checksum about {} answers by their receiver",
                All,
            ),
            (
                "an error with a wrong checksum about {} questions by a router",
                All,
            ),
            (
                "an error with a wrong checksum about {} questions by their receiver",
                All,
            ),
        ],
    },
    Listed {
        category: "source quench",
        reason: "dropped: it is no longer in use, and a path to slow others down (RFC 6633 section \
            5)",
        sequences: &[
            ("source quench about {} answers by a router", V4),
            ("source quench about {} answers by their receiver", V4),
            ("source quench about {} questions by a router", V4),
            ("source quench about {} questions by their receiver", V4),
        ],
    },
    Listed {
        category: "old queries",
        reason: "dropped: information and address mask requests are deprecated (RFC 6918), node \
                 information is an experiment (RFC 4620)",
        sequences: &[
            ("icmp information request", V4),
            ("icmp address mask request", V4),
            ("icmp node information", These(&["out6", "hairpin-own6"])),
        ],
    },
    Listed {
        category: "other protocols",
        reason: "dropped: without ports one endpoint in all could have them, and answers could not \
                 be distinguished (RFC 3022 section 2.2 speaks of TCP, UDP and ICMP only)",
        sequences: &[
            ("esp", These(&["out4", "out6"])),
            ("gre", These(&["out4", "out6"])),
        ],
    },
    Listed {
        category: "other protocols of a 1:1 rule",
        reason: "translated in both directions (RFC 5508 REQ-11 permits it), as the rule maps the \
                 whole address; the router's \
                 rules admit TCP, UDP and ICMP, and its conntrack no unknown ICMP messages and no \
                 SCTP without INIT",
        sequences: &[
            ("esp", These(&["own-in4", "own-in6"])),
            ("gre", These(&["own-in4", "own-in6"])),
            ("sctp", These(OWN)),
            ("icmp of an unknown type", These(OWN)),
        ],
    },
    Listed {
        category: "short timers",
        reason: "UDP to port 53 is forgotten after 30 s (RFC 4787 REQ-5a); the router keeps it for \
                 as long as other UDP",
        sequences: &[
            ("udp silent for less", These(&["out4", "out6"])),
            ("udp kept by the requester", These(&["out4", "out6"])),
        ],
    },
    Listed {
        category: "source of time exceeded",
        reason: "from the gateway's address (RFC 1812 section 4.3.2.4); nftables translates its \
                 own error as if the machine had sent it",
        sequences: &[
            ("{} without hops left", Hairpin),
            ("udp answered without hops left", Hairpin),
            ("icmp answered without hops left", Hairpin),
        ],
    },
    Listed {
        category: "record route",
        reason: "passed on as it is: our address is not put in (RFC 7126 section 4.5)",
        sequences: &[("{} with IP option record route", V4)],
    },
];

/// The names of the listed sequences, with their category.
fn listed() -> BTreeMap<String, &'static str> {
    let mut out = BTreeMap::new();
    let carriers = [
        ("tcp", Transport::Tcp),
        ("udp", Transport::Udp),
        ("icmp", Transport::Icmp),
    ];
    for entry in LISTED {
        assert!(entry.reason.contains("RFC"), "{}", entry.category);
        for (what, paths) in entry.sequences {
            if let (false, These(these)) = (what.contains("{}"), paths) {
                for path in *these {
                    let old = out.insert(format!("{what}/{path}"), entry.category);
                    assert!(old.is_none(), "{what}/{path} is listed twice");
                }
                continue;
            }
            for (name, carrier) in carriers {
                // By its name it is of one carrier, or of each.
                if !what.contains("{}") && !what.split(' ').any(|word| word == name) {
                    continue;
                }
                let what = what.replace("{}", name);
                for path in sequences::paths(carrier).into_iter().map(|path| path.name) {
                    let is_one = match paths {
                        All => true,
                        V4 => path.ends_with('4'),
                        Hairpin => path.starts_with("hairpin"),
                        These(these) => these.contains(&&path[..]),
                    };
                    if !is_one {
                        continue;
                    }
                    let name = format!("{what}/{path}");
                    let old = out.insert(name.clone(), entry.category);
                    assert!(old.is_none(), "{name} is listed twice");
                }
            }
        }
    }
    out
}

/// The bounded series runs every sequence that is listed, and one in so many of the others.
const STRIDE: usize = 10;

#[test]
fn programs_and_nftables_agree_except_for_the_list() {
    let Some(mut beside) = Comparison::new() else {
        return;
    };
    let all = sequences::all();
    let mut listed = listed();
    let only = std::env::var("CAUSEWAY_SEQUENCE").ok();
    let (mut names, mut unlisted) = (BTreeSet::new(), Vec::new());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut equal = 0;
    let mut ran = 0;
    for (number, sequence) in all.iter().enumerate() {
        let name = &sequence.name[..];
        assert!(names.insert(name), "{name} is there twice");
        let category = listed.remove(name);
        let runs = match &only {
            Some(only) => name.contains(&only[..]),
            None => series::is_long() || category.is_some() || number.is_multiple_of(STRIDE),
        };
        if !runs {
            continue;
        }
        ran += 1;
        let mut result = beside.run(sequence, Wait::Short);
        if result.is_err() != category.is_some() {
            // The machine may have been held up.
            result = beside.run(sequence, Wait::Long);
        }
        if only.is_some()
            && let Err(difference) = &result
        {
            println!("{name}: {}", difference.text());
        }
        match (result, category) {
            (Ok(()), None) => equal += 1,
            (Err(_), Some(category)) => *counts.entry(category).or_default() += 1,
            (Err(difference), None) => unlisted.push((name, difference.text())),
            (Ok(()), Some(_)) => {
                unlisted.push((name, "it is listed, and does not differ\n".into()))
            }
        }
    }
    println!(
        "{ran} of {} sequences, {equal} without a difference",
        all.len()
    );
    for entry in LISTED {
        let count = counts.get(entry.category).unwrap_or(&0);
        println!("{count:>5} {}: {}", entry.category, entry.reason);
    }
    assert!(
        listed.is_empty(),
        "listed, and not in the corpus: {listed:?}"
    );
    for (name, text) in unlisted.iter().take(5) {
        println!("{name}: {text}");
    }
    let mut by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, _) in &unlisted {
        let (what, path) = name.split_once('/').unwrap_or((name, ""));
        by.entry(what).or_default().push(path);
    }
    assert!(
        unlisted.is_empty(),
        "{} not as listed: {by:#?}",
        unlisted.len()
    );
    assert!(all.len() >= 200 || only.is_some());
    assert!(
        ran > 0,
        "CAUSEWAY_SEQUENCE: no sequence has {only:?} in its name"
    );
}
