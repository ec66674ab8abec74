//! Whether trials are made that take minutes.

/// Whether a check has time for all trials: `cargo xtask check --all` sets the variable.
pub(crate) fn has_time_for_all() -> bool {
    std::env::var_os("VM_TESTS_ALL").is_some()
}
