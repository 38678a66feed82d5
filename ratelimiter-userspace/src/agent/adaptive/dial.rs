//! How a backend's page is reached: the configured host and nothing else, over TCP or TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock;
use crate::config::adaptive::Target;

/// A name is looked up again when it was last so long ago, or nobody answered there.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);

/// A connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why there is no connection.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// The backend's doing: a signal.
    Backend(String),
    /// Ours, or the settings': none.
    Ours(String),
}

/// Reaches one host.
#[derive(Default)]
pub(super) struct Dial {
    addresses: Vec<SocketAddr>,
    looked_up: Option<Instant>,
    /// What kinds of addresses the name stood for when it was first asked for.
    kinds: Vec<Kind>,
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// How far an address reaches. A name that stood for hosts of the network must not become this
/// host's own services, or those that a cloud has at link-local addresses, because somebody else
/// answers for it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Loopback,
    LinkLocal,
    Network,
    Nobody,
}

fn kind(address: IpAddr) -> Kind {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_multicast() {
        Kind::Nobody
    } else if address.is_loopback() {
        Kind::Loopback
    } else if link_local {
        Kind::LinkLocal
    } else {
        Kind::Network
    }
}

impl Dial {
    /// Connects to `target`; `ca_file` names who may have signed its certificate, the system's
    /// authorities if it is empty.
    pub(super) async fn connect(
        &mut self,
        target: &Target,
        ca_file: &str,
    ) -> Result<Box<dyn Stream>, Failure> {
        self.look_up(target).await?;
        let stream = match TcpStream::connect(self.addresses.as_slice()).await {
            Ok(stream) => stream,
            Err(error) => {
                self.looked_up = None;
                return Err(Failure::Backend(format!("cannot connect: {error}")));
            }
        };
        if !target.tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(target.host.clone())
            .map_err(|error| Failure::Ours(format!("`{}`: {error}", target.host)))?;
        let connector = if let Some(connector) = &self.tls {
            connector.clone()
        } else {
            let connector = tls(ca_file).map_err(Failure::Ours)?;
            self.tls.insert(connector).clone()
        };
        match connector.connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                let cause = error.get_ref();
                let ours =
                    cause.is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>);
                let why = format!("no TLS: {error}");
                Err(if ours {
                    Failure::Ours(why)
                } else {
                    Failure::Backend(why)
                })
            }
        }
    }

    async fn look_up(&mut self, target: &Target) -> Result<(), Failure> {
        let now = clock::instant();
        let fresh = |at: Instant| now.saturating_duration_since(at) < LOOK_UP_EVERY;
        if !self.addresses.is_empty() && self.looked_up.is_some_and(fresh) {
            return Ok(());
        }
        self.looked_up = Some(now);
        match tokio::net::lookup_host((target.host.as_str(), target.port)).await {
            Ok(found) => self.found(&target.host, found.collect()),
            // Whoever answers for names is away: what they stood for last is as good as any.
            Err(_) if !self.addresses.is_empty() => Ok(()),
            Err(error) => Err(Failure::Ours(format!(
                "`{}` is not found: {error}",
                target.host
            ))),
        }
    }

    /// Takes over what a name stands for now, as far as that is the kind of place it was.
    fn found(&mut self, host: &str, found: Vec<SocketAddr>) -> Result<(), Failure> {
        if self.kinds.is_empty() {
            self.kinds = found.iter().map(|address| kind(address.ip())).collect();
        }
        let (may, must_not): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| {
            let kind = kind(address.ip());
            kind != Kind::Nobody && self.kinds.contains(&kind)
        });
        if let (true, Some(elsewhere)) = (may.is_empty(), must_not.first()) {
            self.addresses.clear();
            return Err(Failure::Ours(format!(
                "`{host}` stands for {} now, which is not where it was: not asked; reload to ask it",
                elsewhere.ip()
            )));
        }
        if may.is_empty() && self.addresses.is_empty() {
            return Err(Failure::Ours(format!("`{host}` stands for no address")));
        }
        if !may.is_empty() {
            self.addresses = may;
        }
        Ok(())
    }
}

fn tls(ca_file: &str) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    if ca_file.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("this system has no certificate authorities; name yours: `ca_file`".into());
        }
    } else {
        let refused = |why: String| format!("`ca_file` is `{ca_file}`: {why}");
        let pem = std::fs::read(ca_file).map_err(|error| refused(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| refused(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| refused(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(refused("it holds no certificate in PEM".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[test]
    fn a_name_stays_the_kind_of_place_it_was() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 80);
        let mut dial = Dial::default();
        dial.found("web", vec![at("192.0.2.1")]).unwrap();
        dial.found("web", vec![at("192.0.2.7"), at("127.0.0.1")])
            .unwrap();
        assert_eq!(dial.addresses, [at("192.0.2.7")], "moved, in the network");
        for elsewhere in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "::ffff:127.0.0.1",
            "0.0.0.0",
        ] {
            let refused = dial.found("web", vec![at(elsewhere)]).unwrap_err();
            let Failure::Ours(why) = refused else {
                panic!("{refused:?}")
            };
            assert!(why.contains("not where it was"), "{why}");
            assert!(dial.addresses.is_empty(), "{elsewhere} is not asked");
        }
        dial.found("web", vec![at("192.0.2.8")]).unwrap();
        let mut here = Dial::default();
        here.found("localhost", vec![at("127.0.0.1")]).unwrap();
        here.found("localhost", vec![at("::1")]).unwrap();
        assert_eq!(here.addresses, [at("::1")]);
        assert!(
            Dial::default()
                .found("nobody", vec![at("0.0.0.0")])
                .is_err()
        );
        assert!(Dial::default().found("nobody", Vec::new()).is_err());
    }

    fn openssl(directory: &Path, arguments: &[&str]) {
        let done = Command::new("openssl")
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("openssl must be installed: `apt-get install openssl`");
        assert!(done.status.success(), "{done:?}");
    }

    /// A server with a certificate for `localhost`; its port.
    async fn server(directory: &Path) -> u16 {
        let request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test";
        for (name, more) in [
            ("ca", ""),
            ("other", ""),
            (
                "server",
                " -CA ca.crt -CAkey ca.key -addext basicConstraints=critical,CA:FALSE \
                 -addext subjectAltName=DNS:localhost",
            ),
        ] {
            let line = format!("{request} -keyout {name}.key -out {name}.crt{more}");
            openssl(directory, &line.split_whitespace().collect::<Vec<_>>());
        }
        let pem = |name: &str| std::fs::read(directory.join(name)).unwrap();
        let certificates = CertificateDer::pem_slice_iter(&pem("server.crt"))
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(&pem("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut asked = [0; 4];
                    drop(stream.read_exact(&mut asked).await);
                    drop(stream.write_all(&asked).await);
                    drop(stream.shutdown().await);
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn a_certificate_must_be_signed_by_whom_the_settings_name() {
        let directory = tempfile::tempdir().unwrap();
        let port = server(directory.path()).await;
        let target = |host: &str| Target {
            tls: true,
            host: host.to_owned(),
            port,
            path: "/".to_owned(),
        };
        let file = |name: &str| directory.path().join(name).display().to_string();
        let mut dial = Dial::default();
        let mut stream = dial
            .connect(&target("localhost"), &file("ca.crt"))
            .await
            .unwrap_or_else(|failure| panic!("{failure:?}"));
        stream.write_all(b"page").await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"page");
        for (host, ca_file, part) in [
            ("localhost", "other.crt", "no TLS"),
            ("127.0.0.1", "ca.crt", "no TLS"),
            ("localhost", "server.key", "no certificate"),
            ("localhost", "missing", "No such file"),
            ("localhost", "", ""),
        ] {
            let ca_file = if ca_file.is_empty() {
                String::new()
            } else {
                file(ca_file)
            };
            let failure = Dial::default().connect(&target(host), &ca_file).await.err();
            let Some(Failure::Ours(why)) = failure else {
                panic!("{host} {ca_file}: {failure:?}")
            };
            assert!(why.contains(part), "{host} {ca_file}: {why}");
        }
    }
}
