//! Adapters that come and go while requests run.
//!
//! What lives here: [`Adapters`]: load, load in place, unload, list, with the limits, and the room for one that is
//! loaded by hand. What does not: what a client is told (`http::lora`), where paths may lead (`roots`), room for what a
//! request wants (the registry's own affair).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weighbridge::source::{Evictable, PeftAdapter, Source};
use weighbridge::{Demand, Estimate, Retirement, SetHandle, SetKind, SetName};

use crate::error::StartError;
use crate::options::Options;
use crate::roots::{self, Outside, Roots};
use crate::world::World;

/// How often a load looks again whether there is room. No event tells that a request has ended.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Adapters {
    world: Arc<World>,
    roots: Roots,
    most: usize,
    /// How long a load waits for room.
    patience: Duration,
    /// Names that are being loaded, each once: whoever wants to load one that is, waits. So two at once are one after the
    /// other, and the last place is not given away twice (a name is listed when its publish begins).
    coming: Mutex<BTreeSet<String>>,
    gone: Condvar,
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
    #[error("{error}. {}", in_the_way(.leased))]
    InUse {
        error: weighbridge::Error,
        leased: Vec<SetName>,
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
            patience: Duration::from_secs(options.room_timeout),
            coming: Mutex::default(),
            gone: Condvar::new(),
        };
        for (name, directory) in &options.adapters {
            let loaded = adapters.load_from(name, directory, false);
            loaded.map_err(|refused| match refused {
                Refused::Registry(source) => StartError::Weights {
                    what: format!("{name}={}", directory.display()),
                    source: Box::new(source),
                },
                other => StartError::Option {
                    option: "--adapter",
                    reason: other.to_string(),
                },
            })?;
        }
        Ok(adapters)
    }

    /// From a path that a request named. `in_place`: if it is loaded already, by what is there now. Requests that run
    /// end on what they began with. Reads files: not for a thread that serves others.
    pub(crate) fn load(
        &self,
        name: &str,
        path: &str,
        in_place: bool,
    ) -> Result<SetHandle, Refused> {
        let real = self.roots.resolve(path)?;
        let loaded = self.load_from(name, &real, in_place);
        loaded.map_err(|refused| match refused {
            Refused::Registry(_) if roots::links_out(&real) => Outside::Linked.into(),
            Refused::Registry(error) => {
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
        let _turn = self.turn(name)?;
        let until = Instant::now() + self.patience;
        loop {
            let there = self.find(name)?;
            if there.is_some() && !in_place {
                return Err(Refused::There(name.to_owned()));
            }
            let source = self.source(name, directory)?;
            let plan = source.plan();
            let alone = Demand::new().plan("", plan);
            let demand = match there {
                None => alone.clone(),
                Some(set) => Demand::new().replacement(set, plan),
            };
            if !self.make_room(&demand, &alone, there) && Instant::now() < until {
                std::thread::sleep(LOOK);
                continue;
            }
            let done = match there {
                None => registry.publish(name, source),
                Some(set) => registry.replace(set, source).map(|_| set),
            };
            match done.map_err(|error| error.into_parts().0) {
                Ok(set) => return Ok(set),
                // It was unloaded between the two: then this is a new one.
                Err(weighbridge::Error::StaleHandle { .. }) if there.is_some() => {}
                Err(error) if error.is_over_limit() => {
                    let leased = match registry.estimate(&alone) {
                        Ok(Estimate::WhenReleased { leased, .. }) => leased,
                        // There was room, and somebody else has it by now.
                        Ok(Estimate::Now { .. } | Estimate::AfterEvicting { .. }) => Vec::new(),
                        _ => return Err(error.into()),
                    };
                    if Instant::now() >= until {
                        return Err(Refused::InUse { error, leased });
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Idle adapters go, as they would for one that a request wants; they come back when one wants them. So does the one
    /// that is to be replaced, if both are too much and nobody uses it. `false`: others have the room at this moment.
    fn make_room(&self, demand: &Demand, alone: &Demand, replaced: Option<SetHandle>) -> bool {
        let registry = &self.world.registry;
        let going: Vec<SetHandle> = match registry.estimate(demand) {
            Ok(Estimate::AfterEvicting { sets, .. }) => {
                let sets = sets.iter();
                sets.filter_map(|name| registry.lookup(name)).collect()
            }
            Ok(Estimate::WhenReleased { .. } | Estimate::Never { .. }) => {
                replaced.into_iter().collect()
            }
            // What is wrong with a handle is told by what is done with it.
            Ok(_) | Err(_) => return true,
        };
        for set in going {
            // What somebody began to use meanwhile stays.
            let _ = registry.evict(set);
        }
        match registry.estimate(demand) {
            Ok(Estimate::AfterEvicting { .. } | Estimate::WhenReleased { .. }) => false,
            // Beside the one that it replaces; but without it?
            Ok(Estimate::Never { .. }) if replaced.is_some() => {
                matches!(registry.estimate(alone), Ok(Estimate::Never { .. }))
            }
            Ok(_) | Err(_) => true,
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

    /// The right to load this name, if there may be one more.
    fn turn<'a>(&'a self, name: &'a str) -> Result<Turn<'a>, Refused> {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        while coming.contains(name) {
            let woken = self.gone.wait(coming);
            coming = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let there: BTreeSet<String> = self.list().into_iter().map(|one| one.name).collect();
        let taken = there.union(&coming).count();
        if taken >= self.most && !there.contains(name) {
            return Err(Refused::TooMany(taken));
        }
        coming.insert(name.to_owned());
        Ok(Turn(self, name))
    }
}

struct Turn<'a>(&'a Adapters, &'a str);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let coming = self.0.coming.lock();
        coming
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.1);
        self.0.gone.notify_all();
    }
}

fn in_the_way(leased: &[SetName]) -> String {
    if leased.is_empty() {
        return "What has the room is being loaded, or on its way out".into();
    }
    let names: Vec<String> = leased.iter().map(SetName::to_string).collect();
    format!("What has the room is in use: {}", names.join(", "))
}
