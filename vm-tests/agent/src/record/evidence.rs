//! What systemd and the journal say of a cycle that went wrong, asked for before anything recovers from it: afterwards both
//! speak of success.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use vm_agent::recording::{Evidence, Plan};

use super::clock::Clock;
use super::command;

/// A question that has no answer by then (systemd hangs, say) is given up: the failure itself is the news.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many lines of the journal are kept, the last ones.
const LINES: &str = "200";

/// Asks `systemctl` and `journalctl` about the plan's units. What they say instead of an answer is in the text.
///
/// # Errors
/// As [`command::run`].
pub(super) fn take(plan: &Plan, began: SystemTime, clock: Clock) -> Result<Evidence> {
    let ask = |argv: Vec<String>| -> Result<String> {
        let ended = command::run(&argv, DEADLINE, clock).with_context(|| format!("run {argv:?}"))?;
        let given_up = ended.exit.is_none().then(|| format!("({} gave no answer)\n", argv.join(" ")));
        Ok([ended.stdout, ended.stderr, given_up.unwrap_or_default()].concat())
    };
    let status = ask(systemctl(plan, &["status", "--full", "--lines=0"]))?;
    let properties = ask(systemctl(plan, &["show"]))?;
    // What is under way to the journal is in it then (journalctl(1), --sync).
    let waited = ask(["journalctl", "--sync"].map(str::to_owned).to_vec())?;
    let journal = ask(journalctl(plan, began))?;
    Ok(Evidence { units: format!("{status}\n{properties}"), journal: waited + &journal })
}

fn units(plan: &Plan) -> impl Iterator<Item = &String> {
    [&plan.unit].into_iter().chain(&plan.mount_unit)
}

fn systemctl(plan: &Plan, what: &[&str]) -> Vec<String> {
    let command = ["systemctl", "--no-pager"].iter().chain(what).map(|word| (*word).to_owned());
    command.chain(units(plan).cloned()).collect()
}

fn journalctl(plan: &Plan, began: SystemTime) -> Vec<String> {
    let since = began.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut argv: Vec<String> = [
        "journalctl",
        "--no-pager",
        "--quiet",
        "--no-hostname",
        "--output=short-monotonic",
        "--lines",
        LINES,
    ]
    .map(str::to_owned)
    .to_vec();
    argv.push(format!("--since=@{}.{:06}", since.as_secs(), since.subsec_micros()));
    argv.extend(units(plan).map(|unit| format!("--unit={unit}")));
    argv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_units_are_asked_for() {
        let plan = Plan {
            unit: "a.service".to_owned(),
            mount_unit: Some("b.service".to_owned()),
            ..Plan::default()
        };
        let began = UNIX_EPOCH + Duration::new(1_700_000_000, 5_000);
        let argv = journalctl(&plan, began).join(" ");
        assert!(
            argv.ends_with(" --lines 200 --since=@1700000000.000005 --unit=a.service --unit=b.service"),
            "{argv}"
        );
        assert_eq!(systemctl(&plan, &["show"]).join(" "), "systemctl --no-pager show a.service b.service");
    }
}
