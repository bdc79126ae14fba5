//! Sources that fail where they are told to: at any of the registry's questions, or in the middle of the
//! bytes.
//!
//! What lives here: [`Faulty`], its [`Script`], and what operations need of it. What does not: which
//! operations there are (`operations`), faults of the operating system (`tap`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use weighbridge::memory::Memory;
use weighbridge::source::{InMemory, Source};
use weighbridge::{Dtype, Error, Filling, Plan, SetHandle, WeightHandle};

use crate::operations::Takes;
use crate::support::bytes;
use crate::world::{Contents, TARGET, World};

/// In how many pieces a faulty source reads.
const PIECES: usize = 4;

/// Where a script strikes: at a step of any kind, or at a piece of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Nowhere,
    /// Questions and pieces, counted together.
    Step(usize),
    Piece(usize),
}

type Blow = Box<dyn Fn() -> Result<(), Error> + Send + Sync>;

/// What happens, and when.
pub struct Script {
    at: At,
    blow: Blow,
    steps: AtomicUsize,
    pieces: AtomicUsize,
    struck: AtomicBool,
}

impl Script {
    pub fn new(at: At, blow: impl Fn() -> Result<(), Error> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Script {
            at,
            blow: Box::new(blow),
            steps: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            struck: AtomicBool::new(false),
        })
    }

    pub fn none() -> Arc<Self> {
        Self::new(At::Nowhere, || Ok(()))
    }

    pub fn struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }

    fn step(&self, at: At) -> Result<(), Error> {
        if at != self.at {
            return Ok(());
        }
        self.struck.store(true, Ordering::SeqCst);
        (self.blow)()
    }

    /// One of the questions. They have no error to answer with.
    fn question(&self) {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        let _ = self.step(At::Step(step));
    }

    fn piece(&self) -> Result<(), Error> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        let piece = self.pieces.fetch_add(1, Ordering::SeqCst);
        self.step(At::Step(step))?;
        self.step(At::Piece(piece))
    }
}

/// What a disk that fails says.
pub fn disk_error() -> Error {
    Error::Io {
        path: "/made/up".into(),
        op: "read",
        source: io::Error::from_raw_os_error(libc::EIO),
    }
}

pub struct Faulty {
    inner: Box<dyn Source>,
    /// Its own, if it differs from the inner one's.
    plan: Option<Plan>,
    wanted: Arc<Contents>,
    script: Arc<Script>,
    /// The bytes come in pieces of ours; otherwise as the inner source reads them.
    in_pieces: bool,
}

/// What `source` has, by name, read from it.
pub fn contents_of(source: &dyn Source) -> Contents {
    let plan = source.plan();
    let mut arena = vec![0; plan.arena_bytes() as usize];
    source.read_into(&mut arena).unwrap();
    let tensors = plan.tensors().iter();
    tensors
        .map(|tensor| (tensor.name().to_owned(), arena[tensor.range()].to_vec()))
        .collect()
}

/// A healthy source of what an operation takes, in memory.
fn healthy(world: &World, takes: Takes) -> InMemory {
    match takes {
        Takes::Checkpoint => {
            ["a", "b", "c"]
                .iter()
                .zip(6..)
                .fold(InMemory::new(), |set, (name, fill)| {
                    set.tensor(*name, Dtype::U8, [1000], vec![fill; 1000])
                        .unwrap()
                })
        }
        Takes::Adapter => crate::support::addition(1000, 7, world.base),
        Takes::Tensor => bytes(TARGET, 8),
    }
}

impl Faulty {
    /// In memory, read in pieces.
    pub fn new(world: &World, takes: Takes, script: &Arc<Script>) -> Self {
        let inner = healthy(world, takes);
        Faulty {
            wanted: Arc::new(contents_of(&inner)),
            inner: Box::new(inner),
            plan: None,
            script: Arc::clone(script),
            in_pieces: true,
        }
    }

    /// Any source that has `wanted`, and that reads itself.
    pub fn around(inner: impl Source + 'static, wanted: Arc<Contents>) -> Self {
        Faulty {
            inner: Box::new(inner),
            plan: None,
            wanted,
            script: Script::none(),
            in_pieces: false,
        }
    }

    /// With one more tensor, which is another set's.
    pub fn alias(mut self, name: &str, target: WeightHandle) -> Self {
        let plan = self.inner.plan().clone();
        self.plan = Some(plan.with_alias(name, target).unwrap());
        self
    }

    /// What it is going to have.
    pub fn contents(&self) -> Contents {
        Contents::clone(&self.wanted)
    }

    pub fn plan_now(&self) -> Plan {
        self.plan().clone()
    }

    pub fn base_now(&self) -> Option<SetHandle> {
        self.base()
    }

    /// Reads itself through the writers of `filling`.
    pub fn write_all(&self, filling: &Filling) -> Result<(), Error> {
        let mut whole = vec![0; filling.plan().arena_bytes() as usize];
        self.inner.read_into(&mut whole)?;
        for tensor in filling.plan().tensors() {
            let Ok(mut writer) = filling.writer(tensor.name()) else {
                continue; // A tie.
            };
            let bytes = &whole[tensor.range()];
            for piece in bytes.chunks(bytes.len().div_ceil(2).max(1)) {
                self.script.piece()?;
                writer.write(piece)?;
            }
        }
        Ok(())
    }
}

impl Source for Faulty {
    fn plan(&self) -> &Plan {
        self.script.question();
        self.plan.as_ref().unwrap_or_else(|| self.inner.plan())
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        self.script.question();
        if !self.in_pieces {
            return self.inner.read_into(arena);
        }
        let mut whole = vec![0; arena.len()];
        self.inner.read_into(&mut whole)?;
        let piece = arena.len().div_ceil(PIECES).max(1);
        for (to, from) in arena.chunks_mut(piece).zip(whole.chunks(piece)) {
            to.fill(0xAA); // What is left behind if it ends here.
            self.script.piece()?;
            to.copy_from_slice(from);
        }
        Ok(())
    }

    fn bring(&mut self) -> Option<Memory> {
        self.script.question();
        self.inner.bring()
    }

    fn declared(&self) -> Option<&str> {
        self.script.question();
        self.inner.declared()
    }

    fn unread(&self) -> Option<&str> {
        self.script.question();
        self.inner.unread()
    }

    fn base(&self) -> Option<SetHandle> {
        self.script.question();
        self.inner.base()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.script.question();
        }
    }
}
