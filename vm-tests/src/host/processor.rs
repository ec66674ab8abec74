//! The processor time of this process and of its children.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// In what `/proc/PID/stat` counts: `USER_HZ`, which is 100 a second on x86.
const TICK: Duration = Duration::from_millis(10);

/// What this process and those of its children that have ended have used, and theirs; see proc_pid_stat(5).
///
/// # Errors
/// If `/proc` does not say.
pub fn used() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    parse(&text).context("/proc/self/stat has no times")
}

/// utime, stime, cutime and cstime: the 14th to the 17th field. The second is a name, in which anything may be.
fn parse(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let times: Vec<u32> =
        fields.split_whitespace().skip(11).take(4).map_while(|field| field.parse().ok()).collect();
    (times.len() == 4).then(|| TICK * times.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_whatever_the_name_is() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 200 0 0 7 3 150 40 20 0 1 0 500 0 0";
        assert_eq!(parse(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse("42 (a) S 1 42"), None);
        assert!(used().is_ok());
    }
}
