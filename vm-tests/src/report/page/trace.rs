//! What a page draws, as a trace for Perfetto and `chrome://tracing` (the Trace Event Format): a process for each lane, a thread
//! for each row.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use vm_agent::recording::Recording;

use super::rows::{self, Lane, Look};

/// An event of the format. Times are in microseconds, with a fraction.
#[derive(Debug, Serialize)]
struct TraceEvent {
    name: String,
    ph: &'static str,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    /// Of an instant: how far its line goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    args: Value,
}

/// The trace of a recording, as JSON: `{"traceEvents": [...]}`.
#[must_use]
pub fn trace(recording: &Recording) -> String {
    let mut events = Vec::new();
    // A row of every cycle is one thread.
    let mut threads: BTreeMap<(Lane, String), u32> = BTreeMap::new();
    for cycle in rows::cycles(recording) {
        for row in cycle.rows {
            let next = u32::try_from(threads.len()).unwrap_or(u32::MAX) + 1;
            let pid = row.lane as u32 + 1;
            let tid = *threads.entry((row.lane, row.name.clone())).or_insert_with(|| {
                events.push(named("thread_name", pid, next, &row.name));
                next
            });
            for span in row.spans {
                let name = if span.end.is_empty() { span.text } else { span.end };
                events.push(TraceEvent {
                    name,
                    ph: "X",
                    pid,
                    tid,
                    ts: Some(micros(span.from)),
                    dur: Some(micros(span.to.saturating_sub(span.from))),
                    s: None,
                    args: json!({ "detail": span.detail, "said": span.end_detail, "cycle": cycle.number }),
                });
            }
            for mark in row.marks.into_iter().filter(|mark| mark.look != Look::Tick) {
                events.push(TraceEvent {
                    name: mark.text,
                    ph: "i",
                    pid,
                    tid,
                    ts: Some(micros(mark.at)),
                    dur: None,
                    s: Some("t"),
                    args: json!({ "detail": mark.detail, "cycle": cycle.number }),
                });
            }
        }
    }
    let lanes = [(Lane::Systemd, "systemd"), (Lane::Processes, "processes"), (Lane::Mounts, "mounts")];
    events.extend(lanes.map(|(lane, name)| named("process_name", lane as u32 + 1, 0, name)));
    json!({ "displayTimeUnit": "ms", "traceEvents": events }).to_string()
}

fn named(what: &str, pid: u32, tid: u32, name: &str) -> TraceEvent {
    let args = json!({ "name": name });
    TraceEvent { name: what.to_owned(), ph: "M", pid, tid, ts: None, dur: None, s: None, args }
}

#[expect(clippy::cast_precision_loss, reason = "a recording has no 2^53 nanoseconds")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
