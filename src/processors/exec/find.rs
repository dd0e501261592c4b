//! Finds a program in `PATH`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io, path};

use rustix::io::Errno;

/// The absolute path of the program, or the path that fails and why.
pub(super) fn find(program: &OsStr) -> Result<PathBuf, (PathBuf, Errno)> {
    if program.as_bytes().contains(&b'/') {
        let path = path::absolute(program).map_err(|_| (program.into(), Errno::NOENT))?;
        return which::which(&path).map_err(|_| (program.into(), why_not(&path)));
    }
    which::which(program)
        .and_then(|found| path::absolute(found).map_err(|_| which::Error::CannotFindBinaryPath))
        .map_err(|_| {
            // A file in PATH that only lacks its x bit is a better answer than "not found".
            let dirs = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&dirs)
                .map(|dir| dir.join(program))
                .find(|path| !program.is_empty() && path.is_file())
                .map_or((program.into(), Errno::NOENT), |path| (path, Errno::ACCESS))
        })
}

/// Why the file at this path cannot be run.
fn why_not(path: &Path) -> Errno {
    match fs::metadata(path) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Errno::NOENT,
        _ => Errno::ACCESS,
    }
}
