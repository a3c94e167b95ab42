//! Which `dwcp` a process of a test runs: today's, or that of the wire version before.

use std::path::{Path, PathBuf};

/// Today's.
pub(crate) fn today() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_dwcp"))
}

/// That of the wire version before: `DWCP_PREVIOUS`, which must be there then, or where
/// `cargo xtask previous` puts it; None when it is not there, which is said.
pub(crate) fn previous() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("DWCP_PREVIOUS") {
        let path = PathBuf::from(named);
        assert!(path.is_file(), "{}: run `cargo xtask previous`", path.display());
        return Some(path);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/previous/dwcp");
    if path.is_file() {
        return Some(path);
    }
    eprintln!("PASSED OVER: no binary of the wire version before; run `cargo xtask previous`");
    None
}
