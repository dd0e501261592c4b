//! A draft is claimed and finished.
//!
//! A claim carries a token that no other claim ever had, and every move out of `processing` by
//! its holder is guarded by it: the fencing token of distributed locks (Kleppmann, 2016), kept
//! where the resource is. [`Claim`] owns the token and is consumed by the move, so it cannot be
//! finished twice; a holder that lost its claim is told so and changes nothing.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, ToSql, named_params, params};

use super::columns::draft_of;
use super::recovery::RunnerRegistration;
use super::tally::Tally;
use super::{DraftStore, DraftTransition, draft_columns};
use crate::clock::{MAX_UNIX_MS, duration_ms};
use crate::database::Fault;
use crate::draft::{Draft, DraftId};
use crate::error::{DraftDamage, LibrarianError};
use crate::processor::{MAX_DELAY, Outcome};
use crate::state::{DraftProcessingDecision, DraftState};

/// Most bytes of text that are claimed together, if it is more than one draft.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Most bytes of an error that are stored with a draft.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// What one run may claim: the drafts that were ready at one moment, in order of submission.
#[derive(Debug, Clone)]
pub struct PendingSnapshot {
    pending_seen: usize,
    /// Drafts up to here are behind us: one that this run deferred is not met again.
    after: i64,
    /// Drafts beyond this came in later.
    until: i64,
    /// As many as were seen: one that is requeued meanwhile may stand between the others.
    remaining: usize,
}

impl PendingSnapshot {
    /// How many drafts were pending and due.
    #[must_use]
    pub fn pending_seen(&self) -> usize {
        self.pending_seen
    }

    /// Whether nothing more is to be had from it.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.remaining == 0 || self.after >= self.until
    }

    /// What was asked for has been claimed, or there was nothing left.
    pub(crate) fn pass(&mut self, claimed: &[(i64, Claimed)]) {
        self.after = claimed.last().map_or(self.until, |(seq, _)| *seq);
        self.remaining = self.remaining.saturating_sub(claimed.len());
    }

    /// These claims, the last that were made, were given back.
    pub(crate) fn take_back(&mut self, released: &[Box<Claim>]) {
        if let Some(first) = released.iter().map(|claim| claim.held.seq).min() {
            self.after = first - 1;
            self.remaining += released.len();
        }
    }
}

/// A draft in its holder's hands. Dropping it leaves the draft in `processing`, to be taken back
/// once the runner's registration is gone.
#[derive(Debug)]
pub struct Claim {
    held: Held,
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

    /// How many errors it had before.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors
    }
}

/// What it takes to move a claimed draft on.
struct Held {
    seq: i64,
    id: DraftId,
    token: [u8; 16],
    runner: i64,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} by runner {})", self.id, self.runner)
    }
}

/// A claim whose processor has answered, and what it said.
#[derive(Debug)]
pub(crate) struct Settled {
    pub claim: Box<Claim>,
    pub verdict: Result<Outcome, LibrarianError>,
}

/// What one exchange with the store brought.
#[derive(Debug, Default)]
pub(crate) struct Exchanged {
    /// For each settled claim, whether it was still held.
    pub held: Vec<bool>,
    /// The new claims with their `seq`, in order.
    pub claimed: Vec<(i64, Claimed)>,
}

/// What [`DraftStore::claim_next`] came upon.
#[derive(Debug)]
pub enum Claimed {
    /// A draft to process.
    Draft(Box<Claim>),
    /// A draft that was claimed and is not what was submitted: its row or text was altered or
    /// damaged from outside ([`LibrarianError::DamagedDraft`]). It counts an error and stays in `processing`, like one whose processor erred,
    /// so that it does not stand in the way of the others.
    Unreadable(DraftId),
}

impl DraftStore {
    /// Which drafts a run that begins now may claim.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn pending_snapshot(&self) -> Result<PendingSnapshot, LibrarianError> {
        self.database().read("count what is pending", |connection| {
            let tally = Tally::now(connection)?;
            let ready = tally.drafts(DraftState::Pending).saturating_sub(tally.delayed());
            let last = connection
                .prepare_cached(
                    "SELECT seq FROM drafts INDEXED BY drafts_ready \
                     WHERE state = 'pending' AND due_at = 0 ORDER BY seq DESC LIMIT 1",
                )?
                .query_row([], |row| row.get(0))
                .optional()?;
            let seen = usize::try_from(ready).unwrap_or(usize::MAX);
            Ok(PendingSnapshot {
                pending_seen: seen,
                after: 0,
                until: last.unwrap_or(0),
                // A tally that was tampered with may be wrong; there is one if there is a last.
                remaining: seen.max(1),
            })
        })
    }

    /// Claim the next draft of the snapshot that nobody else has taken, or `None` when it is
    /// used up. When this returns a draft, the claim survives a crash: the draft goes back to
    /// pending once the runner is dead.
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
        let mut claimed = self.exchange(runner, &[], &[], snapshot, 1)?.claimed;
        snapshot.pass(&claimed);
        Ok(claimed.pop().map(|(_, claimed)| claimed))
    }

    /// Move a claimed draft to where the outcome says, and store the outcome with it, in one
    /// transaction. When this returns, both survive power loss. Returns the state reached.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::LostClaim`] if the claim is no longer the holder's: nothing is changed,
    /// and the late outcome is kept as a `refused` event of the draft's history.
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]: the draft stays claimed.
    pub fn finish(&self, claim: Claim, outcome: &Outcome) -> Result<DraftState, LibrarianError> {
        let now = self.now_ms();
        let moved = self.write("finish a draft", |transaction| {
            finish(transaction, &[(&claim.held, outcome)], now)
        })?;
        match moved.as_slice() {
            [true] => Ok(outcome.decision().target_state()),
            _ => Err(LibrarianError::LostClaim { id: claim.held.id }),
        }
    }

    /// Record that no decision was reached. The draft stays in `processing` without an owner, its
    /// error counted, until it is stale; recovery then tries it again or, when its errors have
    /// reached the budget, moves it to `failed`.
    ///
    /// # Errors
    ///
    /// As for [`finish`](Self::finish).
    pub fn give_up(&self, claim: Claim, error: &LibrarianError) -> Result<(), LibrarianError> {
        let now = self.now_ms();
        let recorded = self.write("record an error", |transaction| {
            give_up(transaction, &claim.held, error, now)
        })?;
        match recorded {
            true => Ok(()),
            false => Err(LibrarianError::LostClaim { id: claim.held.id }),
        }
    }

    /// In one transaction: store what was settled, give back what was not begun, and claim up to
    /// `want` more. Of the snapshot's bookkeeping, nothing is done.
    ///
    /// Fewer than `want` are claimed where one is best taken alone: a text of several MiB, or a
    /// draft that has erred before. If that one brings the runner down, it does so by itself,
    /// and no neighbour is blamed for it.
    pub(crate) fn exchange(
        &self,
        runner: &RunnerRegistration,
        settled: &[Settled],
        released: &[Box<Claim>],
        snapshot: &PendingSnapshot,
        want: usize,
    ) -> Result<Exchanged, LibrarianError> {
        let want = if snapshot.is_used_up() { 0 } else { want.min(snapshot.remaining) };
        if settled.is_empty() && released.is_empty() && want == 0 {
            return Ok(Exchanged::default());
        }
        let now = self.now_ms();
        let exchanged = self.write("move drafts", |transaction| {
            let finished: Vec<_> = settled
                .iter()
                .filter_map(|settled| Some((&settled.claim.held, settled.verdict.as_ref().ok()?)))
                .collect();
            let mut finished = finish(transaction, &finished, now)?.into_iter();
            let held = settled
                .iter()
                .map(|settled| match &settled.verdict {
                    // As many were given to `finish` as are asked for here.
                    Ok(_) => Ok(finished.next().unwrap_or(false)),
                    Err(error) => give_up(transaction, &settled.claim.held, error, now),
                })
                .collect::<Result<_, _>>()?;
            for claim in released {
                release(transaction, &claim.held, now)?;
            }
            let claimed = match want {
                0 => Vec::new(),
                want => claim(transaction, runner.id(), snapshot, want, now)?,
            };
            Ok(Exchanged { held, claimed })
        })?;
        if !released.is_empty() {
            self.ring();
        }
        Ok(exchanged)
    }

    /// Move a draft along one of a runner's edges, as the file version does. A claim made so has
    /// no owner: age alone recovers it. [`claim_next`](Self::claim_next) and
    /// [`finish`](Self::finish) are what a runner of one's own should use.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::InvalidDraftTransition`] for an edge that no runner has,
    /// [`LibrarianError::DraftNotFound`] if the draft is not in `from`.
    pub fn transition(
        &self,
        id: DraftId,
        from: DraftState,
        to: DraftState,
    ) -> Result<DraftTransition, LibrarianError> {
        if !from.runner_may_move_to(to) {
            return Err(LibrarianError::InvalidDraftTransition { from, to });
        }
        let now = self.now_ms();
        self.write("move a draft", |transaction| {
            let moved = if to == DraftState::Processing {
                transaction
                    .prepare_cached(
                        "UPDATE drafts SET state = 'processing', claimed_at = :now, due_at = 0, \
                             claim_token = randomblob(16), claims = claims + 1, decision = NULL, \
                             note = NULL, output = NULL, updated_at = :now, \
                             revision = revision + 1 \
                         WHERE id = :id AND state = 'pending'",
                    )?
                    .execute(named_params! { ":id": id, ":now": now })?
            } else {
                transaction
                    .prepare_cached(
                        "UPDATE drafts SET state = :to, claimed_at = NULL, claim_token = NULL, \
                             owner = NULL, decision = :decision, updated_at = :now, \
                             revision = revision + 1 \
                         WHERE id = :id AND state = 'processing'",
                    )?
                    .execute(named_params! {
                        ":id": id,
                        ":to": to,
                        ":decision": Some(to).filter(|to| to.is_terminal()),
                        ":now": now,
                    })?
            };
            match moved {
                0 => Err(LibrarianError::DraftNotFound { state: from, id }.into()),
                _ => Ok(DraftTransition { id, from, to }),
            }
        })
    }

    /// Make claimable what has waited for as long as it was to wait. Returns how many drafts.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn release_due(&self) -> Result<usize, LibrarianError> {
        let now = self.now_ms();
        let furthest = now.saturating_add(duration_ms(MAX_DELAY));
        // Most often nothing is due, and a look takes no lock.
        let any_due = self.database().statement("look for what is due", |connection| {
            // The ends of the index. Asked for one beyond `furthest`, SQLite would begin at 0.
            let mut statement = connection.prepare_cached(
                "SELECT due_at <= ?1 OR (SELECT due_at FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0 ORDER BY due_at DESC LIMIT 1) > ?2 \
                 FROM drafts INDEXED BY drafts_delayed \
                 WHERE state = 'pending' AND due_at > 0 ORDER BY due_at LIMIT 1",
            )?;
            let any = statement.query_row(params![now, furthest], |row| row.get(0)).optional()?;
            Ok(any.unwrap_or(false))
        })?;
        if !any_due {
            return Ok(0);
        }
        self.write("release what is due", |transaction| {
            let mut released = 0;
            for sql in [
                "UPDATE drafts INDEXED BY drafts_delayed \
                 SET due_at = 0, updated_at = ?1, revision = revision + 1 \
                 WHERE state = 'pending' AND due_at > 0 AND due_at <= ?2",
                "UPDATE drafts INDEXED BY drafts_delayed \
                 SET due_at = 0, updated_at = ?1, revision = revision + 1 \
                 WHERE state = 'pending' AND due_at > 0 AND due_at > ?2",
            ]
            .into_iter()
            .zip([now, furthest])
            {
                let (sql, bound) = sql;
                released += transaction.prepare_cached(sql)?.execute(params![now, bound])?;
            }
            Ok(released)
        })
    }
}

/// The claim: one UPDATE over the stretch of the index that was just read. The index holds only
/// what can be claimed, in the order of claims; naming it keeps the planner from walking the
/// table instead.
fn claim(
    connection: &Connection,
    runner: i64,
    snapshot: &PendingSnapshot,
    want: usize,
    now: i64,
) -> Result<Vec<(i64, Claimed)>, Fault> {
    let registered: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM runners WHERE id = ?1 AND ended_at IS NULL)")?
        .query_row([runner], |row| row.get(0))?;
    if !registered {
        return Err(LibrarianError::RunnerEnded { runner }.into());
    }
    let found = next_ready(connection, snapshot, want)?;
    let Some(last) = found.last().map(|found| found.seq) else { return Ok(Vec::new()) };
    let mut statement = connection.prepare_cached(
        "UPDATE drafts INDEXED BY drafts_ready SET state = 'processing', claimed_at = :now, \
             claim_token = randomblob(16), owner = :runner, claims = claims + 1, \
             decision = NULL, note = NULL, output = NULL, \
             updated_at = :now, revision = revision + 1 \
         WHERE state = 'pending' AND due_at = 0 AND seq > :after AND seq <= :last \
         RETURNING seq, claim_token",
    )?;
    let tokens = statement.query_map(
        named_params! {
            ":now": now,
            ":runner": runner,
            ":after": snapshot.after,
            ":last": last,
        },
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let mut tokens: Vec<(i64, [u8; 16])> = tokens.collect::<Result<_, _>>()?;
    // SQLite promises no order for what an UPDATE returns.
    tokens.sort_unstable_by_key(|(seq, _)| *seq);
    let mut claimed = Vec::with_capacity(found.len());
    for (found, (seq, token)) in found.into_iter().zip(tokens) {
        let held = Held { seq, id: found.id, token, runner };
        let claims = found.claims + 1;
        claimed.push((
            seq,
            match found.draft {
                Ok(draft) => {
                    Claimed::Draft(Box::new(Claim { held, draft, claims, errors: found.errors }))
                }
                Err(damage) => {
                    let error = LibrarianError::DamagedDraft { id: held.id, damage };
                    give_up(connection, &held, &error, now)?;
                    Claimed::Unreadable(held.id)
                }
            },
        ));
    }
    Ok(claimed)
}

/// A draft that can be claimed.
struct Ready {
    seq: i64,
    id: DraftId,
    claims: u64,
    errors: u64,
    draft: Result<Draft, DraftDamage>,
}

/// The next drafts of the snapshot that are best claimed together.
fn next_ready(
    connection: &Connection,
    snapshot: &PendingSnapshot,
    want: usize,
) -> Result<Vec<Ready>, Fault> {
    let mut statement = connection.prepare_cached(concat!(
        "SELECT ",
        draft_columns!(),
        ", claims, errors, text_bytes, raw_text \
         FROM drafts INDEXED BY drafts_ready LEFT JOIN draft_texts USING (seq) \
         WHERE state = 'pending' AND due_at = 0 AND drafts.seq > :after AND drafts.seq <= :until \
         ORDER BY drafts.seq LIMIT :want"
    ))?;
    let mut rows = statement.query(named_params! {
        ":after": snapshot.after,
        ":until": snapshot.until,
        ":want": i64::try_from(want).unwrap_or(i64::MAX),
    })?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let errors = row.get("errors")?;
        bytes += row.get::<_, usize>("text_bytes")?;
        if !found.is_empty() && (errors > 0 || bytes > MAX_BATCH_BYTES) {
            break;
        }
        found.push(Ready {
            seq: row.get("seq")?,
            id: row.get("id")?,
            claims: row.get("claims")?,
            errors,
            draft: draft_of(row),
        });
        if errors > 0 {
            break;
        }
    }
    Ok(found)
}

/// The move back to pending of what was claimed ahead and not begun: as if it had not been
/// claimed. If the claim was lost, there is nothing to give back.
fn release(connection: &Connection, held: &Held, now: i64) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "UPDATE drafts SET state = 'pending', claims = claims - 1, claimed_at = NULL, \
                 claim_token = NULL, owner = NULL, updated_at = :now, revision = revision + 1 \
             WHERE seq = :seq AND claim_token = :token",
        )?
        .execute(named_params! { ":now": now, ":seq": held.seq, ":token": held.token })?;
    Ok(())
}

/// How many drafts one UPDATE moves out of `processing`: for each statement SQLite notes down the
/// pages that it may have to undo, and that is dearer than a move.
const CHUNKS: [usize; 3] = [128, 16, 1];

/// The moves out of `processing`, each guarded by its token. Returns for each whether the claim
/// was still held; if not, what came too late is kept as an event.
fn finish(
    connection: &Connection,
    finished: &[(&Held, &Outcome)],
    now: i64,
) -> Result<Vec<bool>, Fault> {
    let drafts: HashSet<i64> = finished.iter().map(|(held, _)| held.seq).collect();
    if drafts.len() < finished.len() {
        // An old claim of a draft beside a newer one: one by one, so that each gets its own answer.
        let one_by_one = finished.iter().map(|one| finish(connection, &[*one], now));
        return Ok(one_by_one.collect::<Result<Vec<_>, _>>()?.concat());
    }
    let mut moved = HashSet::with_capacity(finished.len());
    let mut rest = finished;
    for size in CHUNKS {
        while let Some((chunk, others)) = rest.split_at_checked(size) {
            finish_chunk(connection, chunk, now, &mut moved)?;
            rest = others;
        }
    }
    finished
        .iter()
        .map(|(held, outcome)| {
            let held_on = moved.contains(&held.seq);
            if !held_on {
                refuse(connection, held, outcome, now)?;
            }
            Ok(held_on)
        })
        .collect()
}

fn finish_chunk(
    connection: &Connection,
    chunk: &[(&Held, &Outcome)],
    now: i64,
    moved: &mut HashSet<i64>,
) -> Result<(), Fault> {
    let row = "(?, ?, ?, ?, ?, ?, ?)";
    let rows = vec![row; chunk.len()].join(", ");
    // Or else a trigger would be asked, draft by draft, whether it changes.
    let delays = if chunk.iter().any(|(_, outcome)| delay_of(outcome).is_some()) {
        "due_at = column6, "
    } else {
        ""
    };
    let mut statement = connection.prepare_cached(&format!(
        "UPDATE drafts SET state = CASE column3 WHEN 'deferred' THEN 'pending' ELSE column3 END, \
             decision = column3, note = column4, output = column5, {delays}\
             defers = defers + (column3 = 'deferred'), \
             claimed_at = NULL, claim_token = NULL, owner = NULL, \
             updated_at = column7, revision = revision + 1 \
         FROM (VALUES {rows}) \
         WHERE drafts.seq = column1 AND drafts.claim_token = column2 \
         RETURNING seq"
    ))?;
    let mut parameters = 1..;
    for (held, outcome) in chunk {
        let due_at = delay_of(outcome)
            .map_or(0, |delay| (now + duration_ms(delay.min(MAX_DELAY)).max(1)).min(MAX_UNIX_MS));
        let values: [&dyn ToSql; 7] = [
            &held.seq,
            &held.token,
            &outcome.decision(),
            &outcome.note(),
            &outcome.output(),
            &due_at,
            &now,
        ];
        for (value, parameter) in values.into_iter().zip(parameters.by_ref()) {
            statement.raw_bind_parameter(parameter, value)?;
        }
    }
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        moved.insert(row.get(0)?);
    }
    Ok(())
}

/// How long the outcome's draft is to wait, if it is.
fn delay_of(outcome: &Outcome) -> Option<Duration> {
    let deferred = outcome.decision() == DraftProcessingDecision::Deferred;
    outcome.retry_after().filter(|delay| deferred && !delay.is_zero())
}

/// Keep a late outcome, which changed nothing, as an event.
fn refuse(connection: &Connection, held: &Held, outcome: &Outcome, now: i64) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "INSERT INTO history (draft, event, from_state, to_state, at, runner, decision, \
                 note, output, by_hand) \
             SELECT seq, 'refused', state, state, :now, :runner, :decision, :note, :output, 0 \
             FROM drafts WHERE seq = :seq",
        )?
        .execute(named_params! {
            ":now": now,
            ":runner": held.runner,
            ":decision": outcome.decision(),
            ":note": outcome.note(),
            ":output": outcome.output(),
            ":seq": held.seq,
        })?;
    Ok(())
}

fn give_up(
    connection: &Connection,
    held: &Held,
    error: &LibrarianError,
    now: i64,
) -> Result<bool, Fault> {
    let (class, text) = (error.class(), stored_text(error));
    let recorded = connection
        .prepare_cached(
            "UPDATE drafts SET claim_token = NULL, owner = NULL, errors = errors + 1, \
                 last_error_class = :class, last_error = :text, \
                 updated_at = :now, revision = revision + 1 \
             WHERE seq = :seq AND claim_token = :token",
        )?
        .execute(named_params! {
            ":class": class,
            ":text": text,
            ":now": now,
            ":seq": held.seq,
            ":token": held.token,
        })?;
    if recorded == 0 {
        connection
            .prepare_cached(
                "INSERT INTO history (draft, event, from_state, to_state, at, runner, \
                     error_class, error, by_hand) \
                 SELECT seq, 'refused', state, state, :now, :runner, :class, :text, 0 \
                 FROM drafts WHERE seq = :seq",
            )?
            .execute(named_params! {
                ":now": now,
                ":runner": held.runner,
                ":class": class,
                ":text": text,
                ":seq": held.seq,
            })?;
    }
    Ok(recorded == 1)
}

/// An error as it is stored: its message, then the detail that is not shown elsewhere.
fn stored_text(error: &LibrarianError) -> String {
    let mut text = error.to_string();
    if let LibrarianError::Processor(error) = error
        && let Some(detail) = error.detail()
    {
        text.push('\n');
        text.push_str(detail);
    }
    text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
    text
}
