//! One stream for a page: its live part, at once and whenever it has changed. It ends with its session: then it says `over`. A proxy
//! is asked to pass on what comes: nginx keeps it back otherwise, until more has come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::unfold;

use crate::app::{App, now_ms};
use crate::place::Place;
use crate::render::rendered;
use crate::users::Session;

/// The stream of a page.
pub(crate) fn stream(app: Arc<App>, session: Session, place: Place) -> Response {
    let mut changes = app.changes();
    changes.mark_changed();
    let begun = Some((app, session, place, changes, String::new()));
    let parts = unfold(begun, |state| async move {
        let (app, session, place, mut changes, last) = state?;
        loop {
            // Its sender is in `app`.
            changes.changed().await.ok()?;
            changes.mark_unchanged();
            // The broker speaks every few seconds, so that the end of a session by the clock is seen, too.
            if !app.store().goes_on(&session, now_ms()).unwrap_or(false) {
                // One without data is heard by no browser.
                return Some((
                    Ok::<_, Infallible>(Event::default().event("over").data("the session has ended")),
                    None,
                ));
            }
            // A page that cannot be made now is made at the next change; until then the last one stays.
            let Ok(page) = rendered(&app, &session, &place).await else { continue };
            if page.live != last {
                let event = Event::default().event("part").data(&page.live);
                return Some((Ok(event), Some((app, session, place, changes, page.live))));
            }
        }
    });
    // <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering>
    ([("x-accel-buffering", "no")], Sse::new(parts).keep_alive(KeepAlive::default())).into_response()
}
