//! Coming in and leaving: the login's page and form, the cookie, and whose session a request is of.
//!
//! A session's secret is made here, at a login, and never taken from a browser. The cookie is HttpOnly and SameSite=Strict; behind a
//! proxy with TLS it is Secure, and its name begins with `__Host-`, so that no other host and no page without TLS can set it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use askama::Template as _;
use axum::Extension;
use axum::extract::rejection::FormRejection;
use axum::extract::{ConnectInfo, Form, Query, State};
use axum::http::header::{COOKIE, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use left4me_broker::audit;
use serde::Deserialize;

use crate::app::{App, now_ms};
use crate::pages::{Head, LoginPage};
use crate::password;
use crate::place::Place;
use crate::render::Failed;
use crate::secret::{Secret, is_same};
use crate::users::{Name, Session};
use crate::who::{Peer, Who};

/// The only paths that are for everybody.
pub(crate) const OPEN: &[&str] = &["/login", "/page.css", "/page.js"];

/// A form's token.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Token {
    #[serde(default)]
    token: String,
}

/// What the login's form says.
#[derive(Debug, Deserialize)]
pub(crate) struct Tried {
    #[serde(default)]
    user: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    to: String,
}

/// Where somebody wanted to be.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    #[serde(default)]
    to: String,
}

/// A form of a session's own page has its token.
///
/// # Errors
/// It has none, or another one.
pub(crate) fn confirmed(session: &Session, form: Result<Form<Token>, FormRejection>) -> Result<(), Failed> {
    let said = form.map(|Form(said)| said.token).unwrap_or_default();
    if is_same(&said, &session.token) {
        return Ok(());
    }
    let fields = [("USER", session.user.clone()), ("OUTCOME", "no token".into())];
    audit::say(&format!("{}: a request without the session's token was refused", session.user), &fields);
    Err(Failed {
        status: StatusCode::FORBIDDEN,
        title: "Nothing was done",
        why: "This form is of another session: go back, load the page again, and press once more.".into(),
        job: None,
    })
}

/// Whose session a request is of.
///
/// # Errors
/// The database's.
pub(crate) fn session(app: &App, headers: &HeaderMap, peer: &Peer) -> anyhow::Result<Option<Session>> {
    let Some(secret) = secret(headers, peer) else { return Ok(None) };
    let (store, now_ms) = (app.store(), now_ms());
    let session = store.session(&secret, now_ms).context("look for a session")?;
    if let Some(session) = &session {
        store.see_session(session, now_ms).context("note a session")?;
    }
    Ok(session)
}

/// Where a browser without a session is sent.
pub(crate) fn first(path: &str) -> Redirect {
    Redirect::to(&format!("/login?to={}", back(path)))
}

pub(crate) async fn form(
    State(app): State<Arc<App>>,
    ConnectInfo(who): ConnectInfo<Who>,
    Query(Wanted { to }): Query<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    if session(&app, &headers, &who.peer(&headers))?.is_some() {
        return Ok(Redirect::to(&back(&to)).into_response());
    }
    page(&app, StatusCode::OK, None, &to)
}

pub(crate) async fn login(
    State(app): State<Arc<App>>,
    ConnectInfo(who): ConnectInfo<Who>,
    headers: HeaderMap,
    tried: Result<Form<Tried>, FormRejection>,
) -> Result<Response, Failed> {
    let peer = who.peer(&headers);
    let Ok(Form(Tried { user, password, to })) = tried else {
        return page(&app, StatusCode::BAD_REQUEST, Some("That was not the form.".into()), "");
    };
    let taken = app.limits().take(&user, &peer.counted(), Instant::now());
    if let Err(wait) = taken {
        tried_in_vain(&user, &peer, "too many tries");
        let seconds = wait.as_secs() + 1;
        let why = format!("Too many tries. There is another one in {seconds} s; who is in already stays in.");
        let response = page(&app, StatusCode::TOO_MANY_REQUESTS, Some(why), &to)?;
        return Ok(([(RETRY_AFTER, seconds.to_string())], response).into_response());
    }
    let name: Option<Name> = user.parse().ok();
    let kept = name.as_ref().map(|name| app.store().password(name)).transpose()?.flatten();
    let Ok(_place) = app.hashing.try_acquire() else {
        app.limits().give_back(&user, &peer.counted());
        let why = "Many others are coming in just now: try again.".into();
        return page(&app, StatusCode::SERVICE_UNAVAILABLE, Some(why), &to);
    };
    // One at a time: each takes 19 MiB.
    let turn = app.turn.lock().await;
    let compared = kept.clone();
    let is_right = tokio::task::spawn_blocking(move || password::is_right(&password, compared.as_deref()));
    let is_right = is_right.await??;
    drop(turn);
    let (Some(name), Some(kept), true) = (name, kept, is_right) else {
        tried_in_vain(&user, &peer, "wrong");
        return page(&app, StatusCode::UNAUTHORIZED, Some("The name or the password is wrong.".into()), &to);
    };
    app.limits().give_back(&user, &peer.counted());
    let new = Secret::new()?;
    let mut store = app.store();
    if let Some(old) = secret(&headers, &peer) {
        store.end_session(&old)?;
    }
    if !store.begin_session(&name, &kept, &new, now_ms())? {
        return page(&app, StatusCode::UNAUTHORIZED, Some("The password was just changed.".into()), &to);
    }
    drop(store);
    said(&name.to_string(), &peer, "login", "done");
    Ok(([(SET_COOKIE, cookie(&new.cookie(), &peer))], Redirect::to(&back(&to))).into_response())
}

pub(crate) async fn logout(
    State(app): State<Arc<App>>,
    Extension(session): Extension<Session>,
    Extension(peer): Extension<Peer>,
    form: Result<Form<Token>, FormRejection>,
) -> Result<Response, Failed> {
    confirmed(&session, form)?;
    app.store().end_session(session.secret())?;
    // Whoever looks on in another tab looks again.
    app.has_changed();
    said(&session.user, &peer, "logout", "done");
    let gone = format!("{}; Max-Age=0", cookie("", &peer));
    Ok(([(SET_COOKIE, gone)], Redirect::to("/login")).into_response())
}

fn page(app: &App, status: StatusCode, problem: Option<String>, to: &str) -> Result<Response, Failed> {
    let makes_a_user = if app.store().users()?.is_empty() {
        // Its directory is on nobody's PATH, and another one where it is from a package.
        let program = std::env::current_exe().context("ask which program this is")?;
        Some(format!("sudo {} passwd NAME", program.display()))
    } else {
        None
    };
    let page = LoginPage { head: Head::default(), problem, to: back(to), makes_a_user };
    Ok((status, Html(page.render()?)).into_response())
}

/// A path of ours that is worth coming back to.
fn back(path: &str) -> String {
    match path.parse::<Place>() {
        Ok(place) => place.to_string(),
        Err(()) if path == "/doctor" => path.into(),
        Err(()) => "/servers".into(),
    }
}

fn name(peer: &Peer) -> &'static str {
    if peer.is_by_tls { "__Host-left4me" } else { "left4me" }
}

fn cookie(value: &str, peer: &Peer) -> String {
    let secure = if peer.is_by_tls { "; Secure" } else { "" };
    format!("{}={value}; Path=/; HttpOnly; SameSite=Strict{secure}", name(peer))
}

/// The secret of the one cookie that is ours. Of two none is: somebody else may have set one.
fn secret(headers: &HeaderMap, peer: &Peer) -> Option<Secret> {
    let texts = headers.get_all(COOKIE).iter().filter_map(|text| text.to_str().ok());
    let pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut ours = pairs.filter(|(key, _)| *key == name(peer)).map(|(_, value)| value);
    match (ours.next(), ours.next()) {
        (Some(value), None) => Secret::parse(value),
        _ => None,
    }
}

fn tried_in_vain(user: &str, peer: &Peer, why: &str) {
    // Who mistypes may have typed a password in the place of a name.
    let user =
        user.parse::<Name>().map_or_else(|_none| "a name that is none".into(), |name| name.to_string());
    said(&user, peer, "login", why);
}

fn said(user: &str, peer: &Peer, verb: &str, outcome: &str) {
    let fields = [
        ("USER", user.to_owned()),
        ("PEER", peer.text.clone()),
        ("VERB", verb.to_owned()),
        ("OUTCOME", outcome.to_owned()),
    ];
    audit::say(&format!("{user} ({}): {verb}: {outcome}", peer.text), &fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(is_by_tls: bool) -> Peer {
        Peer { text: "192.0.2.7".into(), is_by_tls }
    }

    fn headers(cookies: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for cookie in cookies {
            map.append(COOKIE, cookie.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_cookie_is_for_this_host_alone_and_behind_tls_for_tls_alone() {
        assert_eq!(cookie("1", &peer(false)), "left4me=1; Path=/; HttpOnly; SameSite=Strict");
        assert_eq!(cookie("1", &peer(true)), "__Host-left4me=1; Path=/; HttpOnly; SameSite=Strict; Secure");
    }

    #[test]
    fn of_two_cookies_none_is_ours_and_without_tls_none_is_of_tls() {
        let (one, other) = ("0".repeat(64), "1".repeat(64));
        let is_one = |cookies: &[&str], is_by_tls| secret(&headers(cookies), &peer(is_by_tls)).is_some();
        let (plain, host) = (format!("left4me={one}"), format!("__Host-left4me={one}"));
        assert!(is_one(&[&plain], false) && is_one(&[&host], true));
        assert!(is_one(&[&format!("a=b; {plain}; c=d")], false));
        assert!(!is_one(&[&plain], true) && !is_one(&[&host], false));
        let two = format!("left4me={other}");
        assert!(!is_one(&[&format!("{plain}; {two}")], false) && !is_one(&[&plain, &two], false));
        assert!(!is_one(&[], false) && !is_one(&["left4me"], false) && !is_one(&["left4me=x"], false));
    }

    #[test]
    fn nobody_is_sent_elsewhere_after_a_login() {
        for path in ["/servers/3", "/jobs/164", "/doctor"] {
            assert_eq!(back(path), path);
        }
        for path in
            ["", "//evil.example", "https://evil.example", "/servers/../x", "/login", "/servers/3/reset"]
        {
            assert_eq!(back(path), "/servers", "{path}");
        }
    }
}
