//! The Markdown of the lines of all rounds: a row for each peer, a column for each operation.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;

use crate::common::Outcome;

const FOUR: [&str; 2] = ["drain-4", "drain-4-many"];

/// Reads lines of JSON from stdin.
pub fn print() -> Outcome<()> {
    let mut lines: Vec<Value> = Vec::new();
    for line in std::io::stdin().lines() {
        lines.push(serde_json::from_str(&line?)?);
    }
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    // In the order in which they were measured.
    let (mut peers, mut operations) = (Vec::new(), Vec::new());
    for line in &lines {
        let (peer, operation) = (text(line, "peer"), (text(line, "operation"), &line["drafts"]));
        if !peers.contains(&peer) {
            peers.push(peer);
        }
        if !operations.contains(&operation) {
            operations.push(operation);
        }
    }
    let mut table = String::from("| per second: median (least–most) |");
    for (operation, drafts) in &operations {
        write!(table, " {operation}, {drafts} |")?;
    }
    table.push_str(" processes of drain-4 and drain-4-many, all rounds |\n|---|");
    table.push_str(&"---:|".repeat(operations.len()));
    table.push_str("---|\n");
    for peer in &peers {
        let own: Vec<&Value> = lines.iter().filter(|line| text(line, "peer") == *peer).collect();
        write!(table, "| {peer} |")?;
        for (operation, drafts) in &operations {
            let rounds = own
                .iter()
                .filter(|line| text(line, "operation") == *operation && &line["drafts"] == *drafts);
            write!(table, " {} |", cell(rounds.copied()))?;
        }
        writeln!(table, " {} |", fate(&own))?;
    }
    write!(std::io::stdout(), "{table}")?;
    Ok(())
}

fn cell<'a>(rounds: impl Iterator<Item = &'a Value>) -> String {
    let mut rates: Vec<u64> = rounds.filter_map(|line| line["per_second"].as_u64()).collect();
    rates.sort_unstable();
    match (rates.first(), rates.get(rates.len() / 2), rates.last()) {
        (Some(least), Some(median), Some(most)) => {
            format!("{} ({}–{})", short(*median), short(*least), short(*most))
        }
        _ => "none".to_owned(),
    }
}

/// Three digits are more than a noisy machine can tell.
fn short(rate: u64) -> String {
    match rate {
        0..1_000 => rate.to_string(),
        1_000..100_000 => format!("{}.{}k", rate / 1_000, rate % 1_000 / 100),
        _ => format!("{}k", rate / 1_000),
    }
}

/// What became of the processes and of the drafts.
fn fate(own: &[&Value]) -> String {
    let four = || {
        own.iter().filter(|line| line["operation"].as_str().is_some_and(|it| FOUR.contains(&it)))
    };
    let sum = |name: &str| four().filter_map(|line| line[name].as_u64()).sum::<u64>();
    let (processes, failed) = (sum("processes"), sum("failed"));
    let (never, repeated, left) = (sum("never"), sum("repeated"), sum("left"));
    if processes == 0 {
        return "not measured".to_owned();
    }
    let drafts = if never + repeated + left == 0 {
        "each draft once".to_owned()
    } else {
        format!("never processed {never}, more than once {repeated}, not finished {left}")
    };
    // The least share of a round, of what each process would have if all had the same; only where
    // there is enough to share.
    let share = |line: &&Value| {
        let fair = line["drafts"].as_u64()? / line["processes"].as_u64()?;
        Some(line["least"].as_u64()? * 100 / fair.max(1))
    };
    let mut shares: Vec<u64> =
        own.iter().filter(|line| line["operation"] == FOUR[1]).filter_map(share).collect();
    shares.sort_unstable();
    let least = shares.get(shares.len() / 2).copied().unwrap_or_default();
    format!("{failed} of {processes} failed; {drafts}; least share {least} %")
}
