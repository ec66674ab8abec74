//! Requests and their answers.

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use axum::routing::get;
use left4me_broker::verbs::Deed;
use left4me_helper::instance::Instance;
use serde::Deserialize;

use crate::app::{App, Pressed};
use crate::guard;
use crate::live;
use crate::pages::{DoctorPage, Head, ResetPage};
use crate::place::Place;
use crate::render::{Failed, nothing, rendered};
use crate::who::Who;

/// All of the page, for requests under this machine's own names and these.
pub fn router(app: Arc<App>, names: Vec<String>) -> Router {
    let names: Arc<[String]> = names.into();
    Router::new()
        .route("/", get(async || Redirect::to("/servers")))
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
        .with_state(Arc::clone(&app))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let (app, names) = (Arc::clone(&app), Arc::clone(&names));
            async move { guarded(&app, &names, request, next).await }
        }))
}

async fn guarded(app: &App, names: &[String], request: Request, next: Next) -> Response {
    let mut response = match guard::may(request.method(), request.headers(), names) {
        Ok(()) => {
            app.ready().await;
            next.run(request).await
        }
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

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn servers(State(app): State<Arc<App>>) -> Result<Html<String>, Failed> {
    Ok(Html(rendered(&app, &Place::Servers).await?.whole))
}

async fn server(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Html<String>, Failed> {
    let instance = known(&app, &id)?;
    Ok(Html(rendered(&app, &Place::Server(instance)).await?.whole))
}

async fn jobs(State(app): State<Arc<App>>) -> Result<Html<String>, Failed> {
    Ok(Html(rendered(&app, &Place::Jobs).await?.whole))
}

async fn job(State(app): State<Arc<App>>, Path(number): Path<i64>) -> Result<Html<String>, Failed> {
    Ok(Html(rendered(&app, &Place::Job(number)).await?.whole))
}

async fn doctor(State(app): State<Arc<App>>) -> Result<Html<String>, Failed> {
    let found = app.broker.doctor().await.map_err(|error| format!("{error:#}"));
    let head = Head { live: None, problem: app.view().problem };
    Ok(Html(DoctorPage { head, found }.render()?))
}

/// The question before a reset. It is a page of its own, of which a browser with scripts shows the middle.
async fn question(
    State(app): State<Arc<App>>,
    Path((id, action)): Path<(String, String)>,
) -> Result<Html<String>, Failed> {
    if action != Deed::Reset.word() {
        return Err(nothing());
    }
    let instance = known(&app, &id)?;
    let (state, loss) = match app.broker.server(&instance).await {
        Ok(server) => {
            let why = server.loss.error.map(|why| format!("how much is not known ({why})"));
            (server.report.active_state, server.loss.text.or(why).unwrap_or_else(|| "nothing".into()))
        }
        Err(error) => ("not known".into(), format!("how much is not known ({error:#})")),
    };
    let head = Head { live: None, problem: app.view().problem };
    Ok(Html(ResetPage { head, name: instance.to_string(), state, loss }.render()?))
}

async fn act(
    State(app): State<Arc<App>>,
    ConnectInfo(who): ConnectInfo<Who>,
    Path((id, action)): Path<(String, String)>,
) -> Result<Redirect, Failed> {
    let deed = match action.as_str() {
        "start" => Deed::Start,
        "stop" => Deed::Stop,
        "reset" => Deed::Reset,
        _ => return Err(nothing()),
    };
    let instance = known(&app, &id)?;
    match app.press(deed, &instance, &who.0).await? {
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

async fn live_part(State(app): State<Arc<App>>, Query(asked): Query<Asked>) -> Response {
    match asked.page.parse() {
        Ok(place) => live::stream(app, place).into_response(),
        Err(()) => nothing().into_response(),
    }
}
