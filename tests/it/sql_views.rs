//! The views, and the queries at the head of the schema file.

use draftq::{Claimed, DraftProcessingDecision, DraftState, MAX_DELAY, Outcome};

use crate::harness::store;
use crate::shells::{Shell, bring_to};

fn is_iso8601(text: &str) -> bool {
    text.len() == 24
        && text.bytes().zip("dddd-dd-ddTdd:dd:dd.dddZ".bytes()).all(|(found, wanted)| {
            if wanted == b'd' { found.is_ascii_digit() } else { found == wanted }
        })
}

#[test]
fn the_views_show_readable_values() {
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    for (number, state) in DraftState::ALL.into_iter().enumerate() {
        bring_to(&store, &format!("{state} {number}"), state);
    }
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    let Some(Claimed::Draft(claim)) = store.claim_next(&runner, &mut snapshot).unwrap() else {
        panic!("nothing to claim");
    };
    let outcome = Outcome::new(DraftProcessingDecision::Deferred).with_retry_after(MAX_DELAY);
    store.finish(*claim, &outcome).unwrap();
    bring_to(&store, "held", DraftState::Pending);
    let mut snapshot = store.pending_snapshot().unwrap();
    let claim = store.claim_next(&runner, &mut snapshot).unwrap();
    assert!(claim.is_some());

    let counts = "pending|1\nprocessing|2\naccepted|1\nskipped|1\nfailed|1\nquarantined|1";
    for shell in Shell::all() {
        let ask = |sql: &str| shell.ask(&path, sql).unwrap();
        assert_eq!(ask("SELECT * FROM state_counts"), counts, "{shell:?}");
        for (view, times) in [
            ("draft_overview", "submitted"),
            ("draft_overview", "updated"),
            ("draft_overview", "claimed"),
            ("draft_overview", "due"),
            ("in_flight", "claimed"),
            ("draft_history", "at"),
        ] {
            let times = ask(&format!("SELECT {times} FROM {view} WHERE {times} IS NOT NULL"));
            assert!(!times.is_empty(), "{shell:?}: {view}");
            assert!(times.lines().all(is_iso8601), "{shell:?}: {view}: {times}");
        }
        assert_eq!(ask("SELECT count(*) FROM draft_overview"), "7", "{shell:?}");
        let flight = "SELECT pid, processor, age_secs BETWEEN 0 AND 600 FROM in_flight \
                      WHERE runner IS NOT NULL";
        assert_eq!(ask(flight), format!("{}|test|1", std::process::id()), "{shell:?}");
        let lost = "SELECT count(*) FROM history LEFT JOIN draft_history USING (seq) \
                    WHERE draft_history.at IS NULL";
        assert_eq!(ask(lost), "0", "{shell:?}");
    }
}

/// The queries of the schema file's header can be typed as they are.
#[test]
fn the_ten_queries_of_the_header_work() {
    let schema = include_str!("../../migrations/0002_drafts.sql");
    let queries: Vec<String> = schema
        .lines()
        .filter_map(|line| line.strip_prefix("--     SELECT"))
        .map(|rest| format!("SELECT{}", rest.split(" -- ").next().unwrap()))
        .collect();
    assert_eq!(queries.len(), 10);
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    for state in DraftState::ALL {
        bring_to(&store, state.dir_name(), state);
    }
    for shell in Shell::all() {
        for (query, answer) in queries.iter().zip(shell.each(&path, &queries)) {
            answer.unwrap_or_else(|error| panic!("{shell:?}: {query}: {error}"));
        }
    }
}
