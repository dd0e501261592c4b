//! A draft wakes a runner that waits: the bell for those who look at once, and what a waiting
//! runner asks now and then about those who did not ring.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;

use super::DraftStore;
use super::tally::last_event;
use crate::error::LibrarianError;

/// The bell's file, among the runners' lock files.
pub(crate) const BELL: &str = "bell";

/// What there is for a runner that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlook {
    /// The last event of the history.
    pub mark: i64,
    /// Whether drafts have become claimable since the mark that was given.
    pub work: bool,
    /// When the next delayed draft is due, in milliseconds since the epoch.
    pub next_due_ms: Option<i64>,
}

impl DraftStore {
    /// Tell waiting runners that there is work. To be called after the commit: what wakes them
    /// must be visible by then. (An inotify watch on the -wal file fires before it is.)
    pub(crate) fn ring(&self) {
        // Only who waits makes the bell; without it there is nobody to wake, and to ask for it is
        // cheaper than to open it in vain. A waiting runner looks by itself before long, so a bell
        // that cannot be rung is no error.
        let path = self.runners_directory().join(BELL);
        if fs::symlink_metadata(&path).is_err() {
            return;
        }
        let bell = fs::OpenOptions::new()
            .write(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path);
        if let Ok(mut bell) = bell {
            let _ = bell.write_all(b"!");
        }
    }

    /// What has come in since this mark. Costs a look at the events since then, however long the
    /// queue and the history are.
    pub(crate) fn outlook(&self, since: i64) -> Result<Outlook, LibrarianError> {
        self.database().read("look for work", |connection| {
            let mark = last_event(connection)?;
            let work = mark > since
                && connection
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM history WHERE seq > ?1 \
                             AND event IN ('submitted', 'requeued', 'recovered', 'released'))",
                    )?
                    .query_row([since], |row| row.get(0))?;
            let next_due_ms = connection
                .prepare_cached(
                    "SELECT min(due_at) FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0",
                )?
                .query_row([], |row| row.get(0))?;
            Ok(Outlook { mark, work, next_due_ms })
        })
    }
}
