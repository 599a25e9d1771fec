//! Tenants in full failover.

use std::path::Path as FilePath;

use appliance_common::{
    limits::MAX_RULES,
    maps::PolicyKey,
    nat::{
        MachineKey, Nat, PublicAddress, Rule, RuleKey, nat_address_slot, public_flags, rule_flags,
    },
};
use failover::{Plan, RuleChange};
use packet_rules::addr::words;

use super::{
    diff::switched_off,
    tests::{CONFIG, snapshot},
    *,
};
use crate::state::{FailoverState, TenantMode, rule_key};

const PLAN: &str = r#"
name = "dr"
tenant = "acme"
[[network]]
name = "net1"
gateway = ["10.1.0.254"]
internet = true
[[network]]
name = "net3"
gateway = ["10.3.0.1"]
[[allow]]
from = "net1"
to = "net3"
both = false
[[rule]]
name = "web"
public_ip = "203.0.113.20"
public_port = "8000-8011"
internal_ip = "10.1.0.10"
internal_port = 80
protocol = "both"
allow = ["198.51.100.0/24"]
[[rule]]
name = "whole"
public_ip = "203.0.113.21"
internal_ip = "10.3.0.11"
one_to_one = true
"#;

fn config() -> Config {
    let text = CONFIG.replacen(
        "name = \"acme\"\n",
        "name = \"acme\"\npublic = [\"203.0.113.16/28\"]\nnat = [\"203.0.113.16\"]\n",
        1,
    ) + "[[network]]\nname = \"net3\"\ntenant = \"acme\"\npeer = \"a\"\nvni = 1003\n\
         interface = \"eth1\"\nvlan = \"103\"\nprefixes = [\"10.3.0.0/24\"]\n[[network]]\n\
         name = \"net4\"\ntenant = \"acme\"\npeer = \"a\"\nvni = 1004\ninterface = \"eth1\"\n\
         vlan = \"104\"\nprefixes = [\"10.4.0.0/24\"]\ngateway = [\"10.4.0.1\"]\n";
    Config::parse(&text, FilePath::new("t")).expect("good")
}

fn plan(config: &Config) -> Plan {
    Plan::parse(PLAN, &config.tenant_of("acme").expect("a tenant")).expect("a plan")
}

fn full(config: &Config, plan: Plan, epoch: u32) -> State {
    let mut state = super::tests::state(config);
    state.nat_seed = Some(77);
    let mode = TenantMode {
        failover: FailoverState::Full(Box::new(plan)),
        epoch,
    };
    state.modes.insert("acme".to_owned(), mode);
    state.assign_rule_slots();
    state
}

fn wanted(config: &Config, state: &State) -> MapContents {
    desired(config, state, &snapshot(), &EncryptedTunnels::default())
}

fn v4(text: &str) -> [u32; 4] {
    words(&from_ip(text.parse().expect("address")))
}

#[test]
fn a_plan_becomes_routes_policies_gateways_and_rules() {
    let config = config();
    let state = full(&config, plan(&config), 4);
    let t = wanted(&config, &state);
    let acme = state.slots.tenants["acme"];
    assert_eq!(t.tenants[&acme], Tenant { mode: 2, epoch: 4 });
    let net = |name: &str| t.networks[&state.slots.networks[name]];
    let gateway = from_ip("10.1.0.254".parse().expect("address"));
    assert_eq!(net("net1").gateway_v4, gateway);
    assert!(net("net1").flags & network_flags::INTERNET != 0);
    assert!(net("net3").flags & network_flags::INTERNET == 0);
    // The appliance is not the router of a network outside the plan; packets to it stay inside.
    assert_eq!(net("net4").gateway_v4, UNSPECIFIED);
    let routed: Vec<u32> = t.routes.keys().map(|(bits, _)| *bits).collect();
    assert_eq!(routed.len(), 4);
    assert!(t.routes.keys().all(|(_, key)| key.tenant == acme));
    let policies: Vec<PolicyKey> = t.policies.keys().copied().collect();
    assert_eq!(
        policies,
        [PolicyKey {
            from: 1001,
            to: 1003
        }]
    );

    assert_eq!((t.nat.uplink, t.nat.seed), (2, 77));
    assert_eq!(t.nat.mac, [2, 0, 0, 0, 0, 1]);
    let own = t.nat_addresses[&nat_address_slot(acme, false)];
    assert_eq!(
        (own.address, own.first, own.last),
        (v4("203.0.113.16"), 1024, 65_535)
    );
    assert_eq!(t.nat_addresses.len(), 1);
    assert_eq!(t.public.len(), 3);
    // Each with its tenant, and the protocols that its rules or mappings receive.
    let zone = full::zone_of(acme).into();
    let ports = public_flags::TCP | public_flags::UDP;
    for (address, protocols) in [
        ("203.0.113.16", ports | public_flags::ICMP),
        ("203.0.113.20", ports),
        (
            "203.0.113.21",
            ports | public_flags::ICMP | public_flags::OTHERS,
        ),
    ] {
        let public = t.public[&from_ip(address.parse().expect("address"))];
        let flags = public_flags::ACTIVE | protocols;
        assert_eq!(public, PublicAddress { flags, zone }, "{address}");
    }

    // 8000 to 8007, 8008 to 8011, for each protocol; and one entry of each protocol for the whole
    // address.
    assert_eq!(t.rule_ports.len(), 2 * 2 + 6);
    let web = state.slots.rules[&rule_key("acme", "web")];
    let whole = state.slots.rules[&rule_key("acme", "whole")];
    let key = |protocol, port: u16, address| RuleKey {
        address: v4(address),
        protocol,
        reserved: 0,
        port: port.to_be_bytes(),
    };
    for (bits, protocol, port) in [(13, 6, 8000), (14, 17, 8008)] {
        let slot = t.rule_ports[&(bits, key(protocol, port, "203.0.113.20"))];
        assert_eq!(slot.slot, web);
    }
    // TCP, UDP, ICMP, ESP, GRE and SCTP.
    for protocol in [6, 17, 1, 50, 47, 132] {
        assert_eq!(
            t.rule_ports[&(0, key(protocol, 0, "203.0.113.21"))].slot,
            whole
        );
    }
    let rule = t.rules[&web];
    assert_eq!((rule.public_first, rule.internal_first), (8000, 80));
    assert_eq!(rule.flags, rule_flags::ACTIVE | rule_flags::LISTED);
    assert_eq!(
        (rule.zone, rule.network),
        (acme as u16 + 1, state.slots.networks["net1"])
    );
    assert_eq!(
        t.rules[&whole].flags,
        rule_flags::ACTIVE | rule_flags::ONE_TO_ONE
    );
    let sources: Vec<u32> = t.rule_sources.keys().map(|(bits, _)| *bits).collect();
    assert_eq!(sources, [96 + 24]);
    let machine = MachineKey {
        zone: acme + 1,
        address: v4("10.3.0.11"),
    };
    assert_eq!(t.one_to_one[&machine].slot, whole);
    assert_eq!(t.check_capacity(), Ok(()));
}

#[test]
fn a_tenant_without_its_own_address_uses_the_uplink_address() {
    let mut config = config();
    let plan = plan(&config);
    config.tenants[0].nat.clear();
    let t = wanted(&config, &full(&config, plan, 1));
    let own = t.nat_addresses[&0];
    assert_eq!(
        (own.address, own.first, own.last),
        (v4("203.0.113.5"), 10_000, 32_767)
    );
    let public = t.public[&from_ip("203.0.113.5".parse().expect("address"))];
    let protocols = public_flags::TCP | public_flags::UDP | public_flags::ICMP;
    let flags = public_flags::ACTIVE | public_flags::OWN | protocols;
    assert_eq!(public.flags, flags);
}

#[test]
fn packets_to_the_outside_fit_the_configured_uplink() {
    let config = config();
    let state = full(&config, plan(&config), 3);
    assert_eq!(wanted(&config, &state).nat.mtu, 1500, "the interface's");
    for (mtu, expected) in [(1400, 1400), (9000, 1500)] {
        let mut config = config.clone();
        config.uplink.mtu = Some(mtu);
        assert_eq!(wanted(&config, &state).nat.mtu, expected);
    }
}

#[test]
fn maps_of_full_failover_are_empty_without_a_full_failover() {
    let config = config();
    let t = wanted(&config, &super::tests::state(&config));
    assert_eq!(t.nat, Nat::default());
    assert!(t.nat_addresses.is_empty() && t.public.is_empty() && t.rules.is_empty());
    assert!(t.routes.is_empty() && t.policies.is_empty() && t.rule_ports.is_empty());
}

/// Applies the updates from `from` to `to`; calls `check` after each.
fn transition(
    from: &MapContents,
    to: MapContents,
    mut check: impl FnMut(&MapContents, &MapUpdate),
) -> MapContents {
    let to = assign_rule_epochs(from, to);
    let mut now = from.clone();
    for update in diff(from, &to) {
        now.apply(&update);
        check(&now, &update);
    }
    assert_eq!(now, to);
    now
}

#[test]
fn the_mode_is_switched_once_after_all_additions_and_before_any_removal() {
    let config = config();
    let idle = wanted(&config, &super::tests::state(&config));
    let target = wanted(&config, &full(&config, plan(&config), 1));
    let start = transition(&MapContents::default(), idle.clone(), |_, _| {});
    let whole = assign_rule_epochs(&start, target.clone());
    let mut switched = 0;
    let up = transition(&start, target, |now, write| {
        if let MapUpdate::Tenant(..) = write {
            switched += 1;
            assert_eq!(*now, whole, "the mode is switched last");
        }
    });
    let mut first = true;
    let down = transition(&up, idle, |_, write| {
        assert_eq!(matches!(write, MapUpdate::Tenant(..)), first, "{write:?}");
        first = false;
    });
    assert_eq!(switched, 1);
    assert_eq!(down.nat, Nat::default());
    // Epochs outlive their rules, so that no epoch is used twice.
    assert!(down.rules.values().all(|r| r.flags == 0 && r.epoch == 2));
    let again = assign_rule_epochs(&down, up.clone());
    assert!(again.rules.values().all(|r| r.epoch == 3));
}

#[test]
fn a_forced_full_failover_keeps_the_endpoints_until_the_switch() {
    let config = config();
    let mut partial = super::tests::state(&config);
    let mode = TenantMode {
        failover: FailoverState::Partial,
        epoch: 1,
    };
    partial.modes.insert("acme".to_owned(), mode);
    let address = "10.1.0.10".parse().expect("address");
    let endpoints = partial.endpoints.entry("net1".to_owned()).or_default();
    endpoints.insert(address);
    let from = wanted(&config, &partial);
    let to = wanted(&config, &full(&config, plan(&config), 2));
    let mut switched = false;
    transition(&from, to, |_, write| match write {
        MapUpdate::Tenant(..) => switched = true,
        MapUpdate::Endpoint(..) => assert!(switched),
        _ => {}
    });
}

#[test]
fn a_rule_is_switched_off_before_its_ports_are_removed_and_complete_before_they_are_added() {
    let config = config();
    let plan = plan(&config);
    let tenant = config.tenant_of("acme").expect("a tenant");
    let before = full(&config, plan.clone(), 1);
    let mut after = before.clone();
    let web = failover::Rule::from_line("web", "203.0.113.20:8000-8003/tcp -> 10.1.0.12:90");
    let changes = vec![
        RuleChange::Replace(web.expect("a rule")),
        RuleChange::Remove("whole".to_owned()),
        RuleChange::Add(
            failover::Rule::from_line("ssh", "203.0.113.22:2222/tcp -> 10.1.0.13:22")
                .expect("a rule"),
        ),
    ];
    let changed = plan.apply(&tenant, changes).expect("a change");
    let mode = after.modes.get_mut("acme").expect("a mode");
    mode.failover = FailoverState::Full(Box::new(changed));
    after.assign_rule_slots();
    let from = assign_rule_epochs(&MapContents::default(), wanted(&config, &before));
    let target = wanted(&config, &after);
    let to = assign_rule_epochs(&from, target.clone());
    transition(&from, target, |now, write| {
        for ((_, key), slot) in &now.rule_ports {
            let rule = now.rules[&slot.slot];
            if rule.flags & rule_flags::ACTIVE == 0 {
                continue;
            }
            // A port that leads to an active rule belongs to that rule, old or new, completely.
            let of = |t: &MapContents| {
                let leads = t.rule_ports.iter().any(|((_, k), s)| k == key && s == slot);
                leads && t.rules.get(&slot.slot) == Some(&rule)
            };
            assert!(of(&from) || of(&to), "{key:?} to {rule:?} after {write:?}");
        }
        assert!(
            !matches!(write, MapUpdate::Tenant(..)),
            "the mode is unchanged"
        );
    });
}

#[test]
fn only_a_narrowed_rule_gets_a_new_epoch() {
    let config = config();
    let plan = plan(&config);
    let tenant = config.tenant_of("acme").expect("a tenant");
    let before = full(&config, plan.clone(), 1);
    let from = assign_rule_epochs(&MapContents::default(), wanted(&config, &before));
    let web = before.slots.rules[&rule_key("acme", "web")];
    let whole = before.slots.rules[&rule_key("acme", "whole")];
    let lines = [
        (
            "203.0.113.20:8000-8011/both -> 10.1.0.10:80",
            &["198.51.100.0/24"][..],
            false,
        ),
        (
            "203.0.113.20:8000-8099/both -> 10.1.0.10:80",
            &["198.51.100.0/24"],
            false,
        ),
        (
            "203.0.113.20:8000-8011/both -> 10.1.0.10:80",
            &["198.51.100.0/24", "192.0.2.0/24"],
            false,
        ),
        (
            "203.0.113.20:8000-8010/both -> 10.1.0.10:80",
            &["198.51.100.0/24"],
            true,
        ),
        (
            "203.0.113.20:8000-8011/tcp -> 10.1.0.10:80",
            &["198.51.100.0/24"],
            true,
        ),
        (
            "203.0.113.20:8000-8011/both -> 10.1.0.10:80",
            &["198.51.100.0/25"],
            true,
        ),
        (
            "203.0.113.20:8000-8011/both -> 10.1.0.11:80",
            &["198.51.100.0/24"],
            true,
        ),
        ("203.0.113.20:8000-8011/both -> 10.1.0.10:80", &[], true),
    ];
    for (line, allow, raised) in lines {
        let allow = allow.iter().map(|net| net.parse().expect("a prefix"));
        let rule = failover::Rule::from_line("web", line)
            .and_then(|rule| rule.with_allow(allow.collect()))
            .expect("a rule");
        let rule = rule
            .with_description("another word for it")
            .expect("a rule");
        let mut after = before.clone();
        let changed = plan
            .apply(&tenant, vec![RuleChange::Replace(rule)])
            .expect("a change");
        let mode = after.modes.get_mut("acme").expect("a mode");
        mode.failover = FailoverState::Full(Box::new(changed));
        let to = assign_rule_epochs(&from, wanted(&config, &after));
        assert_eq!(to.rules[&web].epoch, 1 + u32::from(raised), "{line}");
        assert_eq!(to.rules[&whole], from.rules[&whole]);
        assert_eq!(switched_off(&from, &to).contains_key(&web), raised);
    }
}

#[test]
fn contents_beyond_the_capacity_are_refused_with_the_count() {
    let mut t = MapContents::default();
    for slot in 0..MAX_RULES {
        let flags = rule_flags::ACTIVE;
        t.rules.insert(
            slot,
            Rule {
                flags,
                ..Rule::default()
            },
        );
    }
    let error = t.check_capacity().expect_err("too many");
    assert_eq!(
        error,
        "too many public IP rules: 16384; an appliance supports at most 15360"
    );
}

/// Names of the plan's rules that are in force.
fn active(t: &MapContents, state: &State) -> Vec<&'static str> {
    let mut names = vec!["web", "whole"];
    names.retain(|name| {
        let slot = state.slots.rules[&rule_key("acme", name)];
        t.rules.get(&slot).is_some_and(|r| r.flags != 0)
    });
    names
}

#[test]
fn a_rule_outside_the_allocation_is_not_in_force() {
    let right = config();
    let state = full(&right, plan(&right), 1);
    assert_eq!(active(&wanted(&right, &state), &state), ["web", "whole"]);
    assert_eq!(
        failover_problems(&right, &state, &snapshot()),
        Vec::<String>::new()
    );
    // The file has changed while the daemon was stopped: .20 is no longer the tenant's.
    let mut narrow = right.clone();
    narrow.tenants[0].public = ["203.0.113.16/30", "203.0.113.21"]
        .map(|net| net.parse().expect("a prefix"))
        .to_vec();
    let t = wanted(&narrow, &state);
    assert_eq!(active(&t, &state), ["whole"]);
    let gone = from_ip("203.0.113.20".parse().expect("address"));
    assert!(
        !t.public.contains_key(&gone),
        "the appliance must not answer for it"
    );
    assert!(
        t.rule_ports
            .keys()
            .all(|(_, key)| key.address != words(&gone))
    );
    assert!(t.rule_sources.is_empty());
    let expected = "tenant \"acme\": plan: rule \"web\": public_ip: 203.0.113.20 is not one of \
                    tenant \"acme\"'s public addresses: 203.0.113.16/30, 203.0.113.21; the rule is \
                    not in force";
    assert_eq!(failover_problems(&narrow, &state, &snapshot()), [expected]);
    // A reload that causes the problem is refused; one that finds it present is not.
    let made = |now, new| new_problems(now, new, &state, &snapshot());
    assert_eq!(made(&right, &narrow), [expected]);
    assert_eq!(made(&narrow, &narrow), Vec::<String>::new());
    assert_eq!(made(&narrow, &right), Vec::<String>::new());
}

#[test]
fn an_address_that_becomes_a_router_or_our_own_is_not_used() {
    let config = config();
    let state = full(&config, plan(&config), 1);
    let ip = |text: &str| text.parse().expect("address");
    let with = |routers: &[(IpAddr, &str)], own: &[&str]| {
        let mut snapshot = snapshot();
        for (to, hop) in routers {
            snapshot.next_hops.insert(*to, ip(hop));
        }
        let link = snapshot.links.get_mut("eth0").expect("a link");
        link.addresses.extend(own.iter().map(|a| (ip(a), 24)));
        let contents = desired(&config, &state, &snapshot, &EncryptedTunnels::default());
        let problems = failover_problems(&config, &state, &snapshot);
        (contents, problems)
    };
    let outside = crate::kernel::underlay::DEFAULT_ROUTE_PROBES[0];
    let peer = ip("198.51.100.5");
    let cannot = |what: &str, is: &str| {
        format!(
            "tenant \"acme\": plan: rule {what}: public_ip: {is}, which no rule may use: use \
             another of tenant \"acme\"'s public addresses; the rule is not in force"
        )
    };

    // A router with another address, and a path without a router.
    let (t, problems) = with(&[(outside, "203.0.113.1"), (peer, "198.51.100.5")], &[]);
    assert_eq!(active(&t, &state), ["web", "whole"]);
    assert_eq!(problems, Vec::<String>::new());

    let (t, problems) = with(&[(outside, "203.0.113.20"), (peer, "203.0.113.20")], &[]);
    assert_eq!(active(&t, &state), ["whole"]);
    assert!(!t.public.contains_key(&from_ip(ip("203.0.113.20"))));
    assert_eq!(
        problems,
        [cannot("\"web\"", "203.0.113.20 is the default router")]
    );

    let (t, problems) = with(&[(peer, "203.0.113.21")], &["203.0.113.20"]);
    assert_eq!(active(&t, &state), Vec::<&str>::new());
    assert_eq!(
        problems,
        [
            cannot(
                "\"web\"",
                "203.0.113.20 is the appliance's own address on eth0"
            ),
            cannot(
                "\"whole\"",
                "203.0.113.21 is the router towards 198.51.100.5"
            ),
        ]
    );

    // The translated source address: no longer this one, and no other in its place.
    let (t, problems) = with(&[(outside, "203.0.113.16")], &[]);
    assert_eq!(active(&t, &state), ["web", "whole"]);
    assert!(t.nat_addresses.is_empty(), "{:?}", t.nat_addresses);
    assert!(!t.public.contains_key(&from_ip(ip("203.0.113.16"))));
    assert_eq!(
        problems,
        [
            "tenant \"acme\": nat: 203.0.113.16 is the default router and cannot be used: set \
             another of \
             the tenant's public addresses"
        ]
    );

    // New rules for it are refused as well.
    let mut snapshot = snapshot();
    snapshot.next_hops.insert(outside, ip("203.0.113.20"));
    let tenant = plan_tenant(&config, &snapshot, "acme").expect("a tenant");
    let refused = Plan::parse(PLAN, &tenant)
        .expect_err("the router's")
        .to_string();
    assert_eq!(
        refused,
        "plan: rule \"web\": public_ip: 203.0.113.20 is the default router, which no rule may use: \
         use another of tenant \"acme\"'s public addresses"
    );
    let line = failover::Rule::from_line("more", "203.0.113.20:25/tcp -> 10.1.0.10");
    let add = vec![RuleChange::Add(line.expect("a rule"))];
    assert!(plan(&config).apply(&tenant, add).is_err());
}

#[test]
fn a_machine_with_two_one_to_one_rules_keeps_the_first() {
    let config = config();
    let mut state = full(&config, plan(&config), 1);
    // A plan that an earlier version accepted.
    let json = serde_json::to_string(&state.modes["acme"]).expect("a value");
    let more = "{\"name\":\"again\",\"public_ip\":\"203.0.113.22\",\"internal_ip\":\"10.3.0.11\",\"one_to_one\":true},";
    let json = json.replace("\"rule\":[", &format!("\"rule\":[{more}"));
    let mode: TenantMode = serde_json::from_str(&json).expect("it is read");
    state.modes.insert("acme".to_owned(), mode);
    state.assign_rule_slots();
    let t = wanted(&config, &state);
    let slot = |name: &str| state.slots.rules[&rule_key("acme", name)];
    assert!(t.rules.contains_key(&slot("again")) && !t.rules.contains_key(&slot("whole")));
    let leads: Vec<u32> = t.one_to_one.values().map(|s| s.slot).collect();
    assert_eq!(leads, [slot("again")]);
    let problems = failover_problems(&config, &state, &snapshot());
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with(
            "tenant \"acme\": plan: rule \"whole\": internal_ip: 10.3.0.11 is \
            mapped 1:1 to 203.0.113.22 already by rule \"again\""
        ),
        "{problems:?}"
    );
}

#[test]
fn a_removed_tenant_with_an_active_failover_is_a_problem() {
    let config = config();
    let mut state = full(&config, plan(&config), 1);
    let mut without = config.clone();
    without.tenants.retain(|t| t.name != "acme");
    without.networks.retain(|n| n.tenant != "acme");
    let expected = "tenant \"acme\" is in full failover by plan \"dr\" but is not configured: add \
                it to the configuration again, or end the failover (`causeway-appliance mode \
                --tenant acme idle`)";
    assert_eq!(
        new_problems(&config, &without, &state, &snapshot()),
        [expected]
    );
    assert_eq!(failover_problems(&without, &state, &snapshot()), [expected]);
    assert_eq!(state.left_over(&without), ["acme"]);
    assert_eq!(state.left_over(&config), Vec::<String>::new());
    // A start without the tenant: its failover is not in force, and other changes are accepted.
    let t = wanted(&without, &state);
    assert!(t.rules.is_empty() && t.public.is_empty() && t.nat_addresses.is_empty());
    assert!(new_problems(&without, &without, &state, &snapshot()).is_empty());
    state.modes.get_mut("acme").expect("a mode").failover = FailoverState::Partial;
    assert_eq!(
        failover_problems(&without, &state, &snapshot()),
        [expected.replace("full failover by plan \"dr\"", "partial failover")]
    );
    state.modes.get_mut("acme").expect("a mode").failover = FailoverState::Idle;
    assert!(failover_problems(&without, &state, &snapshot()).is_empty());
    assert!(state.left_over(&without).is_empty());
}
