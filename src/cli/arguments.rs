//! Values of arguments that several commands take: numbers, times, surfaces, UTF-8.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::builder::{OsStringValueParser, TypedValueParser};
use draftq::DraftSourceSurface;
use time::format_description::well_known::Iso8601;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use super::input::not_utf8;

/// A whole number, with an error that users understand.
pub fn zero_or_more<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, 0 or more".to_owned())
}

/// As above, for a type without zero.
pub fn one_or_more<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, 1 or more".to_owned())
}

/// A number of seconds, at most 136 years, because the clock cannot represent a longer wait.
pub fn seconds(number: u64) -> Duration {
    Duration::from_secs(number.min(u32::MAX.into()))
}

/// An argument that is UTF-8. The error does not repeat it.
pub fn utf8_argument() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().try_map(|value| {
        let value = value.into_encoded_bytes();
        String::from_utf8(value).map_err(|error| not_utf8(error.utf8_error().valid_up_to()))
    })
}

/// A name or a reason: UTF-8, not blank, without control characters, at most 4096 bytes.
pub fn name() -> impl TypedValueParser<Value = String> {
    utf8_argument().try_map(|value| match value.as_str() {
        value if value.trim().is_empty() => Err("expected a text that is not empty"),
        value if value.len() > 4096 => Err("expected at most 4096 bytes"),
        value if value.contains(char::is_control) => Err("expected no control characters"),
        _ => Ok(value),
    })
}

/// A length of time that is not zero.
pub fn length_of_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time >= Duration::from_millis(1) => Ok(time),
        _ => Err("expected a length of time such as 90s, 15min, 2h or 1day".to_owned()),
    }
}

/// A source surface, in snake_case or kebab-case.
pub fn surface(text: &str) -> Result<DraftSourceSurface, String> {
    DraftSourceSurface::parse(text).ok_or_else(|| {
        let names = DraftSourceSurface::ALL.map(DraftSourceSurface::as_str);
        format!("expected one of {}", names.join(", "))
    })
}

/// A time, or an age, which is subtracted from the current time.
pub fn time_or_age(text: &str) -> Result<SystemTime, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    let day = Date::parse(text, format_description!("[year]-[month]-[day]"))
        .map(|day| day.midnight().assume_utc());
    let with_offset = || OffsetDateTime::parse(text, &Iso8601::DEFAULT);
    let in_utc =
        || PrimitiveDateTime::parse(text, &Iso8601::DEFAULT).map(PrimitiveDateTime::assume_utc);
    day.or_else(|_| with_offset())
        .or_else(|_| in_utc())
        .map(SystemTime::from)
        .map_err(|_| "expected an age such as 2h or 7d, or a time such as 2026-11-20".to_owned())
}
