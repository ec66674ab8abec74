//! The manual page has every option of the help text and every exit status.

use std::collections::BTreeSet;
use std::path::Path;

/// The first words of a text's lines that look like options, as `--busy`.
fn options(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_lowercase() && c != '-')
        .filter(|word| {
            word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        })
        .collect()
}

#[test]
fn the_page_has_the_help_texts_options_and_statuses() {
    let page =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/files/usr/local/share/man/man8/holders.8");
    let text =
        std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("read {}: {error}", page.display()));
    // Fonts away, so that an option's last letter is its last.
    let plain = text.replace("\\fB", " ").replace("\\fI", " ").replace("\\fR", " ").replace('\\', "");
    let help = options(holders::cli::HELP);
    assert!(help.len() > 10, "{help:?}");
    assert_eq!(options(&plain), help);
    let statuses = |text: &str, before: &str| -> BTreeSet<u8> {
        let (_, after) = text.split_once(before).expect(before);
        after.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
    };
    let from_the_help = statuses(holders::cli::HELP, "Exit status:");
    assert_eq!(statuses(&plain, ".SH EXIT STATUS"), from_the_help);
    assert!(from_the_help.contains(&34), "{from_the_help:?}");
}
