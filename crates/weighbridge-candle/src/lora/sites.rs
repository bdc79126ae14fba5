//! Where a model reads adapters.
//!
//! What lives here: [`Sites`], collected while a model is built, and what it was built from. What does not:
//! which of an adapter's modules is for which site (`fitting`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use weighbridge::{Generation, Identity, LeasedSet, Plan, SetHandle, SetName, WeightKind};

use super::delta::has_floats;
use crate::Error;

/// The layers of a model that read adapters, and the generation of the base that it was built from: see
/// [`RegistryBackend::sites`](crate::RegistryBackend::sites). No two are the same: what is fitted to one is of no use to
/// a model that has another.
#[derive(Debug)]
pub struct Sites {
    pub(super) id: u64,
    pub(super) base: SetHandle,
    pub(super) name: SetName,
    pub(super) generation: Generation,
    pub(super) identity: Identity,
    pub(super) all: Vec<Layer>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) module: String,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// Which of them a layer is, and of which base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Of the sites.
    pub(super) id: u64,
    pub(super) base: SetHandle,
    pub(super) index: usize,
}

impl Sites {
    pub(crate) fn of(base: LeasedSet<'_>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Sites {
            // Relaxed: only that it is nobody else's matters.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            base: base.handle(),
            name: base.name().clone(),
            generation: base.generation(),
            identity: base.identity().clone(),
            all: Vec::new(),
        }
    }

    /// Another layer, by the name that adapters have for it.
    pub(super) fn add(&mut self, layer: Layer) -> Site {
        self.all.push(layer);
        Site {
            id: self.id,
            base: self.base,
            index: self.all.len() - 1,
        }
    }

    /// The base that the model was built from.
    pub fn base(&self) -> SetHandle {
        self.base
    }

    /// Its generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The modules that adapters may change, in the order in which the model was built.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = &str> {
        self.all.iter().map(|layer| layer.module.as_str())
    }

    /// Could an adapter of this plan be applied as a whole? To be asked before it is published: what is refused here
    /// would fail each of its requests. `name` is for the errors. Whether matrices have the layers' shapes is the
    /// registry's question when it is published, and [`Fitting::new`](super::Fitting::new)'s.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::NoSuchSite`], [`Error::Replaces`], [`Error::NoFloats`].
    pub fn check(&self, name: &str, plan: &Plan) -> Result<(), Error> {
        let adapter = plan
            .adapter()
            .ok_or_else(|| Error::NoAdapter { set: name.into() })?;
        for tensor in plan.tensors() {
            if let Some(replaced) = tensor.replaces() {
                return Err(Error::Replaces {
                    adapter: name.into(),
                    tensor: replaced.to_owned(),
                });
            }
            let is_matrix = matches!(tensor.kind(), WeightKind::LoraA | WeightKind::LoraB);
            let dtype = tensor.dtype().dtype();
            if let Some(dtype) = dtype.filter(|dtype| is_matrix && !has_floats(*dtype)) {
                return Err(Error::NoFloats {
                    tensor: tensor.name().to_owned(),
                    dtype,
                });
            }
        }
        let read: HashSet<&str> = self.modules().collect();
        let lost = adapter.modules().find(|(module, _)| !read.contains(module));
        match lost {
            Some((module, _)) => Err(Error::NoSuchSite {
                adapter: name.into(),
                module: module.to_owned(),
                sites: self.some(),
            }),
            None => Ok(()),
        }
    }

    /// The first few of them, for an error.
    pub(super) fn some(&self) -> String {
        const FEW: usize = 3;
        let few: Vec<&str> = self.modules().take(FEW).collect();
        match self.all.len().checked_sub(FEW) {
            _ if few.is_empty() => "nowhere".into(),
            None | Some(0) => few.join(", "),
            Some(more) => format!("{} and {more} more", few.join(", ")),
        }
    }
}
