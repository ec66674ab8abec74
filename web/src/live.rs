//! One stream for a page: its live part, at once and whenever it has changed.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};

use crate::app::App;
use crate::place::Place;
use crate::render::rendered;

/// The stream of a page.
pub(crate) fn stream(app: Arc<App>, place: Place) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut changes = app.changes();
    changes.mark_changed();
    let parts = unfold((app, place, changes, String::new()), |(app, place, mut changes, last)| async move {
        loop {
            // Its sender is in `app`.
            changes.changed().await.ok()?;
            changes.mark_unchanged();
            // A page that cannot be made now is made at the next change; until then the last one stays.
            let Ok(page) = rendered(&app, &place).await else { continue };
            if page.live != last {
                let event = Event::default().event("part").data(&page.live);
                return Some((Ok(event), (app, place, changes, page.live)));
            }
        }
    });
    Sse::new(parts).keep_alive(KeepAlive::default())
}
