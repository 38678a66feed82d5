//! What the keys do, and what stands on the screen.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Action, Command, Focus, Input, Link, List, Polled, State};
use super::view::{Theme, draw, rate};
use crate::admin::views::{Explanation, Pending, SourceRow, Status};
use crate::policy::model::Mode;

const NOW: u64 = 1_000_000;

fn row(source: &str, packets_per_s: f64, dropped_per_s: f64) -> SourceRow {
    SourceRow {
        source: source.to_owned(),
        segment: "default".to_owned(),
        packets_per_s,
        dropped_per_s,
        bytes_per_s: packets_per_s * 60.0,
        reason: "over_packets".to_owned(),
        ..SourceRow::default()
    }
}

fn status(counted: u64) -> Status {
    let mut status: Status =
        serde_json::from_str(include_str!("../../tests/fixtures/status.json")).unwrap();
    status.mode = Mode::Enforce;
    status.packets_per_s = 1_500.0;
    status.dropped_per_s = 500.0;
    status.offered = counted * 3;
    status.counts = serde_json::from_value(serde_json::json!([
        {"reason": "conforming", "verdict": "pass", "packets": counted * 2, "bytes": 0},
        {"reason": "over_packets", "verdict": "drop", "packets": counted, "bytes": 0},
    ]))
    .unwrap();
    status
}

fn polled(counted: u64) -> Input {
    Input::Polled(Box::new(Polled {
        status: status(counted),
        sources: vec![
            row("192.0.2.7", 900.0, 400.0),
            row("192.0.2.8", 600.0, 100.0),
            row("2001:db8:0:7::/64", 5.0, 0.0),
        ],
        sources_total: 3,
    }))
}

/// After two polls, one second apart, with 500 drops between them.
fn shown() -> State {
    let mut state = State::new("`/run/x.sock`".to_owned());
    assert_eq!(state.update(polled(1_000), NOW), []);
    assert_eq!(state.update(polled(1_500), NOW + 1_000), []);
    state
}

fn press(state: &mut State, keys: &str) -> Vec<Command> {
    let mut commands = Vec::new();
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '<' => KeyCode::Backspace,
            'v' => KeyCode::Down,
            '^' => KeyCode::Up,
            c => KeyCode::Char(c),
        };
        let key = KeyEvent::new(code, KeyModifiers::NONE);
        commands.extend(state.update(Input::Key(key), NOW + 2_000));
    }
    commands
}

fn screen(state: &State, width: u16, height: u16, colour: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, state, Theme { colour }))
        .unwrap();
    terminal
}

fn text(state: &State, width: u16, height: u16) -> String {
    crate::cli::top::text(screen(state, width, height, false).backend().buffer())
}

#[test]
fn says_what_passes_what_is_dropped_and_whose() {
    for (width, height) in [(80, 24), (200, 60)] {
        let text = text(&shown(), width, height);
        for part in [
            "ratelimiter top",
            "enforce",
            "passed 1000/s",
            "dropped 500/s",
            "over_packets 500/s",
            "3 of 3 sources by dropped/s",
            "192.0.2.7",
            "900",
            "2001:db8:0:7::/64",
            "? help",
        ] {
            assert!(
                text.contains(part),
                "{width}x{height}: no `{part}` in\n{text}"
            );
        }
        assert!(text.lines().count() == usize::from(height));
    }
}

#[test]
fn a_window_of_any_size_is_drawn_into() {
    let mut state = shown();
    press(&mut state, "\n?");
    for (width, height) in [(1, 1), (20, 5), (60, 16), (80, 24), (500, 200)] {
        screen(&state, width, height, true);
    }
    assert!(text(&state, 40, 10).contains("needs 60x16"));
}

#[test]
fn without_colour_nothing_is_coloured() {
    use ratatui::style::Color;
    let mut state = shown();
    press(&mut state, "\n");
    let coloured = |colour| {
        let terminal = screen(&state, 80, 24, colour);
        let buffer = terminal.backend().buffer().clone();
        buffer
            .content()
            .iter()
            .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(coloured(true));
    assert!(!coloured(false));
}

#[test]
fn the_chosen_source_stays_chosen_when_the_order_changes() {
    let mut state = shown();
    assert_eq!(state.selected.as_deref(), Some("192.0.2.7"));
    press(&mut state, "v");
    assert_eq!(state.selected.as_deref(), Some("192.0.2.8"));
    press(&mut state, "S");
    assert_eq!(state.selected.as_deref(), Some("192.0.2.8"));
    assert_eq!(state.rows[0].source, "2001:db8:0:7::/64");
    press(&mut state, "vvvvvv");
    assert_eq!(state.position(), Some(2));
    press(&mut state, "^^^^^^");
    assert_eq!(state.position(), Some(0));
}

#[test]
fn a_block_is_asked_for_and_then_made() {
    let mut state = shown();
    assert_eq!(press(&mut state, "b"), []);
    assert!(text(&state, 80, 24).contains("block `192.0.2.7/32`?  y for 10 min  p for good  n no"));
    assert_eq!(press(&mut state, "x"), [], "a slip is no yes");
    assert!(matches!(state.focus, Focus::Confirm(_)));
    let block = |ttl_s| {
        Command::Do(Action::List {
            list: List::Block,
            cidr: "192.0.2.7/32".to_owned(),
            ttl_s,
        })
    };
    assert_eq!(press(&mut state, "y"), [block(Some(600))]);
    assert_eq!(state.focus, Focus::Table);
    assert_eq!(press(&mut state, "bp"), [block(None)]);
    assert_eq!(press(&mut state, "bn"), []);
    let reset = Command::Do(Action::Reset("192.0.2.7/32".to_owned()));
    assert_eq!(press(&mut state, "rp"), [], "a reset is never for good");
    assert_eq!(press(&mut state, "y"), [reset]);
}

#[test]
fn the_answer_to_an_action_is_shown_for_a_while() {
    let mut state = shown();
    state.update(Input::Refused("it is set in the file".to_owned()), NOW);
    assert!(text(&state, 80, 24).contains("it is set in the file"));
    state.update(Input::Tick, NOW + 60_000);
    assert!(!text(&state, 80, 24).contains("it is set in the file"));
}

#[test]
fn the_filter_is_typed_and_cleared() {
    let mut state = shown();
    press(&mut state, "/2.8x<");
    assert_eq!(state.rows.len(), 1);
    assert_eq!(
        press(&mut state, "q"),
        [],
        "a letter of the filter quits nothing"
    );
    press(&mut state, "<\n");
    assert!(text(&state, 80, 24).contains("1 of 3 sources by dropped/s, with `2.8`"));
    press(&mut state, "\u{1b}");
    assert_eq!(state.rows.len(), 3);
}

#[test]
fn the_detail_follows_the_choice_and_asks_again_with_each_poll() {
    let mut state = shown();
    let ask = |source: &str| Command::Explain(source.to_owned());
    assert_eq!(press(&mut state, "\n"), [ask("192.0.2.7")]);
    assert_eq!(press(&mut state, "v"), [ask("192.0.2.8")]);
    let explanation = Explanation {
        summary: "a packet from `192.0.2.8` is dropped".to_owned(),
        verdict: "drop".to_owned(),
        path: vec!["no prefix has a rule for it".to_owned()],
        ..Explanation::default()
    };
    // An answer about another source came late.
    let late = Input::Explained("192.0.2.7".to_owned(), Box::new(Err("late".to_owned())));
    state.update(late, NOW);
    assert!(text(&state, 80, 24).contains("asking the agent"));
    let answer = Input::Explained("192.0.2.8".to_owned(), Box::new(Ok(explanation)));
    state.update(answer, NOW);
    for (width, height) in [(80, 24), (200, 60)] {
        let text = text(&state, width, height);
        assert!(
            text.contains("a packet from `192.0.2.8` is dropped"),
            "{text}"
        );
        assert!(text.contains("1. no prefix has a rule for it"), "{text}");
        assert!(
            text.contains("192.0.2.7"),
            "the table is still there: {text}"
        );
    }
    assert_eq!(state.update(polled(2_000), NOW + 3_000), [ask("192.0.2.8")]);
    press(&mut state, "\u{1b}");
    assert!(state.detail.is_none());
}

#[test]
fn a_pause_keeps_the_figures_and_tells_of_trials() {
    let mut state = shown();
    press(&mut state, " ");
    let mut later = status(9_000);
    later.packets_per_s = 77_777.0;
    later.pending = vec![Pending {
        revision: 7,
        path: "block/192.0.2.0/24".to_owned(),
        confirm_by_unix_ms: NOW + 43_000,
        ..Pending::default()
    }];
    let polled = Polled {
        status: later,
        sources: Vec::new(),
        sources_total: 0,
    };
    state.update(Input::Polled(Box::new(polled)), NOW + 3_000);
    let text = text(&state, 80, 24);
    assert!(
        text.contains("PAUSED") && text.contains("passed 1000/s"),
        "{text}"
    );
    assert!(text.contains("takes itself back in 40 s"), "{text}");
    assert_eq!(
        press(&mut state, "cy"),
        [Command::Do(Action::Confirm(vec![7]))]
    );
}

#[test]
fn an_agent_that_is_gone_is_said_to_be_and_found_again() {
    let mut state = shown();
    let gone = || Input::Unreachable("agent unreachable: nobody listens".to_owned());
    state.update(gone(), NOW + 2_000);
    state.update(gone(), NOW + 7_000);
    let shown = text(&state, 80, 24);
    assert!(shown.contains("AGENT UNREACHABLE for 5 s"), "{shown}");
    assert!(shown.contains("nobody listens; trying again"), "{shown}");
    assert!(shown.contains("192.0.2.7"), "what was known is still shown");
    // A new agent counts from zero.
    state.update(polled(10), NOW + 8_000);
    assert_eq!(state.link, Link::Up);
    assert!(!text(&state, 80, 24).contains("UNREACHABLE"));
    assert!(state.reasons().is_empty());
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let mut state = State::new("x".to_owned());
    let hostile = SourceRow {
        client: Some("\u{1b}[2Jevil\u{202e}".to_owned()),
        ..row("192.0.2.7", 1.0, 0.0)
    };
    let polled = Polled {
        status: status(1),
        sources: vec![hostile],
        sources_total: 1,
    };
    state.update(Input::Polled(Box::new(polled)), NOW);
    let text = text(&state, 200, 60);
    assert!(
        !text.contains('\u{1b}') && !text.contains('\u{202e}'),
        "{text}"
    );
}

#[test]
fn ctrl_c_quits_whatever_is_asked() {
    let mut state = shown();
    press(&mut state, "b");
    let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.update(Input::Key(key), NOW), [Command::Quit]);
    press(&mut state, "n");
    assert_eq!(press(&mut state, "q"), [Command::Quit]);
}

#[test]
fn rates_fit_into_six_characters() {
    for (per_s, expected) in [
        (0.0, "0"),
        (0.44, "0.4"),
        (9.96, "10"),
        (812.0, "812"),
        (9_999.0, "9999"),
        (12_345.0, "12.3k"),
        (4_560_000.0, "4.56M"),
        (f64::NAN, "0"),
        (-3.0, "0"),
    ] {
        assert_eq!(rate(per_s), expected);
    }
}
