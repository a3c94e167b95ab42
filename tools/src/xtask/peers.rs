//! Later.
use crate::error::TaskError;
pub(crate) fn run(_words: &[String]) -> Result<(), TaskError> {
    Ok(())
}
