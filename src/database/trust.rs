//! Whether the database and the files beside it may be used: one name, one owner, and no other user
//! who can write.
//!
//! Two names for one file lose drafts: each name has its own -wal and its own runners directory. So
//! a file with more than one link, and a file that is a mount point, are refused. A file or
//! directory that another user created or can write is refused too: it may lead elsewhere, be read
//! by its owner, or be swapped.
//!
//! Nothing here opens a file. Opening and closing the database, under whatever name, would drop
//! the locks that SQLite holds on it.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use super::facts::{Facts, FileIdentity, Owner, is_mapped, name_of, with_suffix};
use crate::error::LibrarianError;

/// The suffixes of SQLite's files beside the database.
const SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The suffix of the runners directory.
pub(crate) const RUNNERS_SUFFIX: &str = "-runners";

/// How long a file that root created may still belong to root: root creates a file first and
/// changes its owner then.
const OWNER_CHANGE_LIMIT: Duration = Duration::from_secs(2);

/// Permission to write, for the group and for all others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

const STICKY: u32 = 0o1000;

/// A database file that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Examined {
    pub identity: FileIdentity,
    pub owner: Owner,
}

/// Check the database at `path`, its directory, and the files beside it, without opening anything.
/// `path` is resolved (`file::resolve`): a link there is refused. `None` if there is no database;
/// directory and neighbours have been checked even then.
///
/// # Errors
///
/// [`LibrarianError::Untrusted`] and [`LibrarianError::ForeignDatabase`] if a file must not be
/// used, [`LibrarianError::Io`] if the check fails.
pub(crate) fn examine(path: &Path) -> Result<Option<Examined>, LibrarianError> {
    let facts = Facts::of(path).map_err(cannot_inspect(path))?;
    let owner = match &facts {
        Some(facts) => owner_of_database(path, facts)?,
        None => Owner::caller(),
    };
    check_directory_around(path, owner)?;
    for suffix in SUFFIXES {
        let beside = with_suffix(path, suffix);
        check(&beside, owner, Kind::File, || Facts::of(&beside))?;
    }
    let runners = with_suffix(path, RUNNERS_SUFFIX);
    check(&runners, owner, Kind::Directory, || Facts::of(&runners))?;
    Ok(facts.map(|facts| Examined { identity: facts.identity, owner }))
}

/// The database at the resolved `path`, for a process that only reads it. A user may read another
/// user's database, because nothing is created beside it and no data of the reader gets into it.
/// But a second name is refused, because its -wal would not be found. `None` if there is no
/// database.
///
/// # Errors
///
/// As for [`examine`].
pub(crate) fn examine_to_read(path: &Path) -> Result<Option<FileIdentity>, LibrarianError> {
    let Some(facts) = Facts::of(path).map_err(cannot_inspect(path))? else { return Ok(None) };
    let caller = Owner::caller();
    if facts.user == caller.user || (caller.user == 0 && is_mapped(facts.user)) {
        return Ok(examine(path)?.map(|examined| examined.identity));
    }
    check_regular(path, &facts)?;
    check_one_name(path, &facts)?;
    Ok(Some(facts.identity))
}

/// The kind of file that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file with one name.
    File,
    /// A directory, not a link to one.
    Directory,
}

/// Check a file beside the database. `read` returns its metadata. Returns the metadata if the file
/// exists and may be used.
pub(crate) fn check(
    path: &Path,
    owner: Owner,
    kind: Kind,
    read: impl Fn() -> io::Result<Option<Facts>>,
) -> Result<Option<Facts>, LibrarianError> {
    let started = Instant::now();
    loop {
        // A file without a link is being deleted.
        let found = read().map_err(cannot_inspect(path))?.filter(|facts| facts.links > 0);
        let Some(facts) = found else { return Ok(None) };
        let changes_owner = facts.user == 0 && owner.user != 0;
        if changes_owner && started.elapsed() < OWNER_CHANGE_LIMIT {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        check_facts(path, &facts, owner, kind)?;
        return Ok(Some(facts));
    }
}

fn check_facts(path: &Path, facts: &Facts, owner: Owner, kind: Kind) -> Result<(), LibrarianError> {
    let (expected, word) = match kind {
        Kind::File => (FileType::RegularFile, "regular file"),
        Kind::Directory => (FileType::Directory, "directory"),
    };
    if facts.kind != expected {
        let found = name_of(facts.kind);
        let remedy = format!("remove it: `rm -r {}`", quoted(path));
        return refused(path, format!("it is {found} and not a {word}"), remedy);
    }
    if kind == Kind::File {
        check_one_name(path, facts)?;
    }
    if facts.user != owner.user {
        return refused(
            path,
            format!("it belongs to user {} and the database to user {}", facts.user, owner.user),
            format!("if it is draftq's own: `sudo chown -h {} {}`", owner.user, quoted(path)),
        );
    }
    check_not_writable(path, facts)
}

/// Refuse a second link and a mount point: each is a second name.
fn check_one_name(path: &Path, facts: &Facts) -> Result<(), LibrarianError> {
    if facts.links > 1 {
        return refused(
            path,
            format!(
                "it has {} links, and under each name it would have a log and locks of its own, \
                 which loses drafts",
                facts.links
            ),
            format!(
                "use one name and remove the others: `find / -xdev -samefile {}` lists them",
                quoted(path)
            ),
        );
    }
    if facts.is_mount_point {
        return refused(
            path,
            "it is a mount point itself, so that its log and locks are not beside those of its \
             other name, which loses drafts"
                .to_owned(),
            "mount its directory instead of the file".to_owned(),
        );
    }
    Ok(())
}

fn check_not_writable(path: &Path, facts: &Facts) -> Result<(), LibrarianError> {
    if facts.mode & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }
    refused(
        path,
        format!("its mode {:o} lets its group or everybody write", facts.mode),
        format!("`chmod go-w {}`", quoted(path)),
    )
}

/// The database's owner, who must be the caller unless the caller is root.
fn owner_of_database(path: &Path, facts: &Facts) -> Result<Owner, LibrarianError> {
    check_regular(path, facts)?;
    check_one_name(path, facts)?;
    let caller = Owner::caller();
    let user = facts.user;
    if user != caller.user {
        if caller.user != 0 || !is_mapped(user) {
            return refused(
                path,
                format!("it belongs to user {user}, and this process is user {}", caller.user),
                format!(
                    "run draftq as its owner (`sudo -u '#{user}' draftq …`), or name another file \
                     with --db"
                ),
            );
        }
        if facts.size == 0 {
            return refused(
                path,
                format!("it is empty, and user {user}, who created it, could read the drafts"),
                format!(
                    "remove it (`rm {}`), or run draftq as its owner (`sudo -u '#{user}' draftq …`)",
                    quoted(path)
                ),
            );
        }
    }
    check_not_writable(path, facts)?;
    Ok(Owner { user, group: facts.group })
}

/// Check the database's directory: only the owner and root may be able to replace the database.
fn check_directory_around(database: &Path, owner: Owner) -> Result<(), LibrarianError> {
    let Some(path) = database.parent() else { return Ok(()) };
    let Some(facts) = Facts::of(path).map_err(cannot_inspect(path))? else { return Ok(()) };
    let user = facts.user;
    // In a user namespace, the real root and all other users outside have no number.
    if user != owner.user && user != 0 && is_mapped(user) {
        return refused(
            path,
            format!(
                "the directory belongs to user {user}, who can replace the database of user {}",
                owner.user
            ),
            format!(
                "run draftq as user {user} (`sudo -u '#{user}' draftq …`), or keep the database in \
                 a directory of user {}",
                owner.user
            ),
        );
    }
    // A user's private group has the user's number (umask 002 is usual with it).
    let private_group = facts.group == user && (1000..60_000).contains(&user);
    let writable = facts.mode & if private_group { 0o002 } else { WRITABLE_BY_OTHERS };
    if writable == 0 {
        return Ok(());
    }
    if facts.mode & STICKY == 0 {
        return refused(
            path,
            format!(
                "the directory's mode {:o} lets its group or everybody replace the database",
                facts.mode
            ),
            format!("`chmod go-w {}`", quoted(path)),
        );
    }
    if owner.is_another() {
        let user = owner.user;
        return refused(
            database,
            format!(
                "it belongs to user {user} and is in a directory where everybody may create files, \
                 so that it may have been created to collect drafts of others"
            ),
            format!("run draftq as its owner: `sudo -u '#{user}' draftq …`"),
        );
    }
    Ok(())
}

fn check_regular(path: &Path, facts: &Facts) -> Result<(), LibrarianError> {
    match facts.kind {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => refused(
            path,
            "it was replaced by a symbolic link".to_owned(),
            "start draftq again".to_owned(),
        ),
        _ => Err(LibrarianError::ForeignDatabase {
            path: path.to_owned(),
            reason: "it is not a regular file; name another with --db".to_owned(),
        }),
    }
}

fn refused<T>(path: &Path, problem: String, remedy: String) -> Result<T, LibrarianError> {
    Err(LibrarianError::Untrusted { path: path.to_owned(), problem, remedy })
}

fn cannot_inspect(path: &Path) -> impl FnOnce(io::Error) -> LibrarianError {
    let path = path.to_owned();
    move |source| LibrarianError::Io { doing: "inspect", path, source }
}

/// The path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:,".contains(c);
    if path.chars().all(plain) {
        return path.into_owned();
    }
    let mut quoted = String::from("'");
    for c in path.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            c => {
                let _ = quoted.write_char(c);
            }
        }
    }
    quoted.push('\'');
    quoted
}
