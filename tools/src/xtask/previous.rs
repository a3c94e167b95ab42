//! The binary of the wire version before this one, for the tests that have both ends of a link be
//! of different versions.
//!
//! Built from the repository's own history, in the target folder of the build of today, so that
//! what both take from registries is compiled once. It is kept beside its commit and built again
//! only when that changes.

use crate::apart;
use crate::call::Call;
use crate::context::Context;
use crate::error::TaskError;
use std::path::Path;

/// The newest commit whose highest wire version is the one before this program's.
const COMMIT: &str = "3a19f8aa539c2d77cee3b01fcb40187823c1752d";

/// Where everything of it lies, below the root.
const FOLDER: &str = "target/previous";

/// The binary, below the root.
pub(crate) const BINARY: &str = "target/previous/dwcp";

/// The crates of the binary.
const CRATES: [&str; 6] =
    ["dwcp-ffi", "dwcp-proto", "dwcp-codec", "dwcp-dataplane", "dwcp-control", "dwcp"];

/// A number of parts that nothing else is compiled in.
const CODEGEN_UNITS: u32 = 61;

/// Those that move no pages need not be quick, and are built in a third of the time.
const SLOW: [&str; 2] = ["dwcp-control", "dwcp"];

/// A build of our own crates alone takes a part of this.
const BUILD_SECONDS: u64 = 1800;

/// Builds the binary unless it is there.
pub(crate) fn run(context: &Context) -> Result<(), TaskError> {
    let root = &context.root;
    let folder = root.join(FOLDER);
    let of_commit = folder.join("commit");
    let built = std::fs::read_to_string(&of_commit).is_ok_and(|it| it.trim() == COMMIT);
    if built && root.join(BINARY).is_file() {
        println!("{BINARY} is there, of commit {COMMIT}");
        return Ok(());
    }
    unpack(root, &folder)?;
    let words = ["cargo", "build", "--locked", "--bin", "dwcp", "--workspace"];
    let manifest = format!("{FOLDER}/source/Cargo.toml");
    let build = Call::new(&words).with(["--manifest-path", &manifest, "--target-dir", "target"]);
    let build = apart::settings(&CRATES, CODEGEN_UNITS)
        .chain(slow())
        .fold(build, |build, setting| build.with(["--config", &setting]));
    build.within(BUILD_SECONDS).run(root)?;
    let of = |path: &Path| path.to_owned();
    let built = root.join("target/debug/dwcp");
    // A copy and no link: the next build of today's binary takes the name over.
    std::fs::copy(&built, root.join(BINARY))
        .map_err(|source| TaskError::File { path: of(&built), source })?;
    std::fs::write(&of_commit, COMMIT)
        .map_err(|source| TaskError::File { path: of(&of_commit), source })
}

fn slow() -> impl Iterator<Item = String> {
    SLOW.into_iter().map(|name| apart::setting(name, "opt-level=0"))
}

/// Lays the commit's files out under `source`.
fn unpack(root: &Path, folder: &Path) -> Result<(), TaskError> {
    let known = Call::new(&["git", "cat-file", "-e", &format!("{COMMIT}^{{commit}}")]).run(root);
    if known.is_err() {
        return Err(TaskError::Missing {
            what: format!("commit {COMMIT}, from which the previous version's binary is built"),
            cure: format!(
                "A shallow clone has not all commits: run `git fetch --unshallow`, or `git fetch \
                 origin {COMMIT}`"
            ),
        });
    }
    let failed = |source| TaskError::File { path: folder.to_owned(), source };
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(failed)?;
    }
    std::fs::create_dir_all(folder.join("source")).map_err(failed)?;
    let archive = format!("{FOLDER}/source.tar");
    Call::new(&["git", "archive", "--output", &archive, COMMIT]).run(root)?;
    Call::new(&["tar", "-x", "-f", &archive, "-C", &format!("{FOLDER}/source")]).run(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_lies_where_the_rest_of_it_does() {
        assert_eq!(Path::new(BINARY).parent(), Some(Path::new(FOLDER)));
        assert!(COMMIT.len() == 40 && COMMIT.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
