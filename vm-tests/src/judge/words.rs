//! Words that deviations and story share. Pure.

/// The lines of a command's stderr that say something: `systemctl` ends each failure with where to look, which is not in
/// reach of who reads this.
pub(super) fn telling(stderr: &str) -> Vec<&str> {
    let is_advice = |line: &str| line.starts_with("See \"systemctl status");
    stderr.lines().map(str::trim_end).filter(|line| !line.is_empty() && !is_advice(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_left_out() {
        let stderr = "Job for x.service failed because a timeout was exceeded.\n\
                      See \"systemctl status x.service\" and \"journalctl -xeu x.service\" for details.\n\n";
        assert_eq!(telling(stderr), ["Job for x.service failed because a timeout was exceeded."]);
        assert_eq!(telling("\n"), [""; 0]);
    }
}
