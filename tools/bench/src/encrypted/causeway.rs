//! Causeway: two appliances as an operator runs them. And their floor: the same AF_XDP sockets,
//! which forward without a cipher.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    EbpfLoader,
    maps::XskMap,
    programs::{Xdp, XdpMode},
};
use causeway_tests::packet;
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    contender::{Contender, OneCore},
    sites::{EAST, LAN, LEFT, Layer, Machine, PAIR, RIGHT, Sites, WAN, WEST},
};
use crate::{
    report::figures::Role,
    rig::{
        command::output,
        extent::{Amount, Extent},
        netns,
        process::Running,
        programs::BenchPrograms,
    },
};

/// Directory where the appliances pin their maps.
const PINS: &str = "/sys/fs/bpf/causeway-bench";
/// Bytes of the packets that one worker is measured with.
const BYTES: usize = 1420;
/// Packets sent for one figure.
const PACKETS: Amount<u32> = Amount {
    full: 3_000_000,
    smoke: 20_000,
};

/// Two appliances with an encrypted tunnel.
#[derive(Clone, Copy)]
pub struct Causeway {
    /// Its name in the report.
    name: &'static str,
    /// `tunnel.waiting`.
    waiting: &'static str,
}

/// The default configuration.
pub const WAKE: Causeway = Causeway {
    name: "causeway",
    waiting: "wake",
};

/// Workers that poll without sleeping.
pub const BUSY: Causeway = Causeway {
    name: "causeway, busy",
    waiting: "busy",
};

/// The sockets of a worker without a cipher: `causeway-bench forward` on each machine.
pub struct Forward;

impl Contender for Causeway {
    fn name(&self) -> &'static str {
        self.name
    }

    fn role(&self) -> Role {
        Role::Causeway
    }

    fn layer(&self) -> Layer {
        Layer::Proxy
    }

    fn missing(&self) -> Option<String> {
        let paths = lab::Paths::find();
        [paths.appliance, paths.bpf_object]
            .into_iter()
            .find(|path| !path.exists())
            .map(|path| {
                format!(
                    "{} is missing; `cargo xtask bench` builds it",
                    path.display()
                )
            })
    }

    fn needs_checksums(&self) -> bool {
        true
    }

    fn up(&self, sites: &Sites) -> anyhow::Result<Running> {
        remove_pins();
        let mut running = Running::new()?;
        running.keep(pass_at_hosts()?);
        let mut keys = Vec::new();
        for (machine, _) in PAIR {
            let file = running.directory().join(machine.namespace);
            let made = output(
                appliance()
                    .args(["keygen", "--private-key"])
                    .arg(file.with_extension("key")),
            )?;
            keys.push(made.trim().to_owned());
        }
        keys.reverse();
        for (at, ((machine, other), key)) in PAIR.into_iter().zip(keys).enumerate() {
            let config = config(&running, machine, other, &key, at, self.waiting);
            running.write(&format!("{}.toml", machine.namespace), &config)?;
            let mut command = nsenter(machine);
            command
                .arg(&lab::Paths::find().appliance)
                .args(["run", "--config"])
                .arg(
                    running
                        .directory()
                        .join(format!("{}.toml", machine.namespace)),
                )
                .env("CAUSEWAY_BPF_OBJECT", &lab::Paths::find().bpf_object);
            running.start(machine.namespace, &mut command)?;
        }
        for (machine, _) in PAIR {
            await_ready(&running, machine)?;
            ask(&running, machine, &["mode", "partial"])?;
            ask(
                &running,
                machine,
                &["endpoint", "add", "--network", "bench", sites.right()],
            )?;
        }
        Ok(running)
    }

    fn down(&self, _sites: &Sites, running: Running) -> anyhow::Result<()> {
        drop(running);
        remove_pins();
        Ok(())
    }

    fn one_core(&self, running: &Running, extent: Extent) -> anyhow::Result<Option<OneCore>> {
        // Only the encrypting appliance stays; its datagrams are counted in the other's place. It
        // keeps sending while its session is valid.
        running.end(EAST.namespace)?;
        fs::remove_dir_all(format!("{PINS}/{}", EAST.namespace)).context("remove pins")?;
        one_core([2, 0, 0, 0, 0x60, 0xa1], extent).map(Some)
    }
}

impl Contender for Forward {
    fn name(&self) -> &'static str {
        super::FORWARD
    }

    fn role(&self) -> Role {
        Role::Floor
    }

    fn layer(&self) -> Layer {
        Layer::Two
    }

    fn missing(&self) -> Option<String> {
        None
    }

    fn needs_checksums(&self) -> bool {
        true
    }

    fn up(&self, _sites: &Sites) -> anyhow::Result<Running> {
        let mut running = Running::new()?;
        running.keep(pass_at_hosts()?);
        for (at, (machine, _)) in PAIR.into_iter().enumerate() {
            let mut command = nsenter(machine);
            command
                .arg(std::env::current_exe().context("find this program")?)
                .args(["forward", "--cpu", &cpu(at).to_string()]);
            running.start(machine.namespace, &mut command)?;
        }
        Ok(running)
    }

    fn one_core(&self, running: &Running, extent: Extent) -> anyhow::Result<Option<OneCore>> {
        running.end(EAST.namespace)?;
        one_core([2, 0, 0, 0, 0x60, 0x02], extent).map(Some)
    }
}

/// The CPU of a machine's worker.
fn cpu(at: usize) -> usize {
    at % std::thread::available_parallelism().map_or(1, usize::from)
}

fn appliance() -> Command {
    Command::new(lab::Paths::find().appliance)
}

/// A command in a machine that sees the host's bpffs: `ip netns exec` would remount /sys.
fn nsenter(machine: Machine) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", machine.namespace));
    command
}

fn config(
    running: &Running,
    machine: Machine,
    other: Machine,
    key: &str,
    at: usize,
    waiting: &str,
) -> String {
    let ns = machine.namespace;
    let dir = running.directory().display();
    let tenant = ns == WEST.namespace;
    let role = if tenant { "tenant" } else { "provider" };
    let dials = if tenant {
        format!("address = \"{}\"\n", other.address)
    } else {
        String::new()
    };
    format!(
        "[appliance]\nname = \"{ns}\"\nrole = \"{role}\"\n\
         state_dir = \"{dir}/{ns}-state\"\npin_dir = \"{PINS}/{ns}\"\n\
         control_socket = \"{dir}/{ns}.sock\"\n[uplink]\ninterface = \"{WAN}\"\n\
         [tunnel]\nprivate_key_file = \"{dir}/{ns}.key\"\n\
         cpus = [{}]\nwaiting = \"{waiting}\"\ncipher = \"aes-256-gcm\"\n\
         [[tenant]]\nname = \"bench\"\n[[peer]]\nname = \"other\"\npublic_key = \"{key}\"\n{dials}\
         [[network]]\nname = \"bench\"\ntenant = \"bench\"\npeer = \"other\"\nvni = 6001\n\
         interface = \"{LAN}\"\nprefixes = [\"10.60.0.0/24\"]\n\
         gateway = [\"10.60.0.1\"]\n",
        cpu(at)
    )
}

fn ask(running: &Running, machine: Machine, words: &[&str]) -> anyhow::Result<String> {
    let socket = running
        .directory()
        .join(format!("{}.sock", machine.namespace));
    output(appliance().arg("--socket").arg(socket).args(words))
}

fn await_ready(running: &Running, machine: Machine) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        lab::interrupt::check()?;
        let answer = ask(running, machine, &["status", "--json"]);
        let status = answer
            .as_ref()
            .ok()
            .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        if status.is_some_and(|status| status["ready"] == true) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{} does not become ready: {answer:?}", machine.namespace);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn remove_pins() {
    // The directory may not exist.
    let _ = fs::remove_dir_all(PINS);
}

/// Attaches a program to the hosts' links: a frame of XDP_TX reaches a veth only if its peer has
/// one.
fn pass_at_hosts() -> anyhow::Result<BenchPrograms> {
    let mut programs = BenchPrograms::load()?;
    for namespace in [LEFT, RIGHT] {
        programs.attach("pass", namespace, "h0")?;
    }
    Ok(programs)
}

/// Measures the one remaining worker: the kernel makes frames at the left host, on the other CPU,
/// and an XDP program counts them at the far end of the worker's WAN link.
fn one_core(destination: [u8; 6], extent: Extent) -> anyhow::Result<OneCore> {
    // The hosts keep their program `pass`; this copy is loaded for its counter.
    let mut programs = BenchPrograms::load()?;
    programs.attach("sink", EAST.namespace, WAN)?;
    let ip = packet::udp(
        packet::ip("10.60.0.10"),
        packet::ip("10.60.0.20"),
        4000,
        9,
        &vec![0x5a; BYTES - 28],
    );
    let frame = packet::frame(destination, [2, 0, 0, 0, 0x60, 0x01], &[], &ip);
    programs.templates(std::slice::from_ref(&frame))?;
    let mut other = CpuSet::new();
    other.set(cpu(1))?;
    sched_setaffinity(Pid::from_raw(0), &other).context("move to the other CPU")?;
    let measured = netns::within(LEFT, || {
        let h0 = if_nametoindex("h0")?;
        programs.generate(&frame, h0, PACKETS.of(extent) / 20)?;
        programs.rate(BenchPrograms::sunk, |programs| {
            programs.generate(&frame, h0, PACKETS.of(extent))
        })
    });
    let mut all = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        // The kernel ignores CPUs that do not exist.
        let _ = all.set(cpu);
    }
    sched_setaffinity(Pid::from_raw(0), &all).context("go back to every CPU")?;
    let packets_per_second = measured?;
    ensure!(packets_per_second > 1.0, "nothing arrived");
    Ok(OneCore {
        bytes: BYTES,
        packets_per_second,
    })
}

/// `causeway-bench forward`: forwards every frame between two links by AF_XDP, as a worker does it:
/// two sockets, a copy between them, batches, waiting by poll(2).
pub fn forward(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("pin this thread to a CPU")?;
    let mut objects = Vec::new();
    let (mut receivers, mut senders) = (Vec::new(), Vec::new());
    for link in [LAN, WAN] {
        let path =
            std::env::var_os("CAUSEWAY_BENCH_BPF_OBJECT").context("CAUSEWAY_BENCH_BPF_OBJECT")?;
        let mut object = EbpfLoader::new().load_file(Path::new(&path))?;
        let (rx, tx) = xsk::bind(&xsk::Config {
            ifindex: if_nametoindex(link)?,
            queue: 0,
            rx_frames: 4096,
            tx_frames: 4096,
            frame_size: 2048,
            memory: xsk::Memory::Copy,
            busy_poll: None,
        })?;
        let mut sockets: XskMap<_> = object.take_map("SOCKETS").context("SOCKETS")?.try_into()?;
        sockets.set(0, rx.fd(), 0)?;
        let program: &mut Xdp = object
            .program_mut("to_socket")
            .context("to_socket")?
            .try_into()?;
        program.load()?;
        program.attach(link, XdpMode::Driver)?;
        objects.push((object, sockets));
        receivers.push(rx);
        senders.push(tx);
    }
    let ([lan_in, wan_in], [lan_out, wan_out]) = (receivers.as_mut_slice(), senders.as_mut_slice())
    else {
        bail!("two links");
    };
    loop {
        let mut frames = 0;
        for (rx, tx) in [(&mut *lan_in, &mut *wan_out), (&mut *wan_in, &mut *lan_out)] {
            frames += rx.receive(64, |frame| {
                // A full ring drops the frame, as in a worker.
                let _ = tx.transmit(|out| {
                    out.get_mut(..frame.len())?.copy_from_slice(frame);
                    Some(frame.len())
                });
            });
        }
        let mut owed = false;
        for tx in [&mut *wan_out, &mut *lan_out] {
            if tx.outstanding() != 0 {
                tx.flush()?;
                owed |= tx.outstanding() != 0;
            }
        }
        if frames == 0 {
            use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
            let mut fds = [&*lan_in, &*wan_in].map(|rx| PollFd::new(rx.fd(), PollFlags::POLLIN));
            let timeout: u16 = if owed { 1 } else { 100 };
            // EINTR: the loop polls again.
            let _ = poll(&mut fds, PollTimeout::from(timeout));
        }
    }
}
