//! Requests and their answers.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::FormRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Form, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use left4me_broker::verbs::Deed;
use left4me_helper::instance::Instance;
use serde::Deserialize;

use crate::app::{App, Asker, Pressed};
use crate::guard;
use crate::live;
use crate::login::{self, Token};
use crate::pages::{DoctorPage, Head, ResetPage};
use crate::place::Place;
use crate::render::{Failed, nothing, rendered};
use crate::users::{Role, Session};
use crate::who::{Peer, Who};

/// The most that a form may have, bytes: the longest has a name, a password and a path.
const FORM: usize = 4096;

/// All of the page, for requests under this machine's own names and these.
pub fn router(app: Arc<App>, names: Vec<String>) -> Router {
    let names: Arc<[String]> = names.into();
    Router::new()
        .route("/", get(async || Redirect::to("/servers")))
        .route("/login", get(login::form).post(login::login))
        .route("/logout", post(login::logout))
        .route("/servers", get(servers))
        .route("/servers/{id}", get(server))
        .route("/servers/{id}/{action}", get(question).post(act))
        .route("/jobs", get(jobs))
        .route("/jobs/{number}", get(job))
        .route("/doctor", get(doctor))
        .route("/live", get(live_part))
        .route(
            "/page.js",
            get(async || file("text/javascript; charset=utf-8", include_str!("../static/page.js"))),
        )
        .route("/page.css", get(async || file("text/css; charset=utf-8", include_str!("../static/page.css"))))
        .fallback(async || nothing())
        .layer(DefaultBodyLimit::max(FORM))
        .with_state(Arc::clone(&app))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let (app, names) = (Arc::clone(&app), Arc::clone(&names));
            async move { guarded(&app, &names, request, next).await }
        }))
}

async fn guarded(app: &App, names: &[String], request: Request, next: Next) -> Response {
    let mut response = match guard::may(request.method(), request.headers(), names) {
        Ok(()) => let_in(app, request, next).await.unwrap_or_else(IntoResponse::into_response),
        Err(why) => {
            eprintln!("{} {} was refused: {why}", request.method(), request.uri().path().escape_debug());
            (StatusCode::FORBIDDEN, format!("{why}\n")).into_response()
        }
    };
    for (name, value) in guard::HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// Nothing but the login is for who has no session: not even which pages there are.
async fn let_in(app: &App, mut request: Request, next: Next) -> Result<Response, Failed> {
    let path = request.uri().path();
    if login::OPEN.contains(&path) {
        return Ok(next.run(request).await);
    }
    let ConnectInfo(who) = request.extensions().get::<ConnectInfo<Who>>().cloned().ok_or_else(nothing)?;
    let peer = who.peer(request.headers());
    let Some(session) = login::session(app, request.headers(), &peer)? else {
        let is_page = matches!(*request.method(), Method::GET | Method::HEAD) && path != "/live";
        return Ok(if is_page {
            login::first(path).into_response()
        } else {
            (StatusCode::UNAUTHORIZED, "nobody is in: see /login\n").into_response()
        });
    };
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(session);
    app.ready().await;
    Ok(next.run(request).await)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

type Me = Extension<Session>;

async fn servers(State(app): State<Arc<App>>, Extension(me): Me) -> Result<Html<String>, Failed> {
    Ok(Html(rendered(&app, &me, &Place::Servers).await?.whole))
}

async fn server(
    State(app): State<Arc<App>>,
    Extension(me): Me,
    Path(id): Path<String>,
) -> Result<Html<String>, Failed> {
    let instance = known(&app, &id)?;
    Ok(Html(rendered(&app, &me, &Place::Server(instance)).await?.whole))
}

async fn jobs(State(app): State<Arc<App>>, Extension(me): Me) -> Result<Html<String>, Failed> {
    Ok(Html(rendered(&app, &me, &Place::Jobs).await?.whole))
}

async fn job(
    State(app): State<Arc<App>>,
    Extension(me): Me,
    Path(number): Path<i64>,
) -> Result<Html<String>, Failed> {
    Ok(Html(rendered(&app, &me, &Place::Job(number)).await?.whole))
}

async fn doctor(State(app): State<Arc<App>>, Extension(me): Me) -> Result<Html<String>, Failed> {
    let found = app.broker.doctor().await.map_err(|error| format!("{error:#}"));
    let head = Head { live: None, problem: app.view().problem, me: Some(me) };
    Ok(Html(DoctorPage { head, found }.render()?))
}

/// The question before a reset. It is a page of its own, of which a browser with scripts shows the middle.
async fn question(
    State(app): State<Arc<App>>,
    Extension(me): Me,
    Path((id, action)): Path<(String, String)>,
) -> Result<Html<String>, Failed> {
    if action != Deed::Reset.word() {
        return Err(nothing());
    }
    let instance = known(&app, &id)?;
    let (state, loss, players) = match app.broker.server(&instance).await {
        Ok(server) => {
            let why = server.loss.error.map(|why| format!("how much is not known ({why})"));
            let players = crate::pages::players(&server.players);
            let state = match (server.report.active_state, server.report.error) {
                (state, _) if !state.is_empty() => state,
                (_, Some(error)) => format!("in a state that is not known ({error})"),
                (_, None) => "in a state that is not known".into(),
            };
            (state, server.loss.text.or(why).unwrap_or_else(|| "nothing".into()), players)
        }
        Err(error) => {
            ("not known".into(), format!("how much is not known ({error:#})"), crate::pages::players(&None))
        }
    };
    let head = Head { live: None, problem: app.view().problem, me: Some(me) };
    Ok(Html(ResetPage { head, name: instance.to_string(), state, loss, players }.render()?))
}

async fn act(
    State(app): State<Arc<App>>,
    Extension(me): Me,
    Extension(peer): Extension<Peer>,
    Path((id, action)): Path<(String, String)>,
    form: Result<Form<Token>, FormRejection>,
) -> Result<Redirect, Failed> {
    login::confirmed(&me, form)?;
    let deed = match action.as_str() {
        "start" => Deed::Start,
        "stop" => Deed::Stop,
        "reset" => Deed::Reset,
        _ => return Err(nothing()),
    };
    let instance = known(&app, &id)?;
    let asker = Asker { user: me.user, peer: peer.text };
    if me.role != Role::Operate {
        app.refused(deed, &instance, &asker, "refused, the role look does not operate");
        return Err(Failed {
            status: StatusCode::FORBIDDEN,
            title: "Nothing was done",
            why: "You may look at the servers, and not operate them.".into(),
            job: None,
        });
    }
    match app.press(deed, &instance, &asker).await? {
        Pressed::Job(_) => Ok(Redirect::to(&format!("/servers/{instance}"))),
        Pressed::Busy(job) => Err(Failed {
            status: StatusCode::CONFLICT,
            title: "Another job is in the way",
            why: format!("The {deed} of {instance} was not begun. One job at a time is done to a server."),
            job: Some(job),
        }),
    }
}

/// An instance that there is, or was when the broker looked last.
fn known(app: &App, id: &str) -> Result<Instance, Failed> {
    let instance: Instance = id.parse().map_err(|_error| nothing())?;
    let is_known = app.view().seen.servers.servers.iter().any(|row| row.instance == instance.as_str());
    if is_known { Ok(instance) } else { Err(nothing()) }
}

#[derive(Debug, Deserialize)]
struct Asked {
    page: String,
}

async fn live_part(State(app): State<Arc<App>>, Extension(me): Me, Query(asked): Query<Asked>) -> Response {
    match asked.page.parse() {
        Ok(place) => live::stream(app, me, place),
        Err(()) => nothing().into_response(),
    }
}
