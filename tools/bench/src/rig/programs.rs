//! XDP programs of the benchmarks: they generate, restore, pass and count packets.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, PerCpuArray, ProgramArray},
    programs::{
        ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode, xdp::XdpLinkId,
    },
};

use super::{extent::counted, netns::within};

/// Time for the last packets of a load to arrive.
const ARRIVAL_TIME: Duration = Duration::from_millis(50);

/// Packets that the programs send in turn.
pub const TEMPLATES: usize = 256;
const HEAD: usize = 128;

/// As in `bench-ebpf`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    len: u32,
    head_len: u32,
    head: [u8; HEAD],
}

// SAFETY: `repr(C)`, integers and bytes only, no padding.
unsafe impl Pod for Template {}

/// As in `bench-ebpf`: the flows of the program `flows`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flows {
    /// Number of flows, sent in turn.
    pub count: u32,
    /// Number of destination ports, used in turn.
    pub ports: u32,
    /// Number of source ports used in turn with each address.
    pub per_address: u32,
    /// The address that changes: 0 for the destination, 1 for the source.
    pub which: u32,
}

// SAFETY: `repr(C)`, integers only, no padding.
unsafe impl Pod for Flows {}

/// The loaded programs.
pub struct BenchPrograms {
    object: Ebpf,
}

impl BenchPrograms {
    /// Loads the object that `CAUSEWAY_BENCH_BPF_OBJECT` names, or `target/bpf/bench.bpf.o`.
    pub fn load() -> anyhow::Result<Self> {
        let path = std::env::var_os("CAUSEWAY_BENCH_BPF_OBJECT")
            .map_or_else(|| PathBuf::from("target/bpf/bench.bpf.o"), PathBuf::from);
        let mut object = EbpfLoader::new().load_file(&path).with_context(|| {
            format!("load {}; `cargo xtask build-ebpf` makes it", path.display())
        })?;
        for name in [
            "restore", "nothing", "mac_swap", "generate", "paced", "flows", "pass", "sink",
        ] {
            program_mut(&mut object, name)?.load()?;
        }
        Ok(Self { object })
    }

    /// A program, for attaching it.
    pub fn program(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        program_mut(&mut self.object, name)
    }

    /// Attaches a program to a link of a namespace.
    pub fn attach(
        &mut self,
        program: &str,
        namespace: &str,
        link: &str,
    ) -> anyhow::Result<XdpLinkId> {
        within(namespace, || {
            self.program(program)?
                .attach(link, XdpMode::Driver)
                .with_context(|| format!("attach {program} to {link} in {namespace}"))
        })
    }

    /// Packets a second that arrive while `send` runs, by the count of `arrived`.
    pub fn rate(
        &mut self,
        arrived: impl Fn(&Self) -> anyhow::Result<u64>,
        send: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let (before, begun) = (arrived(self)?, Instant::now());
        send(self)?;
        let took = begun.elapsed();
        let (after, _) = counted(ARRIVAL_TIME, || arrived(self), |after| *after > before)?;
        Ok((after - before) as f64 / took.as_secs_f64())
    }

    /// The file descriptor of a program.
    pub fn fd(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(self.program(name)?.fd()?.try_clone()?)
    }

    /// Sets the packets that are sent in turn. Fewer than [`TEMPLATES`] are repeated.
    pub fn templates(&mut self, packets: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut map: Array<_, Template> = self
            .object
            .map_mut("TEMPLATE")
            .context("TEMPLATE")?
            .try_into()?;
        for (i, packet) in packets.iter().cycle().take(TEMPLATES).enumerate() {
            let head_len = packet.len().min(HEAD);
            let mut head = [0; HEAD];
            head[..head_len].copy_from_slice(&packet[..head_len]);
            let template = Template {
                len: packet.len() as u32,
                head_len: head_len as u32,
                head,
            };
            map.set(i as u32, template, 0)?;
        }
        Ok(())
    }

    /// Runs `restore` and then `next` on `repeat` packets that arrive on `ifindex`. Returns
    /// nanoseconds per packet and the XDP action of the last packet.
    pub fn cost(
        &mut self,
        next: &ProgramFd,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> anyhow::Result<(f64, u32)> {
        let mut map: ProgramArray<_> = self.object.map_mut("NEXT").context("NEXT")?.try_into()?;
        map.set(0, next, 0)?;
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let program: &Xdp = self
            .object
            .program("restore")
            .context("restore")?
            .try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        })?;
        Ok((result.duration.as_nanos() as f64, result.return_value))
    }

    /// Nanoseconds per packet of one of these programs alone.
    pub fn bare(&self, name: &str, packet: &[u8], repeat: u32) -> anyhow::Result<f64> {
        let program: &Xdp = self.object.program(name).context("program")?.try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            repeat,
            ..TestRunOptions::default()
        })?;
        Ok(result.duration.as_nanos() as f64)
    }

    /// Packets that `sink` has counted.
    pub fn sunk(&self) -> anyhow::Result<u64> {
        let map: PerCpuArray<_, u64> = self.object.map("SUNK").context("SUNK")?.try_into()?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    /// Sets the interval between two frames of [`BenchPrograms::paced`] on each CPU, nanoseconds; 0
    /// sends as fast as possible.
    pub fn interval(&mut self, nanoseconds: u64) -> anyhow::Result<()> {
        let mut map: Array<_, u64> = self
            .object
            .map_mut("INTERVAL")
            .context("INTERVAL")?
            .try_into()?;
        Ok(map.set(0, nanoseconds, 0)?)
    }

    /// Sends `packet` out of `ifindex` at the set rate. It makes `repeat` attempts; an attempt
    /// before the next frame is due sends nothing.
    pub fn paced(&self, packet: &[u8], ifindex: u32, repeat: u32) -> anyhow::Result<()> {
        self.emit("paced", packet, ifindex, repeat)
    }

    /// Frames that `paced` has sent.
    pub fn sent(&self) -> anyhow::Result<u64> {
        let map: PerCpuArray<_, u64> = self.object.map("SENT").context("SENT")?.try_into()?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    /// Sends `packet` out of `ifindex` `repeat` times, in one call.
    pub fn generate(&self, packet: &[u8], ifindex: u32, repeat: u32) -> anyhow::Result<()> {
        self.emit("generate", packet, ifindex, repeat)
    }

    /// Sends `repeat` packets of many flows, derived from `packet`, out of `ifindex`, in one call.
    pub fn flows(
        &mut self,
        packet: &[u8],
        flows: Flows,
        ifindex: u32,
        repeat: u32,
    ) -> anyhow::Result<()> {
        self.templates(&[packet.to_vec()])?;
        let mut map: Array<_, Flows> = self.object.map_mut("FLOWS").context("FLOWS")?.try_into()?;
        map.set(0, flows, 0)?;
        self.emit("flows", packet, ifindex, repeat)
    }

    fn emit(&self, name: &str, packet: &[u8], ifindex: u32, repeat: u32) -> anyhow::Result<()> {
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let program: &Xdp = self
            .object
            .program(name)
            .with_context(|| name.to_owned())?
            .try_into()?;
        program.test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::default()
        })?;
        Ok(())
    }
}

fn program_mut<'o>(object: &'o mut Ebpf, name: &str) -> anyhow::Result<&'o mut Xdp> {
    Ok(object
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?)
}
