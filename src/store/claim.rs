//! A draft is claimed.
//!
//! A claim carries a token that no other claim ever had, and every move out of `processing` by
//! its holder is guarded by it: the fencing token of distributed locks (Kleppmann, 2016), kept
//! where the resource is. [`Claim`] owns the token and is consumed by the move, so it cannot be
//! finished twice; a holder that lost its claim is told so and changes nothing.

use std::fmt;

use rusqlite::{Connection, OptionalExtension as _, named_params, params};

use super::batch::is_row_fault;
use super::columns::{draft_of, get};
use super::finish::record_error;
use super::registration::RunnerRegistration;
use super::{DraftStore, draft_columns};
use crate::database::TransactionError;
use crate::draft::Draft;
use crate::error::{DraftDamage, LibrarianError};
use crate::id::DraftId;
use crate::state::DraftState;

/// Most bytes of text that are claimed together, if it is more than one draft.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Most drafts that one transaction makes claimable, so that others need not wait long for the
/// write lock.
const MAX_RELEASED: usize = 5_000;

/// What one run may claim: the drafts that were ready at one moment, in order of submission.
#[derive(Debug, Clone)]
pub struct PendingSnapshot {
    pending_seen: usize,
    /// Drafts up to here were claimed already: one that this run deferred is not met again.
    after: i64,
    /// Drafts beyond this came in later.
    until: i64,
    /// Never more than were seen: one that is requeued meanwhile may be between the others.
    remaining: usize,
}

impl PendingSnapshot {
    /// How many drafts were pending and due.
    #[must_use]
    pub fn pending_seen(&self) -> usize {
        self.pending_seen
    }

    /// Whether nothing more can be claimed from it.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.remaining == 0 || self.after >= self.until
    }

    /// How many drafts can still be claimed from it, at most.
    pub(super) fn remaining(&self) -> usize {
        if self.is_used_up() { 0 } else { self.remaining }
    }

    /// Move on past what was claimed.
    pub(crate) fn advance(&mut self, claims: &NewClaims) {
        match claims.next {
            Next::Drafts => self.after = claims.found.last().map_or(self.after, |(seq, _)| *seq),
            Next::Nothing => self.after = self.until,
            Next::Suspect => {}
        }
        self.remaining = self.remaining.saturating_sub(claims.found.len());
    }

    /// Go back to the first of these claims, which were given back.
    pub(crate) fn rewind(&mut self, released: &[Box<Claim>]) {
        if let Some(first) = released.iter().map(|claim| claim.key.seq).min() {
            self.after = self.after.min(first - 1);
            self.remaining += released.len();
        }
    }
}

/// A draft that a runner holds. Dropping it leaves the draft in `processing`; it is recovered
/// once the runner's registration has ended.
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its draft in processing"]
pub struct Claim {
    pub(super) key: ClaimKey,
    draft: Draft,
    claims: u64,
    errors: u64,
}

impl Claim {
    /// The draft.
    #[must_use]
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// How often the draft has been claimed, this time included.
    #[must_use]
    pub fn claims(&self) -> u64 {
        self.claims
    }

    /// How many errors and crashes it had before.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors
    }
}

/// What it takes to move a claimed draft on.
pub(super) struct ClaimKey {
    pub seq: i64,
    pub id: DraftId,
    pub token: [u8; 16],
    pub runner: i64,
}

impl fmt::Debug for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimKey({} by runner {})", self.id, self.runner)
    }
}

/// What [`DraftStore::claim_next`] found.
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its draft in processing"]
#[non_exhaustive]
pub enum Claimed {
    /// A draft to process.
    Draft(Box<Claim>),
    /// A draft that is not what was submitted: its row or text was altered or damaged from outside
    /// ([`LibrarianError::DamagedDraft`]). It is not processed; the snapshot continues after it.
    Unreadable {
        /// The draft.
        id: DraftId,
        /// The state that it is in: `processing` with the error recorded, or `pending` if its row
        /// cannot be changed.
        state: DraftState,
    },
}

/// The claims of one transaction.
#[derive(Debug, Default)]
pub(crate) struct NewClaims {
    /// The drafts with their `seq`, in order.
    pub found: Vec<(i64, Claimed)>,
    /// Whether they are one suspect.
    pub found_suspect: bool,
    /// What follows them.
    pub next: Next,
}

/// What a claim would find next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Next {
    /// Perhaps more drafts.
    #[default]
    Drafts,
    /// A suspect, which is claimed only by a runner that holds nothing else.
    Suspect,
    /// Nothing: the snapshot is used up.
    Nothing,
}

impl DraftStore {
    /// Which drafts a run that begins now may claim.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn pending_snapshot(&self) -> Result<PendingSnapshot, LibrarianError> {
        self.database().read("count what is pending", |connection| {
            let last = connection
                .prepare_cached(
                    "SELECT seq FROM drafts INDEXED BY drafts_ready \
                     WHERE state = 'pending' AND due_at = 0 ORDER BY seq DESC LIMIT 1",
                )?
                .query_row([], |row| row.get(0))
                .optional()?
                .unwrap_or(0);
            let seen = super::counts::ready(connection)?;
            let pending_seen = usize::try_from(seen).unwrap_or(usize::MAX);
            Ok(PendingSnapshot { pending_seen, after: 0, until: last, remaining: pending_seen })
        })
    }

    /// Claim the next draft of the snapshot that nobody else has claimed, or `None` when it is
    /// used up. When this returns a draft, the claim survives a crash: the draft goes back to
    /// pending once the runner is dead.
    ///
    /// A draft that was in the hands of a runner that died is claimed here like any other. If
    /// this runner holds other drafts as well and dies, none of them is blamed.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::RunnerEnded`] if the registration is over, [`LibrarianError::Busy`] and
    /// [`LibrarianError::Database`]; nothing is claimed then.
    pub fn claim_next(
        &self,
        runner: &RunnerRegistration,
        snapshot: &mut PendingSnapshot,
    ) -> Result<Option<Claimed>, LibrarianError> {
        let mut claims = self.exchange(runner, &[], &[], snapshot, 1, true)?.claims;
        snapshot.advance(&claims);
        Ok(claims.found.pop().map(|(_, claimed)| claimed))
    }

    /// Make claimable what has waited until its time. Returns how many drafts.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn release_due(&self) -> Result<usize, LibrarianError> {
        let now = self.now_ms();
        let mut released = 0;
        // A draft whose row cannot be changed is passed over.
        let mut after = (0, 0);
        loop {
            // Most often nothing is due, and this read takes no lock.
            let due = self.database().statement("look for what is due", |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT due_at, seq FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0 AND due_at <= ?1 \
                         AND (due_at, seq) > (?2, ?3) \
                     ORDER BY due_at, seq LIMIT ?4",
                )?;
                let most = i64::try_from(MAX_RELEASED).unwrap_or(i64::MAX);
                let due = statement.query_map(params![now, after.0, after.1, most], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
                Ok(due.collect::<Result<Vec<(i64, i64)>, _>>()?)
            })?;
            let Some(last) = due.last() else { return Ok(released) };
            after = *last;
            released += self.write("release what is due", |transaction| {
                let mut statement = transaction.prepare_cached(
                    "UPDATE drafts SET due_at = 0, updated_at = ?1, \
                         revision = (revision + 1) & 4294967295 \
                     WHERE seq = ?2 AND state = 'pending' AND due_at > 0 AND due_at <= ?1",
                )?;
                let mut released = 0;
                for (_, seq) in &due {
                    match statement.execute(params![now, seq]) {
                        Ok(changed) => released += changed,
                        Err(error) if is_row_fault(&error) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(released)
            })?;
            if due.len() < MAX_RELEASED {
                return Ok(released);
            }
        }
    }
}

/// Claim up to `want` drafts of the snapshot.
///
/// Fewer are claimed where a text has several MiB, and before and after a suspect: a draft that
/// was in the hands of a runner that died is claimed only while this runner holds nothing else
/// (`holds_nothing`). If it brings this runner down as well, it is clear which draft did.
pub(super) fn claim(
    connection: &Connection,
    runner: i64,
    snapshot: &PendingSnapshot,
    want: usize,
    holds_nothing: bool,
    now: i64,
    booted_at: i64,
) -> Result<NewClaims, TransactionError> {
    let registered: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM runners WHERE id = ?1 AND ended_at IS NULL)")?
        .query_row([runner], |row| row.get(0))?;
    if !registered {
        return Err(LibrarianError::RunnerEnded { runner }.into());
    }
    let (ready, found_suspect, next) = next_ready(connection, snapshot, want, holds_nothing)?;
    let (Some(first), Some(last)) = (ready.first(), ready.last()) else {
        return Ok(NewClaims { next, ..NewClaims::default() });
    };
    // One UPDATE over the part of the index that was just read. It holds only what can be
    // claimed, in the order of claims; naming it keeps the planner from a scan of the table.
    let claim = |first: i64, last: i64| -> Result<Vec<(i64, [u8; 16])>, rusqlite::Error> {
        let mut statement = connection.prepare_cached(
            "UPDATE drafts INDEXED BY drafts_ready SET state = 'processing', claimed_at = :now, \
                 claim_booted_at = :booted_at, claim_token = randomblob(16), owner = :runner, \
                 claims = min(claims, 999999999) + 1, \
                 decision = NULL, note = NULL, output = NULL, usage = NULL, \
                 updated_at = :now, revision = (revision + 1) & 4294967295 \
             WHERE state = 'pending' AND due_at = 0 AND seq >= :first AND seq <= :last \
             RETURNING seq, claim_token",
        )?;
        let tokens = statement.query_map(
            named_params! {
                ":now": now,
                ":booted_at": booted_at,
                ":runner": runner,
                ":first": first,
                ":last": last,
            },
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        tokens.collect()
    };
    let mut tokens = match claim(first.seq, last.seq) {
        // One of the rows cannot be changed: claim them one by one, and pass it over.
        Err(error) if is_row_fault(&error) => {
            let mut tokens = Vec::with_capacity(ready.len());
            for draft in &ready {
                match claim(draft.seq, draft.seq) {
                    Ok(token) => tokens.extend(token),
                    Err(error) if is_row_fault(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tokens
        }
        tokens => tokens?,
    };
    // SQLite promises no order for what an UPDATE returns.
    tokens.sort_unstable_by_key(|(seq, _)| *seq);
    let mut tokens = tokens.into_iter().peekable();
    let mut found = Vec::with_capacity(ready.len());
    for Ready { seq, id, claims, errors, draft } in ready {
        let token = tokens.next_if(|(claimed, _)| *claimed == seq).map(|(_, token)| token);
        let claimed = match (token, draft) {
            (Some(token), Ok(draft)) => {
                let key = ClaimKey { seq, id, token, runner };
                Claimed::Draft(Box::new(Claim { key, draft, claims: claims + 1, errors }))
            }
            (Some(token), Err(damage)) => {
                let key = ClaimKey { seq, id, token, runner };
                let error = LibrarianError::DamagedDraft { id, damage };
                record_error(connection, &key, &error, now)?;
                Claimed::Unreadable { id, state: DraftState::Processing }
            }
            (None, _) => Claimed::Unreadable { id, state: DraftState::Pending },
        };
        found.push((seq, claimed));
    }
    Ok(NewClaims { found, found_suspect, next: Next::Drafts })
}

/// A draft that can be claimed.
struct Ready {
    seq: i64,
    id: DraftId,
    claims: u64,
    errors: u64,
    draft: Result<Draft, DraftDamage>,
}

/// The next drafts of the snapshot that are to be claimed together.
fn next_ready(
    connection: &Connection,
    snapshot: &PendingSnapshot,
    want: usize,
    holds_nothing: bool,
) -> Result<(Vec<Ready>, bool, Next), TransactionError> {
    let mut statement = connection.prepare_cached(concat!(
        "SELECT ",
        draft_columns!(),
        ", claims, errors + crashes AS errors, suspect, text_bytes, raw_text \
         FROM drafts INDEXED BY drafts_ready LEFT JOIN draft_texts USING (seq) \
         WHERE state = 'pending' AND due_at = 0 AND drafts.seq > :after AND drafts.seq <= :until \
         ORDER BY drafts.seq LIMIT :want"
    ))?;
    let mut rows = statement.query(named_params! {
        ":after": snapshot.after,
        ":until": snapshot.until,
        ":want": i64::try_from(want).unwrap_or(i64::MAX),
    })?;
    let (mut ready, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let suspect = row.get::<_, i64>("suspect")? != 0;
        bytes += usize::try_from(row.get::<_, i64>("text_bytes")?).unwrap_or(0);
        if suspect && !(holds_nothing && ready.is_empty()) {
            let next = if ready.is_empty() { Next::Suspect } else { Next::Drafts };
            return Ok((ready, false, next));
        }
        if !ready.is_empty() && bytes > MAX_BATCH_BYTES {
            break;
        }
        ready.push(Ready {
            seq: row.get("seq")?,
            // All zeros where the row has no id that can be read.
            id: get(row, "id").unwrap_or(DraftId::NONE),
            claims: row.get("claims").unwrap_or_default(),
            errors: row.get("errors").unwrap_or_default(),
            draft: draft_of(row),
        });
        if suspect {
            return Ok((ready, true, Next::Drafts));
        }
    }
    let next = if ready.is_empty() { Next::Nothing } else { Next::Drafts };
    Ok((ready, false, next))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rusqlite::Connection;

    use super::*;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};
    use crate::state::DraftState;

    /// A store with drafts of these texts.
    fn store(texts: &[&str]) -> (tempfile::TempDir, DraftStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        for text in texts {
            let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
            store.submit(&Draft::with_metadata((*text).to_owned(), metadata)).unwrap();
        }
        (directory, store)
    }

    /// Claim at most `want`; the places in the order, whether it is a suspect, and what is next.
    fn claim_up_to(
        store: &DraftStore,
        runner: &RunnerRegistration,
        snapshot: &mut PendingSnapshot,
        want: usize,
        holds_nothing: bool,
    ) -> (Vec<i64>, bool, Next) {
        let exchanged = store.exchange(runner, &[], &[], snapshot, want, holds_nothing).unwrap();
        let claims = exchanged.claims;
        snapshot.advance(&claims);
        let found = claims.found.iter().map(|(seq, _)| *seq).collect();
        (found, claims.found_suspect, claims.next)
    }

    #[test]
    fn a_suspect_is_claimed_alone_and_by_a_runner_that_holds_nothing() {
        let (_directory, store) = store(&["a", "b", "c", "d"]);
        let sql = Connection::open(store.path()).unwrap();
        sql.execute("UPDATE drafts SET suspect = 1 WHERE seq = 2", []).unwrap();
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let mut claim =
            |holds_nothing| claim_up_to(&store, &runner, &mut snapshot, 10, holds_nothing);
        assert_eq!(claim(true), (vec![1], false, Next::Drafts), "not together with others");
        for _ in 0..2 {
            assert_eq!(claim(false), (vec![], false, Next::Suspect), "not beside another");
        }
        assert_eq!(claim(true), (vec![2], true, Next::Drafts), "no other beside it");
        assert_eq!(claim(false), (vec![3, 4], false, Next::Drafts));
        assert!(snapshot.is_used_up());
    }

    #[test]
    fn long_texts_are_not_claimed_together() {
        let three_mib = |letter: &str| letter.repeat(3 * 1024 * 1024);
        let texts = [three_mib("a"), three_mib("b"), "x".repeat(6 * 1024 * 1024), "c".into()];
        let (_directory, store) = store(&texts.each_ref().map(String::as_str));
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let claims: Vec<_> =
            (0..4).map(|_| claim_up_to(&store, &runner, &mut snapshot, 10, true).0).collect();
        assert_eq!(claims, [vec![1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn no_more_is_claimed_than_was_seen_and_asked_for() {
        let (_directory, store) = store(&["a", "b", "c"]);
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        // One is gone, and a later one is not of the snapshot.
        snapshot.remaining = 2;
        assert_eq!(claim_up_to(&store, &runner, &mut snapshot, 1, true).0, [1]);
        assert_eq!(claim_up_to(&store, &runner, &mut snapshot, 10, true).0, [2]);
        assert!(snapshot.is_used_up());
        assert_eq!(claim_up_to(&store, &runner, &mut snapshot, 10, true).0, [0; 0]);
    }

    /// Or a run would ask for it for ever.
    #[test]
    fn a_snapshot_whose_last_draft_another_took_is_used_up() {
        let (_directory, store) = store(&["a", "b"]);
        let (runner, other) =
            (store.register_runner("test").unwrap(), store.register_runner("other").unwrap());
        let mut snapshot = store.pending_snapshot().unwrap();
        assert_eq!(claim_up_to(&store, &runner, &mut snapshot, 1, true).0, [1]);
        let mut theirs = store.pending_snapshot().unwrap();
        assert_eq!(claim_up_to(&store, &other, &mut theirs, 1, true).0, [2]);
        assert!(!snapshot.is_used_up());
        let nothing = claim_up_to(&store, &runner, &mut snapshot, 1, true);
        assert_eq!(nothing, (vec![], false, Next::Nothing));
        assert!(snapshot.is_used_up());
    }

    #[test]
    fn a_runner_that_ended_claims_nothing() {
        let (_directory, store) = store(&["a"]);
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let sql = Connection::open(store.path()).unwrap();
        let count = "SELECT count(*) FROM drafts WHERE state = 'processing'";
        for end in ["UPDATE runners SET ended_at = 1", "DELETE FROM runners"] {
            sql.execute(end, []).unwrap();
            let error = store.claim_next(&runner, &mut snapshot).unwrap_err();
            assert!(matches!(error, LibrarianError::RunnerEnded { .. }), "{end}: {error:?}");
            let claimed: i64 = sql.query_row(count, [], |row| row.get(0)).unwrap();
            assert_eq!(claimed, 0, "{end}");
        }
    }

    #[test]
    fn each_claim_has_a_token_that_no_other_has() {
        let (_directory, store) = store(&["a", "b"]);
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let sql = Connection::open(store.path()).unwrap();
        assert_eq!(claim_up_to(&store, &runner, &mut snapshot, 1, true).0, [1]);
        let id: DraftId = sql
            .query_row("SELECT id FROM drafts WHERE seq = 2", [], |row| {
                crate::store::columns::get(row, "id")
            })
            .unwrap();
        let mut tokens = std::collections::HashSet::new();
        for _ in 0..3 {
            store.transition(id, DraftState::Pending, DraftState::Processing).unwrap();
            let mut statement = sql
                .prepare("SELECT claim_token FROM drafts WHERE claim_token IS NOT NULL")
                .unwrap();
            let found = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
            tokens.extend(found.map(Result::unwrap));
            store.transition(id, DraftState::Processing, DraftState::Pending).unwrap();
        }
        assert_eq!(tokens.len(), 4, "one of the runner's claim, three of the others");
    }

    /// More drafts are due at once than one transaction releases, and most of their rows cannot be
    /// changed.
    #[test]
    fn all_that_is_due_is_released_and_what_cannot_be_is_passed_over() {
        let (_directory, store) = store(&[]);
        let drafts: Vec<Draft> = (0..=MAX_RELEASED)
            .map(|number| {
                let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
                Draft::with_metadata(number.to_string(), metadata)
            })
            .collect();
        store.submit_many(&drafts).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        sql.execute_batch(&format!(
            "UPDATE drafts SET due_at = 1;
             CREATE TRIGGER stays BEFORE UPDATE OF due_at ON drafts WHEN OLD.seq <= {MAX_RELEASED}
             BEGIN SELECT RAISE(ABORT, 'it stays'); END;"
        ))
        .unwrap();
        assert_eq!(store.release_due().unwrap(), 1, "the last one");
        sql.execute_batch("DROP TRIGGER stays; UPDATE drafts SET due_at = 1").unwrap();
        assert_eq!(store.release_due().unwrap(), MAX_RELEASED + 1);
    }
}
