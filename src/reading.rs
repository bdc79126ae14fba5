//! Reading a set's bytes into memory that is there, by several threads, and hashing them on the way.
//!
//! What lives here: cutting tensors into pieces, handing these out, the digests; the same for one part of a set
//! that is streamed. What does not: where
//! the bytes come from (`source`), whose memory it is (`arena`, `ledger`), what the digests become
//! (`identity`).
//!
//! A piece is read in steps that are hashed while they are still in the cache: reading by copying out of
//! the page cache and hashing each cost about as much, and a second pass over memory costs a third of
//! either. Digests of long tensors are put together from those of their pieces, as BLAKE3 allows, so they
//! are what hashing the tensor in one go gives.

use std::sync::atomic::{AtomicBool, Ordering};

use blake3::hazmat::{
    HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use crate::error::Error;
use crate::identity::Digest;
use crate::plan::{Plan, PlannedPart};
use crate::source::{Pieces, Source};
use crate::sync::Mutex;

/// Bytes of a piece. A power of two of BLAKE3's chunks, so that pieces are subtrees.
const PIECE: usize = 4 << 20;
/// Bytes that are read and then hashed.
const STEP: usize = 256 << 10;
/// Another thread for each of these.
const WORTH: usize = 2 * PIECE;

/// Fills `arena` from `source`. If the bytes are wanted hashed and were read piece by piece, their digests
/// come with it, in the plan's order; a tie has its target's. `readers`: threads at most. `stale`: there is
/// something in the arena, of which nothing is left.
///
/// # Errors
/// Those of the source.
pub(crate) fn fill(
    source: &(impl Source + ?Sized),
    arena: &mut [u8],
    stale: bool,
    hashed: bool,
    readers: usize,
) -> Result<Option<Vec<Digest>>, Error> {
    let pieces = source.pieces();
    let plan = source.plan();
    match pieces.filter(|pieces| pieces.are_of(plan)) {
        None if plan.parts().is_some() => Err(unreadable(plan)),
        None => {
            if stale {
                arena.fill(0);
            }
            source.read_into(arena).map(|()| None)
        }
        Some(pieces) => {
            let mut digests = vec![Digest::default(); plan.tensors().len()];
            let staying = plan.tensors().iter().enumerate();
            let staying = staying.filter(|(_, tensor)| tensor.part.is_none());
            let staying: Vec<usize> = staying.map(|(index, _)| index).collect();
            let known = &mut digests[..];
            let mut note = |tensor: usize, digest| known[tensor] = digest;
            let ways = (stale, hashed, readers);
            read_pieces(&pieces, plan, &staying, arena, ways, &mut note)?;
            if let Some(parts) = plan.parts().filter(|_| hashed) {
                // Whoever wants the digests has every byte read once. The window holds one part after the other.
                let window = &mut arena[parts.resident_bytes() as usize..];
                for part in parts.all() {
                    let (place, _) = window.split_at_mut(part.bytes() as usize);
                    let ways = (true, true, readers);
                    read_pieces(&pieces, plan, &part.tensors, place, ways, &mut note)?;
                }
            }
            pieces.finish()?;
            for (index, tensor) in plan.tensors().iter().enumerate() {
                if let Some(target) = tensor.tie {
                    digests[index] = digests[target];
                }
            }
            Ok(hashed.then_some(digests))
        }
    }
}

/// Fills `place` with part `part` of `source`, whose plan has it, by `readers` threads at most. `stale`: there is something
/// in the place. If `known` are the digests of all tensors, the answer is the first tensor that is another one.
///
/// # Errors
/// Those of the source.
pub(crate) fn fill_part(
    source: &(impl Source + ?Sized),
    part: &PlannedPart,
    place: &mut [u8],
    known: Option<&[Digest]>,
    readers: usize,
) -> Result<Option<usize>, Error> {
    let plan = source.plan();
    let pieces = source.pieces();
    let pieces = pieces.filter(|pieces| pieces.are_of(plan));
    let pieces = pieces.ok_or_else(|| unreadable(plan))?;
    let mut differs = None;
    let mut compare = |tensor: usize, digest| {
        if known.is_some_and(|known| known[tensor] != digest) {
            differs = differs.or(Some(tensor));
        }
    };
    let ways = (true, known.is_some(), readers);
    read_pieces(&pieces, plan, &part.tensors, place, ways, &mut compare)?;
    pieces.finish()?;
    Ok(differs)
}

fn unreadable(plan: &Plan) -> Error {
    Error::InvalidParts {
        origin: plan.origin().to_owned(),
        reason: "it is read by pieces, and its source has none (Source::pieces)".to_owned(),
    }
}

/// [`fill`] by one thread, unhashed: what a source that has pieces does when it is asked to
/// [read everything](Source::read_into).
pub(crate) fn fill_here(pieces: &Pieces<'_>, plan: &Plan, arena: &mut [u8]) -> Result<(), Error> {
    if plan.parts().is_some() {
        return Err(unreadable(plan));
    }
    let all: Vec<usize> = (0..plan.tensors().len()).collect();
    read_pieces(pieces, plan, &all, arena, (false, false, 1), &mut |_, _| {})?;
    pieces.finish()
}

/// A part of one tensor.
struct Piece<'a> {
    tensor: usize,
    offset: u64,
    bytes: &'a mut [u8],
    /// It is all of its tensor.
    whole: bool,
}

/// Clears what is between the tensors of `arena`: whoever fills these writes nothing there.
pub(crate) fn clear_gaps(plan: &Plan, arena: &mut [u8]) {
    let all: Vec<usize> = (0..plan.tensors().len()).collect();
    drop(cut(plan, &all, arena, true));
}

/// The pieces of those of `tensors` that have bytes of their own, in the order of their places. What is between
/// them is nobody's, and becomes zero if there was something.
fn cut<'a>(plan: &Plan, tensors: &[usize], mut arena: &'a mut [u8], stale: bool) -> Vec<Piece<'a>> {
    let tensors = tensors.iter().map(|&index| (index, &plan.tensors()[index]));
    let mut own: Vec<_> = tensors.filter(|(_, tensor)| tensor.tie.is_none()).collect();
    own.sort_by_key(|(_, tensor)| tensor.range().start);
    let mut pieces = Vec::with_capacity(own.len());
    let mut at = 0;
    for (tensor, planned) in own {
        let range = planned.range();
        let (gap, rest) = std::mem::take(&mut arena).split_at_mut(range.start - at);
        if stale {
            gap.fill(0);
        }
        let (bytes, rest) = rest.split_at_mut(range.len());
        (arena, at) = (rest, range.end);
        let whole = bytes.len() <= PIECE;
        if whole {
            pieces.push(Piece {
                tensor,
                offset: 0,
                bytes,
                whole,
            });
            continue;
        }
        for (number, bytes) in bytes.chunks_mut(PIECE).enumerate() {
            let offset = (number * PIECE) as u64;
            pieces.push(Piece {
                tensor,
                offset,
                bytes,
                whole,
            });
        }
    }
    if stale {
        arena.fill(0);
    }
    pieces
}

/// Reads one piece. The answer, if it is wanted: of a whole tensor its digest, of a part the chaining
/// value of its subtree.
fn read_piece(pieces: &Pieces<'_>, piece: Piece<'_>, hashed: bool) -> Result<Digest, Error> {
    let Piece {
        tensor,
        mut offset,
        bytes,
        whole,
    } = piece;
    if !hashed {
        return pieces
            .read(tensor, offset, bytes)
            .map(|()| Digest::default());
    }
    let mut hasher = blake3::Hasher::new();
    if !whole {
        hasher.set_input_offset(offset);
    }
    for step in bytes.chunks_mut(STEP) {
        pieces.read(tensor, offset, step)?;
        hasher.update(step);
        offset += step.len() as u64;
    }
    Ok(if whole {
        *hasher.finalize().as_bytes()
    } else {
        hasher.finalize_non_root()
    })
}

/// Reads `tensors` to their places in `arena`. If they are wanted hashed, `digest` is told what each is.
fn read_pieces(
    pieces: &Pieces<'_>,
    plan: &Plan,
    tensors: &[usize],
    arena: &mut [u8],
    (stale, hashed, readers): (bool, bool, usize),
    digest: &mut dyn FnMut(usize, Digest),
) -> Result<(), Error> {
    let readers = readers.min(arena.len() / WORTH).max(1);
    let cut = cut(plan, tensors, arena, stale);
    let places: Vec<(usize, u64)> = cut.iter().map(|one| (one.tensor, one.offset)).collect();
    let values = if readers == 1 {
        let read = |piece| read_piece(pieces, piece, hashed);
        cut.into_iter().map(read).collect::<Result<Vec<_>, _>>()?
    } else {
        read_by(readers, pieces, cut, hashed)?
    };
    if !hashed {
        return Ok(());
    }
    let mut at = 0;
    while let Some(&(tensor, _)) = places.get(at) {
        let len = plan.tensors()[tensor].range().len();
        let number = len.div_ceil(PIECE).max(1);
        digest(tensor, merge(&values[at..at + number], len as u64, true));
        at += number;
    }
    Ok(())
}

/// Several threads, this one among them, take one piece after the other.
fn read_by(
    readers: usize,
    pieces: &Pieces<'_>,
    cut: Vec<Piece<'_>>,
    hashed: bool,
) -> Result<Vec<Digest>, Error> {
    let mut values = vec![Digest::default(); cut.len()];
    let queue = Mutex::new(cut.into_iter().zip(&mut values).enumerate());
    let failed = AtomicBool::new(false);
    let first: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let work = || {
        // E17: who sees it late reads a piece for nothing.
        while !failed.load(Ordering::Relaxed) {
            let next = queue.lock().next(); // E80
            let Some((at, (piece, value))) = next else {
                return;
            };
            match read_piece(pieces, piece, hashed) {
                Ok(read) => *value = read,
                Err(error) => {
                    failed.store(true, Ordering::Relaxed); // E17
                    let mut first = first.lock(); // E80
                    if first.as_ref().is_none_or(|(earlier, _)| at < *earlier) {
                        *first = Some((at, error));
                    }
                }
            }
        }
    };
    std::thread::scope(|threads| {
        for _ in 1..readers {
            // One that the system has no thread for is one less.
            let named = std::thread::Builder::new().name("weighbridge-reader".to_owned());
            let _ = named.spawn_scoped(threads, work);
        }
        work();
    });
    let first = first.lock().take(); // E80
    match first {
        Some((_, error)) => Err(error),
        None => {
            drop(queue);
            Ok(values)
        }
    }
}

/// The digest of what these are the parts of, in order: `len` bytes, or at the root the tensor.
fn merge(values: &[Digest], len: u64, root: bool) -> Digest {
    if let [one] = values {
        return *one;
    }
    let left = left_subtree_len(len);
    let (before, after) = values.split_at(usize::try_from(left).unwrap_or(usize::MAX) / PIECE);
    let [before, after] =
        [(before, left), (after, len - left)].map(|(values, len)| merge(values, len, false));
    if root {
        *merge_subtrees_root(&before, &after, Mode::Hash).as_bytes()
    } else {
        merge_subtrees_non_root(&before, &after, Mode::Hash)
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::arena::Arena;
    use crate::identity::digests;
    use crate::source::ReadPieces;

    /// Bytes that depend on their tensor and their place there, until one that cannot be read.
    struct Pattern {
        plan: Plan,
        broken: Option<(usize, u64)>,
    }

    fn byte(tensor: usize, at: u64) -> u8 {
        (at ^ (at >> 11) ^ (at >> 21)) as u8 ^ tensor as u8
    }

    impl ReadPieces for Pattern {
        fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
            let end = offset + bytes.len() as u64;
            if let Some((broken, at)) = self.broken
                && broken <= tensor
                && (broken < tensor || (offset..end).contains(&at))
            {
                return Err(Error::InvalidTensor {
                    tensor: self.plan.tensors()[tensor].name().to_owned(),
                    reason: format!("byte {at}"),
                });
            }
            for (at, byte_of) in (offset..).zip(bytes) {
                *byte_of = byte(tensor, at);
            }
            Ok(())
        }

        fn finish(&self) -> Result<(), Error> {
            Ok(())
        }
    }

    impl Source for Pattern {
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

    /// Lengths about every border: of chunks, steps, pieces, trees that are not balanced.
    fn pattern() -> Pattern {
        let lens = [
            0,
            1,
            1024,
            STEP - 1,
            STEP,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            2 * PIECE,
            2 * PIECE + 1025,
            3 * PIECE,
            5 * PIECE + STEP + 7,
        ];
        let tensors = lens.iter().enumerate();
        let tensors = tensors.map(|(at, len)| (format!("t{at:02}"), Dtype::U8, vec![*len]));
        Pattern {
            plan: Plan::of("a pattern", tensors).unwrap(),
            broken: None,
        }
    }

    #[test]
    fn digests_of_pieces_are_those_of_the_whole() {
        let source = pattern();
        let mut arena = Arena::allocate(source.plan.arena_bytes()).unwrap();
        for readers in [1, 2, 3] {
            arena.as_mut_slice().fill(0xee);
            let read = fill(&source, arena.as_mut_slice(), true, true, readers).unwrap();
            assert_eq!(read, Some(digests(&source.plan, arena.as_slice())));
            for (tensor, planned) in source.plan.tensors().iter().enumerate() {
                let bytes = &arena.as_slice()[planned.range()];
                let right = |(at, there): (u64, &u8)| *there == byte(tensor, at);
                assert!((0..).zip(bytes).all(right), "{}", planned.name());
            }
            arena.as_mut_slice().fill(0xee);
            assert_eq!(
                fill(&source, arena.as_mut_slice(), true, false, readers).unwrap(),
                None
            );
            assert_eq!(digests(&source.plan, arena.as_slice()), read.unwrap());
        }
    }

    /// A wrapper that forwards the pieces of another plan than its own is read as a whole.
    #[test]
    fn pieces_of_another_plan_are_not_taken() {
        struct Other(Pattern, Plan);
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
        let inner = pattern();
        let all = inner.plan.tensors().iter();
        let others = all
            .skip(1)
            .map(|one| (one.name().to_owned(), Dtype::U8, vec![one.range().len()]));
        let plan = Plan::of("but the first", others).unwrap();
        let mut arena = Arena::allocate(plan.arena_bytes()).unwrap();
        let other = Other(inner, plan);
        let read = fill(&other, arena.as_mut_slice(), false, true, 2).unwrap();
        assert_eq!(read, None);
        assert!(arena.as_slice().iter().all(|byte| *byte == 9));
    }

    #[test]
    fn the_first_error_in_order_is_told() {
        let mut source = pattern();
        let mut arena = Arena::allocate(source.plan.arena_bytes()).unwrap();
        for (tensor, at) in [(1, 0), (7, PIECE as u64), (11, 5 * PIECE as u64 + 1)] {
            source.broken = Some((tensor, at));
            for (readers, hashed) in [(1, true), (2, true), (2, false)] {
                let refused =
                    fill(&source, arena.as_mut_slice(), true, hashed, readers).unwrap_err();
                if readers == 1 {
                    assert!(
                        refused.to_string().contains(&format!("t{tensor:02}")),
                        "{refused}"
                    );
                }
                assert!(refused.to_string().contains("byte"), "{refused}");
            }
        }
    }
}
