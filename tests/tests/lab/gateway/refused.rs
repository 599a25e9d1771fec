//! A change that an interface refuses leaves the running gateway as it was.

use serde_json::json;

use super::*;

/// Listens on both sides, and on a bridge, which has no native XDP.
const WITH_BRIDGE: &str = "listen = [\"192.0.2.1:6180\", \"198.51.100.1:6180\", \
                           \"203.0.113.1:6180\"]\n";
const WITHOUT: &str = "listen = [\"192.0.2.1:6180\", \"198.51.100.1:6180\"]\n";
const NO_NATIVE: &str = "attach XDP to br0 in native mode";

fn interfaces(site: &Site) -> Vec<String> {
    let modes = site.xdp_modes().into_iter();
    modes.map(|(name, _)| name).collect()
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
    site.add_bridge();
    site.write(&[1], "xdp = \"native\"", "");
    site.amend(WITHOUT);
    site.start();
    let [a, b] = site.bound_ends(1);
    let before = site.cli(&["desired"]);
    // Another address to listen on, another circuit, and a limit: none of these takes effect.
    site.write(&[1, 2], "xdp = \"native\"", "datagrams = 1");
    site.amend(WITH_BRIDGE);
    let text = site.refuses(&["reload"]);
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
    site.add_bridge();
    site.write(&[], "xdp = \"native\"", "");
    site.without_desired();
    site.amend(WITH_BRIDGE);
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
    let text = site.refuses(&["apply", &file]);
    assert!(text.contains(NO_NATIVE), "{text}");
    assert_eq!(site.cli(&["desired"]), before);
    assert_eq!(interfaces(&site), [""; 0]);
    // The same revision is accepted later: it was not taken.
    site.ip("gw", "link del br0");
    site.cli(&["apply", &file]);
    assert_eq!(interfaces(&site), ["ga", "gb"]);
    let _ends = site.bound_ends(1);
    assert_eq!(site.carried(1), ([10; 2], [10; 2]));
}
