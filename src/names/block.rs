//! Blocks: the text of a name and what it means, in memory that readers may look at whenever they like.
//!
//! What lives here: writing a block, reading one without a lock, and where blocks come from and go back
//! to. What does not: which name is in which block (`projection`).
//!
//! A block is words, all of them atomic: a version, the record, two lengths, and the text. It is never freed
//! before the whole projection is, only used again, for a name whose block has as many lines. So a reader needs no pin and no
//! count: it reads what is there, and its version tells whether that was one name's all the time
//! (H.-J. Boehm, "Can seqlocks get along with programming language memory models?", 2012). Unlike in a seqlock a reader never waits
//! for a writer: a block that changes meanwhile is one whose name went, which is an answer.

use std::ptr::NonNull;

use super::NameRef;
use super::set_name::CAP;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Words in a cache line.
const WORDS: usize = 8;
/// Where what is in a block. The version is odd while the block has a name.
const VERSION: usize = 0;
const RECORD: usize = 1;
const LENGTHS: usize = 2;
const TEXT: usize = 3;

/// How many lengths of blocks there are: a name of two times 512 bytes takes 17 lines, and gets 32.
const CLASSES: usize = 6;

/// Lines of the first slab of a shard, and of the largest.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const SLABS: (usize, usize) = (4, 1024);
/// One name, so that models reach the next slab.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
const SLABS: (usize, usize) = (1, 1);

#[repr(align(64))]
struct Line {
    #[allow(dead_code, reason = "read by address")]
    words: [AtomicU64; WORDS],
}

// Words are addressed through all lines of a block.
const _: () = assert!(size_of::<Line>() == WORDS * size_of::<AtomicU64>());

impl Line {
    fn new() -> Self {
        Line {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Both lengths in one word, if they are a name's.
#[inline]
fn lengths(name: &NameRef<'_>) -> Option<u64> {
    let (namespace, name) = (name.namespace.len(), name.name.len());
    (namespace <= CAP && name <= CAP).then_some((namespace as u64) << 32 | name as u64)
}

/// Calls `with` with each word of a text, eight bytes with zeros after the last, until it says no. Where the words
/// end, or `None`.
#[inline(always)]
fn words(text: &str, from: usize, mut with: impl FnMut(usize, u64) -> bool) -> Option<usize> {
    let text = text.as_bytes();
    let (whole, rest) = text.as_chunks::<8>();
    let mut at = from;
    for eight in whole {
        if !with(at, u64::from_le_bytes(*eight)) {
            return None;
        }
        at += 1;
    }
    if rest.is_empty() {
        return Some(at);
    }
    let last = match text.last_chunk::<8>() {
        // One load, and what the word before has already is shifted out.
        Some(end) => u64::from_le_bytes(*end) >> (64 - 8 * rest.len()),
        None => rest
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    with(at, last).then_some(at + 1)
}

/// How many lines a name's block has: a power of two, so that the blocks of names that went are of use to names of
/// other lengths.
fn lines(name: &NameRef<'_>) -> usize {
    let text = name.namespace.len().div_ceil(8) + name.name.len().div_ceil(8);
    (TEXT + text).div_ceil(WORDS).next_power_of_two()
}

/// One block, by address. Whoever has one got it from the projection that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block(NonNull<AtomicU64>);

impl Block {
    /// From [`as_ptr`](Self::as_ptr).
    #[inline]
    pub(super) fn from_ptr(at: *mut AtomicU64) -> Option<Self> {
        NonNull::new(at).map(Block)
    }

    pub(super) fn as_ptr(self) -> *mut AtomicU64 {
        self.0.as_ptr()
    }

    /// # Safety
    /// The projection that the block is of is not dropped meanwhile, and the block has such a word.
    #[inline]
    unsafe fn word<'b>(self, at: usize) -> &'b AtomicU64 {
        // SAFETY: the caller's; blocks are parts of slabs, which are freed by `Blocks::drop` only.
        unsafe { self.0.add(at).as_ref() }
    }

    /// What the block says `name` means, if it is its block. Wait-free, and writes nothing.
    ///
    /// # Safety
    /// The projection that the block is of is not dropped meanwhile.
    #[inline]
    pub(super) unsafe fn read(self, name: &NameRef<'_>) -> Option<u64> {
        // SAFETY: the caller's; every block has these words.
        let [version, record, long] = [VERSION, RECORD, LENGTHS].map(|at| unsafe { self.word(at) });
        let wanted = lengths(name)?;
        // E86: Acquire: the name that was written before this version, or a later one.
        let before = version.load(Ordering::Acquire);
        // E87: Relaxed: if it is of another name, the version is another one at the end.
        if before & 1 == 0 || long.load(Ordering::Relaxed) != wanted {
            return None;
        }
        let is = |at, word| {
            // SAFETY: the block had a name of these lengths at some time, so it has the lines that it takes: it
            // never has fewer (`Blocks::take`, test `a_block_is_used_again_for_as_many_lines`).
            let there = unsafe { self.word(at) };
            // E87: Relaxed, as above.
            there.load(Ordering::Relaxed) == word
        };
        words(name.name, words(name.namespace, TEXT, is)?, is)?;
        // E87: Relaxed, as above.
        let record = record.load(Ordering::Relaxed);
        // E87: if any word was a later name's, the version after that is not the one before.
        fence(Ordering::Acquire);
        (version.load(Ordering::Relaxed) == before).then_some(record) // E87
    }

    /// Nobody finds a name in it from here on.
    ///
    /// # Safety
    /// As [`read`](Self::read); the caller has the shard's lock, and the block has a name.
    pub(super) unsafe fn bury(self) {
        // SAFETY: the caller's; every block has a version.
        let version = unsafe { self.word(VERSION) };
        // E41: nobody else writes it. E87: Relaxed: before the fence in `write`.
        let next = version.load(Ordering::Relaxed) + 1;
        version.store(next, Ordering::Relaxed); // E87
    }

    /// Writes a name into a block that has none. Nobody finds it there before [`show`](Self::show).
    ///
    /// # Safety
    /// As [`read`](Self::read); the caller has the shard's lock, and the block has the lines that it takes.
    unsafe fn write(self, name: &NameRef<'_>, means: u64) {
        // SAFETY: the caller's.
        let word = |at| unsafe { self.word(at) };
        // E87: who reads a word of the new name reads the version of the burial, or a later one, afterwards.
        fence(Ordering::Release);
        word(RECORD).store(means, Ordering::Relaxed); // E87
        debug_assert!(lengths(name).is_some(), "too long to be a name");
        // Who is too long to be looked up is not found.
        let lengths = lengths(name).unwrap_or(u64::MAX);
        word(LENGTHS).store(lengths, Ordering::Relaxed); // E87
        let write = |at, text| {
            word(at).store(text, Ordering::Relaxed); // E87
            true
        };
        let _ = words(name.namespace, TEXT, write).and_then(|at| words(name.name, at, write));
    }

    /// From here on the name in it is found.
    ///
    /// # Safety
    /// As [`bury`](Self::bury), but that the block has been written and not shown.
    pub(super) unsafe fn show(self) {
        // SAFETY: the caller's; every block has a version.
        let version = unsafe { self.word(VERSION) };
        // E41: nobody else writes it.
        let next = version.load(Ordering::Relaxed) + 1;
        // E86: Release: the name, where it is, and what was written before it was settled.
        version.store(next, Ordering::Release);
    }
}

/// The blocks of one shard: the slabs they are parts of, and those without a name. For who has the
/// shard's lock.
#[derive(Default)]
pub(super) struct Blocks {
    slabs: Vec<NonNull<[Line]>>,
    /// Where the last slab is unused, and how many lines that is.
    fresh: Option<(NonNull<Line>, usize)>,
    /// Those without a name, by how many lines they have, as a power of two.
    free: [Vec<Block>; CLASSES],
}

// SAFETY: slabs are atomics, which any thread may free.
unsafe impl Send for Blocks {}

impl Blocks {
    /// A block with `name` in it, which means `means`. Not shown yet.
    pub(super) fn take(&mut self, name: &NameRef<'_>, means: u64) -> Block {
        let lines = lines(name);
        let free = self.free[lines.ilog2() as usize].pop();
        let block = free.unwrap_or_else(|| self.carve(lines));
        // SAFETY: one of ours, as long as that, and without a name; `&mut self`: the lock is the caller's.
        unsafe { block.write(name, means) };
        block
    }

    /// The block can be used for another name.
    ///
    /// # Safety
    /// The block is one of these, and `name` was the last in it and is buried.
    pub(super) unsafe fn give_back(&mut self, block: Block, name: &NameRef<'_>) {
        self.put(block, lines(name));
    }

    /// How many slabs there are.
    #[cfg(all(test, not(weighbridge_loom)))]
    pub(super) fn slabs(&self) -> usize {
        self.slabs.len()
    }

    fn put(&mut self, block: Block, lines: usize) {
        self.free[lines.ilog2() as usize].push(block);
    }

    /// A block that was never used.
    fn carve(&mut self, lines: usize) -> Block {
        let (from, left) = match self.fresh.take() {
            Some((from, left)) if left >= lines => (from, left),
            rest => {
                if let Some((from, left)) = rest {
                    self.cut_up(from, left);
                }
                self.slab(lines)
            }
        };
        if left > lines {
            // SAFETY: `left` lines of one slab begin at `from`.
            self.fresh = Some((unsafe { from.add(lines) }, left - lines));
        }
        Block(from.cast())
    }

    /// What is left of a slab, as blocks.
    fn cut_up(&mut self, mut from: NonNull<Line>, mut left: usize) {
        while left > 0 {
            let lines = 1 << left.ilog2();
            self.put(Block(from.cast()), lines);
            // SAFETY: `left` lines of one slab begin at `from`.
            from = unsafe { from.add(lines) };
            left -= lines;
        }
    }

    fn slab(&mut self, lines: usize) -> (NonNull<Line>, usize) {
        let (first, most) = SLABS;
        let grown = first << self.slabs.len().min(16);
        let len = grown.min(most).max(lines);
        let slab: Box<[Line]> = (0..len).map(|_| Line::new()).collect();
        // Raw from here on: readers have addresses in it.
        let slab = NonNull::from(Box::leak(slab));
        self.slabs.push(slab);
        (slab.cast(), len)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for slab in &self.slabs {
            // SAFETY: leaked by `slab`, and freed nowhere else; the projection is being dropped, so nobody reads.
            drop(unsafe { Box::from_raw(slab.as_ptr()) });
        }
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::names::SetName;

    /// Tenants who change the lengths of all their names do not take memory for each length.
    #[test]
    fn names_of_all_lengths_one_after_the_other_share_their_blocks() {
        let mut blocks = Blocks::default();
        for len in 1..=CAP {
            let names: Vec<SetName> = (0..100)
                .map(|number| SetName::from(format!("{number:0len$}")))
                .collect();
            let taken: Vec<Block> = names
                .iter()
                .map(|name| take(&mut blocks, name, 0))
                .collect();
            for (block, name) in taken.into_iter().zip(&names) {
                // SAFETY: one of these, and it has this name.
                unsafe {
                    block.bury();
                    blocks.give_back(block, &name.as_ref());
                }
            }
        }
        let slabs = blocks.slabs.iter().map(|slab| slab.len());
        // 1, 2, 4, 8 and 16 lines for a hundred each, and as much again.
        let lines: usize = slabs.sum();
        assert!(lines <= 2 * 3_100, "{lines}");
    }

    #[test]
    fn words_are_the_text_and_zeros() {
        let text = "abcdefghijklmnopqrstuvwxyz";
        for len in 0..=text.len() {
            let mut padded = text.as_bytes()[..len].to_vec();
            padded.resize(len.next_multiple_of(8), 0);
            let expected = padded.as_chunks::<8>().0.iter();
            let expected: Vec<u64> = expected.map(|eight| u64::from_le_bytes(*eight)).collect();
            let mut told = Vec::new();
            let end = words(&text[..len], 3, |at, word| {
                told.push((at, word));
                true
            });
            let expected: Vec<_> = (3..).zip(expected).collect();
            assert_eq!((told, end), (expected, Some(3 + len.div_ceil(8))));
        }
    }

    fn take(blocks: &mut Blocks, name: &SetName, means: u64) -> Block {
        let block = blocks.take(&name.as_ref(), means);
        // SAFETY: one of these, and nobody else has it.
        unsafe {
            assert_eq!(
                block.read(&name.as_ref()),
                None,
                "found before it was shown"
            );
            block.show();
        }
        block
    }

    #[test]
    fn a_block_is_of_one_name() {
        let mut blocks = Blocks::default();
        let names = [
            ("", "a"),
            ("", "b"),
            ("a", "b"),
            ("ab", "c"),
            ("a", "bc"),
            ("", "abc"),
            ("", "12345678"),
            ("12345678", "x"),
            ("1234567", "8x"),
        ];
        let names = names.map(SetName::from);
        let taken: Vec<Block> = (0..)
            .zip(&names)
            .map(|(number, name)| take(&mut blocks, name, number))
            .collect();
        for (number, block) in taken.iter().enumerate() {
            for (other, name) in names.iter().enumerate() {
                // SAFETY: `blocks` is there until the end.
                let read = unsafe { block.read(&name.as_ref()) };
                assert_eq!(read, (number == other).then_some(number as u64));
            }
        }
        let long = "x".repeat(CAP + 1);
        // SAFETY: as above.
        assert_eq!(unsafe { taken[0].read(&NameRef::from(&*long)) }, None);
        // SAFETY: as above; it is this name's.
        unsafe { taken[0].bury() };
        // SAFETY: as above.
        assert_eq!(unsafe { taken[0].read(&names[0].as_ref()) }, None);
    }

    /// What a reader may take for granted: a block never has fewer lines than a name that was in it took.
    #[test]
    fn a_block_is_used_again_for_as_many_lines() {
        let mut blocks = Blocks::default();
        let name = |len: usize| SetName::from("x".repeat(len));
        let mut taken = Vec::new();
        for len in (1..=CAP).rev().chain(1..=CAP) {
            let name = name(len);
            taken.push((take(&mut blocks, &name, len as u64), name));
        }
        // None overlaps another.
        let mut all: Vec<(usize, usize)> = taken
            .iter()
            .map(|(block, name)| {
                (
                    block.as_ptr().addr(),
                    lines(&name.as_ref()) * size_of::<Line>(),
                )
            })
            .collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0));
        let slabs = blocks.slabs.len();
        let before = all;
        for (block, name) in taken.drain(..) {
            // SAFETY: one of these, and it has this name.
            unsafe {
                block.bury();
                blocks.give_back(block, &name.as_ref());
            }
        }
        for len in (1..=CAP).chain(1..=CAP) {
            let name = name(len);
            let block = take(&mut blocks, &name, len as u64);
            let place = (
                block.as_ptr().addr(),
                lines(&name.as_ref()) * size_of::<Line>(),
            );
            // Where a block of as many lines was, or is now.
            let (start, bytes) = place;
            let whole = |&(at, len): &(usize, usize)| at <= start && start + bytes <= at + len;
            assert!(before.iter().any(whole), "{len} is across others");
            taken.push((block, name));
        }
        assert_eq!(blocks.slabs.len(), slabs);
        for (block, name) in taken {
            // SAFETY: `blocks` is there until the end.
            let read = unsafe { block.read(&name.as_ref()) };
            assert_eq!(read, Some(name.name().len() as u64));
        }
    }
}
