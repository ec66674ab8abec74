//! The template of all pages, and what may stand in it.

use serde::Serialize;

use super::super::Verdict;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The name of a page, beside `report.json`.
pub const PAGE_FILE: &str = "report.html";

/// The class of a verdict, for its colour.
pub(super) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::New => "new",
        Verdict::Infrastructure | Verdict::Interrupted | Verdict::WrongInput => "none",
    }
}

/// The template with its parts in their places. The title is text, the other two are not.
pub(super) fn filled(title: &str, body: &str, data: &str) -> String {
    let title = escaped(title);
    let parts = [("TITLE", &*title), ("STYLE", STYLE), ("BODY", body), ("DATA", data), ("SCRIPT", SCRIPT)];
    let mut text = String::with_capacity(PAGE.len() + body.len() + data.len());
    let mut rest = PAGE;
    // In one pass, since a part may have anything in it.
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("the template closes what it opens");
        let part = parts.iter().find(|(known, _)| *known == name);
        text.push_str(before);
        text.push_str(part.expect("the template names parts that there are").1);
        rest = after;
    }
    text.push_str(rest);
    text
}

/// A page of a body that a script has nothing to draw in.
pub(crate) fn drawn(title: &str, body: &str) -> String {
    filled(title, body, "null")
}

/// Text as text of HTML, and of an attribute in double quotes.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// JSON that may stand in a script element: no tag begins or ends in it.
pub(super) fn json(data: &impl Serialize) -> String {
    serde_json::to_string(data).expect("plain data").replace('<', "\\u003c")
}
