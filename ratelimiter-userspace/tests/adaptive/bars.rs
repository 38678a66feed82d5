//! A table of figures against their bars; a missed bar of the required ones fails the test.

use std::fmt::Write as _;

#[derive(Default)]
pub(crate) struct Bars {
    table: String,
    missed: Vec<String>,
}

/// Whether a bar must hold, or is printed only.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Weight {
    Required,
    Printed,
}

pub(crate) use Weight::{Printed, Required};

impl Bars {
    pub(crate) fn at_least(&mut self, weight: Weight, name: &str, value: f64, bar: f64) {
        self.row(weight, name, value, ">=", bar, value >= bar);
    }

    pub(crate) fn at_most(&mut self, weight: Weight, name: &str, value: f64, bar: f64) {
        self.row(weight, name, value, "<=", bar, value <= bar);
    }

    /// A figure to compare with, without a bar.
    pub(crate) fn note(&mut self, name: &str, value: f64) {
        let line = writeln!(self.table, "  {name:58} {value:9.4}");
        line.expect("a string takes everything");
    }

    fn row(&mut self, weight: Weight, name: &str, value: f64, op: &str, bar: f64, holds: bool) {
        let mark = match (holds, weight) {
            (true, _) => "holds",
            (false, Required) => "MISSED",
            (false, Printed) => "missed (printed only)",
        };
        let line = writeln!(self.table, "  {name:58} {value:9.4} {op} {bar:<6} {mark}");
        line.expect("a string takes everything");
        if !holds && weight == Required {
            self.missed
                .push(format!("{name}: {value:.4}, must be {op} {bar}"));
        }
    }

    /// Prints the table and fails if a required bar is missed.
    pub(crate) fn close(self, title: &str) {
        println!("{title}\n{}", self.table);
        assert!(self.missed.is_empty(), "missed: {:#?}", self.missed);
    }
}
