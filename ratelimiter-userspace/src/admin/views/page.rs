//! Lists, a page at a time.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Items on a page unless asked otherwise.
pub const DEFAULT_PAGE: usize = 100;
/// Most items on a page.
pub const MAX_PAGE: usize = 1_000;

/// Which page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Items wanted, 1 to 1000; 100 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Only items that contain this text, whatever its case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(max_length = 256)]
    pub q: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Number of items that match on all pages.
    pub total: u64,
    /// What to pass as `after` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl PageQuery {
    /// The size of the page, within bounds.
    #[must_use]
    pub fn size(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE)
    }

    /// Whether one of `texts` contains the text searched for.
    #[must_use]
    pub fn matches<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> bool {
        let Some(needle) = self.q.as_deref().filter(|q| !q.is_empty()) else {
            return true;
        };
        let needle = needle.to_lowercase();
        texts
            .into_iter()
            .any(|text| text.to_lowercase().contains(&needle))
    }

    /// Cuts the page out of `items`, which have unique keys and are in the order of the list.
    pub fn page<I, T>(
        &self,
        items: impl IntoIterator<Item = I>,
        key: impl Fn(&I) -> String,
        view: impl Fn(I) -> T,
    ) -> Page<T> {
        let size = self.size();
        let mut page = Page {
            items: Vec::new(),
            total: 0,
            next: None,
        };
        let mut skipping = self.after.is_some();
        let mut last = None;
        for item in items {
            page.total += 1;
            if skipping {
                skipping = Some(key(&item)) != self.after;
            } else if page.items.len() < size {
                last = Some(key(&item));
                page.items.push(view(item));
            } else {
                page.next.clone_from(&last);
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_list_once() {
        let all: Vec<u32> = (0..10).collect();
        let mut query = PageQuery {
            limit: Some(4),
            ..PageQuery::default()
        };
        let mut seen = Vec::new();
        for _ in 0..5 {
            let page = query.page(all.iter(), ToString::to_string, |n| *n);
            assert_eq!(page.total, 10);
            seen.extend(page.items);
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_full_last_page_has_no_next() {
        let query = PageQuery {
            limit: Some(2),
            ..PageQuery::default()
        };
        let page = query.page([1, 2], ToString::to_string, |n| n);
        assert_eq!(page.next, None);
    }

    #[test]
    fn searches_without_regard_to_case() {
        let query = PageQuery {
            q: Some("ALI".to_owned()),
            ..PageQuery::default()
        };
        assert!(query.matches(["bob", "Alice"]));
        assert!(!query.matches(["bob"]));
    }
}
