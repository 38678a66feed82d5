//! `https://`: whom the command line believes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cli::exit::{Exit, Failure};

/// Speaks TLS to one server.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Believes certificates that those in `ca_file` (PEM) signed; without it, those of the system.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => trust_file(&mut roots, path)?,
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(Failure::usage(
                "this machine has no list of certificate authorities to check the agent with",
            )
            .with_help("name the one that signed the agent's certificate with --ca-file"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(format!("TLS cannot be set up: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// Shakes hands with `host` over `stream`.
    pub async fn shake<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| Failure::usage(format!("`{host}` is no name of a server: {e}")))?;
        let shaken = self.connector.connect(name, stream).await;
        shaken.map_err(|e| {
            Failure::new(format!("agent unreachable: TLS with `{host}` failed: {e}"))
                .with_exit(Exit::Unreachable)
                .with_help("is it https there, and did a known authority sign its certificate? --ca-file names another one")
        })
    }
}

fn trust_file(roots: &mut RootCertStore, path: &Path) -> Result<(), Failure> {
    let refused = |e: &dyn fmt::Display| {
        Failure::usage(format!(
            "`--ca-file {}` cannot be used: {e}",
            path.display()
        ))
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| refused(&e))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| refused(&e))?;
        roots.add(certificate).map_err(|e| refused(&e))?;
    }
    if roots.is_empty() {
        return Err(refused(&"there is no certificate in it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = Tls::new(Some(file.path())).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.message.contains("no certificate in it"),
            "{failure}"
        );
        let failure = Tls::new(Some(Path::new("/no/such/file"))).unwrap_err();
        assert!(failure.message.contains("/no/such/file"), "{failure}");
    }
}
