//! Many weights at one instant.
//!
//! What lives here: registering all of them or none. What does not: one weight (`registry`), slices
//! that become an adapter (`group`).

use std::collections::HashSet;

use super::address::{Address, FlatHandle, Registered};
use super::books;
use super::offer::{Offer, Refused};
use super::one::Slice;
use super::registry::FlatRegistry;
use crate::Dtype;
use crate::error::Error;
use crate::handle::SetHandle;
use crate::identity::content_identity;
use crate::names::SetName;
use crate::plan::Plan;
use crate::registry::{Operation, Staged};
use crate::source::Source;

/// One weight of many, on its way.
struct Coming<'n> {
    name: SetName,
    address: Address<'n>,
    is: Is,
}

enum Is {
    There(SetHandle),
    New(Box<Staged>),
}

impl FlatRegistry {
    /// [`register`](Self::register) for any number of weights: all of them are there from one instant
    /// on, or none is and nothing was changed. What was registered already is part of the answer and
    /// stays as it is.
    ///
    /// # Errors
    /// As [`register`](Self::register), of the first weight that is refused;
    /// [`Error::InvalidTensor`] if a name is there twice; [`Error::NameBusy`] if another thread
    /// unregisters one of them meanwhile.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use weighbridge::{Dtype, WeightRegistry, flat::FlatRegistry};
    /// # let flat = FlatRegistry::new(Arc::new(WeightRegistry::builder().build()?));
    /// let slices = ["q.A", "q.B"].map(|name| (("pirate", name).into(), Dtype::U8, [2], [7; 2]));
    /// let made = flat.register_all(
    ///     slices.iter().map(|(at, dtype, shape, bytes)| (*at, *dtype, &shape[..], &bytes[..])),
    /// )?;
    /// assert!(made.iter().all(|one| one.is_new()));
    /// assert_eq!(flat.adapter_handles("pirate").len(), 2);
    /// # Ok::<(), weighbridge::Error>(())
    /// ```
    pub fn register_all<'n>(
        &self,
        weights: impl IntoIterator<Item = (Address<'n>, Dtype, &'n [usize], &'n [u8])>,
    ) -> Result<Vec<Registered>, Error> {
        let mut names = HashSet::new();
        let mut coming = Vec::new();
        for (address, dtype, shape, bytes) in weights {
            let one = self.coming(address, dtype, shape, bytes)?;
            if !names.insert(one.name.clone()) {
                return Err(Error::InvalidTensor {
                    tensor: one.name.to_string(),
                    reason: "is there twice".to_owned(),
                });
            }
            coming.push(one);
        }
        self.admit_all(coming)
    }

    fn coming<'n>(
        &self,
        address: Address<'n>,
        dtype: Dtype,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Coming<'n>, Error> {
        self.registry().at_home()?;
        let name = self.name_of(address)?;
        let slice = Slice::new(address.name, dtype, shape, bytes)?;
        let identity = |plan: &Plan| Some(content_identity(plan, bytes));
        if let Some(there) = self.there(&name, slice.plan(), identity) {
            let is = Is::There(there?.handle().0);
            return Ok(Coming { name, address, is });
        }
        let is = Is::New(Box::new(self.registry().stage(slice)?));
        Ok(Coming { name, address, is })
    }

    fn admit_all(&self, coming: Vec<Coming<'_>>) -> Result<Vec<Registered>, Error> {
        let registry = &**self.registry();
        let subject = format!("{} weight(s)", coming.len());
        // All that may hold staged bytes is out here: what was staged for nothing is freed when the lock is
        // free again, and whoever watches has been told.
        let mut coming = coming.into_iter();
        let mut left = Vec::new();
        let mut all = Some(registry.transaction());
        let operation = Operation::Transaction;
        let answers = registry.observe_whole(operation, subject, Refused::error, || {
            let mut books = self.books();
            let mut entries = Vec::new();
            let mut answers = Vec::with_capacity(coming.len());
            for Coming { name, address, is } in &mut coming {
                let staged = match is {
                    Is::There(set) if books.get(set).is_some() => {
                        answers.push(Registered::Reused(FlatHandle(set)));
                        continue;
                    }
                    // It went since we looked.
                    Is::There(_) => return Err(Error::NameBusy { name }.into()),
                    Is::New(staged) => staged,
                };
                let Some(all) = &mut all else {
                    unreachable!("it is committed below")
                };
                let (error, staged) = match all.publish(name.clone(), *staged) {
                    Ok(set) => {
                        entries.push(books::Coming {
                            set,
                            name,
                            adapter: address.adapter,
                        });
                        answers.push(Registered::Created(FlatHandle(set)));
                        continue;
                    }
                    Err(failed) => failed.into_parts(),
                };
                // It came since we looked.
                let offer = staged.as_ref().map(|staged| Offer::of(staged, None));
                let known = offer.and_then(|offer| self.known(&books, &name, &offer));
                left.extend(staged);
                answers.push(known.unwrap_or(Err(error))?);
            }
            if entries.is_empty() {
                return Ok(answers);
            }
            if let Some(all) = all.take() {
                let done = all.commit()?;
                books.enter(registry, Some(done.generation), entries);
            }
            Ok(answers)
        });
        drop((coming, left, all));
        Ok(answers?)
    }
}
