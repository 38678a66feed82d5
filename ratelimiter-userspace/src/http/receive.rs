//! A request's body, within bounds of size and time.

use std::error::Error;
use std::time::Duration;

use axum::body::HttpBody;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::problem::Problem;

/// Bytes of a refused body that are read and forgotten. A client that is still sending when the
/// connection is closed may never see the answer.
const FORGOTTEN_BYTES: usize = 4 << 20;
/// How long that may take.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(2);

/// Reads a body of at most `limit` bytes `within` a time.
///
/// # Errors
///
/// 413 for more, 408 for later, 400 for one that breaks off.
pub(super) async fn body<B>(
    headers: &HeaderMap,
    mut incoming: B,
    limit: usize,
    within: Duration,
) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limit as u64) {
        // Who waits for our word has sent nothing yet.
        if !headers.contains_key(header::EXPECT) {
            forget(incoming).await;
        }
        return Err(Problem::body_too_large(declared, limit));
    }
    let read = Limited::new(&mut incoming, limit).collect();
    match tokio::time::timeout(within, read).await {
        Ok(Ok(bytes)) => Ok(bytes.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            forget(incoming).await;
            Err(Problem::body_too_large(None, limit))
        }
        Ok(Err(_)) => Err(Problem::bad_request("the body broke off")),
        Err(_) => Err(Problem::timeout(within.as_secs())),
    }
}

/// Reads what of a body is still to come, and keeps none of it.
async fn forget<B: HttpBody<Data = Bytes> + Unpin>(mut body: B) {
    let read = async {
        let mut left = FORGOTTEN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(FORGOTTEN_WITHIN, read)
        .await
        .unwrap_or_default();
}
