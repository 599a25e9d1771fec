//! Objects, users, tokens, contexts, watch and audit.

use std::process::Stdio;

use super::{Site, certificate};

#[test]
fn objects_are_created_listed_changed_and_deleted() {
    let site = Site::with_tenants();
    site.run("host list").exits(0).prints(
        "NAME PLATFORM SWITCHES
         h1 kvm br0",
    );
    site.run("network list -t acme").exits(0).prints(
        "NAME GATEWAYS PREFIXES HOST INTERNET POOL SUBSCRIPTION SWITCH VLAN
         web-1 - - h1 yes pool web br0 101
         web-2 - - h1 yes pool web br0 102",
    );
    let all = site.run("subscription list --all-tenants").exits(0);
    assert!(
        all.out.contains("acme") && all.out.contains("globex"),
        "{all:?}"
    );
    let json = site.run("hardware-plan get small --json").exits(0).json();
    assert_eq!(json["spec"]["networks_with_internet"], 2);

    // Fields that are not named stay as they are.
    let changed = site.run("hardware-plan set small -s networks_with_internet=3 --json");
    let changed = changed.exits(0).json();
    assert_eq!(changed["spec"]["vlan_pool"], "pool");
    assert_eq!(changed["metadata"]["generation"], 2);
    let dry = site.run("hardware-plan set small -s networks_with_internet=4 --dry-run");
    assert!(dry.exits(0).out.contains("web-4"));
    let networks = site.run("network list -t globex --json").json();
    assert_eq!(networks.as_array().expect("a list").len(), 3);

    let old = "hardware-plan set small -s networks_with_internet=4 --if-revision 1";
    site.run(old).exits(6).says("read it again");
    site.run("hardware-plan delete small")
        .exits(4)
        .says("conflict: subscription web of tenant acme: hardware_plan");
    site.run("network get none -t acme")
        .exits(3)
        .says("does not exist");
    site.run("subscription delete web -t globex")
        .exits(0)
        .prints("");
    let wrong = site.run("host create h2 -s platform=vax").exits(4);
    assert!(wrong.error.contains("unknown variant `vax`"), "{wrong:?}");
    let problem = site.run("host create h2 -s platform=vax --json").exits(4);
    let problem: serde_json::Value = serde_json::from_str(&problem.error).expect("JSON");
    assert_eq!(problem["status"], 422);
    site.run("network list").exits(2).says("--tenant");
    site.run("host create").exits(2);
}

#[test]
fn users_log_in_and_have_their_own_tokens() {
    let site = Site::with_tenants();
    let password = "correct horse battery\n";
    site.typed("user create alice --role tenant-admin -t acme", password)
        .exits(0)
        .prints("NAME ROLE TENANT\nalice tenant-admin acme");
    let server = format!(
        "--server {} --ca {}",
        site.server,
        site.path("ca.pem").display()
    );
    site.typed(&format!("context set acme {server} --tenant acme"), "")
        .exits(0);
    site.typed("--context acme login --user alice", "wrong\n")
        .exits(5)
        .says("the name or the password is wrong");
    site.typed("--context acme login --user alice", password)
        .exits(0);
    let file = std::fs::read_to_string(site.path("causeway/contexts.toml")).expect("contexts");
    assert!(file.contains("cwy_"));
    // The context has the tenant.
    let networks = site.run("--context acme network list").exits(0);
    assert!(networks.out.contains("web-2"), "{networks:?}");
    site.run("--context acme network list -t globex").exits(3);
    site.run("--context acme host list")
        .exits(5)
        .says("may not do this");

    let secret = site
        .run("--context acme token create --hours 1 --description ci")
        .exits(0);
    assert!(secret.out.starts_with("cwy_"), "{secret:?}");
    let tokens = site.run("--context acme token list --json").exits(0).json();
    assert_eq!(tokens.as_array().expect("a list").len(), 2);
    let id = tokens[1]["id"].as_str().expect("an id");
    site.run(&format!("--context acme token delete {id}"))
        .exits(0);
    site.run("--context acme logout").exits(0);
    site.run("--context acme whoami").exits(5);
    let totp = site.run("--context acme login --user alice");
    totp.exits(2).says("there is no password");
    site.typed("--context acme login --user alice", password)
        .exits(0);
    let made = site.run("--context acme totp create").exits(0).out;
    assert!(
        made.starts_with("otpauth://totp/Causeway:alice?secret="),
        "{made}"
    );
    site.typed("--context acme totp confirm", "000\n")
        .exits(4)
        .says("the code is wrong");
    site.run("user remove-totp alice").exits(0);
    site.run("user create m1 --role appliance -t acme --object h1")
        .exits(0);
    let machine = site.run("user token m1 --hours 1").exits(0);
    assert!(machine.out.starts_with("cwy_"), "{machine:?}");
    site.run("user delete m1").exits(0);
    site.run("user delete alice").exits(0);
    let users = site.run("user list --json").exits(0).json();
    assert_eq!(users.as_array().expect("a list").len(), 1);
}

#[test]
fn a_context_keeps_its_token_from_other_servers() {
    let site = Site::start();
    site.run("context list").exits(0).prints(&format!(
        "CURRENT NAME SERVER TENANT TOKEN
         * lab {} - kept",
        site.server
    ));
    site.run("context set lab --server https://other.example")
        .exits(0);
    let file = std::fs::read_to_string(site.path("causeway/contexts.toml")).expect("contexts");
    assert!(!file.contains("cwy_"), "{file}");
    site.run("context use nothing")
        .exits(2)
        .says("use one of lab");
    site.run("--context nothing host list")
        .exits(2)
        .says("there is no context");
    site.run("--server http://192.0.2.1 host list")
        .exits(2)
        .says("in the clear");
    // Without the authority, the certificate is not trusted.
    site.run(&format!("--server {} host list", site.server))
        .exits(7)
        .says("invalid peer certificate");
    site.run("--server http://127.0.0.1:1 host list")
        .exits(7)
        .says("cannot connect");
    site.run("context delete lab").exits(0);
    site.run("host list").exits(2).says("causeway context set");
}

#[test]
fn a_new_certificate_is_used_after_a_reload() {
    let site = Site::start();
    site.run("host list").exits(0);
    // The command line trusts the new one only.
    let files = certificate(site.folder.path());
    site.run("host list")
        .exits(7)
        .says("invalid peer certificate");
    site.tls.reload().expect("a reload");
    site.run("host list").exits(0);
    std::fs::write(&files.key, "no key").expect("a file");
    let error = site.tls.reload().expect_err("no key").to_string();
    assert!(error.contains("cannot read"), "{error}");
    site.run("host list").exits(0);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let again = certificate(site.folder.path());
    std::fs::set_permissions(&again.key, open).expect("open");
    let error = site.tls.reload().expect_err("an open key").to_string();
    assert!(error.contains("chmod o-rwx"), "{error}");
}

#[test]
fn a_watch_prints_changes_and_resumes() {
    let site = Site::with_tenants();
    let from = site.run("tenant get globex --json").json()["metadata"]["revision"].clone();
    site.run("tenant create initech").exits(0);
    site.run("tenant set initech -s description=x").exits(0);
    site.run("tenant delete initech").exits(0);
    let watch = site
        .run(&format!("watch tenant --from {from} --count 3"))
        .exits(0);
    let lines: Vec<_> = watch
        .out
        .lines()
        .map(|line| {
            line.split_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let expected = [
        "written tenant initech",
        "changed tenant initech",
        "removed tenant initech",
    ];
    assert_eq!(lines, expected);
    site.run("watch nothing").exits(4).says("is no kind");
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let site = Site::start();
    let mut child = site
        .command()
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    for shell in ["bash", "zsh", "fish"] {
        let completion = site.run(&format!("completion {shell}")).exits(0);
        assert!(completion.out.contains("vlan-pool"), "{shell}");
    }
}

#[test]
fn the_audit_is_listed_and_its_chain_is_checked() {
    let site = Site::with_tenants();
    let list = site.run("audit list --after 1 --limit 2").exits(0).out;
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert!(lines[1].contains("host.create") && lines[2].contains("vlan-pool.create"));
    site.run("audit key").exits(3);
    site.run("audit verify")
        .exits(0)
        .prints("good: 8 entries, 0 checkpoints\nsigned: none yet");
    site.checkpoint();
    let key = site.run("audit key").exits(0).out;
    site.run("tenant create initech").exits(0);
    site.run("audit verify")
        .exits(0)
        .prints("good: 9 entries, 1 checkpoints\nsigned: entries 1 to 8")
        .says("warning: without --key");
    let verified = site
        .run(&format!("audit verify --key {}", key.trim()))
        .exits(0);
    assert!(verified.error.is_empty(), "{verified:?}");
    let other = format!("audit verify --key {}", "00".repeat(32));
    let broken = site.run(&other).exits(1);
    assert!(
        broken.out.contains("BROKEN") && broken.out.contains("another key"),
        "{broken:?}"
    );
}
