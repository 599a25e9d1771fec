//! A change that an interface refuses leaves the running gateway as it was.

use serde_json::json;

use super::*;

/// Listens on both sides, and on a bridge, which has no native XDP.
const WITH_BRIDGE: &str = "listen = [\"192.0.2.1:6180\", \"198.51.100.1:6180\", \
                           \"203.0.113.1:6180\"]\n";
const WITHOUT: &str = "listen = [\"192.0.2.1:6180\", \"198.51.100.1:6180\"]\n";
const NO_NATIVE: &str = "attach XDP to br0 in native mode";

/// Adds keys to the table `[gateway]` of the written configuration; only the machine's part of it
/// stays if `is_local`.
fn amend(site: &Site, keys: &str, is_local: bool) {
    let path = site.dir.path().join("gw.toml");
    let text = fs::read_to_string(&path).expect("a file");
    let mut text = text.replacen("drain = 0\n", &format!("drain = 0\n{keys}"), 1);
    if is_local && let Some(objects) = text.find("[[tenant]]") {
        text.truncate(objects);
    }
    fs::write(&path, text).expect("written");
}

/// A command that must be refused; what it prints.
fn refused(site: &Site, words: &[&str]) -> String {
    let output = Command::new(program())
        .args(words)
        .arg("--socket")
        .arg(site.socket())
        .output()
        .expect("run");
    assert!(!output.status.success(), "{words:?} was accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn add_bridge(site: &Site) {
    site.ip("gw", "link add br0 type bridge");
    site.ip("gw", "addr add 203.0.113.1/24 dev br0");
    site.ip("gw", "link set br0 up");
}

fn interfaces(site: &Site) -> Vec<String> {
    let circuits = site.circuits();
    let list = circuits["xdp"]["interfaces"].as_array().expect("a list");
    let names = list
        .iter()
        .map(|i| i["name"].as_str().expect("a name").to_owned());
    names.collect()
}

/// Whether the gateway accepts TCP connections at the bridge's address.
fn listens_at_bridge(site: &Site) -> bool {
    site.within("gw", || TcpStream::connect("203.0.113.1:6180").is_ok())
}

#[test]
fn a_reload_that_an_interface_refuses_changes_nothing() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    add_bridge(&site);
    site.write(&[1], "xdp = \"native\"", "");
    amend(&site, WITHOUT, false);
    site.start();
    let mut a = site.end("a", 1, Side::A, AT_A[0]);
    let mut b = site.end("b", 1, Side::B, AT_B[0]);
    a.bind();
    b.bind();
    talk(&a, &b, 10);
    let before = site.cli(&["desired"]);
    // Another address to listen on, another circuit, and a limit: none of these takes effect.
    site.write(&[1, 2], "xdp = \"native\"", "datagrams = 1");
    amend(&site, WITH_BRIDGE, false);
    let text = refused(&site, &["reload"]);
    assert!(text.contains(NO_NATIVE), "{text}");
    assert_eq!(site.cli(&["desired"]), before);
    assert_eq!(interfaces(&site), ["ga", "gb"]);
    assert!(!listens_at_bridge(&site));
    talk(&a, &b, 10);
    assert_eq!(site.carried(1), ([20; 2], [20; 2]));
    // The same file is accepted when the interface is gone.
    site.ip("gw", "link del br0");
    site.ip("gw", "link add br0 type veth peer name br1");
    site.ip("gw", "addr add 203.0.113.1/24 dev br0");
    site.ip("gw", "link set br0 up");
    site.cli(&["reload"]);
    assert_eq!(interfaces(&site), ["br0", "ga", "gb"]);
    assert!(listens_at_bridge(&site));
}

#[test]
fn an_update_that_an_interface_refuses_changes_nothing() {
    let Some(mut site) = Site::raise() else {
        return;
    };
    add_bridge(&site);
    site.write(&[], "xdp = \"native\"", "");
    let state = site.dir.path().join("state");
    amend(
        &site,
        &format!("{WITH_BRIDGE}state_dir = {state:?}\n"),
        true,
    );
    // Without circuits no interface needs the program.
    site.start();
    assert_eq!(interfaces(&site), [""; 0]);
    let keys = Side::BOTH.map(|side| Key::new(key(1, side)).to_base64());
    let update = |revision: u64, circuits: Value| {
        let objects = json!({"tenants": {"acme": {}}, "circuits": circuits});
        let text = json!({"snapshot": {"revision": revision, "objects": objects}});
        let path = site.dir.path().join("update.json");
        fs::write(&path, text.to_string()).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    let circuit = json!({id(1).to_string(): {"tenant": "acme", "keys": keys}});
    site.cli(&["apply", &update(1, json!({}))]);
    let before = site.cli(&["desired"]);
    let file = update(2, circuit.clone());
    let text = refused(&site, &["apply", &file]);
    assert!(text.contains(NO_NATIVE), "{text}");
    assert_eq!(site.cli(&["desired"]), before);
    assert_eq!(interfaces(&site), [""; 0]);
    // The same revision is accepted later: it was not taken.
    site.ip("gw", "link del br0");
    site.cli(&["apply", &file]);
    assert_eq!(interfaces(&site), ["ga", "gb"]);
    let mut a = site.end("a", 1, Side::A, AT_A[0]);
    let mut b = site.end("b", 1, Side::B, AT_B[0]);
    a.bind();
    b.bind();
    talk(&a, &b, 10);
    assert_eq!(site.carried(1), ([10; 2], [10; 2]));
}
