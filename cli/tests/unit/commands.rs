//! Objects, users, tokens, contexts, watch and audit.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
};

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
    let forced = "tenant delete globex --force";
    site.run(forced).exits(2).says("--reason");
    site.run(&format!("{forced} --dry-run")).exits(0);
    site.run(&format!("{forced} --reason contract-ended"))
        .exits(0);
    site.run("host create").exits(2);
}

#[test]
fn the_status_tells_what_is_not_well_by_its_exit_code() {
    let site = Site::with_tenants();
    let status = site.run("status").exits(1);
    assert!(status.out.contains("tenant: 2\n"), "{status:?}");
    for text in ["GatewayAvailable", "NoGateway", "acme,globex"] {
        assert!(status.out.contains(text), "{text}: {status:?}");
    }
    let gateway = site.run("tenant get acme").exits(0);
    assert!(
        gateway
            .out
            .contains("condition.GatewayAvailable: false (NoGateway): no gateway is enabled"),
        "{gateway:?}"
    );
    site.run("gateway create gw1 -s addresses=[\"192.0.2.1\"]")
        .exits(0);
    site.run("status").exits(0);
    site.run("gateway drain gw1")
        .exits(4)
        .says("cannot be drained");
    let forced = "gateway drain gw1 --force --reason maintenance";
    site.run(forced).exits(0).says("no gateway left");
    let gateway = site.run("gateway get gw1").exits(0);
    for text in ["spec.drain:", "condition.Drained:", "unknown (NoAgent)"] {
        assert!(gateway.out.contains(text), "{text}: {gateway:?}");
    }
    site.run("gateway undrain gw1").exits(0);
    let json = site.run("status -t acme --json").exits(0).json();
    assert_eq!(json["counts"]["network"], 2);
    let usage = site.run("tenant usage acme").exits(0);
    assert!(usage.out.contains("objects.limit:"), "{usage:?}");
}

#[test]
fn verbs_and_options_of_the_field_change_objects() {
    let site = Site::with_tenants();
    let run = |words: &str| site.run(words).exits(0);
    let change = |words: &str| site.run(&format!("{words} --reason set-up")).exits(0);
    site.run("network set web-1 -t acme --prefix 10.1.0.0/24")
        .exits(4)
        .says("--reason");
    run("host add h2 -s platform=kvm");
    run("host show h2");
    change("network set web-1 -t acme --prefix 10.1.0.0/24 --gateway 10.1.0.1");
    change("network set web-2 -t acme --prefix 10.2.0.0/24 --prefix fd00:2::/64");
    let network = run("network get web-2 -t acme --json").json();
    assert_eq!(network["spec"]["prefixes"][1], "fd00:2::/64");
    run("tenant set acme --bandwidth 100 --lease-ends 2099-01-01T00:00:00Z --fallback true");
    let tenant = run("tenant get acme --json").json();
    assert_eq!(tenant["spec"]["limits"]["bandwidth_mbit"], 100);
    assert_eq!(tenant["spec"]["gateway_fallback"], true);
    let policies = || run("policy list -t acme").out;
    change("policy allow web-1 web-2 -t acme");
    assert!(policies().contains("web-1-web-2  yes"), "{}", policies());
    change("policy deny web-1 web-2 -t acme --one-way");
    let policy = run("policy get web-1-web-2 -t acme --json").json();
    assert_eq!(policy["spec"]["from"], "web-2");
    assert_eq!(policy["spec"]["both"], false);
    site.run("policy deny web-1 web-2 -t acme --one-way")
        .exits(3)
        .says("no policy allows routing");
    change("policy deny web-1 web-2 -t acme");
    assert!(!policies().contains("web-1-web-2"), "{}", policies());
    site.run("policy allow web-1 web-with-a-name-that-is-longer -t acme")
        .exits(2)
        .says("write --name");
    let plan = r#"plan add all -t acme -s networks=[{"name":"web-1"}] -s vms=[{"name":"db"}]"#;
    change(plan);
    let checked = run("plan check all -t acme");
    assert!(checked.out.contains("Valid"), "{checked:?}");
    run("tenant disable acme");
    let checked = site.run("plan check all -t acme").exits(1);
    assert!(checked.out.contains("TenantDisabled"), "{checked:?}");
}

#[test]
fn reasons_may_have_any_characters() {
    let site = Site::with_tenants();
    let words = [
        "tenant",
        "set",
        "acme",
        "-s",
        "description=x",
        "--reason",
        "Wünsche, 50%",
    ];
    site.words(&words, "").exits(0);
    let audit = site.run("audit list --json").exits(0).json();
    let entries = audit.as_array().expect("entries");
    let last = entries.last().expect("an entry");
    assert_eq!(last["reason"], "Wünsche, 50%");
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
    assert!(error.contains("chmod o="), "{error}");
}

#[test]
fn a_log_in_elsewhere_leaves_the_context() {
    let site = Site::start();
    let password = "correct horse battery\n";
    site.typed("user create bob --role provider-operator", password)
        .exits(0);
    let ca = site.path("ca.pem");
    let elsewhere = format!("--server {} --ca {}", site.server, ca.display());
    site.typed(
        "context set lab --server https://lab.example --token-stdin",
        "cwy_lab\n",
    )
    .exits(0);
    let file = || std::fs::read_to_string(site.path("causeway/contexts.toml")).expect("contexts");
    let before = file();
    site.typed(&format!("{elsewhere} login --user bob"), password)
        .exits(2)
        .says("context \"lab\" belongs to https://lab.example: write another name");
    site.run(&format!("{elsewhere} logout"))
        .exits(2)
        .says("context \"lab\" belongs to");
    assert_eq!(file(), before);
    let words = format!("{elsewhere} --context other login --user bob --json");
    let made = site.typed(&words, password).exits(0).json();
    assert_eq!(made["context"], "other");
    assert!(file().contains("cwy_lab"), "{}", file());
    let list = site.run("context list --json").exits(0).json();
    assert_eq!(list[0]["name"], "lab");
    assert_eq!(list[1]["has_token"], true);
}

#[test]
fn a_log_out_ends_the_token_of_the_context() {
    let site = Site::start();
    let password = "correct horse battery\n";
    site.typed("user create bob --role provider-operator", password)
        .exits(0);
    site.typed("login --user bob", password).exits(0);
    let with_token = |words: &str, token: &str| {
        let mut command = site.command();
        command.args(words.split(' ')).env("CAUSEWAY_TOKEN", token);
        command.output().expect("its output")
    };
    // Not that of the environment.
    assert!(with_token("logout", &site.admin).status.success());
    assert!(with_token("whoami", &site.admin).status.success());
    let tokens = with_token("token list --json", &site.admin);
    assert!(tokens.status.success(), "{tokens:?}");
    let file = || std::fs::read_to_string(site.path("causeway/contexts.toml")).expect("contexts");
    assert!(!file().contains("cwy_"), "{}", file());
    site.run("logout").exits(2).says("has no token");
    // One that has ended is forgotten.
    site.typed("context set lab --token-stdin", "cwy_ended\n")
        .exits(0);
    site.run("logout").exits(0).says("had ended already");
    assert!(!file().contains("cwy_"), "{}", file());
}

#[test]
fn json_is_printed_for_failures_of_every_kind() {
    let site = Site::start();
    for (words, exit, text) in [
        ("network list --json", 2, "--tenant"),
        ("host create --json", 2, "required"),
        (
            "--json --server http://127.0.0.1:1 host list",
            7,
            "cannot connect",
        ),
        ("apply -f /nothing.toml --json", 8, "cannot read"),
        ("audit key --json", 3, "signs nothing"),
    ] {
        let ran = site.run(words).exits(exit);
        let problem: serde_json::Value = serde_json::from_str(&ran.error)
            .unwrap_or_else(|error| panic!("{words}: {error}: {ran:?}"));
        assert_eq!(problem["exit"], exit, "{words}: {problem}");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(detail.contains(text), "{words}: {detail}");
    }
    site.checkpoint();
    let key = site.run("audit key --json").exits(0).json();
    assert_eq!(key["key"].as_str().map(str::len), Some(64));
    let current = site.run("context use lab --json").exits(0).json();
    assert_eq!(current["current"], "lab");
}

#[test]
fn the_tenant_of_the_environment_is_a_default() {
    let site = Site::with_tenants();
    let run = |words: &str| {
        let mut command = site.command();
        command
            .args(words.split(' '))
            .env("CAUSEWAY_TENANT", "acme");
        let output = command.output().expect("its output");
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(!run("network list").contains("globex"));
    assert!(run("network list --all-tenants").contains("globex"));
    assert!(run("watch host --from 0 --count 1").contains("host h1"));
    assert!(run("watch subscription --from 0 --count 1").contains("acme/web"));
    site.run("network list --all-tenants -t acme")
        .exits(2)
        .says("contradict");
}

#[test]
fn the_tenant_of_the_context_is_a_default_of_all_commands() {
    let site = Site::with_tenants();
    site.run("context set lab --tenant globex").exits(0);
    let watch = "watch subscription --from 0 --count 1";
    let of_globex = site.run(watch).exits(0).out;
    assert!(of_globex.contains("globex/web"), "{of_globex}");
    let of_all = site.run(&format!("{watch} --all-tenants")).exits(0).out;
    assert!(of_all.contains("acme/web"), "{of_all}");
    // A kind of the provider has no tenant.
    site.run("watch host --from 0 --count 1").exits(0);
    for (command, of_provider) in [("export", "\"host\""), ("status", "host: 1")] {
        let own = site.run(command).out;
        assert!(!own.contains("acme"), "{own}");
        assert!(!own.contains(of_provider), "{own}");
        let all = site.run(&format!("{command} --all-tenants")).out;
        assert!(all.contains(of_provider), "{all}");
        let acme = site.run(&format!("{command} -t acme")).out;
        assert!(!acme.contains("globex"), "{acme}");
        site.run(&format!("{command} --all-tenants -t acme"))
            .exits(2)
            .says("cannot be used with");
        site.run(&format!("{command} -t initech"))
            .exits(3)
            .says("does not exist");
    }
}

#[test]
fn a_name_that_is_repeated_in_json_is_refused() {
    let site = Site::start();
    let set = r#"switches=[{"name":"a","name":"b"}]"#;
    site.run(&format!("host create h1 -s platform=kvm -s {set}"))
        .exits(2)
        .says("name");
    site.run("host get h1").exits(3);
}

#[test]
fn a_token_whose_secret_cannot_be_printed_is_deleted() {
    let site = Site::start();
    let tokens = || site.run("token list --json").exits(0).json();
    let count = |tokens: &serde_json::Value| tokens.as_array().expect("a list").len();
    let before = tokens();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = site.command();
    command.args(["token", "create", "--hours", "1"]);
    command.stdout(full.expect("a device"));
    let output = command.output().expect("its output");
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("is deleted"), "{error}");
    assert_eq!(count(&tokens()), count(&before));
    site.run("token create --hours 1").exits(0);
    assert_eq!(count(&tokens()), count(&before) + 1);
}

/// Forwards connections to an address, until it is told to break them.
struct Proxy {
    address: std::net::SocketAddr,
    open: std::sync::Arc<std::sync::Mutex<Vec<TcpStream>>>,
    /// Gets the bytes of the server's answers.
    answers: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl Proxy {
    fn start(to: std::net::SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let open = std::sync::Arc::<std::sync::Mutex<Vec<TcpStream>>>::default();
        let (sender, answers) = std::sync::mpsc::channel();
        let kept = std::sync::Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.expect("a connection");
                let mut server = TcpStream::connect(to).expect("the director");
                let clone = |stream: &TcpStream| stream.try_clone().expect("a handle");
                kept.lock()
                    .expect("no panic")
                    .extend([clone(&client), clone(&server)]);
                let (mut from, mut back) = (clone(&client), clone(&server));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut server);
                });
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(length @ 1..) = back.read(&mut bytes) {
                        let _ = client.write_all(&bytes[..length]);
                        let _ = sender.send(bytes[..length].to_vec());
                    }
                });
            }
        });
        Self {
            address,
            open,
            answers,
        }
    }

    /// Waits for the head of the next answer.
    fn head(&self) {
        let bytes = self
            .answers
            .recv_timeout(std::time::Duration::from_secs(20));
        let bytes = bytes.expect("an answer");
        assert!(bytes.starts_with(b"HTTP/1.1 200"), "{bytes:?}");
    }

    fn break_all(&self) {
        for stream in self.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn a_watch_goes_on_after_a_broken_connection() {
    let site = Site::with_tenants();
    let listener = site
        .runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a port");
    let proxy = Proxy::start(listener.local_addr().expect("its address"));
    let router = director::api::router(std::sync::Arc::clone(&site.director));
    site.runtime
        .spawn(director::tls::serve(listener, None, router));
    let mut watch = site
        .command()
        .args(["watch", "tenant", "--count", "2", "--server"])
        .arg(format!("http://{}", proxy.address))
        .env("CAUSEWAY_TOKEN", &site.admin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command");
    // Before the first event, and after it.
    proxy.head();
    proxy.break_all();
    proxy.head();
    site.run("tenant create one").exits(0);
    let mut lines = BufReader::new(watch.stdout.take().expect("its output")).lines();
    let line = lines.next().expect("a line").expect("text");
    assert!(line.contains("written  tenant one"), "{line}");
    proxy.break_all();
    site.run("tenant create two").exits(0);
    let line = lines.next().expect("a line").expect("text");
    assert!(line.contains("written  tenant two"), "{line}");
    let output = watch.wait_with_output().expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
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
    // One of several keys suffices.
    let keys = format!("{}\n{}\n", "00".repeat(32), key.trim());
    let keys = site.write("keys", &keys).display().to_string();
    site.run(&format!("audit verify --key-file {keys}"))
        .exits(0);
    // A checkpoint that was kept: the chain has its entry, and must not lose it.
    let kept = site.run("audit checkpoint").exits(0).out;
    let file = site.write("kept.json", &kept).display().to_string();
    site.run(&format!("audit verify --since {file}")).exits(0);
    let none = site.write("none.json", "{}").display().to_string();
    site.run(&format!("audit verify --since {none}"))
        .exits(8)
        .says("no checkpoint");
    let site_b = Site::start();
    let cut = site_b.run(&format!("audit verify --since {file}")).exits(1);
    assert!(
        cut.out.contains("the end of the chain is missing"),
        "{cut:?}"
    );
    let other = format!("audit verify --key {}", "00".repeat(32));
    let broken = site.run(&other).exits(1);
    assert!(
        broken.out.contains("BROKEN") && broken.out.contains("another key"),
        "{broken:?}"
    );
}

#[test]
fn an_entry_that_is_no_entry_any_more_breaks_the_chain() {
    let site = Site::with_tenants();
    let file = rusqlite::Connection::open(site.path("store")).expect("the store");
    let key = "audit/00000000000000000003";
    let of_key = "SELECT value FROM entries WHERE key = ?";
    let whole: String = file
        .query_row(of_key, [key], |row| row.get(0))
        .expect("an entry");
    let boss = whole.replacen("\"role\":\"provider-admin\"", "\"role\":\"boss\"", 1);
    let field = whole.replacen('{', "{\"more\":1,", 1);
    assert!(boss != whole && field != whole);
    for text in [&boss, &field, "garbage", "{}"] {
        let update = "UPDATE entries SET value = ?1 WHERE key = ?2";
        file.execute(update, [text, key]).expect("written");
        let broken = site.run("audit verify").exits(1);
        let told = "BROKEN: an entry after 2 cannot be read";
        assert!(broken.out.starts_with(told), "{text}: {broken:?}");
        site.run("audit list").exits(0);
    }
}
