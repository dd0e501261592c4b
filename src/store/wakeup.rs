//! How a submitter wakes a waiting runner.
//!
//! Each waiting runner has a file in the runners directory, among the lock files, and holds it
//! locked. A process that submits or requeues removes one such file for each draft; inotify reports
//! the removal to the runner whose file it was, and to no other. So each draft wakes one runner,
//! however many wait. A file whose lock is free belongs to a process that has ended; it is removed,
//! and wakes nobody.
//!
//! inotify also reports the end of a runner, because that closes its lock file. Writers that do not
//! notify, such as a SQL shell, are found by a query (`new_work.rs`).

use std::ffi::OsStr;
use std::io;
use std::time::Instant;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::DraftStore;
use super::lock_file::{LockFile, LockKind};
use crate::error::LibrarianError;

/// An empty file that shows that a runner has waited for work at some time.
const MARKER: &str = "wakeup";

impl DraftStore {
    /// Wake as many waiting runners as there are new drafts. Call it after the commit, because the
    /// work must be visible by then. (An inotify watch on the -wal file fires before it is.)
    pub(crate) fn notify(&self, drafts: usize) {
        // Without the marker no runner waits, and this test is cheaper than reading the directory.
        let marker = self.inner.runners_directory.join(MARKER);
        if drafts == 0 || std::fs::symlink_metadata(marker).is_err() {
            return;
        }
        // A waiting runner also polls, so a failed notification is no error, and a file that must
        // not be trusted is left alone.
        let Ok(Some(directory)) = self.runners_directory() else { return };
        let Ok(names) = directory.names() else { return };
        let mut to_wake = drafts;
        for name in names {
            let Some(name) = name.to_str().filter(|name| LockKind::Waiting.is_name(name)) else {
                continue;
            };
            let Ok(Some(file)) = directory.open_file(name, OFlags::RDONLY) else { continue };
            let waits = file.try_lock_shared().is_err();
            if matches!(directory.remove_file(name, &file), Ok(true)) && waits {
                to_wake -= 1;
                if to_wake == 0 {
                    return;
                }
            }
        }
    }

    /// Begin to listen for the end of runners, and prepare to be woken. `None` if the kernel grants
    /// no inotify (its limits are per user).
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`], and [`LibrarianError::Untrusted`] if the runners directory
    /// or something in it must not be used; [`LibrarianError::Io`].
    pub(crate) fn listen(&self) -> Result<Option<Listener>, LibrarianError> {
        let Ok(inotify) = Inotify::init() else { return Ok(None) };
        let directory = self.create_runners_directory()?;
        directory.check_contents()?;
        match directory.create_file(MARKER, OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => {
                let path = directory.path().join(MARKER);
                created.map_err(|source| LibrarianError::CannotCreate { path, source })?;
            }
        }
        let mask = WatchMask::CLOSE_WRITE | WatchMask::DONT_FOLLOW | WatchMask::ONLYDIR;
        let Ok(directory) = inotify.watches().add(directory.path(), mask) else { return Ok(None) };
        Ok(Some(Listener { inotify, directory, waiting: None }))
    }
}

/// What inotify reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    None,
    /// A runner ended.
    RunnerEnded,
    /// Another process woke this runner.
    Woken,
    /// The runners directory was removed, or events were lost: listen anew.
    Lost,
}

/// Listens for the end of runners and, between [`begin`](Self::begin) and [`end`](Self::end), can
/// be woken.
#[derive(Debug)]
pub(crate) struct Listener {
    inotify: Inotify,
    directory: WatchDescriptor,
    waiting: Option<Waiting>,
}

/// The file by which other processes wake this one.
#[derive(Debug)]
struct Waiting {
    file: LockFile,
    watch: WatchDescriptor,
}

impl Listener {
    /// Whether other processes can wake this one.
    pub(crate) fn can_be_woken(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.file.has_name())
    }

    /// Let other processes wake this one; whether that is possible. Query for new work after this:
    /// a process that submitted before has woken another runner, or none.
    pub(crate) fn begin(&mut self, store: &DraftStore) -> bool {
        let file = store
            .create_runners_directory()
            .and_then(|directory| LockFile::create(directory, LockKind::Waiting, OFlags::RDONLY));
        // This process still polls, and the next run reports what is wrong with the directory.
        let Ok(file) = file else { return false };
        // The removal changes the number of links, which is reported although the file is open.
        let mask = WatchMask::ATTRIB | WatchMask::DONT_FOLLOW;
        let path = file.directory().path().join(file.name());
        match self.inotify.watches().add(path, mask) {
            Ok(watch) => self.waiting = Some(Waiting { file, watch }),
            Err(_) => {
                let _ = file.remove();
            }
        }
        self.waiting.is_some()
    }

    /// Let no process wake this one any more. Returns whether one did. A runner that was woken and
    /// does not look for work must wake another.
    pub(crate) fn end(&mut self) -> bool {
        let waiting = self.waiting.take();
        waiting.is_some_and(|waiting| matches!(waiting.file.remove(), Ok(false)))
    }

    /// Wait until `until`, or until inotify reports an event.
    pub(crate) fn wait(&mut self, until: Instant) -> Event {
        let left = until.saturating_duration_since(Instant::now());
        // An interruption ends the wait early; the caller's loop continues.
        let timeout = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], timeout.as_ref());
        let mut seen = Event::None;
        let mut buffer = [0; 4096];
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return seen,
                Err(_) => return Event::Lost,
            };
            for event in events {
                let waiting = self.waiting.as_ref();
                let event = if event.mask.contains(EventMask::Q_OVERFLOW) {
                    Event::Lost
                } else if event.wd == self.directory {
                    of_directory(&event)
                } else if waiting.is_some_and(|waiting| event.wd == waiting.watch) {
                    Event::Woken
                } else {
                    // The last event of an earlier waiting file.
                    Event::None
                };
                seen = seen.max(event);
            }
        }
    }
}

fn of_directory(event: &inotify::Event<&OsStr>) -> Event {
    if event.mask.contains(EventMask::IGNORED) {
        return Event::Lost;
    }
    let name = event.name.and_then(OsStr::to_str);
    match name.is_some_and(|name| LockKind::Runner.is_name(name)) {
        true => Event::RunnerEnded,
        false => Event::None,
    }
}
