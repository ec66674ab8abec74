//! Which requests are heard at all, and what every answer says to the browser.
//!
//! A page of another site can have a browser send anything here, with a name that it let point to this host, too. So the name
//! must be one of ours, and what changes something must come from a page of ours, by what the browser itself says of it.

use axum::http::Method;
use axum::http::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};

/// For every answer: nothing from elsewhere, nothing in a frame, nothing kept.
pub const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    // Not `no-referrer`, with which browsers send `Origin: null`.
    ("referrer-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// The names that a request may have for us, without a port: those of this machine itself.
const OURS: &[&str] = &["localhost", "127.0.0.1", "[::1]"];

/// Whether a request is heard.
///
/// # Errors
/// Why not, for who sent it.
pub fn may(method: &Method, headers: &HeaderMap, names: &[String]) -> Result<(), &'static str> {
    let host = one(headers, &HOST).ok_or("a request needs one Host header")?;
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.map_or(host, |(name, _port)| name);
    if !OURS.contains(&name) && !names.iter().any(|ours| ours == name) {
        return Err("this host is not known by that name: see --name");
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let site = HeaderName::from_static("sec-fetch-site");
    // A browser says it, and no page can forge it. One that is too old for it has Origin.
    let is_ours = match (headers.contains_key(&site), one(headers, &site), one(headers, &ORIGIN)) {
        (true, site, _) => site == Some("same-origin"),
        (false, _, origin) => {
            let authority =
                origin.and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
            authority == Some(host)
        }
    };
    if is_ours { Ok(()) } else { Err("this did not come from a page of ours, so nothing was done") }
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::to_str);
    match (values.next(), values.next()) {
        (Some(Ok(value)), None) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, headers: &[(&'static str, &str)]) -> bool {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        may(&method, &map, &["panel.example".into()]).is_ok()
    }

    #[test]
    fn only_under_a_name_of_ours() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "panel.example"] {
            assert!(ask(Method::GET, &[("host", host)]), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", ":80", "localhost:x"]
        {
            assert!(!ask(Method::GET, &[("host", host)]), "{host}");
        }
        assert!(!ask(Method::GET, &[]));
        assert!(!ask(Method::GET, &[("host", "localhost"), ("host", "evil.example")]));
    }

    #[test]
    fn what_changes_something_comes_from_a_page_of_ours() {
        let host = ("host", "localhost:80");
        assert!(ask(Method::POST, &[host, ("sec-fetch-site", "same-origin")]));
        assert!(ask(Method::POST, &[host, ("origin", "http://localhost:80")]));
        for headers in [
            &[host][..],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("sec-fetch-site", "none")],
            &[host, ("sec-fetch-site", "cross-site"), ("origin", "http://localhost:80")],
            &[host, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
            &[host, ("origin", "null")],
            &[host, ("origin", "http://localhost:81")],
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "http://localhost:80.evil.example")],
        ] {
            assert!(!ask(Method::POST, headers), "{headers:?}");
            assert!(!ask(Method::DELETE, headers), "{headers:?}");
        }
    }
}
