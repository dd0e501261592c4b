//! Times, durations and numbers as a person reads them.

use std::time::Duration;

use draftq::{Hold, from_unix_ms};
use time::OffsetDateTime;
use time::macros::format_description;

/// A time to the second, UTC.
pub fn time(unix_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    OffsetDateTime::from(from_unix_ms(unix_ms)).format(format).unwrap_or_default()
}

/// A time to the minute, UTC, for a column whose title says so.
pub fn minute(unix_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    OffsetDateTime::from(from_unix_ms(unix_ms)).format(format).unwrap_or_default()
}

/// A duration for people: "320 ms", "3.2 s", or its two largest units, "3m 20s".
pub fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{} ms", duration.as_millis());
    }
    if duration < Duration::from_secs(10) {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    let whole = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number with its noun, in the plural if needed.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The singular for one, and the plural for any other number.
pub fn plural(number: usize, one: &'static str, several: &'static str) -> &'static str {
    if number == 1 { one } else { several }
}

/// When a hold ends.
pub fn hold_end(hold: &Hold) -> String {
    match hold.until_unix_ms {
        Some(until) => format!("until {}", time(until)),
        None => "without an end".to_owned(),
    }
}

/// The verb for this number of things.
pub fn is_or_are(number: usize) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

/// The same in the past tense.
pub fn was_or_were(number: usize) -> &'static str {
    if number == 1 { "was" } else { "were" }
}

/// The part of a sentence about drafts that live runners hold.
pub fn and_held(held: usize) -> String {
    match held {
        0 => String::new(),
        1 => "; 1 is held by a live runner".to_owned(),
        held => format!("; {held} are held by live runners"),
    }
}
