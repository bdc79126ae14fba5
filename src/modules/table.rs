//! The table of a set's modules: module -> (out_features, in_features).
//!
//! What lives here: [`ModuleTable`], and what it is made from beside tensors. What does not: how packed
//! shapes are read (`packed`), reading configurations and small tensors (`source::quantised`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::linear::{Linear, Module, Side, WeightFormat};
use super::packed::{self, Parts};
use crate::layout::info::TensorInfo;

/// What a source knows of its modules beyond the names and shapes of its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Known {
    format: WeightFormat,
    /// (out, in) as the set's own tensors spell them out.
    written: BTreeMap<Arc<str>, (usize, usize)>,
    /// (out, in) as the engine says.
    given: BTreeMap<Arc<str>, (usize, usize)>,
}

impl Known {
    pub(crate) fn new(format: WeightFormat, written: BTreeMap<Arc<str>, (usize, usize)>) -> Self {
        Known {
            format,
            written,
            given: BTreeMap::new(),
        }
    }

    pub(crate) fn give<N: AsRef<str>>(
        &mut self,
        modules: impl IntoIterator<Item = (N, usize, usize)>,
    ) {
        let modules = modules.into_iter();
        self.given.extend(
            modules.map(|(name, outputs, inputs)| (name.as_ref().into(), (outputs, inputs))),
        );
    }
}

/// What the modules of a set are to an adapter, by name. It is part of the set's layout: made when an
/// adapter is first bound, once for all generations that share the layout; no lease ever touches it.
///
/// Features come from the engine ([`Plan::modules`](crate::Plan::modules)), or else from dense weights
/// and from the tensors of quantised ones; [the page on modules](crate::_documentation::design::modules)
/// lists the formats.
///
/// # Examples
/// ```
/// use weighbridge::WeightRegistry;
/// use weighbridge::modules::Module;
/// use weighbridge::source::Checkpoint;
///
/// let registry = WeightRegistry::builder().build()?;
/// let base = registry.publish("base", Checkpoint::open("fixtures/tiny-llama")?)?;
/// let lease = registry.acquire(base)?;
/// let table = lease.set(base)?.layout().module_table();
/// let Some(Module::Linear(up)) = table.get("model.layers.0.mlp.up_proj") else { panic!() };
/// assert_eq!((up.outputs(), up.inputs()), (256, 96));
/// assert_eq!(table.get("model.norm"), Some(Module::NotLinear));
/// assert_eq!(table.get("model.layers.9"), None);
/// # Ok::<(), weighbridge::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ModuleTable {
    /// Those that have a tensor of their own, and those the engine named.
    modules: HashMap<Arc<str>, Module>,
    /// The names of all tensors in order: they tell whether anything is below a name.
    names: Box<[Arc<str>]>,
}

impl ModuleTable {
    pub(crate) fn new<'t>(
        tensors: impl Iterator<Item = &'t TensorInfo>,
        known: &Known,
    ) -> ModuleTable {
        let mut names = Vec::new();
        let mut parts: HashMap<&str, Parts<'_>> = HashMap::new();
        for info in tensors {
            names.push(Arc::clone(&info.name));
            if let Some((module, part)) = packed::split(info.name()) {
                parts.entry(module).or_default().add(part, info);
            }
        }
        names.sort_unstable();
        let own = parts.iter().map(|(&name, parts)| {
            let written = known.written.get(name).copied();
            (Arc::from(name), parts.module(known.format, written))
        });
        let mut modules: HashMap<Arc<str>, Module> = own.collect();
        for (name, &(outputs, inputs)) in &known.given {
            let shards = match modules.get(name) {
                Some(Module::Linear(linear)) => (linear.outputs.shard, linear.inputs.shard),
                _ => (None, None),
            };
            let side = |size, shard| Side { size, shard };
            let linear = Linear {
                outputs: side(outputs, shards.0),
                inputs: side(inputs, shards.1),
            };
            modules.insert(Arc::clone(name), Module::Linear(linear));
        }
        ModuleTable {
            modules,
            names: names.into(),
        }
    }

    /// What `module` is; `None` if there is no tensor of it or below it. One look-up where the module
    /// has a tensor of its own, a binary search where it has not.
    pub fn get(&self, module: &str) -> Option<Module> {
        let own = self.modules.get(module).copied();
        own.or_else(|| self.holds(module).then_some(Module::Unchecked))
    }

    /// Is there a tensor below this name?
    fn holds(&self, module: &str) -> bool {
        let below = format!("{module}.");
        let at = self.names.partition_point(|name| **name < *below);
        let next = self.names.get(at);
        next.is_some_and(|name| name.starts_with(&below))
    }

    /// The modules that have tensors of their own which do not tell their features, by name.
    pub fn unchecked(&self) -> Vec<&str> {
        let mut unchecked: Vec<&str> = self
            .modules
            .iter()
            .filter(|(_, module)| **module == Module::Unchecked)
            .map(|(name, _)| &**name)
            .collect();
        unchecked.sort_unstable();
        unchecked
    }
}
