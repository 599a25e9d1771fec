//! A desired state without a file: taken over from the file, changed by deltas, kept by a restart.
//! Changes that fail half way leave all as it was.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use causeway_tests::site::{Conversation, ENCRYPTED, SHORT_TIMEOUT, Site, text};
use serde_json::{Value, json};

const A: &str = "10.1.0.10";
const APPLIANCE: &str = "tenant-appliance";
const GREETER: u16 = 2222;

fn apply(site: &Site, update: &Value) -> Result<String, String> {
    let handle = site.appliance(APPLIANCE).unwrap_or_else(|e| panic!("{e}"));
    let file = site.run_dir().join("update.json");
    std::fs::write(&file, update.to_string()).expect("the lab's own directory");
    let words = ["apply", &file.to_string_lossy()].map(str::to_owned);
    let output = handle.cli(&words).unwrap_or_else(|e| panic!("{e}"));
    if output.ok() {
        Ok(output.stdout)
    } else {
        Err(output.stderr)
    }
}

fn desired(site: &Site) -> Value {
    let handle = site.appliance(APPLIANCE).unwrap_or_else(|e| panic!("{e}"));
    handle.json(&["desired"]).unwrap_or_else(|e| panic!("{e}"))
}

/// The file without tenants, gateways, peers and networks.
fn local(config: &str) -> String {
    let mut kept = String::new();
    let mut is_object = false;
    for line in config.lines() {
        if line.starts_with('[') {
            let objects = ["tenant", "gateway", "peer", "network"];
            is_object = objects.iter().any(|kind| {
                line.starts_with(&format!("[[{kind}]]")) || line.starts_with(&format!("[{kind}."))
            });
        }
        if !is_object {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

fn networks(site: &Site) -> usize {
    let status = site.status(APPLIANCE);
    status["networks"].as_array().map_or(0, Vec::len)
}

#[test]
fn an_appliance_runs_by_an_applied_state() {
    let Some(site) = Site::partial() else { return };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site.appliance(APPLIANCE).unwrap_or_else(|e| panic!("{e}"));
    let of_file = desired(&site);
    let objects = of_file["snapshot"]["objects"].clone();
    assert_eq!(of_file["snapshot"]["revision"], 0);
    assert_eq!(networks(&site), 2);
    let snapshot = |revision: u64| json!({"snapshot": {"revision": revision, "objects": objects}});
    let refused = apply(&site, &snapshot(7)).expect_err("the file has the objects");
    assert!(
        refused.contains("is that of the configuration file"),
        "{refused}"
    );

    // The file loses its objects, and they stay in force.
    let greeter = site.greeter("replica-a", GREETER, "hello");
    let _greeter = greeter.unwrap_or_else(|e| panic!("{e}"));
    let talk = Conversation::start(&site, "prod-b", A, GREETER);
    let file = local(&text(&handle.config_path()));
    std::fs::write(handle.config_path(), &file).expect("the lab's own file");
    let output = handle.cli(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    assert!(output.ok(), "{}", output.stderr);
    assert_eq!(desired(&site)["snapshot"]["objects"], objects);
    assert_eq!(site.status(APPLIANCE)["desired"]["source"], "file");

    let said = apply(&site, &snapshot(7)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(said, "revision 7 is in force, and stored\n");
    assert_eq!(site.status(APPLIANCE)["desired"]["revision"], 7);
    let older = apply(&site, &snapshot(6)).expect_err("older");
    assert!(
        older.contains("revision 6 is older than revision 7"),
        "{older}"
    );

    // A network that nothing has failed over goes and comes back.
    let name = "net2";
    let network = &objects["networks"][name];
    assert!(network.is_object(), "{objects}");
    let remove = json!({"delta": {"base": 7, "revision": 8, "remove": {"networks": [name]}}});
    for _ in 0..2 {
        let said = apply(&site, &remove).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            said.ends_with("revision 8 is in force, and stored\n"),
            "{said}"
        );
        assert_eq!(networks(&site), 1);
    }
    let wrong = json!({"delta": {"base": 8, "revision": 9, "put": {"networks": {
        name: {"tenant": "unknown", "peer": "provider", "vni": 0, "interface": "eth1"}
    }}}});
    let refused = apply(&site, &wrong).expect_err("a tenant that is not there");
    assert!(refused.contains("network \"net2\": vni"), "{refused}");
    assert!(
        refused.contains("no [[tenant]] named \"unknown\""),
        "{refused}"
    );
    // The failed-over network cannot go.
    let gone = json!({"delta": {"base": 8, "revision": 9, "remove": {"networks": ["net1"]}}});
    let refused = apply(&site, &gone).expect_err("it is failed over");
    assert!(
        refused.contains("failed-over addresses would lose"),
        "{refused}"
    );
    assert_eq!(networks(&site), 1);

    // A new process has the last state by itself.
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    handle.start().unwrap_or_else(|e| panic!("{e}"));
    let status = site.status(APPLIANCE);
    assert_eq!(
        status["desired"],
        json!({"source": "applied", "revision": 8})
    );
    assert_eq!(networks(&site), 1);
    let put = json!({"delta": {"base": 8, "revision": 9, "put": {"networks": {name: network}}}});
    let said = apply(&site, &put).unwrap_or_else(|e| panic!("{e}"));
    assert!(
        said.starts_with("networks: 1 added or changed, 0 removed\n"),
        "{said}"
    );
    assert_eq!(desired(&site)["snapshot"]["objects"], objects);
    site.reach("prod-b", A);
    let (numbers, longest) = talk.finish().unwrap_or_else(|e| panic!("{e}"));
    assert!(
        numbers > 10 && longest < SHORT_TIMEOUT,
        "{numbers}, {longest:?}"
    );
}

#[test]
fn a_key_that_an_update_brings_is_shown_nowhere() {
    let Some(site) = Site::raise(lab::sites::partial_by_gateways, ENCRYPTED) else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site.appliance(APPLIANCE).unwrap_or_else(|e| panic!("{e}"));
    let json = |words: &[&str]| handle.json(words).unwrap_or_else(|e| panic!("{e}"));
    let mut objects = json(&["desired"])["snapshot"]["objects"].clone();
    let peers = objects["peers"].as_object_mut().expect("peers");
    let circuit = &mut peers.values_mut().next().expect("the provider")["circuit"];
    let file = circuit["key_file"].take();
    let key = text(file.as_str().expect("a path").as_ref())
        .trim()
        .to_owned();
    *circuit = json!({"id": circuit["id"], "key": key});
    let state = local(&text(&handle.config_path()));
    std::fs::write(handle.config_path(), &state).expect("the lab's own file");
    let output = handle.cli(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    assert!(output.ok(), "{}", output.stderr);
    let snapshot = json!({"snapshot": {"revision": 1, "objects": objects}});
    apply(&site, &snapshot).unwrap_or_else(|e| panic!("{e}"));
    site.reach("prod-b", A);
    // A key that is none, and one beside a file.
    let mut wrong = snapshot.clone();
    wrong["snapshot"]["revision"] = json!(2);
    for peer in wrong["snapshot"]["objects"]["peers"]
        .as_object_mut()
        .expect("peers")
        .values_mut()
    {
        peer["circuit"]["key_file"] = json!("/etc/causeway/circuit.key");
        peer["preshared_key"] = json!(&key[1..]);
    }
    let refused = apply(&site, &wrong).expect_err("wrong keys");
    assert!(refused.contains("not 32 bytes in base64"), "{refused}");
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    handle.start().unwrap_or_else(|e| panic!("{e}"));
    site.reach("prod-b", A);

    let whole = json(&["desired", "--keys"]).to_string();
    assert!(whole.contains(&key), "it is there on request");
    let log = text(&handle.log_path());
    assert!(log.contains("update applied"), "the log of the process");
    let shown = [
        json(&["desired"]).to_string(),
        json(&["status", "--json"]).to_string(),
        refused,
        log,
    ];
    let middle = &key[8..32];
    for text in shown {
        assert!(!text.contains(middle), "{text}");
    }
    let again = apply(&site, &json!({"snapshot": json(&["desired"])["snapshot"]}));
    let error = again.expect_err("the keys are missing");
    assert!(
        error.contains("other contents") || error.contains("desired --keys"),
        "{error}"
    );
}

/// The tunnel of the only peer.
fn tunnel(site: &Site) -> Value {
    site.status(APPLIANCE)["peers"][0]["tunnel"].clone()
}

#[test]
fn an_update_that_cannot_be_stored_leaves_peers_with_their_sessions() {
    let Some(site) = Site::raise(lab::sites::partial_by_gateways, ENCRYPTED) else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site.appliance(APPLIANCE).unwrap_or_else(|e| panic!("{e}"));
    let objects = desired(&site)["snapshot"]["objects"].clone();
    let file = local(&text(&handle.config_path()));
    std::fs::write(handle.config_path(), &file).expect("the lab's own file");
    handle.must(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    let snapshot = json!({"snapshot": {"revision": 1, "objects": objects}});
    apply(&site, &snapshot).unwrap_or_else(|e| panic!("{e}"));
    site.reach("prod-b", A);
    let before = tunnel(&site);

    // Another identity of the peer, which ends the session: but the state cannot be replaced.
    let state = handle.state_dir().join("state.json");
    let aside = handle.state_dir().join("aside.json");
    std::fs::rename(&state, &aside).expect("the lab's own file");
    std::fs::create_dir(&state).expect("a folder in its place");
    let (name, peer) = objects["peers"]
        .as_object()
        .and_then(|peers| peers.iter().next())
        .expect("the provider");
    let mut other = peer.clone();
    other["public_key"] = json!("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
    let put = json!({"delta": {"base": 1, "revision": 2, "put": {"peers": {name: other}}}});
    let refused = apply(&site, &put).expect_err("it cannot be stored");
    assert!(
        refused.contains("the change could not be applied and was undone"),
        "{refused}"
    );
    let after = tunnel(&site);
    for counter in ["tx_packets", "rx_packets", "handshakes"] {
        let count = |of: &Value| of[counter].as_u64();
        assert!(count(&after) >= count(&before), "{before} {after}");
        assert!(count(&before) > Some(0), "{before}");
    }
    assert_eq!(after["public_key"], before["public_key"]);
    assert_eq!(site.status(APPLIANCE)["desired"]["revision"], 1);
    site.reach("prod-b", A);

    // A new process has the previous state, and the same update is accepted then.
    std::fs::remove_dir(&state).expect("the folder is empty");
    std::fs::rename(&aside, &state).expect("the lab's own file");
    handle.kill().unwrap_or_else(|e| panic!("{e}"));
    handle.start().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(desired(&site)["snapshot"]["revision"], 1);
    site.reach("prod-b", A);
    apply(&site, &put).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(tunnel(&site)["up"], false, "another identity");
}

#[test]
fn a_reload_to_an_address_in_use_leaves_the_listener_and_all_else() {
    const PROVIDER: &str = "provider-appliance";
    let Some(site) = Site::raise(lab::sites::partial_by_gateways, ENCRYPTED) else {
        return;
    };
    site.over("prod-a");
    site.reach("prod-b", A);
    let handle = site.appliance(PROVIDER).unwrap_or_else(|e| panic!("{e}"));
    let good = text(&handle.config_path());
    let listens_at = |port: u16| {
        site.inside(PROVIDER, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)))
            .is_ok()
    };
    let bind = |port: u16| {
        let bound = site.inside(PROVIDER, || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        });
        bound.unwrap_or_else(|e| panic!("{port}: {e}"))
    };
    let reload = || handle.cli(&["reload"]).unwrap_or_else(|e| panic!("{e}"));
    let changed = good.replace("0.0.0.0:6443", "0.0.0.0:7443").replacen(
        "[appliance]\n",
        "[appliance]\nmetrics = \"127.0.0.1:7444\"\n",
        1,
    );
    assert!(
        changed.contains("7443") && changed.contains("7444"),
        "{good}"
    );
    std::fs::write(handle.config_path(), &changed).expect("the lab's own file");
    for (taken, says) in [
        (7443, "tls.listen: "),
        (7444, "write another appliance.metrics"),
    ] {
        let other = bind(taken);
        let refused = reload();
        assert!(!refused.ok(), "{}", refused.stdout);
        assert!(
            refused.stderr.contains(says) && refused.stderr.contains(&taken.to_string()),
            "{}",
            refused.stderr
        );
        drop(other);
        // Neither half is in force, and the addresses are free.
        assert!(listens_at(6443), "{taken}");
        drop((bind(7443), bind(7444)));
        let status = site.status(PROVIDER);
        assert_eq!(status["tls"]["listen"][0], "0.0.0.0:6443");
        assert_eq!(status["not_ready"], json!([]));
        site.reach("prod-b", A);
    }
    let accepted = reload();
    assert!(accepted.ok(), "{}", accepted.stderr);
    assert!(listens_at(7443) && listens_at(7444) && !listens_at(6443));
    // A wildcard gives way to one of its addresses.
    let narrow = changed.replace("0.0.0.0:7443", "127.0.0.1:7443");
    std::fs::write(handle.config_path(), &narrow).expect("the lab's own file");
    let accepted = reload();
    assert!(accepted.ok(), "{}", accepted.stderr);
    assert!(listens_at(7443));
    assert_eq!(site.status(PROVIDER)["tls"]["listen"][0], "127.0.0.1:7443");
}
