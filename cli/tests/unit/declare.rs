//! `apply`, `diff` and `export`.

use super::Site;

const BASE: &str = r#"
owner = "site-a"

[[object]]
kind = "plan"
tenant = "acme"
name = "all"
spec = { networks = [{ name = "web-1" }], vms = [{ name = "db" }], rules = [] }

[[object]]
kind = "network"
tenant = "acme"
name = "web-1"
spec = { prefixes = ["10.1.0.0/24"], gateways = ["10.1.0.1"] }

[[object]]
kind = "subscription"
tenant = "acme"
name = "web"
spec = { hardware_plan = "small" }

[[object]]
kind = "tenant"
name = "acme"

[[object]]
kind = "hardware-plan"
name = "small"
spec = { vlan_pool = "pool", networks_with_internet = 2 }

[[object]]
kind = "vlan-pool"
name = "pool"
spec = { host = "h1", switch = "br0", with_internet = ["101-199"] }

[[object]]
kind = "host"
name = "h1"
spec = { platform = "kvm", switches = [{ name = "br0" }] }
"#;

#[test]
fn a_file_is_applied_in_the_order_of_references() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    let diff = site.run(&format!("diff -f {file}")).exits(1);
    assert!(
        diff.out.contains("created") && diff.out.contains("spec.prefixes"),
        "{diff:?}"
    );
    let (_, printed) = diff.out.split_once("changes: causeway ").expect("it");
    let options = format!("apply -f {file} --expect ");
    assert!(printed.starts_with(&options), "{printed}");
    site.run(printed).exits(0).prints(
        "created host h1
         created vlan-pool pool
         created hardware-plan small
         created tenant acme
         created subscription acme/web
         changed network acme/web-1
         created plan acme/all
         7 changes",
    );
    site.run(&format!("diff -f {file}"))
        .exits(0)
        .prints("no differences");
    site.run(&format!("apply -f {file}"))
        .exits(0)
        .prints("0 changes");

    // The export of one director is the declaration of another one.
    let export = site.run("export --owner site-a").exits(0).out;
    let other = Site::start();
    let file = other.write("export.toml", &export).display().to_string();
    other.run(&format!("apply -f {file}")).exits(0);
    assert_eq!(other.run("export --owner site-a").exits(0).out, export);
    let json = site
        .run("export --format json --tenant acme --kind network")
        .exits(0)
        .json();
    assert_eq!(
        json["object"].as_array().expect("a list").len(),
        1,
        "{json}"
    );
}

#[test]
fn a_plan_is_made_only_on_what_it_has_seen() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    site.run(&format!("apply -f {file}")).exits(0);
    let text = BASE.replace("networks_with_internet = 2", "networks_with_internet = 3");
    site.write("base.toml", &text);
    let diff = site.run(&format!("diff -f {file} --json")).exits(1).json();
    assert_eq!(diff["differences"][0]["fields"][0]["after"], 3, "{diff}");
    let digest = diff["digest"].as_str().expect("a digest").to_owned();
    site.run("hardware-plan set small -s description=x --owner site-a")
        .exits(0);
    site.run(&format!("apply -f {file} --expect {digest}"))
        .exits(6)
        .says("look at `causeway diff` again");
    let diff = site.run(&format!("diff -f {file} --json")).exits(1).json();
    let digest = diff["digest"].as_str().expect("a digest");
    site.run(&format!("apply -f {file} --expect {digest}"))
        .exits(0)
        .prints("changed hardware-plan small\n1 changes");
}

#[test]
fn objects_of_other_owners_are_left_alone() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    site.run(&format!("apply -f {file}")).exits(0);
    let other = r#"{ "owner": "site-b", "object": [{ "kind": "host", "name": "h1",
        "spec": { "platform": "kvm", "switches": [{ "name": "br0" }], "description": "b" } },
        { "kind": "tenant", "name": "globex" }] }"#;
    let other = site.write("other.json", other).display().to_string();
    for command in ["diff", "apply"] {
        site.run(&format!("{command} -f {other}"))
            .exits(4)
            .says("host h1 is declared by \"site-a\"");
    }
    // The director refuses it as well.
    site.run("host set h1 -s description=c --owner site-b")
        .exits(4)
        .says("conflict: host h1: metadata.owner = site-a");
    site.run("host set h1 -s description=c")
        .exits(0)
        .says("warning: host \"h1\" is declared by \"site-a\"");
    site.run(&format!("apply -f {other} --take-over")).exits(0);
    let host = site.run("host get h1 --json").json();
    assert_eq!(host["metadata"]["owner"], "site-b");

    // Objects that a file no longer declares are deleted on request, and none of others.
    let less = BASE
        .split("[[object]]")
        .filter(|part| !part.contains("\"host\""));
    let less: Vec<_> = less.filter(|part| !part.contains("\"plan\"")).collect();
    site.write("base.toml", &less.join("[[object]]"));
    site.run(&format!("diff -f {file}")).exits(0);
    site.run(&format!("apply -f {file} --prune"))
        .exits(0)
        .prints("deleted plan acme/all\n1 changes");
    site.run("host get h1").exits(0);
}

#[test]
fn a_file_without_an_owner_leaves_declared_objects_alone() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    site.run(&format!("apply -f {file}")).exits(0);
    let host = r#"[[object]]
        kind = "host"
        name = "h1"
        spec = { platform = "kvm", switches = [{ name = "br0" }], description = "hijacked" }"#;
    let other = site.write("other.toml", host).display().to_string();
    for command in ["diff", "apply"] {
        site.run(&format!("{command} -f {other}"))
            .exits(4)
            .says("host h1 is declared by \"site-a\": change it there, or write that owner");
    }
    let host = site.run("host get h1 --json").json();
    assert_eq!(host["spec"].get("description"), None, "{host}");
    // On request it is changed, with the director's warning, and stays the owner's.
    site.run(&format!("apply -f {other} --take-over"))
        .exits(0)
        .says("warning: host \"h1\" is declared by \"site-a\"");
    let host = site.run("host get h1 --json").json();
    assert_eq!(host["spec"]["description"], "hijacked");
    assert_eq!(host["metadata"]["owner"], "site-a");
    // An object that is as declared needs no owner.
    site.run(&format!("apply -f {other}"))
        .exits(0)
        .prints("0 changes");
}

/// The objects of the base file but for those of these kinds.
fn without(kinds: &[&str]) -> String {
    let parts = BASE.split("[[object]]");
    let parts = parts.filter(|part| {
        !kinds
            .iter()
            .any(|kind| part.contains(&format!("\"{kind}\"")))
    });
    parts.collect::<Vec<_>>().join("[[object]]")
}

#[test]
fn a_subscription_is_pruned_with_its_networks() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    site.run(&format!("apply -f {file}")).exits(0);
    // Networks that are not declared any more lose their settings.
    site.write("base.toml", &without(&["plan", "network"]));
    site.run(&format!("apply -f {file} --prune"))
        .exits(0)
        .prints(
            "deleted plan acme/all
         changed network acme/web-1
         2 changes",
        );
    let network = site.run("network get web-1 -t acme --json").json();
    assert_eq!(
        network["spec"]["prefixes"].as_array().map(Vec::len),
        Some(0),
        "{network}"
    );
    site.run(&format!("apply -f {file} --prune"))
        .exits(0)
        .prints("0 changes");
    site.write("base.toml", BASE);
    site.run(&format!("apply -f {file}")).exits(0);
    site.write(
        "base.toml",
        &without(&["plan", "network", "subscription", "tenant"]),
    );
    site.run(&format!("apply -f {file} --prune"))
        .exits(0)
        .prints(
            "deleted plan acme/all
         deleted subscription acme/web
         deleted tenant acme
         3 changes",
        );
}

#[test]
fn a_plan_grows_and_its_new_network_is_set_at_once() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    site.run(&format!("apply -f {file}")).exits(0);
    let grown = BASE.replace("networks_with_internet = 2", "networks_with_internet = 3")
        + "[[object]]\nkind = \"network\"\ntenant = \"acme\"\nname = \"web-3\"\n\
           spec = { prefixes = [\"10.3.0.0/24\"] }\n";
    site.write("base.toml", &grown);
    site.run(&format!("apply -f {file}")).exits(0).prints(
        "changed hardware-plan small
         changed network acme/web-3
         2 changes",
    );
    site.run(&format!("diff -f {file}")).exits(0);
}

#[test]
fn an_export_has_the_addresses_that_were_picked() {
    let site = Site::with_tenants();
    site.run(r#"address-pool create public -s ranges=["192.0.2.10-192.0.2.19"]"#)
        .exits(0);
    // Another order than that of names.
    for name in ["second", "first"] {
        site.run(&format!("address create {name} -t acme -s pool=public"))
            .exits(0);
    }
    let addresses = |site: &Site| site.run("address list -t acme").exits(0).out;
    let export = site.run("export").exits(0).out;
    let file = site.write("export.toml", &export).display().to_string();
    site.run(&format!("diff -f {file}"))
        .exits(0)
        .prints("no differences");
    let other = Site::start();
    other.run(&format!("apply -f {file}")).exits(0);
    let all = addresses(&other);
    let row = |name: &str, address: &str| {
        let has = |line: &&str| line.starts_with(name) && line.contains(address);
        assert!(
            all.lines().any(|line| has(&line)),
            "{name} {address}: {all}"
        );
    };
    row("second", "192.0.2.10");
    row("first", "192.0.2.11");
    // A file that leaves the choice to the director does not change it.
    let free: Vec<_> = export
        .lines()
        .filter(|line| !line.starts_with("address = "))
        .collect();
    let free = other
        .write("free.toml", &free.join("\n"))
        .display()
        .to_string();
    other
        .run(&format!("diff -f {free}"))
        .exits(0)
        .prints("no differences");
}

#[test]
fn a_wrong_file_changes_nothing() {
    let site = Site::start();
    let revision = || site.run("export --format json").out;
    let before = revision();
    for (text, expected) in [
        ("[[object]]\nkind = \"hots\"\nname = \"h\"", "no such kind"),
        (
            "[[object]]\nkind = \"host\"\nname = \"h\"",
            "missing field `platform`",
        ),
        (
            "[[object]]\nkind = \"network\"\nname = \"n\"",
            "write tenant",
        ),
        (
            "[[object]]\nkind = \"tenant\"\nname = \"t\"\ntenant = \"t\"",
            "omit the tenant",
        ),
        (
            "[[object]]\nkind = \"tenant\"\nname = \"t\"\n[[object]]\nkind = \"tenant\"\nname = \
             \"t\"",
            "there twice",
        ),
        ("other = 1", "unknown field `other`"),
        ("object = 1", "invalid type"),
    ] {
        let file = site.write("wrong.toml", text).display().to_string();
        for command in ["diff", "apply"] {
            site.run(&format!("{command} -f {file}"))
                .exits(2)
                .says(expected);
        }
    }
    site.run("apply -f /nothing.toml")
        .exits(8)
        .says("cannot read");
    assert_eq!(revision(), before);
    // A refusal of the director is found before anything is changed.
    let text = "[[object]]\nkind = \"tenant\"\nname = \"t\"\n[[object]]\nkind = \"subscription\"\n\
                tenant = \"t\"\nname = \"s\"\nspec = { hardware_plan = \"none\" }";
    let file = site.write("late.toml", text).display().to_string();
    site.run(&format!("apply -f {file}")).exits(4).says(
        "would refuse 1 of the changes, so that none is made: subscription t/s: hardware_plan",
    );
    let refused = site.run(&format!("apply -f {file} --json")).exits(4);
    let problem: serde_json::Value = serde_json::from_str(&refused.error).expect("JSON");
    assert_eq!(
        problem["conflicts"][0]["kind"], "hardware-plan",
        "{problem}"
    );
    site.run(&format!("diff -f {file}"))
        .exits(1)
        .says("warning: the director would refuse");
    assert_eq!(revision(), before);
}

#[test]
fn apply_begins_nothing_if_a_change_needs_a_reason() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    let apply = ["apply", "-f", &file];
    let refused = site.words(&apply, "").exits(2);
    refused
        .says("add --reason TEXT (nothing is changed)")
        .says("needs a reason: change network acme/web-1\n  needs a reason: create plan acme/all");
    site.run("host list --json").exits(0).prints("[]");
    let json = site
        .words(&[&apply[..], &["--json"]].concat(), "")
        .exits(2)
        .error;
    assert!(
        json.contains("needs a reason: create plan acme/all"),
        "{json}"
    );

    // Objects that are not the tenant's own need none.
    let own = ["\"plan\"", "\"network\""];
    let others = BASE.split("[[object]]").filter(|part| {
        !own.iter()
            .any(|kind| part.contains(&format!("kind = {kind}")))
    });
    let others = others.collect::<Vec<_>>().join("[[object]]");
    let others = site.write("others.toml", &others).display().to_string();
    site.words(&["apply", "-f", &others], "").exits(0);
    site.words(&apply, "")
        .exits(2)
        .says("change network acme/web-1");
    let plan = site.words(&["plan", "get", "all", "-t", "acme"], "");
    plan.exits(3);
    let reason = [&apply[..], &["--reason", "ticket 12"]].concat();
    site.words(&reason, "").exits(0);

    // The tenant needs none for its own.
    let password = "correct horse battery\n";
    site.typed("user create alice --role tenant-admin -t acme", password)
        .exits(0);
    let server = format!(
        "--server {} --ca {}",
        site.server,
        site.path("ca.pem").display()
    );
    site.run(&format!("context set acme {server}")).exits(0);
    site.typed("--context acme login --user alice", password)
        .exits(0);
    let changed = BASE
        .split("[[object]]")
        .filter(|part| part.contains("owner =") || part.contains("kind = \"network\""));
    let changed = changed.collect::<Vec<_>>().join("[[object]]");
    let changed = changed.replace("\"10.1.0.1\"", "\"10.1.0.254\"");
    let changed = site.write("tenant.toml", &changed).display().to_string();
    let words = ["--context", "acme", "apply", "-f", &changed];
    site.words(&words, "")
        .exits(0)
        .prints("changed network acme/web-1\n1 changes");
}

#[test]
fn a_plan_is_exported_as_a_file_for_apply() {
    let site = Site::start();
    let file = site.write("base.toml", BASE).display().to_string();
    site.run(&format!("apply -f {file}")).exits(0);
    let plan = site.run("plan export all -t acme").exits(0).out;
    assert!(plan.contains("owner = \"site-a\""), "{plan}");
    let exported = site.write("plan.toml", &plan).display().to_string();
    site.run(&format!("diff -f {exported}"))
        .exits(0)
        .prints("no differences");
    site.run("plan delete all -t acme --reason test").exits(0);
    site.run(&format!("apply -f {exported}"))
        .exits(0)
        .prints("created plan acme/all\n1 changes");
    let again = site.run("plan export all -t acme").exits(0).out;
    assert_eq!(again, plan);
    for words in ["--format json", "--json"] {
        let json = site.run(&format!("plan export all -t acme {words}")).json();
        assert_eq!(json["object"][0]["name"], "all", "{json}");
    }
    site.run("plan export none -t acme").exits(3);
}
