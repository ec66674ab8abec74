//! From what is known to a page's text, whole and its live part; and a page for what went wrong.

use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};

use left4me_ctl::list::Row;

use crate::app::{App, View};
use crate::pages::{Entry, Head, JobPage, JobsPage, RefusedPage, ServerPage, ServersPage};
use crate::place::Place;
use crate::store::Line;
use crate::users::Session;

/// A page, whole and its live part.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) whole: String,
    pub(crate) live: String,
}

/// Why there is no page.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) status: StatusCode,
    pub(crate) title: &'static str,
    pub(crate) why: String,
    pub(crate) job: Option<Box<Line>>,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        let why = format!("{:#}", error.into());
        eprintln!("{why}");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, title: "This went wrong", why, job: None }
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Self { status, title, why, job } = self;
        let page = RefusedPage { head: Head::default(), title: title.into(), why, job };
        match page.render() {
            Ok(page) => (status, Html(page)).into_response(),
            Err(error) => (status, error.to_string()).into_response(),
        }
    }
}

/// For what is not there.
pub(crate) fn nothing() -> Failed {
    let why = "There is no such page.".into();
    Failed { status: StatusCode::NOT_FOUND, title: "Not found", why, job: None }
}

/// A page that is shown again whenever it changes.
pub(crate) async fn rendered(app: &App, session: &Session, place: &Place) -> Result<Rendered, Failed> {
    let View { seen, problem, .. } = app.view();
    let head = Head { live: Some(place.to_string()), problem, me: Some(session.clone()) };
    let entries = |jobs: &[Line]| {
        let open = |name: &str| jobs.iter().find(|job| job.instance == name && is_open(job)).cloned();
        let entry = |row: Row| Entry { job: open(&row.instance), row };
        seen.servers.servers.iter().cloned().map(entry).collect::<Vec<_>>()
    };
    match place {
        Place::Servers => {
            let jobs = app.store().last(None)?;
            let problem = head.problem.or(seen.servers.servers_error.clone());
            let page = ServersPage { head: Head { problem, ..head }, entries: entries(&jobs) };
            Ok(Rendered { whole: page.render()?, live: page.as_live().render()? })
        }
        Place::Server(instance) => {
            let server = app.server(instance).await;
            let jobs = app.store().last(Some(instance))?;
            let entry = entries(&jobs).into_iter().find(|entry| entry.row.instance == instance.as_str());
            let page = ServerPage { head, name: instance.to_string(), entry, server, jobs };
            Ok(Rendered { whole: page.render()?, live: page.as_live().render()? })
        }
        Place::Jobs => {
            let page = JobsPage { head, jobs: app.store().last(None)? };
            Ok(Rendered { whole: page.render()?, live: page.as_live().render()? })
        }
        Place::Job(number) => {
            let job = app.store().job(*number)?.ok_or_else(nothing)?;
            let page = JobPage { head, job };
            Ok(Rendered { whole: page.render()?, live: page.as_live().render()? })
        }
    }
}

fn is_open(job: &Line) -> bool {
    matches!(job.state.as_str(), "queued" | "running")
}
