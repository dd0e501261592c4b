//! A runner is stopped while it holds a draft, loses the claim, and continues late.

use std::time::{Duration, SystemTime};

use draftq::DraftId;
use draftq::{DraftState, DraftStore};
use fastrand::Rng;
use rusqlite::Connection;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use serde_json::json;

use super::audit::{check_no_runner_left, read_back};
use super::{Bench, Fifo, Process, draft, json, seed, size};

/// Reports that it has the draft, then waits for its answer.
const PROGRAM: &str = r#"echo have > "$HAVE"; read -r answer < "$ANSWER"; eval "$answer""#;

const ACCEPT: &str = r#"echo '{"decision":"accepted"}'"#;

#[test]
fn frozen_short() {
    frozen(12);
}

#[test]
#[ignore = "a minute; DRAFTQ_TEST_FROZEN"]
fn frozen_long() {
    frozen(size("DRAFTQ_TEST_FROZEN", 1_000));
}

/// What happens to the draft while its runner is stopped.
#[derive(Clone, Copy)]
enum Meanwhile {
    /// Another runner finishes it.
    Finished,
    /// Another runner processes it.
    Held,
    /// No runner has claimed it yet.
    Waiting,
}

struct Scene<'b> {
    bench: &'b Bench,
    store: DraftStore,
    sql: Connection,
    slow: (Fifo, Fifo),
    other: (Fifo, Fifo),
}

fn frozen(rounds: usize) {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let bench = Bench::new();
    let mut scene = Scene {
        store: bench.store(),
        sql: bench.sql(),
        slow: (bench.fifo("slow-have"), bench.fifo("slow-answer")),
        other: (bench.fifo("other-have"), bench.fifo("other-answer")),
        bench: &bench,
    };
    let mut refused = 0;
    for round in 0..rounds {
        let meanwhile = [Meanwhile::Finished, Meanwhile::Held, Meanwhile::Waiting][round % 3];
        let by_hand = rng.bool();
        // A late error is refused like a late decision.
        let late = [ACCEPT, "exit 75", "exit 9", r#"echo '{"decision":"quarantined"}'"#];
        let id = scene.round(&format!("{seed} {round}"), meanwhile, by_hand, late[rng.usize(..4)]);
        let count: usize = scene
            .sql
            .query_row(
                "SELECT count(*) FROM draft_history WHERE id = ?1 AND event = 'refused'",
                [id.to_hex()],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(count, 1);
        refused += count;
    }
    drop(scene);
    let rows = read_back(&bench.sql());
    assert!(rows.values().all(|row| row.state == "accepted" && row.duplicates() == 0));
    check_no_runner_left(&bench);
    println!(
        "{}",
        json!({ "evidence": "frozen owner", "seed": seed, "late": rounds, "refused": refused })
    );
    assert_eq!(refused, rounds);
}

impl Scene<'_> {
    fn runner(&self, (have, answer): &(Fifo, Fifo)) -> Process {
        let mut command = self.bench.command(["run", "--json", "-q", "--", "sh", "-c", PROGRAM]);
        Process::start_piped(command.env("HAVE", &have.path).env("ANSWER", &answer.path))
    }

    fn round(&mut self, text: &str, meanwhile: Meanwhile, by_hand: bool, late: &str) -> DraftId {
        let id = self.store.submit(&draft(text)).unwrap().id;
        let slow = self.runner(&self.slow);
        self.slow.0.line();
        slow.signal(Signal::STOP);
        let options = WaitIdOptions::STOPPED;
        waitid(WaitId::Pid(slow.pid), options).unwrap();

        // The runner is alive, so age does not matter.
        let future = SystemTime::now() + Duration::from_secs(10 * 365 * 86_400);
        let recovery = self.store.recover(future).unwrap();
        assert_eq!(recovery.to_pending.len() + recovery.to_failed.len(), 0);

        if by_hand {
            let moved = self.sql.execute(
                "UPDATE drafts SET state = 'pending', claimed_at = NULL, claim_token = NULL, \
                     owner = NULL WHERE id = ?1",
                [id.to_hex()],
            );
            assert_eq!(moved.unwrap(), 1);
        } else {
            self.store.transition(id, DraftState::Processing, DraftState::Pending).unwrap();
        }
        let mut other = None;
        match meanwhile {
            Meanwhile::Finished => self.accept(),
            Meanwhile::Held => {
                other = Some(self.runner(&self.other));
                self.other.0.line();
            }
            Meanwhile::Waiting => {}
        }

        let before = self.row(id);
        self.slow.1.say(late);
        slow.signal(Signal::CONT);
        let output = slow.output();
        assert_eq!(output.status.code(), Some(70), "{output:?}");
        let summary = &json(&output)["summary"];
        assert_eq!(summary["lost_claims"], 1, "{output:?}");
        assert_eq!(summary["errors"], 0, "{output:?}");
        assert_eq!(summary["items"], json!([]), "{output:?}");
        assert_eq!(self.row(id), before, "the late result changed the draft");

        match other {
            Some(other) => {
                self.other.1.say(ACCEPT);
                let output = other.output();
                assert_eq!(output.status.code(), Some(0), "{output:?}");
                assert_eq!(json(&output)["summary"]["accepted"], 1);
            }
            None if matches!(meanwhile, Meanwhile::Waiting) => self.accept(),
            None => {}
        }
        id
    }

    fn accept(&self) {
        let output = self.bench.output(["run", "--json", "-q", "--exit-code", "--", "true"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(json(&output)["summary"]["accepted"], 1, "{output:?}");
    }

    /// All columns of a draft, as one text.
    fn row(&self, id: DraftId) -> String {
        self.sql
            .query_row("SELECT * FROM drafts WHERE id = ?1", [id.to_hex()], |row| {
                let columns = row.as_ref().column_count();
                (0..columns).map(|column| row.get_ref(column).map(|it| format!("{it:?}"))).collect()
            })
            .unwrap()
    }
}
