//! Flags and help.

use clap::{Parser, Subcommand};

use crate::{
    bench, check, costs, deploy, dist, doctor, explore, image, new, page_test, programs, report, repro,
    shell, vm_test, watch, why,
};

/// Tests left4me's units in virtual machines with systemd, and checks and measures this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 passed, 1 failed, 2 wrong usage, 69 no result (a tool, the machine or the \
                        harness failed), 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    New(new::NewArgs),
    VmTest(vm_test::VmTestArgs),
    Watch(watch::WatchArgs),
    Why(why::WhyArgs),
    Report(report::ReportArgs),
    Repro(repro::ReproArgs),
    Costs(costs::CostsArgs),
    Explore(explore::ExploreArgs),
    Shell(shell::ShellArgs),
    Image(image::ImageArgs),
    Programs(programs::ProgramsArgs),
    Dist(dist::DistArgs),
    Deploy(deploy::DeployArgs),
    Doctor(doctor::DoctorArgs),
    PageTest(page_test::PageTestArgs),
    Check(check::CheckArgs),
    Bench(bench::BenchArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_flag_is_still_taken_by_the_name_that_it_had() {
        for flag in ["--image", "--suite"] {
            let parsed = Cli::try_parse_from(["cargo xtask", "image", flag, "sid"]);
            assert!(parsed.is_ok(), "{flag}: {:?}", parsed.err());
        }
        let help = Cli::try_parse_from(["cargo xtask", "image", "--help"]).expect_err("help").to_string();
        assert!(help.contains("--image") && !help.contains("--suite"), "{help}");
    }

    /// What scripts type on their way to servers does not change by the way.
    #[test]
    fn the_help_of_deploy() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let deploy = command.find_subcommand_mut("deploy").expect("deploy");
        insta::assert_snapshot!(deploy.render_long_help().to_string());
    }

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }
}
