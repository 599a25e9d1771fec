//! Handshakes in memory, with clocks that tests set.

use std::io;

use jiff::{SignedDuration, Timestamp};
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::{Authority, Issued, Name, Request, Serial, Subject};

const PROVIDER: &str = "provider.example";
const SERVER: &str = "director.provider.example";
const GRACE: Duration = Duration::from_secs(7 * 86_400);

/// A clock.
#[derive(Clone, Copy, Debug)]
struct At(Timestamp);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

fn begin() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

fn hours(hours: i64) -> Timestamp {
    begin() + SignedDuration::from_hours(hours)
}

fn at(time: Timestamp) -> Arc<dyn TimeProvider> {
    Arc::new(At(time))
}

/// A provider with its director.
struct Site {
    authority: Authority,
    key: MachineKey,
    certificate: Issued,
}

fn director() -> Subject {
    let name = Name::new(PROVIDER, Machine::Director).unwrap();
    Subject::Server(name, SERVER.into())
}

fn appliance() -> Name {
    format!("spiffe://{PROVIDER}/tenant/acme/appliance/edge-1")
        .parse()
        .unwrap()
}

fn client(authority: &Authority, time: Timestamp) -> (MachineKey, Issued) {
    issue(authority, &Subject::Client(appliance()), time)
}

fn issue(authority: &Authority, subject: &Subject, time: Timestamp) -> (MachineKey, Issued) {
    let key = MachineKey::generate().unwrap();
    let request = Request::read(&key.request().unwrap()).unwrap();
    let issued = authority.issue(&request, subject, Serial::new([9; 16]), time);
    (key, issued.unwrap())
}

impl Site {
    fn new(serial: u8) -> Self {
        let key = MachineKey::generate().unwrap();
        let serial = Serial::new([serial; 16]);
        let authority = Authority::new(PROVIDER, key, serial, begin()).unwrap();
        let (key, certificate) = issue(&authority, &director(), begin());
        Self {
            authority,
            key,
            certificate,
        }
    }

    fn server(&self, roots: &[CertificateDer<'_>], time: Timestamp) -> ServerConfig {
        let chain = vec![
            self.certificate.der.clone(),
            self.authority.certificate().clone(),
        ];
        server(chain, &self.key, roots, GRACE, at(time)).unwrap()
    }

    fn roots(&self) -> [CertificateDer<'static>; 1] {
        [self.authority.certificate().clone()]
    }

    /// Connects a machine with a certificate at this time.
    fn connect(
        &self,
        (key, issued): &(MachineKey, Issued),
        time: Timestamp,
    ) -> Result<Option<Certificate>, Error> {
        let config = machine(issued.der.clone(), key, &self.roots(), at(time))?;
        handshake(self.server(&self.roots(), time), config, SERVER)
    }
}

/// Runs a handshake to its end: the certificate that the client showed.
fn handshake(
    server: ServerConfig,
    client: ClientConfig,
    name: &'static str,
) -> Result<Option<Certificate>, Error> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
        transfer(|to| client.write_tls(to), |from| server.read_tls(from));
        server.process_new_packets()?;
        transfer(|to| server.write_tls(to), |from| client.read_tls(from));
        client.process_new_packets()?;
    }
    let shown = server.peer_certificates();
    Ok(shown.map(|chain| Certificate::read(&chain[0]).unwrap()))
}

fn transfer(
    mut write: impl FnMut(&mut Vec<u8>) -> io::Result<usize>,
    mut read: impl FnMut(&mut &[u8]) -> io::Result<usize>,
) {
    let mut bytes = Vec::new();
    while write(&mut bytes).unwrap() > 0 {}
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        read(&mut rest).unwrap();
    }
}

fn is_refused(result: Result<Option<Certificate>, Error>, expected: CertificateError) {
    match result {
        Err(Error::InvalidCertificate(found)) => assert_eq!(found, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_enrols_and_comes_back_by_its_certificate() {
    let site = Site::new(1);
    let first = first_contact(site.authority.fingerprint(), at(begin())).unwrap();
    let shown = handshake(site.server(&site.roots(), begin()), first, SERVER).unwrap();
    assert_eq!(shown, None);

    let issued = client(&site.authority, begin());
    let shown = site.connect(&issued, hours(23)).unwrap().unwrap();
    assert_eq!(shown.name, appliance());
    assert_eq!(shown.serial, issued.1.serial);
    assert_eq!(shown.validity, issued.1.validity);
    let request = Request::read(&issued.0.request().unwrap()).unwrap();
    assert_eq!(shown.key, request.key());
}

#[test]
fn a_first_contact_trusts_the_authority_of_the_token_only() {
    let (site, other) = (Site::new(1), Site::new(2));
    let first = || first_contact(site.authority.fingerprint(), at(begin())).unwrap();
    let unknown = CertificateError::UnknownIssuer;
    let server = other.server(&other.roots(), begin());
    is_refused(handshake(server, first(), SERVER), unknown.clone());

    // An impostor sends the right authority beside a certificate of its own.
    let chain = vec![
        other.certificate.der.clone(),
        site.authority.certificate().clone(),
    ];
    let server = server_with(chain, &other.key, &site);
    is_refused(handshake(server, first(), SERVER), unknown.clone());

    // Without the authority's certificate there is nothing to compare.
    let server = server_with(vec![site.certificate.der.clone()], &site.key, &site);
    is_refused(handshake(server, first(), SERVER), unknown);

    let wrong = handshake(
        site.server(&site.roots(), begin()),
        first(),
        "other.example",
    );
    assert!(matches!(
        wrong,
        Err(Error::InvalidCertificate(
            CertificateError::NotValidForNameContext { .. }
        ))
    ));
}

fn server_with(chain: Vec<CertificateDer<'static>>, key: &MachineKey, site: &Site) -> ServerConfig {
    server(chain, key, &site.roots(), GRACE, at(begin())).unwrap()
}

#[test]
fn a_machine_cannot_pose_as_the_director() {
    let site = Site::new(1);
    let (key, issued) = client(&site.authority, begin());
    let chain = vec![issued.der, site.authority.certificate().clone()];
    let server = server_with(chain, &key, &site);
    let first = first_contact(site.authority.fingerprint(), at(begin())).unwrap();
    assert!(handshake(server, first, SERVER).is_err());

    // Nor with a certificate for the server's name, if a director were to issue one.
    let subject = Subject::Server(appliance(), SERVER.into());
    let (key, issued) = issue(&site.authority, &subject, begin());
    let chain = vec![issued.der, site.authority.certificate().clone()];
    let server = server_with(chain, &key, &site);
    let first = first_contact(site.authority.fingerprint(), at(begin())).unwrap();
    let result = handshake(server, first, SERVER);
    is_refused(result, CertificateError::NotValidForName);
}

#[test]
fn the_directors_certificate_is_none_of_a_client() {
    let site = Site::new(1);
    let issued = issue(&site.authority, &director(), begin());
    assert!(site.connect(&issued, begin()).is_err());
}

#[test]
fn certificates_of_other_authorities_are_refused() {
    let (site, other) = (Site::new(1), Site::new(2));
    let foreign = client(&other.authority, begin());
    is_refused(
        site.connect(&foreign, begin()),
        CertificateError::UnknownIssuer,
    );
}

#[test]
fn both_authorities_are_trusted_while_one_replaces_the_other() {
    let (old, new) = (Site::new(1), Site::new(2));
    let both = [
        old.authority.certificate().clone(),
        new.authority.certificate().clone(),
    ];
    for (from, to) in [(&old, &new), (&new, &old)] {
        let (key, issued) = client(&from.authority, begin());
        let config = machine(issued.der, &key, &both, at(begin())).unwrap();
        let shown = handshake(to.server(&both, begin()), config, SERVER);
        assert_eq!(shown.unwrap().unwrap().name, appliance());
    }
}

#[test]
fn an_expired_certificate_is_shown_for_the_time_of_grace() {
    let site = Site::new(1);
    let issued = client(&site.authority, begin());
    // The director has a fresh certificate at each of these times.
    let connect = |time| {
        let (key, certificate) = issue(&site.authority, &director(), time);
        let site = Site {
            authority: reload(&site.authority),
            key,
            certificate,
        };
        site.connect(&issued, time)
    };
    let shown = connect(hours(24 + 7 * 24)).unwrap().unwrap();
    assert!(!shown.validity.contains(hours(24 + 7 * 24)));
    let late = connect(hours(25 + 7 * 24));
    assert!(
        matches!(
            late,
            Err(Error::InvalidCertificate(
                CertificateError::ExpiredContext { .. }
            ))
        ),
        "{late:?}"
    );
}

#[test]
fn a_certificate_is_valid_an_hour_before_it_was_issued() {
    let site = Site::new(1);
    let issued = client(&site.authority, begin());
    let early = begin() - SignedDuration::from_mins(59);
    assert!(site.connect(&issued, early).unwrap().is_some());
    let early = site.connect(&issued, begin() - SignedDuration::from_mins(61));
    assert!(
        matches!(
            early,
            Err(Error::InvalidCertificate(
                CertificateError::NotValidYetContext { .. }
            ))
        ),
        "{early:?}"
    );
}

/// The authority as another director reads it from the store.
fn reload(authority: &Authority) -> Authority {
    let key = MachineKey::from_der(&authority.key()).unwrap();
    Authority::load(authority.provider(), authority.certificate(), key).unwrap()
}

#[test]
fn a_loaded_authority_issues_as_before() {
    let site = Site::new(1);
    let loaded = reload(&site.authority);
    assert_eq!(loaded.fingerprint(), site.authority.fingerprint());
    assert_eq!(loaded.validity(), site.authority.validity());
    let issued = client(&loaded, begin());
    assert!(site.connect(&issued, begin()).unwrap().is_some());

    let other = MachineKey::generate().unwrap();
    let wrong = Authority::load(PROVIDER, site.authority.certificate(), other);
    assert!(matches!(wrong, Err(crate::Error::Mismatch)), "{wrong:?}");
}

#[test]
fn no_certificate_outlives_its_authority_or_names_another_provider() {
    let site = Site::new(1);
    let end = site.authority.validity().not_after;
    let (_, issued) = client(&site.authority, end - SignedDuration::from_hours(1));
    assert_eq!(issued.validity.not_after, end);

    let foreign = "spiffe://other.example/gateway/gw1".parse().unwrap();
    let request = MachineKey::generate().unwrap().request().unwrap();
    let request = Request::read(&request).unwrap();
    let subject = Subject::Client(foreign);
    let refused = site
        .authority
        .issue(&request, &subject, Serial::new([1; 16]), begin());
    assert!(matches!(refused, Err(crate::Error::Name(_))), "{refused:?}");
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let der = MachineKey::generate().unwrap().request().unwrap();
    let key = Request::read(&der).unwrap().key();
    let mut accepted = 0;
    for bit in 0..der.len() * 8 {
        let mut changed = der.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if let Ok(request) = Request::read(&changed) {
            assert_eq!(request.key(), key, "bit {bit}");
            accepted += 1;
        }
    }
    // The parser ignores some bits of tags outside of the signed part.
    assert!(accepted < 32, "{accepted} of {} bits", der.len() * 8);
    assert!(Request::read(&[0x30; 5000]).is_err());
    assert!(Request::read(&[]).is_err());
}
