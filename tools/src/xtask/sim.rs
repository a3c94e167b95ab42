//! `cargo xtask sim`: builds the simulator and passes the command line on; runs mutants of the
//! product through it.
//!
//! A mutant is a text file that names files, old text and new text. It is put into a copy of the
//! tree below `target`, never into the tree, and built with a target folder of its own, so that
//! after the first mutant only what the next one touches is compiled again. A mutant that lives
//! through its seeds fails the step.

use crate::apart;
use crate::call::{Call, Stream};
use crate::context::Context;
use crate::error::TaskError;
use std::path::{Path, PathBuf};

/// Where mutants are.
const MUTANTS: &str = "tools/sim/mutants";

/// Where their trees are made.
const SCRATCH: &str = "target/sim-mutants";

/// The mutant's program.
const MUTANT: &str = "target/sim-mutants/sim";

/// The words that build a simulator, and where it is then.
const BUILD: [&str; 7] = ["cargo", "build", "--quiet", "--locked", "--workspace", "--bin", "sim"];
const BUILT: &str = "target/debug/sim";

/// The crates of the simulator, in which a mutant may be.
const CRATES: [&str; 6] =
    ["dwcp-ffi", "dwcp-proto", "dwcp-codec", "dwcp-dataplane", "dwcp-control", "dwcp-sim"];

/// A number of parts that nothing else is compiled in.
const CODEGEN_UNITS: u32 = 59;

/// In so many seeds each mutant must be found.
const MUTANT_SEEDS: u64 = 2000;

/// Seeds of a run of CI, besides those that are kept.
const CI_SEEDS: &str = "150";

const BUILD_SECONDS: u64 = 1800;

/// Runs what the words say.
pub(crate) fn run(context: &Context, words: &[String]) -> Result<(), TaskError> {
    match words {
        [first, name] if first == "--mutant" => run_mutants(context, name),
        _ => {
            build(&context.root)?;
            simulator().with(words.to_vec()).run(&context.root)
        }
    }
}

/// Some seeds, those of found bugs, and one mutant, which the commit chooses.
pub(crate) fn run_ci(context: &Context) -> Result<(), TaskError> {
    build(&context.root)?;
    simulator().with(["--kept"]).run(&context.root)?;
    simulator().with(["--seeds", CI_SEEDS]).run(&context.root)?;
    let names = names(&context.root)?;
    let mut commit = String::new();
    Call::new(&["git", "rev-parse", "HEAD"])
        .run_with(&context.root, &mut |_, line| commit.push_str(line))?;
    let number = u64::from_str_radix(commit.get(..8).unwrap_or_default(), 16).unwrap_or(0);
    match names.get(number as usize % names.len().max(1)) {
        Some(name) => run_mutants(context, name),
        None => Err(TaskError::NoMutant { name: "any".to_owned(), known: MUTANTS.to_owned() }),
    }
}

/// Builds the simulator as the tests do: with the features of the whole workspace, so that nothing
/// is compiled twice.
fn build(root: &Path) -> Result<(), TaskError> {
    Call::new(&BUILD).within(BUILD_SECONDS).run(root)
}

fn simulator() -> Call {
    Call::new(&[BUILT]).within(BUILD_SECONDS * 4)
}

fn run_mutants(context: &Context, name: &str) -> Result<(), TaskError> {
    let known = names(&context.root)?;
    let chosen: Vec<&String> = known.iter().filter(|it| name == "all" || *it == name).collect();
    if chosen.is_empty() {
        return Err(TaskError::NoMutant { name: name.to_owned(), known: known.join(", ") });
    }
    for name in chosen {
        let mutant = Mutant::read(&context.root, name)?;
        copy_tree(&context.root)?;
        mutant.apply(&context.root.join(SCRATCH))?;
        hunt(&context.root, &mutant)?;
    }
    Ok(())
}

/// Builds the mutated tree and runs seeds until one finds the mutant.
fn hunt(root: &Path, mutant: &Mutant) -> Result<(), TaskError> {
    let manifest = format!("{SCRATCH}/Cargo.toml");
    let build = Call::new(&BUILD).with(["--manifest-path", &manifest, "--target-dir", "target"]);
    let build = apart::settings(&CRATES, CODEGEN_UNITS)
        .fold(build, |build, setting| build.with(["--config", &setting]));
    build.within(BUILD_SECONDS).run(root)?;
    // Nobody may take it for the product's: the next build puts that in its place.
    std::fs::rename(root.join(BUILT), root.join(MUTANT))
        .map_err(|source| file_error(&root.join(MUTANT), source))?;
    let seeds = MUTANT_SEEDS.to_string();
    let call = Call::new(&[MUTANT, "--seeds", &seeds]).within(BUILD_SECONDS);
    let mut found = None;
    let outcome = call.run_with(root, &mut |stream, line| {
        if let (Stream::Out, Some(seed)) = (stream, violating_seed(line)) {
            found = Some(found.map_or(seed, |least: u64| least.min(seed)));
            println!("{line}");
        }
    });
    match (outcome, found) {
        (Err(TaskError::Failed { .. }), Some(seed)) => {
            println!("mutant {}: found by seed {seed}. {}", mutant.name, mutant.why);
            Ok(())
        }
        (Ok(()), _) => {
            Err(TaskError::MutantLives { name: mutant.name.clone(), seeds: MUTANT_SEEDS })
        }
        (Err(error), _) => Err(error),
    }
}

/// The seed of a line such as `seed 7: one_owner is broken ..`.
fn violating_seed(line: &str) -> Option<u64> {
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(": ")?;
    seed.parse().ok().filter(|_| rest.contains(" is broken at event "))
}

fn names(root: &Path) -> Result<Vec<String>, TaskError> {
    let folder = root.join(MUTANTS);
    let failed = |source| TaskError::File { path: folder.clone(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Brings the copy of the tree up to date; files that are right already keep their age.
fn copy_tree(root: &Path) -> Result<(), TaskError> {
    let mut files = Vec::new();
    let list = Call::new(&["git", "ls-files", "--cached", "--others", "--exclude-standard"]);
    list.run_with(root, &mut |_, line| files.push(PathBuf::from(line)))?;
    for file in files.iter().filter(|file| root.join(file).is_file()) {
        let (from, to) = (root.join(file), root.join(SCRATCH).join(file));
        let text = std::fs::read(&from).map_err(|source| file_error(&from, source))?;
        write_if_new(&to, &text)?;
    }
    Ok(())
}

fn write_if_new(path: &Path, bytes: &[u8]) -> Result<(), TaskError> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| file_error(folder, source))?;
    }
    std::fs::write(path, bytes).map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: std::io::Error) -> TaskError {
    TaskError::File { path: path.to_owned(), source }
}

/// A change of the product that the simulator must find.
#[derive(Debug)]
struct Mutant {
    name: String,
    why: String,
    edits: Vec<Edit>,
}

#[derive(Debug, PartialEq, Eq)]
struct Edit {
    file: String,
    old: String,
    new: String,
}

impl Mutant {
    fn read(root: &Path, name: &str) -> Result<Self, TaskError> {
        let path = root.join(MUTANTS).join(name).with_extension("txt");
        let text = std::fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
        Self::parse(name, &text).ok_or_else(|| TaskError::MutantForm { name: name.to_owned() })
    }

    /// A sentence, then for each edit `==== file PATH`, old lines, `==== becomes`, new lines and
    /// `==== end`.
    fn parse(name: &str, text: &str) -> Option<Self> {
        let (why, mut rest) = text.split_once('\n')?;
        let mut edits = Vec::new();
        while let Some(edit) = rest.strip_prefix("==== file ") {
            let (file, edit) = edit.split_once('\n')?;
            let (old, edit) = edit.split_once("==== becomes\n")?;
            let (new, after) = edit.split_once("==== end\n")?;
            let [file, old, new] = [file, old, new].map(str::to_owned);
            edits.push(Edit { file, old, new });
            rest = after;
        }
        let is_whole = rest.is_empty() && !edits.is_empty();
        let (name, why) = (name.to_owned(), why.to_owned());
        is_whole.then_some(Self { name, why, edits })
    }

    /// Changes the files of a tree.
    fn apply(&self, tree: &Path) -> Result<(), TaskError> {
        for edit in &self.edits {
            let path = tree.join(&edit.file);
            let text =
                std::fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
            let times = text.matches(&edit.old).count();
            if times != 1 {
                let (name, file) = (self.name.clone(), edit.file.clone());
                return Err(TaskError::MutantStale { name, file, times });
            }
            write_if_new(&path, text.replace(&edit.old, &edit.new).as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_fits_the_tree_as_it_is() {
        let root = Context::find().unwrap().root;
        let names = names(&root).unwrap();
        assert!(names.len() >= 10, "{names:?}");
        for name in names {
            let mutant = Mutant::read(&root, &name).unwrap();
            for edit in &mutant.edits {
                let text = std::fs::read_to_string(root.join(&edit.file)).unwrap();
                assert_eq!(text.matches(&edit.old).count(), 1, "{name} in {}", edit.file);
                assert_ne!(edit.old, edit.new, "{name}");
            }
        }
    }

    #[test]
    fn a_mutant_without_an_end_is_none() {
        let text = "why\n==== file a.rs\nold\n==== becomes\nnew\n";
        assert!(Mutant::parse("m", text).is_none());
        let mutant = Mutant::parse("m", &format!("{text}==== end\n")).unwrap();
        let [edit] = &mutant.edits[..] else { panic!("{mutant:?}") };
        assert_eq!((edit.old.as_str(), edit.new.as_str()), ("old\n", "new\n"));
    }

    #[test]
    fn the_line_of_a_violation_names_its_seed() {
        assert_eq!(violating_seed("seed 41: one_owner is broken at event 3: both"), Some(41));
        assert_eq!(violating_seed("seed 41: Outcome { .. }"), None);
    }
}
