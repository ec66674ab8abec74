//! Compares a run's text with its snapshot by insta, which shows how they differ, and accepts what `INSTA_UPDATE` says.

use std::panic::AssertUnwindSafe;

use anyhow::Result;

use super::guest::Guest;
use crate::judge::Judgement;
use crate::judge::baselines::Baselines;
use crate::scenario::Scenario;

/// Takes from the judgement what is accepted.
pub(super) fn accept(guest: &Guest, scenario: &Scenario, judgement: &mut Judgement) -> Result<()> {
    let accepting = std::env::var("INSTA_UPDATE").is_ok_and(|how| how == "always" || how == "force");
    let outcome = &mut judgement.outcome;
    if !outcome.redundant {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&scenario.directory);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.set_description(scenario.manifest.description.clone());
        let name = if accepting { &outcome.accepted } else { &outcome.compared };
        // Nothing that a failed comparison leaves half done is looked at again.
        let compare =
            AssertUnwindSafe(|| settings.bind(|| insta::assert_snapshot!(name.clone(), &outcome.text)));
        if std::panic::catch_unwind(compare).is_ok() {
            outcome.mismatch = None;
        }
    }
    if let Some(measured) = judgement.measured.filter(|_| accepting && !judgement.durations.is_empty()) {
        Baselines::load(&scenario.directory, &guest.name, guest.base.clock)?.accept_durations(&measured)?;
        judgement.durations.clear();
    }
    Ok(())
}
