//! Compares the memory of two guests byte by byte.
//!
//! Both guests must stand still. A page that is old as a whole can pass every check that a guest
//! makes of itself; it can't pass this one.

use super::error::LabError;
use std::fs::File;
use std::io::Read;
use std::path::Path;

const PAGE_BYTES: usize = 4096;

/// Bytes that are compared at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The numbers of the pages that differ; if one file is longer, all pages that it has more.
///
/// # Errors
/// A file can't be read.
pub fn differing_pages(source: &Path, sink: &Path) -> Result<Vec<u64>, LabError> {
    let open = |path: &Path| File::open(path).map_err(LabError::file(path));
    let (mut source_file, mut sink_file) = (open(source)?, open(sink)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let (mut differing, mut first_page) = (Vec::new(), 0);
    loop {
        fill(&mut source_file, &mut left).map_err(LabError::file(source))?;
        fill(&mut sink_file, &mut right).map_err(LabError::file(sink))?;
        let length = left.len().max(right.len());
        if length == 0 {
            return Ok(differing);
        }
        let page = |bytes: &[u8], at: usize| -> Vec<u8> {
            bytes.iter().skip(at).take(PAGE_BYTES).copied().collect()
        };
        if left != right {
            let starts = (0..length).step_by(PAGE_BYTES);
            let differ = starts.filter(|at| page(&left, *at) != page(&right, *at));
            differing.extend(differ.map(|at| first_page + (at / PAGE_BYTES) as u64));
        }
        first_page += (CHUNK_BYTES / PAGE_BYTES) as u64;
    }
}

/// Reads a chunk, a shorter one only at the end.
fn fill(file: &mut File, chunk: &mut Vec<u8>) -> std::io::Result<()> {
    chunk.clear();
    file.take(CHUNK_BYTES as u64).read_to_end(chunk).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_pages_that_differ_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let (left, right) = (folder.path().join("left"), folder.path().join("right"));
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + PAGE_BYTES).map(|at| (at % 251) as u8).collect();
        std::fs::write(&left, &bytes).unwrap();
        let mut other = bytes.clone();
        for page in [0, 5, 256, 512] {
            other[page * PAGE_BYTES + page] ^= 1;
        }
        std::fs::write(&right, &other).unwrap();
        assert_eq!(differing_pages(&left, &right).unwrap(), [0, 5, 256, 512]);
        assert!(differing_pages(&left, &left).unwrap().is_empty());
        std::fs::write(&right, &bytes[..CHUNK_BYTES * 2 - PAGE_BYTES]).unwrap();
        assert_eq!(differing_pages(&left, &right).unwrap(), [511, 512]);
    }
}
