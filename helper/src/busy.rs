//! Who keeps a mount busy, by the links under `/proc`.
//!
//! A stand-in: the `holders` crate looks at more kinds of reference and says what kind blocks; it replaces
//! [`who_holds`] and nothing else here has to change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Every task with its working directory, root, program, an open file or a mapping at or below `path`, one a line;
/// empty if there is none.
///
/// Links are read and never followed: opening or stat-ing one would take a reference in the mount. A task that ends
/// meanwhile is left out, as it holds nothing any more.
#[must_use]
pub fn who_holds(path: &Path) -> String {
    let mut holders: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for pid in numbers(Path::new("/proc")) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let mut found = Vec::new();
        for name in ["fd", "map_files"] {
            let links = entries(&process.join(name));
            let inside = links.iter().filter(|link| points_into(link, path)).count();
            if inside > 0 {
                found.push(format!("{} ({inside})", if name == "fd" { "open files" } else { "mappings" }));
            }
        }
        for tid in numbers(&process.join("task")) {
            let task = process.join(format!("task/{tid}"));
            for name in ["cwd", "root", "exe"] {
                if points_into(&task.join(name), path) {
                    found.push(if tid == pid { name.to_owned() } else { format!("{name} of thread {tid}") });
                }
            }
        }
        if !found.is_empty() {
            holders.insert(pid, found);
        }
    }
    let mut text = String::new();
    for (pid, found) in holders {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let separator = if text.is_empty() { "" } else { "\n" };
        write!(text, "{separator}  {pid} ({}): {}", comm.trim_end(), found.join(", "))
            .expect("writing to a String cannot fail");
    }
    text
}

fn points_into(link: &Path, path: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.starts_with(path))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn numbers(directory: &Path) -> Vec<u32> {
    entries(directory).iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_an_open_file_and_nothing_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        assert_eq!(who_holds(&path), "");
        let file = fs::File::create(path.join("f")).unwrap();
        let text = who_holds(&path);
        assert!(
            text.contains(&format!("{} (", std::process::id())) && text.contains("open files (1)"),
            "{text}"
        );
        drop(file);
        assert_eq!(who_holds(&path), "");
    }
}
