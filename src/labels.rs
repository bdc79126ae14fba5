//! The labels of leases: a lock-free slab of fixed entries.
//!
//! What lives here: who holds which generation, by the name given to `acquire_as`. What does not:
//! the count of leases, which is exact without this (`core::state`).
//!
//! Entries are words of atomics in segments that are never freed before the slab, so that a lease
//! can leave its entry without a lock, an epoch or an allocation, and an observer can read entries
//! while they come and go. Each entry is a seqlock: its sequence is odd while it is live, and even
//! while it is free or being written.

use std::num::NonZeroU16;
use std::ptr;

use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, WithMut, fence};

/// Words of text per entry.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const TEXT_WORDS: usize = 12;
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
const TEXT_WORDS: usize = 1;

/// Longest label in bytes; longer ones are cut at a character and end in `…`.
pub const LABEL_CAP: usize = TEXT_WORDS * 8;

/// Log2 of the first segment's length; each further segment is twice as long.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const FIRST_BITS: u32 = 6;
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
const FIRST_BITS: u32 = 0;

/// 64 + 128 + ... + 32,768 entries.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const SEGMENTS: usize = 10;
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
const SEGMENTS: usize = 2;

/// Most leases that are labelled at one time: 65,472.
pub const CAPACITY: u32 = ((1u32 << SEGMENTS) - 1) << FIRST_BITS;

/// Bits of an index plus one in `free`.
const INDEX_BITS: u32 = 16;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const _: () = assert!((CAPACITY as u64) <= INDEX_MASK);

/// Of a sequence: odd numbers are live entries. Each claim and each release adds one.
const LIVE: u64 = 1;

/// An entry that belongs to a lease.
///
/// Its index plus one, so that it is two bytes and so is the absence of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelId(NonZeroU16);

impl LabelId {
    fn of(index: u32) -> Option<Self> {
        let plus_one = index.checked_add(1)?;
        Some(LabelId(NonZeroU16::new(plus_one.try_into().ok()?)?))
    }

    fn index(self) -> u32 {
        u32::from(self.0.get()) - 1
    }
}

/// What an observer read from a live entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// The label, cut to [`LABEL_CAP`] bytes.
    pub label: String,
    /// When the lease was taken, in the caller's nanoseconds.
    pub since_ns: u64,
    /// The generation.
    pub birth: u64,
}

struct Entry {
    sequence: AtomicU64,
    slot: AtomicU64,
    birth: AtomicU64,
    since: AtomicU64,
    len: AtomicU64,
    text: [AtomicU64; TEXT_WORDS],
    /// The next free entry's index plus one, while this one is free.
    next: AtomicU64,
}

impl Entry {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Entry {
            sequence: zero(),
            slot: zero(),
            birth: zero(),
            since: zero(),
            len: zero(),
            text: std::array::from_fn(|_| zero()),
            next: zero(),
        }
    }
}

/// What an entry says.
#[derive(Clone, Copy)]
struct Record {
    slot: u64,
    birth: u64,
    since: u64,
    len: u64,
    text: [u64; TEXT_WORDS],
}

/// See the module documentation.
pub struct Labels {
    segments: [AtomicPtr<Entry>; SEGMENTS],
    /// `(change count << 16) | (index + 1)` of the first free entry; index 0: none. The count does
    /// not come round while a thread is between its look and its exchange: 2^48 changes take weeks.
    free: AtomicU64,
    /// Entries that were ever given out: the next one that never was.
    made: AtomicU32,
}

impl Default for Labels {
    fn default() -> Self {
        Self::new()
    }
}

impl Labels {
    /// No entries yet.
    pub fn new() -> Self {
        Labels {
            segments: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            free: AtomicU64::new(0),
            made: AtomicU32::new(0),
        }
    }

    /// Enters a lease of the generation `birth` in `slot`. `None`: all [`CAPACITY`] entries are in
    /// use. Lock-free; grows the slab by allocation.
    pub fn claim(&self, label: &str, slot: u32, birth: u64, since_ns: u64) -> Option<LabelId> {
        let mut bytes = [0u8; LABEL_CAP];
        let len = cut(label, &mut bytes);
        let mut text = [0u64; TEXT_WORDS];
        for (word, chunk) in text.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        let record = Record {
            slot: slot.into(),
            birth,
            since: since_ns,
            len: len as u64,
            text,
        };
        self.enter(&record)
    }

    /// One more entry with the label and start of `id`, for a clone of its lease.
    pub fn clone_label(&self, id: LabelId) -> Option<LabelId> {
        // Our own entry: nobody writes it while we hold it.
        let record = self.entry(id.index())?.read()?;
        self.enter(&record)
    }

    /// What `id` says.
    pub fn get(&self, id: LabelId) -> Option<Labelled> {
        // Our own entry: nobody writes it while we hold it.
        Some(self.entry(id.index())?.read()?.labelled())
    }

    /// Leaves an entry. Lock-free; takes no lock, does not allocate, touches no thread-local.
    pub fn release(&self, id: LabelId) {
        let Some(entry) = self.entry(id.index()) else {
            return;
        };
        // E61: Relaxed: only the holder changes the sequence of a live entry.
        let sequence = entry.sequence.load(Ordering::Relaxed);
        // E61: Relaxed: the words stay what they are; E60 brings this to the next owner before they
        // change.
        entry.sequence.store(sequence + 1, Ordering::Relaxed);
        self.push(id.index(), entry);
    }

    /// The live entries of one generation. Not a picture: while leases come and go, one that is
    /// cloned and dropped meanwhile may be missed or seen twice, and so may one that moves to another
    /// entry: it is given to a fence, or its fence panics. Any other lease that began before this call
    /// and ends after it is found; one whose end happens before this call is not.
    pub fn holders(&self, slot: u32, birth: u64) -> Vec<Labelled> {
        self.select(|record| (record.slot, record.birth) == (u64::from(slot), birth))
    }

    /// The live entries of all generations whose start has all the bits of `mark`. As
    /// [`holders`](Self::holders), not a picture.
    pub fn marked(&self, mark: u64) -> Vec<Labelled> {
        self.select(|record| record.since & mark == mark)
    }

    fn select(&self, wanted: impl Fn(&Record) -> bool) -> Vec<Labelled> {
        let mut found = Vec::new();
        for segment in 0..SEGMENTS {
            let Some(entries) = self.segment(segment) else {
                continue;
            };
            for record in entries.iter().filter_map(Entry::read) {
                if wanted(&record) {
                    found.push(record.labelled());
                }
            }
        }
        found
    }

    /// The live entry that began first, as far as one look tells: see [`holders`](Self::holders).
    pub fn oldest(&self) -> Option<Labelled> {
        (0..SEGMENTS)
            .filter_map(|segment| self.segment(segment))
            .flat_map(|entries| entries.iter().filter_map(Entry::read))
            .min_by_key(|record| record.since)
            .map(|record| record.labelled())
    }

    fn enter(&self, record: &Record) -> Option<LabelId> {
        let (index, entry) = match self.pop() {
            Some(index) => (index, self.entry(index)?),
            None => self.fresh()?,
        };
        // E60, E61: Relaxed: the entry is ours since we took it from the free list.
        let sequence = entry.sequence.load(Ordering::Relaxed);
        // E61: Release fence: who sees any word below also sees that the sequence is even, or later.
        fence(Ordering::Release);
        entry.slot.store(record.slot, Ordering::Relaxed); // E61
        entry.birth.store(record.birth, Ordering::Relaxed); // E61
        entry.since.store(record.since, Ordering::Relaxed); // E61
        entry.len.store(record.len, Ordering::Relaxed); // E61
        for (to, &from) in entry.text.iter().zip(&record.text) {
            to.store(from, Ordering::Relaxed); // E61
        }
        // E61: Release: who sees this sequence sees the words.
        entry.sequence.store(sequence + 1, Ordering::Release);
        LabelId::of(index)
    }

    /// Takes a free entry.
    fn pop(&self) -> Option<u32> {
        // E60: Acquire: the entry's `next`, and its last holder's writes.
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let index = ((head & INDEX_MASK) as u32).checked_sub(1)?;
            // E60: Relaxed: a stale value fails the exchange, whose count has moved.
            let next = self.entry(index)?.next.load(Ordering::Relaxed);
            let changed = next | ((head >> INDEX_BITS).wrapping_add(1) << INDEX_BITS);
            // E60: Relaxed if it succeeds: the change count makes `head` the very value that was loaded, and
            // what earlier pushes released goes on through our exchange. Acquire if not: as above, for the
            // head we go on with.
            match self.free.compare_exchange_weak(
                head,
                changed,
                Ordering::Relaxed, // E60
                Ordering::Acquire, // E60
            ) {
                Ok(_) => return Some(index),
                Err(now) => head = now,
            }
        }
    }

    /// Puts an entry that we own on the free list.
    fn push(&self, index: u32, entry: &Entry) {
        // E60: Relaxed: only compared.
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            entry.next.store(head & INDEX_MASK, Ordering::Relaxed); // E60: ordered below
            let changed =
                u64::from(index + 1) | ((head >> INDEX_BITS).wrapping_add(1) << INDEX_BITS);
            // E60: Release: `next` and all we did with the entry come before its next owner.
            match self.free.compare_exchange_weak(
                head,
                changed,
                Ordering::Release, // E60
                Ordering::Relaxed, // E60
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// An entry that nobody had before. `None`: all were given out, and none was free.
    #[cold]
    fn fresh(&self) -> Option<(u32, &Entry)> {
        // E63: Relaxed: only hands out numbers; E62 orders the entries.
        let mut index = self.made.load(Ordering::Relaxed);
        loop {
            if index >= CAPACITY {
                return None;
            }
            match self.made.compare_exchange_weak(
                index,
                index + 1,
                Ordering::Relaxed, // E63
                Ordering::Relaxed, // E63
            ) {
                Ok(_) => break,
                Err(now) => index = now,
            }
        }
        let (segment, _) = place(index)?;
        if self.segment(segment).is_none() {
            let entries: Box<[Entry]> = (0..length_of(segment)).map(|_| Entry::new()).collect();
            let entries = Box::into_raw(entries);
            // E62: Release: the entries are initialised. Relaxed: who lost looks again below.
            let installed = self.segments[segment].compare_exchange(
                ptr::null_mut(),
                entries.cast::<Entry>(),
                Ordering::Release, // E62
                Ordering::Relaxed, // E62
            );
            if installed.is_err() {
                // SAFETY: ours, never published: somebody else's segment is in place.
                drop(unsafe { Box::from_raw(entries) });
            }
        }
        Some((index, self.entry(index)?))
    }

    fn segment(&self, segment: usize) -> Option<&[Entry]> {
        // E62: Acquire: the entries are initialised.
        let base = self.segments[segment].load(Ordering::Acquire);
        let length = length_of(segment);
        // SAFETY: published by `fresh` with this length, never freed before `self`; entries are only
        // used through shared references.
        (!base.is_null()).then(|| unsafe { std::slice::from_raw_parts(base, length) })
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        let (segment, offset) = place(index)?;
        self.segment(segment)?.get(offset)
    }
}

impl Entry {
    /// The entry, if it is live and stayed so.
    fn read(&self) -> Option<Record> {
        // E61: Acquire: the words of this sequence.
        let before = self.sequence.load(Ordering::Acquire);
        if before & LIVE == 0 {
            return None;
        }
        let word = |from: &AtomicU64| from.load(Ordering::Relaxed); // E61
        let record = Record {
            slot: word(&self.slot),
            birth: word(&self.birth),
            since: word(&self.since),
            len: word(&self.len),
            text: std::array::from_fn(|at| word(&self.text[at])),
        };
        // E61: Acquire fence: if any word was of a later writer, the sequence below is later too.
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == before).then_some(record) // E61
    }
}

impl Record {
    fn labelled(&self) -> Labelled {
        let bytes: Vec<u8> = self
            .text
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let bytes = &bytes[..(self.len as usize).min(bytes.len())];
        Labelled {
            label: String::from_utf8_lossy(bytes).into_owned(),
            since_ns: self.since,
            birth: self.birth,
        }
    }
}

impl Drop for Labels {
    fn drop(&mut self) {
        for (segment, base) in self.segments.iter_mut().enumerate() {
            let base = base.with_mut(|base| *base);
            if !base.is_null() {
                let entries = ptr::slice_from_raw_parts_mut(base, length_of(segment));
                // SAFETY: published by `fresh` with this length; `&mut self`: nobody looks.
                drop(unsafe { Box::from_raw(entries) });
            }
        }
    }
}

fn length_of(segment: usize) -> usize {
    1 << (segment as u32 + FIRST_BITS)
}

/// Segment and offset of an entry.
fn place(index: u32) -> Option<(usize, usize)> {
    let shifted = index.checked_add(1 << FIRST_BITS)?;
    let segment = (31 - shifted.leading_zeros() - FIRST_BITS) as usize;
    (segment < SEGMENTS).then(|| (segment, shifted as usize - length_of(segment)))
}

/// Copies what fits; marks what was cut.
fn cut(label: &str, bytes: &mut [u8; LABEL_CAP]) -> usize {
    const MARK: &str = "…";
    let (kept, mark) = if label.len() <= LABEL_CAP {
        (label.len(), "")
    } else {
        (label.floor_char_boundary(LABEL_CAP - MARK.len()), MARK)
    };
    bytes[..kept].copy_from_slice(&label.as_bytes()[..kept]);
    bytes[kept..kept + mark.len()].copy_from_slice(mark.as_bytes());
    kept + mark.len()
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;

    fn labels_of(labels: &Labels, slot: u32, birth: u64) -> Vec<String> {
        let mut found: Vec<_> = labels
            .holders(slot, birth)
            .into_iter()
            .map(|entry| entry.label)
            .collect();
        found.sort();
        found
    }

    #[test]
    fn entries_come_and_go_by_generation() {
        let labels = Labels::new();
        let a = labels.claim("request-1", 7, 3, 10).unwrap();
        let b = labels.claim("request-2", 7, 4, 11).unwrap();
        let c = labels.clone_label(a).unwrap();
        assert_eq!(labels_of(&labels, 7, 3), ["request-1", "request-1"]);
        assert_eq!(labels_of(&labels, 7, 4), ["request-2"]);
        labels.release(a);
        assert_eq!(labels_of(&labels, 7, 3), ["request-1"]);
        // The clone is as old as what it was cloned from.
        assert_eq!(labels.oldest().unwrap().since_ns, 10);
        labels.release(c);
        assert_eq!(labels.oldest().unwrap().label, "request-2");
        labels.release(b);
        assert!(labels.holders(7, 3).is_empty() && labels.holders(7, 4).is_empty());
        assert_eq!(labels.oldest(), None);
    }

    #[test]
    fn long_labels_are_cut_at_a_character() {
        let labels = Labels::new();
        let long = "ä".repeat(LABEL_CAP);
        labels.claim(&long, 1, 1, 0).unwrap();
        let found = labels_of(&labels, 1, 1);
        assert!(
            found[0].ends_with('…') && found[0].len() <= LABEL_CAP,
            "{found:?}"
        );
        assert!(found[0].trim_end_matches('…').chars().all(|c| c == 'ä'));
        let exact = "x".repeat(LABEL_CAP);
        labels.claim(&exact, 1, 2, 0).unwrap();
        assert_eq!(labels_of(&labels, 1, 2), [exact]);
    }

    #[test]
    fn the_slab_grows_to_its_capacity_and_no_further() {
        let labels = Labels::new();
        let all: Vec<_> = (0..CAPACITY)
            .map(|index| labels.claim("x", index, 1, 0).expect("below capacity"))
            .collect();
        assert!(labels.claim("one too many", 0, 1, 0).is_none());
        labels.release(all[17]);
        assert!(labels.claim("fits again", 0, 2, 0).is_some());
        let mut ids: Vec<u32> = all.iter().map(|id| id.index()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len() as u32, CAPACITY, "two leases shared an entry");
    }

    #[test]
    fn observers_never_see_a_torn_label() {
        let labels = Labels::new();
        std::thread::scope(|scope| {
            for writer in 0..3u32 {
                let labels = &labels;
                scope.spawn(move || {
                    for round in 0..4_000u64 {
                        let text = format!("{writer}-{round}-").repeat(4);
                        let id = labels.claim(&text, writer, round, round).unwrap();
                        labels.release(id);
                    }
                });
            }
            scope.spawn(|| {
                for round in 0..4_000u64 {
                    for writer in 0..3u32 {
                        for entry in labels.holders(writer, round) {
                            assert_eq!(entry.label, format!("{writer}-{round}-").repeat(4));
                            assert_eq!(entry.since_ns, round);
                        }
                    }
                }
            });
        });
    }
}
