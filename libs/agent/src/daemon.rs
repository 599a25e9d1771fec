//! The agent as a part of a daemon: its section of the configuration, its task, its status.

use std::{path::PathBuf, sync::Arc};

use rustls::time_provider::DefaultTimeProvider;
use serde::{Deserialize, Serialize};
use service::{config::Checker, restore::Restores};
use tokio::{sync::watch, task::JoinHandle};

use crate::run::{Phase, Report, Settings, State, run};

/// Default path of the file with an enrolment token.
const TOKEN: &str = "/etc/causeway/enrolment-token";

/// The section `[agent]` of a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// File with an enrolment token.
    pub token: Option<PathBuf>,
    /// Folder of the identity.
    pub folder: Option<PathBuf>,
}

/// The checked section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// File with an enrolment token.
    pub token: PathBuf,
    /// Folder of the identity.
    pub folder: PathBuf,
}

impl Section {
    /// Checks the section; `folder` is the default of the identity's folder.
    pub fn check(self, checker: &mut Checker, folder: &str) -> Config {
        Config {
            token: checker.absolute("agent.token", self.token, TOKEN),
            folder: checker.absolute("agent.folder", self.folder, folder),
        }
    }
}

/// The agent's state, as the daemon's status has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the machine; omitted before it has enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Last second of its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_until: Option<String>,
    /// Address and port of the director, or of the gateway between, while it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<String>,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why the token of the file is not used, beside an identity that stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl Status {
    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let name = self.name.as_deref().unwrap_or("not enrolled");
        let until = self.certificate_until.as_ref();
        let until = until.map_or_else(String::new, |until| format!(", certificate until {until}"));
        let connection = match (&self.connected, &self.error) {
            (Some(address), _) => format!("connected to {address}"),
            (None, Some(error)) => format!("not connected: {error}"),
            (None, None) => "connecting".to_owned(),
        };
        let token = self.token.as_ref();
        let token = token.map_or_else(String::new, |error| format!("; token not used: {error}"));
        format!("{name}, {connection}{until}{token}")
    }
}

/// The agent of a daemon. Its drop ends the connection.
#[derive(Debug)]
pub struct Handle {
    reports: watch::Sender<Option<Report>>,
    state: watch::Receiver<State>,
    token: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handle {
    /// Starts the agent, with this version of the daemon. Machines have different seeds.
    ///
    /// # Panics
    /// Outside a runtime of tokio.
    #[must_use]
    pub fn start(config: &Config, version: &str, seed: u64) -> Self {
        let settings = Settings {
            folder: config.folder.clone(),
            token: config.token.clone(),
            version: version.to_owned(),
            clock: Arc::new(DefaultTimeProvider),
            seed,
            restores: Restores::watched(),
        };
        let (reports, reported) = watch::channel(None);
        let (told, state) = watch::channel(State::default());
        let task = tokio::spawn(async move {
            if let Err(error) = run(settings, reported, told).await {
                tracing::error!(%error, "cannot start the director's agent");
            }
        });
        Self {
            reports,
            state,
            token: config.token.clone(),
            task,
        }
    }

    /// Tells the director how the machine is, if that has changed.
    pub fn report(&self, report: Report) {
        self.reports.send_if_modified(|before| {
            let report = Some(report);
            let is_new = *before != report;
            *before = report;
            is_new
        });
    }

    /// The agent's state.
    #[must_use]
    pub fn status(&self) -> Status {
        let State {
            identity,
            token,
            phase,
        } = self.state.borrow().clone();
        let (name, until) = identity.unzip();
        let mut status = Status {
            name,
            certificate_until: until.map(|until| until.to_string()),
            token,
            ..Status::default()
        };
        match phase {
            Phase::NoToken => {
                let token = self.token.display();
                status.error = Some(format!("write an enrolment token into {token}"));
            }
            Phase::Connecting { error } => status.error = error,
            Phase::Connected { address, .. } => status.connected = Some(address.to_string()),
        }
        if self.task.is_finished() {
            status.connected = None;
            status.error = Some("the agent has ended: restart the daemon".to_owned());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line() {
        let mut status = Status {
            error: Some("write an enrolment token into /t".into()),
            ..Status::default()
        };
        let line = "not enrolled, not connected: write an enrolment token into /t";
        assert_eq!(status.line(), line);
        status = Status {
            name: Some("spiffe://p/gateway/gw1".into()),
            certificate_until: Some("2026-12-02T04:00:00Z".into()),
            connected: Some("192.0.2.1:6186".into()),
            error: None,
            token: None,
        };
        assert_eq!(
            status.line(),
            "spiffe://p/gateway/gw1, connected to 192.0.2.1:6186, certificate until \
             2026-12-02T04:00:00Z"
        );
    }

    #[tokio::test]
    async fn without_a_token_it_says_where_to_write_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut checker = Checker::new();
        let section = Section {
            token: Some(folder.path().join("token")),
            folder: None,
        };
        let mut config = section.check(&mut checker, "/var/lib/x/agent");
        assert_eq!(config.folder, std::path::Path::new("/var/lib/x/agent"));
        assert!(checker.is_good());
        config.folder = folder.path().join("agent");
        let handle = Handle::start(&config, "1", 1);
        let mut state = handle.state.clone();
        state
            .wait_for(|state| state.phase == Phase::NoToken)
            .await
            .unwrap();
        let error = handle.status().error.unwrap();
        assert!(
            error.starts_with("write an enrolment token into "),
            "{error}"
        );
        assert!(!config.folder.exists(), "nothing was written");
    }
}
