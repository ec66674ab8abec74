//! Writes the manual pages of `l4d2ctl` and its completions into `deploy/files`: `cargo run -p left4me-ctl --example
//! generate`. A test compares what lies there with what this makes, so that neither is forgotten. The page of
//! `left4me-overlay` is written by hand: its command line is not clap's.

use std::path::{Path, PathBuf};

use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use left4me_ctl::cli::{self, Page};

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

/// The directory that the files belong into.
pub(crate) fn share() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/files/usr/local/share")
}

/// The files and what belongs into them.
pub(crate) fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let share = share();
    let mut files = Vec::new();
    // `help` has no page of its own. Built, the subcommands know their full names.
    let mut root = cli::command().disable_help_subcommand(true);
    root.build();
    let subcommands: Vec<_> = root.get_subcommands().cloned().collect();
    let pages: Vec<_> =
        subcommands.iter().map(|subcommand| format!("l4d2ctl-{}", subcommand.get_name())).collect();
    files.push((share.join("man/man1/l4d2ctl.1"), page(&root, &cli::PAGE, &pages)));
    for (subcommand, name) in subcommands.iter().zip(&pages) {
        let about = cli::page(subcommand.get_name()).expect("every subcommand has a page");
        let others =
            ["l4d2ctl".to_owned()].into_iter().chain(pages.iter().filter(|page| *page != name).cloned());
        let others: Vec<_> = others.collect();
        files.push((share.join(format!("man/man1/{name}.1")), page(subcommand, about, &others)));
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

/// A manual page: what clap knows, what [`Page`] says, and the other pages of section 1 to see.
fn page(command: &clap::Command, about: &Page, others: &[String]) -> Vec<u8> {
    let man =
        Man::new(command.clone()).source(format!("left4me {}", env!("CARGO_PKG_VERSION"))).manual("left4me");
    let mut text = Vec::new();
    let rendered = man
        .render_title(&mut text)
        .and_then(|()| man.render_name_section(&mut text))
        .and_then(|()| man.render_synopsis_section(&mut text))
        .and_then(|()| man.render_description_section(&mut text))
        .and_then(|()| man.render_options_section(&mut text));
    rendered.expect("writing to memory");
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).expect("writing to memory");
    }
    let mut rest = Roff::new();
    rest.control("SH", ["EXIT STATUS"]);
    rest.text([roman("The worst of all instances, 1 before 4 before 3:")]);
    for (status, meaning) in about.exit {
        rest.control("TP", []);
        rest.text([bold(status.to_string())]);
        rest.text([roman(*meaning)]);
    }
    rest.control("SH", ["RIGHTS"]);
    rest.text([roman(about.rights)]);
    rest.control("SH", ["SEE ALSO"]);
    let mut see = Vec::new();
    for (name, section) in others.iter().map(|name| (name.as_str(), 1)).chain([("left4me-overlay", 8)]) {
        see.extend([bold(name), roman(format!("({section}), "))]);
    }
    see.extend([bold("systemctl"), roman("(1)")]);
    rest.text(see);
    rest.to_writer(&mut text).expect("writing to memory");
    // clap_mangen shows one value of a positional argument, however many it takes.
    let text = String::from_utf8(text).expect("text");
    text.replace("[\\fIID\\fR]", "[\\fIID\\fR]...").into_bytes()
}
