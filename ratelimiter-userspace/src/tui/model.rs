//! The state of `top` and how it changes. Pure: the time is an argument, what is to be done comes back
//! as [`Command`]s.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::sources::{Sort, matches, prefix, sort};
use crate::admin::views::{CountView, Explanation, SourceRow, Status};

/// Polls kept for the sparklines: four minutes at one a second.
pub const HISTORY: usize = 240;
/// How long an answer stays on the screen, in milliseconds.
const MESSAGE_MS: u64 = 8_000;
/// How long a block or an allowance made with `y` lasts, in seconds.
pub const FOR_A_WHILE_S: u64 = 600;
/// Longest filter, in characters.
const MAX_FILTER: usize = 64;
/// Polls over which the rates of the reasons are averaged.
const REASON_POLLS: usize = 5;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A key was pressed.
    Key(KeyEvent),
    /// Nothing but time passed, or the window changed.
    Tick,
    /// The agent answered a poll.
    Polled(Box<Polled>),
    /// The agent does not answer, and why.
    Unreachable(String),
    /// Why a source is judged as it is, or why nobody knows.
    Explained(String, Box<Result<Explanation, String>>),
    /// An action was done.
    Done(String),
    /// An action was refused.
    Refused(String),
}

/// One answer of the agent.
#[derive(Clone, Debug)]
pub struct Polled {
    /// How it is.
    pub status: Status,
    /// Who sends.
    pub sources: Vec<SourceRow>,
    /// Number of sources known, shown or not.
    pub sources_total: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Leave.
    Quit,
    /// Explain this source.
    Explain(String),
    /// Change something.
    Do(Action),
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Add this source to a list, for some seconds or for good.
    List {
        /// Which list.
        list: List,
        /// Prefix.
        cidr: String,
        /// Seconds; none for good.
        ttl_s: Option<u64>,
    },
    /// Take this source from both lists.
    Unlist(String),
    /// Give this source its full burst again.
    Reset(String),
    /// Keep the changes of these revisions, which are on trial.
    Confirm(Vec<u64>),
    /// Take them back.
    Rollback(Vec<u64>),
}

/// One of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Never limited.
    Allow,
    /// Dropped.
    Block,
}

impl List {
    /// The verb.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
        }
    }
}

/// How it goes with the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not asked yet.
    Connecting,
    /// It answers.
    Up,
    /// It does not.
    Down {
        /// Why.
        why: String,
        /// Since when, milliseconds since the Unix epoch.
        since_ms: u64,
    },
}

/// What the keys mean now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Focus {
    /// The table.
    Table,
    /// The filter is being typed.
    Filter,
    /// The list of keys is shown.
    Help,
    /// An action waits for a yes.
    Confirm(Action),
}

/// What is known of the source in the detail pane.
#[derive(Clone, Debug)]
pub struct Detail {
    /// The source.
    pub source: String,
    /// Why it is judged as it is; none until the agent has answered.
    pub explanation: Option<Result<Explanation, String>>,
}

/// How a message is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// It was done.
    Good,
    /// It was not.
    Bad,
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct State {
    /// Where the agent is looked for.
    pub target: String,
    /// How it goes with it.
    pub link: Link,
    /// Its last answer.
    pub status: Option<Status>,
    /// Passed and dropped per second, the newest last.
    pub history: VecDeque<[f64; 2]>,
    counts: VecDeque<(u64, Vec<CountView>)>,
    /// Every source of the last answer, unsorted.
    all: Vec<SourceRow>,
    /// Number of sources the agent knows.
    pub sources_total: u64,
    /// The sources shown, in order.
    pub rows: Vec<SourceRow>,
    /// By what they are sorted.
    pub sort: Sort,
    /// Whether the order is turned around.
    pub reverse: bool,
    /// What a source must contain.
    pub filter: String,
    /// The source that is chosen.
    pub selected: Option<String>,
    /// What the keys mean.
    pub focus: Focus,
    /// The detail pane, if it is open.
    pub detail: Option<Detail>,
    /// Whether the figures stand still.
    pub paused: bool,
    /// The last answer to an action, and until when it is shown.
    pub message: Option<(Tone, String, u64)>,
    /// Now, milliseconds since the Unix epoch.
    pub now_ms: u64,
}

impl State {
    /// Nothing is known yet of the agent at `target`.
    #[must_use]
    pub fn new(target: String) -> Self {
        Self {
            target,
            link: Link::Connecting,
            status: None,
            history: VecDeque::with_capacity(HISTORY),
            counts: VecDeque::with_capacity(REASON_POLLS + 1),
            all: Vec::new(),
            sources_total: 0,
            rows: Vec::new(),
            sort: Sort::default(),
            reverse: false,
            filter: String::new(),
            selected: None,
            focus: Focus::Table,
            detail: None,
            paused: false,
            message: None,
            now_ms: 0,
        }
    }

    /// Takes notice of `input` at `now_ms` (milliseconds since the Unix epoch).
    pub fn update(&mut self, input: Input, now_ms: u64) -> Vec<Command> {
        self.now_ms = now_ms;
        if self
            .message
            .as_ref()
            .is_some_and(|(.., until)| *until <= now_ms)
        {
            self.message = None;
        }
        match input {
            Input::Tick => {}
            Input::Key(key) => return self.key(key),
            Input::Polled(polled) => return self.polled(*polled),
            Input::Unreachable(why) => {
                let since_ms = match self.link {
                    Link::Down { since_ms, .. } => since_ms,
                    _ => now_ms,
                };
                self.link = Link::Down { why, since_ms };
            }
            Input::Explained(source, answer) => {
                if let Some(detail) = self.detail.as_mut().filter(|d| d.source == source) {
                    detail.explanation = Some(*answer);
                }
            }
            Input::Done(text) => self.say(Tone::Good, text),
            Input::Refused(text) => self.say(Tone::Bad, text),
        }
        Vec::new()
    }

    fn say(&mut self, tone: Tone, text: String) {
        self.message = Some((tone, text, self.now_ms.saturating_add(MESSAGE_MS)));
    }

    fn polled(&mut self, polled: Polled) -> Vec<Command> {
        self.link = Link::Up;
        if self.paused {
            // What is on trial and what is wrong is told all the same.
            if let Some(status) = &mut self.status {
                status.pending = polled.status.pending;
                status.problems = polled.status.problems;
            }
            return Vec::new();
        }
        let status = polled.status;
        let dropped = status.dropped_per_s.max(0.0);
        let passed = (status.packets_per_s - dropped).max(0.0);
        push(&mut self.history, [passed, dropped], HISTORY);
        let restarted = self
            .status
            .as_ref()
            .is_some_and(|before| before.offered > status.offered);
        if restarted {
            self.counts.clear();
        }
        push(
            &mut self.counts,
            (self.now_ms, status.counts.clone()),
            REASON_POLLS + 1,
        );
        self.all = polled.sources;
        self.sources_total = polled.sources_total;
        self.status = Some(status);
        self.arrange();
        self.explain()
    }

    /// Packets per second by reason of refusal over the last polls, the most first.
    #[must_use]
    pub fn reasons(&self) -> Vec<(String, f64)> {
        let (Some((first_ms, first)), Some((last_ms, last))) =
            (self.counts.front(), self.counts.back())
        else {
            return Vec::new();
        };
        let seconds = last_ms.saturating_sub(*first_ms) as f64 / 1e3;
        if seconds <= 0.0 {
            return Vec::new();
        }
        let before = |reason: &str| {
            let same = |count: &&CountView| count.verdict == "drop" && count.reason == reason;
            first.iter().find(same).map_or(0, |count| count.packets)
        };
        let mut reasons: Vec<(String, f64)> = last
            .iter()
            .filter(|count| count.verdict == "drop")
            .map(|count| {
                let packets = count.packets.saturating_sub(before(&count.reason));
                (count.reason.clone(), packets as f64 / seconds)
            })
            .filter(|(_, rate)| *rate > 0.0)
            .collect();
        reasons.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        reasons
    }

    /// Filters and sorts anew; the chosen source stays chosen as long as it is shown.
    fn arrange(&mut self) {
        self.rows = self
            .all
            .iter()
            .filter(|row| matches(row, &self.filter))
            .cloned()
            .collect();
        sort(&mut self.rows, self.sort, self.reverse);
        if self.position().is_none() {
            self.selected = self.rows.first().map(|row| row.source.clone());
        }
    }

    /// Place of the chosen source in the table.
    #[must_use]
    pub fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.source == *selected)
    }

    fn step(&mut self, by: isize) -> Vec<Command> {
        let last = self.rows.len().saturating_sub(1);
        let at = self.position().unwrap_or(0).saturating_add_signed(by);
        self.selected = self.rows.get(at.min(last)).map(|row| row.source.clone());
        self.explain()
    }

    /// Asks about the chosen source, if the pane is open.
    fn explain(&mut self) -> Vec<Command> {
        let (Some(detail), Some(source)) = (&mut self.detail, &self.selected) else {
            return Vec::new();
        };
        if detail.source != *source {
            *detail = Detail {
                source: source.clone(),
                explanation: None,
            };
        }
        if prefix(source).is_some() {
            return vec![Command::Explain(source.clone())];
        }
        let why = "many sources share this bucket: explain one of them, or the client";
        detail.explanation = Some(Err(why.to_owned()));
        Vec::new()
    }

    fn key(&mut self, key: KeyEvent) -> Vec<Command> {
        if key.kind == KeyEventKind::Release {
            return Vec::new();
        }
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return vec![Command::Quit];
        }
        match self.focus.clone() {
            Focus::Table => self.table_key(key.code),
            Focus::Filter => {
                self.filter_key(key.code);
                Vec::new()
            }
            Focus::Help => {
                self.focus = Focus::Table;
                Vec::new()
            }
            Focus::Confirm(action) => self.confirm_key(key.code, action),
        }
    }

    fn table_key(&mut self, code: KeyCode) -> Vec<Command> {
        match code {
            KeyCode::Char('q') => return vec![Command::Quit],
            KeyCode::Char('?' | 'h') => self.focus = Focus::Help,
            KeyCode::Char('/') => self.focus = Focus::Filter,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.arrange();
            }
            KeyCode::Char('S') => {
                self.reverse = !self.reverse;
                self.arrange();
            }
            KeyCode::Up | KeyCode::Char('k') => return self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => return self.step(1),
            KeyCode::PageUp => return self.step(-10),
            KeyCode::PageDown => return self.step(10),
            KeyCode::Home | KeyCode::Char('g') => return self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => return self.step(isize::MAX),
            KeyCode::Enter => {
                self.detail = match self.detail.take() {
                    Some(_) => None,
                    None => self.selected.clone().map(|source| Detail {
                        source,
                        explanation: None,
                    }),
                };
                return self.explain();
            }
            KeyCode::Esc if self.detail.is_some() => self.detail = None,
            KeyCode::Esc => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Char('a') => self.ask_list(List::Allow),
            KeyCode::Char('b') => self.ask_list(List::Block),
            KeyCode::Char('u') => self.ask(Action::Unlist),
            KeyCode::Char('r') => self.ask(Action::Reset),
            KeyCode::Char('c') => self.ask_trial(Action::Confirm),
            KeyCode::Char('z') => self.ask_trial(Action::Rollback),
            _ => {}
        }
        Vec::new()
    }

    fn filter_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.focus = Focus::Table,
            KeyCode::Esc => {
                self.filter.clear();
                self.focus = Focus::Table;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < MAX_FILTER => {
                self.filter.push(c);
            }
            _ => {}
        }
        self.arrange();
    }

    fn confirm_key(&mut self, code: KeyCode, action: Action) -> Vec<Command> {
        let action = match (code, action) {
            (KeyCode::Char('y' | 'Y'), action) => action,
            (KeyCode::Char('p' | 'P'), Action::List { list, cidr, .. }) => Action::List {
                list,
                cidr,
                ttl_s: None,
            },
            (KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc, _) => {
                self.focus = Focus::Table;
                return Vec::new();
            }
            // Any other key is a slip: the question stays.
            _ => return Vec::new(),
        };
        self.focus = Focus::Table;
        vec![Command::Do(action)]
    }

    /// The chosen source as a prefix, or a word about why there is none.
    fn chosen(&mut self) -> Option<String> {
        let Some(source) = self.selected.clone() else {
            self.say(Tone::Bad, "no source is chosen".to_owned());
            return None;
        };
        let prefix = prefix(&source).map(|prefix| prefix.to_string());
        if prefix.is_none() {
            self.say(Tone::Bad, format!("`{source}` has no address"));
        }
        prefix
    }

    fn ask(&mut self, action: impl FnOnce(String) -> Action) {
        if let Some(cidr) = self.chosen() {
            self.focus = Focus::Confirm(action(cidr));
        }
    }

    fn ask_list(&mut self, list: List) {
        self.ask(|cidr| Action::List {
            list,
            cidr,
            ttl_s: Some(FOR_A_WHILE_S),
        });
    }

    /// Asks about what is shown: what others put on trial meanwhile is not meant.
    fn ask_trial(&mut self, action: fn(Vec<u64>) -> Action) {
        let pending = self.status.iter().flat_map(|status| &status.pending);
        let revisions: Vec<u64> = pending.map(|change| change.revision).collect();
        if revisions.is_empty() {
            self.say(Tone::Bad, "no change is on trial".to_owned());
        } else {
            self.focus = Focus::Confirm(action(revisions));
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    queue.push_back(item);
    while queue.len() > most {
        queue.pop_front();
    }
}
