//! The registry of hosts and the list of hot sources.

use std::collections::HashMap;

use super::super::beat::{ABSENT_US, Beat, FORGOTTEN_US, Fleet, HOT_US, HotSource, MAX_HOT};

/// Who lives, and what is hot.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    /// When each host last beat.
    beats: HashMap<u64, u64>,
    /// When each hot source was last announced.
    hot: HashMap<HotSource, u64>,
}

impl Hosts {
    pub(super) fn beat(&mut self, now_us: u64, beat: &Beat) -> Fleet {
        let age = |at_us: u64| now_us.saturating_sub(at_us);
        if beat.leaving {
            self.beats.remove(&beat.host);
            return self.fleet(now_us, beat.cursor_us, Vec::new());
        }
        self.beats.insert(beat.host, now_us);
        self.beats.retain(|_, at_us| age(*at_us) <= FORGOTTEN_US);
        for source in beat.hot.iter().take(MAX_HOT) {
            self.hot.insert(*source, now_us);
        }
        self.hot.retain(|_, at_us| age(*at_us) <= HOT_US);
        // A cursor ahead of the clock is that of another store: begin anew.
        let cursor_us = if beat.cursor_us > now_us {
            0
        } else {
            beat.cursor_us
        };
        let mut news: Vec<(u64, HotSource)> = self
            .hot
            .iter()
            .filter(|(_, at_us)| **at_us > cursor_us)
            .map(|(source, at_us)| (*at_us, *source))
            .collect();
        news.sort_unstable();
        news.truncate(beat.most.min(MAX_HOT));
        self.fleet(now_us, cursor_us, news)
    }

    fn fleet(&self, now_us: u64, cursor_us: u64, news: Vec<(u64, HotSource)>) -> Fleet {
        let live = self
            .beats
            .values()
            .filter(|at_us| now_us.saturating_sub(**at_us) <= ABSENT_US)
            .count();
        Fleet {
            known: self.beats.len() as u32,
            live: live as u32,
            cursor_us: news.last().map_or(cursor_us, |(at_us, _)| *at_us),
            hot: news.into_iter().map(|(_, source)| source).collect(),
        }
    }
}
