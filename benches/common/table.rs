//! The table that is printed, and what was promised.

use std::fmt::Write;

/// How a figure stands to what was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// Nothing was promised.
    None,
}

impl Verdict {
    pub(crate) fn at_most(value: f64, limit: f64) -> Self {
        if value <= limit { Self::Met } else { Self::Missed }
    }

    pub(crate) fn at_least(value: f64, limit: f64) -> Self {
        if value >= limit { Self::Met } else { Self::Missed }
    }
}

struct Row {
    cells: [String; 5],
    verdict: Verdict,
}

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

const HEADERS: [&str; 6] = ["what", "ours", "peers", "ratio", "target", ""];

impl Table {
    pub(crate) fn add(
        &mut self,
        what: impl Into<String>,
        ours: impl Into<String>,
        peers: impl Into<String>,
        ratio: impl Into<String>,
        target: impl Into<String>,
        verdict: Verdict,
    ) {
        let cells = [what.into(), ours.into(), peers.into(), ratio.into(), target.into()];
        // At once, because the run is long.
        eprintln!(
            "  {}: {} | {} | {} | {} | {}",
            cells[0],
            cells[1],
            cells[2],
            cells[3],
            cells[4],
            word(verdict)
        );
        self.rows.push(Row { cells, verdict });
    }

    pub(crate) fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.verdict == Verdict::Missed).count()
    }

    /// As Markdown, aligned.
    pub(crate) fn render(&self) -> String {
        let mut widths = HEADERS.map(|header| header.chars().count());
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(cell.chars().count());
            }
            widths[5] = widths[5].max(word(row.verdict).len());
        }
        let mut out = String::new();
        let mut line = |cells: [&str; 6]| {
            for (cell, width) in cells.iter().zip(widths) {
                let _ = write!(out, "| {cell:width$} ");
            }
            out.push_str("|\n");
        };
        line(HEADERS);
        let rules = widths.map(|width| "-".repeat(width));
        line(rules.each_ref().map(String::as_str));
        for row in &self.rows {
            let [what, ours, peers, ratio, target] = row.cells.each_ref().map(String::as_str);
            line([what, ours, peers, ratio, target, word(row.verdict)]);
        }
        out
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::None => "",
    }
}
