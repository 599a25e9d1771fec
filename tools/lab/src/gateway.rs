//! The gateway daemon inside a host, the circuits' keys, and the server that plays the director.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use gateway_client::wire::Key;
use nix::sys::signal::Signal;

use crate::{
    cloud::{Drawn, Gateway},
    config::render_gateway,
    daemon::Daemon,
    error::{During as _, Error, Result},
    interrupt,
    process::{self, Output, Process},
    site::{Lab, running, wait},
};

/// One gateway of a lab.
#[derive(Clone, Copy, Debug)]
pub struct GatewayHandle<'a> {
    lab: &'a Lab,
    gateway: &'a Gateway,
}

/// How long connections may go on after SIGTERM, as gateways of labs are configured, seconds.
const DRAIN: u64 = 5;

impl Lab {
    /// The gateway on `host`.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn gateway(&self, host: &str) -> Result<GatewayHandle<'_>> {
        let all = &self.topology().cloud.gateways;
        all.iter()
            .find(|g| g.host == host)
            .map(|gateway| GatewayHandle { lab: self, gateway })
            .ok_or_else(|| self.unknown("gateway", host, all.iter().map(|g| &g.host)))
    }

    /// Starts every gateway and the director's server, and waits until all are ready.
    ///
    /// # Errors
    /// If one cannot be started, or is not ready in time.
    pub fn start_cloud(&self) -> Result<()> {
        let gateways = self.topology().cloud.gateways.iter();
        let handles: Vec<_> = gateways
            .map(|gateway| GatewayHandle { lab: self, gateway })
            .collect();
        for handle in &handles {
            handle.launch()?;
        }
        self.start_director()?;
        handles.iter().try_for_each(|h| h.await_ready())
    }

    /// The circuit of a tenant.
    ///
    /// # Errors
    /// If there is none, or the file of circuits cannot be read.
    pub fn circuit(&self, tenant: &str) -> Result<Drawn> {
        let all = self.circuits()?;
        let names: Vec<String> = all.iter().map(|c| c.tenant.clone()).collect();
        all.into_iter()
            .find(|c| c.tenant == tenant)
            .ok_or_else(|| self.unknown("circuit", tenant, names.iter()))
    }

    /// Every circuit, as generated when the lab was raised.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn circuits(&self) -> Result<Vec<Drawn>> {
        let path = self.drawn_path();
        let text = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| Error::Output {
            what: path.display().to_string(),
            reason: e.to_string(),
        })
    }

    fn drawn_path(&self) -> PathBuf {
        self.run_dir().join("etc").join("circuits.json")
    }

    /// The file with the key of one side (0 is a) of a tenant's circuit.
    #[must_use]
    pub fn circuit_key_path(&self, tenant: &str, side: usize) -> PathBuf {
        let letter = if side == 0 { 'a' } else { 'b' };
        let file = format!("circuit-{tenant}-{letter}.key");
        self.run_dir().join("etc").join(file)
    }

    /// Draws ids and keys, and writes them down for their owner only.
    pub(crate) fn draw_circuits(&self) -> Result<()> {
        let mut all = Vec::new();
        for circuit in &self.topology().cloud.circuits {
            let mut id: [u8; 8] = random()?;
            // No message and no datagram of a tunnel begins with this bit set.
            id[0] |= 1;
            id[3] |= 1;
            let drawn = Drawn {
                tenant: circuit.tenant.clone(),
                id: id.iter().map(|b| format!("{b:02x}")).collect(),
                keys: [
                    Key::new(random()?).to_base64(),
                    Key::new(random()?).to_base64(),
                ],
            };
            for (side, key) in drawn.keys.iter().enumerate() {
                write_secret(&self.circuit_key_path(&circuit.tenant, side), key)?;
            }
            all.push(drawn);
        }
        let text = serde_json::to_string_pretty(&all)
            .map_err(std::io::Error::from)
            .during(|| "writing the circuits down".to_owned())?;
        write_secret(&self.drawn_path(), &text)
    }

    /// Makes a key and a certificate for `name`, signed by itself, by openssl; where they are.
    ///
    /// # Errors
    /// If openssl fails.
    pub fn certificate(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let etc = self.run_dir().join("etc");
        let at = |end: &str| etc.join(format!("{name}.{end}"));
        let (key, certificate) = (at("tls.key"), at("crt"));
        if certificate.exists() {
            return Ok((key, certificate));
        }
        let mut command = Command::new("openssl");
        command
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={name}")])
            .args([
                "-addext",
                &format!("subjectAltName=DNS:{name},DNS:*.{name}"),
            ])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        let within = Duration::from_secs(20);
        process::must(&mut command, None, within, interrupt::check)?;
        Ok((key, certificate))
    }

    /// The directory whose files the director's server serves.
    #[must_use]
    pub fn www(&self) -> PathBuf {
        self.run_dir().join("www")
    }

    /// Starts `openssl s_server -WWW` as the director, if it is configured and does not run.
    fn start_director(&self) -> Result<()> {
        let Some(director) = &self.topology().cloud.director else {
            return Ok(());
        };
        if running(self, "director", &director.host)?.is_some() {
            return Ok(());
        }
        let (key, certificate) = self.certificate(&director.name)?;
        let www = self.www();
        fs::create_dir_all(&www).during(|| format!("creating {}", www.display()))?;
        let page = www.join("index.txt");
        fs::write(&page, "the director\n").during(|| format!("writing {}", page.display()))?;
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-WWW", "-quiet", "-accept"])
            .arg(director.port.to_string())
            .arg("-key")
            .arg(&key)
            .arg("-cert")
            .arg(&certificate)
            .current_dir(&www);
        self.spawn_command(
            &director.host,
            &format!("director:{}", director.host),
            &mut command,
        )?;
        self.await_listener(&director.host, director.port)
    }

    /// Waits until a process listens on a TCP port of a host.
    ///
    /// # Errors
    /// [`Error::Timeout`] after 10 s.
    pub fn await_listener(&self, host: &str, port: u16) -> Result<()> {
        let filter = format!("sport = :{port}");
        wait(
            &format!("port {port} of {host} listening"),
            Duration::from_secs(10),
            Duration::from_millis(20),
            || {
                let words = ["ss", "-Hltn", filter.as_str()];
                let said = self.must(host, &words, Duration::from_secs(5))?;
                Ok(if said.trim().is_empty() {
                    Err("no process listens".to_owned())
                } else {
                    Ok(())
                })
            },
        )
    }
}

impl<'a> GatewayHandle<'a> {
    fn daemon(&self) -> Daemon<'a> {
        Daemon {
            lab: self.lab,
            host: &self.gateway.host,
            kind: "gateway",
            program: &self.lab.paths().gateway,
            hint: "build it with `cargo build -p causeway-gateway`, or name it in CAUSEWAY_GATEWAY",
        }
    }

    /// Its host, which is its name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.gateway.host
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.daemon().config_path()
    }

    /// Its control socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.daemon().socket_path()
    }

    /// The file that its output is written to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.daemon().log_path()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.daemon().log_tail(lines)
    }

    /// Its process, if it runs.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn process(&self) -> Result<Option<Process>> {
        self.daemon().process()
    }

    /// Writes the configuration file that the topology describes, readable by its owner only
    /// because it has keys.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self) -> Result<()> {
        let circuits = self.lab.circuits()?;
        let socket = self.socket_path();
        let text = render_gateway(self.lab.topology(), self.gateway, &circuits, &socket, DRAIN)
            .map_err(|e| Error::Output {
                what: format!("the configuration of {}", self.host()),
                reason: e.to_string(),
            })?;
        write_secret(&self.config_path(), &text)
    }

    /// Starts the daemon, and does not wait until it is ready. A configuration file that is already
    /// there is kept, so that a test may have changed it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&self) -> Result<()> {
        if self.process()?.is_some() {
            return Ok(());
        }
        if !self.config_path().exists() {
            self.write_config()?;
        }
        let object = &self.lab.paths().gateway_bpf_object;
        self.daemon()
            .launch(&[("CAUSEWAY_GATEWAY_BPF_OBJECT", object)])
    }

    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// If it ended, or after 45 s; the error ends with its log.
    pub fn await_ready(&self) -> Result<()> {
        self.daemon()
            .await_ready(|status| status["name"].is_string())
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// As [`GatewayHandle::launch`] and [`GatewayHandle::await_ready`].
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.await_ready()
    }

    /// SIGTERM: it drains, and ends when all have left or its drain time has passed. Does not wait.
    ///
    /// # Errors
    /// If it cannot be signalled.
    pub fn drain(&self) -> Result<()> {
        self.daemon().signal(Signal::SIGTERM)
    }

    /// SIGTERM, and waits until it has drained.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> Result<()> {
        self.daemon().stop(Duration::from_secs(DRAIN + 5))
    }

    /// SIGKILL, and waits.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill(&self) -> Result<()> {
        self.daemon().kill()
    }

    /// Runs its command line, `causeway-gateway WORDS…`, against its socket.
    ///
    /// # Errors
    /// If it cannot be started or takes longer than 30 s. A status other than 0 is no error.
    pub fn cli<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<Output> {
        self.daemon().cli(words)
    }

    /// As [`GatewayHandle::cli`], but a status other than 0 is an error. Returns standard output.
    ///
    /// # Errors
    /// As [`GatewayHandle::cli`], and [`Error::Command`] with its output.
    pub fn must<S: Into<OsString> + Clone>(&self, words: &[S]) -> Result<String> {
        self.daemon().must(words)
    }

    /// Its status.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        self.daemon().json(&["status", "--json"])
    }
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut options = File::options();
        let mut file = options
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.as_bytes())
    };
    write().during(|| format!("writing {}", path.display()))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .during(|| "reading /dev/urandom".to_owned())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_differs() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }
}
