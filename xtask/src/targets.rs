//! Which test programs the workspace has, and the tier of each, from `cargo metadata`.
//!
//! ```text
//!   src/lib.rs, src/main.rs, src/bin/   unit
//!   tests/<tier>/                       that tier: unit, packets, lab, qemu
//!   [package.metadata.causeway.tests]   <target> = "<tier>", where the two rules above do not fit
//! ```
//!
//! A test target without a tier is an error: no test may be forgotten.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::Value;
use test_support::modules;

use crate::{cargo::cargo, step::show};

/// When a test runs, by what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tier {
    /// Unit and property tests; no privilege.
    Unit,
    /// Packet fixtures and the verifier; needs root and BPF.
    Packets,
    /// Network namespaces; needs root.
    Lab,
    /// Virtual machines with the NICs of hypervisors; needs root and QEMU.
    Qemu,
}

impl Tier {
    /// Its name in folders and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packets => "packets",
            Self::Lab => "lab",
            Self::Qemu => "qemu",
        }
    }

    /// The tier of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Unit, Self::Packets, Self::Lab, Self::Qemu]
            .into_iter()
            .find(|tier| tier.name() == name)
    }

    /// After which time a test is ended, and has failed. The longest takes a quarter of it.
    pub const fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Unit => 300,
            Self::Packets | Self::Lab | Self::Qemu => 600,
        })
    }
}

/// A target of a workspace package that has tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the package.
    pub package: String,
    /// As cargo's messages name the package.
    pub package_id: String,
    /// Folder of the package: the working directory of its tests.
    pub folder: PathBuf,
    /// `lib`, `bin` or `test`.
    pub kind: String,
    /// Name of the target.
    pub name: String,
    /// When it runs.
    pub tier: Tier,
}

impl Target {
    /// `package (kind)`, or `package/target` for an integration test.
    pub fn label(&self) -> String {
        match self.kind.as_str() {
            "test" => format!("{}/{}", self.package, self.name),
            kind => format!("{} ({kind})", self.package),
        }
    }
}

/// The workspace according to `cargo metadata`.
#[derive(Debug)]
pub struct Workspace {
    /// Targets with tests.
    pub targets: Vec<Target>,
    /// Packages that are compiled for BPF, each with the file name of its object.
    pub bpf: Vec<(String, String)>,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// If cargo fails, or a target has no tier.
    pub fn read() -> anyhow::Result<Self> {
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
        let shown = show(&command);
        let output = command
            .output()
            .with_context(|| format!("start `{shown}`"))?;
        if !output.status.success() {
            bail!(
                "`{shown}` failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let metadata = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read the output of `{shown}`"))?;
        Self::parse(&metadata)
    }

    /// Reads the output of `cargo metadata`.
    ///
    /// # Errors
    /// If a target has no tier, an unknown one, or a tier is given to a target that does not exist.
    pub fn parse(metadata: &Value) -> anyhow::Result<Self> {
        let mut workspace = Self {
            targets: Vec::new(),
            bpf: Vec::new(),
        };
        let mut problems = Vec::new();
        for package in list(&metadata["packages"]) {
            workspace.add(package, &mut problems);
        }
        if problems.is_empty() {
            return Ok(workspace);
        }
        bail!(
            "the tier of some tests is not known:\n  {}",
            problems.join("\n  ")
        )
    }

    fn add(&mut self, package: &Value, problems: &mut Vec<String>) {
        let manifest = Path::new(text(&package["manifest_path"]));
        let folder = manifest.parent().unwrap_or(Path::new(""));
        let name = text(&package["name"]);
        let ours = &package["metadata"]["causeway"];
        if let Some(object) = ours["bpf-object"].as_str() {
            self.bpf.push((name.to_owned(), object.to_owned()));
        }
        let declared = ours["tests"].as_object();
        let mut used = Vec::new();
        for target in list(&package["targets"]) {
            let kind = list(&target["kind"]).first().map_or("", |kind| text(kind));
            let target_name = text(&target["name"]);
            if !matches!(kind, "lib" | "proc-macro" | "bin" | "test") {
                continue;
            }
            let source = Path::new(text(&target["src_path"]));
            // A package for BPF has no tests that could run, nor examples.
            let found = |what: fn(&str) -> bool| {
                let is_bpf = !ours["bpf-object"].is_null();
                let files = if is_bpf { Vec::new() } else { files_of(source) };
                files
                    .into_iter()
                    .find(|file| what(&std::fs::read_to_string(file).unwrap_or_default()))
            };
            // Cargo tests the documentation of libraries only.
            if target["doctest"] == false
                && matches!(kind, "lib" | "proc-macro")
                && let Some(file) = found(has_examples)
            {
                problems.push(format!(
                    "{kind} target `{target_name}` of package {name} has `doctest = false`, and \
                     the documentation in {} has examples: remove that line, or mark them `text`",
                    file.display()
                ));
            }
            if target["test"] != true {
                if let Some(file) = found(has_tests) {
                    problems.push(format!(
                        "{kind} target `{target_name}` of package {name} has `test = false`, and \
                         {} has tests: remove that line",
                        file.display()
                    ));
                }
                continue;
            }
            let tier = match declared.and_then(|table| table.get(target_name)) {
                Some(tier) => {
                    used.push(target_name);
                    Tier::named(text(tier)).ok_or_else(|| format!("{tier} is no tier"))
                }
                None => by_folder(kind, source, folder),
            };
            match tier {
                Ok(tier) => self.targets.push(Target {
                    package: name.to_owned(),
                    package_id: text(&package["id"]).to_owned(),
                    folder: folder.to_owned(),
                    kind: kind.to_owned(),
                    name: target_name.to_owned(),
                    tier,
                }),
                Err(why) => problems.push(format!(
                    "{} target `{target_name}` of package {name}: {why}. Put it into a folder \
                     tests/unit, tests/packets, tests/lab or tests/qemu, or add `{target_name} = \
                     \"TIER\"` to [package.metadata.causeway.tests] in {}",
                    kind,
                    manifest.display()
                )),
            }
        }
        for (target, _) in declared.into_iter().flatten() {
            if !used.contains(&target.as_str()) {
                problems.push(format!(
                    "{}: [package.metadata.causeway.tests] names {target}, which is no test target",
                    manifest.display()
                ));
            }
        }
    }
}

/// The root file of a target and the files of its modules.
fn files_of(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![(root.to_owned(), true)];
    while let Some((file, is_root)) = left.pop() {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        if !files.contains(&file) {
            left.extend(modules::named(&file, &text, is_root));
            files.push(file);
        }
    }
    files
}

/// Whether a file has tests or a module of tests: `#[test]`, `#[tokio::test(…)]`, `#[cfg(test)]`,
/// `#[cfg(all(test, …))]`, or a property test.
fn has_tests(text: &str) -> bool {
    text.lines().map(str::trim).any(|line| {
        let Some(attribute) = line.strip_prefix("#[").or_else(|| line.strip_prefix("#![")) else {
            return line.starts_with("proptest!");
        };
        if let Some(condition) = attribute.strip_prefix("cfg(") {
            // `not(test)` alone is the opposite.
            let condition = condition.replace("not(test)", "");
            return condition
                .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '"'))
                .any(|word| word == "test");
        }
        let path = attribute
            .split(['(', ']', ' ', '='])
            .next()
            .unwrap_or_default();
        path.rsplit("::").next() == Some("test")
    })
}

/// Whether the documentation in a file has examples that would run: code blocks without a language,
/// or in Rust.
fn has_examples(text: &str) -> bool {
    let mut is_open = false;
    text.lines().any(|line| {
        let line = line.trim();
        let doc = line
            .strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"));
        let Some(fence) = doc.and_then(|doc| doc.trim().strip_prefix("```")) else {
            is_open &= doc.is_some();
            return false;
        };
        is_open = !is_open;
        is_open
            && fence.split(',').map(str::trim).all(|word| {
                word.starts_with("edition")
                    || matches!(
                        word,
                        "" | "rust" | "no_run" | "should_panic" | "compile_fail"
                    )
            })
    })
}

/// The tier of a target by where its source is.
fn by_folder(kind: &str, source: &Path, folder: &Path) -> Result<Tier, String> {
    if kind != "test" {
        return Ok(Tier::Unit);
    }
    source
        .strip_prefix(folder.join("tests"))
        .ok()
        .filter(|below| below.components().count() > 1)
        .and_then(|below| below.components().next())
        .and_then(|first| Tier::named(first.as_os_str().to_str()?))
        .ok_or_else(|| "no tier runs it".to_owned())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(tests: &Value, targets: &[(&str, &str, &str, bool)]) -> Value {
        let targets: Vec<_> = targets
            .iter()
            .map(|(kind, name, path, test)| {
                json!({ "kind": [kind], "name": name, "src_path": path, "test": test })
            })
            .collect();
        json!({ "packages": [{
            "name": "p", "id": "p 0.1", "manifest_path": "/w/p/Cargo.toml", "targets": targets,
            "metadata": { "causeway": { "tests": tests } },
        }]})
    }

    fn tiers(metadata: &Value) -> Vec<(String, Tier)> {
        let workspace = Workspace::parse(metadata).unwrap();
        workspace
            .targets
            .into_iter()
            .map(|t| (t.name, t.tier))
            .collect()
    }

    #[test]
    fn the_folder_of_a_test_is_its_tier() {
        let targets = [
            ("lib", "p", "/w/p/src/lib.rs", true),
            ("bin", "tool", "/w/p/src/main.rs", true),
            ("bin", "program-for-bpf", "/w/p/src/bin/x.rs", false),
            ("test", "packets", "/w/p/tests/packets/main.rs", true),
            ("test", "lab", "/w/p/tests/lab/main.rs", true),
            ("test", "other", "/w/p/tests/unit/other.rs", true),
            ("example", "e", "/w/p/examples/e.rs", false),
        ];
        let found = tiers(&metadata(&Value::Null, &targets));
        let expected = [
            ("p", Tier::Unit),
            ("tool", Tier::Unit),
            ("packets", Tier::Packets),
            ("lab", Tier::Lab),
            ("other", Tier::Unit),
        ];
        assert_eq!(found, expected.map(|(name, tier)| (name.to_owned(), tier)));
    }

    #[test]
    fn the_manifest_overrules_the_folder() {
        let targets = [
            ("lib", "p", "/w/p/src/lib.rs", true),
            ("test", "veth", "/w/p/tests/veth.rs", true),
        ];
        let found = tiers(&metadata(
            &json!({ "p": "packets", "veth": "lab" }),
            &targets,
        ));
        assert_eq!(
            found,
            [
                ("p".to_owned(), Tier::Packets),
                ("veth".to_owned(), Tier::Lab)
            ]
        );
    }

    #[test]
    fn a_test_target_without_a_tier_is_an_error_with_a_remedy() {
        let targets = [("test", "forgotten", "/w/p/tests/forgotten.rs", true)];
        let error = Workspace::parse(&metadata(&Value::Null, &targets))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("target `forgotten` of package p: no tier runs it"),
            "{error}"
        );
        assert!(
            error.contains("[package.metadata.causeway.tests] in /w/p/Cargo.toml"),
            "{error}"
        );
    }

    /// The problems of a library without tests or examples, made of these files.
    fn hidden(name: &str, files: &[(&str, &str)]) -> String {
        let folder = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let path = folder.join("lib.rs");
        let targets = [("lib", "hidden", path.to_str().unwrap(), false)];
        let mut metadata = metadata(&Value::Null, &targets);
        metadata["packages"][0]["targets"][0]["doctest"] = false.into();
        let result = Workspace::parse(&metadata);
        std::fs::remove_dir_all(folder).unwrap();
        result.map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn a_target_that_hides_its_tests_is_an_error() {
        for (n, text) in [
            "#[cfg(test)]\nmod tests;\n",
            "#[cfg(all(test, feature = \"a\"))]\nmod tests {\n",
            "    #[test]\n",
            "#[tokio::test(flavor = \"multi_thread\")]\n",
            "#[tokio::test]\n",
        ]
        .into_iter()
        .enumerate()
        {
            let error = hidden(&format!("hidden-{n}"), &[("lib.rs", text)]);
            assert!(
                error.contains("`hidden` of package p has `test = false`"),
                "{text}: {error}"
            );
        }
        for text in [
            "fn f() {}\n",
            "#[cfg(not(test))]\nfn f() {}\n",
            "#[cfg(feature = \"test-util\")]\nfn f() {}\n",
            "#[testing::tests]\n",
        ] {
            assert_eq!(hidden("open", &[("lib.rs", text)]), "", "{text}");
        }
    }

    #[test]
    fn tests_in_the_modules_of_a_target_count() {
        let tests = "#[test]\nfn t() {}\n";
        for (n, files) in [
            [("lib.rs", "mod a;\n"), ("a.rs", tests), ("b.rs", "")],
            [
                ("lib.rs", "pub(crate) mod a;\n"),
                ("a/mod.rs", "mod b;"),
                ("a/b.rs", tests),
            ],
            [
                ("lib.rs", "mod a;\n"),
                ("a.rs", "pub mod b;"),
                ("a/b.rs", tests),
            ],
            [
                ("lib.rs", "#[path = \"x/y.rs\"]\nmod a;\n"),
                ("x/y.rs", "mod b;"),
                ("x/b.rs", tests),
            ],
            [
                ("lib.rs", "mod a {\n    mod b;\n}\n"),
                ("a/b.rs", tests),
                ("b.rs", ""),
            ],
        ]
        .iter()
        .enumerate()
        {
            let error = hidden(&format!("modules-{n}"), files);
            assert!(error.contains("has `test = false`"), "{files:?}: {error}");
        }
        // Of another target in the same folder.
        let files = [
            ("lib.rs", "mod a {\n}\nmod c;\n"),
            ("main.rs", tests),
            ("a/c.rs", tests),
        ];
        assert_eq!(hidden("others", &files), "");
    }

    #[test]
    fn a_library_that_hides_its_examples_is_an_error() {
        let example = "/// Adds:\n///\n/// ```\n/// assert_eq!(1 + 1, 2);\n/// ```\nfn f() {}\n";
        let error = hidden("examples", &[("lib.rs", "mod a;\n"), ("a.rs", example)]);
        assert!(error.contains("has `doctest = false`"), "{error}");
        assert!(error.contains("a.rs has examples"), "{error}");
        for language in ["text", "ignore", "toml", "rust,ignore"] {
            let text = example.replacen("```", &format!("```{language}"), 1);
            assert_eq!(
                hidden("examples", &[("lib.rs", text.as_str())]),
                "",
                "{language}"
            );
        }
        let text = example.replacen("```", "```no_run", 1);
        let error = hidden("examples", &[("lib.rs", text.as_str())]);
        assert!(error.contains("has examples"), "{error}");
    }

    #[test]
    fn unknown_tiers_and_targets_are_errors() {
        let targets = [("test", "veth", "/w/p/tests/veth.rs", true)];
        let error = Workspace::parse(&metadata(&json!({ "veth": "weekly" }), &targets));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("\"weekly\" is no tier")
        );
        let error = Workspace::parse(&metadata(
            &json!({ "veth": "lab", "gone": "lab" }),
            &targets,
        ));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("names gone, which is no test target")
        );
    }

    #[test]
    fn every_test_of_this_workspace_has_a_tier() {
        let workspace = Workspace::read().unwrap();
        let has = |package: &str| workspace.targets.iter().any(|t| t.package == package);
        for package in [
            "xsk",
            "causeway-bench",
            "fuzzing",
            "causeway-tests",
            "xtask",
        ] {
            assert!(has(package), "{package}");
        }
        assert_eq!(workspace.bpf.len(), 4, "{:?}", workspace.bpf);
        for (package, _) in &workspace.bpf {
            assert!(
                !has(package),
                "{package} is compiled for BPF and cannot have tests"
            );
        }
    }
}
