//! Draws a [`State`]. From 80x24 on everything fits; a wider window shows the detail beside the table.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Block, Borders, Cell, Clear, Paragraph, RenderDirection, Row, Sparkline, Table, TableState,
    Wrap,
};

use super::model::{Action, FOR_A_WHILE_S, Focus, Link, State, Tone};
use super::sources::Sort;
use crate::admin::views::{Explanation, SourceRow, Status};
use crate::cli::output::{clean, show_bytes, show_relative, show_seconds};
use crate::policy::model::Mode;

/// From this width on the detail stands beside the table.
const WIDE: u16 = 120;
/// Width of the detail beside the table.
const DETAIL_WIDTH: u16 = 64;
/// Smallest window that is drawn into.
const SMALLEST: (u16, u16) = (60, 16);

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Whether there are colours; bold and reverse are used either way.
    pub colour: bool,
}

impl Theme {
    fn of(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn good(self) -> Style {
        self.of(Color::Green)
    }

    fn bad(self) -> Style {
        self.of(Color::Red)
    }

    fn look(self) -> Style {
        self.of(Color::Yellow)
    }

    fn dim(self) -> Style {
        if self.colour {
            Style::new().fg(Color::DarkGray)
        } else {
            Style::new().add_modifier(Modifier::DIM)
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &State, theme: Theme) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!(
            "the window is {}x{}; `top` needs {}x{}",
            area.width, area.height, SMALLEST.0, SMALLEST.1
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let rates = if area.height >= 40 { 7 } else { 4 };
    let [head, graphs, reasons, body, line, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rates),
        Constraint::Length(1),
        Constraint::Min(4),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(header(state, theme), head);
    graph_row(frame, graphs, state, theme);
    frame.render_widget(reason_line(state, theme), reasons);
    if state.detail.is_none() {
        table(frame, body, state, theme);
    } else if area.width >= WIDE {
        let [left, right] =
            Layout::horizontal([Constraint::Min(60), Constraint::Length(DETAIL_WIDTH)]).areas(body);
        table(frame, left, state, theme);
        detail(frame, right, state, theme);
    } else {
        let rows = body.height.saturating_sub(10).max(4);
        let [top, bottom] =
            Layout::vertical([Constraint::Length(rows), Constraint::Min(1)]).areas(body);
        table(frame, top, state, theme);
        detail(frame, bottom, state, theme);
    }
    frame.render_widget(message_line(state, theme), line);
    frame.render_widget(Line::styled(key_line(state), theme.dim()), keys);
    if state.focus == Focus::Help {
        help(frame, area);
    }
}

fn header(state: &State, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::styled("ratelimiter top", BOLD)];
    let mut add = |text: String, style: Style| {
        spans.push(Span::raw("  "));
        spans.push(Span::styled(text, style));
    };
    match &state.link {
        Link::Connecting => add(format!("asking {} ...", state.target), theme.look()),
        Link::Down { since_ms, .. } => {
            let seconds = (state.now_ms.saturating_sub(*since_ms) / 1_000) as f64;
            let text = format!("AGENT UNREACHABLE for {}", show_seconds(seconds));
            add(text, theme.bad().add_modifier(Modifier::BOLD));
        }
        Link::Up => {}
    }
    if let Some(status) = &state.status {
        let (mode, style) = match status.mode {
            Mode::Enforce => ("enforce", theme.good()),
            Mode::Shadow => ("SHADOW: drops nothing", theme.look()),
            Mode::Off => ("OFF", theme.look()),
        };
        add(mode.to_owned(), style);
        if state.link == Link::Up {
            if status.ready {
                add("ready".to_owned(), theme.good());
            } else {
                add("DEGRADED".to_owned(), theme.bad());
            }
        }
        let interfaces: Vec<String> = status
            .interfaces
            .iter()
            .map(|interface| {
                let down = if interface.attached { "" } else { " (down)" };
                format!("{}{down}", clean(&interface.name))
            })
            .collect();
        let interfaces = if interfaces.is_empty() {
            "no interface".to_owned()
        } else {
            interfaces.join(" ")
        };
        add(interfaces, Style::new());
        add(
            format!("up {}", show_seconds(status.uptime_s.floor())),
            theme.dim(),
        );
    }
    if state.paused {
        add(
            "PAUSED".to_owned(),
            theme.look().add_modifier(Modifier::BOLD),
        );
    }
    Line::from(spans)
}

fn graph_row(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(area);
    let newest = state.history.back().copied().unwrap_or_default();
    let mut graph = |area: Rect, name: &str, now: f64, series: usize, style: Style| {
        let width = area.width.saturating_sub(2) as usize;
        let shown: Vec<u64> = state
            .history
            .iter()
            .rev()
            .take(width)
            .map(|rates| rates.get(series).copied().unwrap_or(0.0).round() as u64)
            .collect();
        let most = shown.iter().copied().max().unwrap_or(0);
        let title = format!(" {name} {}/s ", rate(now));
        let scale = format!(" highest {}/s ", rate(most as f64));
        let block = Block::new()
            .borders(Borders::ALL)
            .border_style(theme.dim())
            .title(Line::styled(title, style.add_modifier(Modifier::BOLD)))
            .title(Line::styled(scale, theme.dim()).alignment(Alignment::Right));
        let graph = Sparkline::default()
            .block(block)
            .style(style)
            .direction(RenderDirection::RightToLeft)
            .max(most.max(1))
            .data(shown);
        frame.render_widget(graph, area);
    };
    graph(left, "passed", newest[0], 0, theme.good());
    graph(right, "dropped", newest[1], 1, theme.bad());
}

/// What is dropped and why, on one line.
fn reason_line(state: &State, theme: Theme) -> Line<'static> {
    let reasons = state.reasons();
    let word = match state.status.as_ref().map(|status| status.mode) {
        Some(Mode::Enforce) | None => "dropped",
        Some(_) => "would be dropped",
    };
    if reasons.is_empty() {
        return Line::styled(format!("nothing is dropped{}", tables(state)), theme.dim());
    }
    let mut spans = vec![Span::styled(format!("{word} for "), theme.dim())];
    for (reason, per_s) in reasons {
        spans.push(Span::styled(
            format!("{} {}/s  ", clean(&reason), rate(per_s)),
            theme.bad(),
        ));
    }
    Line::from(spans)
}

/// How full the crowd is, where that is worth a word.
fn tables(state: &State) -> String {
    let Some(status) = &state.status else {
        return String::new();
    };
    format!(
        ", {} sources owe something",
        status.crowd.iter().map(|crowd| crowd.indebted).sum::<u64>()
    )
}

fn table(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let wide = area.width >= 100;
    let title = {
        let order = if state.reverse { ", reversed" } else { "" };
        let filter = if state.filter.is_empty() {
            String::new()
        } else {
            format!(", with `{}`", clean(&state.filter))
        };
        format!(
            " {} of {} sources by {}{order}{filter} ",
            state.rows.len(),
            state.sources_total,
            state.sort.word()
        )
    };
    let block = Block::new()
        .borders(Borders::TOP)
        .border_style(theme.dim())
        .title(Line::styled(title, BOLD));
    if state.rows.is_empty() {
        let text = match (&state.status, state.filter.is_empty()) {
            (None, _) => "no answer yet",
            (_, false) => "no source has that; Esc clears the filter",
            (_, true) => "no source was seen in the last seconds",
        };
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let sorted = |by: Sort, text: &'static str| {
        let style = if state.sort == by {
            BOLD.add_modifier(Modifier::UNDERLINED)
        } else {
            BOLD
        };
        Span::styled(text, style)
    };
    let right = |span: Span<'static>| Cell::from(Line::from(span).alignment(Alignment::Right));
    let mut heads = vec![
        Cell::from(sorted(Sort::Source, "SOURCE")),
        Cell::from(Span::styled("CLIENT", BOLD)),
    ];
    let mut widths = vec![
        Constraint::Min(if wide { 40 } else { 19 }),
        Constraint::Length(if wide { 20 } else { 12 }),
    ];
    if wide {
        heads.push(Cell::from(Span::styled("SEGMENT", BOLD)));
        widths.push(Constraint::Length(14));
    }
    heads.extend([
        right(sorted(Sort::Packets, "PACKETS/S")),
        right(sorted(Sort::Dropped, "DROPPED/S")),
        right(sorted(Sort::Bytes, "BYTES/S")),
        Cell::from(Span::styled("LAST REASON", BOLD)),
    ]);
    widths.extend([
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(16),
    ]);
    let rows = state.rows.iter().map(|row| table_row(row, wide, theme));
    let table = Table::new(rows, widths)
        .header(Row::new(heads))
        .block(block)
        .row_highlight_style(CHOSEN);
    let mut chosen = TableState::default().with_selected(state.position());
    frame.render_stateful_widget(table, area, &mut chosen);
}

fn table_row(row: &SourceRow, wide: bool, theme: Theme) -> Row<'static> {
    let drops = row.dropped_per_s >= 0.5;
    let style = if drops { theme.bad() } else { Style::new() };
    let right = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
    let mut cells = vec![
        Cell::from(clean(&row.source)),
        Cell::from(row.client.as_deref().map_or_else(|| "-".to_owned(), clean)),
    ];
    if wide {
        cells.push(Cell::from(clean(&row.segment)));
    }
    cells.extend([
        right(rate(row.packets_per_s)),
        right(rate(row.dropped_per_s)),
        right(show_bytes(row.bytes_per_s.max(0.0) as u64)),
        Cell::from(clean(&row.reason)),
    ]);
    Row::new(cells).style(style)
}

fn detail(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let Some(detail) = &state.detail else {
        return;
    };
    let block = Block::new()
        .borders(Borders::TOP | Borders::LEFT)
        .border_style(theme.dim())
        .title(Line::styled(format!(" {} ", clean(&detail.source)), BOLD));
    let lines = match &detail.explanation {
        None => vec![Line::from("asking the agent ...")],
        Some(Err(why)) => vec![Line::styled(clean(why), theme.look())],
        Some(Ok(explanation)) => explained(explanation, state, theme),
    };
    let text = Paragraph::new(lines)
        .block(block)
        .wrap(Wrap { trim: false });
    frame.render_widget(text, area);
}

fn explained(explanation: &Explanation, state: &State, theme: Theme) -> Vec<Line<'static>> {
    let style = if explanation.verdict == "drop" {
        theme.bad()
    } else {
        theme.good()
    };
    let mut lines = vec![Line::styled(
        clean(&explanation.summary),
        style.add_modifier(Modifier::BOLD),
    )];
    let mut fact = |name: &str, value: String| {
        lines.push(Line::from(vec![
            Span::styled(format!("{name:<8} "), BOLD),
            Span::raw(clean(&value)),
        ]));
    };
    fact("rule", crate::cli::explain::rule(&explanation.rule));
    if let Some(set) = crate::cli::explain::set_by(&explanation.rule, state.now_ms) {
        fact("set", set);
    }
    if let Some(reason) = &explanation.rule.reason {
        fact("why", reason.clone());
    }
    if let Some(ends) = explanation.rule.expires_unix_ms {
        fact("ends", show_relative(ends, state.now_ms));
    }
    for unit in &explanation.units {
        let name = crate::cli::limit_text::unit_word(unit.unit);
        let next = if unit.retry_after_s > 0.0 {
            format!("next in {}", show_seconds(unit.retry_after_s))
        } else {
            "next now".to_owned()
        };
        fact(
            name,
            format!(
                "{:.0} of {} left at {} per {}, {next}, full in {}",
                unit.tokens.floor(),
                unit.burst,
                unit.rate_limit,
                show_seconds(unit.time_window.as_ns() as f64 / 1e9),
                show_seconds(unit.reset_after_s)
            ),
        );
    }
    for (number, step) in explanation.path.iter().enumerate() {
        lines.push(Line::styled(
            format!("{}. {}", number + 1, clean(step)),
            theme.dim(),
        ));
    }
    lines
}

/// The line above the keys: a question, an answer, what is on trial, or what is wrong.
fn message_line(state: &State, theme: Theme) -> Line<'static> {
    let strong =
        |text: String, style: Style| Line::styled(text, style.add_modifier(Modifier::BOLD));
    if let Focus::Confirm(action) = &state.focus {
        return strong(question(action), theme.look());
    }
    if state.focus == Focus::Filter {
        return strong(format!("filter: {}_", clean(&state.filter)), theme.look());
    }
    if let Some((tone, text, _)) = &state.message {
        let style = match tone {
            Tone::Good => theme.good(),
            Tone::Bad => theme.bad(),
        };
        return strong(clean(text), style);
    }
    if let Link::Down { why, .. } = &state.link {
        return Line::styled(format!("{}; trying again", clean(why)), theme.bad());
    }
    match &state.status {
        Some(status) => standing(status, state.now_ms, theme),
        None => Line::default(),
    }
}

fn standing(status: &Status, now_ms: u64, theme: Theme) -> Line<'static> {
    if let Some(pending) = status.pending.first() {
        let more = match status.pending.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let text = format!(
            "on trial: `{}` takes itself back {}{more}; c keeps it, z takes it back now",
            clean(&pending.path),
            show_relative(pending.confirm_by_unix_ms, now_ms)
        );
        return Line::styled(text, theme.look().add_modifier(Modifier::BOLD));
    }
    if let Some(problem) = status.problems.first() {
        return Line::styled(clean(problem), theme.bad());
    }
    Line::styled(
        status
            .warnings
            .first()
            .map_or_else(String::new, |w| clean(w)),
        theme.dim(),
    )
}

fn question(action: &Action) -> String {
    let a_while = show_seconds(FOR_A_WHILE_S as f64);
    match action {
        Action::List { list, cidr, .. } => format!(
            "{} `{}`?  y for {a_while}  p for good  n no",
            list.word(),
            clean(cidr)
        ),
        Action::Unlist(cidr) => {
            format!(
                "take `{}` from the allow and block lists?  y yes  n no",
                clean(cidr)
            )
        }
        Action::Reset(cidr) => format!("give `{}` its full burst again?  y yes  n no", clean(cidr)),
        Action::Confirm(_) => "keep everything that is on trial?  y yes  n no".to_owned(),
        Action::Rollback(_) => "take back everything that is on trial?  y yes  n no".to_owned(),
    }
}

fn key_line(state: &State) -> &'static str {
    match state.focus {
        Focus::Table => {
            "? help  q quit  Enter explain  a allow  b block  r reset  / filter  s sort"
        }
        Focus::Filter => "Enter keep  Esc clear",
        Focus::Help => "any key goes back",
        Focus::Confirm(_) => "Esc no",
    }
}

const HELP: [(&str, &str); 15] = [
    (
        "Up Down j k",
        "choose a source; PageUp, PageDown, Home, End too",
    ),
    ("Enter", "explain the chosen source, and close that again"),
    ("s  S", "sort by the next column; turn the order around"),
    ("/", "show only what contains a text; Esc clears it"),
    ("Space", "let the figures stand still"),
    ("b", "block the chosen source, for 10 min or for good"),
    ("a", "allow it: never limit it, for 10 min or for good"),
    ("u", "take it from both lists"),
    ("r", "reset it: give it its full burst again"),
    ("c", "confirm: keep what is on trial"),
    ("z", "roll back: take back what is on trial"),
    ("?  h", "this page"),
    ("q  Ctrl-C", "quit; nothing changes by that"),
    ("", ""),
    ("", "Rates of sources are estimates from samples."),
];

fn help(frame: &mut Frame<'_>, area: Rect) {
    let width = 70.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let lines: Vec<Line<'_>> = HELP
        .iter()
        .map(|(keys, what)| {
            Line::from(vec![
                Span::styled(format!("{keys:<13}"), BOLD),
                Span::raw(*what),
            ])
        })
        .collect();
    frame.render_widget(Clear, place);
    let block = Block::new().borders(Borders::ALL).title(" keys ");
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

/// A rate in at most six characters: `0`, `0.4`, `812`, `12.3k`, `4.56M`.
#[must_use]
pub fn rate(per_s: f64) -> String {
    let per_s = if per_s.is_finite() {
        per_s.max(0.0)
    } else {
        0.0
    };
    match per_s {
        r if r < 0.05 => "0".to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 9_999.5 => format!("{r:.0}"),
        r if r < 999_950.0 => format!("{:.1}k", r / 1e3),
        r => format!("{:.2}M", r / 1e6),
    }
}
