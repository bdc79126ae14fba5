//! The ring behind the event stream: bounded, ordered, and never in a publisher's way.
//!
//! What lives here: places in the stream, posting, reading, waiting, the end. What does not: what the
//! events are (`registry::event`), who posts what (`registry::posting`).
//!
//! A publisher first reserves places, which fixes the order, and posts into them later, in any order.
//! A subscriber is a number: the place it reads next. It finds there the event, or nothing yet, or an
//! event of a later round: then it knows exactly how many it missed. States and edges:
//! docs/ordering/events.md.

use std::sync::Arc;
use std::time::Instant;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::swap::Swap;
use crate::sync::{Condvar, Mutex};

/// Of `tail`: no place is given out any more.
const CLOSED: u64 = 1 << 63;

/// What is in a slot.
struct Entry<T> {
    /// Its place; 0 in a slot that was never used.
    place: u64,
    event: Option<T>,
}

/// What a subscriber finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// The event at this place.
    Event(u64, T),
    /// So many events were overwritten before they were read.
    Missed(u64),
    /// Nothing yet.
    Nothing,
    /// Nothing, and nothing will follow.
    Closed,
}

/// See the module documentation.
pub struct Ring<T> {
    /// `CLOSED | the next place`. Places begin at 1.
    tail: AtomicU64,
    slots: Box<[Swap<Entry<T>>]>,
    /// Held while entries are stored, and by a subscriber from its last look to its sleep. Never
    /// while anything runs that is not ours.
    door: Mutex<()>,
    posted: Condvar,
}

impl<T: Clone> Ring<T> {
    /// Room for `capacity` events, rounded up to a power of two.
    pub fn new(capacity: usize) -> Self {
        let unused = Arc::new(Entry {
            place: 0,
            event: None,
        });
        Ring {
            tail: AtomicU64::new(1),
            slots: (0..capacity.max(1).next_power_of_two())
                .map(|_| Swap::new(Arc::clone(&unused)))
                .collect(),
            door: Mutex::new(()),
            posted: Condvar::default(),
        }
    }

    /// For how many events there is room. Of more, posted at once, only the last are read.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The next `count` places: the first of them. `None`: closed. Lock-free.
    ///
    /// Whoever gets places must post into all of them, or into the last [`capacity`](Self::capacity) of
    /// them: readers wait there until they are posted, or until the ring has come round.
    pub fn reserve(&self, count: u64) -> Option<u64> {
        // E25: Relaxed: only compared.
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if tail & CLOSED != 0 {
                return None;
            }
            // E25: Release: what the events tell of comes before their places.
            match self.tail.compare_exchange_weak(
                tail,
                tail + count,
                Ordering::Release, // E25
                Ordering::Relaxed, // E25
            ) {
                Ok(first) => return Some(first),
                Err(now) => tail = now,
            }
        }
    }

    /// Puts `events` into their places, which were reserved. Waits for other publishers only.
    pub fn post(&self, events: impl IntoIterator<Item = (u64, T)>) {
        let entries: Vec<Arc<Entry<T>>> = events
            .into_iter()
            .map(|(place, event)| {
                Arc::new(Entry {
                    place,
                    event: Some(event),
                })
            })
            .collect();
        // E27: whoever is about to sleep has looked before we got here, and hears the call below, or
        // looks after we left.
        let door = self.door.lock();
        for entry in entries {
            let slot = self.slot(entry.place);
            // A publisher that was overtaken by a whole round does not bring the past back.
            if slot.with(|there| there.place < entry.place) {
                slot.store(entry); // E26
            }
        }
        drop(door);
        self.posted.notify_all();
    }

    /// Nothing will follow. What was reserved before is still posted, and read.
    pub fn close(&self) {
        // E27: as in `post`.
        let door = self.door.lock();
        // E25: Relaxed: it adds nothing to what the places before it say.
        self.tail.fetch_or(CLOSED, Ordering::Relaxed);
        drop(door);
        self.posted.notify_all();
    }

    /// Where a subscriber begins that is to see what happens from now on.
    pub fn now(&self) -> u64 {
        // E25: Acquire: what the events before this place tell of is visible to whoever looks.
        self.tail.load(Ordering::Acquire) & !CLOSED
    }

    /// Reads at `cursor`, and moves it past what was found. Takes no lock.
    pub fn read(&self, cursor: &mut u64) -> Found<T> {
        // E26: the entry is whole.
        let there = self.slot(*cursor).with(|there| {
            let event = (there.place == *cursor).then(|| there.event.clone());
            (there.place, event.flatten())
        });
        match there {
            (place, Some(event)) => {
                *cursor += 1;
                Found::Event(place, event)
            }
            (place, None) if place > *cursor => {
                // E25: Acquire: what the missed events told of is visible from here on. Not older than
                // `place`, whose reservation came to us with the entry (E26).
                let oldest = self.now() - self.slots.len() as u64;
                let missed = oldest - *cursor;
                *cursor = oldest;
                Found::Missed(missed)
            }
            // E25: Relaxed: the places before the end were all read.
            _ if self.tail.load(Ordering::Relaxed) == CLOSED | *cursor => Found::Closed,
            _ => Found::Nothing,
        }
    }

    /// [`read`](Self::read), as soon as there is something, or at `deadline` (`None`: whenever).
    pub fn wait(&self, cursor: &mut u64, deadline: Option<Instant>) -> Found<T> {
        let found = self.read(cursor);
        if found.is_something() {
            return found;
        }
        let mut door = self.door.lock(); // E27
        loop {
            let found = self.read(cursor);
            if found.is_something() {
                return found;
            }
            let (guard, timed_out) = self.posted.wait_deadline(door, deadline);
            door = guard;
            if timed_out {
                return self.read(cursor);
            }
        }
    }

    fn slot(&self, place: u64) -> &Swap<Entry<T>> {
        // The length is a power of two.
        &self.slots[place as usize & (self.slots.len() - 1)]
    }
}

impl<T> Found<T> {
    fn is_something(&self) -> bool {
        !matches!(self, Found::Nothing)
    }
}

#[cfg(all(test, not(weighbridge_loom)))]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn post(ring: &Ring<u64>, count: u64) {
        let first = ring.reserve(count).unwrap();
        ring.post((first..first + count).map(|place| (place, place)));
    }

    #[test]
    fn gaps_are_counted_exactly_and_the_newest_round_is_still_there() {
        let ring = Ring::new(3);
        assert_eq!(ring.slots.len(), 4);
        let mut cursor = ring.now();
        assert_eq!(ring.read(&mut cursor), Found::Nothing);
        post(&ring, 1);
        assert_eq!(ring.read(&mut cursor), Found::Event(1, 1));
        post(&ring, 6);
        assert_eq!(ring.read(&mut cursor), Found::Missed(2));
        for place in 4..8 {
            assert_eq!(ring.read(&mut cursor), Found::Event(place, place));
        }
        assert_eq!(ring.read(&mut cursor), Found::Nothing);
    }

    #[test]
    fn a_place_is_read_after_those_before_it() {
        let ring = Ring::new(4);
        let mut cursor = ring.now();
        let (a, b) = (ring.reserve(1).unwrap(), ring.reserve(1).unwrap());
        ring.post([(b, b)]);
        assert_eq!(ring.read(&mut cursor), Found::Nothing);
        ring.close();
        assert_eq!(ring.reserve(1), None);
        assert_eq!(ring.read(&mut cursor), Found::Nothing, "it ended too early");
        ring.post([(a, a)]);
        assert_eq!(ring.read(&mut cursor), Found::Event(a, a));
        assert_eq!(ring.read(&mut cursor), Found::Event(b, b));
        assert_eq!(ring.read(&mut cursor), Found::Closed);
        assert_eq!(ring.wait(&mut cursor, None), Found::Closed);
    }

    #[test]
    fn who_was_overtaken_by_a_round_posts_nothing() {
        let ring = Ring::new(2);
        let mut cursor = ring.now();
        let late = ring.reserve(1).unwrap();
        post(&ring, 2);
        ring.post([(late, late)]);
        assert_eq!(ring.read(&mut cursor), Found::Missed(1));
        assert_eq!(ring.read(&mut cursor), Found::Event(2, 2));
        assert_eq!(ring.read(&mut cursor), Found::Event(3, 3));
    }

    /// Every place is either read once, in order, or counted as missed.
    #[test]
    fn fast_publishers_and_slow_subscribers_add_up() {
        const EACH: u64 = 5_000;
        let ring = Ring::new(64);
        let start = ring.now();
        let publishers = AtomicU64::new(2);
        let lonely = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for size in [1, 3] {
                let (ring, publishers) = (&ring, &publishers);
                scope.spawn(move || {
                    (0..EACH).for_each(|_| post(ring, size));
                    // The last one closes. E25: the ring orders the events, this only the two of them.
                    if publishers.fetch_sub(1, Ordering::AcqRel) == 1 {
                        ring.close();
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    let (mut cursor, mut expected, mut read) = (start, start, 0u64);
                    loop {
                        match ring.wait(&mut cursor, None) {
                            Found::Event(place, event) => {
                                assert_eq!((place, event), (expected, expected));
                                expected += 1;
                                read += 1;
                            }
                            Found::Missed(missed) => expected += missed,
                            Found::Nothing => panic!("a wait without a deadline gave up"),
                            Found::Closed => break,
                        }
                    }
                    assert_eq!(expected, start + EACH * 4);
                    if read > 0 {
                        lonely.store(false, Ordering::Relaxed); // E25: read after the join
                    }
                });
            }
        });
        assert!(!lonely.into_inner(), "nobody read anything");
    }
}
