//! A small registry: the shipping core with payloads that notice every mistake.
//!
//! What lives here: sets of one number, bytes that know when they are freed, metadata that knows
//! whether its bytes went first, and shorthands for commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::cell::UnsafeCell;
use weighbridge::__loom::sync::Mutex;
use weighbridge::__loom::sync::epoch::Participant;
use weighbridge::__loom::{
    Bond, Change, Expect, Hold, Holds, Key, Miss, Reclaimer, Refusal, Spine, StagedNode, Stays,
    Storage, View,
};

const MAGIC: u64 = 0x57E1_6B81_D6E5_AFE5;

/// Hands a participant that was registered beforehand to a model's thread, which is a coroutine of
/// the same system thread. Registering inside the threads multiplies the executions by a thousand.
pub struct Send2<T>(pub T);
// SAFETY: see above.
unsafe impl<T> Send for Send2<T> {}

/// Counts over one execution. Plain std: they are looked at after everything was joined.
#[derive(Default)]
pub struct Tally {
    made: AtomicUsize,
    bytes: AtomicUsize,
    nodes: AtomicUsize,
}

impl Tally {
    /// Bytes that were freed so far.
    pub fn freed(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Everything that was made is gone, once.
    ///
    /// # Panics
    /// If not.
    pub fn settle(&self) {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        let made = count(&self.made);
        assert_eq!(count(&self.bytes), made, "bytes leaked or freed twice");
        assert_eq!(count(&self.nodes), made, "nodes leaked or freed twice");
    }
}

/// A generation's bytes: a number that a lease reads and the reclaimer overwrites. If the two are not
/// ordered, the checker reports it.
pub struct Load {
    value: UnsafeCell<u64>,
    gone: Arc<AtomicUsize>,
    tally: Arc<Tally>,
}

// SAFETY: the cell is read under leases and written by the reclaimer; that these are ordered is what
// the models check.
unsafe impl Send for Load {}
// SAFETY: as above.
unsafe impl Sync for Load {}

impl Load {
    /// What a lease of it reads.
    pub fn get(&self) -> u64 {
        // SAFETY: whoever has a reference to it has a lease; the checker reports it otherwise.
        self.value.with(|at| unsafe { *at })
    }

    /// Its memory is somebody else's for the time being.
    fn lose(&self) {
        // SAFETY: the bytes are ours alone, or the checker says so.
        self.value.with_mut(|at| unsafe { *at = 0 });
    }

    /// Its bytes were read once more.
    fn read_again(&self, value: u64) {
        // SAFETY: as in `lose`.
        self.value.with_mut(|at| unsafe { *at = value });
    }
}

impl Storage for Load {
    fn dismantle(self, _: &mut dyn FnMut()) {
        self.lose();
        if !std::thread::panicking() {
            assert_eq!(
                self.gone.fetch_add(1, Ordering::Relaxed),
                0,
                "bytes handed over twice"
            );
        }
        self.tally.bytes.fetch_add(1, Ordering::Relaxed);
    }
}

/// A generation's metadata.
pub struct Meta {
    magic: u64,
    value: UnsafeCell<u64>,
    /// What only leases look at: what its bytes are by now.
    noted: UnsafeCell<u64>,
    gone: Arc<AtomicUsize>,
    tally: Arc<Tally>,
}

// SAFETY: written when it is made and when it is dropped, read under guards and leases.
unsafe impl Send for Meta {}
// SAFETY: as above.
unsafe impl Sync for Meta {}

impl Meta {
    /// The number, if the node is still there.
    pub fn value(&self) -> u64 {
        assert_eq!(self.magic, MAGIC, "a node was read after it was freed");
        // SAFETY: nobody writes before the drop.
        self.value.with(|at| unsafe { *at })
    }

    /// The bytes are back.
    fn note(&self, load: &Load) {
        let now = load.get();
        // SAFETY: nobody has a lease, or the checker says so.
        self.noted.with_mut(|at| unsafe { *at = now });
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        // SAFETY: the node is being freed; an unordered reader is reported.
        self.value.with_mut(|at| unsafe { *at = u64::MAX });
        self.tally.nodes.fetch_add(1, Ordering::Relaxed);
        if !std::thread::panicking() {
            assert_eq!(self.magic, MAGIC, "a node was freed twice");
            assert_eq!(
                self.gone.load(Ordering::Relaxed),
                1,
                "a node went before its bytes"
            );
        }
        self.magic = 0;
    }
}

/// The registry.
pub struct Rig {
    /// The shipping core.
    pub spine: Spine<Meta, Load>,
    /// The right to write its sets, where a model has more than one thread that does.
    pub writing: Mutex<()>,
    tally: Arc<Tally>,
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Rig {
    /// Frees on the spot.
    pub fn new() -> Self {
        Self::with(Arc::new(Reclaimer::closed()))
    }

    /// Frees through `queue`.
    pub fn with(queue: Arc<Reclaimer>) -> Self {
        Rig {
            spine: Spine::new(queue),
            writing: Mutex::new(()),
            tally: Arc::default(),
        }
    }

    /// A participant, registered and past its first pin.
    pub fn member(&self) -> Send2<Participant> {
        let member = self.spine.register();
        drop(member.pin());
        Send2(member)
    }

    /// What a node is made of.
    fn parts(&self, value: u64) -> (Meta, Load) {
        let gone = Arc::new(AtomicUsize::new(0));
        self.tally.made.fetch_add(1, Ordering::Relaxed);
        let meta = Meta {
            magic: MAGIC,
            value: UnsafeCell::new(value),
            noted: UnsafeCell::new(value),
            gone: Arc::clone(&gone),
            tally: Arc::clone(&self.tally),
        };
        let load = Load {
            value: UnsafeCell::new(value),
            gone,
            tally: Arc::clone(&self.tally),
        };
        (meta, load)
    }

    /// A node of its own.
    pub fn node(&self, tag: u32, value: u64, bond: Option<Bond>) -> StagedNode<Meta, Load> {
        let (meta, load) = self.parts(value);
        let queue = Arc::clone(self.spine.reclaimer());
        StagedNode::new(tag, bond.into_iter().collect(), meta, load, queue)
    }

    /// A new generation for `key`.
    pub fn put(&self, key: Key, expect: Expect, value: u64) -> Change<Meta, Load> {
        Change::new(key.slot, expect, self.node(key.tag, value, None))
    }

    /// A new generation for a living `key`.
    pub fn swap(&self, key: Key, value: u64) -> Change<Meta, Load> {
        self.put(key, Expect::Tenant(key.tag), value)
    }

    /// A new generation for a living `key`, on the base that the same commit makes current.
    pub fn along(&self, key: Key, base: Key, value: u64) -> Change<Meta, Load> {
        let bond = Bond { base, birth: None };
        let node = self.node(key.tag, value, Some(bond));
        Change::new(key.slot, Expect::Tenant(key.tag), node)
    }

    /// A new generation for a living `key`, on several others.
    pub fn standing(
        &self,
        key: Key,
        expect: Expect,
        on: Vec<Bond>,
        value: u64,
    ) -> Change<Meta, Load> {
        let (meta, load) = self.parts(value);
        let queue = Arc::clone(self.spine.reclaimer());
        let node = StagedNode::new(key.tag, on, meta, load, queue);
        Change::new(key.slot, expect, node)
    }

    /// A generation without bytes for a living `key`.
    pub fn vacate(&self, key: Key) -> Change<Meta, Load> {
        let (meta, load) = self.parts(u64::MAX);
        load.dismantle(&mut || {});
        let queue = Arc::clone(self.spine.reclaimer());
        let node = StagedNode::absent(key.tag, Vec::new(), meta, queue);
        Change::new(key.slot, Expect::Tenant(key.tag), node)
    }

    /// A tombstone for a living `key`.
    pub fn bury(&self, key: Key) -> Change<Meta, Load> {
        let node = StagedNode::tombstone(key.tag, Arc::clone(self.spine.reclaimer()));
        Change::new(key.slot, Expect::Tenant(key.tag), node)
    }

    /// Commits, with the collector pushed three times so that garbage goes inside the model.
    pub fn commit(
        &self,
        member: &Participant,
        changes: &mut [Change<Meta, Load>],
    ) -> Result<u64, Refusal> {
        let answer = self
            .spine
            .view(member)
            .commit(changes, |_| (), |_, _, _| {});
        if cfg!(weighbridge_flush) {
            for _ in 0..3 {
                member.pin().flush();
            }
        }
        answer
    }

    /// Publishes a new set with value 0.
    ///
    /// # Panics
    /// If that is refused.
    pub fn publish(&self, member: &Participant) -> Key {
        let key = self.spine.allocate().expect("a slot");
        self.commit(member, &mut [self.put(key, Expect::Vacant, 0)])
            .expect("published");
        key
    }

    /// Takes the bytes of a generation away. Whoever calls it may write the set.
    pub fn evict(
        &self,
        member: &Participant,
        key: Key,
        birth: u64,
        idle: bool,
    ) -> Result<Load, Stays> {
        let view = self.spine.view(member);
        // SAFETY: the model's other writers of this set, if there are any, hold `writing`.
        let load = unsafe { view.evict(key, birth, idle, |_| true) }?;
        load.lose();
        Ok(load)
    }

    /// Brings them back, and has the first lease of them. Whoever calls it may write the set.
    pub fn restore(
        &self,
        member: &Participant,
        key: Key,
        birth: u64,
        load: Load,
        value: u64,
    ) -> Result<Hold<Meta, Load>, Load> {
        load.read_again(value);
        let view = self.spine.view(member);
        // SAFETY: as in `evict`.
        unsafe { view.restore(key, birth, load, Meta::note) }
    }

    /// Leases `keys` and reads both sides of each.
    pub fn read(&self, member: &Participant, keys: &[Key]) -> Result<Vec<u64>, Miss> {
        self.lease(member, keys)
            .map(|holds| holds.iter().map(value).collect())
    }

    /// Leases `keys`.
    pub fn lease(&self, member: &Participant, keys: &[Key]) -> Result<Holds<Meta, Load>, Miss> {
        self.spine.view(member).acquire(keys)
    }

    /// Leases `key`.
    pub fn hold(&self, member: &Participant, key: Key) -> Result<Hold<Meta, Load>, Miss> {
        self.spine.view(member).acquire_one(key)
    }

    /// The number a view sees.
    pub fn peek(view: &View<'_, Meta, Load>, key: Key) -> Option<u64> {
        view.resolve(key)
            .and_then(|node| node.meta())
            .map(Meta::value)
    }

    /// The end: everything that was made is gone, once. `members` are the participants that the
    /// threads gave back.
    ///
    /// # Panics
    /// If something is left, or went twice.
    pub fn finish(self, members: Vec<Send2<Participant>>) {
        self.sweep(members).settle();
    }

    /// Drops the registry. Leases may outlive it; settle when they are gone.
    pub fn sweep(self, members: Vec<Send2<Participant>>) -> Arc<Tally> {
        let Rig { spine, tally, .. } = self;
        drop(spine);
        drop(members);
        tally
    }

    /// Bytes that were freed so far.
    pub fn freed(&self) -> usize {
        self.tally.freed()
    }
}

/// What a lease reads: metadata and bytes, which must agree.
pub fn value(hold: &Hold<Meta, Load>) -> u64 {
    let bytes = bytes(hold);
    assert_eq!(hold.meta().value(), bytes, "bytes of another generation");
    bytes
}

/// The same of bytes that may be others than the generation began with.
pub fn bytes(hold: &Hold<Meta, Load>) -> u64 {
    let bytes = hold.storage().get();
    // SAFETY: we have a lease; the checker reports it if that does not help.
    let noted = hold.meta().noted.with(|at| unsafe { *at });
    assert_eq!(noted, bytes, "noted of other bytes");
    bytes
}
