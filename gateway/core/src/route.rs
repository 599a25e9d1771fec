//! Routes hellos to backends.
//!
//! The most specific name with a matching route wins: the server name itself, then its nearest
//! parent domain with a `below` route. Among the routes of one name, the route of the first client
//! protocol that has one wins, then the route for any protocol.

use std::{collections::HashMap, fmt, sync::Arc};

use crate::hello::Hello;

/// Server names that a route matches, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Names {
    /// One name.
    Exact(String),
    /// All subdomains of a name.
    Below(String),
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// Sends hellos to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Server names that match.
    pub names: Names,
    /// Protocols (ALPN) of which the client must offer one; empty: any client matches.
    pub protocols: Vec<Vec<u8>>,
    /// Tenant of the connections; `None`: no tenant.
    pub tenant: Option<Arc<str>>,
    /// Name of the backend.
    pub backend: Arc<str>,
}

impl Route {
    /// Whether both match the same hello, neither being more specific.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let protocols = match (self.protocols.is_empty(), other.protocols.is_empty()) {
            (true, true) => true,
            (false, false) => self.protocols.iter().any(|p| other.protocols.contains(p)),
            (true, false) | (false, true) => false,
        };
        protocols && self.names == other.names
    }
}

/// Two routes that match the same hello, by their positions in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteConflict {
    pub first: usize,
    pub second: usize,
}

/// All routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    exact: HashMap<String, Vec<Arc<Route>>>,
    below: HashMap<String, Vec<Arc<Route>>>,
}

/// Why a hello has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The hello has no server name.
    #[error("the hello has no server name; the client must connect by name, not by IP address")]
    NoName,
    /// No route matches the server name.
    #[error("no route matches the server name of the hello")]
    Name,
    /// Routes of the server name are for other protocols.
    #[error("the routes of the server name are for protocols that the hello does not offer")]
    Protocol,
}

impl Table {
    /// A table of these routes.
    ///
    /// # Errors
    /// Every pair of routes that match the same hello, neither being more specific.
    pub fn new<R: Into<Arc<Route>>>(
        routes: impl IntoIterator<Item = R>,
    ) -> Result<Self, Vec<RouteConflict>> {
        let routes: Vec<Arc<Route>> = routes.into_iter().map(Into::into).collect();
        let mut conflicts = Vec::new();
        let mut same: HashMap<&Names, Vec<usize>> = HashMap::new();
        for (second, b) in routes.iter().enumerate() {
            let before = same.entry(&b.names).or_default();
            for &first in &*before {
                if routes[first].conflicts_with(b) {
                    conflicts.push(RouteConflict { first, second });
                }
            }
            before.push(second);
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let mut table = Self::default();
        for route in routes {
            let (map, name) = match &route.names {
                Names::Exact(name) => (&mut table.exact, name),
                Names::Below(name) => (&mut table.below, name),
            };
            map.entry(name.clone()).or_default().push(route);
        }
        Ok(table)
    }

    /// The route of a hello.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub fn find(&self, hello: &Hello) -> Result<&Route, NoRoute> {
        let name = hello.name.as_deref().ok_or(NoRoute::NoName)?;
        let mut refusal = NoRoute::Name;
        let parents = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
        let below = parents.filter_map(|parent| self.below.get(parent));
        for routes in self.exact.get(name).into_iter().chain(below) {
            if let Some(route) = matching_protocol(routes, &hello.protocols) {
                return Ok(route);
            }
            refusal = NoRoute::Protocol;
        }
        Err(refusal)
    }
}

fn matching_protocol<'a>(routes: &'a [Arc<Route>], offered: &[Vec<u8>]) -> Option<&'a Route> {
    let named = offered
        .iter()
        .find_map(|protocol| routes.iter().find(|r| r.protocols.contains(protocol)));
    let route = named.or_else(|| routes.iter().find(|r| r.protocols.is_empty()))?;
    Some(route)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn route(names: &str, protocols: &[&str], backend: &str) -> Route {
        Route {
            names: match names.strip_prefix("*.") {
                Some(name) => Names::Below(name.to_owned()),
                None => Names::Exact(names.to_owned()),
            },
            protocols: protocols.iter().map(|p| p.as_bytes().to_vec()).collect(),
            tenant: None,
            backend: backend.into(),
        }
    }

    fn hello(name: Option<&str>, protocols: &[&str]) -> Hello {
        Hello {
            name: name.map(str::to_owned),
            protocols: protocols.iter().map(|p| p.as_bytes().to_vec()).collect(),
            bytes: 0,
        }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let table = Table::new(vec![
            route("*.example", &[], "all"),
            route("*.acme.example", &[], "acme"),
            route("*.acme.example", &["h2", "x"], "acme-h2"),
            route("d.acme.example", &[], "director"),
            route("p.acme.example", &["x"], "x"),
            route("p.acme.example", &["y"], "y"),
        ])
        .expect("no conflict");
        for (name, protocols, wanted) in [
            (Some("b.example"), &["h2"][..], Ok("all")),
            (Some("a.b.c.example"), &[], Ok("all")),
            (Some("acme.example"), &[], Ok("all")),
            (Some("q.acme.example"), &[], Ok("acme")),
            (Some("q.acme.example"), &["z"], Ok("acme")),
            (Some("q.acme.example"), &["z", "h2"], Ok("acme-h2")),
            (Some("r.q.acme.example"), &["x"], Ok("acme-h2")),
            (Some("d.acme.example"), &["h2"], Ok("director")),
            (Some("p.acme.example"), &["y", "x"], Ok("y")),
            (Some("p.acme.example"), &["x", "y"], Ok("x")),
            // No route of the name itself matches the protocol; one of a parent domain does.
            (Some("p.acme.example"), &["h2"], Ok("acme-h2")),
            (Some("p.acme.example"), &[], Ok("acme")),
            (Some("example"), &[], Err(NoRoute::Name)),
            (Some("notacme.exampl"), &[], Err(NoRoute::Name)),
            (None, &["h2"], Err(NoRoute::NoName)),
        ] {
            let found = table.find(&hello(name, protocols));
            assert_eq!(found.map(|r| &*r.backend), wanted, "{name:?} {protocols:?}");
        }
        let table = Table::new(vec![route("a", &["x"], "x")]).expect("no conflict");
        assert_eq!(
            table.find(&hello(Some("a"), &["y"])),
            Err(NoRoute::Protocol)
        );
    }

    #[test]
    fn conflicting_routes_are_reported() {
        let conflicts = Table::new(vec![
            route("a", &[], "1"),
            route("a", &["x"], "2"),
            route("*.a", &[], "3"),
            route("a", &["y", "x"], "4"),
            route("a", &[], "5"),
        ])
        .expect_err("conflicts");
        let pair = |first, second| RouteConflict { first, second };
        assert_eq!(conflicts, [pair(1, 3), pair(0, 4)]);
    }

    proptest! {
        /// Compares the table with a search of all routes.
        #[test]
        fn the_table_agrees_with_a_search(
            routes in vec(("(\\*\\.)?[ab](\\.[ab]){0,2}", vec("[xy]", 0..2)), 0..12),
            name in "[ab](\\.[ab]){0,3}",
            offered in vec("[xyz]", 0..3),
        ) {
            let mut kept: Vec<Route> = Vec::new();
            for (n, (names, protocols)) in routes.iter().enumerate() {
                let protocols: Vec<&str> = protocols.iter().map(String::as_str).collect();
                let mut with = kept.clone();
                with.push(route(names, &protocols, &n.to_string()));
                if Table::new(with.clone()).is_ok() {
                    kept = with;
                }
            }
            let table = Table::new(kept.clone()).expect("no conflict");
            let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
            let hello = hello(Some(&name), &offered);
            // Smaller is better: length of the unmatched part of the name, then position of the
            // protocol.
            let rank = |r: &Route| {
                let open = match &r.names {
                    Names::Exact(n) if *n == name => 0,
                    Names::Below(n) if name.ends_with(&format!(".{n}")) => name.len() - n.len(),
                    _ => return None,
                };
                let place = hello.protocols.iter().position(|p| r.protocols.contains(p));
                let place = place.or(r.protocols.is_empty().then_some(usize::MAX))?;
                Some((open, place))
            };
            let ranked = kept.iter().filter_map(|r| Some((rank(r)?, &r.backend)));
            let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, backend)| backend);
            prop_assert_eq!(table.find(&hello).ok().map(|r| &r.backend), best);
        }
    }
}
