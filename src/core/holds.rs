//! The leases of one acquire, in the order in which they were asked for.
//!
//! What lives here: the container. What does not: taking them (`view`), giving one back (`node`).
//!
//! One and two (a base, an adapter) need no heap. Their values are built in registers and stored
//! once: a vector with an inline buffer is written by eights, moved by sixteens, and on the way from
//! here to the caller every such move waits for the stores before it.

use std::convert::Infallible;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::slice;

use super::node::{Hold, Storage};

/// See the module documentation.
pub enum Holds<M: Send + Sync + 'static, S: Storage> {
    /// Of one set.
    One(Hold<M, S>),
    /// Of two.
    Two(Apart<[Hold<M, S>; 2]>),
    /// Of more, or of none.
    Many(Apart<Vec<Hold<M, S>>>),
}

/// What ends out of line, so that the end of one lease alone saves no registers for it.
pub struct Apart<T>(ManuallyDrop<T>);

impl<T> Apart<T> {
    fn new(value: T) -> Self {
        Apart(ManuallyDrop::new(value))
    }
}

impl<T> Drop for Apart<T> {
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: once, and nothing looks at it afterwards. Guarded by `evict_two`.
        unsafe { ManuallyDrop::drop(&mut self.0) }
    }
}

impl<M: Send + Sync + 'static, S: Storage> Holds<M, S> {
    /// Asks `one` for each of `count` holds, in order. If it fails, those before it are given back.
    #[inline(always)]
    pub(super) fn collect<E>(
        count: usize,
        mut one: impl FnMut(usize) -> Result<Hold<M, S>, E>,
    ) -> Result<Self, E> {
        match count {
            1 => Ok(Holds::One(one(0)?)),
            2 => {
                let first = one(0)?;
                Ok(Holds::Two(Apart::new([first, one(1)?])))
            }
            _ => Self::collect_many(count, one),
        }
    }

    /// Out of line, so that the two above are small enough to be part of their caller.
    #[inline(never)]
    fn collect_many<E>(
        count: usize,
        mut one: impl FnMut(usize) -> Result<Hold<M, S>, E>,
    ) -> Result<Self, E> {
        let mut many = Vec::with_capacity(count);
        for index in 0..count {
            many.push(one(index)?);
        }
        Ok(Holds::Many(Apart::new(many)))
    }
}

impl<M: Send + Sync + 'static, S: Storage> Clone for Holds<M, S> {
    fn clone(&self) -> Self {
        let Ok(holds) =
            Holds::collect(self.len(), |index| Ok::<_, Infallible>(self[index].clone()));
        holds
    }
}

impl<M: Send + Sync + 'static, S: Storage> Deref for Holds<M, S> {
    type Target = [Hold<M, S>];

    #[inline]
    fn deref(&self) -> &[Hold<M, S>] {
        match self {
            Holds::One(one) => slice::from_ref(one),
            Holds::Two(two) => &*two.0,
            Holds::Many(many) => &many.0,
        }
    }
}
