//! iperf3 between two hosts.

use std::{net::IpAddr, time::Duration};

use crate::{
    error::{Error, Result},
    process::Process,
    site::{Lab, wait},
};

/// The result of an iperf3 run, as the receiver measured it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    pub bits_per_second: f64,
    /// Bytes received.
    pub bytes: u64,
    /// TCP retransmissions of the sender; 0 for UDP.
    pub retransmits: u64,
    /// Processor time of both ends, percent of one processor, as iperf3 measured it.
    pub cpu_percent: f64,
}

/// An iperf3 server on a host; [`IperfServer::stop`] it, or leave it to [`Lab::down`].
#[derive(Clone, Copy, Debug)]
pub struct IperfServer {
    process: Process,
}

impl IperfServer {
    /// Ends it.
    ///
    /// # Errors
    /// As [`Process::stop`].
    pub fn stop(self) -> Result<()> {
        self.process.stop(Duration::from_secs(1))
    }
}

impl Lab {
    /// Starts an iperf3 server on `host` and waits until it listens.
    ///
    /// # Errors
    /// If there is no such host, or it does not listen within 5 s.
    pub fn iperf_server(&self, host: &str, port: u16) -> Result<IperfServer> {
        let port_text = port.to_string();
        let name = format!("iperf3:{host}:{port}");
        let process = self.spawn(host, &name, &["iperf3", "-s", "-p", &port_text])?;
        wait(
            &format!("iperf3 listening on {host}"),
            Duration::from_secs(5),
            Duration::from_millis(10),
            || {
                if !process.is_alive() {
                    return Err(Error::Command {
                        command: "iperf3 -s".to_owned(),
                        status: "it ended".to_owned(),
                        stderr: std::fs::read_to_string(self.log_path(&name)).unwrap_or_default(),
                    });
                }
                self.within(host, || {
                    // A state of 0A is LISTEN.
                    let listening = ["tcp", "tcp6"].iter().any(|file| {
                        std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))
                            .unwrap_or_default()
                            .lines()
                            .any(|l| l.contains(&format!(":{port:04X} ")) && l.contains(" 0A "))
                    });
                    Ok(listening.then_some(()).ok_or_else(String::new))
                })
            },
        )?;
        Ok(IperfServer { process })
    }

    /// Runs an iperf3 client on `host`: TCP for `seconds` to `to`, with further arguments.
    ///
    /// # Errors
    /// If it fails, or its JSON does not read.
    pub fn iperf(
        &self,
        host: &str,
        to: IpAddr,
        port: u16,
        seconds: u32,
        further: &[&str],
    ) -> Result<Throughput> {
        let (to, port, time) = (to.to_string(), port.to_string(), seconds.to_string());
        let mut words = vec![
            "iperf3",
            "-c",
            &to,
            "-p",
            &port,
            "-t",
            &time,
            "-J",
            "--connect-timeout",
            "5000",
        ];
        words.extend(further);
        let within = Duration::from_secs(u64::from(seconds) + 20);
        let output = self.exec(host, &words, within)?;
        parse(&output.stdout).map_err(|reason| Error::Command {
            command: words.join(" "),
            status: format!("status {} on {host}", output.status),
            stderr: format!("{reason} {}", output.stderr.trim()),
        })
    }
}

fn parse(text: &str) -> Result<Throughput, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if let Some(error) = json["error"].as_str() {
        return Err(error.to_owned());
    }
    let end = &json["end"];
    let sum = if end["sum_received"].is_object() {
        &end["sum_received"]
    } else {
        &end["sum"]
    };
    Ok(Throughput {
        bits_per_second: sum["bits_per_second"]
            .as_f64()
            .ok_or("no bits_per_second in its JSON")?,
        bytes: sum["bytes"].as_u64().ok_or("no bytes in its JSON")?,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        cpu_percent: end["cpu_utilization_percent"]["host_total"]
            .as_f64()
            .unwrap_or(0.0)
            + end["cpu_utilization_percent"]["remote_total"]
                .as_f64()
                .unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_figure_counts() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":5e9,"bytes":7,"retransmits":3},
            "sum_received":{"bits_per_second":4.5e9,"bytes":6},
            "cpu_utilization_percent":{"host_total":50.0,"remote_total":25.0}}}"#;
        let t = parse(text).unwrap();
        assert_eq!((t.bits_per_second, t.bytes, t.retransmits), (4.5e9, 6, 3));
        assert_eq!(t.cpu_percent, 75.0);
    }

    #[test]
    fn the_error_of_the_work_is_returned() {
        let text = r#"{"error":"unable to connect"}"#;
        assert_eq!(parse(text).unwrap_err(), "unable to connect");
        assert!(parse("").is_err());
    }
}
