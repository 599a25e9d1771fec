//! The XDP programs are built in layers, and no module imports one above it or in a circle.
//!
//! ```text
//!   main.rs ─▶ stage/ ─▶ helper/ ─▶ maps
//! ```
//!
//! Here a module counts by itself, so that a child may not name its parent either.

use std::collections::{BTreeMap, BTreeSet};

use test_support::repository::root;

use super::imports::{Modules, imports, read};

/// The layers, from the top. A module may import its own layer and those behind it in this list.
const LAYERS: [&str; 4] = ["", "stage", "helper", "maps"];

fn layer(module: &str) -> usize {
    let top = module.split("::").next().unwrap_or_default();
    LAYERS
        .iter()
        .position(|layer| *layer == top)
        .unwrap_or_else(|| panic!("module {module} is in none of the layers {LAYERS:?}"))
}

/// A circle among the imports that `module` leads to.
fn circle<'a>(
    module: &'a str,
    imports: &'a BTreeMap<String, BTreeSet<String>>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(from) = path.iter().position(|of| *of == module) {
        let circle = [&path[from..], &[module]].concat();
        return Some(circle.join(" -> "));
    }
    if !done.insert(module) {
        return None;
    }
    path.push(module);
    for import in imports.get(module).into_iter().flatten() {
        if let found @ Some(_) = circle(import, imports, path, done) {
            return found;
        }
    }
    path.pop();
    None
}

/// The errors in the imports of a program.
fn defects(modules: &Modules) -> Vec<String> {
    let mut defects = Vec::new();
    let named = imports(modules).into_iter();
    let imports: BTreeMap<String, BTreeSet<String>> = named
        .map(|(module, named)| (module, named.into_keys().collect()))
        .collect();
    for (module, of) in &imports {
        for import in of {
            if layer(import) < layer(module) {
                defects.push(format!("{module} imports {import}, which is a layer above"));
            }
        }
    }
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        if let Some(circle) = circle(module, &imports, &mut Vec::new(), &mut done) {
            defects.push(format!("circle: {circle}"));
        }
    }
    defects
}

fn check(sources: &str) {
    let modules = read(&root().join(sources));
    assert!(modules.len() > 3, "{modules:?}");
    assert_eq!(defects(&modules), [""; 0], "{sources}");
}

#[test]
fn the_appliances_programs_import_downwards_without_a_circle() {
    check("appliance-ebpf/src");
}

#[test]
fn the_gateways_program_imports_downwards_without_a_circle() {
    check("gateway/ebpf/src");
}

#[test]
fn upward_imports_and_circles_are_found() {
    let modules = |list: &[(&str, &str)]| {
        let of = |(module, text): &(&str, &str)| ((*module).to_owned(), format!("{text}\n"));
        list.iter().map(of).collect::<Modules>()
    };
    let fine = [
        ("", "mod stage;\nuse crate::helper::a;\n"),
        ("stage", "pub mod x;\n"),
        (
            "stage::x",
            "use crate::{\n    helper::{a::{b, c}, d},\n    maps::M,\n};\n",
        ),
        ("helper", "pub mod a;\npub mod d;\n"),
        ("helper::a", "// use crate::stage::x;\nuse super::d::e;\n"),
        ("helper::d", ""),
        ("maps", ""),
    ];
    assert_eq!(defects(&modules(&fine)), [""; 0]);
    let upward = [
        fine.as_slice(),
        &[("maps", "use crate::{helper::{a::b}};\n")],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&upward)),
        ["maps imports helper::a, which is a layer above"]
    );
    let inline = [
        fine.as_slice(),
        &[("maps", "fn f() { crate::stage::x::g() }\n")],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&inline))[0],
        "maps imports stage::x, which is a layer above"
    );
    let circular = [
        fine.as_slice(),
        &[("helper::d", "use crate::helper::a::f;\n")],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&circular)),
        ["circle: helper::a -> helper::d -> helper::a"]
    );
    let parent = [
        fine.as_slice(),
        &[
            ("helper", "mod a;\nfn f() { a::b() }\n"),
            ("helper::a", "use super::f;\n"),
        ],
    ]
    .concat();
    assert_eq!(
        defects(&modules(&parent)),
        ["circle: helper::a -> helper -> helper::a"]
    );
}
