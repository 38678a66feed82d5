//! Reads a backend's page regularly: the configured address and nothing else, no redirects, with
//! bounds on time and size.

use std::time::Duration;

use super::dial::{Dial, Failure, Stream};
use crate::config::adaptive::{Format, LatencyUnit, Poll, Target};
use crate::control::report::exposition::{Between, Reading, Selector, Wanted};
use axum::http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

/// What came of reading the page once.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Polled {
    /// What happened since the last time.
    Said(Between),
    /// The backend refused, failed, or let it time out: that is a signal.
    Failed(String),
    /// The page is not understood: that is none.
    Odd(String),
    /// A first reading, or the first after the backend was started anew.
    First,
}

/// Reads one page.
#[derive(Debug)]
pub(super) struct Poller {
    poll: Poll,
    before: Option<Reading>,
    dial: Dial,
}

enum Page {
    Text(String),
    Failed(String),
    Odd(String),
}

impl Poller {
    pub(super) fn new(poll: Poll) -> Self {
        Self {
            poll,
            before: None,
            dial: Dial::default(),
        }
    }

    /// Reads the page now.
    pub(super) async fn read(&mut self) -> Polled {
        let limit = Duration::from_millis(self.poll.timeout_ms);
        let page = match tokio::time::timeout(limit, self.fetch()).await {
            Ok(page) => page,
            Err(_) => Page::Failed(format!("no answer within {} ms", self.poll.timeout_ms)),
        };
        match page {
            Page::Text(text) => self.understand(&text),
            Page::Failed(why) => Polled::Failed(why),
            Page::Odd(why) => Polled::Odd(why),
        }
    }

    async fn fetch(&mut self) -> Page {
        let target = match self.poll.target() {
            Ok(target) => target,
            Err(why) => return Page::Odd(why),
        };
        let stream = match self.dial.connect(&target, &self.poll.ca_file).await {
            Ok(stream) => stream,
            Err(Failure::Backend(why)) => return Page::Failed(why),
            Err(Failure::Ours(why)) => return Page::Odd(why),
        };
        match exchange(stream, &target, self.poll.max_body_bytes).await {
            Ok((status, _))
                if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS =>
            {
                Page::Failed(format!("the answer is {status}"))
            }
            Ok((StatusCode::OK, Ok(text))) => Page::Text(text),
            Ok((StatusCode::OK, Err(why))) => Page::Odd(why),
            Ok((status, _)) => Page::Odd(format!("the answer is {status}, not 200")),
            Err(error) => Page::Failed(format!("the connection broke off: {error}")),
        }
    }

    fn understand(&mut self, page: &str) -> Polled {
        let understood = match self.poll.format {
            Format::Json => json(&self.poll, page).map(Some),
            Format::Prometheus => self.prometheus(page),
        };
        match understood {
            Ok(Some(said)) => Polled::Said(in_seconds(said, self.poll.latency_unit)),
            Ok(None) => Polled::First,
            Err(why) => Polled::Odd(why),
        }
    }

    fn prometheus(&mut self, page: &str) -> Result<Option<Between>, String> {
        let optional = |text: &str| match text {
            "" => Ok(None),
            text => Selector::parse(text).map(Some),
        };
        let wanted = Wanted {
            latency: Selector::parse(&self.poll.latency)?,
            errors: optional(&self.poll.errors)?,
            requests: optional(&self.poll.requests)?,
        };
        let now = wanted.read(page)?;
        let before = self.before.replace(now);
        Ok(before.and_then(|before| now.since(&before)))
    }
}

fn in_seconds(said: Between, unit: LatencyUnit) -> Between {
    let per_second = match unit {
        LatencyUnit::Milliseconds => 1e3,
        LatencyUnit::Seconds => 1.0,
    };
    Between {
        latency: said.latency.map(|latency| latency / per_second),
        ..said
    }
}

fn json(poll: &Poll, page: &str) -> Result<Between, String> {
    let page: serde_json::Value =
        serde_json::from_str(page).map_err(|error| format!("the page is not JSON: {error}"))?;
    let number = |pointer: &str| match page.pointer(pointer) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| format!("`{pointer}` of the page is no number")),
    };
    let optional = |pointer: &str| match pointer {
        "" => Ok(None),
        pointer => number(pointer),
    };
    let (latency, errors) = (number(&poll.latency)?, optional(&poll.errors)?);
    let count = optional(&poll.requests)?.map(|count| count.max(0.0) as u64);
    if latency.is_none() && errors.is_none() && count != Some(0) {
        return Err(format!("the page has nothing at `{}`", poll.latency));
    }
    Ok(Between {
        latency,
        errors: errors.unwrap_or(0.0),
        count,
    })
}

type Exchanged = Result<(StatusCode, Result<String, String>), hyper::Error>;

async fn exchange(stream: Box<dyn Stream>, target: &Target, max_body_bytes: u64) -> Exchanged {
    let Target {
        host, port, path, ..
    } = target;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
            .await?;
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let request = Request::get(path.as_str())
        .header(header::HOST, authority)
        .header(header::USER_AGENT, "ratelimiter")
        .header(header::CONNECTION, "close")
        .body(Empty::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok((StatusCode::BAD_REQUEST, Err(error.to_string()))),
    };
    // The connection lives as long as the exchange: dropped with it when time is up.
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, body(response, max_body_bytes).await))
    };
    tokio::pin!(answer, connection);
    let mut ended = None;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            outcome = &mut connection, if ended.is_none() => {
                ended = Some(outcome);
            }
        }
    }
}

async fn body(response: Response<Incoming>, max_body_bytes: u64) -> Result<String, String> {
    let limit = usize::try_from(max_body_bytes).unwrap_or(usize::MAX);
    let bytes = Limited::new(response.into_body(), limit)
        .collect()
        .await
        .map_err(|error| format!("the page is not read: {error}; at most {limit} bytes are"))?
        .to_bytes();
    String::from_utf8(bytes.to_vec()).map_err(|_| "the page is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each connection with the next of `answers`, and says how often it was
    /// asked.
    async fn server(answers: Vec<String>) -> (String, tokio::task::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/stats", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let mut asked = 0;
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1_024];
                let n = stream.read(&mut head).await.unwrap();
                assert!(head[..n].starts_with(b"GET /stats HTTP/1.1\r\n"));
                asked += 1;
                if answer.is_empty() {
                    // Never answers: until the client is gone.
                    drop(stream.read(&mut head).await);
                } else {
                    drop(stream.write_all(answer.as_bytes()).await);
                }
            }
            asked
        });
        (url, served)
    }

    fn ok(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn poller(url: &str, format: Format, latency: &str, errors: &str) -> Poller {
        Poller::new(Poll {
            url: url.to_owned(),
            format,
            latency: latency.to_owned(),
            errors: errors.to_owned(),
            max_body_bytes: 256,
            timeout_ms: 300,
            ..Poll::default()
        })
    }

    #[tokio::test]
    async fn reads_json_by_pointers() {
        let (url, _served) = server(vec![
            ok(r#"{"rt":{"mean":250},"bad":0.1}"#),
            ok(r#"{"rt":{"mean":"slow"}}"#),
            ok("<html>"),
        ])
        .await;
        let mut poller = poller(&url, Format::Json, "/rt/mean", "/bad");
        let Polled::Said(said) = poller.read().await else {
            panic!("not understood")
        };
        assert_eq!((said.latency, said.errors), (Some(0.25), 0.1));
        for part in [
            "`/rt/mean` of the page is no number",
            "the page is not JSON",
        ] {
            let odd = poller.read().await;
            assert!(
                matches!(&odd, Polled::Odd(why) if why.contains(part)),
                "{odd:?}"
            );
        }
    }

    #[tokio::test]
    async fn reads_what_happened_between_two_prometheus_pages() {
        let page = |sum, count| ok(&format!("t_sum {sum}\nt_count {count}\n"));
        let (url, _served) = server(vec![page(1, 10), page(9, 20), page(0, 0)]).await;
        let mut poller = poller(&url, Format::Prometheus, "t", "");
        assert_eq!(poller.read().await, Polled::First);
        let Polled::Said(said) = poller.read().await else {
            panic!("not understood")
        };
        assert_eq!((said.latency, said.count), (Some(0.000_8), Some(10)));
        assert_eq!(poller.read().await, Polled::First, "started anew");
    }

    #[tokio::test]
    async fn follows_nothing_and_is_bounded() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let redirect = format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{}/\r\nContent-Length: 0\r\n\r\n",
            elsewhere.local_addr().unwrap()
        );
        let (url, served) = server(vec![
            redirect,
            ok(&" ".repeat(10_000)),
            "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n".to_owned(),
            String::new(),
        ])
        .await;
        let mut poller = poller(&url, Format::Json, "/a", "");
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(poller.read().await);
        }
        assert!(
            matches!(&seen[0], Polled::Odd(why) if why.contains("302")),
            "{seen:?}"
        );
        assert!(
            matches!(&seen[1], Polled::Odd(why) if why.contains("256")),
            "{seen:?}"
        );
        assert!(
            matches!(&seen[2], Polled::Failed(why) if why.contains("503")),
            "{seen:?}"
        );
        assert!(
            matches!(&seen[3], Polled::Failed(why) if why.contains("300 ms")),
            "{seen:?}"
        );
        assert_eq!(served.await.unwrap(), 4);
        let nobody = tokio::time::timeout(Duration::from_millis(50), elsewhere.accept()).await;
        assert!(nobody.is_err(), "a redirect was followed");
        let refused = poller.read().await;
        assert!(
            matches!(&refused, Polled::Failed(why) if why.contains("connect")),
            "{refused:?}"
        );
    }
}
