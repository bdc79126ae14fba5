//! The sums, derived from who has what.
//!
//! What lives here: what the ledger and the accounts must say, limits, and everything in the words in
//! which the model and the registry are compared. What does not: changing anything but peaks (`model`).

use std::collections::BTreeMap;

use weighbridge::{Account, CatalogEntry, Event, EventKind, LedgerSnapshot};

use super::model::{Body, BodyId, Model, NodeId, Told};

/// reserved, resident, kept, retired.
pub type Sums = [u64; 4];

impl Model {
    /// Where the bytes of each body stand; `None`: nobody has them. The strongest use counts.
    fn stands(&self) -> Vec<Option<usize>> {
        let in_hand = self.bodies.iter().map(|body| body.in_hand.then_some(0));
        let mut stands: Vec<Option<usize>> = in_hand.collect();
        let holds = self.all_holds();
        for (node, holds) in self.nodes.iter().zip(&holds) {
            if !node.dead || (*holds > 0 && node.body.is_some()) {
                for &body in node.body.iter().chain(&node.lent) {
                    stands[body] = Some(3);
                }
            }
        }
        for set in &self.sets {
            for kept in set.kept.iter().chain(&set.vacated) {
                stands[kept.body] = Some(2);
            }
        }
        for body in self
            .nodes
            .iter()
            .filter(|node| !node.dead)
            .filter_map(|node| node.body)
        {
            stands[body] = Some(1);
        }
        stands
    }

    fn sums(&self, mut counts: impl FnMut(Option<&Account>) -> bool) -> (Sums, usize) {
        let (mut sums, mut charges) = (Sums::default(), 0);
        for (body, state) in self.bodies.iter().zip(self.stands()) {
            if let Some(state) = state
                && counts(body.account.as_ref())
            {
                sums[state] += body.bytes;
                charges += 1;
            }
        }
        for (account, bytes) in &self.reserved {
            if counts(Some(account)) {
                sums[0] += bytes;
                charges += 1;
            }
        }
        (sums, charges)
    }

    pub fn total(&self) -> Sums {
        self.sums(|account| !matches!(account, Some(Account::Foreign(_))))
            .0
    }

    pub fn account(&self, account: &Account) -> (Sums, usize) {
        self.sums(|other| other == Some(account))
    }

    /// Bytes of generations that were current and that nobody has any more.
    pub fn reclaimed_bytes(&self) -> u64 {
        let mut was = vec![false; self.bodies.len()];
        for body in self.nodes.iter().filter_map(|node| node.body) {
            was[body] = true;
        }
        let all = self.bodies.iter().zip(self.stands()).zip(was);
        all.filter(|((body, stands), was)| stands.is_none() && *was && !body.evicted)
            .map(|((body, _), _)| body.bytes)
            .sum()
    }

    pub fn fits_account(&self, account: &Account, bytes: u64) -> Result<(), String> {
        let limit = self.limits.get(account).copied().unwrap_or(u64::MAX);
        let in_use: u64 = self.account(account).0.iter().sum();
        if bytes > limit.saturating_sub(in_use) {
            return Err(format!(
                "OverAccountLimit {account} {bytes} {in_use} {limit}"
            ));
        }
        Ok(())
    }

    fn fits_total(&self, bytes: u64) -> Result<(), String> {
        let in_use: u64 = self.total().iter().sum();
        if bytes > self.limit.saturating_sub(in_use) {
            return Err(format!("OverLimit {bytes} {in_use} {}", self.limit));
        }
        Ok(())
    }

    /// Reserves bytes of an account, or of nobody's.
    pub fn take(&mut self, account: Option<&Account>, bytes: u64) -> Result<BodyId, String> {
        if let Some(account) = account {
            self.fits_account(account, bytes)?;
        }
        self.fits_total(bytes)?;
        self.bodies.push(Body {
            bytes,
            account: account.cloned(),
            in_hand: true,
            evicted: false,
        });
        self.note_peaks(account);
        Ok(self.bodies.len() - 1)
    }

    pub fn reserve(&mut self, account: &Account, bytes: u64) -> Result<(), String> {
        self.fits_account(account, bytes)?;
        if matches!(account, Account::Namespace(_)) {
            self.fits_total(bytes)?;
        }
        self.reserved.push((account.clone(), bytes));
        self.note_peaks(Some(account));
        Ok(())
    }

    pub fn note_peaks(&mut self, account: Option<&Account>) {
        self.peak = self.peak.max(self.total().iter().sum());
        if let Some(account) = account {
            let now: u64 = self.account(account).0.iter().sum();
            let peak = self.peaks.entry(account.clone()).or_default();
            *peak = now.max(*peak);
        }
    }

    /// The accounts that have a limit or a charge. One without both is forgotten, its peak with it.
    pub fn accounts(&mut self) -> Vec<String> {
        let mut all: BTreeMap<Account, ()> = BTreeMap::new();
        let charged = self.bodies.iter().filter_map(|body| body.account.clone());
        let taken = self.reserved.iter().map(|taken| taken.0.clone());
        for account in charged.chain(taken).chain(self.limits.keys().cloned()) {
            all.insert(account, ());
        }
        let (mut said, mut peaks) = (Vec::new(), BTreeMap::new());
        for account in all.into_keys() {
            let (sums, charges) = self.account(&account);
            let limit = self.limits.get(&account).copied().unwrap_or(u64::MAX);
            if charges == 0 && limit == u64::MAX {
                continue;
            }
            let peak = self.peaks.get(&account).copied().unwrap_or(0);
            peaks.insert(account.clone(), peak);
            said.push(sums_in_words(&account.to_string(), sums, limit, peak));
        }
        self.peaks = peaks;
        said
    }

    /// The same as [`entry_in_words`], of a generation.
    pub fn node_in_words(&self, node: NodeId) -> String {
        self.residency_in_words(node, self.nodes[node].body.is_some())
    }

    /// The same if it is there, or is not.
    pub fn residency_in_words(&self, node: NodeId, resident: bool) -> String {
        let node = &self.nodes[node];
        let (set, content) = (&self.sets[node.set], &node.content);
        let again = if content.again { content.bytes() } else { 0 };
        let bytes = node.body.map_or(again, |body| self.bodies[body].bytes);
        format!(
            "{} {} {} g{} {} {} tensors {bytes} B resident {} on {:?}",
            self.name(node.set),
            set.handle,
            if content.is_adapter() {
                "adapter"
            } else {
                "checkpoint"
            },
            node.generation,
            node.identity,
            node.tensors.len(),
            resident,
            content.base,
        )
    }

    pub fn former_in_words(&self, node: NodeId) -> String {
        let node = &self.nodes[node];
        let bytes = node.body.map_or(0, |body| self.bodies[body].bytes);
        let handle = self.sets[node.set].handle;
        format!(
            "{} {handle} g{} {bytes} B",
            self.name(node.set),
            node.generation
        )
    }

    pub fn commit_in_words(&self, set: usize, old: Option<NodeId>, more: usize) -> String {
        let what = match (self.sets[set].current, old) {
            (Some(now), None) => format!("published {}", self.node_in_words(now)),
            (Some(now), Some(old)) => {
                let (now, old) = (self.node_in_words(now), self.former_in_words(old));
                format!("replaced {now}, was {old}")
            }
            (None, old) => {
                let old = old.map(|old| self.former_in_words(old));
                format!("retired {}", old.unwrap_or_default())
            }
        };
        format!("#{} +{more} {what}", self.commits)
    }
}

pub fn sums_in_words(name: &str, sums: Sums, limit: u64, peak: u64) -> String {
    let [reserved, resident, kept, retired] = sums;
    format!(
        "{name}: reserved {reserved} resident {resident} kept {kept} retired {retired} \
         of {limit}, peak {peak}"
    )
}

pub fn snapshot_in_words(name: &str, now: &LedgerSnapshot) -> String {
    let sums = [now.reserved, now.resident, now.kept, now.retired];
    assert_eq!(now.total(), sums.iter().sum::<u64>());
    sums_in_words(name, sums, now.limit, now.peak)
}

pub fn entry_in_words(entry: &CatalogEntry) -> String {
    format!(
        "{} {} {} g{} {} {} tensors {} B resident {} on {:?}",
        entry.name,
        entry.handle,
        entry.kind,
        entry.generation,
        entry.identity,
        entry.tensors,
        entry.bytes,
        entry.resident,
        entry.base,
    )
}

fn former(former: &weighbridge::Former) -> String {
    let weighbridge::Former {
        name,
        handle,
        generation,
        bytes,
        ..
    } = former;
    format!("{name} {handle} g{generation} {bytes} B")
}

/// An event in words, and the message of a refusal.
pub fn event_in_words(event: &Event) -> (Told, Option<String>) {
    let told = match &event.kind {
        EventKind::Published {
            commit, more, now, ..
        } => Told::Commit(format!(
            "#{commit} +{more} published {}",
            entry_in_words(now)
        )),
        EventKind::Replaced {
            commit,
            more,
            now,
            previous,
            ..
        } => {
            let (now, was) = (entry_in_words(now), former(previous));
            Told::Commit(format!("#{commit} +{more} replaced {now}, was {was}"))
        }
        EventKind::Retired {
            commit,
            more,
            previous,
            ..
        } => Told::Commit(format!("#{commit} +{more} retired {}", former(previous))),
        EventKind::Evicted { now, .. } => Told::Moved(format!("evicted {}", entry_in_words(now))),
        EventKind::Loaded { now, .. } => Told::Moved(format!("loaded {}", entry_in_words(now))),
        EventKind::Reclaimed { former: gone, .. } => Told::Reclaimed(former(gone)),
        EventKind::Refused {
            operation,
            subject,
            cause,
            reason,
            ..
        } => {
            let said = format!("{} {subject}: {}", operation.as_str(), cause.as_str());
            return (Told::Refused(said), Some(reason.clone()));
        }
        other => panic!("an event of a new kind: {other:?}"),
    };
    (told, None)
}
