//! The house's rules, which no compiler checks: no circle of files within a crate, arrows between crates that run one way,
//! no file that is too long to be read, and no sleep by another name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// A file of code is one screenful of ideas: what is longer has a second subject. Tests are tables, and may be longer.
const MOST_LINES: usize = 600;

/// Longer files that stay, each with its reason.
const LONG: &[(&str, &str)] =
    &[("holders/examples/fixture/cases.rs", "one table of 75 ways to hold a mount, a function each")];

/// The workspace's crates, and which of the others each may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("xtask", &["vm-tests", "vm-tests/agent", "vm-tests/perturb", "holders", "deployer"]),
    ("vm-tests", &["vm-tests/agent", "vm-tests/perturb", "holders"]),
    ("vm-tests/perturb", &[]),
    ("vm-tests/agent", &["holders", "systemd-bus"]),
    ("holders", &[]),
    ("systemd-bus", &[]),
    ("deployer", &[]),
    ("helper", &["holders"]),
    ("ctl", &["helper", "holders", "systemd-bus"]),
    ("web/broker", &["ctl", "helper", "holders", "systemd-bus"]),
    ("web", &["web/broker", "ctl", "helper"]),
];

#[test]
fn no_file_is_too_long() {
    let mut wrong = Vec::new();
    let mut long = BTreeSet::new();
    for member in members() {
        for file in sources(&root().join(&member)) {
            let shown = file.strip_prefix(root()).expect("below the root").display().to_string();
            let lines = read(&file).lines().count();
            if lines > MOST_LINES {
                long.insert(shown.clone());
                if !LONG.iter().any(|(excused, _why)| *excused == shown) {
                    wrong.push(format!("{shown} has {lines} lines, more than {MOST_LINES}"));
                }
            }
        }
    }
    let over = LONG.iter().filter(|(file, _why)| !long.contains(*file));
    wrong.extend(over.map(|(file, _why)| format!("{file} is not too long any more: take it off the list")));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    for member in members() {
        let circles = circles(&imports(&modules(&root().join(&member).join("src"))));
        wrong.extend(circles.iter().map(|circle| format!("{member}: {circle}")));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn arrows_between_crates_run_one_way() {
    let names: BTreeMap<String, String> =
        members().into_iter().map(|member| (package(&manifest(&member)), member)).collect();
    let mut wrong = Vec::new();
    for member in names.values() {
        let Some((_, may)) = ARROWS.iter().find(|(from, _)| from == member) else {
            wrong.push(format!("{member}: say in ARROWS which crates it may depend on"));
            continue;
        };
        let on = dependencies(&manifest(member)).into_iter().filter_map(|name| names.get(&name).cloned());
        wrong.extend(
            on.filter(|on| !may.contains(&on.as_str())).map(|on| format!("{member} must not depend on {on}")),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// What of nix may be named, and why not rustix, which makes all other system calls. What goes onto a host has rustix alone.
const NIX: &[(&str, &str)] = &[
    ("nix::errno::Errno", "rustix has no names of errnos"),
    ("nix::Result", "with that errno"),
    ("nix::sys::signal", "rustix has no names of signals"),
    ("nix::unistd::Pid", "whom nix sends a signal"),
    ("nix::unistd::User", "rustix does not read /etc/passwd"),
    ("nix::unistd::Uid", "whom nix looks up there"),
    ("nix::unistd::Group", "rustix does not read /etc/group"),
    ("nix::unistd::Gid", "what nix looks up there"),
    ("nix::sys::wait", "rustix tells nothing of a traced process"),
    ("nix::sys::ptrace", "rustix has none"),
    ("nix::sys::signalfd", "rustix has none"),
    ("nix::sys::socket", "rustix has no groups of the proc connector"),
    ("nix::sys::inotify", "rustix gives the events' bytes"),
    ("nix::sys::resource", "rustix has no getrusage"),
    ("nix::sys::time", "the times in what that returns"),
    ("nix::kmod", "rustix has none"),
    ("nix::unistd::fork", "rustix has none"),
    ("nix::unistd::ForkResult", "what it returns"),
    ("nix::unistd::execv", "of rustix an experiment"),
    ("nix::unistd::alarm", "rustix has none"),
    ("nix::libc", "constants and structures of the kernel"),
    ("nix::ioctl_write_ptr", "rustix owns what it writes, this has a tail"),
];

#[test]
fn nix_does_what_rustix_does_not() {
    let mut wrong = Vec::new();
    for member in members() {
        let text = manifest(&member);
        let shipped = text.split("[dev-dependencies]").next().unwrap_or_default();
        if ["deployer", "holders", "helper", "ctl", "web", "web/broker"].contains(&member.as_str())
            && dependencies(shipped).contains(&"nix".to_owned())
        {
            wrong.push(format!("{member} goes onto a host: it has rustix"));
        }
        for file in sources(&root().join(&member)) {
            let named: BTreeSet<String> = paths(&code(&read(&file))).into_iter().collect();
            let is_known = |path: &String| NIX.iter().any(|(known, _why)| path.starts_with(known));
            let shown = file.strip_prefix(root()).expect("below the root").display();
            let unknown = named.iter().filter(|path| path.starts_with("nix::") && !is_known(path));
            wrong.extend(unknown.map(|path| format!("{shown}: {path}")));
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "rustix has it; or say in NIX why not");
}

/// Nothing to wait for but the clock: `clippy.toml` knows the sleeps, and not these.
#[test]
fn nobody_sleeps_by_another_name() {
    let mut wrong = Vec::new();
    for file in members().iter().flat_map(|member| sources(&root().join(member))) {
        let code = code(&read(&file)).replace([' ', '\n'], "");
        let pending =
            code.match_indices("timeout(").map(|(at, _)| code[at..].split(';').next().unwrap_or_default());
        if code.contains("poll(&mut[],") || pending.into_iter().any(|wait| wait.contains("pending")) {
            wrong.push(file.strip_prefix(root()).expect("below the root").display().to_string());
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "wait for an event, or say that it is a sleep");
}

#[test]
fn circles_are_found() {
    let files = [
        ("", "pub mod a;\npub mod b;\nuse a::x;\n"),
        ("a", "use crate::{\n    b::{self, y},\n    c,\n};\n"),
        ("b", "fn f() { crate::c::g() }\n\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n"),
        ("c", "mod d;\n// crate::a\npub use d::g;\n"),
        ("c::d", "use super::super::b;\n"),
    ];
    let files = files.map(|(module, text)| (module_of(module), text.to_owned())).into();
    assert_eq!(circles(&imports(&files)), ["b -> c -> c::d -> b"]);
}

#[test]
fn dependencies_are_read() {
    let text = "[package]\nname = \"one\"\n[dependencies]\ntwo.workspace = true\nthree = { path = \"x\" }\n\
                [features]\nfour = []\n[dev-dependencies]\nfive = \"1\"\n";
    assert_eq!(package(text), "one");
    assert_eq!(dependencies(text), ["two", "three", "five"]);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package lies in its workspace")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn manifest(member: &str) -> String {
    read(&root().join(member).join("Cargo.toml"))
}

/// The workspace's crates, by their directories.
fn members() -> Vec<String> {
    let text = manifest("");
    let list = text.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).expect("members");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn package(manifest: &str) -> String {
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = "));
    name.expect("a name").trim_matches('"').to_owned()
}

/// Of all kinds: a test that needs a crate above is an arrow, too.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            names.push(name.to_owned());
        }
    }
    names.retain(|name| !name.is_empty() && !name.starts_with('#'));
    names
}

/// The Rust files of a crate, without another crate below it and without tests.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("list a crate") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if !path.join("Cargo.toml").exists() && !["target", "tests"].contains(&name.as_str()) {
                files.extend(sources(&path));
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A module's path; the crate's root has none.
type Module = Vec<String>;

fn module_of(path: &str) -> Module {
    path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The modules of a crate with their text. A binary beside a library is a crate of its own.
fn modules(src: &Path) -> BTreeMap<Module, String> {
    let has_library = src.join("lib.rs").exists();
    let mut modules = BTreeMap::new();
    for file in sources(src) {
        let path = file.strip_prefix(src).expect("below src").with_extension("");
        let mut module: Module = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let is_root = module.len() == 1 && (module == ["lib"] || module == ["main"]);
        if module.first().is_some_and(|first| first == "bin") || (module == ["main"] && has_library) {
            continue;
        }
        if is_root || module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        modules.insert(module, read(&file));
    }
    modules
}

/// Which modules each imports. What the root imports makes no circle: it is where all come from.
fn imports(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut imports: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (module, text) in modules {
        let code = code(text);
        let children: BTreeSet<&str> =
            code.lines().filter_map(|line| line.trim().split_once("mod ")?.1.strip_suffix(';')).collect();
        for path in paths(&code) {
            let parts: Vec<&str> = path.split("::").map(str::trim).collect();
            let above = parts.iter().take_while(|part| **part == "super").count();
            let (from, rest) = match parts.first().copied() {
                Some("crate") => (&[][..], &parts[1..]),
                Some("self") => (&module[..], &parts[1..]),
                Some("super") => (&module[..module.len().saturating_sub(above)], &parts[above..]),
                Some(first) if children.contains(first) => (&module[..], &parts[..]),
                _ => continue,
            };
            let mut to: Module =
                from.iter().cloned().chain(rest.iter().map(|&part| part.to_owned())).collect();
            while !to.is_empty() && !modules.contains_key(&to) {
                to.pop();
            }
            if !to.is_empty() && to != *module {
                imports.entry(module.clone()).or_default().insert(to);
            }
        }
    }
    imports
}

/// A file without its comments and what is for tests alone: an item ends at the indentation at which it began.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("#[cfg(test)]") {
            let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
            let item = lines.by_ref().find(|line| !line.trim_start().starts_with("#["));
            if item.is_some_and(|item| !item.ends_with(';') && !item.ends_with('}')) {
                lines.by_ref().find(|line| line.starts_with(&end));
            }
        } else if !trimmed.starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Every path of two parts or more, those of `use` one by one.
fn paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = String::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let words = line.trim_start();
        match words.split_once("use ") {
            Some((before, tree)) if before.is_empty() || before.starts_with("pub") => {
                let mut tree = tree.to_owned();
                while !tree.contains(';') {
                    tree.push_str(lines.next().unwrap_or(";"));
                }
                expand("", tree.split(';').next().unwrap_or_default(), &mut paths);
            }
            _ => {
                rest.push_str(line);
                rest.push('\n');
            }
        }
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = rest.split(|c| !is_path(c)).map(|word| word.trim_end_matches(':'));
    paths.extend(words.filter(|word| word.contains("::") && !word.starts_with(':')).map(str::to_owned));
    paths
}

/// The paths of a `use` tree.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((before, inside)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return paths.push(format!("{prefix}{path}"));
    };
    let prefix = format!("{prefix}{before}");
    let inside = inside.trim_end().strip_suffix('}').unwrap_or(inside);
    let (mut depth, mut from) = (0_i32, 0);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let one = inside[from..at].trim();
                if !one.is_empty() {
                    expand(&prefix, one, paths);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// The shortest circle through each module, each once, spelled out.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<String> {
    let mut found = BTreeMap::new();
    for start in imports.keys() {
        let mut came_from: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut waiting = VecDeque::from([start]);
        while let Some(at) = waiting.pop_front() {
            for to in imports.get(at).into_iter().flatten() {
                if !came_from.contains_key(to) {
                    came_from.insert(to, at);
                    waiting.push_back(to);
                }
            }
        }
        let Some(mut at) = came_from.get(start).copied() else { continue };
        let mut circle = vec![start.join("::")];
        while at != start {
            circle.push(at.join("::"));
            at = came_from[at];
        }
        circle.push(start.join("::"));
        circle.reverse();
        let members: BTreeSet<String> = circle.iter().cloned().collect();
        found.entry(members).or_insert_with(|| circle.join(" -> "));
    }
    found.into_values().collect()
}
