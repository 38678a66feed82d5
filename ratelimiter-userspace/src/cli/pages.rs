//! Lists of the API, page after page, up to a bound.

use http::Method;
use serde::de::DeserializeOwned;

use super::client::{Call, Client};
use super::exit::Failure;
use crate::admin::views::{MAX_PAGE, Page};

/// Reads at most `most` items of the list at `path` that contain `search`; all for 0. The page that
/// comes back has a `next` if items were left out.
pub async fn read<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    search: Option<&str>,
    most: usize,
) -> Result<Page<T>, Failure> {
    let most = if most == 0 { usize::MAX } else { most };
    let mut whole = Page {
        items: Vec::new(),
        total: 0,
        next: None,
    };
    loop {
        let size = (most - whole.items.len()).min(MAX_PAGE);
        let call = Call::new(Method::GET, path)
            .query("limit", size.to_string())
            .query_opt("q", search)
            .query_opt("after", whole.next.take());
        let page: Page<T> = client.send(call).await?.json()?;
        whole.total = page.total;
        whole.next = page.next;
        // An empty page that promises more would be asked for for ever.
        let empty = page.items.is_empty();
        whole.items.extend(page.items);
        if whole.next.is_none() || empty || whole.items.len() >= most {
            return Ok(whole);
        }
    }
}

/// A line about what was left out, empty if nothing was.
pub fn left_out<T>(page: &Page<T>, flag: &str) -> String {
    if page.next.is_some() && (page.items.len() as u64) < page.total {
        format!(
            "{} of {}; {flag} shows more\n",
            page.items.len(),
            page.total
        )
    } else {
        String::new()
    }
}
