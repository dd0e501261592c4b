//! The wakeup file: whoever submits or requeues writes to it, and waiting runners are told by
//! inotify.
//!
//! The file is in the runners directory beside the database, among the lock files. The end of a
//! runner closes its lock file, which inotify reports as well.

use std::io::{self, Write as _};

use inotify::{Inotify, WatchMask};
use rusqlite::{Connection, OptionalExtension as _};
use rustix::fs::OFlags;

use super::DraftStore;
use crate::database::TransactionError;
use crate::error::LibrarianError;

/// The wakeup file's name.
pub(crate) const WAKEUP_FILE: &str = "wakeup";

/// What a waiting runner polls for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewWork {
    /// The seq of the history's last event.
    pub last_event: i64,
    /// Whether drafts have become claimable since the event that was given, and one is still
    /// claimable: others may have taken them.
    pub work: bool,
    /// When the next delayed draft is due, in milliseconds since the epoch.
    pub next_due_ms: Option<i64>,
}

impl DraftStore {
    /// Tell waiting runners that there is work. To be called after the commit: what wakes them
    /// must be visible by then. (An inotify watch on the -wal file fires before it is.)
    pub(crate) fn notify(&self) {
        // Only a waiting runner creates the file. Without it nobody waits, and to test for it is
        // cheaper than to open the directory. A waiting runner also polls, so a notification that
        // fails is no error, and a file that is not to be trusted is left alone.
        let path = self.inner.runners_directory.join(WAKEUP_FILE);
        if std::fs::symlink_metadata(path).is_err() {
            return;
        }
        let Ok(Some(directory)) = self.runners_directory() else { return };
        if let Ok(Some(mut file)) = directory.open_file(WAKEUP_FILE, OFlags::WRONLY) {
            let _ = file.write_all(b"!");
        }
    }

    /// Create the wakeup file if there is none, and be told of writes to it and of the end of
    /// runners. Each notification opens, writes and closes the file; so does the end of a runner
    /// with its lock file. `None` where the kernel grants no inotify (its limits are per user).
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`], and [`LibrarianError::Untrusted`] if the runners directory
    /// or something in it must not be used; [`LibrarianError::Io`].
    pub(crate) fn listen(&self) -> Result<Option<Inotify>, LibrarianError> {
        let directory = self.make_runners_directory()?;
        directory.check_contents()?;
        match directory.create_file(WAKEUP_FILE, OFlags::WRONLY) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => {
                let path = directory.path().join(WAKEUP_FILE);
                created.map_err(|source| LibrarianError::CannotCreate { path, source })?;
            }
        }
        let watch = || -> io::Result<Inotify> {
            let inotify = Inotify::init()?;
            let mask = WatchMask::CLOSE_WRITE | WatchMask::DONT_FOLLOW | WatchMask::ONLYDIR;
            inotify.watches().add(directory.path(), mask)?;
            Ok(inotify)
        };
        Ok(watch().ok())
    }
    /// What has come in since this event. Reads only the events since then, however long the
    /// queue and the history are.
    pub(crate) fn new_work(&self, since: i64) -> Result<NewWork, LibrarianError> {
        self.database().read("look for new work", |connection| {
            let last_event = last_event(connection)?;
            let work = last_event > since
                && connection
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM history WHERE seq > ?1 \
                             AND event IN ('submitted', 'requeued', 'recovered', 'released')) \
                         AND EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_ready \
                                     WHERE state = 'pending' AND due_at = 0)",
                    )?
                    .query_row([since], |row| row.get(0))?;
            let next_due_ms = connection
                .prepare_cached(
                    "SELECT min(due_at) FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0",
                )?
                .query_row([], |row| row.get(0))?;
            Ok(NewWork { last_event, work, next_due_ms })
        })
    }
}

/// The seq of the history's last event; 0 if there is none.
fn last_event(connection: &Connection) -> Result<i64, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT seq FROM history ORDER BY seq DESC LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}
