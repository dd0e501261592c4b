//! Claims drafts.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::DraftStore;
use super::claimed::{Claim, ClaimKey, Claimed, NewClaims, Next};
use super::columns::{draft_columns, draft_of, get};
use super::finish::record_error;
use super::hold::hold_of_runner;
use super::registration::RunnerRegistration;
use super::snapshot::PendingSnapshot;
use crate::database::{TransactionError, is_row_fault};
use crate::draft::Draft;
use crate::error::{DraftDamage, LibrarianError};
use crate::id::DraftId;
use crate::state::DraftState;

/// The most bytes of text that are claimed together, if there is more than one draft.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Reads the next drafts that can be claimed.
pub(super) const NEXT_READY: &str = concat!(
    "SELECT ",
    draft_columns!(),
    ", claims, errors + crashes AS errors, suspect, text_bytes, raw_text \
     FROM drafts INDEXED BY drafts_ready LEFT JOIN draft_texts USING (seq) \
     WHERE state = 'pending' AND due_at = 0 AND drafts.seq > :after AND drafts.seq <= :until \
     ORDER BY drafts.seq LIMIT :want"
);

/// Reads those of these drafts that can still be claimed.
pub(super) const READY_AMONG: &str = concat!(
    "SELECT ",
    draft_columns!(),
    ", claims, errors + crashes AS errors, suspect, text_bytes, raw_text \
     FROM drafts LEFT JOIN draft_texts USING (seq) \
     WHERE drafts.seq IN (SELECT value FROM json_each(:seqs)) AND state = 'pending' AND due_at = 0 \
     ORDER BY drafts.seq"
);

macro_rules! claim_columns {
    () => {
        " SET state = 'processing', claimed_at = :now, claim_booted_at = :booted_at, \
              claim_token = randomblob(16), owner = :runner, \
              claims = min(claims, 999999999) + 1, \
              decision = NULL, note = NULL, output = NULL, usage = NULL, \
              updated_at = :now, revision = (revision + 1) & 4294967295 "
    };
}

/// Claims the drafts that were just read: that part of the index holds only claimable drafts, in
/// order. INDEXED BY keeps the planner from scanning the table.
pub(super) const CLAIM: &str = concat!(
    "UPDATE drafts INDEXED BY drafts_ready",
    claim_columns!(),
    "WHERE state = 'pending' AND due_at = 0 AND seq >= :first AND seq <= :last \
     RETURNING seq, claim_token"
);

/// Claims the drafts that were just read, between which there may be others.
pub(super) const CLAIM_AMONG: &str = concat!(
    "UPDATE drafts",
    claim_columns!(),
    "WHERE seq IN (SELECT value FROM json_each(:seqs)) AND state = 'pending' AND due_at = 0 \
     RETURNING seq, claim_token"
);

impl DraftStore {
    /// Claim the next draft of the snapshot that no other runner has claimed; `None` when the
    /// snapshot is used up. A claim survives a crash: the draft returns to pending once the runner
    /// is dead.
    ///
    /// A draft whose last runner died while it held that draft is claimed here like any other. If
    /// this runner holds other drafts as well and dies, none of them is blamed.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::OnHold`] if a hold is in force for the runner's processor;
    /// [`LibrarianError::RunnerEnded`] if the registration has ended, [`LibrarianError::Busy`] and
    /// [`LibrarianError::Database`]; nothing is claimed then.
    pub fn claim_next(
        &self,
        runner: &RunnerRegistration,
        snapshot: &mut PendingSnapshot,
    ) -> Result<Option<Claimed>, LibrarianError> {
        if snapshot.is_used_up() {
            return Ok(None);
        }
        loop {
            let request = ClaimRequest {
                candidates: self.candidates(snapshot, 1)?,
                snapshot,
                want: 1,
                holds_nothing: true,
                runner: runner.id(),
                now: self.now_ms(),
                booted_at: self.clock().booted_at_ms(),
            };
            let mut claims =
                self.write("claim a draft", |transaction| claim(transaction, &request))?;
            if let Some(hold) = claims.hold {
                return Err(LibrarianError::OnHold { hold: Box::new(hold) });
            }
            snapshot.advance(&claims);
            let claimed = claims.found.pop().map(|(_, claimed)| claimed);
            // With a filter, nothing may be found because another runner was faster.
            if claimed.is_some() || snapshot.is_used_up() {
                return Ok(claimed);
            }
        }
    }
}

/// What to claim, and for whom.
pub(super) struct ClaimRequest<'s> {
    pub runner: i64,
    pub snapshot: &'s PendingSnapshot,
    /// For a snapshot with a filter: the next drafts that pass it
    /// ([`candidates`](DraftStore::candidates)).
    pub candidates: Option<Vec<i64>>,
    /// At most this many.
    pub want: usize,
    /// Whether the runner holds no draft.
    pub holds_nothing: bool,
    pub now: i64,
    pub booted_at: i64,
}

/// Claim up to `want` drafts of the snapshot; none while a hold is in force for the processor.
///
/// Fewer are claimed if a text has several MiB, and before and after a suspect: a draft whose
/// runner died is claimed only while this runner holds nothing else (`holds_nothing`). If this
/// runner dies as well, it is clear which draft is to blame.
pub(super) fn claim(
    connection: &Connection,
    request: &ClaimRequest<'_>,
) -> Result<NewClaims, TransactionError> {
    let ClaimRequest { runner, now, .. } = *request;
    if request.candidates.as_ref().is_some_and(Vec::is_empty) {
        return Ok(NewClaims { next: Next::Nothing, ..NewClaims::default() });
    }
    let on_hold: Option<bool> = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM holds WHERE processor IN ('', runners.processor) \
                                AND (until IS NULL OR until > ?2)) \
             FROM runners WHERE id = ?1 AND ended_at IS NULL",
        )?
        .query_row([runner, now], |row| row.get(0))
        .optional()?;
    match on_hold {
        None => return Err(LibrarianError::RunnerEnded { runner }.into()),
        Some(true) => {
            let hold = hold_of_runner(connection, runner, now)?;
            return Ok(NewClaims { hold, ..NewClaims::default() });
        }
        Some(false) => {}
    }
    let (ready, found_suspect, next) = next_ready(connection, request)?;
    if ready.is_empty() {
        return Ok(NewClaims { next, ..NewClaims::default() });
    }
    let mut tokens = match claim_ready(connection, request, &ready) {
        // One of the rows cannot be changed: claim them one by one, without it.
        Err(error) if is_row_fault(&error) => {
            let mut tokens = Vec::with_capacity(ready.len());
            for draft in &ready {
                match claim_ready(connection, request, std::slice::from_ref(draft)) {
                    Ok(token) => tokens.extend(token),
                    Err(error) if is_row_fault(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            tokens
        }
        tokens => tokens?,
    };
    // SQLite promises no order for the rows that an UPDATE returns.
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
    Ok(NewClaims { found, found_suspect, next: Next::Drafts, hold: None })
}

/// Claim these drafts, which were just read. Returns their `seq` and the tokens of their claims.
fn claim_ready(
    connection: &Connection,
    request: &ClaimRequest<'_>,
    ready: &[Ready],
) -> Result<Vec<(i64, [u8; 16])>, rusqlite::Error> {
    let (Some(first), Some(last)) = (ready.first(), ready.last()) else { return Ok(Vec::new()) };
    let of_row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    if request.candidates.is_none() {
        let mut statement = connection.prepare_cached(CLAIM)?;
        let tokens = statement.query_map(
            named_params! {
                ":now": request.now,
                ":booted_at": request.booted_at,
                ":runner": request.runner,
                ":first": first.seq,
                ":last": last.seq,
            },
            of_row,
        )?;
        return tokens.collect();
    }
    let mut statement = connection.prepare_cached(CLAIM_AMONG)?;
    let tokens = statement.query_map(
        named_params! {
            ":now": request.now,
            ":booted_at": request.booted_at,
            ":runner": request.runner,
            ":seqs": json_array(ready.iter().map(|draft| draft.seq)),
        },
        of_row,
    )?;
    tokens.collect()
}

/// Numbers as a JSON array.
fn json_array(numbers: impl Iterator<Item = i64>) -> String {
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

/// A draft that can be claimed.
struct Ready {
    seq: i64,
    id: DraftId,
    claims: u64,
    errors: u64,
    draft: Result<Draft, DraftDamage>,
}

/// The next drafts of the snapshot to claim together, whether they are one suspect, and what
/// follows.
fn next_ready(
    connection: &Connection,
    request: &ClaimRequest<'_>,
) -> Result<(Vec<Ready>, bool, Next), TransactionError> {
    let ClaimRequest { snapshot, holds_nothing, .. } = *request;
    let mut statement = match &request.candidates {
        None => connection.prepare_cached(NEXT_READY)?,
        Some(_) => connection.prepare_cached(READY_AMONG)?,
    };
    let mut rows = match &request.candidates {
        None => statement.query(named_params! {
            ":after": snapshot.after,
            ":until": snapshot.until,
            ":want": i64::try_from(request.want).unwrap_or(i64::MAX),
        })?,
        Some(seqs) => {
            statement.query(named_params! { ":seqs": json_array(seqs.iter().copied()) })?
        }
    };
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
            // All zeros if the id cannot be read.
            id: get(row, "id").unwrap_or(DraftId::NONE),
            claims: row.get("claims").unwrap_or_default(),
            errors: row.get("errors").unwrap_or_default(),
            draft: draft_of(row),
        });
        if suspect {
            return Ok((ready, true, Next::Drafts));
        }
    }
    // If other runners have claimed all candidates, there may be more behind them.
    let taken = request.candidates.as_ref().is_some_and(|candidates| !candidates.is_empty());
    let next = if ready.is_empty() && !taken { Next::Nothing } else { Next::Drafts };
    Ok((ready, false, next))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rusqlite::Connection;

    use super::*;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};

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
            assert_eq!(claim(false), (vec![], false, Next::Suspect), "not with another");
        }
        assert_eq!(claim(true), (vec![2], true, Next::Drafts), "no other with it");
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
    fn no_more_is_claimed_than_the_snapshot_and_the_request_allow() {
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

    /// Otherwise a run would never end.
    #[test]
    fn a_snapshot_without_claimable_drafts_is_used_up() {
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
        let id: DraftId =
            sql.query_row("SELECT id FROM drafts WHERE seq = 2", [], |row| get(row, "id")).unwrap();
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
}
