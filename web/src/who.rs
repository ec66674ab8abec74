//! Who is on the other side of a connection, and of the proxy that it may come from.

use std::net::IpAddr;

use axum::http::HeaderMap;
use tokio::net::UnixStream;

/// Who is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// At the Unix socket, in words. What it says of whom it speaks for is believed: its file's mode says who can connect.
    Unix(String),
    /// At the port of loopback: anybody on this machine.
    Loopback,
}

/// Who asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// In words: an address, or a user of this machine.
    pub text: String,
    /// Whether the browser came by TLS, as far as the proxy says.
    pub is_by_tls: bool,
}

impl Who {
    /// Who has connected: with `ssh -L`, the user of that session.
    #[must_use]
    pub fn at_unix(stream: &UnixStream) -> Self {
        let peer = stream.peer_cred();
        Self::Unix(
            peer.map_or_else(|error| format!("unknown ({error})"), |peer| format!("uid {}", peer.uid())),
        )
    }

    /// Who asks, by a request's headers. Proxies add to what a client has made up, so only the last is theirs.
    #[must_use]
    pub fn peer(&self, headers: &HeaderMap) -> Peer {
        let Self::Unix(user) = self else {
            return Peer { text: "somebody on this machine".into(), is_by_tls: false };
        };
        let last = |name: &str| {
            let text = headers.get_all(name).iter().next_back()?.to_str().ok()?;
            text.rsplit(',').next().map(str::trim)
        };
        let address = last("x-forwarded-for").and_then(|text| text.parse::<IpAddr>().ok());
        let text = address.map_or_else(|| user.clone(), |address| address.to_canonical().to_string());
        Peer { text, is_by_tls: last("x-forwarded-proto") == Some("https") }
    }
}

impl Peer {
    /// By what its tries to come in are counted: who has one address of IPv6 has a network of them.
    #[must_use]
    pub fn counted(&self) -> String {
        match self.text.parse() {
            Ok(IpAddr::V6(address)) => format!("{:x?}", &address.segments()[..4]),
            _ => self.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(who: &Who, headers: &[(&'static str, &str)]) -> (String, bool) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let Peer { text, is_by_tls } = who.peer(&map);
        (text, is_by_tls)
    }

    #[test]
    fn a_proxy_is_believed_at_the_unix_socket_alone() {
        let (unix, tls) = (Who::Unix("uid 33".into()), ("x-forwarded-proto", "https"));
        assert_eq!(peer(&unix, &[]), ("uid 33".into(), false));
        assert_eq!(peer(&unix, &[tls, ("x-forwarded-for", "192.0.2.7")]), ("192.0.2.7".into(), true));
        let loopback = peer(&Who::Loopback, &[tls, ("x-forwarded-for", "192.0.2.7")]);
        assert_eq!(loopback, ("somebody on this machine".into(), false));
    }

    #[test]
    fn what_a_client_made_up_before_the_proxy_is_not_believed() {
        let unix = Who::Unix("uid 33".into());
        let forged =
            peer(&unix, &[("x-forwarded-for", "127.0.0.1, 192.0.2.7"), ("x-forwarded-proto", "https, http")]);
        assert_eq!(forged, ("192.0.2.7".into(), false));
        let two = peer(&unix, &[("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "192.0.2.7")]);
        assert_eq!(two.0, "192.0.2.7");
        for text in ["<script>", "", "192.0.2.7\u{a0}", "uid 0"] {
            assert_eq!(peer(&unix, &[("x-forwarded-for", text)]).0, "uid 33", "{text}");
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let counted = |text: &str| Peer { text: text.into(), is_by_tls: true }.counted();
        assert_eq!(counted("2001:db8:1:2::1"), counted("2001:db8:1:2:ffff::2"));
        assert_ne!(counted("2001:db8:1:2::1"), counted("2001:db8:1:3::1"));
        assert_ne!(counted("192.0.2.1"), counted("192.0.2.2"));
    }
}
