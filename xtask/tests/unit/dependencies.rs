//! ARCHITECTURE.md lists the workspace crates that each crate depends on.

use std::{collections::BTreeMap, collections::BTreeSet, process::Command};

use test_support::repository::{read, root};

/// Folder of each workspace package, and the workspace folders of its normal dependencies.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .expect("run cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let root = root().display().to_string();
    let folder = |path: &str| {
        let below = path.strip_prefix(&root).unwrap_or(path);
        below.trim_matches('/').to_owned()
    };
    let packages = metadata["packages"].as_array().expect("packages");
    let of_package = |package: &serde_json::Value| {
        let manifest = text(&package["manifest_path"]);
        let own = folder(manifest.trim_end_matches("Cargo.toml"));
        let all = package["dependencies"].as_array().expect("dependencies");
        let normal = all.iter().filter(|found| found["kind"].is_null());
        let paths = normal.filter_map(|found| found["path"].as_str());
        (own, paths.map(folder).collect())
    };
    packages.iter().map(of_package).collect()
}

/// A crate as ARCHITECTURE.md names it: its folder, without `libs/`.
fn named(folder: &str) -> String {
    folder.trim_start_matches("libs/").to_owned()
}

/// The crates that the block of ARCHITECTURE.md lists for each crate; `None`: it says so in words.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = read(&root().join("ARCHITECTURE.md"));
    let section = page.split("## Dependencies").nth(1).expect("the section");
    let block = section.split("```").nth(1).expect("its block");
    let mut found = BTreeMap::new();
    for line in block.lines() {
        let Some((names, list)) = line.split_once('▶') else {
            continue;
        };
        let names = names.trim_end_matches(['─', ' ']);
        // Parentheses, and text behind a semicolon, hold a remark.
        let mut plain = String::new();
        let mut depth = 0;
        for c in list.chars() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                ';' if depth == 0 => break,
                c if depth == 0 => plain.push(c),
                _ => {}
            }
        }
        let crates: BTreeSet<_> = plain
            .split([',', '|'])
            .map(|n| n.trim().to_owned())
            .collect();
        for name in names.split(',') {
            found.insert(name.trim().to_owned(), crates.clone());
        }
    }
    found
}

/// Crates whose line is in words, or speaks of several crates at once.
const IN_WORDS: [&str; 6] = [
    "appliance-ebpf",
    "gateway/ebpf",
    "fuzz-targets",
    "tests",
    "tools",
    "xtask",
];

#[test]
fn the_page_lists_the_dependencies_of_each_crate() {
    let dependencies = dependencies();
    let workspace: BTreeSet<_> = dependencies.keys().map(|folder| named(folder)).collect();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, listed) in documented() {
        if IN_WORDS.contains(&name.as_str()) {
            continue;
        }
        let Some((_, real)) = dependencies
            .iter()
            .find(|(folder, _)| named(folder) == name)
        else {
            wrong.push(format!("{name} is no crate of the workspace"));
            continue;
        };
        checked += 1;
        let real: BTreeSet<_> = real.iter().map(|folder| named(folder)).collect();
        let listed: BTreeSet<_> = listed.intersection(&workspace).cloned().collect();
        for missing in real.difference(&listed) {
            wrong.push(format!("{name}: {missing} is not listed"));
        }
        for surplus in listed.difference(&real) {
            wrong.push(format!("{name}: {surplus} is listed, and is no dependency"));
        }
    }
    assert!(wrong.is_empty(), "ARCHITECTURE.md:\n{}", wrong.join("\n"));
    assert!(checked >= 7, "only {checked} crates were compared");
}
