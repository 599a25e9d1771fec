//! Every source file belongs to a target: a test in a file that no module names would never run.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use test_support::{
    modules::named,
    repository::{files, read, root, shown},
};

/// Whether cargo finds a target in the file by its place in the package (the Cargo Book, "Target
/// auto-discovery").
fn is_root(below: &Path) -> bool {
    let parts: Vec<_> = below.iter().filter_map(|part| part.to_str()).collect();
    matches!(
        parts[..],
        ["build.rs"]
            | ["src", "lib.rs" | "main.rs"]
            | ["src", "bin", _]
            | ["src", "bin", _, "main.rs"]
            | ["tests" | "examples" | "benches", _]
            | ["tests" | "examples" | "benches", _, "main.rs"]
    )
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            std::path::Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

#[test]
fn every_source_file_belongs_to_a_target() {
    let all: BTreeSet<PathBuf> = files(&[".rs"]).into_iter().collect();
    let manifests = files(&["Cargo.toml"]);
    let mut open: Vec<(PathBuf, bool)> = Vec::new();
    for manifest in &manifests {
        let folder = manifest.parent().expect("a manifest's folder");
        // Those that the manifest names.
        let text = read(manifest);
        let paths = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("path = \""));
        let paths = paths.filter_map(|rest| rest.split('"').next());
        open.extend(
            paths
                .filter(|path| path.ends_with(".rs"))
                .map(|path| (folder.join(path), true)),
        );
        let own = all.iter().filter_map(|path| path.strip_prefix(folder).ok());
        open.extend(
            own.filter(|below| is_root(below))
                .map(|below| (folder.join(below), true)),
        );
    }
    let mut reached = BTreeSet::new();
    while let Some((path, is_root)) = open.pop() {
        let path = plain(&path);
        if all.contains(&path) && reached.insert(path.clone()) {
            open.extend(named(&path, &read(&path), is_root));
        }
    }
    let orphans: Vec<_> = all.difference(&reached).map(|path| shown(path)).collect();
    assert!(reached.len() > 300, "below {}", root().display());
    assert!(
        orphans.is_empty(),
        "no module names these files, so cargo does not compile them:\n{}",
        orphans.join("\n")
    );
}

#[test]
fn module_lines_are_followed() {
    let source = "mod a;\npub(crate) mod b;\n#[path = \"../c.rs\"]\n// why\nmod d;\nmod e {\n";
    let of = |path: &str, is_root| -> Vec<_> {
        let found = named(Path::new(path), source, is_root);
        found.into_iter().map(|(path, _)| path).collect()
    };
    let expected = [
        "/p/src/a.rs",
        "/p/src/a/mod.rs",
        "/p/src/b.rs",
        "/p/src/b/mod.rs",
    ];
    let mut expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
    expected.push("/p/src/../c.rs".into());
    assert_eq!(of("/p/src/lib.rs", true), expected);
    assert_eq!(of("/p/src/x.rs", false)[0], Path::new("/p/src/x/a.rs"));
    assert_eq!(of("/p/src/x/mod.rs", false)[0], Path::new("/p/src/x/a.rs"));
    assert_eq!(plain(Path::new("/p/src/../c.rs")), Path::new("/p/c.rs"));
}
