//! Which pages change while they are looked at, by their paths.

use std::fmt;
use std::str::FromStr;

use left4me_helper::instance::Instance;

/// A page that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `/servers`.
    Servers,
    /// `/servers/<id>`.
    Server(Instance),
    /// `/jobs`.
    Jobs,
    /// `/jobs/<n>`.
    Job(i64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Servers => f.write_str("/servers"),
            Self::Server(instance) => write!(f, "/servers/{instance}"),
            Self::Jobs => f.write_str("/jobs"),
            Self::Job(number) => write!(f, "/jobs/{number}"),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(path: &str) -> Result<Self, ()> {
        let parts: Vec<_> = path.split('/').collect();
        match parts.as_slice() {
            ["", "servers"] => Ok(Self::Servers),
            ["", "servers", id] => id.parse().map(Self::Server).map_err(drop),
            ["", "jobs"] => Ok(Self::Jobs),
            ["", "jobs", number] => number.parse().map(Self::Job).map_err(drop),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_paths() {
        for path in ["/servers", "/servers/eu-1", "/jobs", "/jobs/164"] {
            assert_eq!(path.parse::<Place>().unwrap().to_string(), path);
        }
        for path in ["", "/", "/servers/../3", "/servers/3/reset", "/jobs/x", "/doctor"] {
            assert_eq!(path.parse::<Place>(), Err(()), "{path}");
        }
    }
}
