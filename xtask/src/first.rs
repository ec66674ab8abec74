//! First snapshots: a person at a terminal is asked, all others are told what to type.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use vm_tests::image::Suite;
use vm_tests::machine::Cancel;
use vm_tests::report::{Report, ScenarioReport, Verdict};

use crate::shell::quoted;

/// Offers the first snapshot of each scenario that has none and is as expected. One that is accepted has passed.
pub(crate) async fn offer(report: &mut Report, named: bool, cancel: &Cancel) -> Result<()> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    // The reference's becomes the one that all share, so it comes first.
    let mut scenarios: Vec<&mut ScenarioReport> = report.scenarios.iter_mut().collect();
    scenarios.sort_by_key(|one| one.guest != Suite::default().as_str());
    for scenario in scenarios {
        let Some(first) = scenario.first.as_ref().filter(|_| is_terminal) else { continue };
        println!("\n{}/{} is new. What a run of it was:\n", scenario.guest, scenario.name);
        first.text.lines().for_each(|line| println!("  {line}"));
        print!("\nIs it right? Then it becomes the snapshot that later runs are compared with. [y/N] ");
        io::stdout().flush().context("write to the terminal")?;
        if is_yes(&answer(cancel).await?) {
            first.accept()?;
            scenario.verdict = Verdict::Passed;
        }
    }
    let new: Vec<&ScenarioReport> =
        report.scenarios.iter().filter(|one| one.verdict == Verdict::New).collect();
    if !new.is_empty() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let names: Vec<&str> = new.iter().map(|one| one.name.as_str()).filter(|_| !named).collect();
        let is_written = new.iter().any(|one| one.first.is_some());
        let to_see = if is_written { ", if outcome.snap.new beside it is right" } else { "" };
        println!("to accept what is new{to_see}:");
        println!("{}", accepting(&arguments, &names));
    }
    Ok(())
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// A line from the terminal; empty at its end and on an interrupt.
async fn answer(cancel: &Cancel) -> Result<String> {
    let line = tokio::task::spawn_blocking(|| io::stdin().lines().next().transpose());
    tokio::select! {
        line = line => Ok(line.context("ask")?.context("read from the terminal")?.unwrap_or_default()),
        () = cancel.cancelled() => Ok(String::new()),
    }
}

/// The command that accepts: the one that was typed, for these scenarios.
fn accepting(arguments: &[String], scenarios: &[&str]) -> String {
    let mut names: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for name in scenarios {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let words: Vec<String> = names.into_iter().map(quoted).collect();
    format!("INSTA_UPDATE=always cargo xtask {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_works_when_pasted() {
        let typed = ["vm-test", "--jobs", "1", "./my scenario"].map(str::to_owned);
        assert_eq!(
            accepting(&typed, &[]),
            "INSTA_UPDATE=always cargo xtask vm-test --jobs 1 './my scenario'"
        );
        let all = ["vm-test".to_owned()];
        assert_eq!(
            accepting(&all, &["one", "two", "one"]),
            "INSTA_UPDATE=always cargo xtask vm-test one two"
        );
        assert!(is_yes("Y\n") && is_yes("yes") && !is_yes("") && !is_yes("no"));
    }
}
