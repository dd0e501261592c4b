-- draftq, schema 1. This file is the only definition of the database, and its comments are the
-- documentation of its SQL interface: columns are not renamed or dropped without a new major
-- version.
--
-- Times are INTEGER milliseconds since the Unix epoch, UTC; the views also give ISO 8601.
--
-- The lifecycle is held here, by CHECKs and triggers, so that a statement typed into a SQL shell
-- cannot break it:
--
--     submit ─▶ pending ─▶ processing ─▶ accepted | skipped | failed | quarantined
--                  ▲            │                        │
--                  ├────────────┘ deferred, recovered    │
--                  └─────────────────────────────────────┘ requeued by an operator
--
-- pending      Waiting for a runner; before due_at no runner takes it.
-- processing   Claimed: claimed_at is set, a processor is looking at it, or its runner died.
-- accepted     The processor durably took it.
-- skipped      The processor passed over it on purpose.
-- failed       Kept for review: the processor said so (decision 'failed'), or its errors reached
--              the budget (decision NULL; last_error tells).
-- quarantined  Unsafe, conflicting or unresolved; for review only.

-- One row a draft: its identity, which never changes, and where it is in its life. The row is
-- narrow because every move rewrites it; the text lives in draft_texts.
CREATE TABLE drafts (
    -- The order of submission: runners take the lowest first. It is the history's seq of that
    -- event, so it has gaps, and is never used twice.
    seq              INTEGER PRIMARY KEY
        CONSTRAINT "seq is given by the database" CHECK (seq > 0),
    -- First 8 bytes of SHA-256 over text, surface, agent, project, operator and provenance.
    id               TEXT NOT NULL UNIQUE
        CONSTRAINT "id is 16 lower-case hexadecimal digits"
        -- Twice, because length() and GLOB stop at a NUL, and bytes alone could hold one.
        CHECK (length(id) = 16 AND length(CAST(id AS BLOB)) = 16
               AND id NOT GLOB '*[^0-9a-f]*'),
    state            TEXT NOT NULL DEFAULT 'pending'
        -- Here and below CASE, not IN: for a list SQLite builds an index, row by row.
        CONSTRAINT "state is one of the six states"
        CHECK (CASE state WHEN 'pending' THEN 1 WHEN 'processing' THEN 1 WHEN 'accepted' THEN 1
               WHEN 'skipped' THEN 1 WHEN 'failed' THEN 1 WHEN 'quarantined' THEN 1 ELSE 0 END),
    -- A pending draft is not taken before this time; 0: at once.
    due_at           INTEGER NOT NULL DEFAULT 0
        CONSTRAINT "due_at is set for pending drafts only"
        CHECK (due_at = 0 OR (due_at > 0 AND state = 'pending')),
    -- When the draft was claimed; set in processing and only there.
    claimed_at       INTEGER
        CONSTRAINT "claimed_at is set in processing and only there"
        CHECK ((state = 'processing') = (claimed_at IS NOT NULL)),
    -- 16 random bytes that no other claim ever had; a runner's move out of processing is guarded
    -- by it. NULL in processing: nobody holds the claim (an error was recorded, or it was made by
    -- hand without one), and age alone decides when it is recovered.
    claim_token      BLOB
        CONSTRAINT "claim_token is set in processing only"
        CHECK (claim_token IS NULL OR state = 'processing'),
    -- The runner that holds the claim: runners.id.
    owner            INTEGER
        CONSTRAINT "owner goes with a claim_token"
        CHECK (owner IS NULL OR claim_token IS NOT NULL),
    -- How often the draft was claimed (and not released unseen); how often that ended in an error
    -- of the processor or the death of its runner; how often the processor deferred it. A requeue
    -- sets errors to 0.
    claims           INTEGER NOT NULL DEFAULT 0 CHECK (claims >= 0),
    errors           INTEGER NOT NULL DEFAULT 0 CHECK (errors >= 0),
    defers           INTEGER NOT NULL DEFAULT 0 CHECK (defers >= 0),
    -- When draftq last changed this row, and how often; a change by hand leaves both alone, and
    -- the history then says by_hand.
    updated_at       INTEGER NOT NULL,
    revision         INTEGER NOT NULL DEFAULT 0,
    -- When the draft was staged, by its submitter's word.
    submitted_at     INTEGER NOT NULL,
    -- Length of the text in bytes of UTF-8.
    text_bytes       INTEGER NOT NULL
        -- SQLite keeps no longer text, and no sum of these overflows.
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
               OR (json_valid(context_tags) AND json_type(context_tags) = 'array')),
    -- What the processor decided last; NULL while it is being asked.
    decision         TEXT
        CONSTRAINT "decision fits the state"
        CHECK (CASE state
                   WHEN 'pending' THEN decision IS NULL OR decision = 'deferred'
                   WHEN 'processing' THEN decision IS NULL
                   WHEN 'failed' THEN decision IS NULL OR decision = 'failed'
                   ELSE decision IS state
               END),
    -- The processor's words and JSON for that decision.
    note             TEXT,
    output           TEXT
        CONSTRAINT "output is JSON" CHECK (output IS NULL OR json_valid(output)),
    -- The last error: a short word (exit, signal, timeout, protocol, crash, …) and what it said.
    last_error_class TEXT,
    last_error       TEXT
) STRICT;

-- The text, byte for byte as submitted; written once, gone with its draft.
CREATE TABLE draft_texts (
    seq      INTEGER PRIMARY KEY,  -- drafts.seq
    raw_text TEXT NOT NULL
) STRICT;

-- What can be claimed now, in the order of claims (an index's last column is the rowid, seq): drafts
-- not yet due and finished ones are not in it, so they cost a claim nothing.
CREATE INDEX drafts_ready ON drafts (due_at) WHERE state = 'pending' AND due_at = 0;
-- What becomes claimable, by when.
CREATE INDEX drafts_delayed ON drafts (due_at) WHERE state = 'pending' AND due_at > 0;
-- What recovery looks at.
CREATE INDEX drafts_in_flight ON drafts (owner, claimed_at) WHERE state = 'processing';
-- What an operator looks at.
CREATE INDEX drafts_for_review ON drafts (state) WHERE state IN ('failed', 'quarantined');

-- One row a run that claimed something. As long as the runner lives it holds an exclusive lock
-- (flock) on its lock_file, in the directory <database>-runners beside the database.
CREATE TABLE runners (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    pid        INTEGER NOT NULL,
    host       TEXT NOT NULL,
    -- The kernel's boot id: with the same host and another boot, the runner is dead.
    boot_id    TEXT NOT NULL,
    program    TEXT NOT NULL,
    processor  TEXT NOT NULL,
    lock_file  TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    -- Set when it ended, or when another found it dead.
    ended_at   INTEGER
) STRICT;

CREATE INDEX runners_not_ended ON runners (id) WHERE ended_at IS NULL;

-- One row a move, written by triggers whoever makes the move, so that each row's from_state is
-- the to_state of the row before it, and the last to_state is the draft's state. Two events are
-- no moves and leave the state as it was: 'errored' and 'refused'.
--
-- Look at it through draft_history, which finds a draft's events without going through those of
-- all others.
CREATE TABLE history (
    -- The order of events over all drafts. The last row stays until there is a later one, so that
    -- no seq is given twice (AUTOINCREMENT would write one more page for each commit).
    seq         INTEGER PRIMARY KEY
        CONSTRAINT "seq is given by the database" CHECK (seq > 0),
    draft       INTEGER NOT NULL,  -- drafts.seq, which is the seq of the draft's first event
    -- submitted   NULL to pending
    -- claimed     pending to processing, by a runner
    -- decided     processing to a terminal state, by the processor's decision
    -- deferred    processing to pending, by the processor's decision
    -- released    processing to pending: the runner had claimed it ahead, and did not begin
    -- recovered   processing to pending: the owner was dead, or the claim stale
    -- exhausted   processing to failed: as recovered, and the errors reached the budget
    -- requeued    a terminal state to pending, by an operator
    -- errored     the processor came to no decision; the draft stays in processing
    -- refused     a late result of a runner that had lost its claim; nothing was changed
    -- deleted     no draft's (draft is 0): a draft was deleted with its events, and the last such
    --             row keeps their place in the order
    event       TEXT NOT NULL
        CONSTRAINT "event is a known event"
        CHECK (CASE event WHEN 'submitted' THEN 1 WHEN 'claimed' THEN 1 WHEN 'decided' THEN 1
               WHEN 'deferred' THEN 1 WHEN 'released' THEN 1 WHEN 'recovered' THEN 1
               WHEN 'exhausted' THEN 1 WHEN 'requeued' THEN 1 WHEN 'errored' THEN 1
               WHEN 'refused' THEN 1 WHEN 'deleted' THEN 1 ELSE 0 END),
    from_state  TEXT,
    to_state    TEXT NOT NULL,
    at          INTEGER NOT NULL,
    -- The runner that claimed, held or lost the claim: runners.id.
    runner      INTEGER,
    decision    TEXT,
    note        TEXT,
    output      TEXT,
    error_class TEXT,
    error       TEXT,
    -- 1: the move was typed into a SQL shell, not made by draftq.
    by_hand     INTEGER NOT NULL
) STRICT;

-- Where a draft's first event is, its seq tells; without it a submit writes one page less.
CREATE INDEX history_of_draft ON history (draft) WHERE seq <> draft;

-- draftq's own: how many drafts were in each state when the history went up to counted_to. To that
-- it adds what has happened since, so that it need not go through all drafts to count them, and
-- brings this forward now and then. One row; or none, and then it counts anew: DELETE FROM tally
-- mends one that was tampered with.
CREATE TABLE tally (
    counted_to  INTEGER NOT NULL,  -- history.seq
    pending     INTEGER NOT NULL,
    processing  INTEGER NOT NULL,
    accepted    INTEGER NOT NULL,
    skipped     INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    text_bytes  INTEGER NOT NULL,  -- of the drafts up to counted_to
    delayed     INTEGER NOT NULL   -- pending with a due_at, at this moment
) STRICT;

INSERT INTO tally VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0);

-- ── Submission ──────────────────────────────────────────────────────────────────────────────

-- The way in: the draft and its text in one statement. The same id is the same draft: a second
-- INSERT changes nothing. (changes() is 0 either way, as it is for every view; the draft's seq and
-- history tell.)
CREATE VIEW submissions AS
SELECT id, submitted_at, source_surface, source_agent, source_project, operator, provenance_uri,
       context_tags, updated_at, revision, raw_text
FROM drafts JOIN draft_texts USING (seq);

CREATE TRIGGER submissions_come_in INSTEAD OF INSERT ON submissions
WHEN NOT EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id)
BEGIN
    -- Here, because the statement's OR IGNORE would pass over a constraint.
    SELECT RAISE(ABORT, 'draftq: illegal insert: a draft without a text')
    WHERE ifnull(trim(NEW.raw_text, char(9, 10, 13, 32)), '') = '';
    INSERT INTO drafts (seq, id, submitted_at, source_surface, source_agent, source_project,
                        operator, provenance_uri, context_tags, updated_at, revision, text_bytes)
    VALUES (ifnull((SELECT seq FROM history ORDER BY seq DESC LIMIT 1), 0) + 1,
            NEW.id, NEW.submitted_at, NEW.source_surface, NEW.source_agent, NEW.source_project,
            NEW.operator, NEW.provenance_uri, ifnull(NEW.context_tags, '[]'),
            ifnull(NEW.updated_at, ifnull(NEW.submitted_at, 0)), ifnull(NEW.revision, 0),
            length(CAST(NEW.raw_text AS BLOB)));
    -- By its id: if the row above was passed over, the last rowid is another draft's.
    INSERT INTO draft_texts (seq, raw_text)
    VALUES ((SELECT seq FROM drafts WHERE id = NEW.id), NEW.raw_text);
END;

-- An id that is there stands in the way of INSERT OR REPLACE, which would delete the old row without
-- asking any trigger. A seq that is left out is -1 here. Tags that are no strings would stand in the
-- way of every list.
CREATE TRIGGER drafts_new_drafts_only BEFORE INSERT ON drafts
WHEN EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id)
  OR NEW.seq < 0
  OR NEW.state <> 'pending'
  OR NEW.due_at <> 0
  OR (NEW.context_tags <> '[]'
      AND EXISTS (SELECT 1 FROM json_each(NEW.context_tags) WHERE type <> 'text'))
BEGIN
    SELECT RAISE(IGNORE) WHERE EXISTS (SELECT 1 FROM drafts WHERE id = NEW.id);
    SELECT RAISE(ABORT, 'draftq: illegal move: a draft starts as pending, and due')
    WHERE NEW.state <> 'pending' OR NEW.due_at <> 0;
    SELECT RAISE(ABORT, 'draftq: illegal insert: context_tags is an array of strings')
    WHERE NEW.seq > 0;
    SELECT RAISE(ABORT, 'draftq: illegal insert: insert into submissions, which gives the seq');
END;

CREATE TRIGGER drafts_submitted AFTER INSERT ON drafts
BEGIN
    INSERT INTO history (draft, event, to_state, at, by_hand)
    VALUES (NEW.seq, 'submitted', NEW.state,
            CASE WHEN NEW.revision <> 0 THEN NEW.updated_at
                 ELSE CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) END,
            NEW.revision = 0);
    SELECT RAISE(ABORT, 'draftq: illegal insert: insert into submissions, which gives the seq')
    WHERE NEW.seq <> last_insert_rowid();
END;

-- ── Moves ───────────────────────────────────────────────────────────────────────────────────

-- One trigger for all that an UPDATE may not do, because each trigger costs every move. It stands
-- before the UPDATE, so that an illegal move is named before a CHECK stumbles over its columns. An
-- UPDATE OF seq would not see SET rowid, which is the same column; and with OR REPLACE that
-- deletes the draft whose seq is taken, and gives its text to the other. A claim may lose its
-- token, never get another: nor one again that it had. RAISE takes only a literal before SQLite
-- 3.47, and the refusal is to name the move: hence one line each.
CREATE TRIGGER drafts_legal_moves_only BEFORE UPDATE ON drafts
WHEN NEW.seq <> OLD.seq
  OR CASE OLD.state
         WHEN 'processing' THEN OLD.state = NEW.state AND NEW.claim_token IS NOT NULL
                                AND NEW.claim_token IS NOT OLD.claim_token
         WHEN 'pending' THEN NEW.state <> 'processing' AND NEW.state <> 'pending'
         ELSE NEW.state <> 'pending' AND NEW.state <> OLD.state
     END
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s identity is fixed; submit a new draft')
    WHERE NEW.seq <> OLD.seq;
    SELECT RAISE(ABORT, 'draftq: illegal edit: a claim keeps its token; recover the draft first')
    WHERE NEW.state = OLD.state;
    SELECT CASE OLD.state || ' ' || NEW.state
        WHEN 'pending accepted'        THEN RAISE(ABORT, 'draftq: illegal move: pending to accepted')
        WHEN 'pending skipped'         THEN RAISE(ABORT, 'draftq: illegal move: pending to skipped')
        WHEN 'pending failed'          THEN RAISE(ABORT, 'draftq: illegal move: pending to failed')
        WHEN 'pending quarantined'     THEN RAISE(ABORT, 'draftq: illegal move: pending to quarantined')
        WHEN 'accepted processing'     THEN RAISE(ABORT, 'draftq: illegal move: accepted to processing')
        WHEN 'accepted skipped'        THEN RAISE(ABORT, 'draftq: illegal move: accepted to skipped')
        WHEN 'accepted failed'         THEN RAISE(ABORT, 'draftq: illegal move: accepted to failed')
        WHEN 'accepted quarantined'    THEN RAISE(ABORT, 'draftq: illegal move: accepted to quarantined')
        WHEN 'skipped processing'      THEN RAISE(ABORT, 'draftq: illegal move: skipped to processing')
        WHEN 'skipped accepted'        THEN RAISE(ABORT, 'draftq: illegal move: skipped to accepted')
        WHEN 'skipped failed'          THEN RAISE(ABORT, 'draftq: illegal move: skipped to failed')
        WHEN 'skipped quarantined'     THEN RAISE(ABORT, 'draftq: illegal move: skipped to quarantined')
        WHEN 'failed processing'       THEN RAISE(ABORT, 'draftq: illegal move: failed to processing')
        WHEN 'failed accepted'         THEN RAISE(ABORT, 'draftq: illegal move: failed to accepted')
        WHEN 'failed skipped'          THEN RAISE(ABORT, 'draftq: illegal move: failed to skipped')
        WHEN 'failed quarantined'      THEN RAISE(ABORT, 'draftq: illegal move: failed to quarantined')
        WHEN 'quarantined processing'  THEN RAISE(ABORT, 'draftq: illegal move: quarantined to processing')
        WHEN 'quarantined accepted'    THEN RAISE(ABORT, 'draftq: illegal move: quarantined to accepted')
        WHEN 'quarantined skipped'     THEN RAISE(ABORT, 'draftq: illegal move: quarantined to skipped')
        WHEN 'quarantined failed'      THEN RAISE(ABORT, 'draftq: illegal move: quarantined to failed')
        ELSE RAISE(ABORT, 'draftq: illegal move: there is no such state')
    END;
END;

CREATE TRIGGER drafts_moved AFTER UPDATE OF state, errors ON drafts
WHEN NEW.state <> OLD.state OR (NEW.state = 'processing' AND NEW.errors > OLD.errors)
BEGIN
    INSERT INTO history (draft, event, from_state, to_state, at, runner,
                         decision, note, output, error_class, error, by_hand)
    VALUES (
        NEW.seq,
        CASE WHEN NEW.state = OLD.state         THEN 'errored'
             WHEN NEW.state = 'processing'      THEN 'claimed'
             WHEN OLD.state <> 'processing'     THEN 'requeued'
             WHEN NEW.decision = 'deferred'     THEN 'deferred'
             WHEN NEW.decision IS NOT NULL      THEN 'decided'
             WHEN NEW.claims < OLD.claims       THEN 'released'
             WHEN NEW.state = 'pending'         THEN 'recovered'
             ELSE 'exhausted' END,
        OLD.state, NEW.state,
        CASE WHEN NEW.revision <> OLD.revision THEN NEW.updated_at
             ELSE CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) END,
        coalesce(NEW.owner, OLD.owner),
        NEW.decision,
        CASE WHEN NEW.decision IS NOT NULL THEN NEW.note END,
        CASE WHEN NEW.decision IS NOT NULL THEN NEW.output END,
        CASE WHEN OLD.state = 'processing' AND NEW.decision IS NULL AND NEW.claims = OLD.claims
             THEN NEW.last_error_class END,
        CASE WHEN OLD.state = 'processing' AND NEW.decision IS NULL AND NEW.claims = OLD.claims
             THEN NEW.last_error END,
        NEW.revision = OLD.revision
    );
END;

CREATE TRIGGER drafts_counted_as_delayed AFTER UPDATE OF due_at ON drafts
WHEN (NEW.due_at > 0) <> (OLD.due_at > 0)
BEGIN
    UPDATE tally SET delayed = delayed + (NEW.due_at > 0) - (OLD.due_at > 0);
END;

-- ── What never changes ──────────────────────────────────────────────────────────────────────

CREATE TRIGGER drafts_identity_is_fixed
BEFORE UPDATE OF id, submitted_at, text_bytes, source_surface, source_agent, source_project,
                 operator, provenance_uri, context_tags ON drafts
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s identity is fixed; submit a new draft');
END;

CREATE TRIGGER drafts_only_finished_ones_go BEFORE DELETE ON drafts
WHEN OLD.state IN ('pending', 'processing')
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: the draft is not finished');
END;

CREATE TRIGGER drafts_go_whole AFTER DELETE ON drafts
BEGIN
    DELETE FROM draft_texts WHERE seq = OLD.seq;
    DELETE FROM tally;
    INSERT INTO history (draft, event, from_state, to_state, at, by_hand)
    VALUES (0, 'deleted', 'deleted', 'deleted', OLD.updated_at, 0);
    DELETE FROM history
    WHERE seq = OLD.seq
       OR (draft IN (0, OLD.seq) AND seq <> draft AND seq < last_insert_rowid());
END;

-- Texts come in the order of their drafts. One that waits for its draft would stand in the way of
-- that draft's own.
CREATE TRIGGER draft_texts_are_written_once BEFORE INSERT ON draft_texts
WHEN NEW.seq <= ifnull((SELECT seq FROM draft_texts ORDER BY seq DESC LIMIT 1), 0)
  OR NOT EXISTS (SELECT 1 FROM drafts WHERE seq = NEW.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal insert: a text comes with its draft')
    WHERE NOT EXISTS (SELECT 1 FROM drafts WHERE seq = NEW.seq);
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s text is fixed; submit a new draft');
END;

CREATE TRIGGER draft_texts_are_fixed BEFORE UPDATE ON draft_texts
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: a draft''s text is fixed; submit a new draft');
END;

CREATE TRIGGER draft_texts_go_with_their_draft BEFORE DELETE ON draft_texts
WHEN EXISTS (SELECT 1 FROM drafts WHERE seq = OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: a text goes with its draft');
END;

-- By the database, at its end, and for a draft that is in that state; without one only to keep
-- the place of those that are gone.
CREATE TRIGGER history_is_appended_to BEFORE INSERT ON history
WHEN NEW.seq > 0
  OR NEW.to_state <> ifnull(
         (SELECT state FROM drafts WHERE seq = NEW.draft),
         CASE WHEN NEW.draft = 0 AND NEW.event = 'deleted' AND NEW.from_state = 'deleted'
              THEN 'deleted' ELSE '' END)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: the history is only appended to');
END;

CREATE TRIGGER history_is_fixed BEFORE UPDATE ON history
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: the history is only appended to');
END;

CREATE TRIGGER history_goes_with_its_draft BEFORE DELETE ON history
WHEN EXISTS (SELECT 1 FROM drafts WHERE seq = OLD.draft)
  OR NOT EXISTS (SELECT 1 FROM history WHERE seq > OLD.seq)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal delete: a history goes with its draft');
END;

-- ── Views ───────────────────────────────────────────────────────────────────────────────────

-- Every draft without its text, times in ISO 8601.
CREATE VIEW draft_overview AS
SELECT seq, id, state, decision, note, output,
       claims, errors, defers, last_error_class, last_error,
       strftime('%Y-%m-%dT%H:%M:%fZ', submitted_at / 1000.0, 'unixepoch') AS submitted,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000.0, 'unixepoch') AS updated,
       strftime('%Y-%m-%dT%H:%M:%fZ', claimed_at / 1000.0, 'unixepoch') AS claimed,
       CASE WHEN due_at > 0
            THEN strftime('%Y-%m-%dT%H:%M:%fZ', due_at / 1000.0, 'unixepoch') END AS due,
       source_surface, source_agent, source_project, operator, provenance_uri, context_tags,
       text_bytes
FROM drafts;

-- How many drafts are in each state, all six of them, in their order.
CREATE VIEW state_counts AS
WITH states (position, state) AS (
    VALUES (1, 'pending'), (2, 'processing'), (3, 'accepted'),
           (4, 'skipped'), (5, 'failed'), (6, 'quarantined')),
counts AS (SELECT state, count(*) AS drafts FROM drafts GROUP BY state)
SELECT states.state, coalesce(counts.drafts, 0) AS drafts
FROM states LEFT JOIN counts USING (state)
ORDER BY states.position;

-- What is being processed, since when, and by whom; runner is NULL where nobody holds the claim.
CREATE VIEW in_flight AS
SELECT d.id,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.claimed_at / 1000.0, 'unixepoch') AS claimed,
       max(0, CAST(round((julianday('now') - 2440587.5) * 86400.0) AS INTEGER)
              - d.claimed_at / 1000) AS age_secs,
       d.owner AS runner, r.pid, r.host, r.program, r.processor,
       d.claims, d.errors, d.last_error_class
FROM drafts d LEFT JOIN runners r ON r.id = d.owner
WHERE d.state = 'processing';

-- Every event with its draft's id and the time in ISO 8601; seq is their order.
CREATE VIEW draft_history AS
SELECT h.seq, d.id, h.event, h.from_state, h.to_state,
       strftime('%Y-%m-%dT%H:%M:%fZ', h.at / 1000.0, 'unixepoch') AS at,
       h.runner, r.pid, r.processor, h.decision, h.note, h.output, h.error_class, h.error,
       h.by_hand
FROM drafts d
JOIN history h ON h.seq = d.seq OR (h.draft = d.seq AND h.seq <> h.draft)
LEFT JOIN runners r ON r.id = h.runner;
