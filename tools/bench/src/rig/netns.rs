//! Network namespaces of a benchmark.

use std::{
    fs::File,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use causeway_tests::packet::Mac;
use nix::sched::{CloneFlags, setns};

use super::command::sh;

/// Namespaces by these names; removed when dropped, and before they are made.
pub struct Namespaces(&'static [&'static str]);

impl Namespaces {
    /// Removes what an earlier run left, and makes them, each with its loopback device up.
    pub fn make(names: &'static [&'static str]) -> anyhow::Result<Self> {
        remove(names);
        let this = Self(names);
        for name in names {
            sh(&format!("ip netns add {name}"))?;
            sh(&format!("ip -n {name} link set lo up"))?;
        }
        Ok(this)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(names: &[&str]) {
    for name in names {
        // The namespace may not exist. This does not use `lab::run`: Ctrl-C must not stop the
        // clean-up.
        let _ = Command::new("ip")
            .args(["netns", "del", name])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Moves this thread into a namespace for the rest of its life.
pub fn enter(namespace: &str) -> anyhow::Result<()> {
    let path = format!("/run/netns/{namespace}");
    let there = File::open(&path).with_context(|| format!("open {path}"))?;
    setns(&there, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {namespace}"))
}

/// Runs `f` on this thread in a namespace, then returns to the thread's namespace. Sockets that `f`
/// opens stay in the namespace, whichever thread uses them.
pub fn within<T>(namespace: &str, f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let here = File::open("/proc/thread-self/ns/net").context("open this thread's namespace")?;
    enter(namespace)?;
    let result = f();
    setns(&here, CloneFlags::CLONE_NEWNET).context("return from the namespace")?;
    result
}

/// A MAC address as `ip` and `nft` write it.
pub fn mac(mac: Mac) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// Packets that a link has received, by the driver's count.
pub fn received(namespace: &str, link: &str) -> anyhow::Result<u64> {
    let output = Command::new("ip")
        .args(["-n", namespace, "-j", "-s", "link", "show", link])
        .output()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    json[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .with_context(|| format!("received packets of {link} in {namespace}"))
}

/// Drops frames that arrive on a link at the earliest hook of the kernel, so that the kernel
/// answers none. `rules` are further rules of the chain, each ended by a semicolon.
pub fn drop_arrivals(namespace: &str, link: &str, rules: &str) -> anyhow::Result<()> {
    let text = format!(
        "table netdev t {{ chain c {{ type filter hook ingress device {link} priority 0; \
         policy drop; {rules} }}; }}\n"
    );
    load_ruleset(namespace, &text)
}

/// Loads an nftables ruleset.
pub fn load_ruleset(namespace: &str, text: &str) -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    super::command::exec(namespace, &format!("nft -f {}", file.path().display())).map(drop)
}
