//! Rules that are read and refused.

use proptest::prelude::*;

use super::*;

fn line(line: &str) -> Result<Rule, RuleError> {
    Rule::from_line("web", line)
}

fn refused(line: &str) -> String {
    Rule::from_line("web", line)
        .expect_err("to be refused")
        .to_string()
}

#[test]
fn port_22_is_refused_alone_and_inside_a_range_for_every_protocol() {
    let alone = "rule \"web\": public_port: 22 is refused: it is reserved for managing the \
        appliance; use another public port, such as 2222, with internal_port = 22 to reach port 22 \
        of the machine";
    for protocol in ["tcp", "udp", "both"] {
        assert_eq!(
            refused(&format!("203.0.113.20:22/{protocol} -> 10.1.0.10")),
            alone
        );
        assert_eq!(
            refused(&format!("203.0.113.20:22-22/{protocol} -> 10.1.0.10:2222")),
            alone
        );
        assert_eq!(
            refused(&format!("[2001:db8::1]:22/{protocol} -> 2001:db8:1::10")),
            alone
        );
    }
    for (range, rest) in [
        ("20-30", "two rules, 20-21 and 23-30"),
        ("1-65535", "two rules, 1-21 and 23-65535"),
        ("22-23", "23"),
        ("22-30", "23-30"),
        ("21-22", "21"),
        ("20-22", "20-21"),
    ] {
        assert_eq!(
            refused(&format!("203.0.113.20:{range}/tcp -> 10.1.0.10:1000")),
            format!(
                "rule \"web\": public_port: {range} contains port 22, which is reserved for \
                 managing the appliance: write {rest} instead"
            )
        );
    }
    assert!(line("203.0.113.20:2222/tcp -> 10.1.0.10:22").is_ok());
    assert!(line("203.0.113.20:23-30/tcp -> 10.1.0.10:22").is_ok());
    assert!(line("203.0.113.20:220/tcp -> 10.1.0.10").is_ok());
    assert!(line("203.0.113.20 -> 10.1.0.10").is_ok());
}

#[test]
fn every_refusal_says_what_to_do() {
    for (text, message) in [
        (
            "203.0.113.20:80-90/tcp -> 10.1.0.10:65530",
            "rule \"web\": internal_port: the 11 ports of public_port would end at 65540, above \
             65535: write 65525 or lower instead of 65530",
        ),
        (
            "203.0.113.20:80/tcp -> 10.1.0.10:0",
            "rule \"web\": internal_port: 0 is not a port: write 1 to 65535, or omit it to use the \
             public port",
        ),
        (
            "203.0.113.20:80/tcp -> [2001:db8::1]:80",
            "rule \"web\": public_ip 203.0.113.20 and internal_ip 2001:db8::1 are of different \
             address families: write two IPv4 or two IPv6 addresses",
        ),
        (
            "224.0.0.1:80/tcp -> 10.1.0.10",
            "rule \"web\": public_ip: 224.0.0.1 is not a host address: write a unicast address \
             that is neither loopback nor link-local",
        ),
        (
            "203.0.113.20:80/tcp -> 127.0.0.1",
            "rule \"web\": internal_ip: 127.0.0.1 is not a host address: write a unicast address \
             that is neither loopback nor link-local",
        ),
    ] {
        assert_eq!(refused(text), message);
    }
    for text in [
        "",
        "203.0.113.20:80/tcp",
        "203.0.113.20:80/sctp -> 10.1.0.10",
        "203.0.113.20/tcp -> 10.1.0.10",
        "203.0.113.20 -> 10.1.0.10:80",
        "203.0.113.20:0/tcp -> 10.1.0.10",
        "2001:db8::1:80/tcp -> 2001:db8:1::1",
        "[2001:db8::1]80/tcp -> 2001:db8:1::1",
    ] {
        // A text that parses as an address is one: `2001:db8::1:80` is.
        if text.starts_with("2001") {
            assert!(refused(text).starts_with("\"2001:db8::1:80/tcp"), "{text}");
            continue;
        }
        assert_eq!(
            refused(text),
            format!(
                "{text:?} is not a rule: write PUBLIC:PORT/PROTOCOL -> INTERNAL[:PORT], such as \
                 203.0.113.20:443/tcp -> 10.1.0.10:8443 ([2001:db8::1]:443/tcp for IPv6), or \
                 PUBLIC -> INTERNAL for 1:1"
            )
        );
    }
    let rule = line("203.0.113.20:80/tcp -> 10.1.0.10").expect("a rule");
    let six = "2001:db8::/32".parse().expect("a prefix");
    assert_eq!(
        rule.clone()
            .with_allow(vec![six])
            .expect_err("mixed")
            .to_string(),
        "rule \"web\": allow: 2001:db8::/32 and public_ip 203.0.113.20 are of different address \
         families: list sources of the public address's family"
    );
    for text in ["two\nlines", &"x".repeat(257)] {
        assert_eq!(
            rule.clone()
                .with_description(text)
                .expect_err("no text")
                .to_string(),
            "rule \"web\": description: write at most 256 characters, on one line"
        );
    }
    for name in ["", "Web", "a b", "ü", &"x".repeat(65)] {
        assert_eq!(
            Rule::from_line(name, "203.0.113.20 -> 10.1.0.10")
                .expect_err("no name")
                .to_string(),
            format!(
                "rule {name:?}: name: write 1 to 64 characters of a to z, 0 to 9, '.', '_' and '-'"
            )
        );
    }
}

#[test]
fn a_file_has_ports_or_the_whole_address() {
    let read = |text: &str| toml::from_str::<Rule>(text).map_err(|e| e.message().to_owned());
    let head = "name = \"web\"\npublic_ip = \"203.0.113.20\"\ninternal_ip = \"10.1.0.10\"\n";
    let rule = read(&format!("{head}public_port = 443\n")).expect("a rule");
    assert_eq!(rule.to_string(), "203.0.113.20:443/tcp -> 10.1.0.10:443");
    let rule = read(&format!(
        "{head}public_port = \"8000-8010\"\ninternal_port = 9000\nprotocol = \"both\"\n\
         allow = [\"198.51.100.0/24\"]\ndescription = \"the shop\"\n"
    ))
    .expect("a rule");
    assert_eq!(
        rule.to_string(),
        "203.0.113.20:8000-8010/both -> 10.1.0.10:9000"
    );
    assert_eq!((rule.allow().len(), rule.description()), (1, "the shop"));
    let rule = read(&format!("{head}one_to_one = true\n")).expect("a rule");
    assert_eq!(rule.target(), RuleTarget::OneToOne);
    let ask = "rule \"web\": write public_port (and internal_port, protocol), or one_to_one = true \
        for the whole address";
    assert_eq!(read(head), Err(ask.to_owned()));
    for both in [
        "public_port = 80",
        "protocol = \"tcp\"",
        "internal_port = 80",
    ] {
        assert_eq!(
            read(&format!("{head}one_to_one = true\n{both}\n")),
            Err(format!(
                "{ask}, not both: one_to_one excludes ports and protocol"
            ))
        );
    }
    assert!(
        read(&format!("{head}public_port = 22\n")).is_err_and(|why| why.contains("22 is refused"))
    );
    assert_eq!(
        read(&head.replace("203.0.113.20", "203.0.113.20/32")),
        Err(
            "\"203.0.113.20/32\" is not an address: write an address such as 203.0.113.20 or \
             2001:db8::1"
                .to_owned()
        )
    );
    assert!(
        read(&format!("{head}public_prot = 80\n")).is_err_and(|why| why.contains("unknown field"))
    );
}

prop_compose! {
    fn rules()(
        v4: bool, public in 0x0100_0001u32..0x7eff_ffff, internal in 0x8000_0001u32..0xa8ff_ffff,
        first in 23u16..=60_000, count in 0u16..=5000, to in 1u16..=60_000,
        protocol in 0usize..3, whole: bool,
    ) -> Rule {
        let ip = |bits: u32| -> IpAddr {
            if v4 {
                std::net::Ipv4Addr::from(bits).into()
            } else {
                std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(bits)).into()
            }
        };
        let target = if whole {
            RuleTarget::OneToOne
        } else {
            RuleTarget::Ports {
                public: PortRange::new(first, first + count).expect("a range"),
                internal: to,
                protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Both][protocol],
            }
        };
        Rule::new("a-rule", ip(public), ip(internal), target, Vec::new(), "").expect("a rule")
    }
}

proptest! {
    #[test]
    fn line_and_file_restore_the_rule(rule in rules()) {
        prop_assert_eq!(Rule::from_line("a-rule", &rule.to_string()), Ok(rule.clone()));
        let json = serde_json::to_string(&rule).expect("a value");
        prop_assert_eq!(serde_json::from_str::<Rule>(&json).ok(), Some(rule.clone()));
        let toml = toml::to_string(&rule).expect("a table");
        prop_assert_eq!(toml::from_str::<Rule>(&toml).ok(), Some(rule));
    }

    #[test]
    fn no_line_panics_and_none_makes_port_22_public(name: String, text: String) {
        if let Ok(rule) = Rule::from_line(&name, &text)
            && let RuleTarget::Ports { public, .. } = rule.target()
        {
            prop_assert!(!public.contains(MANAGEMENT_PORT));
        }
    }

    #[test]
    fn overlap_is_mutual(a in rules(), b in rules()) {
        prop_assert_eq!(a.overlap(&b), b.overlap(&a));
        prop_assert!(a.overlap(&a).is_some());
    }
}
