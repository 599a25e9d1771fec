//! Plans that are read, refused, compared and stored.

use proptest::prelude::*;

use super::*;
use crate::NetworkContext;

fn acme() -> TenantContext {
    let net = |text: &str| text.parse().expect("a prefix");
    let network = |name: &str, prefixes: &[&str], gateways: &[&str]| NetworkContext {
        name: name.to_owned(),
        prefixes: prefixes.iter().map(|text| net(text)).collect(),
        gateways: gateways
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect(),
        excluded: false,
    };
    TenantContext {
        name: "acme".to_owned(),
        allocation: vec![net("203.0.113.16/28"), net("2001:db8:f::/64")],
        nat_addresses: Vec::new(),
        reserved: Vec::new(),
        networks: vec![
            network(
                "web",
                &["10.1.0.0/24", "2001:db8:1::/64"],
                &["10.1.0.1", "fe80::1"],
            ),
            network("db", &["10.2.0.0/24"], &[]),
            network("lab", &["2001:db8:3::/64"], &[]),
        ],
        other_networks: vec!["hr".to_owned()],
    }
}

const HEAD: &str = "name = \"acme-dr\"\ntenant = \"acme\"\n";
const WEB: &str = "[[network]]\nname = \"web\"\n";
const DB: &str = "[[network]]\nname = \"db\"\ngateway = [\"10.2.0.1\"]\n";

fn parse(text: &str) -> Result<Plan, PlanErrors> {
    Plan::parse(text, &acme())
}

/// A plan of these tables.
fn plan(tables: &[&str]) -> Result<Plan, PlanErrors> {
    parse(&(HEAD.to_owned() + &tables.concat()))
}

fn refusals(result: Result<Plan, PlanErrors>) -> Vec<String> {
    let errors = result.expect_err("a refusal");
    let lines: Vec<String> = errors.to_string().lines().map(ToOwned::to_owned).collect();
    assert_eq!(lines.len(), errors.iter().count());
    lines
        .iter()
        .map(|line| {
            line.strip_prefix("plan: ")
                .expect("its beginning")
                .to_owned()
        })
        .collect()
}

fn rule(name: &str, port: u16, to: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\npublic_ip = \"203.0.113.20\"\npublic_port = {port}\n\
         internal_ip = \"{to}\"\n"
    )
}

#[test]
fn a_whole_plan_is_read() {
    let plan = parse(
        r#"
name = "acme-dr"
tenant = "acme"
description = "all of it"

[[network]]
name = "web"
gateway = ["10.1.0.254", "2001:db8:1::1"]
internet = true
router_advertisements = false

[[network]]
name = "db"
gateway = ["10.2.0.1"]

[[network]]
name = "lab"
gateway = ["fe80::2"]

[[allow]]
from = "web"
to = "db"

[[allow]]
from = "lab"
to = "web"
both = false

[[rule]]
name = "https"
public_ip = "203.0.113.20"
public_port = 443
internal_ip = "10.1.0.10"
"#,
    )
    .expect("a plan");
    assert_eq!(
        (plan.name(), plan.tenant(), plan.description()),
        ("acme-dr", "acme", "all of it")
    );
    let [web, db, lab] = plan.networks() else {
        panic!("{plan:?}");
    };
    let gateways = |network: &PlanNetwork| {
        let all: Vec<String> = network.gateways().map(|g| g.to_string()).collect();
        all.join(" ")
    };
    assert_eq!(gateways(web), "10.1.0.254 2001:db8:1::1");
    assert_eq!(web.gateway_v4(), Some(Ipv4Addr::new(10, 1, 0, 254)));
    assert!(web.internet() && !web.router_advertisements());
    assert_eq!((gateways(db).as_str(), db.gateway_v6()), ("10.2.0.1", None));
    assert!(!db.internet() && db.router_advertisements());
    assert_eq!((lab.name(), gateways(lab).as_str()), ("lab", "fe80::2"));
    assert_eq!(plan.network("db"), Some(db));
    assert_eq!(plan.network("hr"), None);
    for (from, to, allowed) in [
        ("web", "db", true),
        ("db", "web", true),
        ("lab", "web", true),
        ("web", "lab", false),
        ("db", "lab", false),
        ("web", "web", false),
    ] {
        assert_eq!(plan.allows(from, to), allowed, "{from} to {to}");
    }
    let [first, second] = plan.allow() else {
        panic!("{plan:?}");
    };
    assert!(first.both() && !second.both());
    assert_eq!((second.from(), second.to()), ("lab", "web"));
    assert_eq!(plan.rules().len(), 1);
    assert_eq!(plan.check(&acme()), Ok(()));
}

#[test]
fn omitted_gateways_are_the_configured_ones() {
    let first = plan(&[WEB]).expect("a plan");
    let web = first.network("web").expect("the network");
    assert_eq!(web.gateway_v4(), Some(Ipv4Addr::new(10, 1, 0, 1)));
    assert_eq!(
        web.gateway_v6().map(|g| g.to_string()),
        Some("fe80::1".to_owned())
    );
    // Only the written gateways exist: no IPv6 gateway, though there is an IPv6 prefix.
    let second = plan(&[WEB, "gateway = [\"10.1.0.2\"]\n"]).expect("a plan");
    let web = second.network("web").expect("the network");
    assert_eq!(
        web.gateways().collect::<Vec<_>>(),
        [IpAddr::from([10, 1, 0, 2])]
    );
    // A plan that is kept keeps them.
    let mut tenant = acme();
    tenant.networks[0].gateways = vec![IpAddr::from([10, 1, 0, 3])];
    assert_eq!(first.check(&tenant), Ok(()));
    let kept = serde_json::to_string(&first).expect("a value");
    assert_eq!(serde_json::from_str::<Plan>(&kept).ok(), Some(first));
}

#[test]
fn another_tenants_plan_is_refused() {
    let text = HEAD.replace("acme\"", "umbrella\"") + WEB + &rule("a", 80, "10.9.0.1");
    assert_eq!(
        refusals(parse(&text)),
        [
            "tenant: the plan is for tenant \"umbrella\" and was given for \"acme\": give it for \
             \"umbrella\", or write tenant = \"acme\""
        ]
    );
}

#[test]
fn networks_are_the_tenants_each_once_and_at_least_one() {
    assert_eq!(
        refusals(plan(&[])),
        [
            "network: the plan has none: write a [[network]] for each that fails over; the \
             tenant's networks are: web, db, lab"
        ]
    );
    assert_eq!(
        refusals(plan(&[
            WEB,
            "[[network]]\nname = \"wbe\"\n",
            "[[network]]\nname = \"hr\"\n",
            WEB
        ])),
        [
            "network \"wbe\": does not exist; tenant \"acme\"'s networks are: web, db, lab",
            "network \"hr\": belongs to another tenant: remove it; tenant \"acme\"'s networks are: \
             web, db, lab",
            "network \"web\": is in the plan twice: remove one of the two",
        ]
    );
}

#[test]
fn a_gateway_is_an_address_of_its_network() {
    let write = "write the address that the network's machines use as their router";
    for (gateway, message) in [
        (
            "[\"10.1.0\"]",
            "\"10.1.0\" is not an address: write an address without a length, such as 10.1.0.1"
                .to_owned(),
        ),
        (
            "[\"10.1.0.1/24\"]",
            "\"10.1.0.1/24\" is not an address: write an address without a length, such as 10.1.0.1"
                .to_owned(),
        ),
        (
            "[\"10.2.0.1\"]",
            format!("10.2.0.1 is in none of the network's prefixes, 10.1.0.0/24, 2001:db8:1::/64: \
                {write}"),
        ),
        (
            "[\"2001:db8:2::1\"]",
            format!("2001:db8:2::1 is in none of the network's prefixes, 10.1.0.0/24, \
                2001:db8:1::/64: {write}"),
        ),
        (
            "[\"10.1.0.0\"]",
            format!("10.1.0.0 is the network or broadcast address of 10.1.0.0/24: {write}"),
        ),
        (
            "[\"10.1.0.255\"]",
            format!("10.1.0.255 is the network or broadcast address of 10.1.0.0/24: {write}"),
        ),
        (
            "[\"169.254.0.1\"]",
            format!("169.254.0.1 is not a host address: {write}"),
        ),
        (
            "[\"ff02::1\"]",
            format!("ff02::1 is not a host address: {write}"),
        ),
        (
            "[\"10.1.0.1\", \"10.1.0.2\"]",
            "10.1.0.1 and 10.1.0.2 are of one address family: write at most one IPv4 and one IPv6 \
             address"
                .to_owned(),
        ),
        (
            "[\"fe80::1\", \"2001:db8:1::1\"]",
            "fe80::1 and 2001:db8:1::1 are of one address family: write at most one IPv4 and one \
             IPv6 address"
                .to_owned(),
        ),
        (
            "[]",
            format!("the network has none: {write}, such as gateway = [\"10.1.0.1\"], or omit the \
                key to use the configured gateway"),
        ),
    ] {
        assert_eq!(
            refusals(plan(&[WEB, "gateway = ", gateway, "\n"])),
            [format!("network \"web\": gateway: {message}")],
            "{gateway}"
        );
    }
    for gateway in ["[\"fe80::1\"]", "[\"10.1.0.1\"]", "[\"2001:db8:1::1\"]"] {
        assert!(
            plan(&[WEB, "gateway = ", gateway, "\n"]).is_ok(),
            "{gateway}"
        );
    }
}

#[test]
fn a_network_without_any_gateway_is_refused() {
    let write =
        "the network has none: write the address that the network's machines use as their router";
    assert_eq!(
        refusals(plan(&[
            "[[network]]\nname = \"db\"\n",
            "[[network]]\nname = \"lab\"\ngateway = []\n"
        ])),
        [
            format!(
                "network \"db\": gateway: {write}, such as gateway = [\"10.2.0.1\"], because none \
                 is configured either"
            ),
            format!("network \"lab\": gateway: {write}, such as gateway = [\"2001:db8:3::1\"]"),
        ]
    );
}

#[test]
fn routing_is_between_two_networks_of_the_plan_and_reported_once() {
    let allow = |from: &str, to: &str, more: &str| {
        format!("[[allow]]\nfrom = \"{from}\"\nto = \"{to}\"\n{more}")
    };
    for (tables, message) in [
        (
            vec![allow("web", "lab", "")],
            "allow \"web\" to \"lab\": to: network \"lab\" is not in the plan: add a [[network]] \
             with name = \"lab\", or use one of its networks: web, db",
        ),
        (
            vec![allow("hr", "web", "")],
            "allow \"hr\" to \"web\": from: network \"hr\" is not in the plan: add a [[network]] \
             with name = \"hr\", or use one of its networks: web, db",
        ),
        (
            vec![allow("web", "web", "")],
            "allow \"web\" to \"web\": machines of one network reach each other without it: remove \
             it",
        ),
        (
            vec![allow("web", "db", ""), allow("web", "db", "both = false\n")],
            "allow \"web\" to \"db\": is covered by allow \"web\" to \"db\": remove one of the two",
        ),
        (
            vec![allow("web", "db", ""), allow("db", "web", "")],
            "allow \"db\" to \"web\": is covered by allow \"web\" to \"db\", which has both = \
             true: remove one of the two",
        ),
        (
            vec![allow("web", "db", "both = false\n"), allow("db", "web", "")],
            "allow \"db\" to \"web\": is covered by allow \"web\" to \"db\": remove one of the two",
        ),
    ] {
        let mut all = vec![WEB, DB];
        all.extend(tables.iter().map(String::as_str));
        assert_eq!(refusals(plan(&all)), [message]);
    }
    let one = allow("web", "db", "both = false\n");
    let back = allow("db", "web", "both = false\n");
    let plan = plan(&[WEB, DB, &one, &back]).expect("a plan");
    assert!(plan.allows("web", "db") && plan.allows("db", "web"));
}

#[test]
fn a_rule_leads_to_a_machine_of_a_network_of_the_plan() {
    assert_eq!(
        refusals(plan(&[
            WEB,
            "gateway = [\"10.1.0.7\"]\n",
            &rule("a", 80, "10.2.0.10"),
            &rule("b", 81, "10.1.0.7"),
            &rule("c", 82, "10.9.0.1"),
            &rule("d", 83, "10.1.0.255"),
            &rule("e", 22, "10.1.0.10"),
            &rule("f", 84, "10.1.0.1"),
            &rule("g", 84, "10.1.0.10"),
            &rule("g", 85, "10.1.0.10"),
            &rule("h", 86, "10.1.0.10").replace("203.0.113.20", "198.51.100.1"),
        ])),
        [
            "rule \"e\": public_port: 22 is refused: it is reserved for managing the appliance; \
             use another public port, such as 2222, with internal_port = 22 to reach port 22 of \
             the machine",
            "rule \"a\": internal_ip: 10.2.0.10 is in network \"db\", which is not in the plan: \
             add a [[network]] with name = \"db\" to the plan, or use a machine in one of its \
             networks",
            "rule \"b\": internal_ip: 10.1.0.7 is the gateway of network \"web\", which the \
             appliance itself is during a full failover: use the address of a machine",
            "rule \"c\": internal_ip: 10.9.0.1 is in no network of tenant \"acme\"; its networks \
             are: web (10.1.0.0/24, 2001:db8:1::/64), db (10.2.0.0/24), lab (2001:db8:3::/64)",
            "rule \"d\": internal_ip: 10.1.0.255 is the network or broadcast address of \
             10.1.0.0/24 in network \"web\": use the address of a machine",
            "rule \"g\": 203.0.113.20 tcp 84 is already used by rule \"f\" (203.0.113.20:84/tcp -> \
             10.1.0.1:84): change one of the two",
            "rule \"g\": a rule of this name exists already: 203.0.113.20:84/tcp -> 10.1.0.10:84; \
             remove it first, or use another name",
            "rule \"h\": public_ip: 198.51.100.1 is not one of tenant \"acme\"'s public addresses: \
             203.0.113.16/28, 2001:db8:f::/64",
        ]
    );
    // The configuration's gateway is a machine like others where the plan's is another.
    let moved = [
        WEB,
        "gateway = [\"10.1.0.7\"]\n",
        &rule("a", 80, "10.1.0.1"),
    ];
    assert!(plan(&moved).is_ok());
    let kept = [WEB, &rule("a", 80, "10.1.0.1")];
    assert_eq!(
        refusals(plan(&kept)),
        [
            "rule \"a\": internal_ip: 10.1.0.1 is the gateway of network \"web\", which the \
             appliance itself is during a full failover: use the address of a machine"
        ]
    );
}

#[test]
fn name_and_description_are_on_one_line() {
    for name in ["", "Acme", "a b", &"x".repeat(65)] {
        assert_eq!(
            refusals(parse(&(HEAD.replace("acme-dr", name) + WEB))),
            [format!(
                "name: {name:?}: write 1 to 64 characters of a to z, 0 to 9, '.', '_' and '-'"
            )]
        );
    }
    assert_eq!(
        refusals(plan(&["description = \"two\\nlines\"\n", WEB])),
        ["description: write at most 256 characters, on one line"]
    );
}

#[test]
fn invalid_toml_is_reported_with_its_line() {
    for (text, at) in [
        ("name = \"a\"\ntenant = acme\n", "line 2: "),
        ("name = \"a\"\n\n[[network]\n", "line 3: "),
        ("name = \"a\"\nname = \"b\"\n", "line 2: duplicate key"),
        ("name = \"a", "line 1: "),
    ] {
        let told = refusals(parse(text));
        assert!(told.len() == 1 && told[0].starts_with(at), "{told:?}");
    }
}

#[test]
fn an_unknown_key_is_reported_with_its_line_and_hides_no_other_problem() {
    assert_eq!(
        refusals(parse(
            "nmae = \"acme-dr\"\ntenant = \"acme\"\n[[network]]\nname = \"web\"\n\
             gateways = [\"10.1.0.1\"]\n[[network]]\nname = \"db\"\ninternet = \"yes\"\n\
             [[network]]\nname = \"lba\"\n[[allow]]\nfrom = \"web\"\nto = \"db\"\nback = true\n\
             [[allow]]\nfrom = \"web\"\n[[allow]]\nfrom = \"db\"\nto = \"web\"\n[[rule]]\n\
             name = \"https\"\npublic_ip = \"203.0.113\"\npublic_port = 443\n\
             internal_ip = \"10.1.0.10\"\n[[rule]]\nname = \"mail\"\n\
             public_ip = \"203.0.113.20\"\npublic_port = 70000\ninternal_ip = \"10.1.0.10\"\n\
             [[rule]]\npublic_ip = \"203.0.113.20\"\none_to_one = true\n\
             internal_ip = \"10.1.0.10\"\n[[rule]]\nname = \"both\"\n\
             public_ip = \"203.0.113.20\"\none_to_one = true\ninternal_ip = \"2001:db8:1::10\"\n\
             [[rule]]\nname = \"good\"\npublic_ip = \"203.0.113.20\"\none_to_one = true\n\
             internal_ip = \"10.2.0.10\"\n"
        )),
        [
            "line 1: unknown field `nmae`, expected one of `name`, `tenant`, `description`, \
             `network`, `allow`, `rule`",
            "network \"web\": line 5: unknown field `gateways`, expected one of `name`, `gateway`, \
             `internet`, `router_advertisements`",
            "network \"db\": line 8: internet: invalid type: string \"yes\", expected a boolean",
            "allow \"web\" to \"db\": line 14: unknown field `back`, expected one of `from`, `to`, \
             `both`",
            "allow: line 15: missing field `to`",
            "rule \"https\": line 22: public_ip: \"203.0.113\" is not an address: write an address \
             such as 203.0.113.20 or 2001:db8::1",
            "rule \"mail\": line 28: public_port: \"70000\" is not a port: write a port such as \
             443 or a range such as 8000-8100, from 1 to 65535",
            "rule: line 30: missing field `name`",
            "rule \"both\": public_ip 203.0.113.20 and internal_ip 2001:db8:1::10 are of different \
             address families: write two IPv4 or two IPv6 addresses",
            "network \"lba\": does not exist; tenant \"acme\"'s networks are: web, db, lab",
        ]
    );
    for (table, message) in [
        (
            "[network]\nname = \"web\"\n",
            "network: line 3: write [[network]], in double brackets: there may be more than one",
        ),
        (
            "network = [5]\n",
            "network: line 3: invalid type: integer `5`, expected a table, such as [[network]]",
        ),
    ] {
        assert_eq!(refusals(plan(&[table])), [message]);
    }
}

#[test]
fn quoted_text_stays_on_its_line() {
    assert_eq!(
        refusals(plan(&[
            "\"a\\nb\\u0007\" = 1\n",
            WEB,
            "[[network]]\nname = \"x\\ny\"\n"
        ])),
        [
            "line 3: unknown field `a b?`, expected one of `name`, `tenant`, `description`, \
             `network`, `allow`, `rule`",
            "network \"x\\ny\": does not exist; tenant \"acme\"'s networks are: web, db, lab",
        ]
    );
}

#[test]
fn rules_are_checked_against_the_plans_gateways_and_networks() {
    let before = plan(&[
        WEB,
        "gateway = [\"10.1.0.7\"]\n",
        &rule("a", 80, "10.1.0.10"),
    ])
    .expect("a plan");
    let line = |name: &str, line: &str| Rule::from_line(name, line).expect("a rule");
    let refused = before.apply(
        &acme(),
        vec![
            RuleChange::Add(line("b", "203.0.113.20:81/tcp -> 10.1.0.7")),
            RuleChange::Add(line("c", "203.0.113.20:82/tcp -> 10.2.0.10")),
        ],
    );
    let problems = refused.expect_err("a refusal");
    assert!(
        problems[0]
            .message
            .contains("is the gateway of network \"web\"")
    );
    assert!(problems[1].message.contains("which is not in the plan"));
    let add = RuleChange::Add(line("b", "203.0.113.20:81/tcp -> 10.1.0.1"));
    let after = before.apply(&acme(), vec![add]).expect("a change");
    assert_eq!((before.rules().len(), after.rules().len()), (1, 2));
    assert_eq!(after.check(&acme()), Ok(()));
    assert_eq!(after.with_rules(before.rules().clone()), before);
}

#[test]
fn every_difference_of_two_plans_has_a_line() {
    let old = plan(&[
        "description = \"one\"\n",
        WEB,
        DB,
        "[[allow]]\nfrom = \"db\"\nto = \"web\"\n",
        &rule("a", 80, "10.1.0.10"),
        &rule("b", 81, "10.1.0.10"),
    ])
    .expect("a plan");
    let new = plan(&[
        "description = \"two\"\n",
        WEB,
        "gateway = [\"10.1.0.7\"]\ninternet = true\n",
        "[[network]]\nname = \"lab\"\ngateway = [\"2001:db8:3::1\"]\n\
         router_advertisements = false\n",
        DB,
        "[[allow]]\nfrom = \"web\"\nto = \"db\"\nboth = false\n",
        &rule("b", 81, "10.1.0.10"),
        "allow = [\"198.51.100.0/24\"]\ndescription = \"the shop\"\n",
        &rule("c", 82, "10.2.0.10"),
    ])
    .expect("a plan");
    assert_eq!(
        old.diff(&new),
        [
            "description: changed",
            "network \"lab\": added: gateway 2001:db8:3::1, no internet, no router advertisements",
            "network \"web\": changed: gateway 10.1.0.7, internet, router advertisements, was \
             gateway 10.1.0.1 and fe80::1, no internet, router advertisements",
            "allow \"db\" to \"web\": removed",
            "rule \"a\": removed: 203.0.113.20:80/tcp -> 10.1.0.10:80",
            "rule \"b\": changed: 203.0.113.20:81/tcp -> 10.1.0.10:81 for 198.51.100.0/24 (the \
             shop), was 203.0.113.20:81/tcp -> 10.1.0.10:81",
            "rule \"c\": added: 203.0.113.20:82/tcp -> 10.2.0.10:82",
        ]
    );
    let back = new.diff(&old);
    assert_eq!(back.len(), 7);
    assert!(
        back.contains(&"allow \"db\" to \"web\": added".to_owned())
            && back.contains(&"rule \"a\": added: 203.0.113.20:80/tcp -> 10.1.0.10:80".to_owned()),
        "{back:?}"
    );
    // Written otherwise, and the same.
    let allow = |from: &str, to: &str, both: bool| {
        format!("[[allow]]\nfrom = \"{from}\"\nto = \"{to}\"\nboth = {both}\n")
    };
    let one = plan(&[WEB, DB, &allow("db", "web", true)]).expect("a plan");
    let other = [allow("db", "web", false), allow("web", "db", false)].concat();
    let other = plan(&[DB, WEB, &other]).expect("a plan");
    assert_ne!(one, other);
    assert_eq!(one.diff(&other), Vec::<String>::new());
}

#[test]
fn a_stored_plan_is_checked_again() {
    let kept = plan(&[WEB, DB, &rule("a", 80, "10.1.0.10")]).expect("a plan");
    let mut tenant = acme();
    tenant.networks.remove(1);
    tenant.networks[0].prefixes.remove(1);
    tenant.allocation.clear();
    let errors = kept.check(&tenant).expect_err("a refusal");
    assert_eq!(
        errors.to_string(),
        "plan: network \"db\": does not exist; tenant \"acme\"'s networks are: web, lab\nplan: \
         rule \"a\": public_ip: 203.0.113.20 is not one of tenant \"acme\"'s public addresses: \
         none"
    );
    let json = serde_json::to_string(&kept).expect("a value");
    for (from, to, message) in [
        (
            "\"gateway\":[\"10.2.0.1\"],",
            "",
            "plan: network \"db\": gateway: the network has none",
        ),
        (
            "10.2.0.1",
            "127.0.0.1",
            "plan: network \"db\": gateway: 127.0.0.1 is not a host address",
        ),
        (
            "\"name\":\"db\"",
            "\"name\":\"web\"",
            "plan: network \"web\": is in the plan twice",
        ),
        (
            "\"name\":\"acme-dr\"",
            "\"name\":\"\"",
            "plan: name: \"\": write 1 to 64",
        ),
        (
            "\"public_port\":80",
            "\"public_port\":22",
            "rule \"a\": public_port: 22 is refused",
        ),
        ("\"internet\"", "\"intranet\"", "unknown field `intranet`"),
    ] {
        assert!(json.contains(from), "{json}");
        let error = serde_json::from_str::<Plan>(&json.replace(from, to))
            .expect_err("a refusal")
            .to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

prop_compose! {
    /// The text of a plan, which may name a network that is not in it, or lead a rule to its
    /// gateway.
    fn texts()(
        web in 1u8..=20, db in 1u8..=254, flags: [bool; 6],
        machines in proptest::collection::vec(1u8..=20, 0..6),
        description in "[ -~]{0,20}",
    ) -> String {
        let [six, internet, advertise, second, allow, both] = flags;
        let gateway = if six {
            format!("10.1.0.{web}\", \"2001:db8:1::{web:x}")
        } else {
            format!("10.1.0.{web}")
        };
        let description = toml::Value::String(description);
        let mut text = format!(
            "{HEAD}description = {description}\n{WEB}gateway = [\"{gateway}\"]\n\
             internet = {internet}\nrouter_advertisements = {advertise}\n"
        );
        if second {
            text += &format!("[[network]]\nname = \"db\"\ngateway = [\"10.2.0.{db}\"]\n");
        }
        if allow {
            text += &format!("[[allow]]\nfrom = \"db\"\nto = \"web\"\nboth = {both}\n");
        }
        for (place, machine) in machines.into_iter().enumerate() {
            text += &rule(&format!("r{place}"), 1000 + place as u16, &format!("10.1.0.{machine}"));
        }
        text
    }
}

proptest! {
    #[test]
    fn file_and_state_restore_the_plan(text in texts()) {
        let Ok(plan) = parse(&text) else {
            return Ok(());
        };
        let json = serde_json::to_string(&plan).expect("a value");
        prop_assert_eq!(serde_json::from_str::<Plan>(&json).ok(), Some(plan.clone()));
        let toml = toml::to_string(&plan).expect("a table");
        prop_assert_eq!(parse(&toml), Ok(plan.clone()));
        prop_assert_eq!(plan.check(&acme()), Ok(()));
        prop_assert!(plan.networks().iter().all(|network| network.gateways().count() > 0));
        for rule in plan.rules().iter() {
            let internal = rule.internal_ip();
            prop_assert!(plan.networks().iter().all(|n| n.gateways().all(|g| g != internal)));
        }
    }

    #[test]
    fn only_equal_plans_have_no_difference(one in texts(), other in texts()) {
        let (Ok(one), Ok(other)) = (parse(&one), parse(&other)) else {
            return Ok(());
        };
        let lines = one.diff(&other);
        prop_assert_eq!(lines.is_empty(), one == other, "{:?}", lines);
        prop_assert!(lines.iter().all(|line| !line.contains('\n')));
        prop_assert_eq!(other.diff(&one).len(), lines.len());
        prop_assert!(one.diff(&one).is_empty());
    }

    #[test]
    fn a_plan_is_accepted_if_and_only_if_it_has_no_problem(text in texts()) {
        let allow_without = text.contains("[[allow]]") && !text.contains("\"db\"\ngateway");
        let web = text.split("gateway = [\"").nth(1).and_then(|rest| rest.split('"').next());
        let to_gateway =
            web.is_some_and(|web| text.contains(&format!("internal_ip = \"{web}\"\n")));
        prop_assert_eq!(parse(&text).is_ok(), !allow_without && !to_gateway, "{}", text);
    }

    #[test]
    fn no_text_panics_and_every_problem_is_a_line(
        text: String,
        at in 0usize..400,
        good in texts(),
    ) {
        let at = (0..=at.min(good.len())).rev().find(|at| good.is_char_boundary(*at)).unwrap_or(0);
        let inside = format!("{}{text}{}", &good[..at], &good[at..]);
        for text in [text.clone(), inside, good[..at].to_owned()] {
            if let Err(errors) = parse(&text) {
                let lines = errors.to_string();
                prop_assert!(errors.iter().count() > 0);
                prop_assert_eq!(lines.lines().count(), errors.iter().count(), "{}", lines);
                prop_assert!(lines.lines().all(|line| line.starts_with("plan: ")), "{}", lines);
            }
        }
    }
}
