//! Whose rows are whose.
//!
//! What lives here: [`Batch`]. What does not: what is done with the rows (`linear`).

use super::fitting::Fitting;

/// The rows of one step: the first so many are this request's, the next the other's.
///
/// Rows are what a layer maps: a token of a sequence each. All leading dimensions of a tensor count, so a tensor of
/// `[2, 5, hidden]` has ten.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    spans: Vec<Span<'a>>,
}

/// Rows of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    pub(super) rows: usize,
    pub(super) fitting: &'a Fitting,
}

impl<'a> Batch<'a> {
    /// Without rows, so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// With so many rows more, of this request.
    pub fn rows(mut self, rows: usize, fitting: &'a Fitting) -> Self {
        self.spans.push(Span { rows, fitting });
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spans.iter().map(|span| span.rows).sum()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn spans(&self) -> &[Span<'a>] {
        &self.spans
    }
}
