//! A table of frames and what each is: the parser's fixtures.
//!
//! Each row is a sentence, a frame and the verdict a person gives it. Reading the table is reading
//! the parser's specification.

mod v4;
mod v6;
mod wire;

use crate::packet::Packet;
use crate::reference::Verdict;

/// One row.
pub struct Fixture {
    /// What the frame is, in words. Unique.
    pub name: String,
    /// The frame.
    pub frame: Vec<u8>,
    /// What it is.
    pub expected: Verdict,
}

/// The table being written.
pub(crate) struct Table {
    chapter: &'static str,
    rows: Vec<Fixture>,
}

impl Table {
    fn row(&mut self, name: impl Into<String>, packet: &Packet, expected: Verdict) {
        self.rows.push(Fixture {
            name: format!("{}: {}", self.chapter, name.into()),
            frame: packet.build(),
            expected,
        });
    }

    /// The packet cut at every length from `from` up to `whole` (exclusive): all malformed.
    fn cuts(&mut self, name: &str, packet: &Packet, from: usize, whole: usize) {
        for length in from..whole {
            self.row(
                format!("{name}, cut to {length} bytes"),
                &packet.clone().cut(length),
                Verdict::Malformed,
            );
        }
    }
}

/// Every fixture.
pub fn all() -> Vec<Fixture> {
    let mut table = Table {
        chapter: "wire",
        rows: Vec::new(),
    };
    wire::rows(&mut table);
    table.chapter = "IPv4";
    v4::rows(&mut table);
    table.chapter = "IPv6";
    v6::rows(&mut table);
    table.rows
}
