//! left4me as a user of the harness: where its scenarios are, and which of its programs they deploy.

use anyhow::Result;
use vm_tests::workspace::{Package, Workspace};

/// What a host gets.
const PACKAGES: &[Package] = &[
    Package { name: "left4me-helper", binaries: &["left4me-overlay"] },
    Package { name: "left4me-ctl", binaries: &["l4d2ctl"] },
];

/// The workspace that this is run in.
pub(crate) fn workspace() -> Result<Workspace> {
    let found = Workspace::find(env!("CARGO_MANIFEST_DIR"))?;
    let (scenarios, images) = (found.root.join("vm-tests/scenarios"), found.root.join("vm-tests/images"));
    let shipped = vec![found.root.join("deploy/files")];
    Ok(Workspace { scenario_roots: vec![scenarios], images, packages: PACKAGES, shipped, ..found })
}

#[cfg(test)]
mod tests {
    // By its path: a suite that includes this file has no such tests, and would import for nothing.
    #[test]
    fn every_scenarios_manifest_is_right() {
        let scenarios = super::workspace()
            .expect("the workspace")
            .scenarios(&[])
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(scenarios.len() > 40, "{} scenarios", scenarios.len());
    }

    #[test]
    fn the_costs_by_which_the_suite_is_divided_can_be_read() {
        let roots = super::workspace().expect("the workspace").scenario_roots;
        let costs = vm_tests::run::costs::Costs::load(&roots).expect("costs.toml");
        assert!(costs.of("trixie", "5eac51a").is_some(), "{costs:?}");
    }
}
