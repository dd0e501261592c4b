//! Random operations through two handles on one file, with a clock that jumps, against a model
//! in memory: every result, every record, every history and every count must be the model's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use draftq::DraftQuery;
use draftq::ProcessorError;
use draftq::{Claim, Claimed, PendingSnapshot};
use draftq::{Clock, MAX_UNIX_MS, from_unix_ms};
use draftq::{
    Draft, DraftId, DraftMetadata, DraftProcessingDecision, DraftSourceSurface, DraftState,
    DraftStore, LibrarianError, Outcome,
};
use draftq::{RunnerInfo, RunnerRegistration};

use crate::harness::{assert_whole, seed, setting};

const MAX_ERRORS: u64 = 3;
const NORMAL: i64 = 1_750_000_000_000;
const MONTH_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// The expected state of one draft.
#[derive(Debug, Clone)]
struct Entry {
    /// Its place in the order of submission.
    seq: i64,
    draft: Draft,
    state: DraftState,
    due_at: i64,
    claimed_at: Option<i64>,
    /// In place of the token: the number of the claim that holds it.
    token: Option<u64>,
    owner: Option<i64>,
    claims: u64,
    errors: u64,
    defers: u64,
    updated_at: i64,
    decision: Option<DraftProcessingDecision>,
    note: Option<String>,
    error_class: Option<String>,
    history: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq)]
struct Event {
    event: String,
    from: Option<DraftState>,
    to: DraftState,
    at: i64,
    runner: Option<i64>,
    decision: Option<DraftProcessingDecision>,
    note: Option<String>,
    error_class: Option<String>,
}

impl Entry {
    fn record(&mut self, event: &str, from: DraftState, at: i64, runner: Option<i64>) {
        let decided = self.decision.filter(|_| from != self.state);
        self.history.push(Event {
            event: event.to_owned(),
            from: Some(from),
            to: self.state,
            at,
            runner,
            decision: decided,
            note: self.note.clone().filter(|_| decided.is_some()),
            error_class: self.error_class.clone().filter(|_| event == "errored"),
        });
    }

    fn take(&mut self, now: i64, token: u64, owner: Option<i64>) {
        self.state = DraftState::Processing;
        self.claimed_at = Some(now);
        (self.token, self.owner, self.due_at) = (Some(token), owner, 0);
        self.claims += 1;
        (self.decision, self.note) = (None, None);
        self.updated_at = now;
        self.record("claimed", DraftState::Pending, now, owner);
    }

    /// Move it out of processing. The decision and the other fields are set before.
    fn leave(&mut self, to: DraftState, event: &str, now: i64) {
        let owner = self.owner;
        (self.claimed_at, self.token, self.owner) = (None, None, None);
        self.state = to;
        self.updated_at = now;
        self.record(event, DraftState::Processing, now, owner);
    }

    /// Record a late result, which changes nothing.
    fn refuse(
        &mut self,
        at: i64,
        runner: i64,
        decision: Option<DraftProcessingDecision>,
        note: Option<String>,
        error_class: Option<String>,
    ) {
        self.history.push(Event {
            event: "refused".to_owned(),
            from: Some(self.state),
            to: self.state,
            at,
            runner: Some(runner),
            decision,
            note,
            error_class,
        });
    }

    fn is_ready(&self) -> bool {
        self.state == DraftState::Pending && self.due_at == 0
    }
}

struct Kept {
    claim: Claim,
    token: u64,
    id: DraftId,
    runner: i64,
}

/// A snapshot of the store, and its expected content.
struct Window {
    snapshot: PendingSnapshot,
    /// Indexes of entries.
    after: usize,
    until: usize,
    remaining: usize,
}

struct World {
    random: fastrand::Rng,
    clock: Clock,
    now: i64,
    handles: [DraftStore; 2],
    runners: [Option<RunnerRegistration>; 2],
    windows: [Window; 2],
    kept: Vec<Kept>,
    /// In the order of submission.
    entries: Vec<Entry>,
    places: BTreeMap<DraftId, usize>,
    tokens: u64,
    texts: u64,
    tally: BTreeMap<&'static str, u64>,
}

type Checked = Result<(), String>;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, store: T, model: T) -> Checked {
    if store == model {
        return Ok(());
    }
    Err(format!("{what}: the store has {store:?}, the model {model:?}"))
}

fn err<T: std::fmt::Debug>(
    result: Result<T, LibrarianError>,
    fits: impl Fn(&LibrarianError) -> bool,
) -> Checked {
    match result {
        Err(error) if fits(&error) => Ok(()),
        other => Err(format!("not the expected error: {other:?}")),
    }
}

fn ok<T>(result: Result<T, LibrarianError>) -> Result<T, String> {
    result.map_err(|error| format!("unexpected error: {error:?}"))
}

fn runner() -> RunnerInfo {
    RunnerInfo::new("model").max_errors(u32::try_from(MAX_ERRORS).unwrap())
}

impl World {
    fn new(seed: u64, path: &std::path::Path) -> Self {
        let clock = Clock::manual(from_unix_ms(NORMAL));
        let open = || {
            let options = DraftStore::options().clock(clock.clone());
            options.open(path).unwrap()
        };
        let handles = [open(), open()];
        let window = |store: &DraftStore| Window {
            snapshot: store.pending_snapshot().unwrap(),
            after: 0,
            until: 0,
            remaining: 0,
        };
        let windows = [window(&handles[0]), window(&handles[1])];
        let runners = [0, 1].map(|at: usize| Some(handles[at].register_runner(runner()).unwrap()));
        Self {
            random: fastrand::Rng::with_seed(seed),
            clock,
            now: NORMAL,
            handles,
            runners,
            windows,
            kept: Vec::new(),
            entries: Vec::new(),
            places: BTreeMap::new(),
            tokens: 0,
            texts: 0,
            tally: BTreeMap::new(),
        }
    }

    fn step(&mut self) -> Checked {
        let handle = self.random.usize(..2);
        let store = self.handles[handle].clone();
        let (name, done): (&'static str, Checked) = match self.random.u32(..100) {
            0..12 => ("submit", self.submit(&store)),
            12..15 => ("submit_many", self.submit_many(&store)),
            15..22 => ("transition", self.transition(&store)),
            22..26 => ("snapshot", self.snapshot(handle)),
            26..46 => ("claim_next", self.claim_next(handle)),
            46..60 => ("finish", self.finish(&store)),
            60..66 => ("record_error", self.record_error(&store)),
            66..72 => ("recover", self.recover(&store)),
            72..76 => ("release_due", self.release_due(&store)),
            76..80 => ("requeue", self.requeue(&store)),
            80..84 => ("query", self.query(&store)),
            84..86 => ("stats", self.stats(&store)),
            86..89 => ("load", self.load(&store)),
            89..90 => ("list", self.list(&store)),
            90..92 => ("end_runner", self.end_runner(handle)),
            92..93 => ("inspect", self.inspect_any(&store)),
            _ => ("clock", self.set_clock()),
        };
        *self.tally.entry(name).or_default() += 1;
        done.map_err(|fault| format!("{name}: {fault}"))
    }

    fn set_clock(&mut self) -> Checked {
        const HOUR: i64 = 60 * 60 * 1000;
        self.now = match self.random.u32(..40) {
            0 => 0,
            1 => MAX_UNIX_MS,
            2..5 => NORMAL,
            5..9 => self.now - HOUR,
            9..13 => self.now + HOUR,
            13 => self.now + MONTH_MS + HOUR,
            _ => self.now + self.random.i64(0..60_000),
        }
        .clamp(0, MAX_UNIX_MS);
        // The end of i64 is the end of time.
        let at = if self.now == MAX_UNIX_MS { i64::MAX } else { self.now };
        self.clock.set(from_unix_ms(at));
        same("the clock", self.clock.now_ms(), self.now)
    }

    fn draft(&mut self) -> Draft {
        if !self.entries.is_empty() && self.random.u32(..4) == 0 {
            return self.entries[self.random.usize(..self.entries.len())].draft.clone();
        }
        self.texts += 1;
        let surfaces = DraftSourceSurface::ALL;
        let mut metadata = DraftMetadata::new(
            surfaces[self.random.usize(..surfaces.len())],
            from_unix_ms(self.random.i64(0..MAX_UNIX_MS)),
        );
        if self.random.bool() {
            metadata.source_agent = Some("clau'de".into());
            metadata.context_tags = vec!["a\"b".into(), "☃".into()];
        }
        let length = self.random.usize(..200);
        Draft::with_metadata(format!("draft {} {}", self.texts, "é\0".repeat(length)), metadata)
    }

    fn any_id(&mut self) -> DraftId {
        if self.entries.is_empty() || self.random.u32(..10) == 0 {
            return Draft::with_metadata(
                "unknown".into(),
                DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::UNIX_EPOCH),
            )
            .id();
        }
        self.entries[self.random.usize(..self.entries.len())].draft.id()
    }

    fn any_state(&mut self) -> DraftState {
        DraftState::ALL[self.random.usize(..6)]
    }

    fn entry(&mut self, id: DraftId) -> Option<&mut Entry> {
        self.places.get(&id).map(|place| &mut self.entries[*place])
    }

    /// The expected result of a submission of this draft; adds it to the model.
    fn stage(&mut self, draft: &Draft) -> (DraftId, DraftState, bool) {
        if let Some(entry) = self.entry(draft.id()) {
            return (draft.id(), entry.state, false);
        }
        self.places.insert(draft.id(), self.entries.len());
        self.entries.push(Entry {
            seq: i64::try_from(self.entries.len()).unwrap() + 1,
            draft: draft.clone(),
            state: DraftState::Pending,
            due_at: 0,
            claimed_at: None,
            token: None,
            owner: None,
            claims: 0,
            errors: 0,
            defers: 0,
            updated_at: self.now,
            decision: None,
            note: None,
            error_class: None,
            history: vec![Event {
                event: "submitted".into(),
                from: None,
                to: DraftState::Pending,
                at: self.now,
                runner: None,
                decision: None,
                note: None,
                error_class: None,
            }],
        });
        (draft.id(), DraftState::Pending, true)
    }

    fn submit(&mut self, store: &DraftStore) -> Checked {
        let draft = self.draft();
        let said = ok(store.submit(&draft))?;
        let model = self.stage(&draft);
        same("submission", (said.id, said.state, said.created), model)?;
        self.inspect(store, draft.id())
    }

    fn submit_many(&mut self, store: &DraftStore) -> Checked {
        let count = self.random.usize(..8);
        let mut drafts: Vec<Draft> = (0..count).map(|_| self.draft()).collect();
        if count > 0 && self.random.bool() {
            drafts.push(drafts[self.random.usize(..count)].clone());
        }
        if self.random.u32(..4) == 0 {
            let blank = Draft::with_metadata(" \n".into(), drafts_metadata());
            drafts.insert(self.random.usize(..=drafts.len()), blank);
            let refused = store.submit_many(&drafts);
            err(refused, |error| matches!(error, LibrarianError::DraftRejected { .. }))?;
            return self.stats(store);
        }
        let said: Vec<_> = ok(store.submit_many(&drafts))?
            .into_iter()
            .map(|said| (said.id, said.state, said.created))
            .collect();
        let model: Vec<_> = drafts.iter().map(|draft| self.stage(draft)).collect();
        same("submissions", said, model)
    }

    fn transition(&mut self, store: &DraftStore) -> Checked {
        let id = self.any_id();
        let now = self.now;
        let (mut from, to) = (self.any_state(), self.any_state());
        if self.random.bool()
            && let Some(entry) = self.entry(id)
        {
            from = entry.state;
        }
        let result = store.transition(id, from, to);
        if !from.runner_may_move_to(to) {
            return err(result, |error| {
                matches!(error, LibrarianError::InvalidDraftTransition { from: f, to: t }
                    if (*f, *t) == (from, to))
            });
        }
        self.tokens += 1;
        let token = self.tokens;
        let Some(entry) = self.entry(id).filter(|entry| entry.state == from) else {
            return err(result, |error| {
                matches!(error, LibrarianError::DraftNotFound { state, id: i }
                    if (*state, *i) == (from, id))
            });
        };
        let said = ok(result)?;
        if to == DraftState::Processing {
            entry.take(now, token, None);
        } else {
            entry.decision = DraftProcessingDecision::parse(to.dir_name());
            entry.leave(to, if to.is_terminal() { "decided" } else { "recovered" }, now);
        }
        same("transition", (said.id, said.from, said.to), (id, from, to))?;
        self.inspect(store, id)
    }

    fn snapshot(&mut self, handle: usize) -> Checked {
        let snapshot = ok(self.handles[handle].pending_snapshot())?;
        let ready: Vec<_> =
            (0..self.entries.len()).filter(|place| self.entries[*place].is_ready()).collect();
        let until = ready.last().map_or(0, |last| last + 1);
        let seen = snapshot.pending_seen();
        self.windows[handle] = Window { snapshot, after: 0, until, remaining: ready.len() };
        same("pending_seen", seen, ready.len())
    }

    fn claim_next(&mut self, handle: usize) -> Checked {
        let store = self.handles[handle].clone();
        if self.runners[handle].is_none() {
            self.runners[handle] = Some(ok(store.register_runner(runner()))?);
        }
        let runner = self.runners[handle].as_ref().unwrap();
        let owner = runner.id();
        let window = &mut self.windows[handle];
        let said = ok(store.claim_next(runner, &mut window.snapshot))?;
        let place = (window.after..window.until)
            .find(|place| self.entries[*place].is_ready())
            .filter(|_| window.remaining > 0);
        let Some(place) = place else {
            window.after = window.until;
            same("is_used_up", window.snapshot.is_used_up(), true)?;
            return match said {
                None => Ok(()),
                other => Err(format!("a claim of nothing: {other:?}")),
            };
        };
        window.after = place + 1;
        window.remaining -= 1;
        self.tokens += 1;
        let (now, token) = (self.now, self.tokens);
        let entry = &mut self.entries[place];
        entry.take(now, token, Some(owner));
        let Some(Claimed::Draft(claim)) = said else {
            return Err(format!("no claim of {}: {said:?}", entry.draft.id()));
        };
        same("the claimed draft", claim.draft(), &entry.draft)?;
        same("claims and errors", (claim.claims(), claim.errors()), (entry.claims, entry.errors))?;
        let id = entry.draft.id();
        self.kept.push(Kept { claim: *claim, token, id, runner: owner });
        self.inspect(&store, id)
    }

    fn any_kept(&mut self) -> Option<Kept> {
        if self.kept.is_empty() {
            return None;
        }
        Some(self.kept.swap_remove(self.random.usize(..self.kept.len())))
    }

    fn finish(&mut self, store: &DraftStore) -> Checked {
        let Some(Kept { claim, token, id, runner }) = self.any_kept() else { return Ok(()) };
        let now = self.now;
        let decision = DraftProcessingDecision::ALL[self.random.usize(..5)];
        let mut outcome = Outcome::new(decision);
        if self.random.bool() {
            outcome = outcome.with_note("note'").with_output(&[1, 2]).unwrap();
        }
        let delay = match self.random.u32(..8) {
            0..4 => None,
            4 => Some(Duration::ZERO),
            5 => Some(Duration::from_nanos(1)),
            6 => Some(Duration::MAX),
            _ => Some(Duration::from_millis(self.random.u64(..120_000))),
        };
        if let Some(delay) = delay {
            outcome = outcome.with_retry_after(delay);
        }
        let result = store.finish(claim, &outcome);
        let entry = self.entry(id).ok_or("a claim of nothing")?;
        if entry.token != Some(token) {
            let note = outcome.note().map(str::to_owned);
            entry.refuse(now, runner, Some(decision), note, None);
            err(result, |error| matches!(error, LibrarianError::LostClaim { id: i } if *i == id))?;
            return self.inspect(store, id);
        }
        entry.decision = Some(decision);
        entry.note = outcome.note().map(str::to_owned);
        let to = decision.target_state();
        if decision == DraftProcessingDecision::Deferred {
            entry.defers += 1;
            entry.due_at = match delay {
                None | Some(Duration::ZERO) => 0,
                Some(delay) => {
                    let ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
                    (now + ms.clamp(1, MONTH_MS)).min(MAX_UNIX_MS)
                }
            };
            entry.leave(to, "deferred", now);
        } else {
            entry.leave(to, "decided", now);
        }
        same("the state reached", ok(result)?, to)?;
        self.inspect(store, id)
    }

    fn record_error(&mut self, store: &DraftStore) -> Checked {
        let Some(Kept { claim, token, id, runner }) = self.any_kept() else { return Ok(()) };
        let now = self.now;
        let error = LibrarianError::from(ProcessorError::new("exit", "exit status 3"));
        let result = store.record_error(claim, &error);
        let entry = self.entry(id).ok_or("a claim of nothing")?;
        if entry.token != Some(token) {
            entry.refuse(now, runner, None, None, Some("exit".into()));
            err(result, |error| matches!(error, LibrarianError::LostClaim { id: i } if *i == id))?;
            return self.inspect(store, id);
        }
        ok(result)?;
        (entry.token, entry.owner) = (None, None);
        entry.errors += 1;
        entry.error_class = Some("exit".into());
        entry.updated_at = now;
        entry.record("errored", DraftState::Processing, now, Some(runner));
        self.inspect(store, id)
    }

    fn end_runner(&mut self, handle: usize) -> Checked {
        drop(self.runners[handle].take());
        Ok(())
    }

    fn recover(&mut self, store: &DraftStore) -> Checked {
        let now = self.now;
        let age = match self.random.u32(..4) {
            0 => 0,
            1 => 900_000,
            2 => i64::MAX,
            _ => self.random.i64(0..120_000),
        };
        let stale_before = now.saturating_sub(age).max(0);
        let recovery = ok(store.recover(from_unix_ms(stale_before)))?;
        let alive: Vec<i64> = self.runners.iter().flatten().map(RunnerRegistration::id).collect();

        let (mut to_pending, mut to_failed) = (BTreeSet::new(), BTreeSet::new());
        let mut moved = Vec::new();
        for entry in &mut self.entries {
            let Some(claimed_at) = entry.claimed_at else { continue };
            if claimed_at > now {
                entry.claimed_at = Some(now);
                entry.updated_at = now;
            }
            // The model's runners end normally, so no draft is charged.
            let owned = entry.owner.is_some();
            match entry.owner {
                Some(owner) if alive.contains(&owner) => continue,
                None if claimed_at.min(now) > stale_before => continue,
                _ => {}
            }
            let id = entry.draft.id();
            moved.push(id);
            if !owned && entry.errors >= MAX_ERRORS {
                to_failed.insert(id);
                entry.leave(DraftState::Failed, "exhausted", now);
                continue;
            }
            to_pending.insert(id);
            entry.leave(DraftState::Pending, "recovered", now);
            if !owned && entry.errors >= 2 {
                // The delay is random: accept any value within its bounds.
                let base = (10_000_i64 << (entry.errors - 2).min(20)).min(3_600_000);
                let due_at = ok(store.inspect(id))?.0.due_at_unix_ms.unwrap_or(0);
                let low = (now + base * 75 / 100).min(MAX_UNIX_MS);
                let high = (now + base * 125 / 100).min(MAX_UNIX_MS);
                if !(low..=high).contains(&due_at) {
                    return Err(format!("due at {due_at}, not in {low}..={high}"));
                }
                entry.due_at = due_at;
            }
        }
        let ids = |moves: &[draftq::DraftTransition]| -> BTreeSet<DraftId> {
            moves.iter().map(|step| step.id).collect()
        };
        same("to pending", ids(&recovery.to_pending), to_pending)?;
        same("to failed", ids(&recovery.to_failed), to_failed)?;
        same("moves", recovery.to_pending.len() + recovery.to_failed.len(), moved.len())?;
        moved.into_iter().take(5).try_for_each(|id| self.inspect(store, id))
    }

    fn release_due(&mut self, store: &DraftStore) -> Checked {
        let now = self.now;
        let mut due = 0;
        for entry in self.entries.iter_mut().filter(|entry| entry.due_at > 0) {
            if entry.due_at <= now {
                (entry.due_at, entry.updated_at) = (0, now);
                due += 1;
            }
        }
        same("released", ok(store.release_due())?, due)
    }

    fn requeue(&mut self, store: &DraftStore) -> Checked {
        let count = self.random.usize(..4);
        let ids: Vec<_> = (0..count).map(|_| self.any_id()).collect();
        let result = store.requeue(&ids);
        let now = self.now;
        let alive: Vec<i64> = self.runners.iter().flatten().map(RunnerRegistration::id).collect();
        for id in &ids {
            match self.entry(*id).map(|entry| entry.owner) {
                None => {
                    return err(
                        result,
                        |error| matches!(error, LibrarianError::UnknownDraft { id: i } if i == id),
                    );
                }
                Some(Some(owner)) if alive.contains(&owner) => {
                    return err(result, |error| {
                        matches!(error, LibrarianError::DraftHeld { id: i, runner, .. }
                            if (i, *runner) == (id, owner))
                    });
                }
                Some(_) => {}
            }
        }
        let said: Vec<_> = ok(result)?.into_iter().map(|done| (done.id, done.from)).collect();
        let mut model = Vec::new();
        for id in &ids {
            let entry = self.entry(*id).ok_or("gone")?;
            let from = entry.state;
            model.push((*id, from));
            if from == DraftState::Pending {
                continue;
            }
            (entry.decision, entry.note, entry.error_class) = (None, None, None);
            (entry.errors, entry.updated_at) = (0, now);
            if from == DraftState::Processing {
                entry.leave(DraftState::Pending, "requeued", now);
            } else {
                entry.state = DraftState::Pending;
                entry.record("requeued", from, now, None);
            }
        }
        same("requeued", said, model)?;
        ids.into_iter().try_for_each(|id| self.inspect(store, id))
    }

    fn query(&mut self, store: &DraftStore) -> Checked {
        let states: Vec<_> = (0..self.random.usize(..4)).map(|_| self.any_state()).collect();
        let surface = self.random.bool().then_some(DraftSourceSurface::Cli);
        let agent = (self.random.u32(..4) == 0).then(|| "clau'de".to_owned());
        let tag = (self.random.u32(..4) == 0).then(|| "a\"b".to_owned());
        let newest_first = self.random.bool();
        let limit = self.random.usize(..20);
        let after_seq = self.random.bool().then(|| self.random.i64(0..500));
        let mut query = DraftQuery::default().newest_first(newest_first).limit(limit);
        if !states.is_empty() {
            query = query.states(states.iter().copied());
        }
        if let Some(surface) = surface {
            query = query.source_surface(surface);
        }
        if let Some(agent) = &agent {
            query = query.source_agent(agent);
        }
        if let Some(tag) = &tag {
            query = query.tag(tag);
        }
        if let Some(after) = after_seq {
            query = query.after_seq(after);
        }
        let said: Vec<_> = ok(store.query(&query))?.rows.iter().map(|record| record.seq).collect();
        let mut model: Vec<&Entry> = self.entries.iter().collect();
        if newest_first {
            model.reverse();
        }
        model.retain(|entry| {
            let metadata = entry.draft.metadata();
            (states.is_empty() || states.contains(&entry.state))
                && surface.is_none_or(|surface| metadata.source_surface == surface)
                && (agent.is_none() || metadata.source_agent == agent)
                && tag.as_ref().is_none_or(|tag| metadata.context_tags.contains(tag))
                && after_seq.is_none_or(|after| {
                    if newest_first { entry.seq < after } else { entry.seq > after }
                })
        });
        model.truncate(limit);
        same("query", said, model.into_iter().map(|entry| entry.seq).collect())
    }

    fn stats(&mut self, store: &DraftStore) -> Checked {
        let stats = ok(store.stats())?;
        let states = DraftState::ALL.map(|state| {
            let drafts = self.entries.iter().filter(|entry| entry.state == state).count();
            (state, u64::try_from(drafts).unwrap())
        });
        let due = || self.entries.iter().map(|entry| entry.due_at).filter(|due_at| *due_at > 0);
        let ready = self.entries.iter().find(|entry| entry.is_ready());
        same("states", stats.states, states.to_vec())?;
        same("drafts", usize::try_from(stats.drafts).unwrap(), self.entries.len())?;
        same("delayed", usize::try_from(stats.delayed).unwrap(), due().count())?;
        same("next due", stats.next_due_unix_ms, due().min())?;
        let oldest_ready = ready.map(|entry| entry.draft.submitted_at());
        same("oldest ready", stats.oldest_ready_unix_ms.map(from_unix_ms), oldest_ready)?;
        let oldest_claim = self.entries.iter().filter_map(|entry| entry.claimed_at).min();
        same("oldest claim", stats.oldest_claim_unix_ms, oldest_claim)
    }

    fn load(&mut self, store: &DraftStore) -> Checked {
        let (id, state) = (self.any_id(), self.any_state());
        let result = store.load(state, id);
        match self.entry(id).filter(|entry| entry.state == state) {
            Some(entry) => same("draft", &ok(result)?, &entry.draft),
            None => err(result, |error| matches!(error, LibrarianError::DraftNotFound { .. })),
        }
    }

    fn list(&mut self, store: &DraftStore) -> Checked {
        let state = self.any_state();
        let said = ok(store.list(state))?;
        let model = self.entries.iter().filter(|entry| entry.state == state);
        same("list", said, model.map(|entry| entry.draft.clone()).collect())
    }

    fn inspect_any(&mut self, store: &DraftStore) -> Checked {
        let id = self.any_id();
        if self.places.contains_key(&id) {
            return self.inspect(store, id);
        }
        err(store.inspect(id), |error| matches!(error, LibrarianError::UnknownDraft { .. }))
    }

    /// Everything about one draft.
    fn inspect(&self, store: &DraftStore, id: DraftId) -> Checked {
        let Some(place) = self.places.get(&id) else { return Ok(()) };
        let entry = &self.entries[*place];
        let (record, events, draft) = ok(store.inspect(id))?;
        same("draft", &draft, &entry.draft)?;
        same("seq", record.seq, entry.seq)?;
        same("state", record.state, entry.state)?;
        same("due_at", record.due_at_unix_ms.unwrap_or(0), entry.due_at)?;
        same("claimed_at", record.claimed_at_unix_ms, entry.claimed_at)?;
        same("owner", record.owner, entry.owner)?;
        same(
            "counters",
            (record.claims, record.errors, record.defers),
            (entry.claims, entry.errors, entry.defers),
        )?;
        same("decision", record.decision, entry.decision)?;
        same("note", &record.note, &entry.note)?;
        same("output", record.output.is_some(), entry.note.is_some())?;
        same("error", &record.last_error_class, &entry.error_class)?;
        same("updated_at", record.updated_at_unix_ms, entry.updated_at)?;
        let events: Vec<_> = events
            .into_iter()
            .map(|event| Event {
                event: event.event,
                from: event.from_state,
                to: event.to_state.unwrap(),
                at: event.at_unix_ms,
                runner: event.runner,
                decision: event.decision,
                note: event.note,
                error_class: event.error_class,
            })
            .collect();
        same("history", events, entry.history.clone())
    }

    fn compare_all(&mut self) -> Checked {
        let store = self.handles[0].clone();
        let ids: Vec<_> = self.places.keys().copied().collect();
        ids.into_iter().try_for_each(|id| self.inspect(&store, id))?;
        self.stats(&store)
    }
}

fn drafts_metadata() -> DraftMetadata {
    DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::UNIX_EPOCH)
}

fn walk(operations: u64) {
    /// The number of operations on one file. Then a new file is used, so that the model stays fast.
    const PER_FILE: u64 = 5_000;
    let seed = seed();
    println!("seed {seed}");
    let begun = Instant::now();
    let mut done = 0;
    let mut divergence = None;
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    let mut files = 0;
    while done < operations && divergence.is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let mut world = World::new(seed + files, &path);
        files += 1;
        for _ in 0..PER_FILE.min(operations - done) {
            let step = world.step();
            done += 1;
            let checked =
                step.and_then(|()| if done % 1_000 == 0 { world.compare_all() } else { Ok(()) });
            if let Err(fault) = checked {
                divergence = Some(format!("operation {done}: {fault}"));
                break;
            }
        }
        if divergence.is_none() {
            divergence = world.compare_all().err();
            assert_whole(&path);
        }
        for (name, count) in world.tally {
            *tally.entry(name).or_default() += count;
        }
    }
    println!(
        "{}",
        serde_json::json!({
            "test": "model", "seed": seed, "ops": done, "files": files,
            "divergences": u8::from(divergence.is_some()), "by_op": tally,
            "secs": begun.elapsed().as_secs_f64(),
        })
    );
    assert_eq!(divergence, None, "DRAFTQ_TEST_SEED={seed}");
}

#[test]
fn the_store_does_what_the_model_does() {
    walk(3_000);
}

#[test]
#[ignore = "long; DRAFTQ_TEST_OPS sets how long"]
fn the_store_does_what_the_model_does_for_long() {
    walk(setting("DRAFTQ_TEST_OPS", 100_000));
}
