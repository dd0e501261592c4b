-- draftq, schema 2. This file is the only definition of the database, and its comments document
-- the SQL interface: columns are not renamed or dropped without a new major version.
--
-- Times are INTEGER milliseconds since the Unix epoch, UTC; the views also give ISO 8601.
--
-- The database itself enforces the lifecycle, with CHECKs and triggers, so a statement typed into
-- a SQL shell cannot break it:
--
--     submit ─▶ pending ─▶ processing ─▶ accepted | skipped | failed | quarantined
--                │ ▲            │                        │ ▲
--                │ ├────────────┘ deferred, released,    │ │
--                │ │              recovered, requeued    │ │
--                │ └─────────────────────────────────────┘ │ requeued by an operator
--                └─────────────────────────────────────────┘ resolved by an operator
--
-- pending      Waits for a runner; no runner claims it before due_at.
-- processing   Claimed. A processor works on it; or its runner died; or its processor failed, and
--              no runner holds it until it is tried again.
-- accepted     The processor took it.
-- skipped      The processor decided not to take it.
-- failed       Kept for review: the processor decided so (decision 'failed'), or the errors reached
--              the budget (decision NULL; last_error says why).
-- quarantined  Unsafe, conflicting or unresolved; kept for review.
--
-- Ten queries to begin with:
--
--     SELECT * FROM state_counts;
--     SELECT * FROM in_flight;                                    -- which runner works on what, since when
--     SELECT id, submitted, note FROM draft_overview WHERE state = 'quarantined';
--     SELECT id, last_error_class, last_error FROM draft_overview WHERE state = 'failed';
--     SELECT last_error_class, count(*) FROM drafts WHERE state = 'failed' GROUP BY 1;
--     SELECT at, event, to_state, note FROM draft_history WHERE id = '0123456789abcdef';
--     SELECT raw_text FROM draft_texts JOIN drafts USING (seq) WHERE id = '0123456789abcdef';
--     SELECT source_agent, state, count(*) FROM drafts GROUP BY 1, 2;
--     SELECT id, due FROM draft_overview WHERE state = 'pending' AND due IS NOT NULL ORDER BY due;
--     SELECT date(at) AS day, count(*) FROM draft_history WHERE event = 'decided' GROUP BY 1;

-- ── Tables ──────────────────────────────────────────────────────────────────────────────────

-- One row per draft: its identity, which never changes, and its current state. Every move rewrites
-- the row, so the text is in a table of its own, draft_texts.
CREATE TABLE drafts (
    -- The order of submission: runners claim the lowest first. Not reused.
    seq              INTEGER PRIMARY KEY
        CONSTRAINT "seq is a positive number" CHECK (seq BETWEEN 1 AND 1000000000000000),
    -- First 8 bytes of SHA-256 over text, surface, agent, project, operator and provenance.
    id               TEXT NOT NULL UNIQUE
        CONSTRAINT "id is 16 lower-case hexadecimal digits"
        -- Both lengths are checked, because length() and GLOB stop at a NUL.
        CHECK (length(id) = 16 AND length(CAST(id AS BLOB)) = 16
               AND id NOT GLOB '*[^0-9a-f]*'),
    state            TEXT NOT NULL DEFAULT 'pending'
        -- CASE instead of IN, here and below: for IN, SQLite builds a temporary index for each row.
        CONSTRAINT "state is one of the six states"
        CHECK (CASE state WHEN 'pending' THEN 1 WHEN 'processing' THEN 1 WHEN 'accepted' THEN 1
               WHEN 'skipped' THEN 1 WHEN 'failed' THEN 1 WHEN 'quarantined' THEN 1 ELSE 0 END),
    -- No runner claims a pending draft before this time; 0: at once.
    due_at           INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "due_at is a time, and set for pending drafts only"
        CHECK (due_at = 0
               OR (due_at BETWEEN 1 AND 253402300799999 AND state = 'pending')),
    -- When the draft was claimed; set in processing and only there.
    claimed_at       INTEGER
        CONSTRAINT "claimed_at is a time, and set in processing and only there"
        CHECK ((state = 'processing') = (claimed_at IS NOT NULL)
               AND (claimed_at IS NULL OR claimed_at BETWEEN 0 AND 253402300799999)),
    -- When the machine booted, according to the clock at the time of the claim. If this differs
    -- later, the clock was set. NULL: not known.
    claim_booted_at  INTEGER,
    -- 16 random bytes, different for each claim. A runner can move the draft out of processing
    -- only with the token of its claim. NULL in processing: no runner holds the claim (an error was
    -- recorded, or the claim was made by hand without a token); it is recovered when it is old
    -- enough.
    claim_token      BLOB
        CONSTRAINT "claim_token is set in processing only"
        CHECK (claim_token IS NULL OR state = 'processing'),
    -- The runner that holds the claim: runners.id.
    owner            INTEGER
        CONSTRAINT "owner needs a claim_token"
        CHECK (owner IS NULL OR claim_token IS NOT NULL),
    -- How often the draft was claimed (released claims are not counted); how often its processor
    -- failed; how often its runner died while it held this draft and no other; how often its
    -- processor deferred it, in all and in a row; how often an operator
    -- requeued it. A requeue sets errors, crashes and defers_in_a_row to 0.
    claims           INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "claims is a count" CHECK (claims BETWEEN 0 AND 1000000000),
    errors           INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "errors is a count" CHECK (errors BETWEEN 0 AND 1000000000),
    crashes          INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "crashes is a count" CHECK (crashes BETWEEN 0 AND 1000000000),
    defers           INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "defers is a count" CHECK (defers BETWEEN 0 AND 1000000000),
    defers_in_a_row  INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "defers_in_a_row is a count" CHECK (defers_in_a_row BETWEEN 0 AND 1000000000),
    requeues         INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "requeues is a count" CHECK (requeues BETWEEN 0 AND 1000000000),
    -- 1: its runner died while it held this draft, perhaps among others. A runner then claims this
    -- draft only while it holds no other, so that a second death shows which draft is to blame.
    suspect          INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "suspect is 0 or 1" CHECK (suspect BETWEEN 0 AND 1),
    -- The error budget (runners.max_errors) of the runner whose processor failed last.
    error_budget     INTEGER,
    -- When draftq last changed this row, and the number of such changes (it wraps at 2^32). A change
    -- by hand changes neither, and so the history marks it as by_hand.
    updated_at       INTEGER NOT NULL
        CONSTRAINT "updated_at is a time" CHECK (updated_at BETWEEN 0 AND 253402300799999),
    revision         INTEGER NOT NULL DEFAULT 0,
    -- When the draft was submitted, as the submitter stated it.
    submitted_at     INTEGER NOT NULL
        CONSTRAINT "submitted_at is a time" CHECK (submitted_at BETWEEN 0 AND 253402300799999),
    -- Length of the text in bytes of UTF-8. The limit is SQLite's.
    text_bytes       INTEGER NOT NULL
        CONSTRAINT "text_bytes is a length" CHECK (text_bytes BETWEEN 0 AND 2147483647),
    source_surface   TEXT NOT NULL
        CONSTRAINT "source_surface is a known surface"
        CHECK (CASE source_surface WHEN 'directory' THEN 1 WHEN 'claude_memory' THEN 1
               WHEN 'codex_memory' THEN 1 WHEN 'mcp' THEN 1 WHEN 'cli' THEN 1
               WHEN 'repo_handoff' THEN 1 WHEN 'agent_export' THEN 1
               WHEN 'consensus_quorum' THEN 1 WHEN 'copilot_session_store' THEN 1 ELSE 0 END),
    source_agent     TEXT,
    source_project   TEXT,
    operator         TEXT,
    provenance_uri   TEXT,
    -- A JSON array of strings.
    context_tags     TEXT NOT NULL DEFAULT '[]'
        CONSTRAINT "context_tags is a JSON array"
        CHECK (context_tags = '[]'
               OR (json_valid(context_tags) AND json_type(context_tags) = 'array'
                   AND instr(CAST(context_tags AS BLOB), x'00') = 0)),
    -- Who imported the draft from another inbox; NULL: it was submitted here.
    imported_by      TEXT
        CONSTRAINT "imported_by is a name" CHECK (imported_by IS NULL OR imported_by <> ''),
    -- The id of the draft that this one replaces, because a corrected text is a new draft.
    supersedes       TEXT
        CONSTRAINT "supersedes is an id"
        CHECK (supersedes IS NULL
               OR (length(CAST(supersedes AS BLOB)) = 16 AND supersedes NOT GLOB '*[^0-9a-f]*')),
    -- The last decision; NULL while a processor works on the draft.
    decision         TEXT
        CONSTRAINT "decision fits the state"
        CHECK (CASE state
                   WHEN 'pending' THEN decision IS NULL OR decision = 'deferred'
                   WHEN 'processing' THEN decision IS NULL
                   WHEN 'failed' THEN decision IS NULL OR decision = 'failed'
                   ELSE decision IS state
               END),
    -- The name that the person who decided gave; NULL if a processor decided.
    decided_by       TEXT
        CONSTRAINT "decided_by signs a decision"
        CHECK (decided_by IS NULL
               OR (decided_by <> '' AND state <> 'pending' AND state <> 'processing')),
    -- The note (for people) and the output (JSON, for programs) of that decision. The output is
    -- stored only here; if a move replaces it, the history keeps the old one.
    note             TEXT,
    output           TEXT
        CONSTRAINT "output is JSON"
        CHECK (output IS NULL
               OR (json_valid(output) AND instr(CAST(output AS BLOB), x'00') = 0)),
    -- What the program wrote to standard error, if it is kept.
    stderr           TEXT,
    -- What the last attempt used, as its processor reported it: a JSON object of numbers such as
    -- input_tokens, output_tokens and cost_usd.
    usage            TEXT
        CONSTRAINT "usage is a JSON object"
        CHECK (usage IS NULL
               OR (json_valid(usage) AND json_type(usage) = 'object'
                   AND instr(CAST(usage AS BLOB), x'00') = 0)),
    -- The last error: its class (exit, signal, timeout, protocol, crash, …) and its message.
    last_error_class TEXT,
    last_error       TEXT
) STRICT;

-- The text of each draft, byte for byte as submitted. Written once, deleted with its draft.
CREATE TABLE draft_texts (
    seq      INTEGER PRIMARY KEY,  -- drafts.seq
    raw_text TEXT NOT NULL
) STRICT;

-- Work that a processor saved before its decision. It is given back when the draft is tried again,
-- and deleted with the decision.
CREATE TABLE checkpoints (
    seq        INTEGER PRIMARY KEY,  -- drafts.seq
    checkpoint TEXT NOT NULL
        CONSTRAINT "checkpoint is JSON" CHECK (json_valid(checkpoint)),
    saved_at   INTEGER NOT NULL
) STRICT;

-- The history of an imported draft in the inbox that it came from: a JSON array of events.
CREATE TABLE imported_histories (
    seq    INTEGER PRIMARY KEY,  -- drafts.seq
    events TEXT NOT NULL
        CONSTRAINT "events is a JSON array"
        CHECK (json_valid(events) AND json_type(events) = 'array')
) STRICT;

-- The ids of pruned drafts, so that the same draft is not submitted again.
CREATE TABLE pruned_drafts (
    id        TEXT PRIMARY KEY
        CONSTRAINT "id is 16 lower-case hexadecimal digits"
        CHECK (length(CAST(id AS BLOB)) = 16 AND id NOT GLOB '*[^0-9a-f]*'),
    -- Its last state.
    state     TEXT NOT NULL
        CONSTRAINT "state is a terminal state"
        CHECK (state IN ('accepted', 'skipped', 'failed', 'quarantined')),
    pruned_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- While a hold is in force, no runner of that processor claims anything.
CREATE TABLE holds (
    -- The processor's name (runners.processor); '': all processors.
    processor   TEXT NOT NULL,
    -- operator    a person paused it
    -- processor   the processor asked for it, for example because of a rate limit
    -- breaker     its last results were all the same error
    kind        TEXT NOT NULL
        CONSTRAINT "kind is a known kind of hold"
        CHECK (kind IN ('operator', 'processor', 'breaker')),
    set_by      TEXT NOT NULL,
    set_at      INTEGER NOT NULL,
    -- When it ends; NULL: when a person ends it.
    until       INTEGER,
    reason      TEXT,
    -- For the breaker: how many drafts were tried since it tripped, and when the next is tried.
    tries       INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "tries is a count" CHECK (tries BETWEEN 0 AND 1000000000),
    next_try_at INTEGER,
    PRIMARY KEY (processor, kind)
) STRICT, WITHOUT ROWID;

-- The drafts that can be claimed now, in the order of claims (an index's last column is the rowid,
-- seq). Finished drafts, and those that are not due yet, are not in it, so a claim does not read
-- them.
CREATE INDEX drafts_ready ON drafts (due_at) WHERE state = 'pending' AND due_at = 0;
-- The drafts that become claimable later, by time.
CREATE INDEX drafts_delayed ON drafts (due_at) WHERE state = 'pending' AND due_at > 0;
-- The drafts in processing, for recovery.
CREATE INDEX drafts_in_flight ON drafts (owner, claimed_at) WHERE state = 'processing';
-- The finished drafts, for lists and counts. (These four indexes together hold each draft once.)
-- Without IN, because each row that is written is compared with this condition.
CREATE INDEX drafts_finished ON drafts (state) WHERE state <> 'pending' AND state <> 'processing';
-- The drafts that replace another.
CREATE INDEX drafts_superseding ON drafts (supersedes) WHERE supersedes IS NOT NULL;

-- One row per runner. As long as the runner lives, it holds an exclusive lock (flock) on its
-- lock_file, in the directory <database>-runners beside the database. The row of a runner that has
-- ended is deleted when no event names it any more.
CREATE TABLE runners (
    id                INTEGER PRIMARY KEY
        CONSTRAINT "id is a positive number" CHECK (id BETWEEN 1 AND 1000000000000000),
    pid               INTEGER NOT NULL
        CONSTRAINT "pid is a process id" CHECK (pid BETWEEN 0 AND 4294967295),
    -- Where it runs, for people. Only its lock shows whether it is alive.
    host              TEXT NOT NULL,
    boot_id           TEXT NOT NULL,
    program           TEXT NOT NULL,
    -- The name and the version of its processor.
    processor         TEXT NOT NULL,
    processor_version TEXT,
    -- The error budget: how many errors and crashes a draft may have; 0: no limit.
    max_errors        INTEGER NOT NULL
        CONSTRAINT "max_errors is a count" CHECK (max_errors BETWEEN 0 AND 4294967295),
    lock_file         TEXT NOT NULL,
    started_at        INTEGER NOT NULL,
    -- When it ended, or when another runner found it dead.
    ended_at          INTEGER,
    -- The last seq of the history when it started and when it ended. Its events are in between.
    first_event       INTEGER NOT NULL,
    last_event        INTEGER
) STRICT;

CREATE INDEX runners_not_ended ON runners (id) WHERE ended_at IS NULL;

-- One row per move. Triggers write it, so that moves by hand have one too. Each row's from_state is
-- the to_state of the draft's row before it, and the last to_state is the draft's state. Two events
-- are not moves and leave the state unchanged: 'errored' and 'refused'.
CREATE TABLE history (
    -- The order of events over all drafts. Not reused.
    seq         INTEGER PRIMARY KEY
        CONSTRAINT "seq is a positive number" CHECK (seq BETWEEN 1 AND 1000000000000000),
    draft       INTEGER NOT NULL,  -- drafts.seq
    -- submitted   NULL to pending
    -- imported    NULL to any state but processing, from another inbox; decided_by says who
    --             imported it
    -- claimed     pending to processing, by a runner
    -- decided     processing to a terminal state, by the processor's decision
    -- deferred    processing to pending, by the processor's decision
    -- released    processing to pending: the runner returned the draft, and no error was counted
    -- recovered   processing to pending: its runner was dead, or no runner had held it for a while
    -- exhausted   processing to failed: as recovered, but its errors had reached the budget
    -- requeued    a terminal state to pending, by an operator; or processing to pending, if no
    --             runner held the draft and the move raised requeues
    -- resolved    pending, processing or a terminal state to a terminal state, by an operator
    -- errored     the processor failed; the draft stays in processing
    -- refused     a late result of a runner that had lost its claim; it changed nothing
    -- deleted     the draft and its events were deleted; only this row is left
    event       TEXT NOT NULL
        CONSTRAINT "event is a known event"
        CHECK (CASE event WHEN 'submitted' THEN 1 WHEN 'imported' THEN 1 WHEN 'claimed' THEN 1 WHEN 'decided' THEN 1
               WHEN 'deferred' THEN 1 WHEN 'released' THEN 1 WHEN 'recovered' THEN 1
               WHEN 'exhausted' THEN 1 WHEN 'requeued' THEN 1 WHEN 'resolved' THEN 1
               WHEN 'errored' THEN 1 WHEN 'refused' THEN 1 WHEN 'deleted' THEN 1 ELSE 0 END),
    from_state  TEXT,
    to_state    TEXT,
    at          INTEGER NOT NULL,
    -- The runner that claimed, held or lost the claim: runners.id.
    runner      INTEGER,
    -- The decision and its note, or the note of a requeue. The output that the move replaced ('requeued', 'resolved'), or
    -- that came too late ('refused').
    decision    TEXT,
    decided_by  TEXT,
    note        TEXT,
    output      TEXT,
    usage       TEXT,
    error_class TEXT,
    error       TEXT,
    -- For 'deferred': the number of deferrals that this row stands for; at is the time of the last.
    -- NULL for the first 20 deferrals in a row, which have a row each.
    repeats     INTEGER,
    -- 1: the move was made by hand, not by draftq.
    by_hand     INTEGER NOT NULL
) STRICT;

-- Finds a draft's events. It holds to_state, so that the last state is read from the index alone.
CREATE INDEX history_of_draft ON history (draft, seq, to_state);

-- ── Submission ──────────────────────────────────────────────────────────────────────────────

-- To submit a draft, INSERT it here: one statement stores the draft and its text. The same id is the
-- same draft: a second INSERT changes nothing. (changes() is 0 in both cases, as for every view.)
CREATE VIEW submissions AS
SELECT id, submitted_at, source_surface, source_agent, source_project, operator, provenance_uri,
       context_tags, supersedes, updated_at, revision, raw_text
FROM drafts JOIN draft_texts USING (seq);

CREATE TRIGGER submissions_insert_draft_and_text INSTEAD OF INSERT ON submissions
WHEN NOT EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id)
 AND NOT EXISTS (SELECT 1 FROM pruned_drafts WHERE id = NEW.id)
BEGIN
    -- Checked here and not by a constraint, because INSERT OR IGNORE would skip a constraint.
    SELECT RAISE(ABORT, 'draftq: illegal insert: a draft needs a text that is not blank')
    WHERE ifnull(trim(NEW.raw_text, char(9, 10, 13, 32)), '') = '';
    INSERT INTO drafts (seq, id, submitted_at, source_surface, source_agent, source_project,
                        operator, provenance_uri, context_tags, supersedes, updated_at, revision,
                        text_bytes)
    VALUES (ifnull((SELECT draft FROM history ORDER BY draft DESC LIMIT 1), 0) + 1,
            NEW.id, NEW.submitted_at, NEW.source_surface, NEW.source_agent, NEW.source_project,
            NEW.operator, NEW.provenance_uri, ifnull(NEW.context_tags, '[]'), NEW.supersedes,
            ifnull(NEW.updated_at, ifnull(NEW.submitted_at, 0)), ifnull(NEW.revision, 0),
            length(CAST(NEW.raw_text AS BLOB)));
    -- Not by last_insert_rowid(): if the row above was ignored, that is the rowid of another draft.
    INSERT INTO draft_texts (seq, raw_text)
    VALUES ((SELECT seq FROM drafts WHERE id = NEW.id), NEW.raw_text);
END;

-- To import a draft from another inbox, in the state that it has there, INSERT it here. imported_by
-- is the name of who imports it and cannot be changed later. The draft's history begins with the
-- import. Its earlier events are kept as a JSON array; NULL: none.
CREATE VIEW imports AS
SELECT id, state, submitted_at, source_surface, source_agent, source_project, operator,
       provenance_uri, context_tags, supersedes, decision, decided_by, note, output, usage,
       updated_at, revision, raw_text, imported_by, events
FROM drafts JOIN draft_texts USING (seq) LEFT JOIN imported_histories USING (seq)
WHERE imported_by IS NOT NULL;

CREATE TRIGGER imports_insert_draft_text_and_history INSTEAD OF INSERT ON imports
WHEN NOT EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal insert: an imported draft needs imported_by, the name of who imports it')
    WHERE ifnull(NEW.imported_by, '') = '';
    SELECT RAISE(ABORT, 'draftq: illegal insert: a draft needs a text that is not blank')
    WHERE ifnull(trim(NEW.raw_text, char(9, 10, 13, 32)), '') = '';
    INSERT INTO drafts (seq, id, state, submitted_at, source_surface, source_agent,
                        source_project, operator, provenance_uri, context_tags, supersedes,
                        decision, decided_by, note, output, usage, updated_at, revision,
                        text_bytes, imported_by)
    VALUES (ifnull((SELECT draft FROM history ORDER BY draft DESC LIMIT 1), 0) + 1,
            NEW.id, NEW.state, NEW.submitted_at, NEW.source_surface, NEW.source_agent,
            NEW.source_project, NEW.operator, NEW.provenance_uri, ifnull(NEW.context_tags, '[]'),
            NEW.supersedes, NEW.decision, NEW.decided_by, NEW.note, NEW.output, NEW.usage,
            ifnull(NEW.updated_at, ifnull(NEW.submitted_at, 0)), ifnull(NEW.revision, 0),
            length(CAST(NEW.raw_text AS BLOB)), NEW.imported_by);
    INSERT INTO draft_texts (seq, raw_text)
    VALUES ((SELECT seq FROM drafts WHERE id = NEW.id), NEW.raw_text);
    INSERT INTO imported_histories (seq, events)
    SELECT seq, NEW.events FROM drafts WHERE id = NEW.id AND NEW.events IS NOT NULL;
    -- The draft is here again, so it is no longer a pruned one.
    DELETE FROM pruned_drafts WHERE id = NEW.id;
END;

-- INSERT OR REPLACE would delete the existing row without firing triggers, so an existing id is
-- ignored. NEW.seq is -1 here if the statement names none.
CREATE TRIGGER drafts_start_as_pending BEFORE INSERT ON drafts
WHEN EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id)
  OR (NEW.state <> 'pending' AND (NEW.imported_by IS NULL OR NEW.state = 'processing'))
  OR NEW.due_at <> 0
  OR NEW.claims <> 0
  OR (NEW.context_tags <> '[]'
      AND (EXISTS (SELECT 1 FROM json_each(NEW.context_tags) WHERE type <> 'text')
           OR NEW.context_tags GLOB '*\[uU][dD][89abAB]*'))
  OR NEW.seq < 0
BEGIN
    SELECT RAISE(IGNORE) WHERE EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id);
    SELECT RAISE(ABORT, 'draftq: illegal move: a draft starts as pending, due and unclaimed')
    WHERE (NEW.state <> 'pending' AND (NEW.imported_by IS NULL OR NEW.state = 'processing'))
       OR NEW.due_at <> 0 OR NEW.claims <> 0;
    SELECT RAISE(ABORT, 'draftq: illegal insert: insert into submissions, which gives the seq and takes the text')
    WHERE NEW.seq < 0;
    SELECT RAISE(ABORT, 'draftq: illegal insert: context_tags is an array of strings, written without \u escapes of surrogates');
END;

CREATE TRIGGER drafts_submitted AFTER INSERT ON drafts
BEGIN
    -- The draft of the last event has the highest seq so far, even if the draft has been deleted.
    SELECT RAISE(ABORT, 'draftq: illegal insert: insert into submissions, which gives the seq and takes the text')
    WHERE NEW.seq <> ifnull((SELECT draft FROM history ORDER BY draft DESC LIMIT 1), 0) + 1;
    INSERT INTO history (draft, event, to_state, decided_by, at, by_hand)
    VALUES (NEW.seq, CASE WHEN NEW.imported_by IS NULL THEN 'submitted' ELSE 'imported' END,
            NEW.state, NEW.imported_by,
            CASE WHEN NEW.revision <> 0 THEN NEW.updated_at
                 ELSE CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) END,
            NEW.revision = 0);
END;

-- ── Moves ───────────────────────────────────────────────────────────────────────────────────

-- One trigger for all illegal updates, because each trigger slows every move. It runs before the
-- UPDATE, so that the error names the illegal move and not the CHECK that would fail. The trigger is
-- not UPDATE OF seq, because SET rowid changes the same column. A claim may lose its token, but
-- cannot get another one.
CREATE TRIGGER drafts_legal_moves_only BEFORE UPDATE ON drafts
WHEN NEW.seq <> OLD.seq
  OR CASE OLD.state
         WHEN 'processing' THEN
             (NEW.state = 'processing' AND NEW.claim_token IS NOT NULL
              AND NEW.claim_token IS NOT OLD.claim_token)
             OR (NEW.revision = OLD.revision AND NEW.decided_by IS NULL
                 AND NEW.state <> 'pending' AND NEW.state <> 'processing')
             OR (NEW.decided_by IS NOT NULL AND OLD.owner IS NOT NULL)
         WHEN 'pending' THEN
             NEW.state <> 'processing' AND NEW.state <> 'pending' AND NEW.decided_by IS NULL
         ELSE
             NEW.state = 'processing'
             OR (NEW.state <> OLD.state AND NEW.state <> 'pending' AND NEW.decided_by IS NULL)
             OR (NEW.state = OLD.state AND NEW.decided_by IS NULL
                 AND (NEW.decision IS NOT OLD.decision OR OLD.decided_by IS NOT NULL))
     END
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s identity is fixed; submit a new draft')
    WHERE NEW.seq <> OLD.seq;
    SELECT RAISE(ABORT, 'draftq: illegal edit: a claim keeps its token; set state = ''pending'' first, then claim the draft')
    WHERE NEW.state = 'processing' AND OLD.state = 'processing';
    SELECT RAISE(ABORT, 'draftq: illegal move: processing to a terminal state while a runner holds the draft; wait for it, or set state = ''pending'' first')
    WHERE OLD.state = 'processing' AND NEW.decided_by IS NOT NULL;
    SELECT RAISE(ABORT, 'draftq: illegal edit: a decision keeps its signature; set decided_by to your name')
    WHERE NEW.state = OLD.state AND OLD.decided_by IS NOT NULL AND NEW.decided_by IS NULL;
    -- One literal per move, because RAISE accepts no expression before SQLite 3.47.
    SELECT CASE OLD.state || ' ' || NEW.state
        WHEN 'pending accepted'        THEN RAISE(ABORT, 'draftq: illegal move: pending to accepted without a signature; set decided_by to your name as well')
        WHEN 'pending skipped'         THEN RAISE(ABORT, 'draftq: illegal move: pending to skipped without a signature; set decided_by to your name as well')
        WHEN 'pending failed'          THEN RAISE(ABORT, 'draftq: illegal move: pending to failed without a signature; set decided_by to your name as well')
        WHEN 'pending quarantined'     THEN RAISE(ABORT, 'draftq: illegal move: pending to quarantined without a signature; set decided_by to your name as well')
        WHEN 'processing accepted'     THEN RAISE(ABORT, 'draftq: illegal move: processing to accepted without a signature; set decided_by to your name as well')
        WHEN 'processing skipped'      THEN RAISE(ABORT, 'draftq: illegal move: processing to skipped without a signature; set decided_by to your name as well')
        WHEN 'processing failed'       THEN RAISE(ABORT, 'draftq: illegal move: processing to failed without a signature; set decided_by to your name as well')
        WHEN 'processing quarantined'  THEN RAISE(ABORT, 'draftq: illegal move: processing to quarantined without a signature; set decided_by to your name as well')
        WHEN 'accepted processing'     THEN RAISE(ABORT, 'draftq: illegal move: accepted to processing; set state = ''pending'' first')
        WHEN 'skipped processing'      THEN RAISE(ABORT, 'draftq: illegal move: skipped to processing; set state = ''pending'' first')
        WHEN 'failed processing'       THEN RAISE(ABORT, 'draftq: illegal move: failed to processing; set state = ''pending'' first')
        WHEN 'quarantined processing'  THEN RAISE(ABORT, 'draftq: illegal move: quarantined to processing; set state = ''pending'' first')
        WHEN 'accepted skipped'        THEN RAISE(ABORT, 'draftq: illegal move: accepted to skipped without a signature; set decided_by to your name as well')
        WHEN 'accepted failed'         THEN RAISE(ABORT, 'draftq: illegal move: accepted to failed without a signature; set decided_by to your name as well')
        WHEN 'accepted quarantined'    THEN RAISE(ABORT, 'draftq: illegal move: accepted to quarantined without a signature; set decided_by to your name as well')
        WHEN 'skipped accepted'        THEN RAISE(ABORT, 'draftq: illegal move: skipped to accepted without a signature; set decided_by to your name as well')
        WHEN 'skipped failed'          THEN RAISE(ABORT, 'draftq: illegal move: skipped to failed without a signature; set decided_by to your name as well')
        WHEN 'skipped quarantined'     THEN RAISE(ABORT, 'draftq: illegal move: skipped to quarantined without a signature; set decided_by to your name as well')
        WHEN 'failed accepted'         THEN RAISE(ABORT, 'draftq: illegal move: failed to accepted without a signature; set decided_by to your name as well')
        WHEN 'failed skipped'          THEN RAISE(ABORT, 'draftq: illegal move: failed to skipped without a signature; set decided_by to your name as well')
        WHEN 'failed quarantined'      THEN RAISE(ABORT, 'draftq: illegal move: failed to quarantined without a signature; set decided_by to your name as well')
        WHEN 'failed failed'           THEN RAISE(ABORT, 'draftq: illegal move: a new decision without a signature; set decided_by to your name as well')
        WHEN 'quarantined accepted'    THEN RAISE(ABORT, 'draftq: illegal move: quarantined to accepted without a signature; set decided_by to your name as well')
        WHEN 'quarantined skipped'     THEN RAISE(ABORT, 'draftq: illegal move: quarantined to skipped without a signature; set decided_by to your name as well')
        WHEN 'quarantined failed'      THEN RAISE(ABORT, 'draftq: illegal move: quarantined to failed without a signature; set decided_by to your name as well')
        ELSE RAISE(ABORT, 'draftq: illegal move: there is no such state, or the decision does not fit it')
    END;
END;

CREATE TRIGGER drafts_held_are_not_requeued BEFORE UPDATE OF requeues ON drafts
WHEN NEW.requeues > OLD.requeues
 AND EXISTS (SELECT 1 FROM runners WHERE id = OLD.owner AND ended_at IS NULL)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal move: processing to pending by a requeue while a runner holds the draft; wait for the runner, or end it and use draftq requeue');
END;

CREATE TRIGGER drafts_moved AFTER UPDATE OF state, errors, decided_by ON drafts
WHEN NEW.state <> OLD.state
  OR (NEW.state = 'processing' AND NEW.errors > OLD.errors)
  OR NEW.decided_by IS NOT OLD.decided_by
  -- The same person decides again in the same way, with another note or output.
  OR (NEW.decided_by IS NOT NULL
      AND (NEW.decision IS NOT OLD.decision OR NEW.note IS NOT OLD.note
           OR NEW.output IS NOT OLD.output))
BEGIN
    INSERT INTO history (draft, event, from_state, to_state, at, runner, decision, decided_by,
                         note, output, usage, error_class, error, repeats, by_hand)
    VALUES (
        NEW.seq,
        CASE WHEN NEW.decided_by IS NOT NULL    THEN 'resolved'
             WHEN NEW.state = OLD.state         THEN 'errored'
             WHEN NEW.state = 'processing'      THEN 'claimed'
             WHEN OLD.state <> 'processing'     THEN 'requeued'
             WHEN NEW.decision = 'deferred'     THEN 'deferred'
             WHEN NEW.decision IS NOT NULL      THEN 'decided'
             WHEN NEW.requeues > OLD.requeues AND NEW.state = 'pending' THEN 'requeued'
             WHEN NEW.claims < OLD.claims       THEN 'released'
             WHEN NEW.state = 'pending'         THEN 'recovered'
             ELSE 'exhausted' END,
        OLD.state, NEW.state,
        CASE WHEN NEW.revision <> OLD.revision THEN NEW.updated_at
             ELSE CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) END,
        coalesce(NEW.owner, OLD.owner),
        NEW.decision,
        NEW.decided_by,
        CASE WHEN NEW.decision IS NOT NULL OR NEW.requeues > OLD.requeues
                  OR NEW.decided_by IS NOT NULL THEN NEW.note END,
        -- The output that a requeue or an operator's decision replaces is kept. The output of a
        -- deferral, which a claim replaces, is not.
        CASE WHEN OLD.output IS NOT NULL AND OLD.state <> 'pending' AND OLD.output IS NOT NEW.output
             THEN OLD.output END,
        CASE WHEN OLD.state = 'processing' THEN NEW.usage END,
        CASE WHEN OLD.state = 'processing' AND NEW.decision IS NULL
                  AND NEW.errors + NEW.crashes > OLD.errors + OLD.crashes
             THEN NEW.last_error_class END,
        CASE WHEN OLD.state = 'processing' AND NEW.decision IS NULL
                  AND NEW.errors + NEW.crashes > OLD.errors + OLD.crashes
             THEN NEW.last_error END,
        -- The row continues a sum if only claims and releases came after the last deferral.
        CASE WHEN NEW.defers_in_a_row > 20 AND NEW.decision = 'deferred'
             THEN ifnull((SELECT repeats FROM history
                          WHERE draft = NEW.seq AND event NOT IN ('claimed', 'released')
                          ORDER BY seq DESC LIMIT 1), 0) + 1 END,
        NEW.revision = OLD.revision
    );
    -- The history of a draft that is deferred again and again has a bounded number of rows: a new row
    -- that continues a sum replaces the old row of the sum, and the claims and releases between them.
    -- (A trigger of the history would do the same, but each submit would have to prepare it.)
    DELETE FROM history
    WHERE NEW.defers_in_a_row > 20 AND NEW.decision = 'deferred'
      AND (SELECT repeats FROM history WHERE draft = NEW.seq ORDER BY seq DESC LIMIT 1) > 1
      AND draft = NEW.seq AND seq < (SELECT max(seq) FROM history WHERE draft = NEW.seq)
      AND seq > (SELECT seq FROM history
                 WHERE draft = NEW.seq AND event NOT IN ('claimed', 'released')
                 ORDER BY seq DESC LIMIT 1 OFFSET 1);
    DELETE FROM history
    WHERE NEW.defers_in_a_row > 20 AND NEW.decision = 'deferred'
      AND (SELECT repeats FROM history WHERE draft = NEW.seq ORDER BY seq DESC LIMIT 1) > 1
      AND seq = (SELECT seq FROM history WHERE draft = NEW.seq ORDER BY seq DESC LIMIT 1 OFFSET 1);
    DELETE FROM checkpoints
    WHERE NEW.state <> 'pending' AND NEW.state <> 'processing' AND seq = NEW.seq;
END;

-- ── What never changes ──────────────────────────────────────────────────────────────────────

CREATE TRIGGER drafts_identity_is_fixed
BEFORE UPDATE OF id, submitted_at, text_bytes, source_surface, source_agent, source_project,
                 operator, provenance_uri, context_tags, supersedes, imported_by ON drafts
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s identity is fixed; submit a new draft');
END;

CREATE TRIGGER drafts_delete_finished_only BEFORE DELETE ON drafts
WHEN OLD.state IN ('pending', 'processing')
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: the draft is not finished; decide it first, with decided_by set to your name');
END;

-- The event 'deleted' stays, so that no seq of a draft or an event is reused.
CREATE TRIGGER drafts_delete_text_and_history AFTER DELETE ON drafts
BEGIN
    DELETE FROM draft_texts WHERE seq = OLD.seq;
    DELETE FROM imported_histories WHERE seq = OLD.seq;
    INSERT INTO history (draft, event, from_state, at, by_hand)
    VALUES (OLD.seq, 'deleted', OLD.state,
            CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER), 0);
    DELETE FROM history WHERE draft = OLD.seq AND event <> 'deleted';
END;

CREATE TRIGGER draft_texts_are_written_once BEFORE INSERT ON draft_texts
WHEN EXISTS (SELECT 1 FROM draft_texts WHERE seq = NEW.seq)
  OR NOT EXISTS (SELECT 1 FROM drafts WHERE seq = NEW.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal insert: a text is inserted with its draft; insert into submissions')
    WHERE NOT EXISTS (SELECT 1 FROM drafts WHERE seq = NEW.seq);
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s text is fixed; submit a new draft');
END;

CREATE TRIGGER draft_texts_are_fixed BEFORE UPDATE ON draft_texts
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s text is fixed; submit a new draft');
END;

CREATE TRIGGER draft_texts_are_deleted_with_their_draft BEFORE DELETE ON draft_texts
WHEN EXISTS (SELECT 1 FROM drafts WHERE seq = OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: a text is deleted with its draft; delete from drafts');
END;

CREATE TRIGGER imported_histories_are_written_once BEFORE INSERT ON imported_histories
WHEN EXISTS (SELECT 1 FROM imported_histories WHERE seq = NEW.seq)
  OR NOT EXISTS (SELECT 1 FROM drafts WHERE seq = NEW.seq AND imported_by IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal insert: an imported history is inserted with its draft; insert into imports');
END;

CREATE TRIGGER imported_histories_are_fixed BEFORE UPDATE ON imported_histories
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: an imported history is fixed');
END;

CREATE TRIGGER imported_histories_are_deleted_with_their_draft BEFORE DELETE ON imported_histories
WHEN EXISTS (SELECT 1 FROM drafts WHERE seq = OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: an imported history is deleted with its draft; delete from drafts');
END;

-- A row must continue its draft's history: its from_state is the to_state of the row before it, and
-- its to_state is the draft's state. So a forged row is refused.
CREATE TRIGGER history_continues BEFORE INSERT ON history
WHEN NEW.seq > 0
  OR NEW.from_state IS NOT (SELECT to_state FROM history WHERE draft = NEW.draft
                            ORDER BY seq DESC LIMIT 1)
  OR NEW.to_state IS NOT (SELECT state FROM drafts WHERE seq = NEW.draft)
  OR (NEW.from_state IS NEW.to_state
      AND (NEW.to_state IS NULL OR NEW.event NOT IN ('errored', 'refused', 'resolved')))
  OR (NEW.repeats IS NOT NULL AND NEW.event <> 'deferred')
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal insert: the row does not continue the draft''s history; move the draft, and a trigger writes the row');
END;

CREATE TRIGGER history_is_fixed BEFORE UPDATE ON history
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: the history is only appended to');
END;

-- An event can be deleted only if its draft has been deleted, or if a sum of deferrals replaces it.
-- The last event of all, and the last event of the last draft, stay, so that no seq is reused.
CREATE TRIGGER history_is_deleted_with_its_draft BEFORE DELETE ON history
WHEN (EXISTS (SELECT 1 FROM drafts WHERE seq = OLD.draft)
      -- The next row, apart from claims and releases, is a sum that continues the one before it.
      AND NOT ifnull(
          CASE WHEN OLD.event IN ('claimed', 'released')
                   THEN (SELECT repeats FROM history
                         WHERE draft = OLD.draft AND seq < OLD.seq
                           AND event NOT IN ('claimed', 'released')
                         ORDER BY seq DESC LIMIT 1)
               WHEN OLD.event = 'deferred' THEN OLD.repeats
          END + 1
          = (SELECT repeats FROM history
             WHERE draft = OLD.draft AND seq > OLD.seq
               AND event NOT IN ('claimed', 'released')
             ORDER BY seq LIMIT 1), 0))
  OR NOT EXISTS (SELECT 1 FROM history WHERE seq > OLD.seq)
  OR NOT EXISTS (SELECT 1 FROM history WHERE draft >= OLD.draft AND seq <> OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: a history is deleted with its draft; delete from drafts');
END;

-- ── Views ───────────────────────────────────────────────────────────────────────────────────

-- Each draft without its text, with times in ISO 8601.
CREATE VIEW draft_overview AS
SELECT seq, id, state, decision, decided_by, note, output, usage,
       claims, errors, crashes, defers, requeues, last_error_class, last_error, imported_by,
       strftime('%Y-%m-%dT%H:%M:%fZ', submitted_at / 1000.0, 'unixepoch') AS submitted,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000.0, 'unixepoch') AS updated,
       strftime('%Y-%m-%dT%H:%M:%fZ', claimed_at / 1000.0, 'unixepoch') AS claimed,
       CASE WHEN due_at > 0
            THEN strftime('%Y-%m-%dT%H:%M:%fZ', due_at / 1000.0, 'unixepoch') END AS due,
       source_surface, source_agent, source_project, operator, provenance_uri, context_tags,
       supersedes, text_bytes
FROM drafts;

-- The number of drafts in each of the six states, in their order.
CREATE VIEW state_counts AS
SELECT 'pending' AS state,
       (SELECT count(*) FROM drafts WHERE state = 'pending' AND due_at = 0)
       + (SELECT count(*) FROM drafts WHERE state = 'pending' AND due_at > 0) AS drafts
UNION ALL
SELECT 'processing', (SELECT count(*) FROM drafts WHERE state = 'processing')
UNION ALL
SELECT states.state,
       (SELECT count(*) FROM drafts
        WHERE drafts.state = states.state
          AND drafts.state <> 'pending' AND drafts.state <> 'processing')
FROM (SELECT 'accepted' AS state UNION ALL SELECT 'skipped' UNION ALL SELECT 'failed'
      UNION ALL SELECT 'quarantined') AS states;

-- The drafts in processing: since when, and by which runner (NULL if no runner holds the claim).
CREATE VIEW in_flight AS
SELECT d.id,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.claimed_at / 1000.0, 'unixepoch') AS claimed,
       max(0, CAST(round((julianday('now') - 2440587.5) * 86400.0) AS INTEGER)
              - d.claimed_at / 1000) AS age_secs,
       d.owner AS runner, r.pid, r.host, r.program, r.processor, r.processor_version,
       d.claims, d.errors, d.crashes, d.last_error_class
FROM drafts d LEFT JOIN runners r ON r.id = d.owner
WHERE d.state = 'processing';

-- Each event with its draft's id and the time in ISO 8601.
CREATE VIEW draft_history AS
SELECT h.seq, d.id, h.event, h.from_state, h.to_state,
       strftime('%Y-%m-%dT%H:%M:%fZ', h.at / 1000.0, 'unixepoch') AS at,
       h.runner, r.pid, r.processor, r.processor_version, h.decision, h.decided_by, h.note,
       h.output, h.usage, h.error_class, h.error, h.repeats, h.by_hand
FROM history h
JOIN drafts d ON d.seq = h.draft
LEFT JOIN runners r ON r.id = h.runner;
