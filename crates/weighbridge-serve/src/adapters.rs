//! Adapters that come and go while requests run.
//!
//! What lives here: [`Adapters`]: load, load in place, unload, list, with the limits, and the room for one that is
//! loaded by hand. What does not: what a client is told (`http::lora`), where paths may lead (`roots`), room for what a
//! request wants (the registry's own affair).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use weighbridge::source::{Evictable, PeftAdapter, Source};
use weighbridge::{Demand, Estimate, Retirement, SetHandle, SetKind, SetName};

use crate::error::StartError;
use crate::options::Options;
use crate::roots::{self, Outside, Roots};
use crate::turns::{Turn, Turns};
use crate::world::World;

/// How often what is unloaded in the middle of a load is looked at again.
const TRIES: usize = 8;

pub(crate) struct Adapters {
    world: Arc<World>,
    roots: Roots,
    most: usize,
    turns: Arc<Turns>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Outside(#[from] Outside),
    #[error(
        "{0} adapters are loaded or being loaded, and no more may be: unload one, or start with a greater --max-adapters"
    )]
    TooMany(usize),
    #[error(
        "the lora adapter {0:?} has already been loaded; to load it in place, set load_inplace to true"
    )]
    There(String),
    #[error("the lora adapter {0:?} cannot be found")]
    Unknown(String),
    #[error("{0:?} is the model, not a lora adapter")]
    IsModel(String),
    #[error(transparent)]
    Unfit(#[from] Box<weighbridge_candle::Error>),
    /// There would be room if others did not have it at this moment.
    #[error("{bytes} bytes do not fit at this moment. {}", in_the_way(.leased))]
    InUse { bytes: u64, leased: Vec<SetName> },
    #[error(
        "{requested} bytes do not fit: of {limit} that there may be, {in_use} are taken, and what could go for them is not enough"
    )]
    NoRoom {
        requested: u64,
        in_use: u64,
        limit: u64,
    },
    /// It came of files, which are called as whoever named them called them.
    #[error("{message}")]
    Files {
        error: weighbridge::Error,
        message: String,
    },
    #[error(transparent)]
    Registry(#[from] weighbridge::Error),
}

/// One that is loaded.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) generation: u64,
    pub(crate) identity: String,
}

impl Adapters {
    /// With those that the options name.
    pub(crate) fn new(world: Arc<World>, options: &Options) -> Result<Self, StartError> {
        let adapters = Adapters {
            world,
            roots: Roots::new(&options.roots)?,
            most: options.max_adapters,
            turns: Arc::default(),
        };
        for (name, directory) in &options.adapters {
            let loaded = adapters.load_from(name, directory, false);
            loaded.map_err(|refused| match refused {
                Refused::Registry(source) => StartError::Weights {
                    what: format!("{name}={}", directory.display()),
                    source: Box::new(source),
                },
                // Words for requests do not fit here.
                Refused::There(name) => StartError::Option {
                    option: "--adapter",
                    reason: format!(
                        "{name} is given twice, or the name of an adapter that is built in"
                    ),
                },
                other => StartError::Option {
                    option: "--adapter",
                    reason: format!("{name}: {other}"),
                },
            })?;
        }
        Ok(adapters)
    }

    /// The right to load this name, when nobody else does, if there may be one more.
    pub(crate) async fn turn(&self, name: &str) -> Result<Turn, Refused> {
        let registry = &self.world.registry;
        let may = |coming: &BTreeSet<String>| {
            let new = coming
                .iter()
                .filter(|name| registry.lookup(name.as_str()).is_none());
            // Without the model.
            let taken = registry.stats().sets.saturating_sub(1) + new.count();
            if taken >= self.most && registry.lookup(name).is_none() {
                return Err(Refused::TooMany(taken));
            }
            Ok(())
        };
        self.turns.take(name, may).await
    }

    /// From a path that a request named. `in_place`: if it is loaded already, by what is there now. Requests that run
    /// end on what they began with. Reads files: not for a thread that serves others. Waits for no room: see
    /// [`Refused::InUse`]. Whoever calls this has the [turn](Self::turn).
    pub(crate) fn load(
        &self,
        name: &str,
        path: &str,
        in_place: bool,
    ) -> Result<SetHandle, Refused> {
        let real = self.roots.resolve(path)?;
        let loaded = self.load_from(name, &real, in_place);
        loaded.map_err(|refused| match refused {
            Refused::Registry(error) => {
                if (error.is_malformed() || error.is_io()) && roots::links_out(&real) {
                    return Outside::Linked.into();
                }
                // Where the server keeps them is nothing that a client needs to know.
                let message = error.to_string();
                let message = message.replace(&*real.to_string_lossy(), path);
                Refused::Files { error, message }
            }
            other => other,
        })
    }

    fn load_from(
        &self,
        name: &str,
        directory: &Path,
        in_place: bool,
    ) -> Result<SetHandle, Refused> {
        let registry = &self.world.registry;
        for _ in 0..TRIES {
            let there = self.find(name)?;
            if there.is_some() && !in_place {
                return Err(Refused::There(name.to_owned()));
            }
            let source = self.source(name, directory)?;
            let plan = source.plan();
            let bytes = plan.charged_bytes();
            let alone = Demand::new().plan("", plan);
            let demand = match there {
                None => alone.clone(),
                Some(set) => Demand::new().replacement(set, plan),
            };
            self.make_room(&demand, &alone, there);
            if let Some(leased) = self.in_the_way(&demand, &alone, there) {
                return Err(Refused::InUse { bytes, leased });
            }
            let done = match there {
                None => registry.publish(name, source),
                Some(set) => registry.replace(set, source).map(|_| set),
            };
            match done.map_err(|error| error.into_parts().0) {
                Ok(set) => return Ok(set),
                // It was unloaded between the two: then this is a new one.
                Err(weighbridge::Error::StaleHandle { .. }) if there.is_some() => {}
                Err(weighbridge::Error::OverLimit {
                    requested,
                    in_use,
                    limit,
                }) => {
                    return Err(match registry.estimate(&alone) {
                        Ok(Estimate::Never { .. }) => Refused::NoRoom {
                            requested,
                            in_use,
                            limit,
                        },
                        // There was room, and somebody else has it by now.
                        _ => Refused::InUse {
                            bytes,
                            leased: Vec::new(),
                        },
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refused::Unknown(name.to_owned()))
    }

    /// Those who have the room at this moment; `None` if it fits, and if it never does.
    fn in_the_way(
        &self,
        demand: &Demand,
        alone: &Demand,
        replaced: Option<SetHandle>,
    ) -> Option<Vec<SetName>> {
        let registry = &self.world.registry;
        match (registry.estimate(demand), replaced) {
            (Ok(Estimate::WhenReleased { leased, .. }), _) => Some(leased),
            // They came back meanwhile.
            (Ok(Estimate::AfterEvicting { .. }), _) => Some(Vec::new()),
            // Not beside what it replaces; and when that has gone?
            (Ok(Estimate::Never { .. }), Some(_)) => match registry.estimate(alone) {
                Ok(Estimate::WhenReleased { leased, .. }) => Some(leased),
                Ok(Estimate::Now { .. } | Estimate::AfterEvicting { .. }) => Some(Vec::new()),
                _ => None,
            },
            // What is wrong with a handle is told by what is done with it.
            _ => None,
        }
    }

    /// Idle adapters go, as they would for one that a request wants; they come back when one wants them. Where what is
    /// replaced and what replaces it do not fit together, the former goes, too, if nobody uses it and that is enough.
    fn make_room(&self, demand: &Demand, alone: &Demand, replaced: Option<SetHandle>) {
        let registry = &self.world.registry;
        let mut estimate = registry.estimate(demand);
        if let (Ok(Estimate::WhenReleased { .. } | Estimate::Never { .. }), Some(_)) =
            (&estimate, replaced)
        {
            estimate = registry.estimate(alone);
        }
        if let Ok(Estimate::AfterEvicting { sets, .. }) = estimate {
            for set in sets.iter().filter_map(|name| registry.lookup(name)) {
                // What somebody began to use meanwhile stays.
                let _ = registry.evict(set);
            }
        }
    }

    /// It goes from its directory and comes back from there when memory is short.
    /// What the model cannot apply as a whole is refused here, and not request by request.
    fn source(&self, name: &str, directory: &Path) -> Result<Evictable<PeftAdapter>, Refused> {
        let (directory, base) = (directory.to_owned(), self.world.base);
        let source = Evictable::opened_by(move || Ok(PeftAdapter::open(&directory)?.on(base)))?;
        let sites = self.world.model.sites();
        sites.check(name, source.plan()).map_err(Box::new)?;
        Ok(source)
    }

    /// New requests do not find it any more; those that were admitted end on their leases.
    pub(crate) fn unload(&self, name: &str) -> Result<Retirement, Refused> {
        let set = self.find(name)?;
        let set = set.ok_or_else(|| Refused::Unknown(name.to_owned()))?;
        self.world
            .registry
            .retire(set)
            .map_err(|error| match error {
                // Somebody else unloaded it between the two.
                weighbridge::Error::StaleHandle { .. } => Refused::Unknown(name.to_owned()),
                error => error.into(),
            })
    }

    /// The adapter of that name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<SetHandle>, Refused> {
        if name == self.world.name {
            return Err(Refused::IsModel(name.to_owned()));
        }
        Ok(self.world.registry.lookup(name))
    }

    /// By name.
    pub(crate) fn list(&self) -> Vec<Loaded> {
        let catalog = self.world.registry.catalog();
        let adapters = catalog
            .entries()
            .iter()
            .filter(|entry| entry.kind == SetKind::Adapter);
        let loaded = adapters.map(|entry| Loaded {
            name: entry.name.name().to_owned(),
            generation: entry.generation.number(),
            identity: entry.identity.to_string(),
        });
        loaded.collect()
    }
}

fn in_the_way(leased: &[SetName]) -> String {
    if leased.is_empty() {
        return "What has the room is being loaded, or on its way out".into();
    }
    let names: Vec<String> = leased.iter().map(SetName::to_string).collect();
    format!("What has the room is in use: {}", names.join(", "))
}
