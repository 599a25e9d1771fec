//! The files of the repository, for tests that read them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the repository.
///
/// # Panics
/// Never.
#[must_use]
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("two folders above this crate").to_owned()
}

/// Files that git tracks, or, without git, all files outside of `target`, with one of these
/// endings.
///
/// # Panics
/// If there are ten or fewer, as then a test would check nothing.
#[must_use]
pub fn files(endings: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let entry = entry.expect("an entry of the folder");
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type().expect("its type").is_dir() {
                if name != "target" && !name.starts_with('.') {
                    walk(&entry.path(), files);
                }
            } else {
                files.push(entry.path());
            }
        }
    }
    let root = root();
    let tracked = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&root)
        .output();
    let mut all = match tracked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(|name| root.join(name))
            .filter(|path| path.is_file())
            .collect(),
        _ => {
            let mut all = Vec::new();
            walk(&root, &mut all);
            all
        }
    };
    all.retain(|path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        endings.iter().any(|ending| name.ends_with(ending)) && name != "Cargo.lock"
    });
    assert!(
        all.len() > 10,
        "{endings:?}: too few files found below {}",
        root.display()
    );
    all
}

/// The text of a file in UTF-8.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The path of a file from the root.
#[must_use]
pub fn shown(path: &Path) -> String {
    let root = root();
    path.strip_prefix(&root)
        .unwrap_or(path)
        .display()
        .to_string()
}
