//! From settings to a connection: one server, the master Sentinels name, or a cluster; over TCP, TLS
//! or a Unix socket.

use std::sync::Once;
use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo as _, RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode, Value,
};

use crate::config::Secret;
use crate::config::store_url::{StoreForm, StoreTarget};

/// Commands of one connection under way at once.
const PIPELINE: usize = 1_024;

/// Where the store is and how to be let in. Certificates are PEM.
#[derive(Clone)]
pub struct Access {
    /// Where.
    pub target: StoreTarget,
    /// Name for the server's ACL, if the URL has none.
    pub username: String,
    /// Password, if the URL has none.
    pub password: Option<Secret>,
    /// Who may have signed the server's certificate; the system's authorities if `None`.
    pub authorities: Option<Vec<u8>>,
    /// This host's certificate and its key.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("target", &self.target)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// Sends one command. Never sends it twice.
    pub(super) async fn call(&mut self, command: &Cmd) -> RedisResult<Value> {
        let value = match self {
            Self::One(connection) => connection.req_packed_command(command).await?,
            Self::Cluster(connection) => connection.req_packed_command(command).await?,
        };
        value.extract_error()
    }
}

/// What is kept between tries: Sentinels that answered, and the like.
pub(super) enum Connector {
    One(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

impl Connector {
    pub(super) fn new(access: &Access) -> RedisResult<Self> {
        if access.target.tls {
            use_ring();
        }
        let target = &access.target;
        let (username, password) = access.credentials();
        let settings = || {
            let mut settings = RedisConnectionInfo::default().set_db(target.db);
            if !username.is_empty() {
                settings = settings.set_username(username);
            }
            if !password.is_empty() {
                settings = settings.set_password(password);
            }
            settings
        };
        let at = |host: &str, port: u16| {
            if target.tls {
                ConnectionAddr::TcpTls {
                    host: host.to_owned(),
                    port,
                    insecure: false,
                    tls_params: None,
                }
            } else {
                ConnectionAddr::Tcp(host.to_owned(), port)
            }
        };
        let info = |address: ConnectionAddr| -> RedisResult<ConnectionInfo> {
            Ok(address
                .into_connection_info()?
                .set_redis_settings(settings()))
        };
        Ok(match &target.form {
            StoreForm::Server(host, port) if target.tls => Self::One(Box::new(
                Client::build_with_tls(info(at(host, *port))?, access.certificates())?,
            )),
            StoreForm::Server(host, port) => {
                Self::One(Box::new(Client::open(info(at(host, *port))?)?))
            }
            StoreForm::Socket(path) => Self::One(Box::new(Client::open(info(
                ConnectionAddr::Unix(path.into()),
            )?)?)),
            StoreForm::Sentinel(hosts, master) => {
                // Sentinels are spoken to without TLS and without a password unless they have the
                // servers': an ACL of their own is not supported.
                let sentinels = hosts
                    .iter()
                    .map(|(host, port)| ConnectionAddr::Tcp(host.clone(), *port));
                let mut builder =
                    SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
                        .set_client_to_redis_db(target.db);
                if !username.is_empty() {
                    builder = builder.set_client_to_redis_username(username);
                }
                if !password.is_empty() {
                    builder = builder.set_client_to_redis_password(password);
                }
                if target.tls {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(access.certificates());
                }
                Self::Sentinel(Box::new(builder.build()?))
            }
            StoreForm::Cluster(hosts) => {
                let nodes: Vec<ConnectionInfo> = hosts
                    .iter()
                    .map(|(host, port)| info(at(host, *port)))
                    .collect::<RedisResult<_>>()?;
                // Without retries: what was not answered is not sent again.
                let mut builder = ClusterClientBuilder::new(nodes)
                    .retries(0)
                    .connection_timeout(Duration::from_secs(1))
                    .response_timeout(Duration::from_secs(1));
                if target.tls {
                    builder = builder.tls(TlsMode::Secure).certs(access.certificates());
                }
                Self::Cluster(Box::new(builder.build()?))
            }
        })
    }

    /// Connects. The caller has a deadline around it.
    pub(super) async fn connect(&mut self) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE);
        Ok(match self {
            Self::One(client) => Connection::One(
                client
                    .get_multiplexed_async_connection_with_config(&config)
                    .await?,
            ),
            Self::Sentinel(sentinel) => {
                let client = sentinel.async_get_client().await?;
                Connection::One(
                    client
                        .get_multiplexed_async_connection_with_config(&config)
                        .await?,
                )
            }
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

impl Access {
    fn credentials<'a>(&'a self) -> (&'a str, &'a str) {
        let or = |own: &'a str, other: &'a str| if own.is_empty() { other } else { own };
        let given = self.password.as_ref().map_or("", Secret::expose);
        (
            or(&self.target.username, &self.username),
            or(&self.target.password, given),
        )
    }

    fn certificates(&self) -> TlsCertificates {
        TlsCertificates {
            client_tls: self
                .certificate
                .as_ref()
                .map(|(certificate, key)| ClientTlsConfig {
                    client_cert: certificate.clone(),
                    client_key: key.clone(),
                }),
            root_cert: self.authorities.clone(),
        }
    }
}

/// Chooses what TLS computes with, once for the process.
fn use_ring() {
    static CHOSEN: Once = Once::new();
    CHOSEN.call_once(|| {
        // Somebody else's choice is as good.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
    });
}
