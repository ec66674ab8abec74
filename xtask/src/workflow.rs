//! The commands of CI's workflow, for the check's step `docs`. It can't be run here, so this much is looked at: that each
//! command is one, and that the shards are the suite. By its lines, as it is written, and not as YAML in general.

/// Where it is.
pub(crate) const FILE: &str = ".github/workflows/ci.yml";

/// Its `cargo xtask` commands with the numbers of their lines, as a runner's shell gets them: one for each shard.
pub(crate) fn commands(text: &str) -> Vec<(usize, String)> {
    let shards = shards(text);
    let runs = text.lines().zip(1..).filter_map(|(line, number)| {
        let line = line.trim_start().trim_start_matches("- ");
        Some((number, line.strip_prefix("run: ")?))
    });
    let mut all = Vec::new();
    for (number, run) in runs {
        let run = match run.strip_prefix(".ci/run") {
            Some(arguments) => format!("cargo xtask check{arguments}"),
            None => run.to_owned(),
        };
        if !run.starts_with("cargo xtask ") {
            continue;
        }
        let run =
            run.replace("$FRESH", "--fresh").replace("${{ strategy.job-total }}", &shards.len().to_string());
        match run.contains(SHARD) {
            true => all.extend(shards.iter().map(|shard| (number, run.replace(SHARD, shard)))),
            false => all.push((number, run)),
        }
    }
    all
}

const SHARD: &str = "${{ matrix.shard }}";

/// The values of the matrix.
fn shards(text: &str) -> Vec<&str> {
    let list = text.lines().find_map(|line| line.trim().strip_prefix("shard: [")?.strip_suffix(']'));
    list.map(|list| list.split(',').map(str::trim).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{IMAGES, SUITE};
    use crate::left4me;

    #[test]
    fn a_command_is_expanded_as_a_runner_does() {
        let text = "\
        shard: [1, 2]
      - run: rustup toolchain install
      - name: Check
        run: .ci/run --no-suite
        run: cargo xtask vm-test --shard ${{ matrix.shard }}/${{ strategy.job-total }} $FRESH
";
        let expected = [
            (4, "cargo xtask check --no-suite"),
            (5, "cargo xtask vm-test --shard 1/2 --fresh"),
            (5, "cargo xtask vm-test --shard 2/2 --fresh"),
        ];
        assert_eq!(commands(text), expected.map(|(line, command)| (line, command.to_owned())));
    }

    #[test]
    fn the_workflow_runs_what_the_check_runs() {
        let root = left4me::workspace().expect("the workspace").root;
        let text = std::fs::read_to_string(root.join(FILE)).expect(FILE);
        let commands: Vec<String> = commands(&text).into_iter().map(|(_, command)| command).collect();
        let of = commands.len() - 1;
        let shard = |number| {
            format!("cargo xtask {SUITE} --image {IMAGES} --clock virtual --shard {number}/{of} --fresh")
        };
        let all = std::iter::once("cargo xtask check --no-suite".to_owned()).chain((1..=of).map(shard));
        assert_eq!(commands, all.collect::<Vec<_>>());
        assert!(of > 1, "{of} shard");
    }
}
