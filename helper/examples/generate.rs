//! Writes the manual page of `l4d2ctl` and its completions into `deploy/files`: `cargo run -p left4me-helper --example
//! generate`. A test compares what lies there with what this makes, so that neither is forgotten.

use std::path::{Path, PathBuf};

use clap_complete::Shell;
use left4me_helper::cli;

fn main() -> std::io::Result<()> {
    for (path, content) in files() {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&path, content)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The files and what belongs into them.
pub(crate) fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/files/usr/local/share");
    let mut files = Vec::new();
    let mut page = Vec::new();
    clap_mangen::Man::new(cli::command()).render(&mut page).expect("writing to memory");
    files.push((share.join("man/man1/l4d2ctl.1"), page));
    // Built, the subcommands know their full names.
    let mut root = cli::command();
    root.build();
    for subcommand in root.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let name = format!("l4d2ctl-{}", subcommand.get_name());
        let mut page = Vec::new();
        clap_mangen::Man::new(subcommand.clone()).render(&mut page).expect("writing to memory");
        files.push((share.join(format!("man/man1/{name}.1")), page));
    }
    for (shell, path) in [
        (Shell::Bash, "bash-completion/completions/l4d2ctl"),
        (Shell::Zsh, "zsh/site-functions/_l4d2ctl"),
        (Shell::Fish, "fish/vendor_completions.d/l4d2ctl.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut cli::command(), "l4d2ctl", &mut script);
        files.push((share.join(path), script));
    }
    files
}
