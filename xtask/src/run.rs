//! Builds and runs the lab's and the benchmarks' programs.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;

use crate::{
    bpf::{self, Route, ToolchainChoice},
    build_ebpf::{self, objects},
    cargo::cargo,
    contenders, qemu, setup,
    step::{run, step},
    target,
};

/// Tells a program where the built files are.
pub fn with_paths(command: &mut Command) -> &mut Command {
    command
        .env(
            "CAUSEWAY_APPLIANCE",
            target().join("release/causeway-appliance"),
        )
        .env(
            "CAUSEWAY_GATEWAY",
            target().join("release/causeway-gateway"),
        )
        .env(
            "CAUSEWAY_DIRECTOR",
            target().join("release/causeway-director"),
        )
        .env("CAUSEWAY_BPF_OBJECT", objects().join("appliance.bpf.o"))
        .env(
            "CAUSEWAY_GATEWAY_BPF_OBJECT",
            objects().join("gateway.bpf.o"),
        )
        .env("CAUSEWAY_LAB_BPF_OBJECT", objects().join("lab.bpf.o"))
        .env("CAUSEWAY_BENCH_BPF_OBJECT", objects().join("bench.bpf.o"))
        .env("CAUSEWAY_BORINGTUN", bpf::tools().join("bin/boringtun-cli"))
        .env("CAUSEWAY_BENCH_TOOLS", bpf::tools().join("bin"))
        .env("CAUSEWAY_QEMU", qemu::folder())
}

/// Builds the BPF programs, after installing what is missing but packages.
///
/// # Errors
/// If something cannot be installed or built.
pub fn prepare_bpf(route: Route) -> anyhow::Result<()> {
    setup::linker(route)?;
    setup::mount_bpffs()?;
    build_ebpf::build(route)
}

/// Builds everything that a run needs, after installing what is missing.
pub fn prepare(asked: ToolchainChoice, packages: &[&str]) -> anyhow::Result<()> {
    prepare_bpf(setup::packages(asked)?)?;
    build(packages)
}

/// Builds the programs of packages.
fn build(packages: &[&str]) -> anyhow::Result<()> {
    step(&format!("programs: {}", packages.join(" ")), || {
        let mut command = cargo();
        command.args(["build", "--release", "--locked"]);
        for package in packages {
            command.args(["--package", package]);
        }
        run(&mut command)
    })
}

/// Runs `causeway-lab VERB ARGS…`.
pub fn lab(asked: ToolchainChoice, verb: &str, args: &[String]) -> anyhow::Result<ExitCode> {
    // To look at a running lab, or to take it down, must not need a build.
    let built = target().join("release/causeway-lab").exists();
    if !(built && matches!(verb, "exec" | "list" | "down" | "capture" | "gateway")) {
        prepare(asked, &["appliance-user", "causeway-gateway", "lab"])?;
    }
    let mut command = Command::new(target().join("release/causeway-lab"));
    command.arg(verb).args(args);
    attended(&mut command)
}

/// Runs `causeway-bench ARGS…`.
pub fn bench(asked: ToolchainChoice, args: &[String]) -> anyhow::Result<ExitCode> {
    if let Some((name, rest)) = args.split_first()
        && name == "director"
    {
        return bench_director(rest);
    }
    // Options may precede the name. Contenders are needed for their benchmark only, and a smoke run
    // takes those that are there.
    let given = |word: &str| args.iter().any(|arg| arg == word);
    for (bench, of) in [
        ("encrypted", contenders::TUNNELS),
        ("relay", contenders::RELAYS),
    ] {
        if given(bench) && !given("--smoke") {
            contenders::install(&of);
        }
    }
    let packages = [
        "appliance-user",
        "causeway-gateway",
        "lab",
        "causeway-bench",
    ];
    prepare(asked, &packages)?;
    let mut command = Command::new(target().join("release/causeway-bench"));
    command.args(args);
    attended(&mut command)
}

/// Runs `director-bench ARGS…`, which needs neither BPF nor the other programs.
fn bench_director(args: &[String]) -> anyhow::Result<ExitCode> {
    build(&["causeway-director", "director-bench"])?;
    let mut command = Command::new(target().join("release/director-bench"));
    command.args(args);
    attended(&mut command)
}

/// Runs a program to its end with our terminal. Ctrl-C reaches it directly, being of the same
/// process group; we only wait, so that it can clean up.
fn attended(command: &mut Command) -> anyhow::Result<ExitCode> {
    // SAFETY: SIG_IGN is a valid disposition, and nothing else here handles SIGINT.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
    use std::os::unix::process::CommandExt as _;
    // SAFETY: signal(2) is async-signal-safe; an ignored signal would otherwise stay ignored.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
    let status = with_paths(command)
        .stdin(Stdio::inherit())
        .status()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}
