//! The projection: what every name means, for readers that take no lock, pin nothing and write nothing.
//!
//! What lives here: shards of tables of buckets, from a hash to a block. What does not: what is in a block
//! (`block`), who may change what a name means (`names`).
//!
//! A bucket is a cache line: a few places, and where it goes on if that was too few once. A name is in one
//! place of its bucket, or of those that this goes on in, and stays there as long as it is in that table: a
//! reader that looks at all of them cannot miss it. A place without a name can be anybody's of that bucket, so a table does
//! not fill up with what went.
//!
//! Nothing that a reader may stand on is freed before the projection: a table that became too small is kept
//! beside its successor, which is at least twice as long; a bucket keeps what it went on in when it was most crowded;
//! blocks are used again (`block`). One writer at a time per shard.

use std::ptr::{self, NonNull};

use super::NameRef;
use super::block::{Block, Blocks};
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering, WithMut};
use crate::sync::{Mutex, MutexGuard};

/// How much of everything there is. A writer holds up others of its shard only, also while it makes a longer
/// table.
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
mod size {
    pub(super) const SHARDS: usize = 64;
    /// With these and the pointer a bucket is a cache line.
    pub(super) const PLACES: usize = 3;
    /// Buckets of a shard's first table.
    pub(super) const FIRST: usize = 2;
    /// Most names in two buckets, on average: at these, one bucket of fifteen goes on.
    pub(super) const NAMES_IN_TWO: usize = 3;
}
/// Everything meets: the second name makes a bucket go on, the third makes a longer table.
#[cfg(any(weighbridge_loom, weighbridge_shuttle))]
mod size {
    pub(super) const SHARDS: usize = 1;
    pub(super) const PLACES: usize = 1;
    pub(super) const FIRST: usize = 1;
    pub(super) const NAMES_IN_TWO: usize = 4;
}
use size::{FIRST, NAMES_IN_TWO, PLACES, SHARDS};

/// The hash of a place without a name.
const EMPTY: u64 = 0;

/// A hash as places have it: not that one.
#[inline]
pub(super) fn fit(hash: u64) -> u64 {
    hash.max(EMPTY + 1)
}

/// A table takes the low bits.
#[inline]
pub(super) fn shard_of(hash: u64) -> usize {
    (hash >> 58) as usize % SHARDS
}

struct Place {
    hash: AtomicU64,
    block: AtomicPtr<AtomicU64>,
}

#[repr(align(64))]
struct Bucket {
    places: [Place; PLACES],
    /// Never changes again once it is there.
    more: AtomicPtr<Bucket>,
}

impl Bucket {
    fn new() -> Self {
        Bucket {
            places: std::array::from_fn(|_| Place {
                hash: AtomicU64::new(EMPTY),
                block: AtomicPtr::new(ptr::null_mut()),
            }),
            more: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Where it goes on.
    ///
    /// # Safety
    /// The projection of this bucket is not dropped meanwhile.
    #[inline]
    unsafe fn more(&self) -> Option<&Bucket> {
        // E85: Acquire: the bucket that was made.
        let more = NonNull::new(self.more.load(Ordering::Acquire))?;
        // SAFETY: leaked by `put`, freed by `Table::drop`, which the caller excludes.
        Some(unsafe { more.as_ref() })
    }
}

/// A power of two of buckets. On a cache line that nobody writes.
#[repr(align(64))]
struct Table(Box<[Bucket]>);

// A pointer to one is shared whatever it is.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Table>();
};
#[cfg(not(any(weighbridge_loom, weighbridge_shuttle)))]
const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is a cache line");

impl Table {
    fn new(len: usize) -> Self {
        Table((0..len).map(|_| Bucket::new()).collect())
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn bucket(&self, hash: u64) -> &Bucket {
        &self.0[hash as usize & (self.0.len() - 1)]
    }

    /// # Safety
    /// The projection of this table is not dropped meanwhile.
    #[inline]
    unsafe fn find(&self, hash: u64, name: &NameRef<'_>) -> Option<u64> {
        let mut bucket = self.bucket(hash);
        loop {
            for place in &bucket.places {
                // E85: Relaxed: a hint where to look. Of a name that was settled before, this is its hash or a later one.
                if place.hash.load(Ordering::Relaxed) == hash {
                    // E85: Acquire: the memory that the block is in was made, also if it is a later one than the
                    // hash's.
                    let block = Block::from_ptr(place.block.load(Ordering::Acquire));
                    // SAFETY: a block of this projection, by the caller not dropped.
                    let means = block.and_then(|block| unsafe { block.read(name) });
                    if means.is_some() {
                        return means;
                    }
                }
            }
            // SAFETY: the caller's.
            bucket = unsafe { bucket.more() }?;
        }
    }

    /// All buckets that `hash` can be in. For the writer.
    fn chain(&self, hash: u64) -> impl Iterator<Item = &Bucket> {
        // SAFETY: the table is borrowed, and its projection with it.
        std::iter::successors(Some(self.bucket(hash)), |bucket| unsafe { bucket.more() })
    }

    /// Puts a block there. For the writer.
    fn put(&self, hash: u64, block: Block) {
        let mut places = self.chain(hash).flat_map(|bucket| &bucket.places);
        // E41: nobody else writes it.
        let free = places.find(|place| place.hash.load(Ordering::Relaxed) == EMPTY);
        let mut further = None;
        let place = match free {
            Some(free) => free,
            None => &further.insert(Box::new(Bucket::new())).places[0],
        };
        // E85: Release: the memory that the block is in.
        place.block.store(block.as_ptr(), Ordering::Release);
        // E85: Relaxed: seen by whoever saw the block's version (E86), or came after this writer (E41).
        place.hash.store(hash, Ordering::Relaxed);
        if let (Some(further), Some(last)) = (further, self.chain(hash).last()) {
            // E85: Release: the bucket and what is in it.
            last.more.store(Box::leak(further), Ordering::Release);
        }
    }

    /// Where `name` is. For the writer.
    fn place(&self, hash: u64, name: &NameRef<'_>) -> Option<(&Place, Block)> {
        let places = self.chain(hash).flat_map(|bucket| &bucket.places);
        places
            // E41: nobody else writes these.
            .filter(|place| place.hash.load(Ordering::Relaxed) == hash)
            .find_map(|place| {
                // E41: as above.
                let block = Block::from_ptr(place.block.load(Ordering::Relaxed))?;
                // SAFETY: writers have the projection borrowed.
                unsafe { block.read(name) }.map(|_| (place, block))
            })
    }

    /// All that is in it. For the writer.
    fn all(&self) -> impl Iterator<Item = (u64, Block)> {
        let chains = (0..self.len()).flat_map(|at| self.chain(at as u64));
        chains
            .flat_map(|bucket| &bucket.places)
            .filter_map(|place| {
                // E41: nobody else writes these.
                let hash = place.hash.load(Ordering::Relaxed);
                let block = Block::from_ptr(place.block.load(Ordering::Relaxed))?; // E41
                (hash != EMPTY).then_some((hash, block))
            })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for bucket in &mut self.0 {
            let mut more = bucket.more.with_mut(|more| *more);
            while let Some(next) = NonNull::new(more) {
                // SAFETY: leaked by `put`, and freed nowhere else; `&mut self`.
                let mut next = unsafe { Box::from_raw(next.as_ptr()) };
                more = next.more.with_mut(|more| *more);
            }
        }
    }
}

/// What only the writer of a shard knows.
#[derive(Default)]
struct Shard {
    /// All tables there ever were, the last of them in use.
    tables: Vec<NonNull<Table>>,
    /// How many names there are.
    live: usize,
    blocks: Blocks,
}

// SAFETY: tables are atomics, which any thread may free; blocks are `Send`.
unsafe impl Send for Shard {}

impl Shard {
    fn last(&self) -> Option<&Table> {
        // SAFETY: leaked by `reserve`, and freed by `drop` only.
        self.tables.last().map(|table| unsafe { table.as_ref() })
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        for table in &self.tables {
            // SAFETY: leaked by `reserve`, and freed nowhere else; the projection is being dropped, so nobody reads.
            drop(unsafe { Box::from_raw(table.as_ptr()) });
        }
    }
}

/// See the module documentation.
pub struct Projection {
    /// Beside each other and apart from what writers write: all that a reader reads first.
    tables: Box<[AtomicPtr<Table>]>,
    shards: Box<[Mutex<Shard>]>,
}

impl Default for Projection {
    fn default() -> Self {
        Self::new()
    }
}

impl Projection {
    /// Nothing.
    pub fn new() -> Self {
        Projection {
            tables: (0..SHARDS)
                .map(|_| AtomicPtr::new(ptr::null_mut()))
                .collect(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// What `name`, whose hash this is, means. Wait-free: no lock, no write, nothing allocated; its bucket, and what
    /// that went on in when it was most crowded.
    #[inline]
    pub fn find(&self, hash: u64, name: &NameRef<'_>) -> Option<u64> {
        // E40: Acquire: the table's buckets.
        let table = NonNull::new(self.tables[shard_of(hash)].load(Ordering::Acquire))?;
        // SAFETY: tables are freed when the projection is dropped, which is borrowed here. Guarded by the models
        // `name_grow`, `name_place` and `name_kept`, and by `tests/names_stress.rs` under AddressSanitizer.
        unsafe { table.as_ref().find(hash, name) }
    }

    /// The right to change what the names of a shard mean, that of `hash` among them. Others of this shard wait;
    /// readers do not care.
    pub fn write(&self, hash: u64) -> Writing<'_> {
        let shard = shard_of(hash);
        Writing {
            table: &self.tables[shard],
            // E41: one writer per shard.
            shard: self.shards[shard].lock(),
        }
    }
}

/// See [`Projection::write`].
pub struct Writing<'p> {
    table: &'p AtomicPtr<Table>,
    shard: MutexGuard<'p, Shard>,
}

impl Writing<'_> {
    /// Makes room for so many more names.
    pub fn reserve(&mut self, names: usize) {
        let shard = &mut *self.shard;
        let len = shard.last().map_or(0, Table::len);
        let names = 2 * (shard.live + names);
        if names <= NAMES_IN_TWO * len {
            return;
        }
        let wanted = names.div_ceil(NAMES_IN_TWO).next_power_of_two();
        let next = Table::new(wanted.max(FIRST));
        for (hash, block) in shard.last().iter().flat_map(|table| table.all()) {
            next.put(hash, block);
        }
        let next = NonNull::from(Box::leak(Box::new(next)));
        shard.tables.push(next);
        // E40: Release: the buckets.
        self.table.store(next.as_ptr(), Ordering::Release);
    }

    /// From here on `name`, which means nothing so far, means `means`.
    pub fn insert(&mut self, hash: u64, name: &NameRef<'_>, means: u64) {
        debug_assert_ne!(hash, EMPTY, "a hash that does not fit");
        self.reserve(1);
        let shard = &mut *self.shard;
        let block = shard.blocks.take(name, means);
        if let Some(table) = shard.last() {
            table.put(hash, block);
        }
        // Last of all: who found it once finds its place.
        // SAFETY: of this shard, whose lock we have, written by `take` and known to nobody else.
        unsafe { block.show() };
        shard.live += 1;
    }

    /// What `name` means.
    pub fn find(&self, hash: u64, name: &NameRef<'_>) -> Option<u64> {
        // SAFETY: `shard` is borrowed.
        self.shard
            .last()
            .and_then(|table| unsafe { table.find(hash, name) })
    }

    /// From here on `name` means nothing.
    pub fn remove(&mut self, hash: u64, name: &NameRef<'_>) {
        let shard = &mut *self.shard;
        let Some((place, block)) = shard.last().and_then(|table| table.place(hash, name)) else {
            return;
        };
        // SAFETY: of this shard, whose lock we have, and it has this name.
        unsafe { block.bury() };
        // E85: Relaxed: who reads it goes on. The next tenant's comes after it (E41).
        place.hash.store(EMPTY, Ordering::Relaxed);
        shard.live -= 1;
        // SAFETY: as above, and buried.
        unsafe { shard.blocks.give_back(block, name) };
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::names::SetName;

    fn name(number: u64) -> SetName {
        SetName::from(format!("set-{number}"))
    }

    /// Few hashes in one shard, so that names get in each other's way all the time.
    fn crowded(number: u64) -> u64 {
        fit(number % 7)
    }

    /// How long the first shard's table is, how many buckets that went on in, and how many names are in it.
    fn len(projection: &Projection) -> (usize, usize, usize) {
        let shard = projection.shards[0].lock();
        let Some(table) = shard.last() else {
            return (0, 0, 0);
        };
        let buckets = (0..table.len() as u64).flat_map(|at| table.chain(at));
        assert_eq!(table.all().count(), shard.live);
        (table.len(), buckets.count() - table.len(), shard.live)
    }

    proptest! {
        /// Whatever is put in and taken out: it says what a map says, and counts right.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u64..20, any::<bool>()), 1..200)) {
            let projection = Projection::new();
            let mut map = BTreeMap::new();
            for (step, (number, insert)) in (0u64..).zip(steps) {
                let (hash, name) = (crowded(number), name(number));
                let mut writing = projection.write(hash);
                if !insert {
                    writing.remove(hash, &name.as_ref());
                    map.remove(&number);
                } else if writing.find(hash, &name.as_ref()).is_none() {
                    writing.insert(hash, &name.as_ref(), step);
                    map.insert(number, step);
                }
                drop(writing);
                for number in 0..20 {
                    let found = projection.find(crowded(number), &self::name(number).as_ref());
                    prop_assert_eq!(found, map.get(&number).copied());
                }
                prop_assert_eq!(len(&projection).2, map.len());
            }
        }
    }

    /// A million names come and go, and the table stays as it was.
    #[test]
    fn what_went_leaves_nothing_behind() {
        let projection = Projection::new();
        const LIVE: u64 = 384;
        // Steele et al., "Fast splittable pseudorandom number generators", 2014; without the bits that choose the shard.
        let hash = |number: u64| {
            let mut hash = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            fit((hash ^ hash >> 31) >> 6)
        };
        let insert = |number| {
            let at = hash(number);
            let mut writing = projection.write(at);
            writing.insert(at, &name(number).as_ref(), number);
        };
        (0..LIVE).for_each(insert);
        let grown = len(&projection);
        let slabs = projection.shards[0].lock().blocks.slabs();
        for number in LIVE..1_000_000 {
            let (old, at) = (number - LIVE, hash(number - LIVE));
            projection.write(at).remove(at, &name(old).as_ref());
            insert(number);
        }
        let now = len(&projection);
        assert_eq!((now.0, now.2), (grown.0, LIVE as usize));
        // Every bucket meets its worst crowd sooner or later, and keeps what it went on in.
        assert!(now.1 <= 3 * now.0, "{now:?}");
        assert_eq!(projection.shards[0].lock().blocks.slabs(), slabs);
    }

    /// Blocks go from name to name under the readers' eyes, all of one length and in one bucket.
    #[test]
    fn who_reads_a_block_that_changes_hands_never_sees_another_name() {
        const NAMES: u64 = 16;
        const ROUNDS: u64 = if cfg!(debug_assertions) {
            40_000
        } else {
            400_000
        };
        let projection = Projection::new();
        let names: Vec<SetName> = (10..10 + NAMES).map(name).collect();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let (projection, names, over) = (&projection, &names, &over);
                scope.spawn(move || {
                    let mut last = [0; NAMES as usize];
                    let mut found = 0;
                    for turn in reader.. {
                        let number = turn % NAMES as usize;
                        if let Some(means) = projection.find(1, &names[number].as_ref()) {
                            assert_eq!(means % NAMES, number as u64, "another name's record");
                            assert!(means >= last[number], "an old record came back");
                            last[number] = means;
                            found += 1;
                        }
                        if over.load(std::sync::atomic::Ordering::Relaxed) && found > 0 {
                            break;
                        }
                    }
                });
            }
            // Four are there at a time.
            for round in 0..ROUNDS {
                let name = |round| names[(round * 7 % NAMES) as usize].as_ref();
                let mut writing = projection.write(1);
                writing.insert(1, &name(round), round * NAMES + round * 7 % NAMES);
                if round >= 4 {
                    writing.remove(1, &name(round - 4));
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(projection.shards[0].lock().live, 4);
    }

    #[test]
    fn tables_that_are_kept_are_no_longer_than_the_last() {
        let projection = Projection::new();
        for number in 0..10_000 {
            let hash = fit(number);
            projection
                .write(hash)
                .insert(hash, &name(number).as_ref(), number);
        }
        let shard = projection.shards[0].lock();
        // SAFETY: freed by `drop` only.
        let lens = shard.tables.iter().map(|table| unsafe { table.as_ref() });
        let lens: Vec<usize> = lens.map(Table::len).collect();
        let (last, kept) = lens.split_last().unwrap();
        assert!(kept.iter().sum::<usize>() < *last, "{lens:?}");
    }

    #[test]
    fn a_registry_without_names_pays_little() {
        let bytes = SHARDS * (size_of::<Mutex<Shard>>() + size_of::<AtomicPtr<Table>>());
        assert!(bytes <= 16 << 10, "{bytes}");
    }
}
