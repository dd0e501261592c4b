//! Twenty processes open a database that does not exist yet.

use serde_json::json;

use super::audit::read_back;
use super::{Bench, Process, command_on, seed, size};

#[test]
fn first_start_short() {
    first_start(5);
}

#[test]
#[ignore = "a minute; DRAFTQ_TEST_STARTS"]
fn first_start_long() {
    first_start(size("DRAFTQ_TEST_STARTS", 500));
}

fn first_start(rounds: usize) {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut schemas = std::collections::BTreeSet::new();
    for round in 0..rounds {
        let bench = Bench::new();
        let db = bench.db();
        let processes: Vec<_> = (0..20)
            .map(|n| {
                let text = format!("draft {n} of {round}");
                let arguments: &[&str] = match (n, rng.u8(..4)) {
                    (0, _) | (_, 0 | 1) => &["submit", "--json", "--text", &text],
                    (_, 2) => &["run", "--json", "-q", "--exit-code", "--", "true"],
                    _ => &["list", "--json"],
                };
                let submits = arguments[0] == "submit";
                let looks = arguments[0] == "list";
                ((submits, looks), Process::start_piped(&mut command_on(&db, arguments)))
            })
            .collect();
        let submits = processes.iter().filter(|((submits, _), _)| *submits).count();
        for ((_, looks), process) in processes {
            let output = process.output();
            // A reading command may run before there is a database.
            if looks && output.status.code() == Some(66) {
                continue;
            }
            assert_eq!(output.status.code(), Some(0), "seed {seed}, round {round}: {output:?}");
            assert!(output.stderr.is_empty(), "seed {seed}, round {round}: {output:?}");
        }
        let sql = bench.sql();
        assert_eq!(read_back(&sql).len(), submits);
        let schema: String = sql
            .query_row(
                "SELECT group_concat(sql, ';') || (SELECT * FROM pragma_user_version) \
                     || (SELECT * FROM pragma_application_id) \
                     || (SELECT * FROM pragma_journal_mode) FROM sqlite_schema",
                [],
                |row| row.get(0),
            )
            .unwrap();
        schemas.insert(schema);
    }
    assert_eq!(schemas.len(), 1);
    println!(
        "{}",
        json!({
            "evidence": "first start", "seed": seed, "rounds": rounds, "processes": 20,
            "errors": 0, "schemas": schemas.len(),
        })
    );
}
