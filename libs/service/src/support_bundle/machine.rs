//! Files below `/proc` and `/sys` by which the kernel describes a machine: no other program is
//! needed.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

/// Longest file of the kernel that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Files below the root that are taken as they are.
pub const FILES: [&str; 28] = [
    "etc/os-release",
    "proc/interrupts",
    "proc/loadavg",
    "proc/meminfo",
    "proc/modules",
    "proc/net/arp",
    "proc/net/dev",
    "proc/net/if_inet6",
    "proc/net/ipv6_route",
    "proc/net/netstat",
    "proc/net/ptype",
    "proc/net/route",
    "proc/net/snmp",
    "proc/net/snmp6",
    "proc/net/sockstat",
    "proc/net/softnet_stat",
    "proc/net/tcp",
    "proc/net/udp",
    "proc/net/udp6",
    "proc/pressure/cpu",
    "proc/pressure/io",
    "proc/pressure/memory",
    "proc/softirqs",
    "proc/stat",
    "proc/uptime",
    "proc/version",
    "proc/vmstat",
    "sys/class/dmi/id/product_name",
];

/// Attributes of an interface, of those that the kernel has.
const ATTRIBUTES: [&str; 10] = [
    "address",
    "carrier",
    "carrier_changes",
    "duplex",
    "flags",
    "gro_flush_timeout",
    "ifindex",
    "mtu",
    "operstate",
    "speed",
];

/// Settings of the kernel for all interfaces, and for each.
const SETTINGS: [&str; 10] = [
    "net/core/bpf_jit_enable",
    "net/core/netdev_budget",
    "net/core/netdev_budget_usecs",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "kernel/unprivileged_bpf_disabled",
    "vm/overcommit_memory",
];
/// Settings of each interface, by address family.
const INTERFACE_SETTINGS: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &["arp_announce", "arp_ignore", "forwarding", "rp_filter"],
    ),
    ("ipv6", &["accept_ra", "disable_ipv6", "forwarding", "mtu"]),
];

/// Reads a file of at most [`MAX_FILE`] bytes; what is longer is cut off, and says so.
///
/// # Errors
/// That of the kernel.
pub fn read(path: &Path) -> io::Result<String> {
    let (mut text, is_cut) = read_within(path, MAX_FILE)?;
    if is_cut {
        text.push_str("\n(cut off here)\n");
    }
    Ok(text)
}

/// At most so many bytes of a file, and whether there are more.
///
/// # Errors
/// That of the kernel.
pub fn read_within(path: &Path, most: u64) -> io::Result<(String, bool)> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    let is_cut = bytes.len() as u64 > most;
    bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    Ok((String::from_utf8_lossy(&bytes).into_owned(), is_cut))
}

/// Each interface with its driver, attributes, queues and statistics.
///
/// # Errors
/// When the interfaces cannot be listed.
pub fn interfaces(root: &Path) -> io::Result<String> {
    let mut text = String::new();
    for name in names(&root.join("sys/class/net"))? {
        let folder = root.join("sys/class/net").join(&name);
        line(&mut text, &name, "");
        let driver = fs::read_link(folder.join("device/driver")).ok();
        let driver = driver.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
        line(&mut text, "    driver", &driver.unwrap_or_default());
        for attribute in ATTRIBUTES {
            if let Ok(value) = read(&folder.join(attribute)) {
                line(&mut text, &format!("    {attribute}"), &value);
            }
        }
        let queues = names(&folder.join("queues")).unwrap_or_default();
        line(&mut text, "    queues", &queues.join(" "));
        for statistic in names(&folder.join("statistics")).unwrap_or_default() {
            if let Ok(value) = read(&folder.join("statistics").join(&statistic)) {
                line(&mut text, &format!("    {statistic}"), &value);
            }
        }
    }
    Ok(text)
}

/// Settings of the kernel's network stack, a line each.
pub fn settings(root: &Path) -> String {
    let mut text = String::new();
    let mut add = |name: &str| {
        if let Ok(value) = read(&root.join("proc/sys").join(name)) {
            line(&mut text, name, &value);
        }
    };
    SETTINGS.into_iter().for_each(&mut add);
    for (family, settings) in INTERFACE_SETTINGS {
        let folder = format!("net/{family}/conf");
        let interfaces = names(&root.join("proc/sys").join(&folder));
        for interface in interfaces.unwrap_or_default() {
            for setting in settings {
                add(&format!("{folder}/{interface}/{setting}"));
            }
        }
    }
    text
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name}: {}", value.trim_end());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn interfaces_are_told_with_driver_queues_and_statistics() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("sys/class/net/eth0");
        for part in ["statistics", "queues/rx-0", "device"] {
            fs::create_dir_all(folder.join(part)).expect("a folder");
        }
        fs::write(folder.join("mtu"), "1500\n").expect("a file");
        fs::write(folder.join("statistics/rx_dropped"), "7\n").expect("a file");
        symlink("../../drivers/vmxnet3", folder.join("device/driver")).expect("a link");
        let text = interfaces(root.path()).expect("a list");
        let expected = "eth0: \n    driver: vmxnet3\n    mtu: 1500\n    queues: rx-0\n    \
                        rx_dropped: 7\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn settings_are_told_of_each_interface() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("proc/sys/net/ipv4/conf/eth0");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("rp_filter"), "1\n").expect("a file");
        assert_eq!(settings(root.path()), "net/ipv4/conf/eth0/rp_filter: 1\n");
    }

    #[test]
    fn a_file_that_is_too_long_is_cut_off() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("long");
        fs::write(&path, vec![b'x'; MAX_FILE as usize + 5]).expect("a file");
        let text = read(&path).expect("a text");
        assert_eq!(
            text.trim_end_matches("\n(cut off here)\n").len() as u64,
            MAX_FILE
        );
        assert!(text.ends_with("(cut off here)\n"));
    }
}
