//! The commands that a manifest has run beside start and reset: how each went, and whether that is as it says. Pure.

use vm_agent::recording::{Event, Step, What};
use vm_agent::wire::Exit;

use super::cycle::{Cycle, Ran};
use super::expect::Deviation;
use super::snapshot::exit_words;
use crate::scenario::{Check, Manifest};

/// Those of a cycle's commands that were run as this step, of the plan's list of them.
pub(super) fn ran<'a>(
    step: Step,
    commands: impl IntoIterator<Item = &'a Vec<String>>,
    events: &[&Event],
) -> Vec<Ran> {
    let commands: Vec<&Vec<String>> = commands.into_iter().collect();
    let ends = events.iter().filter_map(|event| match &event.what {
        What::StepEnds(end) if end.step == step => Some(end),
        _ => None,
    });
    ends.map(|end| Ran {
        index: end.index,
        command: commands.get(end.index as usize).map(|argv| argv.to_vec()).unwrap_or_default(),
        exit: end.exit,
        duration_ns: end.duration_ns,
        stdout: end.stdout.clone(),
        stderr: end.stderr.clone(),
    })
    .collect()
}

/// What is not as the manifest says; empty if all is.
pub(super) fn deviations(cycles: &[Cycle], manifest: &Manifest) -> Vec<Deviation> {
    let of_cycle = |cycle: &Cycle| {
        let mut wrong = Vec::new();
        for (index, during) in (0..).zip(&manifest.during) {
            let words = match cycle.during.iter().find(|ran| ran.index == index) {
                Some(ran) => wrong_exit(ran, during.status),
                None => Some(during.missed()),
            };
            wrong.extend(words.map(|words| format!("during {}: {words}", shown(&during.run))));
        }
        for (what, checks, ran) in [
            ("check", &manifest.check, &cycle.checks),
            ("after the next boot, check", &manifest.boot_check, &cycle.boot_checks),
        ] {
            for (index, check) in (0..).zip(checks) {
                let words = match ran.iter().find(|ran| ran.index == index) {
                    Some(ran) => of_check(ran, check),
                    None => vec!["it was not run".to_owned()],
                };
                wrong.extend(words.into_iter().map(|words| format!("{what} {}: {words}", shown(&check.run))));
            }
        }
        let of_this = |words| Deviation { cycle: Some(cycle.number), words };
        wrong.into_iter().map(of_this).collect::<Vec<_>>()
    };
    cycles.iter().flat_map(of_cycle).collect()
}

fn of_check(ran: &Ran, check: &Check) -> Vec<String> {
    let mut wrong: Vec<String> = wrong_exit(ran, check.status).into_iter().collect();
    let streams = [
        ("stdout", &ran.stdout, &check.stdout, &check.stdout_equals),
        ("stderr", &ran.stderr, &check.stderr, &check.stderr_equals),
    ];
    for (name, text, contains, equals) in streams {
        let is = text.trim_end();
        if let Some(words) = contains.as_ref().filter(|words| !text.contains(words.as_str())) {
            wrong.push(format!("{name} is {is:?}, without {words:?}"));
        }
        if let Some(words) = equals.as_ref().filter(|words| is != words.trim_end()) {
            wrong.push(format!("{name} is {is:?} instead of {:?}", words.trim_end()));
        }
    }
    wrong
}

/// What is wrong with how a command ended, if anything is, with the last line that it wrote.
fn wrong_exit(ran: &Ran, status: i32) -> Option<String> {
    let expected = Some(Exit::Code(status));
    if ran.exit == expected {
        return None;
    }
    let is = ran.exit.map_or_else(|| "no end in time".to_owned(), |exit| exit_words(Some(exit)));
    let said = [&ran.stderr, &ran.stdout].into_iter().find_map(|text| text.trim_end().lines().last());
    let said = said.map(|line| format!(": {line}")).unwrap_or_default();
    Some(format!("{is} instead of {}{said}", exit_words(expected)))
}

/// A command as in a shell, and no more of it than fits in a line.
pub(super) fn shown(command: &[String]) -> String {
    const MOST: usize = 80;
    let line = command.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("`{}…`", line.get(..end).unwrap_or_default()),
        None => format!("`{line}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{clean, recording};
    use super::*;
    use vm_agent::recording::StepEnd;

    fn command(words: &str) -> Vec<String> {
        words.split(' ').map(str::to_owned).collect()
    }

    fn manifest(checks: &str) -> Manifest {
        let head = "description = \"d\"\nunit = \"x.service\"\nmount = \"/m\"\nstart = [\"true\"]\nreset = [\"true\"]\n";
        toml::from_str(&format!("{head}{checks}")).expect("a manifest")
    }

    fn ran(index: u32, exit: Option<Exit>, stdout: &str, stderr: &str) -> Ran {
        let (stdout, stderr) = (stdout.to_owned(), stderr.to_owned());
        Ran { index, command: command("cat /save"), exit, duration_ns: 1, stdout, stderr }
    }

    fn told(cycles: &[Cycle], manifest: &Manifest) -> Vec<String> {
        deviations(cycles, manifest).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_check_of_the_next_boot_is_told_as_such() {
        let manifest = manifest("[[boot_check]]\nrun = [\"cat\", \"/save\"]\n");
        let mut cycle = clean();
        assert_eq!(
            told(&[cycle.clone()], &manifest),
            ["cycle 1: after the next boot, check `cat /save`: it was not run"]
        );
        cycle.boot_checks = vec![ran(0, Some(Exit::Code(1)), "", "no world")];
        let words = "cycle 1: after the next boot, check `cat /save`: exit status 1 instead of exit status 0: no world";
        assert_eq!(told(&[cycle.clone()], &manifest), [words]);
        cycle.boot_checks = vec![ran(0, Some(Exit::Code(0)), "", "")];
        assert_eq!(told(&[cycle], &manifest), [""; 0]);
    }

    #[test]
    fn a_check_says_what_came_and_what_was_meant() {
        let plain = "[[check]]\nrun = [\"cat\", \"/save\"]\n";
        let ok = Some(Exit::Code(0));
        let cases = [
            (plain.to_owned(), ran(0, ok, "world\n", ""), None),
            (
                plain.to_owned(),
                ran(0, Some(Exit::Code(1)), "", "cat: /save: No such file or directory\n"),
                Some("exit status 1 instead of exit status 0: cat: /save: No such file or directory"),
            ),
            (plain.to_owned(), ran(0, None, "", ""), Some("no end in time instead of exit status 0")),
            (
                plain.to_owned(),
                ran(0, Some(Exit::Signal(9)), "", ""),
                Some("signal 9 instead of exit status 0"),
            ),
            (format!("{plain}status = 1"), ran(0, Some(Exit::Code(1)), "", ""), None),
            (
                format!("{plain}status = 1"),
                ran(0, ok, "here\n", ""),
                Some("exit status 0 instead of exit status 1: here"),
            ),
            (format!("{plain}stdout = \"orl\""), ran(0, ok, "world\n", ""), None),
            (format!("{plain}stdout_equals = \"world\""), ran(0, ok, "world\n", ""), None),
            (
                format!("{plain}stdout = \"orl\""),
                ran(0, ok, "moon\n", ""),
                Some("stdout is \"moon\", without \"orl\""),
            ),
            (
                format!("{plain}stdout_equals = \"orl\""),
                ran(0, ok, "world\n", ""),
                Some("stdout is \"world\" instead of \"orl\""),
            ),
            (
                format!("{plain}stderr = \"late\""),
                ran(0, ok, "", ""),
                Some("stderr is \"\", without \"late\""),
            ),
            (
                format!("{plain}stderr_equals = \"\""),
                ran(0, ok, "", "late"),
                Some("stderr is \"late\" instead of \"\""),
            ),
        ];
        for (checks, ran, expected) in cases {
            let cycle = Cycle { checks: vec![ran], ..clean() };
            let expected: Vec<String> =
                expected.iter().map(|words| format!("cycle 1: check `cat /save`: {words}")).collect();
            assert_eq!(told(&[cycle], &manifest(&checks)), expected, "{checks}");
        }
    }

    #[test]
    fn a_check_that_was_not_run_is_a_deviation() {
        let two = "[[check]]\nrun = [\"true\"]\n[[check]]\nrun = [\"cat\", \"/save\"]\n";
        let cycle = Cycle { checks: vec![ran(0, Some(Exit::Code(0)), "", "")], ..clean() };
        let expected = ["cycle 1: check `cat /save`: it was not run"];
        assert_eq!(told(&[cycle], &manifest(two)), expected);
    }

    #[test]
    fn a_command_during_the_reset_must_be_run_and_end_well() {
        let during = "[[during]]\nwhen = \"deactivating\"\nrun = [\"cat\", \"/save\"]\n\
                      [[during]]\nafter_ms = 50\nrun = [\"true\"]\nstatus = 3\n";
        let ok = Some(Exit::Code(0));
        let cycle = Cycle { during: vec![ran(1, ok, "", "")], ..clean() };
        assert_eq!(
            told(&[cycle], &manifest(during)),
            [
                "cycle 1: during `cat /save`: not run, as the unit was not deactivating during the reset",
                "cycle 1: during `true`: exit status 0 instead of exit status 3",
            ]
        );
        let cycle = Cycle { during: vec![ran(0, ok, "", "")], ..clean() };
        let missed = ["cycle 1: during `true`: not run, as the reset was over before 50 ms"];
        assert_eq!(told(&[cycle], &manifest(during)), missed);
    }

    #[test]
    fn what_was_recorded_of_a_check_is_in_the_cycle() {
        let end = |index, step| {
            let (stdout, stderr) = ("out".to_owned(), "err".to_owned());
            What::StepEnds(StepEnd { step, index, exit: Some(Exit::Code(3)), duration_ns: 7, stdout, stderr })
        };
        let mut recording =
            recording(None, [(1, end(0, Step::Reset)), (2, end(0, Step::Check)), (3, end(1, Step::Check))]);
        recording.plan.checks = vec![command("true"), command("cat /save")];
        let events: Vec<&Event> = recording.events.iter().collect();
        let ran = super::ran(Step::Check, &recording.plan.checks, &events);
        let seen: Vec<_> = ran.iter().map(|ran| (ran.index, ran.command.join(" "))).collect();
        assert_eq!(seen, [(0, "true".to_owned()), (1, "cat /save".to_owned())]);
        assert_eq!((&*ran[1].stdout, &*ran[1].stderr, ran[1].exit), ("out", "err", Some(Exit::Code(3))));
    }

    #[test]
    fn a_long_command_is_cut() {
        assert_eq!(shown(&command("test -s /x")), "`test -s /x`");
        let script = ["sh".to_owned(), "-c".to_owned(), format!("\n  one\n  {}", "é".repeat(90))];
        let shown = shown(&script);
        assert!(shown.starts_with("`sh -c one éé") && shown.ends_with("é…`"), "{shown}");
        assert_eq!(shown.chars().count(), 83);
    }
}
