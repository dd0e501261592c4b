//! The wakeup file: whoever submits or requeues writes to it, and waiting runners are told by
//! inotify.
//!
//! The file is in the runners directory beside the database, among the lock files. The end of a
//! runner closes its lock file, which inotify reports as well.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use inotify::{Inotify, WatchMask};
use rustix::fs::OFlags;

use super::DraftStore;
use crate::database::make_private_directory;

/// The wakeup file's name.
pub(crate) const WAKEUP_FILE: &str = "wakeup";

impl DraftStore {
    /// Tell waiting runners that there is work. To be called after the commit: what wakes them
    /// must be visible by then. (An inotify watch on the -wal file fires before it is.)
    pub(crate) fn notify(&self) {
        // Only a waiting runner creates the file. Without it nobody waits, and to test for it is
        // cheaper than to fail to open it. A waiting runner also polls, so a notification that
        // fails is no error.
        let path = self.runners_directory().join(WAKEUP_FILE);
        if fs::symlink_metadata(&path).is_err() {
            return;
        }
        let file = fs::OpenOptions::new()
            .write(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path);
        if let Ok(mut file) = file {
            let _ = file.write_all(b"!");
        }
    }

    /// Create the wakeup file if there is none, and be told of writes to it and of the end of
    /// runners. Each notification opens, writes and closes the file; so does the end of a runner
    /// with its lock file.
    pub(crate) fn listen(&self) -> io::Result<Inotify> {
        let directory = self.runners_directory();
        make_private_directory(directory)?;
        let path = directory.join(WAKEUP_FILE);
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let inotify = Inotify::init()?;
        inotify.watches().add(directory, WatchMask::CLOSE_WRITE)?;
        Ok(inotify)
    }
}
