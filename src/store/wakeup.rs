//! How a submitter wakes a waiting runner.
//!
//! Each waiting runner has a file in the runners directory, among the lock files, and holds it
//! locked. A process that submits or requeues removes one such file for each draft; inotify reports
//! the removal to the runner whose file it was, and to no other. So each draft wakes one runner,
//! however many wait. A file whose lock is free belongs to a process that has ended; it is removed,
//! and wakes nobody.
//!
//! The name of the file of a runner with a filter ends in the filter's key. Each draft wakes one
//! runner without a filter, and one of each filter. A runner that may not claim the draft waits on.
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
use crate::database::{FileIdentity, RunnersDirectory};
use crate::error::LibrarianError;
use crate::filter::DraftFilter;

/// An empty file that shows that a runner has waited for work at some time.
const MARKER: &str = "wakeup";

impl DraftStore {
    /// Wake as many waiting runners as there are new drafts, and as many of each filter. Call it
    /// after the commit, because the work must be visible by then. (An inotify watch on the -wal file
    /// fires before it is.)
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
        // How many runners were woken, by filter.
        let mut woken: Vec<(&str, usize)> = Vec::new();
        for name in &names {
            let Some(name) = name.to_str().filter(|name| LockKind::Waiting.is_name(name)) else {
                continue;
            };
            let filter = filter_of(name);
            let place = woken.iter().position(|(key, _)| *key == filter).unwrap_or(woken.len());
            if woken.get(place).is_some_and(|(_, count)| *count >= drafts) {
                continue;
            }
            let Ok(Some(file)) = directory.open_file(name, OFlags::RDONLY) else { continue };
            let waits = file.try_lock_shared().is_err();
            if matches!(directory.remove_file(name, &file), Ok(true)) && waits {
                match woken.get_mut(place) {
                    Some((_, count)) => *count += 1,
                    None => woken.push((filter, 1)),
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
        let listener = Listener::on(inotify, &directory);
        Ok(listener.ok())
    }
}

/// The part of the name of a waiting runner's file that stands for its filter; empty if it has none.
fn filter_of(name: &str) -> &str {
    name.get(16..).unwrap_or_default().trim_end_matches(".waiting")
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
    directory: (FileIdentity, WatchDescriptor),
    waiting: Option<Waiting>,
}

/// The file by which other processes wake this one.
#[derive(Debug)]
struct Waiting {
    file: LockFile,
    watch: WatchDescriptor,
}

impl Listener {
    fn on(inotify: Inotify, directory: &RunnersDirectory) -> io::Result<Self> {
        let directory = listen_to(&inotify, directory)?;
        Ok(Self { inotify, directory, waiting: None })
    }

    /// Whether other processes can wake this one.
    pub(crate) fn can_be_woken(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.file.has_name())
    }

    /// Let other processes wake this one for drafts that pass the filter; whether that is possible.
    /// Query for new work after this: a process that submitted before has woken another runner, or
    /// none.
    pub(crate) fn begin(&mut self, store: &DraftStore, filter: &DraftFilter) -> bool {
        let key = (!filter.is_empty()).then(|| filter.key());
        let file = store
            .create_runners_directory()
            .and_then(|directory| LockFile::create_waiting(directory, key));
        // This process still polls, and the next run reports what is wrong with the directory.
        let Ok(file) = file else { return false };
        match self.listen_for_removal(&file) {
            Ok(watch) => self.waiting = Some(Waiting { file, watch }),
            Err(_) => {
                let _ = file.remove();
            }
        }
        self.waiting.is_some()
    }

    fn listen_for_removal(&mut self, file: &LockFile) -> io::Result<WatchDescriptor> {
        let directory = file.directory();
        // After the directory was removed, another one is at its path.
        if directory.identity()? != self.directory.0 {
            self.directory = listen_to(&self.inotify, directory)?;
        }
        // The removal changes the number of links, which is reported although the file is open.
        let mask = WatchMask::ATTRIB | WatchMask::DONT_FOLLOW;
        self.inotify.watches().add(directory.path().join(file.name()), mask)
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
                } else if event.wd == self.directory.1 {
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

/// Have inotify report the end of runners in this directory.
fn listen_to(
    inotify: &Inotify,
    directory: &RunnersDirectory,
) -> io::Result<(FileIdentity, WatchDescriptor)> {
    let mask = WatchMask::CLOSE_WRITE | WatchMask::DONT_FOLLOW | WatchMask::ONLYDIR;
    Ok((directory.identity()?, inotify.watches().add(directory.path(), mask)?))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn store() -> (tempfile::TempDir, DraftStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        (directory, store)
    }

    fn waiting(store: &DraftStore) -> Listener {
        let mut listener = store.listen().unwrap().unwrap();
        assert!(listener.begin(store, &DraftFilter::default()) && listener.can_be_woken());
        listener
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// The order in which the directory lists them decides which one.
    #[test]
    fn each_draft_wakes_one_of_those_that_wait() {
        let (_directory, store) = store();
        let mut left: Vec<Listener> = (0..5).map(|_| waiting(&store)).collect();
        for drafts in [1, 3] {
            store.notify(drafts);
            let (awake, asleep): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|listener| !listener.can_be_woken());
            assert_eq!(awake.len(), drafts);
            for mut listener in awake {
                assert_eq!(listener.wait(in_a_minute()), Event::Woken);
                assert!(listener.end(), "it was woken");
                assert!(!listener.can_be_woken());
            }
            left = asleep;
        }
        let mut last = left.pop().unwrap();
        assert_eq!(last.wait(Instant::now()), Event::None);
        assert!(!last.end(), "nobody woke it");
        // Now nobody waits, and nothing is left behind.
        store.notify(1);
        let names = store.runners_directory().unwrap().unwrap().names().unwrap();
        assert!(!names.iter().any(|name| LockKind::Waiting.is_name(name.to_str().unwrap())));
    }

    #[test]
    fn each_draft_wakes_one_runner_without_a_filter_and_one_of_each_filter() {
        let (_directory, store) = store();
        let filters = ["", "a", "a", "b"].map(|project| match project {
            "" => DraftFilter::default(),
            project => DraftFilter::default().source_project(project),
        });
        let mut listeners = filters.map(|filter| {
            let mut listener = store.listen().unwrap().unwrap();
            assert!(listener.begin(&store, &filter));
            listener
        });
        store.notify(1);
        let asleep = listeners.each_mut().map(|listener| usize::from(listener.can_be_woken()));
        let [all, a, other_a, b] = asleep;
        assert_eq!((all, a + other_a, b), (0, 1, 0));
        store.notify(1);
        assert!(listeners.iter().all(|listener| !listener.can_be_woken()));
    }

    #[test]
    fn one_that_died_while_it_waited_takes_no_notification() {
        let (_directory, store) = store();
        let directory = store.create_runners_directory().unwrap();
        for number in 0..20 {
            let name = format!("{number:016x}.waiting");
            drop(directory.create_file(&name, OFlags::RDONLY).unwrap());
        }
        let mut listener = waiting(&store);
        store.notify(1);
        assert_eq!(listener.wait(in_a_minute()), Event::Woken);
    }

    #[test]
    fn a_wait_after_another_one_is_woken_as_well() {
        let (_directory, store) = store();
        let mut listener = waiting(&store);
        for _ in 0..3 {
            store.notify(1);
            assert_eq!(listener.wait(in_a_minute()), Event::Woken);
            assert!(listener.end());
            assert!(listener.begin(&store, &DraftFilter::default()));
        }
        assert!(!listener.end());
        assert!(listener.begin(&store, &DraftFilter::default()));
        // What is left of the files of earlier waits wakes nobody.
        while listener.wait(Instant::now()) != Event::None {}
        assert_eq!(listener.wait(Instant::now()), Event::None);
        store.notify(1);
        assert_eq!(listener.wait(in_a_minute()), Event::Woken);
    }

    #[test]
    fn the_end_of_a_runner_is_reported_also_after_the_directory_was_removed() {
        let (_directory, store) = store();
        let mut listener = waiting(&store);
        let runner = store.take_runner_lock().unwrap();
        assert_eq!(listener.wait(Instant::now()), Event::None);
        drop(runner);
        assert_eq!(listener.wait(in_a_minute()), Event::RunnerEnded);
        // Held open, as by a registered runner.
        let _held = store.create_runners_directory().unwrap();
        std::fs::remove_dir_all(&store.inner.runners_directory).unwrap();
        assert_eq!(listener.wait(in_a_minute()), Event::Woken);
        assert!(listener.begin(&store, &DraftFilter::default()) && listener.can_be_woken());
        drop(store.take_runner_lock().unwrap());
        let mut events = std::iter::from_fn(|| Some(listener.wait(in_a_minute())));
        assert!(events.find(|event| *event != Event::None) == Some(Event::RunnerEnded));
    }
}
