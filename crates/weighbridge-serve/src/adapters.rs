//! Adapters that come and go while requests run.
//!
//! What lives here: [`Adapters`]: load, load in place, unload, list, with the limits, and the room for one that is
//! loaded by hand. What does not: what a client is told (`http::lora`), where paths may lead (`roots`), room for what a
//! request wants (the registry's own affair).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use weighbridge::source::{Evictable, PeftAdapter, Source};
use weighbridge::{Demand, Estimate, Retirement, SetHandle, SetKind, SetName};

use crate::error::StartError;
use crate::options::Options;
use crate::roots::{Outside, Roots};
use crate::world::World;

/// How often room is made for one load. What was evicted for it may come back for a request before it is used.
const TRIES: usize = 8;

pub(crate) struct Adapters {
    world: Arc<World>,
    roots: Roots,
    most: usize,
    /// Loads of new names that are under way. The registry counts names that are taken, and a name is taken when its
    /// publish begins; so this is what keeps two at once from both being the last that may.
    coming: Mutex<usize>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Outside(#[from] Outside),
    #[error(
        "{0} adapters are loaded, and no more may be: unload one, or start with a greater --max-adapters"
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
    /// There would be room if requests did not run on these.
    #[error("{error}. What has the room is in use: {}", joined(.leased))]
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
            coming: Mutex::new(0),
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
        let mut tries = TRIES;
        loop {
            let there = self.find(name)?;
            if there.is_some() && !in_place {
                return Err(Refused::There(name.to_owned()));
            }
            let source = self.source(name, directory)?;
            let plan = source.plan();
            let (demand, done) = match there {
                None => {
                    let _place = self.place()?;
                    let demand = Demand::new().plan("", plan);
                    (demand, registry.publish(name, source))
                }
                Some(set) => {
                    let demand = Demand::new().replacement(set, plan);
                    (demand, registry.replace(set, source).map(|_| set))
                }
            };
            match done.map_err(|error| error.into_parts().0) {
                Ok(set) => return Ok(set),
                // It was unloaded between the two: then this is a new one.
                Err(weighbridge::Error::StaleHandle { .. }) if there.is_some() => {}
                Err(error) if error.is_over_limit() && tries > 0 => {
                    tries -= 1;
                    self.make_room(&demand, error)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Idle adapters go, as they would for one that a request wants; they come back when one wants them. If that does
    /// not help: `error`, and who is in the way.
    fn make_room(&self, demand: &Demand, error: weighbridge::Error) -> Result<(), Refused> {
        let registry = &self.world.registry;
        match registry.estimate(demand) {
            Ok(Estimate::AfterEvicting { sets, .. }) => {
                for set in sets.iter().filter_map(|name| registry.lookup(name)) {
                    // What somebody began to use meanwhile stays.
                    let _ = registry.evict(set);
                }
                Ok(())
            }
            Ok(Estimate::WhenReleased { leased, .. }) => Err(Refused::InUse { error, leased }),
            // It fits by now; or what it would replace has gone.
            Ok(Estimate::Now { .. }) | Err(weighbridge::Error::StaleHandle { .. }) => Ok(()),
            Ok(_) | Err(_) => Err(error.into()),
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

    /// The right to load one more.
    fn place(&self) -> Result<Place<'_>, Refused> {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let there = self.list().len();
        if there + *coming >= self.most {
            return Err(Refused::TooMany(there));
        }
        *coming += 1;
        Ok(Place(self))
    }
}

struct Place<'a>(&'a Adapters);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.coming.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

fn joined(names: &[SetName]) -> String {
    let names: Vec<String> = names.iter().map(SetName::to_string).collect();
    names.join(", ")
}
