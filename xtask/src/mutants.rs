//! `cargo xtask check --mutants`: proves that the tests notice. Each mutant is one change that must turn something red; it is
//! made in a copy of the checkout, and the tests that must notice it run there.
//!
//! The copy is in `target/mutants`, with a target directory of its own that is kept, so a mutant costs only what it changes.
//! Guest images are the checkout's own. The checkout itself never contains a mutant.
//!
//! A mutant in code that deletes must not run on the host: it names scenarios, or tests that run where everything else is
//! read-only.
//!
//! First everything runs without a change: a test that is red by itself proves nothing. A mutant that does not compile, a
//! missing test and a failing machine are no result, never a caught mutant.

mod place;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use vm_tests::scenario::WrongInput;

use place::{Outcome, Place, Run};

use crate::exit::{FAILED, INFRASTRUCTURE, PASSED};

/// One change that must be noticed.
#[derive(Debug)]
struct Mutant {
    /// What is wrong with it, in words with dashes.
    name: &'static str,
    /// In which file, from the root of the checkout.
    file: &'static str,
    change: Change,
    /// What has to go red, each by itself. None: nothing is known that does, which is a finding.
    red: &'static [Run],
}

#[derive(Debug)]
enum Change {
    /// `find`, which is there exactly once, becomes `replace`.
    Replace { find: &'static str, replace: &'static str },
    /// The file is not there.
    Delete,
}

const fn on_trixie(scenario: &'static str) -> Run {
    Run::Vm { image: "trixie", scenario }
}

const fn on_sid(scenario: &'static str) -> Run {
    Run::Vm { image: "sid", scenario }
}

/// A test of the built helper on the machine's own kernel.
macro_rules! native {
    ($test:literal) => {
        Run::Cargo(&["-p", "left4me-helper", "--test", "native", $test])
    };
}

const OVERLAY_UNIT: &str = "deploy/files/usr/local/lib/systemd/system/left4me-overlay@.service";
const UNIT: &str = "deploy/files/usr/local/lib/systemd/system/left4me-server@.service";
const WATCHER: &str = "vm-tests/agent/src/record/watcher.rs";
const UNMOUNTS: &str = "vm-tests/agent/src/record/watcher/unmounts.rs";

const MUTANTS: &[Mutant] = &[
    // A server that gets out of its sandbox, or to another server, is what these are for.
    Mutant {
        name: "unit-without-no-new-privileges",
        file: UNIT,
        change: Change::Replace { find: "NoNewPrivileges=yes\n", replace: "" },
        red: &[on_trixie("product-sandbox")],
    },
    Mutant {
        name: "unit-without-protect-system",
        file: UNIT,
        change: Change::Replace { find: "ProtectSystem=strict\n", replace: "" },
        red: &[on_trixie("product-sandbox")],
    },
    Mutant {
        name: "unit-with-capabilities",
        file: UNIT,
        change: Change::Replace {
            find: "CapabilityBoundingSet=\nAmbientCapabilities=\nPrivateUsers=yes\n",
            replace: "",
        },
        red: &[on_trixie("product-sandbox")],
    },
    Mutant {
        name: "helper-stays-in-the-mount",
        file: "helper/src/main.rs",
        change: Change::Replace {
            find: "rustix::process::chdir(\"/\")",
            replace: "Ok::<(), rustix::io::Errno>(())",
        },
        red: &[native!("a_mount_and_an_unmount")],
    },
    Mutant {
        name: "helper-unmounts-lazily",
        file: "helper/src/overlay.rs",
        change: Change::Replace {
            find: "UnmountFlags::NOFOLLOW) {",
            replace: "UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {",
        },
        red: &[on_trixie("holder-outside")],
    },
    Mutant {
        name: "helper-calls-busy-a-success",
        file: "helper/src/error.rs",
        change: Change::Replace {
            find: "            Self::Mount { .. }\n            | Self::Busy { .. }\n",
            replace: "            Self::Busy { .. } => 0,\n            Self::Mount { .. }\n",
        },
        red: &[on_trixie("holder-outside"), native!("an_outsider_is_named_at_once")],
    },
    Mutant {
        name: "reset-goes-on-while-it-is-mounted",
        file: "ctl/src/control/stop.rs",
        change: Change::Replace {
            find: "        if !self.report.still_mounted.is_empty() {\n            return Err(self.left_mounted(&stop, \" and nothing",
            replace: "        if false {\n            return Err(self.left_mounted(&stop, \" and nothing",
        },
        // On a machine purge() refuses it once more.
        red: &[Run::Cargo(&["-p", "left4me-ctl", "--lib", "control::"])],
    },
    Mutant {
        name: "reset-deletes-after-a-cancelled-stop",
        file: "ctl/src/control/stop.rs",
        change: Change::Replace {
            find: "        if let Some(refused) = stop.refused {\n            // A server can run",
            replace: "        if let Some(refused) = stop.refused.clone().filter(|_| false) {\n            // A server can run",
        },
        red: &[
            Run::Cargo(&["-p", "left4me-ctl", "--lib", "control::"]),
            on_trixie("product-reset-cancelled"),
        ],
    },
    Mutant {
        name: "a-job-ends-by-anybodys-word",
        file: "ctl/src/systemd/job.rs",
        change: Change::Replace {
            find: "    one == other\n",
            replace: "    one == other || other.is_some()\n",
        },
        red: &[Run::Cargo(&["-p", "left4me-ctl", "--lib", "job::"])],
    },
    Mutant {
        name: "helper-waits-for-nobody",
        file: "helper/src/overlay.rs",
        change: Change::Replace {
            find: "    unit_end::wait(server, wait, began, note);\n",
            replace: "    let _ = (server, &mut *note);\n",
        },
        // Not overlay-unit-32-bit: on one processor the game's end may be over before systemd runs again, which each build
        // decides anew.
        red: &[
            native!("a_large_server_that_is_just_ending_is_waited_for"),
            on_trixie("5eac51a-heavy"),
            // One reset may come when the game has ended already; not 27 of them.
            on_sid("xtask/tests/many-resets"),
        ],
    },
    Mutant {
        name: "runtime-is-open-to-others",
        file: "helper/src/overlay.rs",
        change: Change::Replace { find: "RUNTIME_MODE: u32 = 0o710;", replace: "RUNTIME_MODE: u32 = 0o755;" },
        red: &[
            native!("nobody_else_can_hold_the_lock_or_stand_in_the_mount"),
            on_trixie("product-neighbours"),
        ],
    },
    Mutant {
        name: "servers-share-their-queues",
        file: UNIT,
        change: Change::Replace { find: "PrivateIPC=yes\n", replace: "" },
        red: &[on_trixie("product-neighbours")],
    },
    Mutant {
        name: "servers-share-dev-shm",
        file: UNIT,
        change: Change::Replace {
            find: "TemporaryFileSystem=/dev/shm:rw,nosuid,nodev,mode=1777,size=256M\n",
            replace: "",
        },
        red: &[on_trixie("product-neighbours")],
    },
    Mutant {
        name: "overlay-is-unmounted-by-exec-stop",
        file: OVERLAY_UNIT,
        change: Change::Replace { find: "ExecStopPost=/usr", replace: "ExecStop=/usr" },
        red: &[on_trixie("overlay-unit")],
    },
    Mutant {
        name: "overlay-has-the-servers-environment",
        file: OVERLAY_UNIT,
        change: Change::Replace {
            find: "RemainAfterExit=yes\n",
            replace: "RemainAfterExit=yes\nEnvironmentFile=-/var/lib/left4me/instances/%i.env\n",
        },
        red: &[on_trixie("product-environment")],
    },
    Mutant {
        name: "purge-follows-links-and-crosses-mounts",
        file: "helper/src/tree.rs",
        change: Change::Replace {
            find: "resolve: ResolveFlags::NO_XDEV.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::BENEATH),",
            replace: "resolve: ResolveFlags::empty(),",
        },
        red: &[Run::Cargo(&["-p", "left4me-helper", "--test", "tree"])],
    },
    Mutant {
        name: "holders-sees-no-threads",
        file: "holders/src/walk.rs",
        change: Change::Replace {
            find: "        if !self.keeper.denied {\n            self.other_threads(leader, pid, Met {",
            replace: "        if false {\n            self.other_threads(leader, pid, Met {",
        },
        red: &[Run::Cargo(&["-p", "holders", "--test", "planted", "thread-cwd"])],
    },
    Mutant {
        name: "scenario-without-durations",
        file: "vm-tests/scenarios/5eac51a/durations.toml",
        change: Change::Delete,
        red: &[on_trixie("5eac51a")],
    },
    Mutant {
        name: "recorder-drops-mount-changes",
        file: UNMOUNTS,
        change: Change::Replace {
            find: "            point.sink.send(at, change);\n",
            replace: "            drop(change);\n",
        },
        red: &[on_trixie("5eac51a"), on_trixie("mount-unit-own")],
    },
    Mutant {
        name: "recorder-does-not-trace",
        file: WATCHER,
        change: Change::Replace {
            find: "trace: or_lost(UmountTrace::open(), \"tracefs\", &sink),",
            replace: "trace: None,",
        },
        red: &[on_trixie("5eac51a"), on_trixie("mount-unit-own")],
    },
    Mutant {
        name: "recorder-takes-any-umount-for-the-mounts",
        file: UNMOUNTS,
        change: Change::Replace {
            find: "path.filter(|_| !is_before_exec(&comm))",
            replace: "path.filter(|_| false)",
        },
        red: &[on_trixie("mount-unit-busy-elsewhere")],
    },
];

/// What came of a mutant.
#[derive(Debug, PartialEq, Eq)]
enum Verdicts {
    Caught(Vec<String>),
    Survived(Vec<String>),
    Nothing(String),
}

/// Runs the mutants of these names, all if there is none, and prints a line for each. Not caught is 1, no result 69.
///
/// # Errors
/// A name that there is not; a copy that can't be made; an interrupt.
pub(crate) async fn run(names: &[String]) -> Result<u8> {
    let mutants = chosen(names)?;
    let place = Place::prepare().await?;
    let runs: BTreeSet<Run> = mutants.iter().flat_map(|mutant| mutant.red).copied().collect();

    eprintln!("mutants: everything without a change, in {}", place.tree.display());
    place.sync()?;
    let without = place.run_all(&runs, "unchanged").await?;
    let mut is_green = true;
    for (run, outcome) in &without {
        if let Outcome::Red | Outcome::Nothing(_) = outcome {
            println!("unchanged: {} is {}", run.words(), outcome.words());
            is_green = false;
        }
    }
    if !is_green {
        println!("mutants: what is not green without a change proves nothing: see {}", place.logs.display());
        return Ok(INFRASTRUCTURE);
    }

    let (mut survived, mut without_result) = (0, 0);
    for mutant in &mutants {
        let begun = Instant::now();
        eprintln!("mutants: {}", mutant.name);
        let verdict = match mutant.apply(&place.tree) {
            Ok(original) => {
                let outcomes = place.run_all(&mutant.red.iter().copied().collect(), mutant.name).await;
                place.restore(mutant.file, &original)?;
                verdict(&outcomes?)
            }
            Err(error) => Verdicts::Nothing(format!("it does not apply: {error:#}")),
        };
        let secs = begun.elapsed().as_secs();
        match verdict {
            Verdicts::Caught(by) => println!("{}: caught by {} ({secs} s)", mutant.name, by.join(", ")),
            Verdicts::Survived(_) if mutant.red.is_empty() => {
                println!("{}: NOT CAUGHT: nothing is known that would", mutant.name);
                survived += 1;
            }
            Verdicts::Survived(of) => {
                println!("{}: NOT CAUGHT by {} ({secs} s)", mutant.name, of.join(", "));
                survived += 1;
            }
            Verdicts::Nothing(why) => {
                println!("{}: no result: {why}", mutant.name);
                without_result += 1;
            }
        }
    }
    let caught = mutants.len() - survived - without_result;
    println!("{caught} caught, {survived} not caught, {without_result} without a result");
    Ok(match (survived, without_result) {
        (0, 0) => PASSED,
        (0, _) => INFRASTRUCTURE,
        _ => FAILED,
    })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Mutant>> {
    for name in names {
        let known: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        if !known.contains(&name.as_str()) {
            return Err(WrongInput::new(format!("no mutant {name}: there are {}", known.join(", "))).into());
        }
    }
    let is_chosen = |mutant: &&Mutant| names.is_empty() || names.iter().any(|name| name == mutant.name);
    Ok(MUTANTS.iter().filter(is_chosen).collect())
}

/// Each of what has to go red does, or the mutant has survived. What has no result decides only where nothing is green.
fn verdict(outcomes: &[(Run, Outcome)]) -> Verdicts {
    let with = |wanted: &Outcome| -> Vec<String> {
        outcomes.iter().filter(|(_, outcome)| outcome == wanted).map(|(run, _)| run.words()).collect()
    };
    let (green, red) = (with(&Outcome::Green), with(&Outcome::Red));
    if !green.is_empty() || outcomes.is_empty() {
        return Verdicts::Survived(green);
    }
    let nothing = outcomes.iter().find_map(|(run, outcome)| match outcome {
        Outcome::Nothing(why) => Some(format!("{}: {why}", run.words())),
        Outcome::Green | Outcome::Red => None,
    });
    nothing.map_or(Verdicts::Caught(red), Verdicts::Nothing)
}

impl Mutant {
    /// Makes the change in a tree; returns what the file was.
    fn apply(&self, tree: &Path) -> Result<String> {
        let path = tree.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        match self.change {
            Change::Delete => {
                fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))?;
            }
            Change::Replace { .. } => {
                let changed = self.changed(&text)?;
                fs::write(&path, changed).with_context(|| format!("write {}", path.display()))?;
            }
        }
        Ok(text)
    }

    /// The file's text with the change in it.
    fn changed(&self, text: &str) -> Result<String> {
        let Change::Replace { find, replace } = self.change else { bail!("it deletes {}", self.file) };
        match text.matches(find).count() {
            1 => Ok(text.replacen(find, replace, 1)),
            times => bail!("{} has {find:?} {times} times, and it has to be there once", self.file),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use crate::left4me;

    use super::place::tests_passed;
    use super::*;

    /// A change of the code that takes a mutant's place away is noticed here, and not before a release.
    #[test]
    fn every_mutant_applies_and_what_has_to_notice_it_is_there() {
        let checkout = left4me::workspace().expect("the checkout").root;
        let mut names = BTreeSet::new();
        for mutant in MUTANTS {
            assert!(names.insert(mutant.name), "{} is there twice", mutant.name);
            let path = checkout.join(mutant.file);
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if let Change::Replace { .. } = mutant.change {
                let changed =
                    mutant.changed(&text).unwrap_or_else(|error| panic!("{}: {error}", mutant.name));
                assert_ne!(changed, text, "{}", mutant.name);
            }
            for run in mutant.red {
                if let Run::Vm { scenario, .. } = run {
                    // A name, or a path.
                    let below = if scenario.contains('/') { "" } else { "vm-tests/scenarios" };
                    let manifest = checkout.join(below).join(scenario).join("scenario.toml");
                    assert!(manifest.is_file(), "{}: there is no {}", mutant.name, manifest.display());
                }
            }
        }
    }

    #[test]
    fn a_mutant_is_caught_by_all_that_have_to() {
        let (one, other) = (on_trixie("one"), Run::Cargo(&["other"]));
        let nothing = || Outcome::Nothing("no machine".to_owned());
        let words = |runs: &[Run]| runs.iter().map(Run::words).collect::<Vec<_>>();
        let cases = [
            (vec![(one, Outcome::Red), (other, Outcome::Red)], Verdicts::Caught(words(&[one, other]))),
            (vec![(one, Outcome::Red), (other, Outcome::Green)], Verdicts::Survived(words(&[other]))),
            (vec![(one, nothing()), (other, Outcome::Green)], Verdicts::Survived(words(&[other]))),
            (
                vec![(one, nothing()), (other, Outcome::Red)],
                Verdicts::Nothing("trixie/one: no machine".to_owned()),
            ),
            (vec![], Verdicts::Survived(Vec::new())),
        ];
        for (outcomes, expected) in cases {
            assert_eq!(verdict(&outcomes), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn a_change_is_made_where_it_is_meant_and_nowhere_else() {
        let mutant =
            Mutant { name: "x", file: "x", change: Change::Replace { find: "a\n", replace: "" }, red: &[] };
        assert_eq!(mutant.changed("a\nb\n").expect("once"), "b\n");
        for text in ["b\n", "a\na\n"] {
            let error = mutant.changed(text).expect_err("not once").to_string();
            assert!(error.contains("has to be there once"), "{error}");
        }
    }

    #[test]
    fn tests_are_counted_by_either_harness() {
        let output = "running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n\
                      \n     test result: ok. 3 passed; 0 failed; 0 ignored";
        assert_eq!(tests_passed(output), 3);
        assert_eq!(tests_passed("test result: FAILED. 2 passed; 1 failed"), 0);
    }

    #[test]
    fn the_copy_is_what_the_checkout_is_and_keeps_what_is_the_same() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let (from, tree) = (scratch.path().join("from"), scratch.path().join("tree"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        write(from.join("a/same"), "same");
        write(from.join("a/changed"), "new");
        std::os::unix::fs::symlink("same", from.join("a/link")).expect("symlink");
        let files = ["a/same", "a/changed", "a/link"].map(PathBuf::from).into();
        write(tree.join("a/same"), "same");
        write(tree.join("a/changed"), "old");
        write(tree.join("a/of-a-mutant"), "");
        write(tree.join("target/built"), "");
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::options()
            .append(true)
            .open(tree.join("a/same"))
            .expect("open")
            .set_modified(old)
            .expect("time");
        let place = Place {
            from,
            tree: tree.clone(),
            target: PathBuf::new(),
            logs: PathBuf::new(),
            cache: PathBuf::new(),
            files,
            _ours: None,
        };
        for _again in 0..2 {
            place.sync().expect("sync");
            let text = |path: &str| fs::read_to_string(tree.join(path)).expect(path);
            assert_eq!([text("a/same"), text("a/changed"), text("a/link")], ["same", "new", "same"]);
            assert!(!tree.join("a/of-a-mutant").exists());
            assert!(tree.join("target/built").exists());
            let time = tree.join("a/same").metadata().expect("metadata").modified().expect("a time");
            assert_eq!(time, old, "it would be built again");
        }
    }
}
