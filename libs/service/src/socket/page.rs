//! Lists that do not fit one reply: the client asks for page after page.

use serde::{Deserialize, Serialize};

/// Items of a list in the order of a key, and the key to ask for the next ones with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The key of the last item, if more follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The first `limit` items whose key comes after `after`. `items` are in the order of their
    /// keys.
    ///
    /// Items that are added or removed between two pages are missed or not, but no other is, nor
    /// comes twice.
    pub fn of(
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> String,
        after: Option<&str>,
        limit: usize,
    ) -> Self {
        let mut rest = items
            .into_iter()
            .skip_while(|item| after.is_some_and(|after| key(item).as_str() <= after));
        let items: Vec<T> = rest.by_ref().take(limit.max(1)).collect();
        let next = rest.next().and_then(|_| items.last()).map(key);
        Self { items, next }
    }

    /// The page with each item replaced by `f(item)`.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(f).collect(),
            next: self.next,
        }
    }

    /// All items of a list, by asking for page after page: `ask` is given the key to go on after.
    ///
    /// # Errors
    /// The first that `ask` fails with.
    pub fn collect<E>(mut ask: impl FnMut(Option<String>) -> Result<Self, E>) -> Result<Vec<T>, E> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = ask(after)?;
            all.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_each_item_once() {
        let items: Vec<String> = (10..35).map(|n| n.to_string()).collect();
        for limit in [1, 7, 25, 100] {
            let mut pages = 0;
            let all = Page::collect(|after| {
                pages += 1;
                let page = Page::of(items.clone(), String::clone, after.as_deref(), limit);
                assert!(page.items.len() <= limit);
                Ok::<_, ()>(page)
            });
            assert_eq!(all, Ok(items.clone()));
            assert_eq!(pages, 25_usize.div_ceil(limit));
        }
        let none = Page::of(Vec::<String>::new(), String::clone, None, 5);
        assert_eq!((none.items.len(), none.next), (0, None));
    }
}
