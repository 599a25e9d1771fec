//! Modules of one folder depend on each other in one direction: no circle among siblings.
//!
//! ```text
//!   api ─▶ change ─▶ live        api ─▶ change ─▶ live
//!                                 ▲                │  a circle: neither is understood alone
//!                                 └────────────────┘
//! ```
//!
//! A module counts with all below it. A parent and its children may name each other: the children
//! are its parts.

use std::collections::{BTreeMap, BTreeSet};

use test_support::repository::{files, root, shown};

use super::imports::{Imports, imports, read};

/// A circle that may be.
struct Permitted {
    /// Folder of the package.
    package: &'static str,
    /// Path of the modules' parent; empty for the root.
    parent: &'static str,
    /// The modules of the circle, in the order of names.
    modules: &'static [&'static str],
    reason: &'static str,
}

const PERMITTED: [Permitted; 1] = [Permitted {
    package: "libs/appliance-common",
    parent: "",
    modules: &["entry_hash", "maps"],
    reason: "the hash of an entry is over the fields of its key, and is a field of its value",
}];

/// For each parent, which of its children name which, and by which path.
type Siblings = BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>;

/// The imports between the children of each module, and of all below them.
fn siblings(imports: &Imports) -> Siblings {
    let mut siblings = Siblings::new();
    for (from, named) in imports {
        for (to, path) in named {
            let (from_parts, to_parts) = (parts(from), parts(to));
            let both = from_parts.iter().zip(&to_parts);
            let common = both.take_while(|(from, to)| from == to).count();
            let (Some(child), Some(other)) = (from_parts.get(common), to_parts.get(common)) else {
                continue;
            };
            let children = siblings.entry(from_parts[..common].join("::")).or_default();
            let others = children.entry((*child).to_owned()).or_default();
            let why = || format!("{from} names {path}");
            others.entry((*other).to_owned()).or_insert_with(why);
        }
    }
    siblings
}

fn parts(module: &str) -> Vec<&str> {
    module.split("::").filter(|part| !part.is_empty()).collect()
}

/// All that is reached from a module, by one step or more.
fn reached<'g, T>(
    graph: &'g BTreeMap<String, BTreeMap<String, T>>,
    module: &str,
) -> BTreeSet<&'g str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&BTreeMap<String, T>> = graph.get(module).into_iter().collect();
    while let Some(next) = open.pop() {
        for name in next.keys() {
            if found.insert(name.as_str()) {
                open.extend(graph.get(name));
            }
        }
    }
    found
}

/// The largest sets of modules of which each one is reached from every other.
fn circles<T>(graph: &BTreeMap<String, BTreeMap<String, T>>) -> BTreeSet<BTreeSet<&str>> {
    let all: BTreeMap<&str, _> = graph
        .keys()
        .map(|module| (module.as_str(), reached(graph, module)))
        .collect();
    let mut circles = BTreeSet::new();
    for (module, from_it) in &all {
        let is_back = |other: &&str| all.get(other).is_some_and(|from| from.contains(module));
        let circle: BTreeSet<&str> = from_it.iter().copied().filter(is_back).collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    circles
}

/// The imports within a circle, a line each.
fn within(graph: &BTreeMap<String, BTreeMap<String, String>>, circle: &BTreeSet<&str>) -> String {
    let mut lines = String::new();
    for (from, named) in graph
        .iter()
        .filter(|(from, _)| circle.contains(from.as_str()))
    {
        for (to, why) in named.iter().filter(|(to, _)| circle.contains(to.as_str())) {
            lines += &format!("    {from} -> {to}: {why}\n");
        }
    }
    lines
}

#[test]
fn no_modules_of_one_folder_depend_on_each_other_in_a_circle() {
    let mut unused: BTreeSet<usize> = (0..PERMITTED.len()).collect();
    let (mut found, mut crates) = (String::new(), 0);
    for manifest in files(&["Cargo.toml"]) {
        let folder = manifest.parent().expect("a manifest's folder");
        let sources = folder.join("src");
        if !sources.is_dir() {
            continue;
        }
        crates += 1;
        let package = shown(folder);
        for (parent, graph) in siblings(&imports(&read(&sources))) {
            for circle in circles(&graph) {
                let permitted = PERMITTED.iter().position(|of| {
                    of.package == package
                        && of.parent == parent
                        && of.modules.iter().copied().eq(circle.iter().copied())
                });
                match permitted {
                    Some(at) => {
                        unused.remove(&at);
                    }
                    None => {
                        let lines = within(&graph, &circle);
                        found += &format!("{package}, modules of \"{parent}\":\n{lines}");
                    }
                }
            }
        }
    }
    assert!(crates > 20, "{crates} crates below {}", root().display());
    assert!(
        found.is_empty(),
        "modules depend on each other in a circle: move what both need into a module below \
         both\n{found}"
    );
    let stale: Vec<_> = unused.iter().map(|at| PERMITTED[*at].reason).collect();
    assert!(
        stale.is_empty(),
        "circles that are permitted are there no more: remove them from the list: {stale:?}"
    );
}

#[test]
fn circles_among_siblings_are_found_with_all_below_them() {
    let of = |list: &[(&str, &str)]| {
        let named = |text: &str| (text.to_owned(), format!("crate::{text}"));
        let mut imports = Imports::new();
        for (from, to) in list {
            let (to, path) = named(to);
            imports
                .entry((*from).to_owned())
                .or_default()
                .insert(to, path);
        }
        let mut found = Vec::new();
        for (parent, graph) in siblings(&imports) {
            for circle in circles(&graph) {
                let names: Vec<_> = circle.iter().copied().collect();
                found.push(format!("{parent}: {}", names.join(" ")));
            }
        }
        found
    };
    let none: [&str; 0] = [];
    assert_eq!(of(&[("a", "b"), ("b", "c"), ("a", "c")]), none);
    // A parent and its child.
    assert_eq!(
        of(&[("a", "a::b"), ("a::b", "a"), ("", "a"), ("a", "")]),
        none
    );
    assert_eq!(
        of(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]),
        [": a b c"]
    );
    assert_eq!(of(&[("a::x", "b"), ("b::y", "a::z")]), [": a b"]);
    assert_eq!(of(&[("a::x", "a::y::z"), ("a::y", "a::x")]), ["a: x y"]);
    let two = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "c")];
    assert_eq!(of(&two), [": a b", ": c d"]);
}
