//! Helpers for tests that look at files and directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::draftq;

/// `draftq --db PATH …`, behind a wrapper such as `sh -c`.
pub fn draftq_behind(wrapper: &[&str], path: &Path, arguments: &[&str]) -> Command {
    let mut draftq = draftq(path);
    draftq.args(arguments);
    let [program, before @ ..] = wrapper else { return draftq };
    let mut command = Command::new(program);
    command.args(before).arg(draftq.get_program()).args(draftq.get_args());
    command.env_remove("DRAFTQ_DB").stdin(Stdio::null());
    command
}

/// Every file and directory below this path: its mode, and the bytes of a file.
pub fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(directory).min_depth(1) {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let bytes = if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        found.insert(entry.path().to_owned(), (metadata.mode() & 0o7777, bytes));
    }
    found
}

pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
