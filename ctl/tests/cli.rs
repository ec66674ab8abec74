//! `l4d2ctl` as a shell sees it: the help text, the pages, and what a wrong command line exits with.

use std::process::Output;

#[path = "../../helper/tests/support/program.rs"]
mod program;

use program::{run, stdout};

#[test]
fn help_of_l4d2ctl() {
    let program = env!("CARGO_BIN_EXE_l4d2ctl");
    insta::assert_snapshot!("l4d2ctl", stdout(&run(program, &["--help"])));
    for verb in ["start", "stop", "status", "doctor"] {
        stdout(&run(program, &[verb, "--help"]));
    }
    for verb in ["create", "destroy", "list", "reset"] {
        insta::assert_snapshot!(format!("l4d2ctl_{verb}"), stdout(&run(program, &[verb, "--help"])));
    }
}

#[path = "../examples/generate.rs"]
#[expect(dead_code, reason = "its main is the example's")]
mod generate;

#[test]
fn the_manual_page_and_the_completions_that_are_shipped_are_those_of_the_program() {
    for (path, content) in generate::files() {
        let shipped = std::fs::read(&path).unwrap_or_default();
        assert!(
            shipped == content,
            "{}: not what the program's command line makes; run `cargo run -p left4me-ctl --example generate`",
            path.display()
        );
    }
}

/// Every page that is shipped, by its name and section as others refer to it.
fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for section in ["1", "8"] {
        for entry in std::fs::read_dir(generate::share().join(format!("man/man{section}"))).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert_eq!(path.extension().unwrap(), section);
            pages.push((format!("{name}({section})"), std::fs::read_to_string(&path).unwrap()));
        }
    }
    pages
}

#[test]
fn every_page_that_is_shipped_refers_to_pages_that_are() {
    let pages = pages();
    assert!(pages.len() >= 10, "{}", pages.len());
    for (page, text) in &pages {
        let headings = text.replace('"', "");
        for part in [".SH NAME", ".SH SYNOPSIS", ".SH EXIT STATUS", ".SH RIGHTS", ".SH SEE ALSO"] {
            assert!(headings.contains(part), "{page} has no {part}");
        }
        let plain = text.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace('\\', "");
        for section in ["(1)", "(8)"] {
            for (at, _) in plain.match_indices(section) {
                let name =
                    plain[..at].rsplit(|one: char| !one.is_alphanumeric() && one != '-').next().unwrap();
                let is_ours = ["l4d2ctl", "left4me"].iter().any(|ours| name.starts_with(ours));
                let named = format!("{name}{section}");
                assert!(!is_ours || pages.iter().any(|(page, _)| *page == named), "{page}: no {named}");
            }
        }
        assert!(!plain.contains("[ID] ") && !plain.contains("[ID]\n"), "{page}: more than one may be named");
    }
}

#[test]
fn usage_errors_of_l4d2ctl() {
    for args in [
        &[][..],
        &["reset"],
        &["reset", "../3"],
        &["status", "3", "--timeout", "0"],
        &["restart", "3"],
        &["stop", "3", "--all"],
        &["create", "../3"],
        &["create", "3", "--port", "x"],
        &["destroy"],
    ] {
        assert_eq!(run(env!("CARGO_BIN_EXE_l4d2ctl"), args).status.code(), Some(2), "{args:?}");
    }
}

/// Without systemd, so that nothing can begin, and with stdout and stderr where the caller wants them.
#[expect(clippy::disallowed_methods, reason = "a short-lived program of this package, waited for at once")]
fn l4d2ctl_alone(args: &[&str], stdout: std::process::Stdio, stderr: std::process::Stdio) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_l4d2ctl"))
        .args(args)
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("the binary was built for this test")
}

#[test]
fn json_is_printed_also_if_nothing_could_begin() {
    use std::process::Stdio;
    // Some have no instance on a machine without left4me, and a list of them on another.
    for args in [
        &["status", "3"][..],
        &["start", "3", "4"],
        &["reset", "3"],
        &["doctor", "3"],
        &["doctor"],
        &["stop", "--all"],
        &["destroy", "3", "--yes"],
        &["list"],
    ] {
        let args = [args, &["--json"]].concat();
        let output = l4d2ctl_alone(&args, Stdio::piped(), Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let one = json.as_object().map_or_else(|| json[0].clone(), |_| json.clone());
        assert_eq!(one["schema_version"], 1, "{args:?}: {json}");
        assert!(one["error"].is_string(), "{args:?}: {json}");
        let is_one = args.contains(&"3") && !args.contains(&"4");
        assert_eq!(json.is_object(), is_one, "{args:?}: {json}");
    }
}

#[test]
fn what_cannot_be_printed_is_status_1_and_no_panic() {
    use std::process::Stdio;
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let unread = || Stdio::from(std::io::pipe().unwrap().1);
    for args in [
        &["status", "3"][..],
        &["status", "3", "--json"],
        &["status"],
        &["status", "--json"],
        &["stop", "3", "4"],
        &["doctor", "3"],
        &["doctor", "--json"],
        &["create", "3"],
        &["destroy", "3", "--yes", "--json"],
        &["list"],
        &["list", "--json"],
        &["--help"],
    ] {
        for stdout in [full(), unread()] {
            let output = l4d2ctl_alone(args, stdout, Stdio::piped());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
        assert_eq!(l4d2ctl_alone(args, full(), full()).status.code(), Some(1), "{args:?}");
    }
}
