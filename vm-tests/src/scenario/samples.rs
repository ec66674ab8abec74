//! A manifest for tests of what is made of scenarios.

/// The shortest that is right; more keys of the top can follow.
pub(crate) const MINIMAL: &str = r#"
description = "d"
unit = "x.service"
mount = "/m"
start = ["true"]
reset = ["true"]
"#;
