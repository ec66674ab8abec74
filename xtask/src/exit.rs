//! The exit codes of commands that are not the VM suite: a verdict has its own.

use vm_tests::report::Verdict;

/// All is well.
pub(crate) const PASSED: u8 = Verdict::Passed.exit_code();
/// It ran, and something is not as it should be.
pub(crate) const FAILED: u8 = Verdict::Failed.exit_code();
/// There is no result: a tool, the machine, the guest or the harness failed.
pub(crate) const INFRASTRUCTURE: u8 = Verdict::Infrastructure.exit_code();
