//! Where a container goes, as the operator writes it.
use std::{fmt, str::FromStr};

/// `ssh://[user@]host[:port]` or `tls://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// How the host is reached.
    pub scheme: Scheme,
    /// As whom, where ssh's own configuration does not say it.
    pub user: Option<String>,
    /// Its name or address, without brackets.
    pub host: String,
    /// Its port; never missing under TLS.
    pub port: Option<u16>,
}

/// How a host is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// By the system's ssh.
    Ssh,
    /// By TLS, where `agent --listen` runs.
    Tls,
}

impl Scheme {
    const ALL: [Self; 2] = [Self::Ssh, Self::Tls];

    fn prefix(self) -> &'static str {
        match self {
            Self::Ssh => "ssh://",
            Self::Tls => "tls://",
        }
    }
}

/// A destination that netmig cannot read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadDestination {
    /// Another scheme, or none.
    #[error("{0:?} is not a destination: ssh://[user@]host[:port] or tls://host:port is expected")]
    Scheme(String),
    /// No host, or one that ssh would take for an option.
    #[error("{0:?} names no host")]
    Host(String),
    /// Not a port.
    #[error("{text:?} has no valid port: {port:?} is not in 1..=65535")]
    Port {
        /// The destination.
        text: String,
        /// What stands for the port.
        port: String,
    },
    /// TLS without a port.
    #[error(
        "{0:?} names no port: tls://host:port, with the port of `netmig-user agent --listen` there"
    )]
    NoPort(String),
    /// TLS with a user.
    #[error("{0:?} names a user, and TLS knows hosts only: tls://host:port")]
    User(String),
}

impl FromStr for Destination {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let (scheme, rest) = Scheme::ALL
            .into_iter()
            .find_map(|scheme| Some((scheme, text.strip_prefix(scheme.prefix())?)))
            .ok_or_else(|| BadDestination::Scheme(text.to_owned()))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, at) = match rest.rsplit_once('@') {
            Some((user, at)) => (Some(user.to_owned()), at),
            None => (None, rest),
        };
        let (host, port) = match at.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, after)) => (host, after.strip_prefix(':')),
            None => match at.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (at, None),
            },
        };
        let odd =
            |part: &str| part.is_empty() || part.starts_with('-') || part.contains(['/', ' ']);
        if odd(host) || user.as_deref().is_some_and(odd) {
            return Err(BadDestination::Host(text.to_owned()));
        }
        let port = match port {
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => Some(port),
                _ => {
                    return Err(BadDestination::Port {
                        text: text.to_owned(),
                        port: port.to_owned(),
                    });
                }
            },
            None => None,
        };
        match scheme {
            Scheme::Tls if user.is_some() => return Err(BadDestination::User(text.to_owned())),
            Scheme::Tls if port.is_none() => return Err(BadDestination::NoPort(text.to_owned())),
            Scheme::Tls | Scheme::Ssh => {}
        }
        Ok(Self {
            scheme,
            user,
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme.prefix())?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_written_back() {
        for text in [
            "ssh://b",
            "ssh://root@b:2222",
            "ssh://root@[2001:db8::2]:22",
            "ssh://[2001:db8::2]",
            "tls://b:7474",
            "tls://[2001:db8::2]:7474",
        ] {
            assert_eq!(
                text.parse::<Destination>().map(|d| d.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn what_ssh_would_take_for_an_option_is_no_host() {
        for text in [
            "ssh://-oProxyCommand=x",
            "ssh://",
            "ssh://-l@b",
            "ssh://a b",
            "tls://:7474",
        ] {
            assert_eq!(
                text.parse::<Destination>(),
                Err(BadDestination::Host(text.to_owned()))
            );
        }
        assert!(matches!(
            "b".parse::<Destination>(),
            Err(BadDestination::Scheme(_))
        ));
        assert!(matches!(
            "ssh://b:0".parse::<Destination>(),
            Err(BadDestination::Port { .. })
        ));
    }

    #[test]
    fn tls_needs_a_port_and_knows_no_user() {
        assert_eq!(
            "tls://b".parse::<Destination>(),
            Err(BadDestination::NoPort("tls://b".to_owned()))
        );
        assert_eq!(
            "tls://root@b:7474".parse::<Destination>(),
            Err(BadDestination::User("tls://root@b:7474".to_owned()))
        );
    }
}
