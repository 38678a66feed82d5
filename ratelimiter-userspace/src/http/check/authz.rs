//! Forward-auth: whether the request a proxy holds in its hands may go on.
//!
//! 200 allows; anything else is the refusal the proxy hands to its client as it is, where the proxy
//! can do that (nginx needs `?deny=403`).

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::answer::{self, Denial};
use super::{Answer, CheckApi, body};
use crate::clock;
use crate::http::gate::Peer;
use crate::http::problem::Problem;
use crate::limiter::Request;

const FORWARDED_FOR: &str = "x-forwarded-for";

impl CheckApi {
    /// Answers forward-auth.
    pub(super) async fn authz(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
        query: &str,
    ) -> Result<Answer, Problem> {
        let begin_ns = clock::fast_ns();
        let query = body::Query::parse(query, true)?;
        let id = self.identity(peer, headers)?;
        let limiter = self.checks.limiter();
        let answer = limiter
            .check_request_soon(&Request {
                charge: !query.peek,
                ..Request::new(&id)
            })
            .await
            .map_err(|error| Problem::bad_request(error.to_string()))?;
        let response = if answer.allowed {
            let mut response = answer::empty(StatusCode::OK);
            let out = response.headers_mut();
            answer::rate_limit_headers(out, &self.checks, &answer);
            out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        } else {
            answer::denied(&self.checks, &answer, query.deny.unwrap_or(Denial::AUTHZ))
        };
        limiter.observe_duration(clock::fast_ns().saturating_sub(begin_ns), 1);
        Ok(response)
    }

    /// Who asks: the configured header, or where it is absent the address the request came from.
    fn identity(&self, peer: &Peer, headers: &HeaderMap) -> Result<Vec<u8>, Problem> {
        let proxies = self.checks.proxies();
        if let Some(name) = proxies.identity_header() {
            let mut values = headers.get_all(name).iter();
            match (values.next(), values.next()) {
                (Some(_), Some(_)) => {
                    return Err(Problem::bad_request(format!(
                        "`{name}` stands there twice; the proxy must replace what its client sends"
                    )));
                }
                (Some(value), None) if !value.is_empty() => return Ok(value.as_bytes().to_vec()),
                _ => {}
            }
        }
        let address = match peer {
            Peer::Tcp { address, .. } => address.ip(),
            Peer::Socket => std::net::Ipv4Addr::LOCALHOST.into(),
        };
        let values = headers.get_all(FORWARDED_FOR).iter();
        let origin = proxies.origin(address, values.map(HeaderValue::as_bytes));
        Ok(proxies.id_of(origin).into_bytes())
    }
}
