//! How far the reading of a source is.
//!
//! What lives here: [`WithProgress`]. What does not: reading (`reading`, formats).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pieces::ReadPieces;
use super::{Pieces, Reload, Source};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::memory::Memory;
use crate::plan::Plan;
use crate::sync::Mutex;

/// How far reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of tensors that have been read. It only grows, from one report of one reading to the next. Of a set that is
    /// [streamed](super::Streamed) what stays in memory is one reading, or all of it if it is hashed; and each part that is
    /// read later is one of its own, which begins at nothing and ends at the part's bytes.
    pub bytes: u64,
    /// How many there are, ties once.
    pub of: u64,
}

/// A report for so many bytes.
const STEP: u64 = 4 << 20;

/// A source that says how far its reading is.
///
/// Sources of files report about every 4 MiB, others once, when everything is read, and one that brings its memory not at
/// all, for nothing is read; the last report has
/// [`bytes`](Progress::bytes) equal to [`of`](Progress::of): everything was read. Whether the set is published or
/// loaded is decided after it. Reports come one at a time, on the threads that read, which wait for nobody's report but their
/// own. What the callback does is done by the source: a panic there is the source's.
///
/// To be told of later loads of an evictable set as well, put it inside
/// ([`Evictable::opened_by`](super::Evictable::opened_by)); outside it reports the first one only.
///
/// # Examples
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use weighbridge::WeightRegistry;
/// use weighbridge::source::{Checkpoint, WithProgress};
///
/// let read = AtomicU64::new(0);
/// let source = Checkpoint::open("fixtures/tiny-llama")?;
/// let source = WithProgress::new(source, |now| {
///     read.store(now.bytes * 100 / now.of.max(1), Ordering::Relaxed); // percent
/// });
/// let registry = WeightRegistry::builder().build()?;
/// registry.publish("tiny", source)?;
/// assert_eq!(read.into_inner(), 100);
/// # Ok::<(), weighbridge::Error>(())
/// ```
pub struct WithProgress<S, F> {
    source: S,
    report: Mutex<F>,
}

impl<S: Source, F: FnMut(Progress) + Send> WithProgress<S, F> {
    /// `source`, which reports to `report`.
    pub fn new(source: S, report: F) -> Self {
        WithProgress {
            source,
            report: Mutex::new(report),
        }
    }
}

fn all(plan: &Plan) -> u64 {
    let own = plan.tensors().iter().filter(|tensor| tensor.tie.is_none());
    own.map(|tensor| tensor.range().len() as u64).sum()
}

impl<S: Source, F: FnMut(Progress) + Send> Source for WithProgress<S, F> {
    fn plan(&self) -> &Plan {
        self.source.plan()
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        // Those of another plan are not taken by the registry either.
        let pieces = self.pieces().filter(|pieces| pieces.are_of(self.plan()));
        match pieces {
            Some(pieces) => crate::reading::fill_here(&pieces, self.plan(), arena),
            None => {
                self.source.read_into(arena)?;
                let of = all(self.plan());
                (self.report.lock())(Progress { bytes: of, of }); // E82
                Ok(())
            }
        }
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        let pieces = self.source.pieces()?;
        let plan = pieces.plan();
        Some(Pieces::new(
            plan,
            Counted {
                of: all(plan),
                pieces,
                report: &self.report,
                read: AtomicU64::new(0),
                told: Mutex::new(0),
            },
        ))
    }

    fn bring(&mut self) -> Option<Memory> {
        self.source.bring()
    }

    fn declared(&self) -> Option<&str> {
        self.source.declared()
    }

    fn unread(&self) -> Option<&str> {
        self.source.unread()
    }

    fn base(&self) -> Option<SetHandle> {
        self.source.base()
    }

    fn reload(&self) -> Option<Arc<dyn Reload>> {
        self.source.reload()
    }
}

impl<S: fmt::Debug, F> fmt::Debug for WithProgress<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WithProgress").field(&self.source).finish()
    }
}

struct Counted<'s, F> {
    pieces: Pieces<'s>,
    report: &'s Mutex<F>,
    of: u64,
    read: AtomicU64,
    /// How many bytes the last report said.
    told: Mutex<u64>,
}

impl<F: FnMut(Progress) + Send> ReadPieces for Counted<'_, F> {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.pieces.read(tensor, offset, bytes)?;
        // E17: a statistic. Whoever reports reads what others have added by then.
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Some(mut told) = self.told.try_lock() {
            // E82
            let read = self.read.load(Ordering::Relaxed); // E17
            if read - *told >= STEP && read < self.of {
                *told = read;
                let of = self.of;
                (self.report.lock())(Progress { bytes: read, of }); // E82
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), Error> {
        self.pieces.finish()?;
        // All of it, unless it is a part of a set that is streamed.
        let (read, of) = (self.read.load(Ordering::Relaxed), self.of); // E17
        (self.report.lock())(Progress { bytes: read, of }); // E82
        Ok(())
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::reading::fill;
    use crate::source::{Evictable, InMemory};
    use crate::{WeightRegistry, source};

    /// Reads zeros, until a tensor that it cannot read.
    struct Zeros {
        plan: Plan,
        broken: usize,
    }

    impl ReadPieces for Zeros {
        fn read(&self, tensor: usize, _: u64, _: &mut [u8]) -> Result<(), Error> {
            if tensor == self.broken {
                return Err(source::not_to_be_read("zeros"));
            }
            Ok(())
        }
        fn finish(&self) -> Result<(), Error> {
            Ok(())
        }
    }

    impl Source for Zeros {
        fn plan(&self) -> &Plan {
            &self.plan
        }
        fn read_into(&self, _: &mut [u8]) -> Result<(), Error> {
            unreachable!("it has pieces")
        }
        fn pieces(&self) -> Option<Pieces<'_>> {
            Some(Pieces::new(&self.plan, self))
        }
    }

    const LEN: usize = 17 << 20;

    fn zeros(broken: usize) -> Zeros {
        let tensors = ["a", "b"].map(|name| (name, Dtype::U8, vec![LEN]));
        let plan = Plan::of("zeros", tensors).unwrap();
        Zeros { plan, broken }
    }

    /// What is reported while `source` is read by so many threads.
    fn reports(broken: usize, readers: usize) -> Vec<u64> {
        let mut told = Vec::new();
        let report = |now: Progress| {
            assert_eq!(now.of, 2 * LEN as u64);
            told.push(now.bytes);
        };
        let source = WithProgress::new(zeros(broken), report);
        let mut arena = vec![0; usize::try_from(source.plan().arena_bytes()).unwrap()];
        let read = fill(&source, &mut arena, false, false, readers);
        assert_eq!(read.is_err(), broken < 2);
        drop(source);
        told
    }

    #[test]
    fn reports_grow_up_to_the_whole() {
        for readers in [1, 4] {
            let told = reports(2, readers);
            assert!(told.is_sorted_by(|a, b| a < b), "{told:?}");
            assert_eq!(told.last(), Some(&(2 * LEN as u64)));
            assert!(told.len() > 4 || readers > 1, "{told:?}");
        }
        assert_eq!(reports(2, 1).len(), 9);
    }

    #[test]
    fn a_read_that_fails_has_no_last_report() {
        assert!(reports(0, 2).iter().all(|told| *told < 2 * LEN as u64));
        assert_eq!(reports(1, 1).last(), Some(&(16 << 20)));
    }

    /// A wrapper with a plan of its own is read by its own hand, with and without reports.
    #[test]
    fn pieces_of_another_plan_are_not_taken() {
        struct Other(Zeros, Plan);
        impl Source for Other {
            fn plan(&self) -> &Plan {
                &self.1
            }
            fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
                arena.fill(9);
                Ok(())
            }
            fn pieces(&self) -> Option<Pieces<'_>> {
                self.0.pieces()
            }
        }
        let plan = Plan::of("other", [("w", Dtype::U8, vec![64])]).unwrap();
        let mut told = Vec::new();
        let source = WithProgress::new(Other(zeros(2), plan), |now| told.push(now.bytes));
        let mut arena = [0; 64];
        fill(&source, &mut arena, false, false, 1).unwrap();
        assert_eq!(arena, [9; 64]);
        drop(source);
        assert_eq!(told, [64]);
    }

    /// Read as a whole, it is reported once; and each time that it is read again, if it is inside.
    #[test]
    fn what_has_no_pieces_is_reported_when_it_is_there() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tells = Arc::clone(&told);
        let source = Evictable::opened_by(move || {
            let tells = Arc::clone(&tells);
            let source = InMemory::new().tensor("w", Dtype::U8, [64], [7; 64])?;
            Ok(WithProgress::new(source, move |now| {
                tells.lock().push((now.bytes, now.of));
            }))
        });
        let registry = WeightRegistry::builder().build().unwrap();
        let set = registry.publish("s", source.unwrap()).unwrap();
        assert_eq!(*told.lock(), [(64, 64)]);
        registry.evict(set).unwrap();
        registry.load(set).unwrap();
        assert_eq!(*told.lock(), [(64, 64); 2]);
    }
}
