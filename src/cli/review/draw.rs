//! Draws the screen.

use draftq::{DraftState, unix_ms};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::UnicodeWidthStr as _;

use super::app::{App, Prompt};
use super::detail::View;
use super::entries::Entry;
use super::keys;
use super::wrap::{cut, tail, wrap};

/// The smallest screen on which a draft can be judged.
const MIN_WIDTH: u16 = 40;
const MIN_HEIGHT: u16 = 10;

/// Lines that are neither of the list nor of the draft: title, heads, message, keys.
const FIXED_LINES: u16 = 5;

const MAX_MESSAGE_LINES: usize = 3;

const STATE_WIDTH: usize = 11;
const FROM_WIDTH: usize = 18;

/// Whether colours are used. Without them, the screen has bold and reversed text only.
#[derive(Debug, Clone, Copy)]
pub struct Colours {
    pub used: bool,
}

impl Colours {
    /// One of the 16 colours that every terminal has.
    fn of(self, state: DraftState) -> Style {
        let colour = match state {
            DraftState::Pending => Color::Cyan,
            DraftState::Processing => Color::Magenta,
            DraftState::Accepted => Color::Green,
            DraftState::Skipped => Color::Blue,
            DraftState::Failed => Color::Red,
            DraftState::Quarantined => Color::Yellow,
        };
        if self.used { Style::new().fg(colour) } else { Style::new() }
    }
}

pub fn draw(frame: &mut Frame<'_>, app: &mut App, colours: Colours) {
    let area = frame.area();
    app.is_too_small = area.width < MIN_WIDTH || area.height < MIN_HEIGHT;
    if app.is_too_small {
        let text = format!(
            "The terminal is too small: {}x{}. It needs {MIN_WIDTH}x{MIN_HEIGHT}. q quits.",
            area.width, area.height
        );
        let lines: Vec<Line<'_>> =
            wrap(&text, area.width.into()).into_iter().map(Line::from).collect();
        frame.render_widget(Paragraph::new(lines), area);
        return;
    }
    let free = area.height - FIXED_LINES;
    let list = (free / 3).clamp(2, 12);
    let row = |y: u16, height: u16| Rect { y: area.y + y, height, ..area };
    draw_title(frame, app, row(0, 1));
    if app.shows_help {
        draw_help(frame, row(1, area.height - 1));
        return;
    }
    draw_list(frame, app, row(1, list + 1), colours);
    let message = message_lines(app, area.width.into());
    let lines = u16::try_from(message.len()).unwrap_or(1);
    draw_draft(frame, app, row(list + 2, free - list + 2 - lines), colours);
    draw_message(frame, app, message, row(area.height - 1 - lines, lines));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let help = cut(keys::SHORT_HELP, area.width.into());
    frame.render_widget(Paragraph::new(Line::styled(help, bold)), row(area.height - 1, 1));
}

fn draw_title(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let width = usize::from(area.width);
    let states = match app.only {
        Some(state) => state.as_str().to_owned(),
        None if app.states.len() == DraftState::ALL.len() => "all states".to_owned(),
        None => app.states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(", "),
    };
    let total = app.entries.rows().len();
    let more = if app.entries.has_more() { "+" } else { "" };
    let number = if total == 0 { 0 } else { app.cursor + 1 };
    let by = cut(&draftq::escape_line(&app.by), 20);
    let right = format!("{number} of {total}{more}  signed {by} ");
    let left = cut(&format!(" draftq review  {states}"), width.saturating_sub(right.width() + 1));
    let gap = width.saturating_sub(left.width() + right.width());
    let title = format!("{left}{}{right}", " ".repeat(gap));
    let style = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(Line::styled(cut(&title, width), style)), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let width = usize::from(area.width);
    let mut lines = vec![Line::default()];
    for (keys, does) in keys::HELP {
        lines.push(Line::from(cut(&format!(" {keys:<20}{does}"), width)));
    }
    lines.push(Line::default());
    lines
        .push(Line::from(cut(" Each decision is signed and stays in the draft's history.", width)));
    lines.push(Line::from(cut(" Press a key to go back.", width)));
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_list(frame: &mut Frame<'_>, app: &App, area: Rect, colours: Colours) {
    let width = usize::from(area.width);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let head = format!(
        "  {:<8}  {:<STATE_WIDTH$}  {:>4}  {:<FROM_WIDTH$}  WHY",
        "ID", "STATE", "AGE", "FROM"
    );
    let mut lines = vec![Line::styled(cut(&head, width), bold)];
    let visible = usize::from(area.height) - 1;
    let rows = app.entries.rows();
    let first = app.cursor.saturating_sub(visible / 2).min(rows.len().saturating_sub(visible));
    let now = unix_ms(app.store.clock().now());
    for (index, entry) in rows.iter().enumerate().skip(first).take(visible) {
        lines.push(list_line(entry, index == app.cursor, now, width, colours));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn list_line(
    entry: &Entry,
    is_open: bool,
    now: i64,
    width: usize,
    colours: Colours,
) -> Line<'static> {
    let mark = match (is_open, entry.is_decided()) {
        (true, true) => ">*",
        (true, false) => "> ",
        (false, true) => " *",
        (false, false) => "  ",
    };
    let id: String = entry.id.to_hex().chars().take(8).collect();
    let age = age(now.saturating_sub(entry.submitted_at_unix_ms));
    let from = padded(&entry.from, FROM_WIDTH);
    let state = format!("{:<STATE_WIDTH$}", entry.state.as_str());
    let start = format!("{mark}{id}  ");
    let rest = format!("  {age:>4}  {from}  {}", entry.reason());
    let rest = cut(&rest, width.saturating_sub(start.width() + state.width()));
    let row = if is_open { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    let rest = padded(&rest, width.saturating_sub(start.width() + state.width()));
    Line::from(vec![
        Span::styled(start, row),
        Span::styled(state, row.patch(colours.of(entry.state))),
        Span::styled(rest, row),
    ])
}

fn padded(text: &str, width: usize) -> String {
    let text = cut(text, width);
    let gap = width.saturating_sub(text.width());
    text + &" ".repeat(gap)
}

/// An age in its largest unit.
fn age(ms: i64) -> String {
    let secs = (ms / 1000).max(0);
    match secs {
        0..=59 => format!("{secs}s"),
        60..=3599 => format!("{}m", secs / 60),
        3600..=86_399 => format!("{}h", secs / 3600),
        86_400..=86_399_999 => format!("{}d", secs / 86_400),
        _ => format!("{}y", secs / 31_556_952),
    }
}

fn draw_draft(frame: &mut Frame<'_>, app: &mut App, area: Rect, colours: Colours) {
    let width = usize::from(area.width);
    let visible = usize::from(area.height) - 1;
    app.visible = visible;
    let Some(detail) = &mut app.detail else {
        frame.render_widget(Paragraph::new(Line::from("─".repeat(width))), area);
        return;
    };
    let lines = detail.lines(app.view, width);
    let total = lines.len();
    app.scroll = app.scroll.min(total.saturating_sub(visible));
    let end = (app.scroll + visible).min(total);
    let mut shown = vec![Line::default()];
    shown.extend(lines[app.scroll..end].iter().map(|line| Line::from(line.clone())));

    let bold = Style::new().add_modifier(Modifier::BOLD);
    let state = format!("{}", detail.state);
    let mut head = vec![
        Span::from("── "),
        Span::styled(detail.id.to_hex(), bold),
        Span::from(" "),
        Span::styled(state, colours.of(detail.state)),
        Span::from(" ── "),
    ];
    for view in View::ALL {
        match view == app.view {
            true => head.push(Span::styled(format!("[{}]", view.title()), bold)),
            false => head.push(Span::from(format!(" {} ", view.title()))),
        }
    }
    let place = match total > visible {
        true => format!(" {}-{end} of {total} ──", app.scroll + 1),
        false => String::new(),
    };
    let used: usize = head.iter().map(|span| span.content.width()).sum();
    let gap = width.saturating_sub(used + place.width() + 1);
    head.push(Span::from(format!(" {}{place}", "─".repeat(gap))));
    shown[0] = Line::from(head);
    frame.render_widget(Paragraph::new(shown), area);
}

/// The message, in as many lines as it needs, but at least one and at most three.
fn message_lines(app: &App, width: usize) -> Vec<String> {
    let message = match app.goes_to_end {
        true => format!("loading … {} drafts", app.entries.rows().len()),
        false => draftq::escape_line(&app.message).into_owned(),
    };
    let mut lines = match app.prompt {
        Some(_) => vec![String::new()],
        None => wrap(&message, width),
    };
    lines.truncate(MAX_MESSAGE_LINES);
    lines
}

fn draw_message(frame: &mut Frame<'_>, app: &App, message: Vec<String>, area: Rect) {
    let width = usize::from(area.width);
    let Some((prompt, input)) = &app.prompt else {
        let lines: Vec<Line<'_>> = message.into_iter().map(Line::from).collect();
        frame.render_widget(Paragraph::new(lines), area);
        return;
    };
    let question = match prompt {
        Prompt::Note { verdict, .. } => format!("{} with note: ", verdict.verb()),
        Prompt::Search => "search: ".to_owned(),
    };
    let input = draftq::escape_line(input);
    let input = tail(&input, width.saturating_sub(question.width() + 1));
    let column = u16::try_from(question.width() + input.width()).unwrap_or(u16::MAX);
    frame.render_widget(Paragraph::new(format!("{question}{input}")), area);
    let x = area.x.saturating_add(column).min(area.right().saturating_sub(1));
    frame.set_cursor_position(Position { x, y: area.y });
}
