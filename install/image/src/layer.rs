//! The file system of an image: one tar, and compressed.

use crate::tarball::Tarball;
use anyhow::Context;
use flate2::{Compression, GzBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// Of programs and directories alike: everybody may run them, nobody may change them but root.
const MODE: u32 = 0o755;

/// Packs programs (absolute path → bytes) and the directories above them, sorted. `epoch` (seconds since 1970) is when
/// they were last changed. Equal input gives equal bytes.
///
/// # Errors
/// When a path does not fit into a tar header.
pub fn pack(programs: &BTreeMap<String, Vec<u8>>, epoch: u64) -> anyhow::Result<Vec<u8>> {
    let mut tarball = Tarball::new(epoch);
    let paths = || programs.keys().map(|path| path.trim_start_matches('/'));
    // Sorted, so that each directory comes before what is in it.
    let directories: BTreeSet<&str> =
        paths().flat_map(|path| path.match_indices('/').map(|(end, _)| &path[..end])).collect();
    for directory in directories {
        tarball.directory(directory, MODE)?;
    }
    for (path, bytes) in paths().zip(programs.values()) {
        tarball.file(path, MODE, bytes)?;
    }
    tarball.finish()
}

/// gzip, with neither time nor name in its header: equal input gives equal bytes.
///
/// # Errors
/// When nothing is left to compress into.
pub fn compress(tar: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    gzip.write_all(tar).and_then(|()| gzip.finish()).context("cannot compress the layer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn programs() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([
            ("/usr/local/bin/two".to_owned(), b"2".to_vec()),
            ("/usr/local/bin/one".to_owned(), b"11".to_vec()),
            ("/pause".to_owned(), Vec::new()),
        ])
    }

    #[test]
    fn every_entry_is_roots_with_one_mode_and_one_time() {
        let packed = pack(&programs(), 1_700_000_000).unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        let mut table = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = String::new();
            entry.read_to_string(&mut bytes).unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 1_700_000_000);
            assert_eq!(header.username().unwrap(), Some(""));
            let path = entry.path().unwrap().display().to_string();
            table.push((path, header.mode().unwrap(), bytes));
        }
        let expected = [
            ("usr/", 0o755, ""),
            ("usr/local/", 0o755, ""),
            ("usr/local/bin/", 0o755, ""),
            ("pause", 0o755, ""),
            ("usr/local/bin/one", 0o755, "11"),
            ("usr/local/bin/two", 0o755, "2"),
        ];
        let expected: Vec<_> = expected.map(|(path, mode, bytes)| (path.into(), mode, bytes.into())).into();
        assert_eq!(table, expected);
    }

    #[test]
    fn equal_input_gives_equal_bytes() {
        assert_eq!(pack(&programs(), 0).unwrap(), pack(&programs(), 0).unwrap());
        assert_ne!(pack(&programs(), 0).unwrap(), pack(&programs(), 1).unwrap());
        let zeros = vec![0; 100_000];
        let small = compress(&zeros).unwrap();
        assert!(small.len() < 1000);
        assert_eq!(small, compress(&zeros).unwrap());
        // RFC 1952: no name, and the time is 0.
        assert_eq!(small[3..8], [0; 5]);
    }
}
