//! What was measured, run by run, and the table that comes of it.

use std::io::Write;

use crate::Outcome;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    /// Operations per second: more is better.
    PerSecond,
    /// Seconds that it takes: less is better.
    Seconds,
    Percent,
    Mebibytes,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::PerSecond if figure >= 10_000.0 => format!("{:.1}k/s", figure / 1_000.0),
            Self::PerSecond => format!("{figure:.0}/s"),
            Self::Seconds if figure < 0.001 => format!("{:.0} µs", figure * 1e6),
            Self::Seconds => format!("{:.2} ms", figure * 1e3),
            Self::Percent => format!("{figure:.2} %"),
            Self::Mebibytes => format!("{figure:.1} MiB"),
        }
    }
}

/// The figures of one line, a pair a run: draftq's and, where there is one, that beside it.
struct Line {
    name: String,
    unit: Unit,
    beside: String,
    runs: Vec<(f64, Option<f64>)>,
}

/// All lines, in the order in which they first came.
#[derive(Default)]
pub struct Table {
    lines: Vec<Line>,
}

impl Table {
    /// A figure beside R's.
    pub fn beside_r(&mut self, name: &str, unit: Unit, ours: f64, r: f64) {
        self.add(name, unit, "R", ours, Some(r));
    }

    /// A figure beside another of draftq's.
    pub fn beside(&mut self, name: &str, unit: Unit, ours: f64, what: &str, other: f64) {
        self.add(name, unit, what, ours, Some(other));
    }

    /// A figure by itself.
    pub fn alone(&mut self, name: &str, unit: Unit, ours: f64) {
        self.add(name, unit, "", ours, None);
    }

    fn add(&mut self, name: &str, unit: Unit, beside: &str, ours: f64, other: Option<f64>) {
        match self.lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.runs.push((ours, other)),
            None => self.lines.push(Line {
                name: name.to_owned(),
                unit,
                beside: beside.to_owned(),
                runs: vec![(ours, other)],
            }),
        }
    }

    /// Markdown: medians over the runs, and the range of the ratio (or of the figure).
    pub fn print(&self, out: &mut impl Write) -> Outcome<()> {
        writeln!(out, "| | draftq | beside it | ratio | of all runs |")?;
        writeln!(out, "|---|---|---|---|---|")?;
        for Line { name, unit, beside, runs } in &self.lines {
            let ours: Vec<f64> = runs.iter().map(|run| run.0).collect();
            let others: Vec<f64> = runs.iter().filter_map(|run| run.1).collect();
            let figure = unit.show(median(&ours));
            if others.is_empty() {
                let (least, most) = range(&ours);
                let range = format!("{} – {}", unit.show(least), unit.show(most));
                writeln!(out, "| {name} | {figure} | | | {range} |")?;
                continue;
            }
            let ratios: Vec<f64> = ours.iter().zip(&others).map(|(a, b)| a / b).collect();
            let (least, most) = range(&ratios);
            let other = unit.show(median(&others));
            let ratio = median(&ratios);
            writeln!(
                out,
                "| {name} | {figure} | {beside} {other} | {ratio:.2} | {least:.2}–{most:.2} |"
            )?;
        }
        Ok(())
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
        (least.min(*value), most.max(*value))
    })
}
