//! A checkpoint of layers whose bytes follow from their names, read as slowly and as badly as a test says.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use weighbridge::source::{Pieces, ReadPieces, Source, Streamed};
use weighbridge::{Dtype, Error, Parts, Plan, WeightRegistry, WindowSize};

/// Bytes of each layer: two tensors.
pub const LAYER: u64 = 2 * TENSOR;
const TENSOR: u64 = 4096;

/// What the tests do to it, and see of it.
#[derive(Default)]
pub struct Disk {
    /// Tensors that were read, by layer; of what stays: nothing.
    pub reads: Mutex<Vec<usize>>,
    /// Layers that cannot be read.
    pub broken: Mutex<HashSet<usize>>,
    /// Layers whose reading panics.
    pub panics: Mutex<HashSet<usize>>,
    /// Layers that have other bytes.
    pub changed: Mutex<HashSet<usize>>,
    /// How many tensors of layers may be read before it stops; `None`: any number.
    permits: Mutex<Option<u64>>,
    opens: Condvar,
    pub waiting: AtomicU64,
}

impl Disk {
    pub fn close(&self) {
        self.allow(0);
    }

    /// So many layers are read, and then nobody reads one.
    pub fn allow(&self, layers: u64) {
        *self.permits.lock().unwrap() = Some(layers * LAYER / TENSOR);
        self.opens.notify_all();
    }

    pub fn open(&self) {
        *self.permits.lock().unwrap() = None;
        self.opens.notify_all();
    }

    /// The layers that were read since this was called last, in order.
    pub fn take_reads(&self) -> Vec<usize> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }
}

/// The byte at `at` of a tensor.
pub fn byte(name: &str, at: u64, version: u8) -> u8 {
    let salt = name
        .bytes()
        .fold(version, |salt, byte| salt.wrapping_mul(31) ^ byte);
    (at as u8).wrapping_mul(167) ^ (at >> 8) as u8 ^ salt
}

pub struct Layers {
    plan: Plan,
    version: u8,
    disk: Arc<Disk>,
    declared: Option<String>,
}

impl Layers {
    pub fn new(layers: usize, version: u8, disk: &Arc<Disk>) -> Self {
        let of = |layer| ["a", "b"].map(|name| format!("layers.{layer}.{name}"));
        let mut names: Vec<String> = (0..layers).flat_map(of).collect();
        names.push("embed".to_owned());
        let tensors = names.into_iter();
        let tensors = tensors.map(|name| (name, Dtype::U8, vec![TENSOR as usize]));
        Self::of(&tensors.collect::<Vec<_>>(), version, disk)
    }

    /// With these tensors.
    pub fn of(tensors: &[(String, Dtype, Vec<usize>)], version: u8, disk: &Arc<Disk>) -> Self {
        Layers {
            plan: Plan::of("layers", tensors.iter().cloned()).unwrap(),
            version,
            disk: Arc::clone(disk),
            declared: Some(format!("v{version}")),
        }
    }

    /// Nobody vouches for it: it is hashed.
    pub fn hashed(mut self) -> Self {
        self.declared = None;
        self
    }

    /// A window of so many layers.
    pub fn streamed(self, window: u32) -> Streamed<Self> {
        Streamed::new(self, &Parts::layers(), WindowSize::Parts(window)).unwrap()
    }
}

impl ReadPieces for Layers {
    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let name = self.plan.tensors()[tensor].name();
        let layer = name
            .split('.')
            .nth(1)
            .map(|layer| layer.parse::<usize>().unwrap());
        let mut version = self.version;
        if let Some(layer) = layer {
            let mut permits = self.disk.permits.lock().unwrap();
            self.disk.waiting.fetch_add(1, Ordering::Relaxed);
            while *permits == Some(0) {
                permits = self.disk.opens.wait(permits).unwrap();
            }
            *permits = permits.map(|left| left - 1);
            drop(permits);
            self.disk.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.disk.broken.lock().unwrap().contains(&layer) {
                return Err(Error::InvalidTensor {
                    tensor: name.to_owned(),
                    reason: "a hole in the disk".to_owned(),
                });
            }
            assert!(
                !self.disk.panics.lock().unwrap().contains(&layer),
                "on purpose"
            );
            if name.ends_with('a') && offset == 0 {
                self.disk.reads.lock().unwrap().push(layer);
            }
            if self.disk.changed.lock().unwrap().contains(&layer) {
                version = !version;
            }
        }
        (offset..)
            .zip(bytes)
            .for_each(|(at, to)| *to = byte(name, at, version));
        Ok(())
    }
}

impl Source for Layers {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn read_into(&self, arena: &mut [u8]) -> Result<(), Error> {
        let all = self.plan.tensors().iter().enumerate();
        let mut all = all.into_iter();
        all.try_for_each(|(at, tensor)| self.read(at, 0, &mut arena[tensor.range()]))
    }

    fn pieces(&self) -> Option<Pieces<'_>> {
        Some(Pieces::of(&self.plan, self))
    }

    fn declared(&self) -> Option<&str> {
        self.declared.as_deref()
    }
}

/// Is `part` that layer of that version?
pub fn check(part: &weighbridge::Part<'_>, layer: usize, version: u8) {
    assert_eq!(
        (part.index(), part.name()),
        (layer, &*format!("layers.{layer}"))
    );
    let mut seen = 0;
    for weight in part.iter() {
        let weight = weight.unwrap();
        let right = |(at, there): (u64, &u8)| *there == byte(weight.name(), at, version);
        assert!((0..).zip(weight.bytes()).all(right), "{}", weight.name());
        seen += weight.bytes().len() as u64;
    }
    assert_eq!(seen, LAYER);
}

pub fn registry() -> Arc<WeightRegistry> {
    Arc::new(WeightRegistry::builder().build().unwrap())
}
