//! The shipped systemd units under a real systemd, in namespaces of their own.
//!
//! ```text
//!   this test ── unshare ─▶ init.sh ─▶ systemd (pid 1) ─┬─ causeway-appliance.service
//!       │                                              ├─ causeway-gateway.service
//!       │                                              └─ causeway-director.service
//!       └─ nsenter ─▶ systemctl show, reload, kill, stop, start, restart
//! ```
//!
//! The units are those of the repository, byte for byte; systemd, its watchdog and its sandbox are
//! real. A process ends with its parent, and all files are in memory: a test that is killed leaves
//! one empty cgroup, which the next run removes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use causeway_tests::{harness::workspace_root, skip};
use nix::{sys::prctl, sys::signal::Signal, unistd::geteuid};

/// Longer than two watchdog timeouts of the units (`WatchdogSec=20`).
const OBSERVATION_TIME: Duration = Duration::from_secs(45);
/// Limit for each step, such as a start.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// All units of the repository; a test compares them.
const UNITS: [&str; 3] = [
    "causeway-appliance.service",
    "causeway-gateway.service",
    "causeway-director.service",
];
/// Name of the cgroups of these tests, with a process id after it.
const CGROUP: &str = "causeway-units-";

const APPLIANCE_CONFIG: &str = r#"
[appliance]
name = "site-one"
role = "tenant"
[agent]
[uplink]
interface = "uplink"
[tunnel]
private_key_file = "/etc/causeway/tunnel.key"
[[tenant]]
name = "acme"
[[peer]]
name = "provider"
address = "192.0.2.5"
public_key = "//////////////////////////////////////////8="
[[network]]
name = "office"
tenant = "acme"
peer = "provider"
vni = 1001
interface = "lan"
prefixes = ["10.1.0.0/24"]
gateway = ["10.1.0.1"]
"#;

const GATEWAY_CONFIG: &str = r#"
[gateway]
name = "gw1"
listen = ["198.51.100.1:6180"]
metrics = "127.0.0.1:9180"
[agent]
[[tenant]]
name = "acme"
[[circuit]]
id = "3f9a1c0277d1e05b"
tenant = "acme"
keys = ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="]
"#;

const DIRECTOR_CONFIG: &str = r#"
[director]
metrics = "127.0.0.1:9186"
[agents]
provider = "provider.example"
server_name = "director.provider.example"
"#;

/// Why the test cannot run here, if it cannot.
fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    for program in [
        "/lib/systemd/systemd",
        "/usr/bin/unshare",
        "/usr/bin/nsenter",
    ] {
        if !Path::new(program).exists() {
            return Some(format!("needs {program} (packages systemd, util-linux)"));
        }
    }
    cgroup2()
        .is_none()
        .then(|| "needs a cgroup2 mount".to_owned())
}

/// The mount point of the unified cgroup hierarchy.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.find_map(|mount| (mount.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(mount[1])))
}

/// A file of the build, or what the environment has in its place.
fn built(variable: &str, file: &str) -> PathBuf {
    let path = std::env::var_os(variable)
        .map_or_else(|| workspace_root().join("target").join(file), PathBuf::from);
    path.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{}: {error}; run `cargo xtask test`, which builds it",
            path.display()
        )
    })
}

/// A cgroup for a whole systemd, removed with those below it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let root = cgroup2().expect("a cgroup2 mount");
        for entry in fs::read_dir(&root).expect("cgroups").flatten() {
            // Left by a killed run. A cgroup in use cannot be removed.
            if entry.file_name().to_string_lossy().starts_with(CGROUP) {
                remove(&entry.path());
            }
        }
        let path = root.join(format!("{CGROUP}{}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }
}

/// Removes a cgroup and those below it, as far as they have no process.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let begun = Instant::now();
        while self.0.exists() && begun.elapsed() < STEP_TIMEOUT {
            remove(&self.0);
            sleep(Duration::from_millis(50));
        }
    }
}

/// A systemd with all units.
struct Machine {
    unshare: Child,
    /// The process id of systemd, outside.
    init: u32,
    _cgroup: Cgroup,
}

impl Machine {
    fn boot() -> Self {
        let cgroup = Cgroup::new();
        let procs = cgroup.0.join("cgroup.procs");
        let root = workspace_root().canonicalize().expect("the repository");
        let mut command = Command::new("/usr/bin/unshare");
        command
            .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--cgroup"])
            .args(["--fork", "--kill-child", "--mount-proc", "/bin/sh", "-c"])
            .arg(include_str!("init.sh"))
            .env("container", "test")
            .env(
                "APPLIANCE",
                built("CAUSEWAY_APPLIANCE", "release/causeway-appliance"),
            )
            .env(
                "GATEWAY",
                built("CAUSEWAY_GATEWAY", "release/causeway-gateway"),
            )
            .env(
                "DIRECTOR",
                built("CAUSEWAY_DIRECTOR", "release/causeway-director"),
            )
            .env(
                "APPLIANCE_OBJECT",
                built("CAUSEWAY_BPF_OBJECT", "bpf/appliance.bpf.o"),
            )
            .env(
                "GATEWAY_OBJECT",
                built("CAUSEWAY_GATEWAY_BPF_OBJECT", "bpf/gateway.bpf.o"),
            )
            .env(
                "APPLIANCE_UNIT",
                root.join("appliance-user/systemd").join(UNITS[0]),
            )
            .env("GATEWAY_UNIT", root.join("gateway/systemd").join(UNITS[1]))
            .env(
                "GATEWAY_SYSUSERS",
                root.join("gateway/systemd/causeway-gateway.sysusers.conf"),
            )
            .env(
                "DIRECTOR_UNIT",
                root.join("director/systemd").join(UNITS[2]),
            )
            .env(
                "DIRECTOR_SYSUSERS",
                root.join("director/systemd/causeway-director.sysusers.conf"),
            )
            .env("DIRECTOR_CONFIG", DIRECTOR_CONFIG)
            .env("GATEWAY_CONFIG", GATEWAY_CONFIG)
            .env("APPLIANCE_CONFIG", APPLIANCE_CONFIG)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        // SAFETY: only system calls follow: a write to an open path and prctl(2).
        unsafe {
            command.pre_exec(move || {
                fs::write(&procs, "0")?;
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        let unshare = command.spawn().expect("start unshare");
        let mut machine = Self {
            unshare,
            init: 0,
            _cgroup: cgroup,
        };
        machine.wait("systemd starts", |machine| {
            machine.init = machine.child().unwrap_or(0);
            machine.init != 0 && machine.systemctl(&["show"]).status.success()
        });
        machine
    }

    /// The child of unshare: the first process inside.
    fn child(&mut self) -> Option<u32> {
        if let Some(status) = self.unshare.try_wait().expect("a child") {
            panic!("the namespaces ended: {status}");
        }
        let id = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn inside(&self, program: &str, args: &[&str]) -> Output {
        let output = Command::new("/usr/bin/nsenter")
            .args(["--target", &self.init.to_string()])
            .args([
                "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", program,
            ])
            .args(args)
            .stdin(Stdio::null())
            .output();
        output.expect("run nsenter")
    }

    fn systemctl(&self, args: &[&str]) -> Output {
        self.inside("systemctl", args)
    }

    /// A command of systemctl that must succeed.
    #[track_caller]
    fn must(&self, args: &[&str]) {
        let output = self.systemctl(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "systemctl {}: {error}\n{}",
            args.join(" "),
            self.logs()
        );
    }

    fn unit(&self, unit: &str) -> Unit {
        let names = "ActiveState,SubState,Result,MainPID,NRestarts,ExecMainStatus,StatusText";
        let output = self.systemctl(&["show", unit, "--property", names]);
        let text = String::from_utf8_lossy(&output.stdout);
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Unit(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    fn log(&self, unit: &str) -> String {
        let name = unit.trim_end_matches(".service");
        let output = self.inside("cat", &[&format!("/run/logs/{name}")]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn logs(&self) -> String {
        let logs = UNITS.map(|unit| format!("{unit} {:?}:\n{}", self.unit(unit), self.log(unit)));
        logs.join("\n")
    }

    #[track_caller]
    fn wait(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(
                begun.elapsed() < STEP_TIMEOUT,
                "never: {what}\n{}",
                self.logs()
            );
            sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its end is the end of every process inside (`--kill-child`), and of the namespaces.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Properties of a unit.
#[derive(Debug)]
struct Unit(BTreeMap<String, String>);

impl Unit {
    fn get(&self, property: &str) -> &str {
        self.0.get(property).map_or("", String::as_str)
    }

    fn is_active(&self) -> bool {
        self.get("ActiveState") == "active" && self.get("SubState") == "running"
    }
}

/// Under the sandbox of the unit the appliance cannot mount tracefs, so its unit has systemd do it;
/// where that is masked, status says what to do.
fn kernel_drops_are_counted_or_the_remedy_is_named(machine: &mut Machine) {
    const MOUNT: &str = "sys-kernel-tracing.mount";
    let is_counted = |machine: &Machine| {
        let output = machine.inside("causeway-appliance", &["status", "--json"]);
        let json = String::from_utf8_lossy(&output.stdout);
        let status: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
        let has = |list: &str, text: &str| status[list].to_string().contains(text);
        let counted = has("user_counters", "xdp_redirect_failed");
        let named = has("warnings", "mount -t tracefs tracefs /sys/kernel/tracing");
        (counted || named).then(|| {
            assert_ne!(counted, named, "{json}");
            counted
        })
    };
    machine.wait("kernel drops are counted", |m| is_counted(m) == Some(true));
    machine.must(&["mask", "--runtime", MOUNT]);
    machine.must(&["stop", MOUNT]);
    machine.must(&["restart", UNITS[0]]);
    machine.wait("the remedy is named", |m| is_counted(m) == Some(false));
    machine.must(&["unmask", "--runtime", MOUNT]);
    machine.must(&["restart", UNITS[0]]);
    machine.wait("kernel drops are counted again", |m| {
        is_counted(m) == Some(true)
    });
}

#[test]
fn every_unit_of_the_repository_is_tested() {
    let files = test_support::repository::files(&[".service", ".toml"]);
    let mut found: Vec<_> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "service"))
        .filter_map(|path| path.file_name()?.to_str())
        .collect();
    found.sort_unstable();
    let mut tested = UNITS;
    tested.sort_unstable();
    assert_eq!(found, tested);
}

#[test]
fn shipped_units_stay_up_reload_stop_and_restart() {
    if let Some(reason) = missing() {
        skip(&reason);
        return;
    }
    let mut machine = Machine::boot();
    for unit in UNITS {
        machine.wait("the unit starts", |m| m.unit(unit).is_active());
    }
    let begun = Instant::now();
    let pids = UNITS.map(|unit| machine.unit(unit).get("MainPID").to_owned());

    // A reload by the unit's command, whose output is in the log; and one by the signal.
    let count = |machine: &Machine, unit, text| machine.log(unit).matches(text).count();
    for unit in UNITS {
        machine.must(&["reload", unit]);
        machine.wait("the reload is reported", |m| {
            count(m, unit, "\nreloaded\n") == 1
        });
        // The director of this test has no certificate to reload.
        let reloaded = match unit == UNITS[2] {
            true => "configuration read again",
            false => "configuration reloaded",
        };
        let before = count(&machine, unit, reloaded);
        machine.must(&["kill", "--signal=HUP", "--kill-whom=main", unit]);
        machine.wait("the reload is logged", |m| {
            count(m, unit, reloaded) == before + 1
        });
        machine.wait("the reload is complete", |m| m.unit(unit).is_active());
    }

    // Two watchdog timeouts later all are the same processes.
    sleep(OBSERVATION_TIME.saturating_sub(begun.elapsed()));
    for (unit, pid) in UNITS.into_iter().zip(&pids) {
        let now = machine.unit(unit);
        assert!(now.is_active(), "{now:?}\n{}", machine.logs());
        assert_eq!(now.get("NRestarts"), "0", "{unit}: {}", machine.logs());
        assert_eq!(now.get("MainPID"), pid, "{unit}: {}", machine.logs());
    }

    for unit in UNITS {
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        assert!(machine.log(unit).contains(&version), "{}", machine.logs());
    }

    let status = machine.unit(UNITS[1]);
    assert_eq!(status.get("StatusText"), "running, 0 connections");

    // Gateway and director are not root.
    for (unit, pid) in UNITS.into_iter().zip(&pids).skip(1) {
        let owner = machine.inside("stat", &["--format=%U", &format!("/proc/{pid}")]);
        let owner = String::from_utf8_lossy(&owner.stdout).trim().to_owned();
        assert_eq!(format!("{owner}.service"), unit);
    }

    // The director reads its store and serves its API.
    let output = machine.inside("causeway-director", &["status", "--json"]);
    let json = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(json.contains("\"audit\""), "{json}\n{}", machine.logs());
    let url = "http://127.0.0.1:6185/v1/openapi.json";
    let output = machine.inside("curl", &["--silent", "--fail", url]);
    assert!(output.status.success(), "{output:?}\n{}", machine.logs());

    // The gateway loads its XDP program without being root, and a drain does not end it.
    let pid = status.get("MainPID").to_owned();
    let output = machine.inside("causeway-gateway", &["status", "--json"]);
    let json = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        json.contains("\"mode\":\"native\""),
        "{json}\n{}",
        machine.logs()
    );
    assert!(
        machine
            .inside("causeway-gateway", &["drain"])
            .status
            .success()
    );
    machine.wait("it is drained", |m| {
        m.unit(UNITS[1]).get("StatusText") == "drained, 0 connections"
    });
    assert_eq!(machine.unit(UNITS[1]).get("MainPID"), pid);
    assert!(
        machine
            .inside("causeway-gateway", &["undrain"])
            .status
            .success()
    );

    kernel_drops_are_counted_or_the_remedy_is_named(&mut machine);

    // A stop is clean; a start and a restart bring new processes. All units at once.
    let all = |verb: &'static str| [&[verb][..], &UNITS[..]].concat();
    machine.must(&all("stop"));
    for unit in UNITS {
        let stopped = machine.unit(unit);
        assert_eq!(stopped.get("ActiveState"), "inactive", "{}", machine.logs());
        assert_eq!(stopped.get("Result"), "success", "{}", machine.logs());
        assert_eq!(stopped.get("ExecMainStatus"), "0", "{}", machine.logs());
    }
    let mut before = pids;
    for verb in ["start", "restart"] {
        machine.must(&all(verb));
        let started = UNITS.map(|unit| machine.unit(unit));
        for (now, pid) in started.iter().zip(&before) {
            assert!(now.is_active(), "{}", machine.logs());
            assert_ne!(now.get("MainPID"), pid, "{verb}");
        }
        before = started.map(|unit| unit.get("MainPID").to_owned());
    }

    // A process that is killed is started again, however often: systemd by itself gives up after
    // five starts in ten seconds.
    for restarts in 1..=6 {
        for unit in UNITS {
            machine.must(&["kill", "--signal=KILL", "--kill-whom=main", unit]);
        }
        for unit in UNITS {
            machine.wait("systemd restarts the process", |m| {
                let now = m.unit(unit);
                now.is_active() && now.get("NRestarts") == restarts.to_string()
            });
        }
    }

    // The watchdog: systemd ends a process that is stopped, and starts another one.
    for unit in UNITS {
        machine.must(&["kill", "--signal=STOP", "--kill-whom=main", unit]);
    }
    for unit in UNITS {
        machine.wait("the watchdog ends a process that hangs", |m| {
            let now = m.unit(unit);
            now.is_active() && now.get("NRestarts") == "7"
        });
    }

    for unit in UNITS {
        let names = "NoNewPrivileges,PrivateDevices,PrivateIPC,PrivateTmp,ProtectClock,\
                     ProtectHome,ProtectKernelLogs,ProtectKernelModules,ProtectControlGroups,\
                     RestrictNamespaces,RestrictSUIDSGID,LockPersonality,MemoryDenyWriteExecute";
        let shown = machine.systemctl(&["show", unit, "--property", names]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert_eq!(
            shown.lines().count(),
            names.split(',').count(),
            "{unit}: {shown}"
        );
        assert!(
            shown.lines().all(|line| line.ends_with("=yes")),
            "{unit}: {shown}"
        );
        let names = "ProtectProc,ProtectSystem,SystemCallFilter";
        let shown = machine.systemctl(&["show", unit, "--property", names]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("ProtectProc=invisible"), "{unit}: {shown}");
        assert!(shown.contains("ProtectSystem=strict"), "{unit}: {shown}");
        assert!(shown.contains(" accept4 "), "{unit}: {shown}");
        for call in ["keyctl", "kexec_load", "ptrace"] {
            let mut words = shown.split_whitespace();
            assert!(!words.any(|word| word == call), "{unit}: {shown}");
        }
        let names = "LimitCORE,CapabilityBoundingSet";
        let shown = machine.systemctl(&["show", unit, "--property", names]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("LimitCORE=0"), "{shown}");
        let has_capabilities = shown.contains("cap_net_bind_service");
        assert_eq!(has_capabilities, unit != UNITS[2], "{unit}: {shown}");
    }
}
