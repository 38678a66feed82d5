//! Where the store that a fleet shares is: `redis.url`, taken apart. Pure; nothing is resolved.
//!
//! | form | what it is |
//! |---|---|
//! | `redis://[user[:password]@]host[:port][/db]` | one server |
//! | `rediss://...` | the same over TLS |
//! | `unix:///path/of/socket[?db=n]` | one server on this machine |
//! | `redis+sentinel://...@host[:port][,host[:port]...]/master[/db]` | the master that Sentinels name |
//! | `redis+cluster://...@host[:port][,host[:port]...]` | a cluster, found through any of these |
//!
//! `rediss+sentinel` and `rediss+cluster` speak TLS to the servers. `valkey` stands for `redis`
//! everywhere. A name or password with `@ : / ? # %` in it is percent-encoded; better, it is not in
//! the URL at all but in `redis.password_file`.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// Port of a server whose URL names none.
const SERVER_PORT: u16 = 6379;
/// Port of a Sentinel whose URL names none.
const SENTINEL_PORT: u16 = 26_379;
/// Most addresses in one URL.
const MAX_ADDRESSES: usize = 64;
/// Longest URL, in bytes.
const MAX_BYTES: usize = 4_096;
/// Largest number of a database.
const MAX_DB: i64 = 1_000_000;

/// What `redis.url` says.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct StoreUrl {
    text: String,
    target: Option<StoreTarget>,
}

/// A store, by form.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreTarget {
    /// Which of the forms.
    pub form: StoreForm,
    /// Whether servers are spoken to over TLS.
    pub tls: bool,
    /// Who asks; empty for the server's default user.
    pub username: String,
    /// Never shown.
    pub password: String,
    /// Number of the database; 0 in a cluster.
    pub db: i64,
}

/// The forms of a store, with their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreForm {
    /// One server at a host and port.
    Server(String, u16),
    /// One server behind a Unix socket.
    Socket(String),
    /// Sentinels, and the name they know the master by.
    Sentinel(Vec<(String, u16)>, String),
    /// Some nodes of a cluster.
    Cluster(Vec<(String, u16)>),
}

impl StoreUrl {
    /// The store; `None` where there is none (an empty URL).
    #[must_use]
    pub fn target(&self) -> Option<&StoreTarget> {
        self.target.as_ref()
    }

    /// The URL without the password, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        let Some((scheme, rest)) = self.text.split_once("://") else {
            return String::new();
        };
        match rest.rsplit_once('@') {
            Some((user, rest)) => match user.split_once(':') {
                Some((user, _)) => format!("{scheme}://{user}:(secret)@{rest}"),
                None => format!("{scheme}://{user}@{rest}"),
            },
            None => self.text.clone(),
        }
    }
}

impl std::str::FromStr for StoreUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        // The text itself is in no message: there may be a password in it.
        if text.len() > MAX_BYTES {
            return Err(format!(
                "the URL has {} bytes; it may have at most {MAX_BYTES}",
                text.len()
            ));
        }
        Ok(Self {
            text: text.to_owned(),
            target: Some(parse(text)?),
        })
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl fmt::Debug for StoreTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTarget")
            .field("form", &self.form)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("db", &self.db)
            .finish_non_exhaustive()
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl utoipa::PartialSchema for StoreUrl {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::schema::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("URL of a Redis server, its Sentinels or its cluster."))
            .into()
    }
}
impl ToSchema for StoreUrl {}

fn parse(text: &str) -> Result<StoreTarget, String> {
    let (scheme, rest) = text
        .split_once("://")
        .ok_or("it must begin with `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`")?;
    let scheme = scheme.replacen("valkeys", "rediss", 1);
    let scheme = scheme.replacen("valkey", "redis", 1);
    if scheme == "unix" || scheme == "redis+unix" {
        return socket(rest);
    }
    let (base, kind) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let tls = match base {
        "redis" => false,
        "rediss" => true,
        _ => return Err(unknown(&scheme)),
    };
    let (user, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (username, password) = user.split_once(':').unwrap_or((user, ""));
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains(['?', '#']) || hosts.contains(['?', '#']) {
        return Err(
            "there are no parameters after the path here; only `unix://` has `?db=`".to_owned(),
        );
    }
    let (form, db) = match kind {
        "" => {
            let (host, port) = address(hosts, SERVER_PORT)?;
            (StoreForm::Server(host, port), path)
        }
        "sentinel" => {
            let (master, db) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return Err(
                    "the name of the master is missing: write `redis+sentinel://host/name`"
                        .to_owned(),
                );
            }
            let master = decoded(master)?;
            (
                StoreForm::Sentinel(addresses(hosts, SENTINEL_PORT)?, master),
                db,
            )
        }
        "cluster" => (StoreForm::Cluster(addresses(hosts, SERVER_PORT)?), path),
        _ => return Err(unknown(&scheme)),
    };
    let db = database(db)?;
    if matches!(form, StoreForm::Cluster(_)) && db != 0 {
        return Err(format!(
            "the database is {db}; a cluster has only database 0"
        ));
    }
    Ok(StoreTarget {
        form,
        tls,
        username: decoded(username)?,
        password: decoded(password)?,
        db,
    })
}

fn unknown(scheme: &str) -> String {
    format!(
        "`{}` is no scheme of a store; there are `redis`, `rediss`, `unix`, and with `+sentinel` or \
         `+cluster` the first two",
        scheme.escape_debug()
    )
}

fn socket(rest: &str) -> Result<StoreTarget, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') {
        return Err("the path of a socket must be absolute: `unix:///path`".to_owned());
    }
    let db = match query.split_once('=') {
        Some(("db", db)) => database(db)?,
        None if query.is_empty() => 0,
        _ => return Err("the only parameter of `unix://` is `db`".to_owned()),
    };
    Ok(StoreTarget {
        form: StoreForm::Socket(decoded(path)?),
        tls: false,
        username: String::new(),
        password: String::new(),
        db,
    })
}

fn database(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse()
        .ok()
        .filter(|db| (0..=MAX_DB).contains(db))
        .ok_or_else(|| {
            format!(
                "the database is `{}`; it must be a number between 0 and {MAX_DB}",
                text.escape_debug()
            )
        })
}

fn addresses(text: &str, port: u16) -> Result<Vec<(String, u16)>, String> {
    let found: Vec<(String, u16)> = text
        .split(',')
        .map(|part| address(part, port))
        .collect::<Result<_, _>>()?;
    if found.len() > MAX_ADDRESSES {
        return Err(format!(
            "the URL has {} addresses; it may have at most {MAX_ADDRESSES}",
            found.len()
        ));
    }
    Ok(found)
}

fn address(text: &str, port: u16) -> Result<(String, u16), String> {
    let bad = || format!("`{}` is no host with a port", text.escape_debug());
    let (host, after) = if let Some(rest) = text.strip_prefix('[') {
        rest.split_once(']').ok_or_else(bad)?
    } else {
        text.find(':').map_or((text, ""), |at| text.split_at(at))
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if host.is_empty() || !host.chars().all(legal) {
        return Err(bad());
    }
    let port = match after.strip_prefix(':') {
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(bad)?,
        None if after.is_empty() => port,
        None => return Err(bad()),
    };
    Ok((host.to_owned(), port))
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = |c: &u8| char::from(*c).to_digit(16);
        let (Some(high), Some(low)) = (rest.first().and_then(hex), rest.get(1).and_then(hex))
        else {
            return Err(
                "a `%` must be followed by two hexadecimal digits (`%25` is `%`)".to_owned(),
            );
        };
        bytes.push((high * 16 + low) as u8);
        rest = rest.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes).map_err(|_| "what is percent-encoded must be UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> StoreTarget {
        let url: StoreUrl = text.parse().unwrap();
        url.target().unwrap().clone()
    }

    #[test]
    fn every_form_is_taken_apart() {
        let one = target("redis://alice:p%40ss@cache.internal:7000/3");
        assert_eq!(
            one.form,
            StoreForm::Server("cache.internal".to_owned(), 7000)
        );
        assert_eq!(
            (one.username.as_str(), one.password.as_str()),
            ("alice", "p@ss")
        );
        assert_eq!((one.db, one.tls), (3, false));
        assert_eq!(
            target("rediss://[2001:db8::1]").form,
            StoreForm::Server("2001:db8::1".to_owned(), 6379)
        );
        assert!(target("valkeys://h").tls);
        let socket = target("unix:///run/redis.sock?db=2");
        assert_eq!(socket.form, StoreForm::Socket("/run/redis.sock".to_owned()));
        assert_eq!(socket.db, 2);
        let sentinel = target("redis+sentinel://:p@a,b:26380/main/1");
        assert_eq!(
            sentinel.form,
            StoreForm::Sentinel(
                vec![("a".to_owned(), 26_379), ("b".to_owned(), 26_380)],
                "main".to_owned()
            )
        );
        assert_eq!((sentinel.db, sentinel.password.as_str()), (1, "p"));
        let cluster = target("valkey+cluster://a:1,b:2");
        assert_eq!(
            cluster.form,
            StoreForm::Cluster(vec![("a".to_owned(), 1), ("b".to_owned(), 2)])
        );
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_is_shown() {
        for (text, part) in [
            ("localhost:6379", "begin with"),
            ("http://h", "`http` is no scheme"),
            ("redis+x://h", "`redis+x`"),
            ("redis://h:99999", "no host with a port"),
            ("redis://h:0", "no host with a port"),
            ("redis:///0", "no host with a port"),
            ("redis://h/x", "between 0 and 1000000"),
            ("redis+sentinel://h", "name of the master"),
            ("redis+cluster://h/1", "only database 0"),
            ("redis://u:p%4@h", "two hexadecimal"),
            ("unix://relative", "absolute"),
            ("redis://h/0?x=1", "no parameters"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let url: StoreUrl = "redis://alice:hunter2@h:1/0".parse().unwrap();
        for shown in [
            format!("{url:?}"),
            serde_json::to_string(&url).unwrap(),
            format!("{:?}", url.target()),
        ] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(url.shown(), "redis://alice:(secret)@h:1/0");
        assert_eq!("".parse::<StoreUrl>().unwrap().target(), None);
    }
}
