//! `director-bench`: the benchmark `director`. A director with 1 000 tenants and 10 000 networks,
//! as a process, on loopback: its start, every kind of read, and changes beside the disk's own
//! fsync.
//!
//! `cargo xtask bench director` runs it. It needs neither root nor BPF, unlike `causeway-bench`.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use service::outln;

/// Hosts; each has a plan for a part of the tenants.
const HOSTS: usize = 4;
/// Repetitions of the change that reaches a quarter of the tenants; the last one adds networks.
const PLAN_RUNS: usize = 21;
/// Measured starts.
const STARTS: usize = 5;
/// Bytes of the header of a write-ahead log, of the header of a frame in it, and of a page (SQLite,
/// "Database File Format", 4.1).
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const PAGE: usize = 4096;
/// Longest wait for the director to answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Measures a director with many tenants.
#[derive(Parser)]
struct Cli {
    /// Tenants. Each has ten networks.
    #[arg(long, default_value_t = 1000)]
    tenants: usize,
    /// Repetitions of each request.
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Write the figures as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder for the store: the disk that is measured. Without it, the folder of temporary files.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Make each request a few times with few tenants, and fail if one is not answered. The figures
    /// mean nothing.
    #[arg(long, conflicts_with_all = ["tenants", "runs", "json"])]
    smoke: bool,
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Amounts {
    tenants: usize,
    /// Repetitions of each request.
    runs: usize,
    /// Repetitions of the change that reaches a quarter of the tenants; the last one adds networks.
    plan_runs: usize,
    starts: usize,
}

impl Amounts {
    /// Enough to see that each request works.
    const SMOKE: Self = Self {
        tenants: 2 * HOSTS,
        runs: 2,
        plan_runs: 2,
        starts: 1,
    };

    fn of(cli: &Cli) -> Self {
        match cli.smoke {
            true => Self::SMOKE,
            false => Self {
                tenants: cli.tenants,
                runs: cli.runs,
                plan_runs: cli.runs.min(PLAN_RUNS),
                starts: STARTS,
            },
        }
    }
}

/// A director as a process.
struct Server {
    child: Child,
    stream: BufReader<TcpStream>,
    token: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Our own child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts the program; the time until it answers.
    fn start(folder: &Path, token: &str) -> anyhow::Result<(Self, Duration)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        drop(listener);
        let config = configure(folder, address)?;
        let begun = Instant::now();
        let child = Command::new(program()?)
            .args(["run", "--config"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the director")?;
        let stream = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < START_TIMEOUT => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => bail!("the director does not answer: {error}"),
            }
        };
        stream.set_nodelay(true)?;
        let mut server = Self {
            child,
            stream: BufReader::new(stream),
            token: token.to_owned(),
        };
        server.expect("GET", "/v1/self", None)?;
        Ok((server, begun.elapsed()))
    }

    /// Sends a request: status, length of the body, and the time until its last byte.
    fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Vec<u8>, Duration)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = match body.is_empty() {
            true => "",
            false => "content-type: application/json\r\n",
        };
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: director\r\nauthorization: Bearer {}\r\n\
             x-reason: benchmark\r\n{kind}content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        let begun = Instant::now();
        self.stream.get_mut().write_all(text.as_bytes())?;
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            ensure!(
                self.stream.read_line(&mut line)? > 0,
                "the connection ended"
            );
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if status == 0 {
                status = line.split(' ').nth(1).unwrap_or_default().parse()?;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok((status, answer, begun.elapsed()))
    }

    /// Sends a request that must succeed.
    fn expect(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(Vec<u8>, Duration)> {
        let (status, answer, time) = self.send(method, path, body)?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok((answer, time))
    }

    fn create(&mut self, path: &str, name: &str, spec: Value) -> anyhow::Result<Duration> {
        let body = json!({ "name": name, "spec": spec });
        Ok(self.expect("POST", path, Some(&body))?.1)
    }
}

/// The program, which is built into the same folder.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let program = own.with_file_name("causeway-director");
    ensure!(
        program.exists(),
        "{} does not exist: run `cargo xtask bench director`, which builds it",
        program.display()
    );
    Ok(program)
}

fn configure(folder: &Path, address: SocketAddr) -> anyhow::Result<PathBuf> {
    let path = folder.join("director.toml");
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[director]\nlisten = \"{address}\"\nstore = {:?}\naudit_key = {:?}\ncontrol_socket = \
         {:?}\n",
        at("store"),
        at("audit-key"),
        at("socket")
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// Median, 99th percentile and maximum, milliseconds.
fn figures(mut times: Vec<Duration>) -> (f64, f64, f64) {
    times.sort();
    let at = |part: f64| {
        let place = (times.len() as f64 * part).ceil() as usize;
        let time = times.get(place.saturating_sub(1));
        time.map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    (at(0.5), at(0.99), at(1.0))
}

struct Report {
    rows: Vec<Value>,
    is_met: bool,
    /// Whether the figures mean nothing, so that they have no aims.
    is_smoke: bool,
}

impl Report {
    fn row(&mut self, name: &str, times: Vec<Duration>, most: f64) {
        let count = times.len();
        let (median, high, max) = figures(times);
        let met = max <= most;
        self.is_met &= met;
        let aim = match (self.is_smoke, met) {
            (true, _) => String::new(),
            (false, true) => format!("{most:>7.1} met"),
            (false, false) => format!("{most:>7.1} NOT MET"),
        };
        outln!("{name:<52} {median:>8.2} {high:>8.2} {max:>8.2}  {aim}");
        self.rows.push(
            json!({ "case": name, "median_ms": median, "p99_ms": high, "max_ms": max,
            "runs": count, "aim_ms": most, "met": met }),
        );
    }
}

/// Times of a write of pages and its fsync in the folder. The file is written over, as the store's
/// log is.
fn fsyncs(folder: &Path, runs: usize, pages: usize) -> anyhow::Result<Vec<Duration>> {
    let mut file = File::create(folder.join("fsync"))?;
    let mut times = Vec::new();
    // The first one makes the file longer.
    for run in 0..=runs {
        file.rewind()?;
        let begun = Instant::now();
        for _ in 0..pages {
            file.write_all(&[0; PAGE])?;
        }
        file.sync_data()?;
        if run > 0 {
            times.push(begun.elapsed());
        }
    }
    Ok(times)
}

/// Pages that the last commit has written to a write-ahead log: the frames of its present
/// generation, which have the salts of the header, up to the last one that ends a commit.
fn last_commit(log: &[u8]) -> usize {
    let salts = log.get(16..24);
    let frames = log.get(LOG_HEADER..).unwrap_or_default();
    let frames = frames.chunks_exact(FRAME_HEADER + PAGE);
    let (mut last, mut open) = (0, 0);
    for frame in frames.take_while(|frame| frame.get(8..16) == salts) {
        open += 1;
        // The size of the file after a commit; 0 in all frames but the last of each.
        if frame.get(4..8) != Some(&[0_u8; 4][..]) {
            (last, open) = (open, 0);
        }
    }
    last
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let amounts = Amounts::of(&cli);
    ensure!(
        amounts.tenants >= HOSTS && amounts.runs > 0,
        "write at least {HOSTS} tenants and a run"
    );
    ensure!(
        amounts.tenants <= 400 * HOSTS,
        "there are VLANs for {} tenants",
        400 * HOSTS
    );
    let base = cli.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = base.join(format!("director-bench.{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = measure(amounts, cli.smoke, &folder);
    fs::remove_dir_all(&folder)?;
    let report = result?;
    if let Some(path) = &cli.json {
        fs::write(path, serde_json::to_string_pretty(&report.rows)?)?;
    }
    if cli.smoke {
        outln!("\nsmoke run: the figures mean nothing");
    } else if !report.is_met {
        outln!("\nan aim is not met");
    }
    Ok(service::stdout::finish()?)
}

fn measure(amounts: Amounts, is_smoke: bool, folder: &Path) -> anyhow::Result<Report> {
    let config = configure(folder, SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let init = Command::new(program()?)
        .args(["init", "--config"])
        .arg(config)
        .output()?;
    ensure!(
        init.status.success(),
        "init: {}",
        String::from_utf8_lossy(&init.stderr)
    );
    let token = String::from_utf8(init.stdout)?.trim().to_owned();
    let (mut server, _) = Server::start(folder, &token)?;
    let begun = Instant::now();
    fill(&mut server, amounts.tenants)?;
    outln!(
        "{} tenants, {} networks: filled in {:.1} s through the API",
        amounts.tenants,
        10 * amounts.tenants,
        begun.elapsed().as_secs_f64()
    );
    drop(server);
    outln!(
        "{:<52} {:>8} {:>8} {:>8}  {:>7}",
        "milliseconds",
        "median",
        "p99",
        "max",
        if is_smoke { "" } else { "aim" }
    );
    let mut report = Report {
        rows: Vec::new(),
        is_met: true,
        is_smoke,
    };
    let mut starts = Vec::new();
    for _ in 0..amounts.starts {
        starts.push(Server::start(folder, &token)?.1);
    }
    report.row("start until the first answer", starts, 2000.0);
    let (mut server, _) = Server::start(folder, &token)?;
    reads(&mut server, amounts, &mut report)?;
    let slowest = disk(folder, amounts.runs, 1, &mut report)?;
    changes(&mut server, amounts.runs, 20.0 + slowest, &mut report)?;
    let times = grow(&mut server, amounts.plan_runs)?;
    let pages = last_commit(&fs::read(folder.join("store-wal"))?);
    let slowest = disk(folder, amounts.plan_runs, pages.max(1), &mut report)?;
    let name = "grow or shrink a plan with a quarter of the tenants";
    report.row(name, times, 20.0 + slowest);
    Ok(report)
}

/// Measures the disk without a director: the longest time, milliseconds.
fn disk(folder: &Path, runs: usize, pages: usize, report: &mut Report) -> anyhow::Result<f64> {
    let times = fsyncs(folder, runs, pages)?;
    let (_, _, slowest) = figures(times.clone());
    let name = format!("{pages} pages and their fsync, without a director");
    report.row(&name, times, f64::INFINITY);
    Ok(slowest)
}

fn fill(server: &mut Server, tenants: usize) -> anyhow::Result<()> {
    let ranges = json!({ "ranges": ["198.18.0.0-198.18.255.255"] });
    server.create("/v1/address-pools", "public", ranges)?;
    for host in 0..HOSTS {
        let spec = json!({ "platform": "kvm", "switches": [{ "name": "br0" }] });
        server.create("/v1/hosts", &format!("h{host}"), spec)?;
        let spec = json!({ "host": format!("h{host}"), "switch": "br0",
            "with_internet": ["1-4094"] });
        server.create("/v1/vlan-pools", &format!("p{host}"), spec)?;
        let spec = json!({ "vlan_pool": format!("p{host}"), "networks_with_internet": 10 });
        server.create("/v1/hardware-plans", &format!("plan{host}"), spec)?;
    }
    for tenant in 0..tenants {
        server.create("/v1/tenants", &format!("t{tenant}"), json!({}))?;
        let of = |kind: &str| format!("/v1/tenants/t{tenant}/{kind}");
        let plan = json!({ "hardware_plan": format!("plan{}", tenant % HOSTS) });
        server.create(&of("subscriptions"), "web", plan)?;
        let body = json!({ "spec": { "prefixes": ["10.1.0.0/24"], "gateways": ["10.1.0.1"] } });
        server.expect("PUT", &of("networks/web-1"), Some(&body))?;
        server.create(&of("addresses"), "a1", json!({ "pool": "public" }))?;
    }
    Ok(())
}

fn reads(server: &mut Server, amounts: Amounts, report: &mut Report) -> anyhow::Result<()> {
    let tenant = format!("t{}", amounts.tenants / 2);
    for path in [
        "/v1/tenants/TENANT",
        "/v1/tenants?limit=100",
        "/v1/tenants?limit=1000",
        "/v1/tenants/TENANT/networks",
        "/v1/tenants/TENANT/networks/web-1",
        "/v1/tenants/TENANT/appliances",
        "/v1/vlan-pools",
        "/v1/hardware-plans/plan0",
        "/v1/users",
        "/v1/tokens",
        "/v1/audit?limit=100",
        "/v1/audit?limit=1000",
        "/v1/audit/checkpoints",
        "/v1/openapi.json",
        "/v1/status",
        "/v1/status?tenant=TENANT",
    ] {
        let path = path.replace("TENANT", &tenant);
        let mut times = Vec::new();
        for _ in 0..amounts.runs {
            times.push(server.expect("GET", &path, None)?.1);
        }
        report.row(&format!("GET {path}"), times, 50.0);
    }
    Ok(())
}

fn changes(server: &mut Server, runs: usize, most: f64, report: &mut Report) -> anyhow::Result<()> {
    let (mut times, mut others) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let body = json!({ "spec": { "description": format!("run {run}") } });
        times.push(server.expect("PUT", "/v1/tenants/t1", Some(&body))?.1);
    }
    report.row("change a tenant", std::mem::take(&mut times), most);
    for run in 0..runs {
        let gateway = format!("10.1.0.{}", 1 + run % 2);
        let body = json!({ "spec": { "prefixes": ["10.1.0.0/24"], "gateways": [gateway] } });
        let path = "/v1/tenants/t2/networks/web-1";
        times.push(server.expect("PUT", path, Some(&body))?.1);
    }
    report.row(
        "change a network's gateway",
        std::mem::take(&mut times),
        most,
    );
    let of = |name: &str| format!("/v1/tenants/t3/{name}");
    for _ in 0..runs {
        others.push(server.expect("DELETE", &of("subscriptions/web"), None)?.1);
        let plan = json!({ "hardware_plan": "plan3" });
        times.push(server.create(&of("subscriptions"), "web", plan)?);
    }
    report.row(
        "subscribe: ten networks and VLANs",
        std::mem::take(&mut times),
        most,
    );
    report.row("end a subscription", std::mem::take(&mut others), most);
    for _ in 0..runs {
        others.push(server.expect("DELETE", &of("addresses/a1"), None)?.1);
        times.push(server.create(&of("addresses"), "a1", json!({ "pool": "public" }))?);
    }
    report.row("assign a public address", std::mem::take(&mut times), most);
    report.row(
        "release a public address",
        std::mem::take(&mut others),
        most,
    );
    for _ in 0..runs {
        let spec = json!({ "vlan_pool": "p0", "networks_with_internet": 1 });
        times.push(server.create("/v1/hardware-plans", "another", spec)?);
        let path = "/v1/hardware-plans/another";
        others.push(server.expect("DELETE", path, None)?.1);
    }
    report.row("create a hardware plan", std::mem::take(&mut times), most);
    report.row("remove a hardware plan", std::mem::take(&mut others), most);
    for _ in 0..runs {
        let path = "/v1/tenants";
        times.push(server.create(path, "another", json!({}))?);
        others.push(server.expect("DELETE", "/v1/tenants/another", None)?.1);
    }
    report.row("create a tenant", std::mem::take(&mut times), most);
    report.row("remove a tenant", std::mem::take(&mut others), most);
    Ok(())
}

/// Times of changes that reach a quarter of the tenants.
fn grow(server: &mut Server, runs: usize) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for run in 0..runs {
        let spec = json!({ "vlan_pool": "p0", "networks_with_internet": 11 - run % 2 });
        let path = "/v1/hardware-plans/plan0";
        let body = json!({ "spec": spec });
        times.push(server.expect("PUT", path, Some(&body))?.1);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_the_last_commit_are_counted() {
        let header = |salt: u8| [[0_u8; 16].as_slice(), &[salt; 8], &[0; 8]].concat();
        let frame = |salt: u8, ends: u8| {
            [
                [0, 0, 0, 1, 0, 0, 0, ends].as_slice(),
                &[salt; 8],
                &[0; 8 + PAGE],
            ]
            .concat()
        };
        let frames = [(7, 0), (7, 9), (7, 0), (7, 0), (7, 9)].map(|(s, e)| frame(s, e));
        let whole = [header(7), frames.concat()].concat();
        assert_eq!(last_commit(&whole), 3);
        // A commit without its end, and a rest of an earlier generation, do not count.
        let rest = [frame(7, 0), frame(6, 9)].concat();
        assert_eq!(last_commit(&[whole, rest].concat()), 3);
        assert_eq!(last_commit(&[]), 0);
    }

    #[test]
    fn quoted_commands_are_accepted() {
        test_support::commands::check(&test_support::commands::Program {
            names: &[("cargo xtask bench director", &[])],
            table: None,
            except: &[],
            command: <Cli as clap::CommandFactory>::command,
        });
    }
}
