//! Who may use which route: credentials, local callers, foreign hosts and origins.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::problem::{Problem, shortened};
use crate::admin::Caller;
use crate::config::{Right, Secret};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: probes and documentation, which say nothing about anybody.
    Open,
    /// Figures without names: open on loopback, else the right to read.
    Telemetry,
    /// A right.
    Needs(Right),
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// On the Unix socket, whose mode says who may connect.
    Socket,
    /// On TCP.
    Tcp {
        /// Address and port.
        address: SocketAddr,
        /// Whether it runs on this machine as root or as the agent's own user.
        trusted: bool,
    },
}

impl Peer {
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Socket => None,
            Self::Tcp { address, .. } => Some(address.ip().to_canonical()),
        }
    }

    fn is_local(&self) -> bool {
        self.address().is_none_or(|address| address.is_loopback())
    }
}

/// Somebody who may use the API.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Shown in the audit log.
    pub name: String,
    /// The bearer token.
    pub token: Secret,
    /// What it may do.
    pub rights: Vec<Right>,
    /// When it stops being accepted, milliseconds since the Unix epoch.
    pub expires_unix_ms: Option<u64>,
}

/// Decides who may use which route. Replaced as a whole on reload.
#[derive(Debug, Default)]
pub struct Gate {
    credentials: arc_swap::ArcSwap<Vec<Credential>>,
    hosts: arc_swap::ArcSwap<Vec<String>>,
}

/// Every right: what a local caller has while no credential is configured.
const ALL: [Right; 6] = [
    Right::Read,
    Right::Check,
    Right::Escalate,
    Right::Health,
    Right::Write,
    Right::Admin,
];

impl Gate {
    /// A gate for `credentials` that accepts `hosts` as names of this machine, beside addresses
    /// and `localhost`.
    #[must_use]
    pub fn new(credentials: Vec<Credential>, hosts: &[String]) -> Self {
        let gate = Self::default();
        gate.replace(credentials, hosts);
        gate
    }

    /// Replaces credentials and hosts; requests in progress are not affected.
    pub fn replace(&self, credentials: Vec<Credential>, hosts: &[String]) {
        self.credentials.store(std::sync::Arc::new(credentials));
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        self.hosts.store(std::sync::Arc::new(hosts));
    }

    /// Refuses requests that a browser was tricked into sending: a `Host` that is no address and
    /// no name of ours (DNS rebinding), an `Origin` that is not this very service.
    pub fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Problem::bad_request("exactly one `Host` is needed"));
        };
        let host = host.to_str().unwrap_or_default();
        if !self.is_ours(host) {
            return Err(Problem::forbidden(format!(
                "`Host` is `{}`; it must be an address, `localhost` or one of \
                 `admin.allowed_hosts`",
                shortened(host)
            )));
        }
        for origin in headers.get_all(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let authority = origin
                .split_once("://")
                .map_or("", |(_, authority)| authority);
            if !authority.eq_ignore_ascii_case(host) {
                return Err(Problem::forbidden(format!(
                    "`Origin` is `{}`; requests from other sites are refused",
                    shortened(origin)
                )));
            }
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
            return true;
        }
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
            _ => (host, ""),
        };
        if port.len() > 5 {
            return false;
        }
        let bracketed = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .is_some_and(|name| name.parse::<std::net::Ipv6Addr>().is_ok());
        let name = name.to_ascii_lowercase();
        bracketed
            || name == "localhost"
            || name.parse::<std::net::Ipv4Addr>().is_ok()
            || self.hosts.load().contains(&name)
    }

    /// Admits a caller to a route, or says what is missing: 401 without a valid credential, 403
    /// with one that lacks the right.
    pub fn admit(
        &self,
        access: Access,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Caller, Problem> {
        let right = match access {
            Access::Open => return Ok(anonymous(peer)),
            Access::Telemetry if peer.is_local() => return Ok(anonymous(peer)),
            Access::Telemetry => Right::Read,
            Access::Needs(right) => right,
        };
        let caller = match bearer(headers)? {
            Some(token) => self.holder(token, peer)?,
            None => self.local(peer)?,
        };
        if allows(&caller.rights, right) {
            Ok(caller)
        } else {
            Err(lacks(&caller.name, right))
        }
    }

    /// Admits a caller of the check API. A credential is needed as soon as one names the right
    /// `check`, and always on a listener that others can reach (`exposed`); `token` is what the
    /// caller sent.
    ///
    /// # Errors
    ///
    /// 401 without a valid credential, 403 with one that lacks the right.
    pub fn admit_check(&self, exposed: bool, token: Option<&str>) -> Result<(), Problem> {
        // Without a credential to compare with, what a proxy passes on from its client is ignored.
        if !self.asks_checks(exposed) {
            return Ok(());
        }
        let token = token.ok_or_else(|| {
            Problem::unauthorized("a credential is needed: `Authorization: Bearer <token>`")
        })?;
        let holder = self.holder(token, &Peer::Socket)?;
        if allows(&holder.rights, Right::Check) {
            Ok(())
        } else {
            Err(lacks(&holder.name, Right::Check))
        }
    }

    /// Whether whoever sent `token` may have addresses blocked ([`crate::check::escalation`]): a
    /// credential with the right `escalate`, never somebody without one.
    #[must_use]
    pub fn may_escalate(&self, token: Option<&str>) -> bool {
        token
            .and_then(|token| self.holder(token, &Peer::Socket).ok())
            .is_some_and(|holder| allows(&holder.rights, Right::Escalate))
    }

    /// Whether the check API asks for a credential.
    #[must_use]
    pub fn asks_checks(&self, exposed: bool) -> bool {
        exposed
            || self
                .credentials
                .load()
                .iter()
                .any(|credential| credential.rights.contains(&Right::Check))
    }

    fn holder(&self, token: &str, peer: &Peer) -> Result<Caller, Problem> {
        let credentials = self.credentials.load();
        // Every credential is compared, so that time says nothing about which one is near.
        let mut found = None;
        for credential in credentials.iter() {
            let same = credential.token.expose().as_bytes().ct_eq(token.as_bytes());
            if bool::from(same) {
                found = Some(credential);
            }
        }
        let found = found.ok_or_else(|| Problem::unauthorized("the credential is not known"))?;
        if found
            .expires_unix_ms
            .is_some_and(|end| end <= crate::clock::unix_ms())
        {
            return Err(Problem::unauthorized("the credential has expired"));
        }
        Ok(Caller {
            name: found.name.clone(),
            address: peer.address(),
            ssh_peer: None,
            rights: found.rights.clone(),
        })
    }

    fn local(&self, peer: &Peer) -> Result<Caller, Problem> {
        let refusal = match peer {
            Peer::Socket => None,
            Peer::Tcp { .. } if !self.credentials.load().is_empty() => {
                Some("a credential is needed: `Authorization: Bearer <token>`")
            }
            Peer::Tcp { trusted: true, .. } if peer.is_local() => None,
            Peer::Tcp { .. } => Some(
                "only root and the agent's own user may do this without a credential; configure \
                 one, or use the Unix socket",
            ),
        };
        match refusal {
            Some(detail) => Err(Problem::unauthorized(detail)),
            None => Ok(Caller {
                name: "local".to_owned(),
                address: peer.address(),
                ssh_peer: None,
                rights: ALL.to_vec(),
            }),
        }
    }
}

fn lacks(name: &str, right: Right) -> Problem {
    Problem::forbidden(format!(
        "credential `{name}` lacks the right `{}`",
        right.word()
    ))
}

fn anonymous(peer: &Peer) -> Caller {
    Caller {
        name: "anonymous".to_owned(),
        address: peer.address(),
        ssh_peer: None,
        rights: Vec::new(),
    }
}

/// The token of `Authorization: Bearer`, if there is that header.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Some(token.trim()))
        .ok_or_else(|| Problem::unauthorized("`Authorization` must be `Bearer <token>`"))
}

/// `admin` includes every right, `write` includes `read`.
fn allows(rights: &[Right], wanted: Right) -> bool {
    rights.iter().any(|right| {
        *right == wanted
            || *right == Right::Admin
            || (*right == Right::Write && wanted == Right::Read)
    })
}
