//! The listener's certificate and its key, in one file, and the fingerprint that tenants pin.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use service::secret_file::{self, Access, Exposed};
use zeroize::Zeroizing;

/// SHA-256 of a certificate (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a fingerprint is 64 hexadecimal digits, with or without colons, as the listening appliance or \
     `openssl x509 -noout -fingerprint -sha256` prints it"
)]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    /// Accepts hexadecimal digits in either case, in pairs separated by colons (as openssl prints
    /// them) or without.
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(BadFingerprint);
        let between = match text.len() {
            64 => 0,
            95 => 1,
            _ => return Err(BadFingerprint),
        };
        let mut fingerprint = Self([0; 32]);
        let pairs = text.as_bytes().chunks(2 + between);
        for (byte, pair) in fingerprint.0.iter_mut().zip(pairs) {
            let (&[high, low], rest) = pair.split_first_chunk().ok_or(BadFingerprint)?;
            *byte = (digit(high)? << 4 | digit(low)?) as u8;
            if !matches!(rest, [] | [b':']) {
                return Err(BadFingerprint);
            }
        }
        Ok(fingerprint)
    }
}

/// Why an identity cannot be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Other users can access the file.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The file holds no identity.
    #[error(
        "{} does not hold a certificate and its key (PEM, PKCS #8): {why}; move it away to have a \
         new one made, and give tenants its fingerprint",
        path.display()
    )]
    Text {
        /// The file.
        path: PathBuf,
        /// The error.
        why: String,
    },
    /// The certificate cannot be generated.
    #[error("cannot generate a certificate for \"{name}\": {source}")]
    Make {
        name: String,
        /// The error.
        source: rcgen::Error,
    },
}

/// A certificate and its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A new identity. The name in the certificate is not verified by the other end.
    ///
    /// # Errors
    /// [`Error::Make`].
    pub fn generate(name: &str) -> Result<Self, Error> {
        let failed = |source| Error::Make {
            name: name.to_owned(),
            source,
        };
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let certificate = rcgen::CertificateParams::new([name.to_owned()])
            .and_then(|mut params| {
                params.distinguished_name = rcgen::DistinguishedName::new();
                params
                    .distinguished_name
                    .push(rcgen::DnType::CommonName, name);
                params.self_signed(&key)
            })
            .map_err(failed)?;
        Ok(Self {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// The identity in this file; if the file does not exist, a new one that is written there, mode
    /// 0600.
    ///
    /// # Errors
    /// [`Error`], naming the file. An existing file is never overwritten.
    pub fn load_or_generate(path: &Path, name: &str) -> Result<Self, Error> {
        match fs::metadata(path) {
            Ok(data) => {
                secret_file::check_metadata(path, &data, Access::Owner)?;
                Self::load(path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::generate(name)?;
                identity.write(path)?;
                Ok(identity)
            }
            Err(source) => Err(Error::Io {
                operation: "stat",
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path)
            .map(Zeroizing::new)
            .map_err(|source| Error::Io {
                operation: "read",
                path: path.to_owned(),
                source,
            })?;
        let bad = |why: String| Error::Text {
            path: path.to_owned(),
            why,
        };
        let chain = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(error.to_string()))?;
        if chain.is_empty() {
            return Err(bad("no certificate".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| bad(error.to_string()))?;
        Ok(Self { chain, key })
    }

    /// Writes the file atomically: a crash leaves no half of an identity.
    fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |operation| {
            move |source| Error::Io {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let mut text = Zeroizing::new(String::new());
        for certificate in &self.chain {
            pem(&mut text, "CERTIFICATE", certificate);
        }
        pem(&mut text, "PRIVATE KEY", self.key.secret_der());
        let new = path.with_extension("new");
        // Left over from an earlier attempt.
        let _ = fs::remove_file(&new);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(failed("write"))?;
        fs::rename(&new, path).map_err(failed("rename"))?;
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(failed("sync"))?;
        }
        Ok(())
    }

    /// SHA-256 of the certificate, which tenants pin.
    ///
    /// # Panics
    /// Never: an identity has a certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.chain[0])
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// Appends a PEM block (RFC 7468).
fn pem(out: &mut String, label: &str, der: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    // 48 bytes make a line of 64 characters.
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = (0..3).fold(0, |bits, n| {
                bits << 8 | u32::from(three.get(n).copied().unwrap_or(0))
            });
            for n in 0..4 {
                let digit = char::from(DIGITS[(bits >> (18 - 6 * n) & 63) as usize]);
                out.push(if n <= three.len() { digit } else { '=' });
            }
        }
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn an_identity_is_generated_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stream.pem");
        let made = Identity::load_or_generate(&path, "tunnel.example").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let again = Identity::load_or_generate(&path, "tunnel.example").unwrap();
        assert_eq!(made.fingerprint(), again.fingerprint());
        assert_eq!(made.key, again.key);
        assert_eq!(made.chain, again.chain);
        super::super::config::server(&again).expect("a usable identity");
        let other = Identity::generate("tunnel.example").unwrap();
        assert_ne!(made.fingerprint(), other.fingerprint());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_or_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stream.pem");
        Identity::load_or_generate(&path, "a.example").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_generate(&path, "a.example").unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "hunter2", "-----BEGIN CERTIFICATE-----\nx\n"] {
            fs::write(&path, text).unwrap();
            let error = Identity::load_or_generate(&path, "a.example").unwrap_err();
            assert!(matches!(error, Error::Text { .. }), "{error}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_fingerprint_is_parsed_as_printed_here_and_by_openssl() {
        let fingerprint = Identity::generate("a.example").unwrap().fingerprint();
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        let upper = text.to_uppercase();
        let pairs: Vec<&str> = (0..32).map(|n| &upper[2 * n..2 * n + 2]).collect();
        assert_eq!(pairs.join(":").parse(), Ok(fingerprint));
        for bad in [
            "",
            &text[1..],
            &format!("{text}0"),
            &text.replace(&text[..1], "g"),
            &pairs.join("-"),
            &format!("{}é", &text[2..]),
        ] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(BadFingerprint), "{bad}");
        }
    }
}
