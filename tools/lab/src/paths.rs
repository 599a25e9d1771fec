//! Paths of the built files.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Files that a lab needs besides itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The daemon, `causeway-appliance`.
    pub appliance: PathBuf,
    /// The gateways' daemon, `causeway-gateway`.
    pub gateway: PathBuf,
    pub bpf_object: PathBuf,
    /// The gateways' BPF object; without it circuits go through user space.
    pub gateway_bpf_object: PathBuf,
    /// The virtual switch's BPF object.
    pub lab_bpf_object: PathBuf,
}

impl Paths {
    /// From `CAUSEWAY_APPLIANCE`, `CAUSEWAY_GATEWAY`, `CAUSEWAY_BPF_OBJECT`,
    /// `CAUSEWAY_GATEWAY_BPF_OBJECT` and `CAUSEWAY_LAB_BPF_OBJECT`; what is not set is looked for
    /// next to the running program: `target/<profile>/causeway-appliance`, `target/bpf/*.o`.
    #[must_use]
    pub fn find() -> Self {
        let exe = env::current_exe().unwrap_or_default();
        let default = Self::next_to(&exe);
        let or = |name, default| env::var_os(name).map_or(default, PathBuf::from);
        Self {
            appliance: or("CAUSEWAY_APPLIANCE", default.appliance),
            gateway: or("CAUSEWAY_GATEWAY", default.gateway),
            bpf_object: or("CAUSEWAY_BPF_OBJECT", default.bpf_object),
            gateway_bpf_object: or("CAUSEWAY_GATEWAY_BPF_OBJECT", default.gateway_bpf_object),
            lab_bpf_object: or("CAUSEWAY_LAB_BPF_OBJECT", default.lab_bpf_object),
        }
    }

    fn next_to(exe: &Path) -> Self {
        let mut profile = exe.parent().unwrap_or(Path::new("")).to_owned();
        // Test programs are one directory further down.
        if profile.ends_with("deps") {
            profile.pop();
        }
        let bpf = profile.parent().unwrap_or(Path::new("")).join("bpf");
        Self {
            appliance: profile.join("causeway-appliance"),
            gateway: profile.join("causeway-gateway"),
            bpf_object: bpf.join("appliance.bpf.o"),
            gateway_bpf_object: bpf.join("gateway.bpf.o"),
            lab_bpf_object: bpf.join("lab.bpf.o"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_find_the_same_files() {
        let a = Paths::next_to(Path::new("/w/target/debug/causeway-lab"));
        let b = Paths::next_to(Path::new("/w/target/debug/deps/raise-0123"));
        assert_eq!(a, b);
        assert_eq!(a.appliance, Path::new("/w/target/debug/causeway-appliance"));
        assert_eq!(a.lab_bpf_object, Path::new("/w/target/bpf/lab.bpf.o"));
    }
}
