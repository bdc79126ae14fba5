//! What would happen if something was loaded, without loading it.
//!
//! What lives here: [`Demand`], [`Estimate`]. What does not: doing it (`admit`).

use std::collections::HashSet;

use super::super::WeightRegistry;
use super::admit::Wish;
use super::choice::{Offer, choose};
use super::idle::Resident;
use super::{Inside, Waiter};
use crate::error::Error;
use crate::handle::SetHandle;
use crate::ledger::{Account, Need, Shortage};
use crate::names::{SetName, validate_namespace};
use crate::plan::Plan;

/// What somebody would like to have in memory, all of it at one instant.
///
/// See [`WeightRegistry::estimate`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Demand {
    sets: Vec<SetHandle>,
    needs: Vec<Need>,
    replaced: Vec<Replacement>,
}

/// The next generation of a set.
#[derive(Debug, Clone)]
struct Replacement {
    set: SetHandle,
    /// What its plan is charged.
    bytes: u64,
    /// It may wait until the one before is drained.
    drained: bool,
}

impl Demand {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also this set. If it has its bytes, they must stay; if not, they must come.
    pub fn set(mut self, set: SetHandle) -> Self {
        if !self.sets.contains(&set) {
            self.sets.push(set);
        }
        self
    }

    /// Also a set with this plan, to be published in `namespace` (`""`: the default one).
    pub fn plan(self, namespace: &str, plan: &Plan) -> Self {
        self.bytes(&Account::namespace(namespace), plan.charged_bytes())
    }

    /// Also the next generation of `set`, with this plan: while it is read and until the last lease of the one
    /// before ends, both are there ([`replace`](WeightRegistry::replace)). A set that is away need not come for it.
    /// Said twice of one set, it is two generations more.
    pub fn replacement(mut self, set: SetHandle, plan: &Plan) -> Self {
        self.replaced.push(Replacement {
            set,
            bytes: plan.charged_bytes(),
            drained: false,
        });
        self
    }

    /// The same by a [drained swap](WeightRegistry::replace_drained), which waits for these leases if both do not fit,
    /// and then needs only what is more.
    pub fn drained_replacement(mut self, set: SetHandle, plan: &Plan) -> Self {
        self.replaced.push(Replacement {
            set,
            bytes: plan.charged_bytes(),
            drained: true,
        });
        self
    }

    /// Also so many bytes that are no weights: activations, inputs, a cache.
    pub fn bytes(mut self, account: &Account, bytes: u64) -> Self {
        self.needs.push(Need {
            account: account.clone(),
            bytes,
        });
        self
    }
}

/// Whether a [`Demand`] would fit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Estimate {
    /// It fits.
    #[non_exhaustive]
    Now {
        /// What it takes, beyond what is there.
        bytes: u64,
    },
    /// It fits when these sets go, in this order: nobody leases them.
    #[non_exhaustive]
    AfterEvicting {
        /// What it takes, beyond what is there.
        bytes: u64,
        /// What goes.
        sets: Vec<SetName>,
        /// How many bytes these have.
        freed: u64,
    },
    /// It fits when what is leased, loading or on its way back has been let go of.
    #[non_exhaustive]
    WhenReleased {
        /// What it takes, beyond what is there.
        bytes: u64,
        /// What is missing when all has gone that could go at this moment: of the total, or of the account
        /// that lacks most.
        missing: u64,
        /// The sets that could be evicted if they were not leased.
        leased: Vec<SetName>,
    },
    /// It does not fit, whatever goes.
    #[non_exhaustive]
    Never {
        /// What it takes, beyond what is there.
        bytes: u64,
        /// By how many bytes it does not fit.
        missing: u64,
        /// Bytes of sets that cannot go: pinned, wanted as well, or from a source that cannot be read again.
        immovable: u64,
        /// The limit that is in the way.
        limit: u64,
        /// Whose limit; `None`: the total's.
        account: Option<Account>,
    },
}

impl Shortage {
    pub(super) fn most(&self) -> u64 {
        let accounts = self.accounts.values().copied();
        accounts.chain([self.total]).max().unwrap_or(0)
    }
}

impl WeightRegistry {
    /// Would this fit, and what would have to go for it? Nothing is evicted, allocated or reserved, so the
    /// answer is of this moment. It asks the [policy](crate::policy), which hears of what was used since it was
    /// asked last, and takes its lock. O(sets).
    ///
    /// # Errors
    /// [`Error::StaleHandle`], [`Error::WrongRegistry`], [`Error::NotResident`] for a set whose bytes are
    /// not to come back; [`Error::InvalidName`] for an account; [`Error::LoadInsideLoad`];
    /// [`Error::Forked`].
    ///
    /// # Examples
    /// ```
    /// use weighbridge::source::{Checkpoint, Evictable, Source};
    /// use weighbridge::{Demand, Error, Estimate, WeightRegistry};
    ///
    /// let open = || Checkpoint::open("fixtures/tiny-llama");
    /// let bytes = open()?.plan().charged_bytes();
    /// let registry = WeightRegistry::builder().limit_bytes(bytes * 3 / 2).build()?;
    /// registry.publish("one", Evictable::opened_by(open)?)?;
    ///
    /// let another = Demand::new().plan("", open()?.plan());
    /// let estimate = registry.estimate(&another)?;
    /// assert!(matches!(estimate, Estimate::AfterEvicting { freed, .. } if freed == bytes));
    /// let two = Demand::new().plan("", open()?.plan()).plan("", open()?.plan());
    /// assert!(matches!(registry.estimate(&two)?, Estimate::Never { .. }));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn estimate(&self, demand: &Demand) -> Result<Estimate, Error> {
        self.shared.check_process()?;
        for need in &demand.needs {
            validate_namespace(need.account.name())?;
        }
        loop {
            let generations = || -> Result<_, Error> {
                let away = demand.sets.iter();
                let away = away
                    .map(|&set| self.away_as(set))
                    .collect::<Result<Vec<_>, _>>()?;
                let there = demand.replaced.iter();
                let there = there.map(|one| self.charged_now(one.set));
                Ok((away, there.collect::<Result<Vec<_>, _>>()?))
            };
            let before = generations()?;
            match self.reckon(demand)? {
                // It was reckoned with what has changed since.
                Estimate::Never { .. } if generations()? != before => {}
                estimate => return Ok(estimate),
            }
        }
    }

    fn reckon(&self, demand: &Demand) -> Result<Estimate, Error> {
        let mut needs = demand.needs.clone();
        let mut held = Vec::new();
        for &set in &demand.sets {
            match self.need(set)? {
                Some(need) => needs.push(need),
                None => held.push(set),
            }
        }
        let mut wanted: HashSet<SetHandle> = demand.sets.iter().copied().collect();
        for one in &demand.replaced {
            let (account, has) = self.charged_now(one.set)?;
            let beyond = if one.drained { has.unwrap_or(0) } else { 0 };
            needs.push(Need {
                account,
                bytes: one.bytes.saturating_sub(beyond),
            });
            // What it has must stay for those who lease it.
            wanted.insert(one.set);
            held.extend(has.map(|_| one.set));
        }
        let all = needs.iter().map(|need| need.bytes);
        let bytes = all.fold(0, u64::saturating_add);
        let wish = Wish {
            sets: &demand.sets,
            held: &held,
            needs: &needs,
        };
        let short = self.shared.pool.shortage(&needs);
        if short.is_none() {
            return Ok(Estimate::Now { bytes });
        }
        let scene = self.scene();
        match self.can_ever_fit(&scene, &wish) {
            Ok(()) => {}
            Err(Error::NeverFits {
                requested,
                immovable,
                limit,
                account,
            }) => {
                return Ok(Estimate::Never {
                    bytes,
                    missing: requested.saturating_add(immovable) - limit,
                    immovable,
                    limit,
                    account,
                });
            }
            Err(error) => return Err(error),
        }
        let ranked = {
            let _entered = Inside::Policy.enter()?;
            let mut chooser = self.room.chooser.lock(); // E74
            self.rank(&mut *chooser.policy, &scene.residents)
        };
        let others = ranked
            .into_iter()
            .filter(|one| !wanted.contains(&one.record.handle) && !one.is_pinned());
        let (idle, leased): (Vec<&Resident>, Vec<&Resident>) =
            others.partition(|one| one.is_idle());
        let name = |one: &&Resident| one.record.name.clone();
        let offers: Vec<Offer> = idle.iter().map(|one| one.offer.clone()).collect();
        let choice = choose(&short, &offers);
        if !choice.left.is_none() {
            return Ok(Estimate::WhenReleased {
                bytes,
                missing: choice.left.most(),
                leased: leased.iter().map(name).collect(),
            });
        }
        let going = || choice.taken.iter().map(|&at| idle[at]);
        Ok(Estimate::AfterEvicting {
            bytes,
            sets: going().map(|one| name(&one)).collect(),
            freed: going().map(|one| one.offer.bytes).sum(),
        })
    }

    /// Where a set is charged, and how much if it has its bytes.
    fn charged_now(&self, set: SetHandle) -> Result<(Account, Option<u64>), Error> {
        let view = self.view();
        let node = view.resolve(self.key(set)?);
        let node = node.and_then(|node| Some((node, node.meta()?)));
        let (node, meta) = node.ok_or(Error::StaleHandle { handle: set })?;
        let account = Account::namespace(meta.record.name.namespace());
        Ok((account, (!node.is_absent()).then_some(meta.bytes)))
    }

    /// Who is in the way of a waiter whose time is over.
    pub(in super::super) fn in_the_way(&self, waiter: &Waiter) -> (u64, usize, Vec<SetHandle>) {
        let lacks = |ticket| self.room.line.lacks(ticket, |lack| lack.short.most());
        let missing = waiter.ticket.and_then(lacks).unwrap_or(0);
        let mut leased = self.scene().residents;
        leased.retain(|one| !one.is_pinned() && !one.is_idle());
        leased.sort_by_key(|one| std::cmp::Reverse(one.offer.bytes));
        let sets = leased.iter().map(|one| one.record.handle).collect();
        let others = self
            .room
            .line
            .len()
            .saturating_sub(usize::from(waiter.ticket.is_some()));
        (missing, others, sets)
    }
}
