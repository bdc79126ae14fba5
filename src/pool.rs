//! The pool: memory that nobody uses, kept for the next load.
//!
//! What lives here: keeping arenas, handing them out, giving them back to the system before anything is
//! refused for lack of room. What does not: the books (`ledger`), arenas themselves (`arena`), whose bytes
//! they were (`registry`).
//!
//! Most of a load from a warm file is the system's work of giving a process fresh pages. Memory that has its
//! pages already saves that, and costs room; how much it may cost is said by whoever makes the registry. By
//! default there is no pool. Small arenas are never in it: they are the allocator's, which keeps a pool of its own.
//!
//! Nothing is refused for the sake of the pool. Whoever takes bytes does so under the pool's lock (E81), in
//! one step of the ledger that gives up as many arenas as that takes, and lets go of the lock when their pages
//! are back. So an arena is in the pool, where whoever needs its room finds it, or its bytes are somebody's.
//! Two exceptions are on their way back, like bytes that were retired or evicted: the oldest, until they are
//! unmapped, when newer ones come; and what a load on demand was granted more than it needs, until its turn to read
//! comes. For the latter as few bytes as possible are taken.

use std::collections::HashSet;
use std::sync::Arc;

use crate::arena::{Arena, UNMAP_STEP};
use crate::error::Error;
use crate::ledger::{Account, Charge, Exchanged, Ledger, Need, Shortage};
use crate::sync::Mutex;

/// See the module documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    /// How many bytes it may have.
    most: u64,
    stock: Mutex<Stock>,
}

#[derive(Default)]
struct Stock {
    /// The oldest first.
    pooled: Vec<Pooled>,
    bytes: u64,
    closed: bool,
}

struct Pooled {
    // Freed first: the ledger is told when the pages are back.
    arena: Arena,
    charge: Charge,
}

/// Bytes that were taken, and an arena that may be used for them, with whatever is in it.
pub(crate) struct Supply {
    pub(crate) arena: Option<Arena>,
    pub(crate) charge: Charge,
}

impl From<Charge> for Supply {
    fn from(charge: Charge) -> Self {
        Supply {
            arena: None,
            charge,
        }
    }
}

impl Stock {
    /// The smallest arena that serves for `len` bytes without much of it going to waste; among equals the
    /// one that was used last. Not one of `but`.
    fn fit(&self, len: u64, but: &[usize]) -> Option<usize> {
        let all = self.pooled.iter().enumerate().rev();
        let fits = all.filter(|(at, one)| one.arena.is_worth(len) && !but.contains(at));
        let best = fits.min_by_key(|(_, one)| one.arena.charged());
        best.map(|(at, _)| at)
    }

    /// Adds arenas to `picked` until these have `bytes` more, as far as there are any: the smallest that is
    /// enough by itself, or else the largest, and so on. So little more goes than is needed.
    fn cover(&self, picked: &mut Vec<usize>, bytes: u64) {
        let size = |at: &usize| self.pooled[*at].arena.charged();
        let mut others: Vec<usize> = (0..self.pooled.len()).collect();
        if !picked.is_empty() {
            let known: HashSet<usize> = picked.iter().copied().collect();
            others.retain(|at| !known.contains(at));
        }
        others.sort_by_key(size);
        let mut left = bytes;
        while left > 0 {
            let enough = others.partition_point(|at| size(at) < left);
            match others.get(enough).copied() {
                Some(at) => {
                    picked.push(at);
                    return;
                }
                None => {
                    let Some(largest) = others.pop() else { return };
                    left -= size(&largest);
                    picked.push(largest);
                }
            }
        }
    }

    /// So many of the oldest have `bytes`.
    fn oldest(&self, bytes: u64) -> usize {
        let mut sum = 0;
        let mut sizes = self.pooled.iter().map(|one| one.arena.charged());
        let before = sizes.by_ref().take_while(|size| {
            let more = sum < bytes;
            sum += size;
            more
        });
        before.count()
    }

    fn charges<'s>(&'s self, picked: &'s [usize]) -> impl Iterator<Item = &'s Charge> {
        picked.iter().map(|&at| &self.pooled[at].charge)
    }

    /// In the order of `picked`.
    fn remove(&mut self, picked: &[usize]) -> Vec<Pooled> {
        if picked.is_empty() {
            return Vec::new();
        }
        let mut all: Vec<Option<Pooled>> = self.pooled.drain(..).map(Some).collect();
        let removed: Vec<Pooled> = picked.iter().filter_map(|&at| all[at].take()).collect();
        self.pooled = all.into_iter().flatten().collect();
        self.left(&removed);
        removed
    }

    fn left(&mut self, removed: &[Pooled]) {
        let bytes = removed.iter().map(|one| one.arena.charged());
        self.bytes -= bytes.sum::<u64>();
    }
}

fn free(arenas: impl IntoIterator<Item = Arena>, step: &mut dyn FnMut()) {
    for arena in arenas {
        arena.free_in_steps(UNMAP_STEP, step);
        step();
    }
}

impl Pool {
    /// One that may have `most` bytes.
    pub(crate) fn new(ledger: Ledger, most: u64) -> Self {
        Pool(Arc::new(Inner {
            ledger,
            most,
            stock: Mutex::new(Stock::default()),
        }))
    }

    /// [`Ledger::take`]. What is in the pool goes for it if that is necessary.
    ///
    /// # Errors
    /// As there: it does not fit, though nothing is in the pool any more.
    pub(crate) fn take(&self, account: Option<&Account>, bytes: u64) -> Result<Charge, Error> {
        self.take_for(account, bytes, None)
            .map(|taken| taken.charge)
    }

    /// The same, for an arena of `len` bytes. Perhaps with one.
    ///
    /// # Errors
    /// As [`take`](Self::take); and [`Error::OutOfMemory`].
    pub(crate) fn take_arena(&self, account: Option<&Account>, len: u64) -> Result<Supply, Error> {
        self.take_for(account, Arena::charge_for(len)?, Some(len))
    }

    fn take_for(
        &self,
        account: Option<&Account>,
        bytes: u64,
        len: Option<u64>,
    ) -> Result<Supply, Error> {
        let Inner {
            ledger,
            most,
            stock,
        } = &*self.0;
        if *most == 0 {
            return ledger.take(account, bytes).map(Supply::from);
        }
        let mut stock = stock.lock(); // E81
        let mut picked: Vec<usize> = len
            .and_then(|len| stock.fit(len, &[]))
            .into_iter()
            .collect();
        let (charge, rest) = loop {
            let old: Vec<&Charge> = stock.charges(&picked).collect();
            match ledger.take_in_place(&old, account, bytes) {
                Ok(taken) => break taken,
                Err(Error::OverLimit {
                    requested,
                    in_use,
                    limit,
                }) if picked.len() < stock.pooled.len() => {
                    stock.cover(&mut picked, requested - limit.saturating_sub(in_use));
                }
                Err(error) => return Err(error),
            }
        };
        let given = stock.remove(&picked);
        let mut used = None;
        let rest_of = given.into_iter().filter_map(|one| match len {
            Some(len) if used.is_none() => {
                let reused = one.arena.reuse(len);
                reused.map(|arena| used = Some(arena)).err()
            }
            _ => Some(one.arena),
        });
        free(rest_of, &mut || {});
        drop(rest);
        // Only now: whoever comes next would find bytes that nobody has, and that are not back.
        drop(stock);
        Ok(Supply {
            arena: used,
            charge,
        })
    }

    /// [`Ledger::exchange`], in place of what is in the pool and, if that does not suffice, of what `others`
    /// says. `lens`: of the arenas that are needed. The arenas that were given up are used for them, or freed, before
    /// the rest is dropped.
    ///
    /// # Errors
    /// By how much it does not fit, though nothing is in the pool any more. Nothing is changed then.
    pub(crate) fn exchange<'c>(
        &self,
        needs: &[Need],
        lens: &[u64],
        others: impl FnOnce(&Shortage) -> Vec<&'c Charge>,
    ) -> Result<(Exchanged, Vec<Arena>), Shortage> {
        let Inner { ledger, stock, .. } = &*self.0;
        let mut stock = stock.lock(); // E81
        let mut picked = Vec::new();
        for &len in lens {
            picked.extend(stock.fit(len, &picked));
        }
        let short = ledger.shortage(needs, stock.charges(&picked));
        stock.cover(&mut picked, short.total);
        let others = others(&ledger.shortage(needs, stock.charges(&picked)));
        let old: Vec<&Charge> = stock.charges(&picked).chain(others).collect();
        let exchanged = ledger.exchange(&old, needs)?;
        let given = stock.remove(&picked).into_iter();
        Ok((exchanged, given.map(|one| one.arena).collect()))
    }

    /// By how much `needs` do not fit, though nothing is in the pool any more.
    pub(crate) fn shortage(&self, needs: &[Need]) -> Shortage {
        let Inner { ledger, stock, .. } = &*self.0;
        let stock = stock.lock(); // E81
        ledger.shortage(needs, stock.pooled.iter().map(|one| &one.charge))
    }

    /// An arena that nobody uses any more. If it stays, the oldest may have to go for it: here, in pieces, and
    /// `step` is called between them.
    ///
    /// # Errors
    /// It is not to stay.
    pub(crate) fn keep(
        &self,
        arena: Arena,
        charge: Charge,
        step: &mut dyn FnMut(),
    ) -> Result<(), (Arena, Charge)> {
        let Inner { most, stock, .. } = &*self.0;
        debug_assert_eq!(arena.charged(), charge.bytes());
        if !arena.is_mapped() || arena.charged() > *most {
            return Err((arena, charge));
        }
        // E81. Whoever has it may be unmapping, and this is the reclaimer, who has news for others.
        let Some(mut stock) = stock.try_lock() else {
            return Err((arena, charge));
        };
        if stock.closed {
            return Err((arena, charge));
        }
        let over = (stock.bytes + arena.charged()).saturating_sub(*most);
        let oldest = stock.oldest(over);
        let gone: Vec<Pooled> = stock.pooled.drain(..oldest).collect();
        stock.left(&gone);
        gone.iter().for_each(|one| one.charge.unpool());
        charge.pool();
        stock.bytes += arena.charged();
        stock.pooled.push(Pooled { arena, charge });
        drop(stock);
        for Pooled { arena, charge } in gone {
            free([arena], step);
            drop(charge);
        }
        Ok(())
    }

    /// An arena of `len` bytes that were taken, also if the system has no more memory than what is kept.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn allocate(&self, len: u64) -> Result<Arena, Error> {
        match Arena::allocate(len) {
            Err(Error::OutOfMemory { .. }) if self.0.most > 0 => {
                // Also if there is nothing left: somebody else may have given it back a moment ago.
                self.empty();
                Arena::allocate(len)
            }
            answer => answer,
        }
    }

    /// Gives everything back to the system. Returns how many bytes.
    pub(crate) fn empty(&self) -> u64 {
        let mut bytes = 0;
        loop {
            // One at a time, so that nobody waits for all; its pages are back when the lock is let go of, as in
            // `take_for`.
            let mut stock = self.0.stock.lock(); // E81
            let Some(one) = stock.pooled.pop() else {
                return bytes;
            };
            stock.left(std::slice::from_ref(&one));
            let Pooled { arena, charge } = one;
            bytes += arena.charged();
            free([arena], &mut || {});
            drop(charge);
        }
    }

    /// The same, and keeps nothing from here on.
    pub(crate) fn close(&self) {
        self.0.stock.lock().closed = true; // E81
        self.empty();
    }
}
