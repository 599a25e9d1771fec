//! The machine's identity on the disk.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_client::dial::ServiceAddress;
use identity::{Certificate, EnrolmentToken, Fingerprint, MachineKey};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// File of the identity.
const IDENTITY: &str = "identity.json";
/// File of the key of an enrolment that may have no answer yet.
const PENDING: &str = "enrolment.json";
/// The form of the files.
const VERSION: u32 = 1;

/// The identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A file cannot be read or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// The operation, as in "read".
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The file is no identity.
    #[error("{} is no identity of a machine: remove it, and enrol by a new token", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file is of a newer version.
    #[error(
        "{} was written by a newer version: run that one, or remove the file and enrol by a new \
         token",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// No key can be made.
    #[error(transparent)]
    Key(#[from] identity::Error),
}

/// The folder of a machine's identity. Its files are for their owner alone.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// A machine's identity.
#[derive(Debug)]
pub struct Kept {
    /// The key of the certificate.
    pub key: MachineKey,
    /// The certificate in DER, for TLS.
    pub certificate: CertificateDer<'static>,
    pub contents: Certificate,
    /// Authorities that the director's certificate may come from.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Server name of the director.
    pub server_name: String,
    /// Where the director is reached.
    pub service_addresses: Vec<ServiceAddress>,
    /// Hash of the secret of the token of the enrolment.
    pub token: String,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    version: u32,
    key: Zeroizing<String>,
    certificate: String,
    authorities: Vec<String>,
    server_name: String,
    service_addresses: Vec<String>,
    token: String,
}

#[derive(Serialize, Deserialize)]
struct PendingFile {
    version: u32,
    key: Zeroizing<String>,
    token: String,
}

impl Folder {
    /// A folder, which need not exist.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Reads the identity; `None` if there is none.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn load(&self) -> Result<Option<Kept>, Unusable> {
        let path = self.0.join(IDENTITY);
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let file: IdentityFile = parse(&text, &path)?;
        let kept = kept(&file).ok_or(Unusable::Malformed { path })?;
        Ok(Some(kept))
    }

    /// Replaces the identity; on the disk when it returns. The key of an enrolment is removed.
    ///
    /// # Errors
    /// [`Unusable::File`].
    pub fn store(&self, kept: &Kept) -> Result<(), Unusable> {
        let encoded = |certificate: &CertificateDer<'_>| STANDARD.encode(certificate);
        let addresses = kept.service_addresses.iter();
        let file = IdentityFile {
            version: VERSION,
            key: Zeroizing::new(STANDARD.encode(kept.key.to_der())),
            certificate: encoded(&kept.certificate),
            authorities: kept.authorities.iter().map(encoded).collect(),
            server_name: kept.server_name.clone(),
            service_addresses: addresses.map(ToString::to_string).collect(),
            token: kept.token.clone(),
        };
        self.write(IDENTITY, &file)?;
        let pending = self.0.join(PENDING);
        match fs::remove_file(&pending) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Unusable::File {
                operation: "remove",
                path: pending,
                source,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The key that enrols by a token: always the same one, so that an enrolment whose answer was
    /// lost can be repeated, also by a process that starts later.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn enrolment_key(&self, token: &EnrolmentToken) -> Result<MachineKey, Unusable> {
        let path = self.0.join(PENDING);
        let hash = token.secret.hash();
        let stored = read(&path)?.and_then(|text| parse::<PendingFile>(&text, &path).ok());
        let stored = stored.filter(|file| file.token == hash);
        if let Some(key) = stored.and_then(|file| decode_key(&file.key)) {
            return Ok(key);
        }
        let key = MachineKey::generate()?;
        let file = PendingFile {
            version: VERSION,
            key: Zeroizing::new(STANDARD.encode(key.to_der())),
            token: hash,
        };
        self.write(PENDING, &file)?;
        Ok(key)
    }

    fn write(&self, name: &str, file: &impl Serialize) -> Result<(), Unusable> {
        let path = self.0.join(name);
        let mut folder = fs::DirBuilder::new();
        let made = folder.recursive(true).mode(0o700).create(&self.0);
        let text = serde_json::to_string(file).map_err(io::Error::from);
        let text = text.map(Zeroizing::new);
        let written = made
            .and(text)
            .and_then(|text| service::replace::replace(&path, 0o600, text.as_bytes()));
        written.map_err(|source| Unusable::File {
            operation: "write",
            path,
            source,
        })
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, Unusable> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Unusable::File {
            operation: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T, Unusable> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let path = || path.to_owned();
    let found: Result<Version, _> = serde_json::from_str(text);
    if found.is_ok_and(|found| found.version > VERSION) {
        return Err(Unusable::Newer { path: path() });
    }
    serde_json::from_str(text).map_err(|_| Unusable::Malformed { path: path() })
}

fn decode_key(text: &str) -> Option<MachineKey> {
    let der = Zeroizing::new(STANDARD.decode(text).ok()?);
    MachineKey::from_der(&der).ok()
}

fn decode_certificate(text: &String) -> Option<CertificateDer<'static>> {
    Some(CertificateDer::from(STANDARD.decode(text).ok()?))
}

fn kept(file: &IdentityFile) -> Option<Kept> {
    let certificate = decode_certificate(&file.certificate)?;
    let contents = Certificate::read(&certificate).ok()?;
    let authorities: Option<Vec<_>> = file.authorities.iter().map(decode_certificate).collect();
    let addresses = file.service_addresses.iter();
    let addresses: Result<Vec<ServiceAddress>, _> = addresses.map(|text| text.parse()).collect();
    let key = decode_key(&file.key)?;
    let own = identity::Request::read(&key.request().ok()?).ok()?.key();
    (own == contents.key).then_some(())?;
    Some(Kept {
        key,
        certificate,
        contents,
        authorities: authorities.filter(|all| !all.is_empty())?,
        server_name: file.server_name.clone(),
        service_addresses: addresses.ok()?,
        token: file.token.clone(),
    })
}

/// The hash of a certificate, as a token pins it.
pub(crate) fn fingerprint(certificate: &[u8]) -> Fingerprint {
    Fingerprint::of(certificate)
}
