//! The plan of a mount, and what an option string can hold.

use super::*;
use crate::instance::{Instance, STATE_DIR};
use crate::layers;
use crate::state::StateDir;

fn plan_for(id: &str, file: &str) -> Result<MountPlan, HelperError> {
    let state = Path::new(STATE_DIR);
    let paths = id.parse::<Instance>().unwrap().paths(state);
    plan(&paths, layers::lower(&layers::parse(file, &paths.file).unwrap(), state))
}

#[test]
fn plans() {
    for (id, file, options) in [
        (
            "3",
            "overlays = []",
            "lowerdir=/var/lib/left4me/installation,upperdir=/var/lib/left4me/runtime/3/upper,\
             workdir=/var/lib/left4me/runtime/3/work,index=off",
        ),
        (
            "eu-1",
            "overlays = [\"top\", \"base.v2\"]",
            "lowerdir=/var/lib/left4me/overlays/top:/var/lib/left4me/overlays/base.v2:\
             /var/lib/left4me/installation,upperdir=/var/lib/left4me/runtime/eu-1/upper,\
             workdir=/var/lib/left4me/runtime/eu-1/work,index=off",
        ),
    ] {
        assert_eq!(plan_for(id, file).unwrap().options, options);
    }
}

#[test]
fn what_overlayfs_splits_at_is_escaped() {
    for (path, escaped) in [
        ("/a b", "/a b"),
        ("/a:b", "/a\\:b"),
        ("/a,x=1", "/a\\,x=1"),
        ("/a\\:b", "/a\\\\\\:b"),
        ("/\\", "/\\\\"),
    ] {
        assert_eq!(escape(Path::new(path)), escaped, "{path}");
    }
}

#[test]
fn more_layers_than_overlayfs_takes_are_refused() {
    let many = |count: usize| {
        let names: Vec<_> = (0..count).map(|index| format!("\"{index}\"")).collect();
        format!("overlays = [{}]", names.join(","))
    };
    assert!(plan_for("3", &many(499)).is_ok());
    let error = plan_for("3", &many(500)).unwrap_err();
    assert!(error.to_string().contains("501 layers"), "{error}");
}

#[test]
fn only_the_servers_own_layer_is_the_servers() {
    let servers: Vec<_> =
        DIRECTORIES.iter().filter(|entry| entry.owner == Owner::Server).map(|entry| entry.name).collect();
    assert_eq!(servers, ["upper"]);
}

#[test]
fn a_missing_layer_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let text = layers::open(&state, &state.path().join("installation")).unwrap_err().to_string();
    assert!(text.ends_with("/installation: install the game there first"), "{text}");
    std::fs::write(directory.path().join("f"), "").unwrap();
    let file = layers::open(&state, &state.path().join("f"));
    assert!(matches!(file, Err(HelperError::Call { source: Errno::NOTDIR, .. })));
    std::os::unix::fs::symlink("/", directory.path().join("l")).unwrap();
    assert!(matches!(layers::open(&state, &state.path().join("l/etc")), Err(HelperError::LinkedLayer(_))));
}

/// What overlayfs makes of an option string: it splits at a `,`, then at a `:`, and takes one level of `\` away.
fn overlayfs_reads(options: &str) -> Vec<(String, Vec<String>)> {
    let mut parsed = vec![(String::new(), vec![String::new()])];
    let mut characters = options.chars();
    let mut in_key = true;
    while let Some(character) = characters.next() {
        let (key, values) = parsed.last_mut().unwrap();
        match character {
            '=' if in_key => in_key = false,
            ',' => {
                parsed.push((String::new(), vec![String::new()]));
                in_key = true;
            }
            _ if in_key => key.push(character),
            ':' => values.push(String::new()),
            '\\' => values.last_mut().unwrap().extend(characters.next()),
            _ => values.last_mut().unwrap().push(character),
        }
    }
    parsed
}

proptest::proptest! {
    #[test]
    fn no_name_becomes_another_option_or_another_layer(
        state in "/[a:,\\\\ =\n\"]{0,8}", names in proptest::collection::vec("[a-z0-9:,\\\\ =]{1,8}", 0..4)
    ) {
        let paths = "3".parse::<Instance>().unwrap().paths(Path::new(&state));
        let lower: Vec<_> = names.iter().map(|name| paths.all_runtimes.join(name)).collect();
        let plan = plan(&paths, lower.clone()).unwrap();
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let mut layers: Vec<_> = lower.iter().map(text).collect();
        if layers.is_empty() {
            layers.push(String::new());
        }
        proptest::prop_assert_eq!(overlayfs_reads(&plan.options), vec![
            ("lowerdir".to_owned(), layers),
            ("upperdir".to_owned(), vec![text(&paths.upper)]),
            ("workdir".to_owned(), vec![text(&paths.work)]),
            ("index".to_owned(), vec!["off".to_owned()]),
        ]);
    }
}
