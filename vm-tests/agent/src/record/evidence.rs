//! What systemd and the journal say of a cycle that went wrong, asked for before anything recovers from it: afterwards both
//! speak of success.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use vm_agent::recording::{Evidence, Plan};

use super::clock::Clock;
use super::command;
use crate::account::Account;

/// A question that has no answer by then (systemd hangs, say) is given up: the failure itself is the news.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many lines of the journal are kept, the last ones.
const LINES: &str = "200";

/// Asks `systemctl` and `journalctl` about the plan's units. What they say instead of an answer is in the text.
///
/// # Errors
/// As [`command::run`].
pub(super) fn take(plan: &Plan, began: SystemTime, clock: Clock) -> Result<Evidence> {
    let uid = plan.user.as_deref().map(Account::of).transpose()?.map(|account| account.uid);
    let ask = |argv: Vec<String>| -> Result<String> {
        let ended = command::run(&argv, DEADLINE, clock).with_context(|| format!("run {argv:?}"))?;
        let given_up = ended.exit.is_none().then(|| format!("({} gave no answer)\n", argv.join(" ")));
        Ok([ended.stdout, ended.stderr, given_up.unwrap_or_default()].concat())
    };
    let mut about = Vec::new();
    for what in [&["status", "--full", "--lines=0"][..], &["show"]] {
        for argv in systemctl(plan, what) {
            about.push(ask(argv)?);
        }
    }
    // What is under way to the journal is in it then (journalctl(1), --sync).
    let waited = ask(["journalctl", "--sync"].map(str::to_owned).to_vec())?;
    let journal = ask(journalctl(plan, began, uid))?;
    Ok(Evidence { units: about.join("\n"), journal: waited + &journal })
}

/// The commands that ask each manager of the plan's units that it has.
fn systemctl(plan: &Plan, what: &[&str]) -> Vec<Vec<String>> {
    let mut of_system = vec!["systemctl", "--no-pager"];
    of_system.extend(what);
    let mut all = Vec::new();
    match &plan.user {
        Some(user) => {
            let mut of_user = vec!["runuser", "-u", user, "--", "systemctl", "--user", "--no-pager"];
            of_user.extend(what);
            of_user.push(&plan.unit);
            all.push(of_user);
        }
        None => of_system.push(&plan.unit),
    }
    of_system.extend(plan.mount_unit.as_deref());
    if plan.user.is_none() || plan.mount_unit.is_some() {
        all.push(of_system);
    }
    all.into_iter().map(|argv| argv.into_iter().map(str::to_owned).collect()).collect()
}

/// `uid` is that of the plan's user. Its `--user-unit=` would be that of who asks.
fn journalctl(plan: &Plan, began: SystemTime, uid: Option<u32>) -> Vec<String> {
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
    match uid {
        None => {
            argv.extend([&plan.unit].into_iter().chain(&plan.mount_unit).map(|unit| format!("--unit={unit}")))
        }
        Some(uid) => {
            let its = |field: &str| [format!("{field}={}", plan.unit), format!("_UID={uid}"), "+".to_owned()];
            argv.extend(its("_SYSTEMD_USER_UNIT"));
            // What its manager says of it.
            argv.extend(its("USER_UNIT"));
            let of_mount =
                |unit| ["_SYSTEMD_UNIT", "UNIT"].map(|field| [format!("{field}={unit}"), "+".to_owned()]);
            argv.extend(plan.mount_unit.iter().flat_map(of_mount).flatten());
            // There is nothing after the last one.
            argv.pop();
        }
    }
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
        let argv = journalctl(&plan, began, None).join(" ");
        assert!(
            argv.ends_with(" --lines 200 --since=@1700000000.000005 --unit=a.service --unit=b.service"),
            "{argv}"
        );
        let systemctl = |plan: &Plan| -> Vec<String> {
            systemctl(plan, &["show"]).into_iter().map(|argv| argv.join(" ")).collect()
        };
        assert_eq!(systemctl(&plan), ["systemctl --no-pager show a.service b.service"]);

        let of_user = Plan { user: Some("u".to_owned()), ..plan };
        let its = "runuser -u u -- systemctl --user --no-pager show a.service";
        assert_eq!(systemctl(&of_user), [its, "systemctl --no-pager show b.service"]);
        let argv = journalctl(&of_user, began, Some(7)).join(" ");
        assert!(
            argv.ends_with(
                " _SYSTEMD_USER_UNIT=a.service _UID=7 + USER_UNIT=a.service _UID=7 + _SYSTEMD_UNIT=b.service + UNIT=b.service"
            ),
            "{argv}"
        );
        let alone = Plan { mount_unit: None, ..of_user };
        assert_eq!(systemctl(&alone), [its]);
        assert!(journalctl(&alone, began, Some(7)).join(" ").ends_with(" USER_UNIT=a.service _UID=7"));
    }
}
