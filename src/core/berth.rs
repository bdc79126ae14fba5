//! Bytes that go and come back while their generation stays current.
//!
//! What lives here: taking the bytes of an unleased generation away (V1) and bringing them back (V2). What
//! does not: the word that decides between these and an acquire (`state`), where the bytes go and come
//! from, who may write a set (`registry`).
//!
//! Neither is a commit: they change no number, no metadata and nothing of what is current. They happen
//! by who may write the set, so that nobody supersedes it meanwhile.

use std::ptr::NonNull;

use super::Key;
use super::node::{Hold, Storage};
use super::state::Stays;
use super::view::View;

impl<'s, M: Send + Sync + 'static, S: Storage> View<'s, M, S> {
    /// V1: takes the bytes of `key` away, if nobody has a lease, if `own` says that they are its own, and if
    /// it is what it was: the generation of this number. With `idle`, only if nobody had a lease since its
    /// visited bit was last cleared, either.
    ///
    /// An acquire comes first, and the bytes stay, or after this, and is told "not resident". Lock-free:
    /// an attempt is repeated only when an acquire, a clone or a release went through.
    ///
    /// # Safety
    /// The caller may write the set: no commit on it, no other `evict` and no `restore` runs meanwhile,
    /// and this view was opened since the last of them.
    pub unsafe fn evict(
        &self,
        key: Key,
        birth: u64,
        idle: bool,
        own: impl FnOnce(&S) -> bool,
    ) -> Result<S, Stays> {
        let node = self.resolve(key).filter(|node| node.birth() == birth);
        let node = node.ok_or(Stays::Dead)?;
        // SAFETY: current and not killed; only who may write the set changes it, and that is the caller.
        if unsafe { node.storage() }.is_some_and(|storage| !own(storage)) {
            return Err(Stays::Shared);
        }
        node.vitals().state().evict(idle)?;
        // SAFETY: absent since this moment, current and not killed: the caller excludes commits.
        unsafe { node.swap_storage(None) }.ok_or(Stays::Absent)
    }

    /// What `look` says of the bytes of `key`, if it is the generation of this number and has some.
    ///
    /// # Safety
    /// As [`evict`](Self::evict).
    pub unsafe fn look_at<R>(&self, key: Key, birth: u64, look: impl FnOnce(&S) -> R) -> Option<R> {
        let node = self.resolve(key).filter(|node| node.birth() == birth)?;
        // SAFETY: current and not killed; only who may write the set changes it, and that is the caller.
        unsafe { node.storage() }.map(look)
    }

    /// V2: gives the generation of this number its bytes back, if it is current and absent; or returns
    /// them. From here on it can be leased, and the caller has the first lease.
    ///
    /// `note` may change what the metadata says of the bytes, where only leases look: there is none, and
    /// whoever takes the next one sees it (E70), as whoever had one before has looked (E71).
    ///
    /// # Safety
    /// As [`evict`](Self::evict).
    pub unsafe fn restore(
        &self,
        key: Key,
        birth: u64,
        storage: S,
        note: impl FnOnce(&M, &S),
    ) -> Result<Hold<M, S>, S> {
        let node = self.resolve(key);
        let node = node.filter(|node| node.birth() == birth && node.is_absent());
        let Some(node) = node else {
            return Err(storage);
        };
        if let Some(meta) = node.meta() {
            note(meta, &storage);
        }
        // SAFETY: absent, current and not killed: the caller excludes commits and other restores.
        let before = unsafe { node.swap_storage(Some(storage)) };
        debug_assert!(before.is_none(), "what is absent has no bytes");
        node.vitals().state().restore();
        // SAFETY: the one lease that `restore` has made goes into the hold; `resolve` found no tombstone.
        Ok(unsafe { Hold::adopt(NonNull::from(node)) })
    }
}
