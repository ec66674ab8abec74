//! Tests that take root or namespaces of their own, as trials of libtest-mimic: one that can't run here is reported as
//! ignored, with the reason. A `#[test]` can only pass or fail.
//!
//! Such a test is a function that runs in a second process, which is this same program started by unshare(1) in a mount
//! and a PID namespace of its own. Its processes are gone afterwards, and so is what it has mounted.

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

/// Names the function that a process is to run in place of the trials.
pub(crate) const INSIDE: &str = "LEFT4ME_TEST_INSIDE";

/// A test that runs in namespaces of its own.
pub(crate) struct Test {
    name: &'static str,
    run: Box<dyn Fn() + Send>,
    /// Why it can't run here. Asked where it is to be run, and not in the process that runs it.
    why_not: Box<dyn Fn() -> WhyNot>,
}

/// Why a test can't run on this machine, if it can't.
pub(crate) type WhyNot = Option<&'static str>;

impl Test {
    pub(crate) fn new(
        name: &'static str,
        run: impl Fn() + Send + 'static,
        why_not: impl Fn() -> WhyNot + 'static,
    ) -> Self {
        Self { name, run: Box::new(run), why_not: Box::new(why_not) }
    }

    fn trial(&self) -> Trial {
        let name = self.name;
        let trial = Trial::test(name, move || {
            let output = unshare().arg(own_program()).env(INSIDE, name).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                let more = String::from_utf8_lossy(&output.stdout);
                return Err(Failed::from(format!("{}\n{more}{said}", output.status)));
            }
            // What it has counted or measured.
            eprint!("{said}");
            Ok(())
        });
        match (self.why_not)() {
            // Printed before the name, as `[reason] name ... ignored`.
            Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
            None => trial,
        }
    }
}

/// What a test program does: its trials, or, as a process that one of them has started, what [`INSIDE`] names: a test, or
/// one of `programs`. `plain` are trials that take nothing.
pub(crate) fn main(tests: &[Test], programs: &[(&str, fn())], plain: Vec<Trial>) -> ExitCode {
    if let Some(wanted) = std::env::var_os(INSIDE) {
        let test = tests.iter().find(|test| test.name == wanted).map(|test| &test.run);
        let program = programs.iter().find(|(name, _)| *name == wanted).map(|(_, run)| run);
        match (test, program) {
            (Some(run), _) => run(),
            (None, Some(run)) => run(),
            (None, None) => panic!("{INSIDE}: there is no {}", wanted.display()),
        }
        return ExitCode::SUCCESS;
    }
    let trials = tests.iter().map(Test::trial).chain(plain).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The name of a function: `module::function`, without the program's.
pub(crate) fn name_of<F>() -> &'static str {
    std::any::type_name::<F>().split_once("::").expect("a function's whole name").1
}

fn own_program() -> std::path::PathBuf {
    std::env::current_exe().expect("our own program")
}

#[expect(clippy::disallowed_methods, reason = "a short program, waited for by the test that starts it")]
pub(crate) fn unshare() -> Command {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args([
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "--propagation",
        "private",
        "--",
    ]);
    unshare
}
