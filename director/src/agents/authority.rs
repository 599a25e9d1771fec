//! The authority of the provider in the store, and the director's own certificate.

use std::sync::{Arc, RwLock};

use control::{
    Precondition, Transaction,
    audit::{hex, unhex},
};
use identity::{
    Authority, Issued, Machine, MachineKey, Name, Request, Sealed, SealingKey, Serial, Subject, tls,
};
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    time_provider::TimeProvider,
};

use super::settings::Settings;
use crate::{
    Director, Environment, key_file,
    live::Live,
    machines::{AUTHORITIES, StoredAuthority, authority_id},
};

/// The authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the sealing key cannot be used.
    #[error(transparent)]
    SealingKey(#[from] key_file::Error),
    /// There is an authority in the store, and no key to open it.
    #[error(
        "there is no sealing key {}, by which the key of the authority in the store is encrypted: \
         put it back from where it was kept",
        path.display()
    )]
    NoSealingKey {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The stored key cannot be decrypted.
    #[error("the key of the authority: {0}; restore the previous sealing key")]
    Unsealable(#[from] identity::Unsealable),
    /// The authority is of another provider.
    #[error(
        "agents.provider: {configured:?}: the authority in the store is of {stored:?}, and so are \
         the names of all enrolled machines: set agents.provider to {stored:?}"
    )]
    Provider {
        /// The setting.
        configured: String,
        /// The provider of the store.
        stored: String,
    },
    /// A certificate cannot be made or read.
    #[error(transparent)]
    Certificate(#[from] identity::Error),
    /// The stored authority is none.
    #[error("the authority in the store cannot be read: restore a backup")]
    Malformed,
    /// TLS refuses the certificate.
    #[error("the director's certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// There are no random bytes.
    #[error("cannot make a key: {0}")]
    Random(#[from] std::io::Error),
    /// It cannot be stored.
    #[error("cannot store the authority: {0}")]
    Store(String),
}

/// The authority, and the director's own certificate.
#[derive(Debug)]
pub(super) struct Trusted {
    authority: Authority,
    server_name: String,
    grace: std::time::Duration,
    environment: Arc<dyn Environment>,
    own: RwLock<Own>,
}

/// TLS by a certificate of the director.
#[derive(Debug)]
struct Own {
    config: Arc<ServerConfig>,
    /// When it was made.
    issued: Timestamp,
    /// When the next one is made.
    renewal: Timestamp,
}

/// The clock of certificates.
#[derive(Debug)]
struct Clock(Arc<dyn Environment>);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        let since = std::time::Duration::from_secs(seconds);
        Some(UnixTime::since_unix_epoch(since))
    }
}

impl Trusted {
    /// Opens the authority of the store, or makes one if there is none, with the sealing key.
    pub async fn load(director: &Director, settings: &Settings) -> Result<Self, Error> {
        let environment = Arc::clone(&director.environment);
        let stored = {
            let live = director.live().await.map_err(|_| store_error())?;
            let found = live.authorities.values().next();
            found.map(|(authority, _)| authority.clone())
        };
        let file = settings.key_file();
        let authority = match stored {
            Some(stored) => {
                let key = file.load()?.ok_or_else(|| Error::NoSealingKey {
                    path: settings.sealing_key.clone(),
                })?;
                open(&stored, &SealingKey::new(key), &settings.provider)?
            }
            None => {
                let key = SealingKey::new(file.load_or_create(&*environment)?);
                create(director, &key, &settings.provider).await?
            }
        };
        let own = own(&authority, settings, &environment)?;
        Ok(Self {
            authority,
            server_name: settings.server_name.clone(),
            grace: settings.grace,
            environment,
            own: RwLock::new(own),
        })
    }

    /// TLS of the listener. The director's certificate is renewed here, at half of its life.
    pub fn config(&self) -> Result<Arc<ServerConfig>, Error> {
        let now = self.environment.now();
        {
            let own = self
                .own
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // A clock that was set back finds a certificate that may not be valid yet.
            if (own.issued..own.renewal).contains(&now) {
                return Ok(Arc::clone(&own.config));
            }
        }
        let made = make(
            &self.authority,
            &self.server_name,
            self.grace,
            &self.environment,
        )?;
        let mut own = self
            .own
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *own = made;
        Ok(Arc::clone(&own.config))
    }

    /// Issues a certificate for a machine. Its serial number ends with the id of the enrolment
    /// token, 8 bytes in hexadecimal.
    pub fn issue(
        &self,
        machine: Machine,
        enrolment: &str,
        request: &Request,
    ) -> Result<Issued, Error> {
        let name = Name::new(self.authority.provider(), machine).map_err(identity::Error::from)?;
        let mut number = random(&*self.environment)?;
        if let Some(id) = unhex(enrolment).filter(|id| id.len() == 8) {
            number[8..].copy_from_slice(&id);
        }
        let serial = Serial::new(number);
        let now = self.environment.now();
        let subject = Subject::Client(name);
        Ok(self.authority.issue(request, &subject, serial, now)?)
    }

    /// Certificates that machines trust.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.authority.certificate().to_vec()]
    }

    /// Hash of the certificate that issues, for tokens.
    pub fn fingerprint(&self) -> identity::Fingerprint {
        self.authority.fingerprint()
    }
}

fn own(
    authority: &Authority,
    settings: &Settings,
    environment: &Arc<dyn Environment>,
) -> Result<Own, Error> {
    make(
        authority,
        &settings.server_name,
        settings.grace,
        environment,
    )
}

/// Issues a certificate for the director itself.
fn make(
    authority: &Authority,
    server_name: &str,
    grace: std::time::Duration,
    environment: &Arc<dyn Environment>,
) -> Result<Own, Error> {
    let key = MachineKey::generate()?;
    let request = Request::read(&key.request()?)?;
    let name = Name::new(authority.provider(), Machine::Director).map_err(identity::Error::from)?;
    let subject = Subject::Server(name, server_name.to_owned());
    let now = environment.now();
    let issued = authority.issue(&request, &subject, serial(&**environment)?, now)?;
    let root = authority.certificate().clone();
    let config = tls::server(
        vec![issued.der, root.clone()],
        &key,
        &[root],
        grace,
        Arc::new(Clock(Arc::clone(environment))),
    )?;
    Ok(Own {
        config: Arc::new(config),
        issued: now,
        renewal: issued.validity.renewal(0),
    })
}

fn serial(environment: &dyn Environment) -> Result<Serial, Error> {
    Ok(Serial::new(random(environment)?))
}

fn random(environment: &dyn Environment) -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    environment.fill(&mut bytes)?;
    Ok(bytes)
}

/// The context that a sealed key is bound to.
fn context(provider: &str) -> String {
    format!("causeway authority {provider}")
}

fn open(stored: &StoredAuthority, key: &SealingKey, configured: &str) -> Result<Authority, Error> {
    if stored.provider != configured {
        return Err(Error::Provider {
            configured: configured.to_owned(),
            stored: stored.provider.clone(),
        });
    }
    let sealed = Sealed::from(stored.sealed_key.clone());
    let secret = sealed.open(key, context(&stored.provider).as_bytes())?;
    let certificate = unhex(&stored.certificate).ok_or(Error::Malformed)?;
    let key = MachineKey::from_der(&secret)?;
    Ok(Authority::load(&stored.provider, &certificate, key)?)
}

/// Makes an authority and stores it, unless another director was faster.
async fn create(
    director: &Director,
    sealing: &SealingKey,
    provider: &str,
) -> Result<Authority, Error> {
    let environment = &*director.environment;
    let now = environment.now();
    let authority = Authority::new(provider, MachineKey::generate()?, serial(environment)?, now)?;
    let mut nonce = [0; 24];
    environment.fill(&mut nonce)?;
    let sealed = Sealed::seal(
        sealing,
        nonce,
        context(provider).as_bytes(),
        &authority.key(),
    );
    let stored = StoredAuthority {
        provider: provider.to_owned(),
        certificate: hex(authority.certificate()),
        sealed_key: sealed.as_str().to_owned(),
        created: now,
    };
    let text = serde_json::to_string(&stored).map_err(|error| Error::Store(error.to_string()))?;
    let key = format!("{AUTHORITIES}{}", authority_id(authority.certificate()));
    let record = director.record(|live: &Live, _| {
        if !live.authorities.is_empty() {
            return Err("there is another one: start the director again".to_owned());
        }
        let mut transaction = Transaction::default();
        transaction
            .preconditions
            .insert(key.clone(), Precondition::Absent);
        transaction.put.insert(key.clone(), text.clone());
        Ok(Some(transaction))
    });
    record
        .await
        .map_err(|error| Error::Store(error.to_string()))?;
    let fingerprint = authority.fingerprint();
    tracing::info!(provider, %fingerprint, "created the certificate authority of the provider");
    Ok(authority)
}

fn store_error() -> Error {
    Error::Store("the store cannot be read".to_owned())
}

/// A certificate as TLS has it.
pub(super) fn shown(chain: Option<&[CertificateDer<'_>]>) -> Option<identity::Certificate> {
    let first = chain?.first()?;
    identity::Certificate::read(first).ok()
}
