//! What a person reads: numbered steps, each with what was found or how long it took.
use std::time::Duration;

use anyhow::Result;

use crate::shell::{now, seconds};

/// Numbered steps of one command.
#[derive(Debug)]
pub(crate) struct Steps {
    number: usize,
    total: usize,
}

impl Steps {
    /// Announces how many there are.
    pub(crate) fn new(total: usize) -> Self {
        Self { number: 0, total }
    }

    /// Says what comes next, without waiting for it.
    pub(crate) fn begin(&mut self, title: &str) {
        self.number += 1;
        println!("[{}/{}] {title}", self.number, self.total);
    }

    /// Runs one step; `work` returns what there is to say about it.
    pub(crate) fn step(
        &mut self,
        title: &str,
        work: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        self.begin(title);
        let start = now();
        let said = work()?;
        println!("      {said}{}", took(start.elapsed()));
        Ok(())
    }
}

/// How long, unless it was nothing to speak of.
fn took(duration: Duration) -> String {
    if duration < Duration::from_millis(500) {
        String::new()
    } else {
        format!(" ({})", seconds(duration))
    }
}
