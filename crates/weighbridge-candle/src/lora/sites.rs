//! Where a model reads adapters.
//!
//! What lives here: [`Sites`], collected while a model is built, and what it was built from. What does not:
//! which of an adapter's modules is for which site (`fitting`).

use weighbridge::{Generation, Identity, LeasedSet, SetHandle, SetName};

/// The layers of a model that read adapters, and the generation of the base that it was built from: see
/// [`RegistryBackend::sites`](crate::RegistryBackend::sites).
#[derive(Clone, Debug)]
pub struct Sites {
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
    pub(super) base: SetHandle,
    pub(super) index: usize,
}

impl Sites {
    pub(crate) fn of(base: LeasedSet<'_>) -> Self {
        Sites {
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
