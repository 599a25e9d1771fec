//! The order in which `apply` makes changes, and what is there when one of them fails.

use super::Site;

fn apply(site: &Site, text: &str, more: &str) -> super::Ran {
    let file = site.write("order.toml", text).display().to_string();
    site.run(&format!("apply -f {file}{more}"))
}

/// Objects of the owner `site`; each line is kind, tenant or `-`, name and spec.
fn file(lines: &[&str]) -> String {
    let mut text = "owner = \"site\"\n".to_owned();
    for line in lines {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().expect("a word");
        text += &format!("[[object]]\nkind = {:?}\n", word());
        let tenant = word();
        if tenant != "-" {
            text += &format!("tenant = {tenant:?}\n");
        }
        text += &format!("name = {:?}\nspec = {}\n", word(), word());
    }
    text
}

const HOST: &str = r#"host - h1 { platform = "kvm", switches = [{ name = "br0" }] }"#;

fn pool(name: &str, ranges: &str) -> String {
    format!("vlan-pool - {name} {{ host = \"h1\", switch = \"br0\", with_internet = [{ranges}] }}")
}

#[test]
fn ranges_move_between_pools_in_one_file() {
    let site = Site::start();
    let both = |a: &str, b: &str| {
        let (a, b) = (pool("a", a), pool("b", b));
        file(&[HOST, &a, &b])
    };
    apply(&site, &both("\"101-150\"", "\"151-199\""), "").exits(0);
    // The first by name takes from the second, and the other way round.
    apply(&site, &both("\"101-160\"", "\"161-199\""), "")
        .exits(0)
        .prints("changed vlan-pool b\nchanged vlan-pool a\n2 changes");
    apply(&site, &both("\"101-150\"", "\"151-199\""), "").exits(0);
    // Each takes from the other.
    apply(&site, &both("\"111-160\"", "\"101-110\", \"161-199\""), "").exits(0);
    // All is exchanged.
    apply(&site, &both("\"101-110\", \"161-199\"", "\"111-160\""), "").exits(0);
    let pools = site.run("vlan-pool list").exits(0);
    pools.prints(
        "NAME HOST SWITCH WITH-INTERNET WITHOUT-INTERNET
         a h1 br0 101-110,161-199 -
         b h1 br0 111-160 -",
    );
    let public = |a: &str, b: &str| {
        let of = |name, range| format!("address-pool - {name} {{ ranges = [{range:?}] }}");
        file(&[&of("a", a), &of("b", b)])
    };
    apply(
        &site,
        &public("192.0.2.10-192.0.2.19", "192.0.2.20-192.0.2.29"),
        "",
    )
    .exits(0);
    apply(
        &site,
        &public("192.0.2.15-192.0.2.24", "192.0.2.10-192.0.2.14"),
        "",
    )
    .exits(0);
    apply(
        &site,
        &public("192.0.2.10-192.0.2.14", "192.0.2.15-192.0.2.24"),
        "",
    )
    .exits(0);
    let file = site.path("order.toml").display().to_string();
    site.run(&format!("diff -f {file}")).exits(0);
}

#[test]
fn objects_get_other_names() {
    let site = Site::start();
    let plan = |pool: &str| {
        format!("hardware-plan - small {{ vlan_pool = {pool:?}, networks_with_internet = 2 }}")
    };
    let (old, new) = (pool("old", "\"101-199\""), pool("new", "\"101-199\""));
    apply(&site, &file(&[HOST, &old, &plan("old")]), "").exits(0);
    apply(&site, &file(&[HOST, &new, &plan("new")]), " --prune").exits(0);
    site.run("vlan-pool get old").exits(3);
    let pool = site.run("vlan-pool get new --json").exits(0).json();
    assert_eq!(pool["spec"]["with_internet"][0], "101-199");

    // A subscription of the same plan, a mapping of the same networks, and a rule of a plan.
    let of_tenant = |subscription: &str, mapping: &str, rule: &str| {
        let network = format!("{subscription}-1");
        file(&[
            HOST,
            &new,
            &plan("new"),
            "address-pool - public { ranges = [\"192.0.2.10\"] }",
            "tenant - acme {}",
            &format!("subscription acme {subscription} {{ hardware_plan = \"small\" }}"),
            "address acme one { pool = \"public\" }",
            &format!(
                "network acme {network} {{ prefixes = [\"10.1.0.0/24\"], gateways = \
                 [\"10.1.0.1\"] }}"
            ),
            &format!("mapping acme {mapping} {{ production = \"LAN\", replica = {network:?} }}"),
            &format!(
                "rule acme {rule} {{ public_ip = \"192.0.2.10\", public_port = 443, internal_ip \
                 = \"10.1.0.9\" }}"
            ),
            &format!(
                "plan acme all {{ networks = [{{ name = {network:?} }}], vms = [{{ name = \"db\" \
                 }}], rules = [{rule:?}] }}"
            ),
        ])
    };
    apply(&site, &of_tenant("web", "lan", "https"), "").exits(0);
    apply(&site, &of_tenant("web", "office", "tls"), " --prune").exits(0);
    for (command, code) in [
        ("mapping get lan", 3),
        ("rule get https", 3),
        ("mapping get office", 0),
        ("rule get tls", 0),
    ] {
        site.run(&format!("{command} -t acme")).exits(code);
    }
    let all = site.run("plan get all -t acme --json").exits(0).json();
    assert_eq!(all["spec"]["rules"][0], "tls");
    let path = site.path("order.toml").display().to_string();
    site.run(&format!("apply -f {path} --prune"))
        .exits(0)
        .prints("0 changes");
    // Its networks are in use, and would be others: no part of it is made.
    let before = site.run("export").exits(0).out;
    apply(&site, &of_tenant("shop", "office", "tls"), " --prune")
        .exits(4)
        .says("so that none is made");
    assert_eq!(site.run("export").exits(0).out, before);
    // Without what uses them, it is another subscription in place of the first.
    let none = file(&[
        HOST,
        &new,
        &plan("new"),
        "tenant - acme {}",
        "subscription acme shop { hardware_plan = \"small\" }",
    ]);
    apply(&site, &none, " --prune").exits(0);
    let networks = site.run("network list -t acme").exits(0).out;
    assert!(
        networks.contains("shop-2") && !networks.contains("web"),
        "{networks}"
    );
}

#[test]
fn a_set_that_fails_halfway_says_what_is_made_and_goes_on() {
    let site = Site::start();
    let pool = pool("pool", "\"101-199\"");
    let text = file(&[
        HOST,
        &pool,
        "hardware-plan - small { vlan_pool = \"pool\", networks_with_internet = 1 }",
        "tenant - acme { enabled = false, limits = { objects = 0 } }",
        "subscription acme web { hardware_plan = \"small\" }",
        "mapping acme lan { production = \"LAN\", replica = \"web-1\" }",
    ]);
    *site.broken.lock().expect("no panic") = Some("/mappings");
    let failed = apply(&site, &text, "").exits(7);
    for line in [
        "create mapping acme/lan: the store cannot be used",
        "5 of 7 changes are made",
        "  made: create subscription acme/web",
        "  not made: create mapping acme/lan",
        "  not made: change tenant acme",
    ] {
        assert!(failed.error.contains(line), "{line}: {failed:#?}");
    }
    let failed = apply(&site, &text, " --json").exits(7);
    let problem: serde_json::Value = serde_json::from_str(&failed.error).expect("JSON");
    assert_eq!(problem["made"], serde_json::json!([]), "{problem}");
    assert_eq!(problem["not_made"][1], "change tenant acme", "{problem}");
    *site.broken.lock().expect("no panic") = None;
    apply(&site, &text, "")
        .exits(0)
        .prints("created mapping acme/lan\nchanged tenant acme\n2 changes");
    let tenant = site.run("tenant get acme --json").exits(0).json();
    assert_eq!(tenant["spec"]["enabled"], false);
    assert_eq!(tenant["spec"]["limits"]["objects"], 0);
    apply(&site, &text, "").exits(0).prints("0 changes");
    // A disabled tenant gets nothing new by a file, either.
    let more = text
        + "[[object]]\nkind = \"mapping\"\ntenant = \"acme\"\nname = \"dmz\"\n\
                       spec = { production = \"DMZ\", replica = \"web-1\" }\n";
    apply(&site, &more, "").exits(4).says("enable it first");
}

#[test]
fn a_set_with_changes_that_the_user_may_not_make_is_not_begun() {
    let site = Site::with_tenants();
    let password = "correct horse battery\n";
    site.typed("user create bob --role provider-operator", password)
        .exits(0);
    let ca = site.path("ca.pem").display().to_string();
    let server = format!("--server {} --ca {ca} --context bob", site.server);
    site.typed(&format!("{server} login --user bob"), password)
        .exits(0);
    // An operator subscribes tenants, and does not make infrastructure.
    let text = r#"
        [[object]]
        kind = "subscription"
        tenant = "acme"
        name = "web"
        spec = { hardware_plan = "small", public_addresses = 2 }

        [[object]]
        kind = "gateway"
        name = "gw1"
        spec = { addresses = ["203.0.113.1"] }"#;
    let path = site.write("more.toml", text).display().to_string();
    let refused = site.run(&format!("--context bob apply -f {path}"));
    refused.exits(5).says("(nothing is changed)");
    let web = site
        .run("subscription get web -t acme --json")
        .exits(0)
        .json();
    assert!(web["spec"]["public_addresses"].is_null(), "{web}");
    site.run(&format!("apply -f {path}")).exits(0);
}
