//! Sets of rules: problems for a tenant, overlaps, and changes.

use proptest::prelude::*;

use super::{check::MAX_REPORTED, *};
use crate::{MANAGEMENT_PORT, PortRange, Protocol};

fn acme() -> TenantContext {
    let net = |text: &str| text.parse().expect("a prefix");
    TenantContext {
        name: "acme".to_owned(),
        allocation: vec![net("203.0.113.16/28"), net("2001:db8:f::/64")],
        nat_addresses: vec!["203.0.113.16".parse().expect("an address")],
        reserved: Vec::new(),
        networks: vec![
            NetworkContext {
                name: "net1".to_owned(),
                prefixes: vec![net("10.1.0.0/24"), net("2001:db8:1::/64")],
                gateways: vec!["10.1.0.1".parse().expect("an address")],
                excluded: false,
            },
            NetworkContext {
                name: "net2".to_owned(),
                prefixes: vec![net("10.2.0.0/24")],
                ..NetworkContext::default()
            },
        ],
        other_networks: Vec::new(),
    }
}

fn rule(name: &str, line: &str) -> Rule {
    Rule::from_line(name, line).expect("a rule")
}

fn set(rules: &[(&str, &str)]) -> Result<RuleSet, Vec<RuleProblem>> {
    RuleSet::new(
        &acme(),
        rules.iter().map(|(name, line)| rule(name, line)).collect(),
    )
}

fn messages(result: Result<RuleSet, Vec<RuleProblem>>) -> Vec<String> {
    result
        .expect_err("to be refused")
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn addresses_of_others_are_refused_and_every_problem_is_reported() {
    assert_eq!(
        messages(set(&[
            ("a", "198.51.100.9:80/tcp -> 10.9.0.1"),
            ("b", "203.0.113.20:80/tcp -> 10.1.0.1"),
            ("c", "203.0.113.21:80/tcp -> 10.1.0.255"),
            ("d", "203.0.113.22:80/tcp -> 10.2.0.0"),
        ])),
        [
            "rule \"a\": internal_ip: 10.9.0.1 is in no network of tenant \"acme\"; its networks \
             are: net1 (10.1.0.0/24, 2001:db8:1::/64), net2 (10.2.0.0/24)",
            "rule \"a\": public_ip: 198.51.100.9 is not one of tenant \"acme\"'s public addresses: \
             203.0.113.16/28, 2001:db8:f::/64",
            "rule \"b\": internal_ip: 10.1.0.1 is the gateway of network \"net1\", which the \
             appliance itself is during a full failover: use the address of a machine",
            "rule \"c\": internal_ip: 10.1.0.255 is the network or broadcast address of \
             10.1.0.0/24 in network \"net1\": use the address of a machine",
            "rule \"d\": internal_ip: 10.2.0.0 is the network or broadcast address of 10.2.0.0/24 \
             in network \"net2\": use the address of a machine",
        ]
    );
}

#[test]
fn no_rule_leads_to_a_network_outside_of_the_plan() {
    let mut tenant = acme();
    tenant.networks[1].excluded = true;
    let inside = rule("a", "203.0.113.20:80/tcp -> 10.1.0.10");
    let excluded = rule("b", "203.0.113.21:80/tcp -> 10.2.0.10");
    assert_eq!(
        messages(RuleSet::new(&tenant, vec![inside, excluded])),
        [
            "rule \"b\": internal_ip: 10.2.0.10 is in network \"net2\", which is not in the plan: \
             add a [[network]] with name = \"net2\" to the plan, or use a machine in one of its \
             networks"
        ]
    );
}

#[test]
fn an_overlap_names_the_other_rule_and_what_both_claim() {
    for (a, b, what) in [
        (
            "203.0.113.20:443/tcp -> 10.1.0.10",
            "203.0.113.20:443/tcp -> 10.1.0.11",
            "203.0.113.20 tcp 443",
        ),
        (
            "203.0.113.20:80-90/tcp -> 10.1.0.10",
            "203.0.113.20:85-99/both -> 10.1.0.11",
            "203.0.113.20 tcp 85-90",
        ),
        (
            "203.0.113.20:53/both -> 10.1.0.10",
            "203.0.113.20:50-60/both -> 10.1.0.11",
            "203.0.113.20 tcp and udp 53",
        ),
        (
            "203.0.113.20 -> 10.1.0.10",
            "203.0.113.20:443/udp -> 10.1.0.11",
            "203.0.113.20 udp 443",
        ),
        (
            "203.0.113.20 -> 10.1.0.10",
            "203.0.113.20 -> 10.1.0.11",
            "203.0.113.20",
        ),
        (
            "[2001:db8:f::1]:443/tcp -> 2001:db8:1::10",
            "[2001:db8:f::1]:1-21/tcp -> 2001:db8:1::11",
            "",
        ),
    ] {
        let result = set(&[("a", a), ("b", b)]);
        if what.is_empty() {
            assert!(result.is_ok());
            continue;
        }
        let a = rule("a", a);
        assert_eq!(
            messages(result),
            [format!(
                "rule \"b\": {what} is already used by rule \"a\" ({a}): change one of the two"
            )]
        );
    }
    let apart = [
        ("a", "203.0.113.20:443/tcp -> 10.1.0.10"),
        ("b", "203.0.113.20:443/udp -> 10.1.0.10"),
        ("c", "203.0.113.21:443/tcp -> 10.1.0.10"),
        ("d", "203.0.113.20:444/tcp -> 10.1.0.10:443"),
    ];
    assert_eq!(set(&apart).map(|set| set.len()), Ok(4));
}

#[test]
fn a_nat_address_cannot_be_mapped_one_to_one() {
    assert_eq!(
        messages(set(&[("whole", "203.0.113.16 -> 10.1.0.10")])),
        [
            "rule \"whole\": public_ip: 203.0.113.16 is the source address of tenant \"acme\"'s \
             internet access (nat) and cannot be mapped 1:1: use another public address, or \
             forward ports of this one"
        ]
    );
    assert!(set(&[("web", "203.0.113.16:443/tcp -> 10.1.0.10")]).is_ok());
}

#[test]
fn a_machine_has_one_one_to_one_address() {
    let (one, two) = ("203.0.113.20 -> 10.1.0.10", "203.0.113.21 -> 10.1.0.10");
    let problem = |rule: &str, has: &str, other: &str, line: &str| {
        format!(
            "rule {rule:?}: internal_ip: 10.1.0.10 is mapped 1:1 to {has} already by rule \
             {other:?} ({line}), and a machine has one such address: use another machine, forward \
             ports instead, or remove rule {other:?}"
        )
    };
    assert_eq!(
        messages(set(&[("a", one), ("b", two)])),
        [problem("b", "203.0.113.20", "a", one)]
    );
    // The one that is there has it, whatever the names.
    let there = set(&[("m", one)]).expect("a set");
    let more = |name: &str| there.apply(&acme(), vec![RuleChange::Add(rule(name, two))]);
    assert_eq!(
        messages(more("a")),
        [problem("a", "203.0.113.20", "m", one)]
    );
    // Ports, another machine, and the same machine's other family are no second one.
    assert!(
        set(&[
            ("a", one),
            ("b", "203.0.113.21:443/tcp -> 10.1.0.10"),
            ("c", "203.0.113.22 -> 10.1.0.11"),
            ("d", "2001:db8:f::1 -> 2001:db8:1::10"),
        ])
        .is_ok()
    );
    let moved = vec![
        RuleChange::Remove("m".to_owned()),
        RuleChange::Add(rule("n", two)),
    ];
    assert!(there.apply(&acme(), moved).is_ok());
}

#[test]
fn no_rule_uses_a_reserved_address() {
    let mut tenant = acme();
    tenant.reserved = vec![ReservedAddress {
        address: "203.0.113.17".parse().expect("an address"),
        owner: "the router behind eth0".to_owned(),
    }];
    let web = rule("web", "203.0.113.17:443/tcp -> 10.1.0.10");
    assert_eq!(
        messages(RuleSet::new(&tenant, vec![web])),
        [
            "rule \"web\": public_ip: 203.0.113.17 is the router behind eth0, which no rule may \
             use: use another of tenant \"acme\"'s public addresses"
        ]
    );
}

#[test]
fn rules_that_the_tenant_may_no_longer_have_are_inactive() {
    let lines = [
        ("a", "203.0.113.17:443/tcp -> 10.1.0.10"),
        ("b", "203.0.113.18:443/tcp -> 10.1.0.10"),
        ("c", "203.0.113.19 -> 10.1.0.11"),
        ("d", "203.0.113.30:443/tcp -> 10.1.0.10"),
        ("e", "203.0.113.20 -> 10.1.0.11"),
    ];
    let rules: Vec<Rule> = lines.iter().map(|(n, line)| rule(n, line)).collect();
    // As stored: the machine is not checked there.
    let set = RuleSet::for_any_tenant(rules).expect("no overlap");
    let mut tenant = acme();
    tenant.allocation = vec!["203.0.113.16/29".parse().expect("a prefix")];
    tenant.reserved = vec![ReservedAddress {
        address: "203.0.113.17".parse().expect("an address"),
        owner: "the router behind eth0".to_owned(),
    }];
    let (there, not) = set.active_rules(&tenant);
    let names: Vec<&str> = there.iter().map(|r| r.name()).collect();
    assert_eq!(names, ["b", "c"]);
    let told: Vec<(&str, &str)> = not
        .iter()
        .map(|p| {
            (
                p.rule.as_str(),
                &p.message[..p.message.find(':').expect("where")],
            )
        })
        .collect();
    assert_eq!(
        told,
        [("a", "public_ip"), ("d", "public_ip"), ("e", "internal_ip")]
    );
    assert!(not[2].message.contains("by rule \"c\""), "{not:?}");
}

#[test]
fn a_change_is_done_whole_or_not_at_all() {
    let before = set(&[
        ("web", "203.0.113.20:443/tcp -> 10.1.0.10"),
        ("mail", "203.0.113.20:25/tcp -> 10.1.0.11"),
    ])
    .expect("a set");
    let kept = before.clone();
    let refused = before.apply(
        &acme(),
        vec![
            RuleChange::Add(rule("good", "203.0.113.20:80/tcp -> 10.1.0.10")),
            RuleChange::Add(rule("web", "203.0.113.21:443/tcp -> 10.1.0.10")),
            RuleChange::Remove("wbe".to_owned()),
            RuleChange::Replace(rule("nail", "203.0.113.20:26/tcp -> 10.1.0.10")),
        ],
    );
    assert_eq!(
        messages(refused),
        [
            "rule \"nail\": there is no rule of this name; the rules are: mail, web",
            "rule \"wbe\": there is no rule of this name; the rules are: mail, web",
            "rule \"web\": a rule of this name exists already: 203.0.113.20:443/tcp -> \
             10.1.0.10:443; remove it first, or use another name",
        ]
    );
    assert_eq!(before, kept);
    // Ports that one step leaves, another may take.
    let after = before
        .apply(
            &acme(),
            vec![
                RuleChange::Add(rule("shop", "203.0.113.20:443/tcp -> 10.1.0.12")),
                RuleChange::Remove("web".to_owned()),
                RuleChange::Replace(rule("mail", "203.0.113.20:25/tcp -> 10.1.0.13")),
            ],
        )
        .expect("a change");
    let names: Vec<&str> = after.iter().map(Rule::name).collect();
    assert_eq!(names, ["mail", "shop"]);
    assert!(after.get("web").is_none() && !after.is_empty());
    assert_eq!(
        messages(RuleSet::default().apply(&acme(), vec![RuleChange::Remove("x".to_owned())])),
        ["rule \"x\": there is no rule of this name, and there are no others"]
    );
    let twice = vec![
        RuleChange::Remove("web".to_owned()),
        RuleChange::Remove("web".to_owned()),
    ];
    assert_eq!(
        messages(before.apply(&acme(), twice)),
        ["rule \"web\": is named twice in one change: name it once"]
    );
}

prop_compose! {
    fn some_rules()(
        specs in proptest::collection::vec((0u8..3, 1u16..40, 0u16..6, 0usize..5, 0u8..2), 1..8)
    ) -> Vec<Option<Rule>> {
        specs
            .into_iter()
            .enumerate()
            .map(|(at, (ip, first, more, what, machine))| {
                let target = match what {
                    0..=2 => RuleTarget::Ports {
                        public: PortRange::new(first, first + more).expect("a range"),
                        internal: first,
                        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Both][what],
                    },
                    _ => RuleTarget::OneToOne,
                };
                let public = IpAddr::from([203, 0, 113, [16, 20, 21][usize::from(ip)]]);
                let internal = IpAddr::from([10, 1, 0, 10 + machine]);
                Rule::new(&format!("r{at}"), public, internal, target, Vec::new(), "").ok()
            })
            .collect()
    }
}

/// Every (address, protocol, port) that a rule claims, one by one; where it gives a machine an
/// address to itself both of them, too, as protocol and port zero.
fn claims(rule: &Rule) -> Vec<(IpAddr, u8, u16)> {
    let protocols: &[u8] = match rule.target() {
        RuleTarget::Ports {
            protocol: Protocol::Tcp,
            ..
        } => &[6],
        RuleTarget::Ports {
            protocol: Protocol::Udp,
            ..
        } => &[17],
        RuleTarget::Ports {
            protocol: Protocol::Both,
            ..
        }
        | RuleTarget::OneToOne => &[6, 17],
    };
    let ports: Vec<u16> = match rule.target() {
        RuleTarget::Ports { public, .. } => (public.first()..=public.last()).collect(),
        RuleTarget::OneToOne => (1..60).filter(|port| *port != MANAGEMENT_PORT).collect(),
    };
    let whole = [(rule.public_ip(), 0, 0), (rule.internal_ip(), 0, 0)];
    let whole = whole
        .into_iter()
        .filter(|_| rule.target() == RuleTarget::OneToOne);
    protocols
        .iter()
        .flat_map(|protocol| {
            ports
                .iter()
                .map(|port| (rule.public_ip(), *protocol, *port))
        })
        .chain(whole)
        .collect()
}

#[test]
fn thousands_of_rules_are_checked_in_one_pass() {
    // Quadratic or worse, this would not end today.
    let rule = |n: u16, port: u16| {
        let target = RuleTarget::Ports {
            public: PortRange::one(port).expect("a port"),
            internal: port,
            protocol: Protocol::Tcp,
        };
        let (public, internal) = ("203.0.113.20", "10.1.0.10");
        Rule::new(
            &format!("r{n}"),
            public.parse().expect("an address"),
            internal.parse().expect("an address"),
            target,
            Vec::new(),
            "",
        )
        .expect("a rule")
    };
    let all: Vec<Rule> = (0..16_000).map(|n| rule(n, 1000 + n)).collect();
    let set = RuleSet::new(&acme(), all).expect("none overlaps");
    assert_eq!(set.len(), 16_000);
    // Overlaps of as many rules are reported up to a bound.
    let same: Vec<Rule> = (0..16_000).map(|n| rule(n, 443)).collect();
    let problems = RuleSet::new(&acme(), same).expect_err("all overlap");
    assert_eq!(problems.len(), MAX_REPORTED);
}

proptest! {
    #[test]
    fn a_set_is_accepted_if_and_only_if_nothing_is_claimed_twice(rules in some_rules()) {
        for rule in rules.iter().flatten() {
            prop_assert!(claims(rule).iter().all(|(.., port)| *port != MANAGEMENT_PORT));
        }
        let rules: Vec<Rule> = rules.into_iter().flatten().collect();
        // The NAT address of the tenant's networks is claimed before any rule is there.
        let nat_addresses = acme().nat_addresses.into_iter().map(|address| (address, 0, 0));
        let mut all: Vec<_> = rules.iter().flat_map(claims).chain(nat_addresses).collect();
        let claimed = all.len();
        all.sort();
        all.dedup();
        let result = RuleSet::new(&acme(), rules.clone());
        prop_assert_eq!(result.is_ok(), all.len() == claimed, "{:?}", rules);
        if let Ok(set) = result {
            prop_assert_eq!(set.len(), rules.len());
        }
    }
}
