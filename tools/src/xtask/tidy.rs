//! `cargo xtask tidy`: prints every broken rule, one a line.

use crate::context::Context;
use crate::error::TaskError;

/// Checks the tree.
pub(crate) fn run(context: &Context) -> Result<(), TaskError> {
    let report = dwcp_tools::tidy::run(&context.root)?;
    for violation in &report.violations {
        println!("{violation}");
    }
    let count = report.violations.len();
    println!("tidy: {} files, {count} violations", report.files);
    if count > 0 { Err(TaskError::Untidy { count }) } else { Ok(()) }
}
