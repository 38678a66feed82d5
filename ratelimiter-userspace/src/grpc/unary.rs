//! One question, one answer, as gRPC frames them over HTTP/2: five bytes before each message, the
//! status in the trailers. Written out because it is the fast path; everything else is tonic's.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use prost::Message;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A status of gRPC, and what to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u8,
    pub(super) message: String,
}

/// The codes that are used here.
pub(super) const INVALID_ARGUMENT: u8 = 3;
pub(super) const DEADLINE_EXCEEDED: u8 = 4;
pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
pub(super) const UNIMPLEMENTED: u8 = 12;
pub(super) const INTERNAL: u8 = 13;
pub(super) const UNAUTHENTICATED: u8 = 16;

impl Status {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The body of an answer: one frame of data, then trailers.
#[derive(Debug, Default)]
pub(super) struct Unary {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Unary {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let frame = match this.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => this.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, Bytes::len) as u64)
    }
}

/// Reads the message of a request of at most `max_bytes`, within `patience`.
pub(super) async fn read<M: Message + Default>(
    body: Incoming,
    max_bytes: usize,
    patience: Duration,
) -> Result<M, Status> {
    let mut body = body;
    let mut whole = Bytes::new();
    let mut more = BytesMut::new();
    loop {
        // Most bodies are there already, and need no timer.
        let ready = body.frame().now_or_never();
        let frame = match ready {
            Some(frame) => frame,
            None => tokio::time::timeout(patience, body.frame())
                .await
                .map_err(|_| Status::new(DEADLINE_EXCEEDED, "the request did not arrive whole"))?,
        };
        let Some(frame) = frame else {
            break;
        };
        let frame = frame
            .map_err(|error| Status::new(INTERNAL, format!("reading the request: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let len = whole.len() + more.len() + data.len();
        if len > max_bytes {
            return Err(Status::new(
                RESOURCE_EXHAUSTED,
                format!("the request has more than {max_bytes} bytes"),
            ));
        }
        if whole.is_empty() && more.is_empty() {
            whole = data;
        } else {
            more.extend_from_slice(&whole);
            more.extend_from_slice(&data);
            whole = Bytes::new();
        }
        if body.is_end_stream() {
            break;
        }
    }
    if !more.is_empty() {
        whole = more.freeze();
    }
    decode(&whole)
}

fn decode<M: Message + Default>(whole: &[u8]) -> Result<M, Status> {
    let Some((prefix, message)) = whole.split_first_chunk::<PREFIX>() else {
        return Err(Status::new(INTERNAL, "the request holds no message"));
    };
    let [compressed, length @ ..] = prefix;
    if *compressed != 0 {
        return Err(Status::new(
            UNIMPLEMENTED,
            "compressed messages are not understood; send `grpc-encoding: identity`",
        ));
    }
    if u32::from_be_bytes(*length) as usize != message.len() {
        return Err(Status::new(
            INTERNAL,
            "the request is not one whole message",
        ));
    }
    M::decode(message)
        .map_err(|error| Status::new(INVALID_ARGUMENT, format!("the request: {error}")))
}

/// Frames an answer.
pub(super) fn answer<M: Message>(message: &M) -> Response<Unary> {
    let len = message.encoded_len();
    let mut data = BytesMut::with_capacity(PREFIX + len);
    data.put_u8(0);
    data.put_u32(len as u32);
    // There is room: the length was asked for. On failure the client sees a broken message.
    let _encoded = message.encode(&mut data).is_ok();
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    respond(Unary {
        data: Some(data.freeze()),
        trailers: Some(trailers),
    })
}

/// Frames a refusal: headers only.
pub(super) fn refuse(status: &Status) -> Response<Unary> {
    let mut response = respond(Unary::default());
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from(u16::from(status.code)));
    if let Ok(message) = HeaderValue::from_str(&escaped(&status.message)) {
        headers.insert("grpc-message", message);
    }
    response
}

fn respond(body: Unary) -> Response<Unary> {
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// Escapes a message as gRPC does: per cent, by byte.
fn escaped(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _written = write!(out, "%{byte:02X}").is_ok();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::message::{Entry, RateLimitDescriptor, RateLimitRequest};
    use super::*;

    fn framed(request: &RateLimitRequest) -> Vec<u8> {
        let message = request.encode_to_vec();
        let mut whole = vec![0];
        whole.extend_from_slice(&(message.len() as u32).to_be_bytes());
        whole.extend_from_slice(&message);
        whole
    }

    #[test]
    fn one_whole_message_is_read_and_nothing_else() {
        let request = RateLimitRequest {
            domain: "d".to_owned(),
            descriptors: vec![RateLimitDescriptor {
                entries: vec![Entry {
                    key: "k".to_owned(),
                    value: "v".to_owned(),
                }],
                ..RateLimitDescriptor::default()
            }],
            hits_addend: 3,
        };
        let whole = framed(&request);
        assert_eq!(decode::<RateLimitRequest>(&whole), Ok(request));
        for cut in 0..whole.len() {
            assert!(decode::<RateLimitRequest>(&whole[..cut]).is_err(), "{cut}");
        }
        let mut compressed = whole.clone();
        compressed[0] = 1;
        assert_eq!(
            decode::<RateLimitRequest>(&compressed).map_err(|status| status.code),
            Err(UNIMPLEMENTED)
        );
    }

    #[test]
    fn messages_of_refusals_are_one_line_of_ascii() {
        assert_eq!(escaped("a\r\nb 100%"), "a%0D%0Ab 100%25");
        assert_eq!(escaped("\u{e9}"), "%C3%A9");
    }
}
